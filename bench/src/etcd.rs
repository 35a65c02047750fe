//! The etcd that is measured against.

use std::net::TcpListener;
use std::time::Duration;

use anyhow::Context as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::child::Child;
use crate::options::Options;

/// How long etcd may take to get ready, in steps of [`STEP`].
const READY_STEPS: u32 = 600;
const STEP: Duration = Duration::from_millis(50);
/// How many pairs of ports are tried.
const PORT_ATTEMPTS: u32 = 10;
/// Enough for what the longest run writes; etcd's own default is 2 GiB.
const QUOTA_BYTES: &str = "8589934592";

/// An etcd: our own, of one member, ended when dropped; or a given one.
pub struct Etcd {
    endpoint: String,
    child: Option<Child>,
}

impl Etcd {
    /// The etcd that the options name, or a new and empty one.
    pub async fn open(options: &Options) -> anyhow::Result<Self> {
        if let Some(endpoint) = &options.etcd {
            let etcd = Self { endpoint: endpoint.clone(), child: None };
            anyhow::ensure!(etcd.is_healthy().await, "no etcd answers at {endpoint}");
            return Ok(etcd);
        }
        for _ in 0..PORT_ATTEMPTS {
            let etcd = Self::start()?;
            if etcd.is_ready().await? {
                return Ok(etcd);
            }
        }
        anyhow::bail!("no free port for etcd after {PORT_ATTEMPTS} attempts")
    }

    fn start() -> anyhow::Result<Self> {
        let program = etcd_bin_vendored::etcd_bin_path().map_err(|error| anyhow::anyhow!("{error}"))?;
        let (port, peer_port) = (free_port()?, free_port()?);
        let (client, peer) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{peer_port}"));
        let child = Child::start(program, |dir| {
            let data = dir.join("data").display().to_string();
            let member = format!("bench={peer}");
            let arguments = [
                ["--data-dir", &data],
                ["--name", "bench"],
                ["--initial-cluster", &member],
                ["--listen-client-urls", &client],
                ["--advertise-client-urls", &client],
                ["--listen-peer-urls", &peer],
                ["--initial-advertise-peer-urls", &peer],
                ["--auto-compaction-mode", "periodic"],
                ["--auto-compaction-retention", "5m"],
                ["--quota-backend-bytes", QUOTA_BYTES],
                ["--log-level", "error"],
            ];
            arguments.concat().into_iter().map(str::to_owned).collect()
        })?;
        Ok(Self { endpoint: format!("127.0.0.1:{port}"), child: Some(child) })
    }

    /// Waits until it serves. False if somebody took its port meanwhile.
    async fn is_ready(&self) -> anyhow::Result<bool> {
        let log = || self.child.as_ref().map(Child::log).unwrap_or_default();
        for _ in 0..READY_STEPS {
            if self.is_healthy().await {
                return Ok(true);
            }
            if self.child.as_ref().is_some_and(|child| !child.is_running()) {
                anyhow::ensure!(log().contains("address already in use"), "etcd ended:\n{}", log());
                return Ok(false);
            }
            tokio::time::sleep(STEP).await;
        }
        anyhow::bail!("etcd did not get ready:\n{}", log())
    }

    /// Where it listens, as host:port.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Its process, if it is our own.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::pid)
    }

    /// Requests begun, and messages received, those on open streams included, since it started.
    pub async fn requests(&self) -> anyhow::Result<Requests> {
        let metrics = self.get("/metrics").await?;
        let sum = |name: &str| -> u64 {
            let values = metrics.lines().filter(|line| line.starts_with(name));
            // Written as 12 or as 1.2e+06.
            values.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as u64
        };
        let requests = Requests {
            started: sum("grpc_server_started_total"),
            messages: sum("grpc_server_msg_received_total"),
        };
        anyhow::ensure!(requests.started > 0, "etcd's metrics do not tell of its requests");
        Ok(requests)
    }

    async fn is_healthy(&self) -> bool {
        self.get("/health").await.is_ok_and(|answer| answer.contains(r#""health":"true""#))
    }

    async fn get(&self, path: &str) -> anyhow::Result<String> {
        let mut connection = TcpStream::connect(&self.endpoint).await?;
        connection.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer).await?;
        Ok(answer)
    }
}

/// What etcd has been asked.
#[derive(Clone, Copy)]
pub struct Requests {
    pub started: u64,
    pub messages: u64,
}

/// A port that is free now, below those that the system hands out for outgoing connections.
fn free_port() -> anyhow::Result<u16> {
    (0..1_000)
        .map(|_| fastrand::u16(10_000..32_000))
        .find(|&port| TcpListener::bind(("127.0.0.1", port)).is_ok())
        .context("no port is free")
}
