//! How commands reach a server.

use std::time::Duration;

use clap::Args;
use onced_client::{Client, Error};

use super::input::{self, DURATION};

/// Where the server is, and whose keys are meant.
#[derive(Debug, Args)]
pub struct ConnectArgs {
    /// Where onced listens; several servers of one store with commas between
    #[arg(long, env = "ONCED_SERVER", default_value = "127.0.0.1:7411", value_name = "HOST:PORT,…")]
    pub server: String,

    /// The tenant or service that owns the key
    #[arg(long, env = "ONCED_NAMESPACE", default_value = "default", value_name = "NAME")]
    pub namespace: String,

    /// How long to try while no server answers
    #[arg(long, default_value = "30s", value_parser = input::duration, value_name = DURATION)]
    pub timeout: Duration,
}

impl ConnectArgs {
    /// The client.
    pub fn client(&self) -> Result<Client, Error> {
        Client::builder(&self.server).timeout(self.timeout).build()
    }

    /// The flags that repeat this connection in a command that a message suggests.
    pub fn flags(&self) -> String {
        let mut flags = String::new();
        if self.namespace != "default" {
            flags += &format!(" --namespace {}", input::quoted(&self.namespace));
        }
        if self.server != "127.0.0.1:7411" {
            flags += &format!(" --server {}", input::quoted(&self.server));
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
