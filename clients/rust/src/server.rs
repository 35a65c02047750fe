//! A server as a client knows it: its address, how it is connected to, and what its errors mean there.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use crate::access::{self, Access, Bearer};
use crate::clock::Clock;
use crate::error::{Error, Refusal, is_of_onced};
use crate::session::Sessions;
use crate::v1::idempotency_service_client::IdempotencyServiceClient;

/// How long a connection may take to come up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How often a busy connection is asked whether it lives, and how long the answer may take.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(5));
/// The connection that a call takes. Calls of holders have their own, so that no crowd of waiting calls
/// can hold up the holder they wait for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Lane {
    /// Begin, Lookup, Watch, and what operators do.
    Waiting,
    /// Complete, Renew, Release.
    Holding,
}

/// How addresses are written.
const FORMS: &str = "write HOST:PORT, http://HOST:PORT, or https://HOST:PORT for TLS";

pub(crate) struct Server {
    pub name: String,
    pub tls: bool,
    endpoint: Endpoint,
    connections: [Connection; 2],
}

/// The connection of a lane.
struct Connection {
    /// Connected at first use: a client can be made before there is a server, and outside a runtime.
    channel: OnceLock<Channel>,
    sessions: Arc<Sessions>,
}

/// Adds who calls to each call of a [`Stub`].
#[derive(Clone)]
pub struct Credentials {
    pub(crate) bearer: Option<Arc<Bearer>>,
    pub(crate) clock: Clock,
}

/// The calls of the API on one connection, each sent once, and as it is: without a deadline unless the request has
/// one. The connection is made again when it is lost.
pub type Stub = IdempotencyServiceClient<InterceptedService<Channel, Credentials>>;

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("token", &self.bearer.is_some()).finish_non_exhaustive()
    }
}

impl Interceptor for Credentials {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(bearer) = &self.bearer {
            request.metadata_mut().insert("authorization", bearer.header(self.clock.now()));
        }
        Ok(request)
    }
}

impl Server {
    /// Connects by a connection of its own.
    pub async fn connect(&self, credentials: Credentials) -> Result<Stub, Refusal> {
        let channel = self.endpoint.connect().await.map_err(|error| {
            let mut refusal = self.refusal(&Status::from_error(error.into())).0;
            refusal.message = format!("{}: {}", self.name, refusal.message);
            refusal
        })?;
        Ok(IdempotencyServiceClient::with_interceptor(channel, credentials))
    }

    /// The connection of a lane.
    pub fn channel(&self, lane: Lane) -> Channel {
        self.connection(lane).channel.get_or_init(|| self.endpoint.connect_lazy()).clone()
    }

    /// The sessions of that connection.
    pub fn sessions(&self, lane: Lane) -> &Arc<Sessions> {
        &self.connection(lane).sessions
    }

    /// Opens no more sessions, and lets those that stand end with their last calls.
    pub fn close_sessions(&self) {
        for connection in &self.connections {
            connection.sessions.close();
        }
    }

    fn connection(&self, lane: Lane) -> &Connection {
        match lane {
            Lane::Waiting => &self.connections[0],
            Lane::Holding => &self.connections[1],
        }
    }

    /// What an answer says; and whether somebody has set it up so, and it is the same next time. Then it also says what
    /// to do.
    pub fn refusal(&self, status: &Status) -> (Refusal, bool) {
        let mut refusal = Refusal::of(status);
        let advice = match is_of_onced(status) {
            true => None,
            false => access::advice(&refusal.message, self.tls),
        };
        if let Some(advice) = advice {
            refusal.message = format!("{}; {advice}", refusal.message);
        }
        (refusal, advice.is_some())
    }

    pub fn parse(server: &str, access: &Access, clock: &Clock) -> Result<Self, Error> {
        let invalid = |why: &str| Error::ServerInvalid { server: server.to_owned(), why: why.to_owned() };
        let uri = match server.split_once("://") {
            None => format!("http://{server}"),
            Some(("http" | "https", _)) => server.to_owned(),
            Some(_) => return Err(invalid(FORMS)),
        };
        let mut endpoint = Endpoint::from_shared(uri).map_err(|_| invalid(FORMS))?;
        if endpoint.uri().port().is_none() {
            return Err(invalid("the port is missing; onced listens on 7411 by default"));
        }
        let tls = endpoint.uri().scheme_str() == Some("https");
        if tls {
            let unusable = |error: tonic::transport::Error| {
                let why =
                    std::error::Error::source(&error).map_or(error.to_string(), |cause| cause.to_string());
                Error::CredentialsInvalid(format!("the files for TLS cannot be used: {why}"))
            };
            endpoint = endpoint.tls_config(access.tls()?).map_err(unusable)?;
        } else if access.token.is_some()
            && !access.token_in_plaintext
            && !access::is_loopback(endpoint.uri().host().unwrap_or_default())
        {
            return Err(invalid(
                "a token would go there for all to read: write https://, or say --token-in-plaintext \
                 (allow_token_in_plaintext)",
            ));
        }
        let endpoint = endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEPALIVE.0)
            .keep_alive_timeout(KEEPALIVE.1);
        let connections = [(); 2].map(|()| {
            let sessions = Sessions::new(clock.clone());
            Connection { channel: OnceLock::new(), sessions }
        });
        Ok(Self { name: server.to_owned(), tls, endpoint, connections })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::TokenSource;
    use crate::transport::Transport;

    fn refused(server: &str) -> String {
        refused_with(server, &Access::default())
    }

    fn refused_with(server: &str, access: &Access) -> String {
        match Transport::new(&[server.to_owned()], access, Clock::system()) {
            Ok(_) => format!("{server} was accepted"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn addresses_are_checked_before_anything_is_sent() {
        let none = Access::default();
        for good in ["127.0.0.1:7411", "http://onced.internal:7411", "[::1]:7411", "https://onced:7411"] {
            assert!(Transport::new(&[good.to_owned()], &none, Clock::system()).is_ok(), "{good}");
        }
        assert!(refused("127.0.0.1").contains("port"));
        assert!(refused("etcd://127.0.0.1:1").contains("HOST:PORT"));
        assert!(refused("not an address").contains("HOST:PORT"));
        assert!(Transport::new(&[], &none, Clock::system()).is_err());
    }

    #[tokio::test]
    async fn a_token_goes_over_no_network_without_tls_unless_that_is_said() {
        let token = Some(TokenSource::Text("t".to_owned()));
        let access = Access { token, ..Access::default() };
        assert!(refused_with("onced:7411", &access).contains("for all to read"));
        for good in ["localhost:7411", "https://onced:7411"] {
            assert_eq!(refused_with(good, &access), format!("{good} was accepted"));
        }
        let access = Access { token_in_plaintext: true, ..access };
        assert_eq!(refused_with("onced:7411", &access), "onced:7411 was accepted");
    }

    #[test]
    fn certificates_are_for_servers_that_are_called_by_tls() {
        let access = Access { ca: Some("/no/such/file".into()), ..Access::default() };
        assert!(refused_with("localhost:7411", &access).contains("https://"));
        assert!(refused_with("https://localhost:7411", &access).contains("/no/such/file"));
    }
}
