//! How commands reach a server.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use onced_client::{Client, ClientBuilder, Error};

use super::input::{self, DURATION};
use crate::config::Config;

/// Where a server listens unless told otherwise.
pub fn default_server() -> String {
    Config::default().listen.to_string()
}

/// Where the server is, and whose keys are meant.
#[derive(Debug, Args)]
pub struct ConnectArgs {
    /// Where onced listens: HOST:PORT, or https://HOST:PORT for TLS; several servers of one store with commas between
    #[arg(long, env = "ONCED_SERVER", default_value_t = default_server(), value_name = "SERVER,…")]
    pub server: String,

    /// The tenant or service that owns the key
    #[arg(long, env = "ONCED_NAMESPACE", default_value = "default", value_name = "NAME")]
    pub namespace: String,

    /// How long to try while no server answers
    #[arg(long, default_value = "30s", value_parser = input::duration, value_name = DURATION)]
    pub timeout: Duration,

    #[command(flatten)]
    access: AccessArgs,
}

/// What servers are to see and to show. Its variables are not those of a server, which may be set beside them.
#[derive(Debug, Args)]
#[command(next_help_heading = "access")]
struct AccessArgs {
    #[command(flatten)]
    tls: TlsArgs,

    /// A file that holds the token to show to the server
    #[arg(long, env = "ONCED_CLIENT_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,

    /// Send the token also where it goes over a network without TLS, for all to read
    #[arg(long, requires = "token_file")]
    token_in_plaintext: bool,
}

/// What it takes to speak TLS.
#[derive(Debug, Args)]
#[command(next_help_heading = "access")]
pub struct TlsArgs {
    /// The CA that signed the server's certificate, in PEM; without it, those that this system trusts
    #[arg(long, env = "ONCED_CLIENT_TLS_CA", value_name = "FILE")]
    tls_ca: Option<PathBuf>,

    /// A certificate to show to the server, in PEM
    #[arg(long, env = "ONCED_CLIENT_TLS_CERT", value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,

    /// The key of the certificate, in PEM
    #[arg(long, env = "ONCED_CLIENT_TLS_KEY", value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
}

impl TlsArgs {
    /// A client of servers that speaks TLS so.
    pub fn builder(&self, servers: &str) -> ClientBuilder {
        let mut builder = Client::builder(servers);
        if let Some(file) = &self.tls_ca {
            builder = builder.ca_file(file);
        }
        if let (Some(cert), Some(key)) = (&self.tls_cert, &self.tls_key) {
            builder = builder.identity_files(cert, key);
        }
        builder
    }
}

impl ConnectArgs {
    /// The client.
    pub fn client(&self) -> Result<Client, Error> {
        let AccessArgs { tls, token_file, token_in_plaintext } = &self.access;
        let mut builder = tls.builder(&self.server).timeout(self.timeout);
        if let Some(file) = token_file {
            builder = builder.token_file(file);
        }
        if *token_in_plaintext {
            builder = builder.allow_token_in_plaintext();
        }
        builder.build()
    }

    /// The flags that repeat this connection in a command that a message suggests.
    pub fn flags(&self) -> String {
        let mut flags = String::new();
        if self.namespace != "default" {
            flags += &format!(" --namespace {}", input::quoted(&self.namespace));
        }
        if self.server != default_server() {
            flags += &format!(" --server {}", input::quoted(&self.server));
        }
        let AccessArgs { tls: TlsArgs { tls_ca, tls_cert, tls_key }, token_file, token_in_plaintext } =
            &self.access;
        let files =
            [("tls-ca", tls_ca), ("tls-cert", tls_cert), ("tls-key", tls_key), ("token-file", token_file)];
        for (flag, file) in files {
            if let Some(file) = file.as_deref().and_then(Path::to_str) {
                flags += &format!(" --{flag} {}", input::quoted(file));
            }
        }
        if *token_in_plaintext {
            flags += " --token-in-plaintext";
        }
        flags
    }
}

/// As [`ConnectArgs`], for commands that print.
#[derive(Debug, Args)]
pub struct ClientArgs {
    #[command(flatten)]
    pub connect: ConnectArgs,

    /// Print JSON, errors too
    #[arg(long)]
    pub json: bool,
}
