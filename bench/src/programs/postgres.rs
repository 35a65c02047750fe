//! PostgreSQL, with the settings that it comes with.

use std::path::Path;

use tokio::net::TcpStream;

use super::{find, version};
use crate::child::{Child, free_ports};

/// PostgreSQL refuses to be run by root.
const RUN: &str = r#"
set -e
initdb=$1 postgres=$2 dir=$3 port=$4
as=
if [ "$(id -u)" = 0 ]; then
    chown 65534:65534 "$dir"
    as="setpriv --reuid=65534 --regid=65534 --clear-groups"
fi
cd "$dir"
$as "$initdb" --pgdata "$dir/data" --username bench --auth trust --encoding UTF8 --locale C --no-sync
exec $as "$postgres" -D "$dir/data" -c listen_addresses=127.0.0.1 -c "port=$port" -c unix_socket_directories=
"#;

pub struct Postgres {
    pub child: Child,
    pub port: u16,
}

impl Postgres {
    pub async fn start() -> anyhow::Result<Self> {
        let (initdb, postgres) = (find("initdb")?, find("postgres")?);
        let [port] = free_ports()?;
        // At once, but without leaving its shared memory behind.
        let child = Child::start_ended_by("QUIT", Path::new("sh"), |dir| {
            let programs = [initdb.display().to_string(), postgres.display().to_string()];
            let run = ["-c", RUN, "postgres"].map(str::to_owned);
            [&run[..], &programs[..], &[dir.display().to_string(), port.to_string()]].concat()
        })?;
        let this = Self { child, port };
        this.child.ready("postgres", async || this.serves().await).await?;
        Ok(this)
    }

    /// How to connect to it.
    pub fn config(&self) -> tokio_postgres::Config {
        let mut config = tokio_postgres::Config::new();
        config.host("127.0.0.1").port(self.port).user("bench").dbname("postgres");
        config
    }

    async fn serves(&self) -> bool {
        // It would log the attempts that come too early.
        TcpStream::connect(("127.0.0.1", self.port)).await.is_ok()
            && self.config().connect(tokio_postgres::NoTls).await.is_ok()
    }
}

pub fn find_version() -> anyhow::Result<String> {
    find("initdb")?;
    version(&find("postgres")?, &["--version"])
}
