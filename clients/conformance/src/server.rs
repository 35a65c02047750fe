//! Real servers, each with a directory of its own.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::certificates::Certificates;
use crate::etcd::http_get;
use crate::process::{Watched, tail};
use crate::scenario::{By, Setup};

/// How often a server is started that does not come up: a connection may have its port, for a moment.
const ATTEMPTS: u32 = 50;
const PAUSE: Duration = Duration::from_millis(100);

/// How many calls wait, and how many sessions are open, among the metrics.
pub const WAITING: &str = r#"onced_limit_used{limit="max_waiting_calls"}"#;
pub const SESSIONS: &str = "onced_sessions_open";

/// What all servers of a run have in common.
pub struct House {
    pub binary: PathBuf,
    pub certificates: Certificates,
    /// Those called `one` and `two`.
    pub tokens: Vec<Token>,
}

/// A token, and the line that has a server take it.
pub struct Token {
    pub name: &'static str,
    pub text: String,
    line: String,
}

impl Token {
    /// Has the program make one, as its users do.
    pub async fn make(binary: &Path, name: &'static str) -> Result<Self> {
        let made = tokio::process::Command::new(binary).args(["token", "new", name]).output().await;
        let made = made.with_context(|| format!("cannot run {}", binary.display()))?;
        let told = String::from_utf8(made.stdout)?;
        let mut lines = told.lines().filter(|line| !line.trim().is_empty());
        let text = lines.next().context("`onced token new` prints a token")?.trim().to_owned();
        let starts = format!("{name} = ");
        let line = lines.find(|line| line.starts_with(&starts)).context("`onced token new` prints a line")?;
        Ok(Self { name, text, line: line.to_owned() })
    }
}

pub struct Server {
    name: String,
    store: String,
    dir: PathBuf,
    setup: Setup,
    /// Where it listens, once it has been started.
    address: Option<String>,
    admin: String,
    process: Option<Watched>,
}

impl Server {
    pub fn new(name: &str, store: String, dir: &Path, setup: Setup) -> Self {
        let (name, dir) = (name.to_owned(), dir.to_owned());
        Self { name, store, dir, setup, address: None, admin: String::new(), process: None }
    }

    /// Starts it, at the address that it had.
    pub async fn start(&mut self, house: &House, setup: Option<Setup>) -> Result<()> {
        if let Some(setup) = setup {
            self.setup = setup;
        }
        for _ in 0..ATTEMPTS {
            if self.try_start(house).await? {
                return Ok(());
            }
            tokio::time::sleep(PAUSE).await;
        }
        bail!("the server {} does not start:\n{}", self.name, tail(&self.log(), 10))
    }

    /// False if it ended before it said where it listens.
    async fn try_start(&mut self, house: &House) -> Result<bool> {
        let args = self.args(house)?;
        let mut process = Watched::start(&house.binary, &args, &self.log())?;
        let mut said = async |start: &str| -> Result<Option<String>> {
            let Some(line) = process.lines.next_line().await? else { return Ok(None) };
            let address = line.strip_prefix(start);
            Ok(Some(address.with_context(|| format!("{line:?} does not begin with {start:?}"))?.to_owned()))
        };
        let (Some(api), Some(admin)) =
            (said("listening on ").await?, said("health and metrics on http://").await?)
        else {
            return Ok(false);
        };
        (self.address, self.admin, self.process) = (Some(api), admin, Some(process));
        Ok(true)
    }

    fn args(&self, house: &House) -> Result<Vec<OsString>> {
        let listen = self.address.as_deref().unwrap_or("127.0.0.1:0");
        let texts = ["serve", "--store", &self.store, "--listen", listen, "--admin-listen", "127.0.0.1:0"];
        let mut args: Vec<OsString> = texts.into_iter().map(OsString::from).collect();
        args.extend(self.setup.args.iter().map(OsString::from));
        let mut file = |flag: &str, path: PathBuf| args.extend([OsString::from(flag), path.into_os_string()]);
        if let Some(name) = &self.setup.tls {
            file("--tls-cert", house.certificates.path(&format!("{name}.crt")));
            file("--tls-key", house.certificates.path(&format!("{name}.key")));
        }
        if self.setup.asks_for_certificates {
            file("--tls-client-ca", house.certificates.path("ca.crt"));
        }
        if !self.setup.tokens.is_empty() {
            let taken =
                house.tokens.iter().filter(|token| self.setup.tokens.iter().any(|name| name == token.name));
            let lines: String = taken.map(|token| format!("{}\n", token.line)).collect();
            let path = self.dir.join(format!("{}.tokens", self.name));
            std::fs::write(&path, lines)?;
            file("--access-tokens", path);
        }
        Ok(args)
    }

    pub async fn stop(&mut self, by: By) -> Result<()> {
        let process = self.process.as_mut().with_context(|| format!("the server {} runs", self.name))?;
        let signal = match by {
            By::Kill => "KILL",
            By::Term => "TERM",
            By::Freeze => return process.signal("STOP").await,
        };
        process.signal(signal).await?;
        process.ended().await?;
        self.process = None;
        Ok(())
    }

    /// Ends it, if it runs.
    pub async fn end(&mut self) -> Result<()> {
        if self.process.is_some() { self.stop(By::Kill).await } else { Ok(()) }
    }

    pub fn address(&self) -> Result<&str> {
        self.address.as_deref().with_context(|| format!("the server {} was started", self.name))
    }

    /// How it is to be spoken with.
    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    /// A number of its metrics. It tells nothing of calls before the first one.
    pub async fn metric(&self, name: &str) -> Result<u64> {
        let metrics = http_get(&self.admin, "/metrics").await?;
        let count = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(count.unwrap_or("0").trim().parse()?)
    }

    /// What it said last.
    pub fn log_tail(&self) -> String {
        tail(&self.log(), 12)
    }

    fn log(&self) -> PathBuf {
        self.dir.join(format!("{}.log", self.name))
    }
}
