//! `onced health`: for the health checks of containers and load balancers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use clap::Args;
use tonic::transport::Endpoint;

use super::exit::Exit;
use super::input::{self, DURATION};
use super::output::{print, say};
use crate::generated::health_v1::HealthCheckRequest;
use crate::generated::health_v1::health_check_response::ServingStatus;
use crate::generated::health_v1::health_client::HealthClient;
use crate::rpc::health::{LIVENESS, READINESS};

/// Where a server listens unless told otherwise.
const DEFAULT_SERVER: &str = "127.0.0.1:7411";

#[derive(Debug, Args)]
pub struct HealthArgs {
    /// The servers to ask, all of which must be ready [default: where ONCED_LISTEN says that one listens, else
    /// 127.0.0.1:7411]
    #[arg(long, env = "ONCED_SERVER", value_name = "HOST:PORT,…")]
    server: Option<String>,

    /// Ask whether they live, whatever their store does
    #[arg(long)]
    live: bool,

    /// How long each may take to answer
    #[arg(long, default_value = "3s", value_parser = input::duration, value_name = DURATION)]
    timeout: Duration,
}

pub async fn run(args: HealthArgs) -> Exit {
    let servers = args.server.unwrap_or_else(|| {
        std::env::var("ONCED_LISTEN").map_or_else(|_| DEFAULT_SERVER.to_owned(), |listen| reached_at(&listen))
    });
    let [api, ..] = READINESS;
    let (service, word) = if args.live { (LIVENESS, "live") } else { (api, "ready") };
    let mut exit = Exit::Done;
    for server in servers.split(',') {
        let answer = tokio::time::timeout(args.timeout, ask(server, service)).await;
        let answer = answer.unwrap_or_else(|_| Err(format!("no answer within {:?}", args.timeout)));
        match answer {
            Ok(ServingStatus::Serving) => {
                // Whoever does not read it has the exit code.
                print(&format!("{server} is {word}\n"));
            }
            Ok(status) => {
                say(&format!("{server} is not {word}: it says {}", status.as_str_name()));
                exit = Exit::Failed;
            }
            Err(why) => {
                say(&format!("{server} is not {word}: {why}"));
                exit = Exit::Failed;
            }
        }
    }
    exit
}

async fn ask(server: &str, service: &str) -> Result<ServingStatus, String> {
    let endpoint = Endpoint::from_shared(format!("http://{server}"));
    let endpoint = endpoint.map_err(|_| format!("\"{server}\" is no address: write HOST:PORT"))?;
    let channel =
        endpoint.connect().await.map_err(|error| format!("it cannot be reached: {}", cause(&error)))?;
    let request = HealthCheckRequest { service: service.to_owned() };
    let answer = HealthClient::new(channel).check(request).await;
    answer.map(|answer| answer.into_inner().status()).map_err(|status| status.message().to_owned())
}

/// The innermost cause of an error: what the system said.
fn cause(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), cause)
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
