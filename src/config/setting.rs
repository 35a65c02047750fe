//! What a setting is, and how a struct of settings is declared: once, with all there is to know of each.

use super::form::{Form, Raw};

/// Whether a setting takes effect when the file is read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reload {
    /// It does.
    Live,
    /// It needs a restart.
    Restart,
}

/// A setting of a configuration, to be looked at and set.
pub struct Setting<'a> {
    /// Its key in the file, with that of its table: `limits.connections`.
    pub key: String,
    /// What it is.
    pub help: &'static str,
    /// Whether it takes effect when the file is read again.
    pub reload: Reload,
    slot: Box<dyn Slot + 'a>,
}

impl<'a> Setting<'a> {
    pub(super) fn new<T, F: Form<T> + 'a>(
        name: &'static str,
        help: &'static str,
        reload: Reload,
        value: &'a mut T,
        form: F,
    ) -> Self {
        Self { key: name.to_owned(), help: help.trim(), reload, slot: Box::new(Formed { value, form }) }
    }

    /// The same setting in a table.
    pub(super) fn within(self, table: &str) -> Self {
        Self { key: format!("{table}.{}", self.key), ..self }
    }

    /// Its table, and its name in it.
    pub fn path(&self) -> (Option<&str>, &str) {
        match self.key.rsplit_once('.') {
            Some((table, name)) => (Some(table), name),
            None => (None, &self.key),
        }
    }

    /// The flag that sets it, without the dashes in front.
    pub fn flag(&self) -> String {
        self.key.replace(['.', '_'], "-")
    }

    /// The environment variable that sets it.
    pub fn variable(&self) -> String {
        format!("ONCED_{}", self.key.replace('.', "_").to_ascii_uppercase())
    }

    /// Sets it to what somebody wrote.
    ///
    /// # Errors
    /// What is wrong with that; it is then as before.
    pub fn set(&mut self, raw: &Raw) -> Result<(), String> {
        self.slot.set(raw)
    }

    /// Its value; `None` if it has none.
    pub fn show(&self) -> Option<Raw> {
        self.slot.show()
    }

    /// What it must be.
    pub fn expected(&self) -> String {
        self.slot.expected()
    }

    /// What stands for its value in the help.
    pub fn placeholder(&self) -> &'static str {
        self.slot.placeholder()
    }
}

/// A value with its form.
struct Formed<'a, T, F> {
    value: &'a mut T,
    form: F,
}

trait Slot {
    fn set(&mut self, raw: &Raw) -> Result<(), String>;
    fn show(&self) -> Option<Raw>;
    fn expected(&self) -> String;
    fn placeholder(&self) -> &'static str;
}

impl<T, F: Form<T>> Slot for Formed<'_, T, F> {
    fn set(&mut self, raw: &Raw) -> Result<(), String> {
        *self.value = self.form.read(raw)?;
        Ok(())
    }

    fn show(&self) -> Option<Raw> {
        self.form.show(self.value)
    }

    fn expected(&self) -> String {
        self.form.expected()
    }

    fn placeholder(&self) -> &'static str {
        self.form.placeholder()
    }
}

/// Declares a struct of settings. Each line is a field, its default, its form, and whether it can change under a
/// running server; the comment on it is the help text, the word in the reference, and its documentation here.
/// `tables` are structs of the same kind, each with its table in the file; `beside` is what is not set so.
macro_rules! settings {
    (
        $(#[$about:meta])*
        $name:ident {
            $($(#[doc = $help:literal])+ $field:ident: $type:ty = $default:expr, $form:expr, $reload:ident;)*
        }
        $(tables { $($(#[$about_table:meta])* $part:ident: $part_type:ty, $table:literal;)* })?
        $(beside { $($(#[$about_beside:meta])* $other:ident: $other_type:ty;)* })?
    ) => {
        $(#[$about])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $name {
            $($(#[doc = $help])+ pub $field: $type,)*
            $($($(#[$about_table])* pub $part: $part_type,)*)?
            $($($(#[$about_beside])* pub $other: $other_type,)*)?
        }

        impl Default for $name {
            fn default() -> Self {
                Self {
                    $($field: $default,)*
                    $($($part: <$part_type>::default(),)*)?
                    $($($other: <$other_type>::default(),)*)?
                }
            }
        }

        impl $name {
            /// Its settings, in the order of the file.
            pub fn settings(&mut self) -> Vec<$crate::config::Setting<'_>> {
                use $crate::config::{Reload, Setting};
                #[allow(unused_mut)] // Not all have tables.
                let mut all = vec![$(
                    Setting::new(stringify!($field), concat!($($help),+), Reload::$reload, &mut self.$field, $form),
                )*];
                $($(
                    all.extend(self.$part.settings().into_iter().map(|setting| setting.within($table)));
                )*)?
                all
            }
        }
    };
}

pub(super) use settings;
