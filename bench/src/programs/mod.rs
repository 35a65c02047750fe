//! What onced is compared with: servers and programs of others, started as children. Each is looked for in the PATH.

pub mod postgres;
pub mod powertools;
pub mod redis;
pub mod restate;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;

/// A program in the PATH.
pub fn find(name: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|program| program.is_file())
        .with_context(|| format!("there is no `{name}` in the PATH"))
}

/// The first line that a program prints: with such arguments, its version.
pub fn version(program: &Path, arguments: &[&str]) -> anyhow::Result<String> {
    let name = program.display();
    let output =
        Command::new(program).args(arguments).output().with_context(|| format!("cannot run {name}"))?;
    anyhow::ensure!(output.status.success(), "{name} says: {}", last_line(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().trim().to_owned())
}

fn last_line(text: &[u8]) -> String {
    String::from_utf8_lossy(text).trim().lines().last().unwrap_or_default().to_owned()
}
