//! The server that is measured: the released program, in a process of its own.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;

use crate::child::Child;
use crate::options::Options;

/// What builds all that is measured.
const BUILD: &str = "cargo build --release -p onced -p onced-bench --bins";
/// How long a server may take to listen, in steps of [`STEP`].
const READY_STEPS: u32 = 400;
const STEP: Duration = Duration::from_millis(25);

/// Where a server keeps its records.
pub enum Place<'a> {
    /// In etcd, on a prefix.
    Etcd { endpoints: &'a str, prefix: &'a str },
    /// In a directory of its own.
    Embedded,
    /// In a hash map: not a server of onced, but `onced-bench-bare`.
    Nowhere,
}

/// The program of a server that has a hash map.
pub const BARE: &str = "onced-bench-bare";

/// A server on a free port, ended when dropped.
pub struct Server {
    name: &'static str,
    child: Child,
    address: String,
}

impl Server {
    pub async fn start(options: &Options, place: Place<'_>) -> anyhow::Result<Self> {
        let program = match place {
            Place::Nowhere => built(BARE)?,
            Place::Etcd { .. } | Place::Embedded => program(options)?,
        };
        let child = Child::start(&program, |dir| {
            let store = match place {
                Place::Etcd { endpoints, prefix } => format!("etcd://{endpoints}/{prefix}"),
                Place::Embedded => format!("file:{}", dir.join("data").display()),
                Place::Nowhere => return Vec::new(),
            };
            let listen = ["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"];
            [&["serve", "--log", "warn", "--store", &store], &listen[..]]
                .concat()
                .into_iter()
                .map(str::to_owned)
                .collect()
        })?;
        for _ in 0..READY_STEPS {
            let output = child.output();
            // The line is whole once the next one has begun.
            if let Some((first, _)) = output.split_once('\n') {
                let address =
                    first.strip_prefix("listening on ").context("the server did not say where it listens")?;
                let name = if matches!(place, Place::Nowhere) { "bare" } else { "onced" };
                return Ok(Self { name, address: address.to_owned(), child });
            }
            anyhow::ensure!(child.is_running(), "{} ended:\n{}", program.display(), child.log());
            tokio::time::sleep(STEP).await;
        }
        anyhow::bail!("{} does not listen:\n{}", program.display(), child.log())
    }

    /// What it is called among the processes of a way.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Where it listens, as host:port.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The directory that it may use.
    pub fn dir(&self) -> &Path {
        self.child.dir()
    }

    pub fn pid(&self) -> u32 {
        self.child.pid()
    }
}

/// The server program.
pub fn program(options: &Options) -> anyhow::Result<PathBuf> {
    let Some(program) = &options.onced else {
        return built("onced").context("a server program may be named with --onced");
    };
    anyhow::ensure!(program.is_file(), "there is no server program at {}", program.display());
    Ok(program.clone())
}

/// A program that is built beside this one.
pub fn built(name: &str) -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe()?.with_file_name(name);
    anyhow::ensure!(
        program.is_file(),
        "there is no server program at {}: build it with `{BUILD}`",
        program.display()
    );
    check_is_fresh(&program)?;
    Ok(program)
}

/// Fails if a source of the program is newer than it: cargo has built this program, but not that one. What its
/// sources are, cargo has written down beside it.
fn check_is_fresh(program: &Path) -> anyhow::Result<()> {
    let built = program.metadata()?.modified()?;
    let Ok(sources) = std::fs::read_to_string(program.with_extension("d")) else { return Ok(()) };
    for source in sources.split_whitespace().skip(1) {
        let changed = Path::new(source).metadata().and_then(|source| source.modified());
        // One that is gone, or has a space in its name, tells nothing.
        anyhow::ensure!(
            changed.is_err() || changed.is_ok_and(|changed| changed <= built),
            "{} is older than {source}: build it with `{BUILD}`",
            program.display()
        );
    }
    Ok(())
}
