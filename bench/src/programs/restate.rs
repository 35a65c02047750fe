//! Restate's server, and a service of its Node SDK that it calls.

use std::path::Path;

use anyhow::Context as _;
use bytes::Bytes;
use tokio::net::TcpStream;

use super::{find, version};
use crate::child::{Child, free_ports};
use crate::ways::http::{Http, post};

const SERVICE: &str = include_str!("../../peers/restate.cjs");
const VERSION: &str = "console.log('restate-sdk', require('@restatedev/restate-sdk/package.json').version)";

pub struct Restate {
    pub server: Child,
    pub service: Child,
    /// Where calls go.
    pub ingress: u16,
}

impl Restate {
    pub async fn start() -> anyhow::Result<Self> {
        let program = find("restate-server")?.display().to_string();
        let [ingress, admin, node, port] = free_ports()?;
        let bind = |name: &str, port| format!("RESTATE_{name}BIND_ADDRESS=127.0.0.1:{port}");
        let server = Child::start(Path::new("env"), |dir| {
            let base = format!("RESTATE_BASE_DIR={}", dir.join("data").display());
            let ports = [bind("INGRESS__", ingress), bind("ADMIN__", admin), bind("", node)];
            let settings =
                ["RESTATE_LISTEN_MODE=tcp", "RESTATE_DISABLE_TELEMETRY=true", "RESTATE_LOG_FILTER=warn"];
            let settings = settings.map(str::to_owned);
            [&settings[..], &ports[..], &[base, program, "--no-logo".to_owned()]].concat()
        })?;
        let node = find("node")?.display().to_string();
        // As in production: it would log every call.
        let service = Child::start(Path::new("env"), |_| {
            let settings = ["NODE_ENV=production", "RESTATE_LOGGING=WARN"];
            [&settings[..], &[&node, "-e", SERVICE, &port.to_string()]]
                .concat()
                .into_iter()
                .map(str::to_owned)
                .collect()
        })?;
        service.ready("restate.cjs", async || service.output().contains("ready")).await?;
        let listens = async |port| TcpStream::connect(("127.0.0.1", port)).await.is_ok();
        server.ready("restate-server", async || listens(admin).await && listens(ingress).await).await?;
        let this = Self { server, service, ingress };
        this.server.ready("restate-server", async || register(admin, port).await.is_ok()).await?;
        Ok(this)
    }
}

/// Tells the server of the service.
async fn register(admin: u16, service: u16) -> anyhow::Result<()> {
    let mut http = Http::connect(admin).await.context("the admin port")?;
    let deployment = format!(r#"{{"uri":"http://127.0.0.1:{service}"}}"#);
    let answer = http.send(post(admin, "/deployments", Bytes::from(deployment))?).await?;
    anyhow::ensure!(answer.status().is_success(), "restate-server refuses the service: {}", answer.status());
    Ok(())
}

pub fn find_version() -> anyhow::Result<String> {
    let server = version(&find("restate-server")?, &["--version"])?;
    Ok(format!("{server}, {}", version(&find("node")?, &["-e", VERSION])?))
}
