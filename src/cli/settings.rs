//! The settings as arguments: a flag for each row of the table, read as text, so that all that is wrong is told at
//! once with what is wrong in the file and the environment.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches, ValueHint, value_parser};

use crate::config::{Config, Sources};

const CONFIG: &str = "config";

/// The file and the flags on a command line.
#[derive(Clone, Debug, Default)]
pub struct SettingsArgs {
    file: Option<PathBuf>,
    flags: BTreeMap<String, String>,
}

impl SettingsArgs {
    /// These, with the environment of this process.
    pub fn sources(self) -> Sources {
        Sources::of_process(self.file, self.flags)
    }
}

impl Args for SettingsArgs {
    fn augment_args(command: Command) -> Command {
        let file = Arg::new(CONFIG)
            .long(CONFIG)
            .value_name("FILE")
            .value_parser(value_parser!(PathBuf))
            .value_hint(ValueHint::FilePath)
            .help("Read settings from this file; docs/configuration.md has them all [env: ONCED_CONFIG]");
        let mut config = Config::default();
        config.settings().into_iter().fold(command.arg(file), |command, setting| {
            let default =
                setting.show().map(|value| format!("[default: {}] ", value.bare())).unwrap_or_default();
            let help = format!("{} {default}[env: {}]", setting.help, setting.variable());
            let (table, _) = setting.path();
            let arg = Arg::new(setting.key.clone())
                .long(setting.flag())
                .value_name(setting.placeholder())
                .help(help)
                // What most servers never need is told by --help alone.
                .hide_short_help(table.is_some_and(|table| !["access", "etcd", "tls"].contains(&table)));
            command.arg(match table {
                Some(table) => arg.help_heading(table.to_owned()),
                None => arg,
            })
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for SettingsArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut args = Self::default();
        args.update_from_arg_matches(matches)?;
        Ok(args)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        if let Some(file) = matches.get_one::<PathBuf>(CONFIG) {
            self.file = Some(file.clone());
        }
        for setting in Config::default().settings() {
            if let Some(text) = matches.get_one::<String>(&setting.key) {
                self.flags.insert(setting.flag(), text.clone());
            }
        }
        Ok(())
    }
}
