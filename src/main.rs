//! `onced`: see `onced --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    onced::cli::main()
}
