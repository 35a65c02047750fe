//! Redis, with its append-only file.

use tokio::net::TcpStream;

use super::{find, version};
use crate::child::{Child, free_ports};

/// When the append-only file is synced.
#[derive(Clone, Copy)]
pub enum Fsync {
    /// Before the answer.
    Always,
    /// Every second: what was acknowledged within the last one may be lost.
    EverySecond,
}

pub struct Redis {
    pub child: Child,
    pub port: u16,
}

impl Redis {
    pub async fn start(fsync: Fsync) -> anyhow::Result<Self> {
        let [port] = free_ports()?;
        let fsync = match fsync {
            Fsync::Always => "always",
            Fsync::EverySecond => "everysec",
        };
        let child = Child::start(&find("redis-server")?, |dir| {
            let (port, dir) = (port.to_string(), dir.display().to_string());
            let arguments = [
                ["--bind", "127.0.0.1"],
                ["--port", &port],
                ["--dir", &dir],
                ["--appendonly", "yes"],
                ["--appendfsync", fsync],
                // No snapshots beside the append-only file.
                ["--save", ""],
            ];
            arguments.concat().into_iter().map(str::to_owned).collect()
        })?;
        child.ready("redis-server", async || TcpStream::connect(("127.0.0.1", port)).await.is_ok()).await?;
        Ok(Self { child, port })
    }
}

pub fn find_version() -> anyhow::Result<String> {
    let version = version(&find("redis-server")?, &["--version"])?;
    Ok(version.split(" sha=").next().unwrap_or_default().to_owned())
}
