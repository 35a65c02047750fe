//! `onced serve`.

use std::fs;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::Args;

use super::exit::Exit;
use super::output::say;
use crate::config::StoreUrl;
use crate::server::{self, Config, EtcdOptions};
use crate::store::etcd::{EtcdLogin, EtcdTls, QUOTA_DEFAULT_BYTES};
use crate::telemetry;

#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Where to listen for gRPC
    #[arg(long, env = "ONCED_LISTEN", default_value = "127.0.0.1:7411", value_name = "IP:PORT", value_parser = address)]
    pub listen: SocketAddr,

    /// Where records are kept: file:DIR, memory: (for tests), or etcd://HOST:PORT,HOST:PORT/prefix (etcds://: by TLS)
    #[arg(long, env = "ONCED_STORE", default_value_t = StoreUrl::default(), value_name = "URL")]
    pub store: StoreUrl,

    /// What to log to standard error: error, warn, info, debug or trace, or levels by target [default: RUST_LOG,
    /// else info]
    #[arg(long, value_name = "FILTER")]
    pub log: Option<String>,

    /// How many threads serve calls [default: one for each two cores]
    #[arg(long, env = "ONCED_WORKER_THREADS", value_name = "COUNT")]
    pub worker_threads: Option<NonZeroUsize>,

    #[command(flatten)]
    pub etcd: EtcdArgs,
}

impl ServeArgs {
    /// How many threads serve calls. Each more hands work to the others and wakes them: on two cores shared with
    /// etcd one took a fifth less of the processor than two, and a lone call was faster.
    pub fn worker_threads(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        self.worker_threads.map_or_else(|| cores().div_ceil(2), NonZeroUsize::get)
    }
}

/// What records in etcd need.
#[derive(Debug, Args)]
#[command(next_help_heading = "etcd")]
pub struct EtcdArgs {
    /// The CA that signed etcd's certificates, in PEM [default: the ones this system trusts]
    #[arg(long, env = "ONCED_ETCD_CA", value_name = "FILE")]
    pub etcd_ca: Option<PathBuf>,

    /// A client certificate for etcd, in PEM
    #[arg(long, env = "ONCED_ETCD_CERT", value_name = "FILE", requires = "etcd_key")]
    pub etcd_cert: Option<PathBuf>,

    /// The key of the client certificate, in PEM
    #[arg(long, env = "ONCED_ETCD_KEY", value_name = "FILE", requires = "etcd_cert")]
    pub etcd_key: Option<PathBuf>,

    /// The user to log in to etcd as; its password stands in a file, or in ONCED_ETCD_PASSWORD
    #[arg(long, env = "ONCED_ETCD_USER", value_name = "NAME")]
    pub etcd_user: Option<String>,

    /// A file that holds the password of the etcd user
    #[arg(long, env = "ONCED_ETCD_PASSWORD_FILE", value_name = "FILE", requires = "etcd_user")]
    pub etcd_password_file: Option<PathBuf>,

    /// The --quota-backend-bytes of an etcd below 3.6, which does not tell it
    #[arg(long, env = "ONCED_ETCD_QUOTA_BYTES", value_name = "BYTES", default_value_t = QUOTA_DEFAULT_BYTES)]
    pub etcd_quota_bytes: u64,
}

impl EtcdArgs {
    fn options(self) -> Result<EtcdOptions, String> {
        let login = match self.etcd_user {
            Some(user) => Some(EtcdLogin { user, password: password(self.etcd_password_file)? }),
            None => None,
        };
        let tls = EtcdTls { ca: self.etcd_ca, identity: self.etcd_cert.zip(self.etcd_key) };
        Ok(EtcdOptions { tls, login, quota_bytes: self.etcd_quota_bytes })
    }
}

/// The password in a file, or else in the environment: command lines are there for all to see.
fn password(file: Option<PathBuf>) -> Result<String, String> {
    let Some(file) = file else {
        let password = std::env::var("ONCED_ETCD_PASSWORD").ok().filter(|password| !password.is_empty());
        return password.ok_or_else(|| {
            "--etcd-user needs a password: name a file that holds it with --etcd-password-file, or set \
             ONCED_ETCD_PASSWORD"
                .to_owned()
        });
    };
    let text = fs::read_to_string(&file)
        .map_err(|error| format!("cannot read the etcd password in {}: {error}", file.display()))?;
    match text.trim_end_matches(['\r', '\n']) {
        "" => Err(format!("{} is to hold the etcd password, and is empty", file.display())),
        password => Ok(password.to_owned()),
    }
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        "write an IP address of this machine and a port: 127.0.0.1:7411, [::1]:7411, or 0.0.0.0:7411 for all"
            .to_owned()
    })
}

pub async fn run(args: ServeArgs) -> Exit {
    if let Err(error) = telemetry::init(args.log.as_deref()) {
        say(&error.to_string());
        return Exit::Usage;
    }
    let etcd = match args.etcd.options() {
        Ok(etcd) => etcd,
        Err(error) => {
            say(&error);
            return Exit::Usage;
        }
    };
    let config = Config { listen: args.listen, store: args.store, etcd, ..Config::default() };
    match server::serve(config).await {
        Ok(()) => Exit::Done,
        Err(error) => {
            say(&error.to_string());
            Exit::Failed
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_comes_from_its_file_without_the_end_of_the_line() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), " pass word \r\n").unwrap();
        assert_eq!(password(Some(file.path().to_owned())), Ok(" pass word ".to_owned()));
        let missing = file.path().with_extension("missing");
        assert!(password(Some(missing.clone())).unwrap_err().contains(missing.to_str().unwrap()));
        fs::write(file.path(), "\n").unwrap();
        let refused = password(Some(file.path().to_owned())).unwrap_err();
        assert!(refused.contains(file.path().to_str().unwrap()) && refused.contains("empty"), "{refused}");
    }
}
