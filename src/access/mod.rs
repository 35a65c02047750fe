//! Who calls, and what they may do. Beside the layers: it names none of them but `record`.
//!
//! - `tls`: the server's certificate, and whose client certificates it takes.
//! - `caller`: who calls, by the names that rules are about.
//! - `tokens`, `jwt`: the server's own tokens, and those of an issuer.
//! - `rules`: who may do what, where.

pub mod caller;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod jwt;
pub mod rules;
pub mod tls;
pub mod tokens;

use std::borrow::Cow;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::record::Timestamp;

pub use caller::Caller;
pub use jwt::Issuer;
pub use rules::{Action, Pattern, Rule, Rules};
pub use tls::{ClientAuth, Serving, Shown, TlsFiles};
pub use tokens::Tokens;

/// What is asked of callers. By default nothing is.
#[derive(Clone, Debug, Default)]
pub struct Gate {
    /// Whether callers can show certificates.
    pub certificates: bool,
    /// The server's own tokens, if it takes some.
    pub tokens: Option<Arc<Tokens>>,
    /// Whose other tokens it takes.
    pub issuer: Option<Arc<Issuer>>,
    /// What callers may do.
    pub rules: Arc<Rules>,
    /// Whether reflection asks nobody who it is.
    pub open_reflection: bool,
    /// Another one for each gate, by [`Gate::next_version`], so that callers need not be verified twice by the same one.
    pub version: u64,
}

/// Why it is not known who calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unproven {
    /// Nothing was shown.
    Missing,
    /// A token was shown that is not taken: what it is or does.
    Invalid(&'static str),
    /// A token was shown that was taken until it expired.
    Expired,
}

impl Gate {
    /// Whether there is any way to show who one is: then each call must.
    pub fn is_closed(&self) -> bool {
        self.certificates || self.tokens.is_some() || self.issuer.is_some()
    }

    /// Whether anybody has a token of the server's own.
    pub fn has_tokens(&self) -> bool {
        self.tokens.as_ref().is_some_and(|tokens| !tokens.is_empty())
    }

    /// Who calls, if that matters. A token counts more than a certificate: it is of the call, which may go through the
    /// connection of another; and one that is wrong is never made good by a certificate.
    ///
    /// # Errors
    /// If it matters, and is not known.
    pub fn identify(
        &self,
        certified: Option<&Caller>,
        authorization: &[&[u8]],
        now: Timestamp,
    ) -> Result<Option<Caller>, Unproven> {
        if !self.is_closed() {
            return Ok(None);
        }
        match authorization {
            [] => certified.cloned().map(Some).ok_or(Unproven::Missing),
            [header] => {
                let text = std::str::from_utf8(header).ok().and_then(|text| text.split_once(' '));
                let token =
                    text.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).map(|(_, token)| token);
                let token = token.ok_or(Unproven::Invalid("is not in the form: Bearer TOKEN"))?;
                let token = token.trim();
                let mut caller = self.verify(token, now)?;
                caller.shown = Some((token.into(), self.version));
                Ok(Some(caller))
            }
            [_, _, ..] => Err(Unproven::Invalid("is one of several in the same call")),
        }
    }

    /// Who a caller is now that was known before: its token may have expired, or have been taken back.
    ///
    /// # Errors
    /// If it is no longer known.
    pub fn identify_again<'a>(
        &self,
        caller: &'a Caller,
        now: Timestamp,
    ) -> Result<Cow<'a, Caller>, Unproven> {
        if caller.until.is_some_and(|until| until <= now) {
            return Err(Unproven::Expired);
        }
        match &caller.shown {
            Some((token, version)) if *version != self.version => self.verify(token, now).map(Cow::Owned),
            Some(_) | None => Ok(Cow::Borrowed(caller)),
        }
    }

    /// A version that no gate of this process has had.
    pub fn next_version() -> u64 {
        static LAST: AtomicU64 = AtomicU64::new(0);
        LAST.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn verify(&self, token: &str, now: Timestamp) -> Result<Caller, Unproven> {
        const UNKNOWN: Unproven = Unproven::Invalid("is none of this server's");
        // The server's own tokens have no dots.
        match (&self.tokens, &self.issuer) {
            (_, Some(issuer)) if token.contains('.') => issuer.verify(token, now),
            (Some(tokens), _) => tokens.name_of(token).map(Caller::of_token).ok_or(UNKNOWN),
            (None, _) => Err(UNKNOWN),
        }
    }

    /// Whether a caller may do something in a namespace.
    pub fn allows(&self, caller: Option<&Caller>, namespace: &str, action: Action) -> bool {
        match caller {
            Some(caller) => rules::allow(&self.rules, caller, namespace, action),
            None => !self.is_closed() && self.rules.is_empty(),
        }
    }
}

/// Why a file cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{setting}: {text}")]
pub struct Unusable {
    /// The key of the setting that names it.
    pub setting: &'static str,
    /// What is wrong, with its name.
    pub text: String,
}

impl Unusable {
    fn unread(setting: &'static str, file: &Path, error: &io::Error) -> Self {
        Self { setting, text: format!("cannot read {}: {error}", file.display()) }
    }

    fn of(setting: &'static str, file: &Path, why: impl std::fmt::Display) -> Self {
        Self { setting, text: format!("{} {why}", file.display()) }
    }
}

impl From<Unusable> for Vec<Unusable> {
    fn from(unusable: Unusable) -> Self {
        vec![unusable]
    }
}

/// What was made of files, or all that is wrong with them.
///
/// # Errors
/// Those of the one, then those of the other.
pub fn both<A, B>(
    one: Result<A, impl Into<Vec<Unusable>>>,
    other: Result<B, impl Into<Vec<Unusable>>>,
) -> Result<(A, B), Vec<Unusable>> {
    match (one.map_err(Into::into), other.map_err(Into::into)) {
        (Ok(one), Ok(other)) => Ok((one, other)),
        (Err(mut unusable), Err(more)) => {
            unusable.extend(more);
            Err(unusable)
        }
        (Err(unusable), Ok(_)) | (Ok(_), Err(unusable)) => Err(unusable),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_micros(0);

    #[test]
    fn a_token_that_is_wrong_is_not_made_good_by_a_certificate() {
        let (token, _) = tokens::new("ci").unwrap();
        let gate = Gate { tokens: Some(Arc::default()), certificates: true, ..Gate::default() };
        let certified = Caller::of_token("as if certified");
        assert_eq!(gate.identify(Some(&certified), &[], NOW), Ok(Some(certified.clone())));
        assert_eq!(gate.identify(None, &[], NOW), Err(Unproven::Missing));
        let bearer = format!("Bearer {token}");
        for wrong in [
            &[bearer.as_bytes()][..],
            &[b"Bearer"],
            &[b"Basic YTpi"],
            &[b""],
            &[b"\xff"],
            &[b"Bearer x", b"Bearer x"],
        ] {
            let told = gate.identify(Some(&certified), wrong, NOW);
            assert!(matches!(told, Err(Unproven::Invalid(_))), "{wrong:?}: {told:?}");
        }
    }

    #[test]
    fn an_open_gate_asks_nobody() {
        let gate = Gate::default();
        assert_eq!(gate.identify(None, &[b"anything"], NOW), Ok(None));
        assert!(gate.allows(None, "n", Action::Admin));
        assert!(!Gate { certificates: true, ..Gate::default() }.allows(None, "n", Action::Lookup));
    }
}
