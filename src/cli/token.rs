//! `onced token`: the server's own tokens.

use clap::{Args, Subcommand};

use super::exit::Exit;
use super::output::{print, say};
use crate::access::tokens;

#[derive(Debug, Args)]
pub struct TokenArgs {
    #[command(subcommand)]
    command: TokenCommand,
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Make a token, print it, and print its line for the file that access.tokens names
    New {
        /// Who gets it: rules call it token:NAME
        name: String,
    },
}

/// Makes a token. Nothing keeps it: it is printed once.
pub fn run(args: TokenArgs) -> Exit {
    let TokenCommand::New { name } = args.command;
    match tokens::new(&name) {
        Ok((token, line)) => {
            say("the token, for the caller, shown this once; then its line for the file of access.tokens:");
            print(&format!("{token}\n{line}\n"))
        }
        Err(why) => {
            say(&why);
            Exit::Usage
        }
    }
}
