//! A real etcd, for all scenarios of a run, each on a prefix of its own. `ONCED_TEST_ETCD=/path/to/etcd` takes another one.

use std::ffi::OsString;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::process::{Watched, tail};

/// How many pairs of ports are tried.
const ATTEMPTS: u32 = 10;
/// How often, and in steps of what, it is asked whether it serves. Two busy cores need a few seconds.
const READY_STEPS: u32 = 600;
const STEP: Duration = Duration::from_millis(100);

pub struct Etcd {
    process: Watched,
    port: u16,
}

impl Etcd {
    pub async fn start(dir: &Path) -> Result<Self> {
        let program = match std::env::var_os("ONCED_TEST_ETCD") {
            Some(path) => PathBuf::from(path),
            None => etcd_bin_vendored::etcd_bin_path().context("an etcd for this machine")?.into(),
        };
        let mut last = String::new();
        for attempt in 0..ATTEMPTS {
            let dir = dir.join(format!("etcd-{attempt}"));
            std::fs::create_dir(&dir)?;
            let log = dir.join("log");
            let port = free_port()?;
            let process = Watched::start(&program, &args(&dir, port, free_port()?), &log)?;
            let started = Self { process, port };
            if started.is_ready(&log).await {
                return Ok(started);
            }
            // Somebody took a port between our look and etcd's, or it cannot start at all.
            last = tail(&log, 5);
        }
        bail!("etcd does not get ready:\n{last}")
    }

    /// A store in it.
    pub fn store(&self, prefix: &str) -> String {
        format!("etcd://127.0.0.1:{}/{prefix}", self.port)
    }

    pub async fn end(mut self) -> Result<()> {
        self.process.signal("KILL").await?;
        self.process.ended().await
    }

    async fn is_ready(&self, log: &Path) -> bool {
        for _ in 0..READY_STEPS {
            let health = http_get(&format!("127.0.0.1:{}", self.port), "/health").await;
            if health.is_ok_and(|answer| answer.contains(r#""health":"true""#)) {
                return true;
            }
            if tail(log, 20).contains("address already in use") {
                return false;
            }
            tokio::time::sleep(STEP).await;
        }
        false
    }
}

fn args(dir: &Path, port: u16, peer_port: u16) -> Vec<OsString> {
    let (client, peer) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{peer_port}"));
    let cluster = format!("conformance={peer}");
    let texts = [
        ["--name", "conformance"],
        ["--initial-cluster", &cluster],
        ["--listen-client-urls", &client],
        ["--advertise-client-urls", &client],
        ["--listen-peer-urls", &peer],
        ["--initial-advertise-peer-urls", &peer],
        ["--auto-compaction-mode", "periodic"],
        ["--auto-compaction-retention", "5m"],
        ["--log-level", "warn"],
    ];
    let data = ["--data-dir".into(), dir.join("data").into_os_string()];
    data.into_iter().chain(texts.concat().into_iter().map(OsString::from)).collect()
}

/// A port that is free now, below those that the system hands out for outgoing connections.
pub fn free_port() -> Result<u16> {
    (0..1_000)
        .map(|_| fastrand::u16(10_000..32_000))
        .find(|&port| TcpListener::bind(("127.0.0.1", port)).is_ok())
        .context("a free port")
}

/// Asks a server on this machine, and reads its whole answer.
pub async fn http_get(address: &str, path: &str) -> Result<String> {
    let mut connection = TcpStream::connect(address).await?;
    connection
        .write_all(format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n").as_bytes())
        .await?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await?;
    Ok(answer)
}
