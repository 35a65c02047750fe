//! The etcd that is measured against.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::child::{Child, free_ports};
use crate::options::Options;

const MEMBERS_MOST: usize = 3;
/// Within which time an etcd that is well tells so.
const ANSWERS_IN: Duration = Duration::from_secs(2);
/// How often free ports are looked for.
const PORT_ATTEMPTS: u32 = 10;
/// Enough for what the longest run writes; etcd's own default is 2 GiB.
const QUOTA_BYTES: &str = "8589934592";

/// An etcd: our own, ended when dropped; or a given one.
pub struct Etcd {
    /// Where its members listen, as host:port, with commas between.
    endpoints: String,
    members: Vec<Child>,
}

impl Etcd {
    /// The etcd that the options name, or a new and empty one of one member.
    pub async fn open(options: &Options) -> anyhow::Result<Self> {
        if let Some(endpoint) = &options.etcd {
            let etcd = Self { endpoints: endpoint.clone(), members: Vec::new() };
            anyhow::ensure!(etcd.is_healthy().await, "no etcd answers at {endpoint}");
            return Ok(etcd);
        }
        Self::start_on(options.etcd_core, 1).await
    }

    /// A new and empty one.
    pub async fn start(members: usize) -> anyhow::Result<Self> {
        Self::start_on(None, members).await
    }

    async fn start_on(core: Option<usize>, members: usize) -> anyhow::Result<Self> {
        for _ in 0..PORT_ATTEMPTS {
            let etcd = Self::spawn(core, members)?;
            if etcd.is_ready().await? {
                return Ok(etcd);
            }
        }
        anyhow::bail!("no free ports for etcd after {PORT_ATTEMPTS} attempts")
    }

    fn spawn(core: Option<usize>, members: usize) -> anyhow::Result<Self> {
        let found: [u16; 2 * MEMBERS_MOST] = free_ports()?;
        let ports: Vec<(u16, u16)> =
            found.chunks_exact(2).map(|pair| (pair[0], pair[1])).take(members).collect();
        let url = |port| format!("http://127.0.0.1:{port}");
        let cluster: Vec<String> =
            ports.iter().map(|&(port, peer_port)| format!("bench-{port}={}", url(peer_port))).collect();
        let started: anyhow::Result<Vec<Child>> = ports
            .iter()
            .map(|&(port, peer_port)| {
                member(core, &format!("bench-{port}"), &cluster.join(","), &url(port), &url(peer_port))
            })
            .collect();
        let endpoints: Vec<String> = ports.iter().map(|(port, _)| format!("127.0.0.1:{port}")).collect();
        Ok(Self { endpoints: endpoints.join(","), members: started? })
    }

    /// Waits until it serves. False if somebody took a port of it meanwhile.
    async fn is_ready(&self) -> anyhow::Result<bool> {
        let ended = || self.members.iter().find(|member| !member.is_running());
        self.members[0].ready("etcd", async || ended().is_some() || self.is_healthy().await).await?;
        let Some(ended) = ended() else { return Ok(true) };
        let log = ended.log();
        anyhow::ensure!(log.contains("address already in use"), "etcd ended:\n{log}");
        Ok(false)
    }

    /// Where it listens: host:port of each member, with commas between.
    pub fn endpoints(&self) -> &str {
        &self.endpoints
    }

    /// The processes of its members, if it is our own.
    pub fn pids(&self) -> impl Iterator<Item = u32> {
        self.members.iter().map(Child::pid)
    }

    /// The directories of its members, if it is our own.
    pub fn dirs(&self) -> impl Iterator<Item = &Path> {
        self.members.iter().map(Child::dir)
    }

    /// Requests begun, and messages received, those on open streams included, since it started.
    pub async fn requests(&self) -> anyhow::Result<Requests> {
        let metrics = get(&self.endpoints, "/metrics").await?;
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
        for endpoint in self.endpoints.split(',') {
            let health = tokio::time::timeout(ANSWERS_IN, get(endpoint, "/health")).await;
            if !health.is_ok_and(|answer| answer.is_ok_and(|answer| answer.contains(r#""health":"true""#))) {
                return false;
            }
        }
        true
    }
}

fn member(core: Option<usize>, name: &str, cluster: &str, client: &str, peer: &str) -> anyhow::Result<Child> {
    let etcd = program()?;
    let on_core: Vec<OsString> =
        core.map(|core| vec!["-c".into(), core.to_string().into(), etcd.into()]).unwrap_or_default();
    Child::start(if core.is_some() { Path::new("taskset") } else { etcd }, |dir| {
        let data = dir.join("data").display().to_string();
        let arguments = [
            ["--data-dir", &data],
            ["--name", name],
            ["--initial-cluster", cluster],
            ["--listen-client-urls", client],
            ["--advertise-client-urls", client],
            ["--listen-peer-urls", peer],
            ["--initial-advertise-peer-urls", peer],
            ["--auto-compaction-mode", "periodic"],
            ["--auto-compaction-retention", "5m"],
            ["--quota-backend-bytes", QUOTA_BYTES],
            ["--log-level", "error"],
        ];
        on_core.into_iter().chain(arguments.concat().into_iter().map(OsString::from)).collect()
    })
}

/// The etcd that this program brings.
pub fn program() -> anyhow::Result<&'static Path> {
    etcd_bin_vendored::etcd_bin_path().map_err(|error| anyhow::anyhow!("{error}"))
}

async fn get(endpoint: &str, path: &str) -> anyhow::Result<String> {
    let mut connection = TcpStream::connect(endpoint).await?;
    connection.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// What etcd has been asked.
#[derive(Clone, Copy)]
pub struct Requests {
    pub started: u64,
    pub messages: u64,
}
