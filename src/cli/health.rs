//! `onced health`: for the health checks of containers and load balancers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use clap::Args;
use onced_client::{Client, Refusal};

use super::connect::{TlsArgs, default_server};
use super::exit::Exit;
use super::input::{self, DURATION};
use super::output::{print, say};
use crate::generated::health_v1::health_check_response::ServingStatus;
use crate::generated::health_v1::health_client::HealthClient;
use crate::generated::health_v1::{HealthCheckRequest, HealthCheckResponse};
use crate::rpc::health::{LIVENESS, READINESS};

#[derive(Debug, Args)]
pub struct HealthArgs {
    /// The servers to ask, all of which must be ready: HOST:PORT, or https://HOST:PORT for TLS [default: where
    /// ONCED_LISTEN says that one listens, by TLS if ONCED_TLS_CERT is set, else 127.0.0.1:7411]
    #[arg(long, env = "ONCED_SERVER", value_name = "SERVER,…")]
    server: Option<String>,

    /// Ask whether they live, whatever their store does
    #[arg(long)]
    live: bool,

    /// How long each may take to answer
    #[arg(long, default_value = "3s", value_parser = input::duration, value_name = DURATION)]
    timeout: Duration,

    #[command(flatten)]
    tls: TlsArgs,
}

pub async fn run(args: HealthArgs) -> Exit {
    let client = match args.tls.builder(&args.server.unwrap_or_else(own_server)).build() {
        Ok(client) => client,
        Err(error) => {
            say(&error.to_string());
            return Exit::of_error(&error);
        }
    };
    let word = if args.live { "live" } else { "ready" };
    let mut exit = Exit::Done;
    for (server, answer) in ask(&client, args.timeout, args.live).await {
        match answer {
            Ok(()) => {
                // Whoever does not read it has the exit code.
                print(&format!("{server} is {word}\n"));
            }
            Err(why) => {
                say(&format!("{server} is not {word}: {why}"));
                exit = Exit::Failed;
            }
        }
    }
    exit
}

/// Asks each server whether it is ready, or only `live`; tells by server why it is not.
pub async fn ask(client: &Client, timeout: Duration, live: bool) -> Vec<(&str, Result<(), String>)> {
    let [api, ..] = READINESS;
    let service = if live { LIVENESS } else { api };
    let answers = client.ask_each(timeout, |channel| async move {
        HealthClient::new(channel).check(HealthCheckRequest { service: service.to_owned() }).await
    });
    let read = |answer: Result<HealthCheckResponse, Refusal>| match answer.map(|answer| answer.status()) {
        Ok(ServingStatus::Serving) => Ok(()),
        Ok(status) => Err(format!("it says {}", status.as_str_name())),
        Err(refusal) => Err(refusal.to_string()),
    };
    answers.await.into_iter().map(|(server, answer)| (server, read(answer))).collect()
}

/// Where the server listens that is set up by the variables of this machine.
fn own_server() -> String {
    let listen =
        std::env::var("ONCED_LISTEN").map_or_else(|_| default_server(), |listen| reached_at(&listen));
    let scheme = if std::env::var_os("ONCED_TLS_CERT").is_some() { "https://" } else { "" };
    format!("{scheme}{listen}")
}

/// The address by which a server on this machine is reached that listens there: one that listens on all of them is
/// on the loopback, too.
fn reached_at(listen: &str) -> String {
    let Ok(mut address) = listen.parse::<SocketAddr>() else { return listen.to_owned() };
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        IpAddr::V4(_) | IpAddr::V6(_) => {}
    }
    address.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_listens_everywhere_is_asked_on_the_loopback() {
        for (listen, server) in [
            ("0.0.0.0:7411", "127.0.0.1:7411"),
            ("[::]:7411", "[::1]:7411"),
            ("10.0.0.1:80", "10.0.0.1:80"),
            ("nonsense", "nonsense"),
        ] {
            assert_eq!(reached_at(listen), server);
        }
    }
}
