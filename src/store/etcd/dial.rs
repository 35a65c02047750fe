//! How a connection to an endpoint is made: TLS, keepalive, and who we are.

use std::fmt;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Client, ConnectOptions};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use super::advice::with_causes;
use super::call_error::{CallError, classify};

/// How often an idle connection is tried. etcd closes connections that ping it more often than every 5 s.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// How long an answer to that may take.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// What TLS to etcd stands on. The files are read anew for each connection: certificates may be renewed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EtcdTls {
    /// Who may have signed etcd's certificate (PEM); `None`: whom this system trusts.
    pub ca: Option<PathBuf>,
    /// Our own certificate and its key (PEM each), for an etcd that asks for one.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// Who we are to an etcd with authentication.
#[derive(Clone, PartialEq, Eq)]
pub struct EtcdLogin {
    /// The user.
    pub user: String,
    /// Its password.
    pub password: String,
}

impl fmt::Debug for EtcdLogin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdLogin").field("user", &self.user).finish_non_exhaustive()
    }
}

/// The network that etcd is reached over, injected so that tests can simulate it.
#[derive(Clone, Default)]
pub struct Network(Option<Arc<dyn Fn(String) -> Connecting + Send + Sync>>);

/// A connection that is being made.
type Connecting = BoxFuture<'static, io::Result<TokioIo<BoxStream>>>;

/// A connection of any network.
type BoxStream = Box<dyn Stream>;

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

impl Network {
    /// The network of this machine.
    pub fn system() -> Self {
        Self(None)
    }

    /// A network whose connections `connect` makes, each to a host:port.
    pub fn from_fn<S, F>(connect: impl Fn(String) -> F + Send + Sync + 'static) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        F: Future<Output = io::Result<S>> + Send + 'static,
    {
        Self(Some(Arc::new(move |address| {
            connect(address).map(|stream| Ok(TokioIo::new(Box::new(stream?) as BoxStream))).boxed()
        })))
    }

    async fn connect(&self, endpoint: &Endpoint) -> Result<Channel, tonic::transport::Error> {
        let Some(connect) = self.0.clone() else { return endpoint.connect().await };
        let connector = tower::service_fn(move |uri: Uri| {
            connect(uri.authority().map(ToString::to_string).unwrap_or_default())
        });
        endpoint.connect_with_connector(connector).await
    }
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Network(injected)" } else { "Network(system)" })
    }
}

/// How to connect.
#[derive(Clone, Debug)]
pub(super) struct Dial {
    pub(super) network: Network,
    /// `None`: without TLS.
    pub(super) tls: Option<EtcdTls>,
    /// `None`: as nobody.
    pub(super) login: Option<EtcdLogin>,
}

impl Dial {
    /// Connects, and logs in if there is a login.
    ///
    /// # Errors
    /// `Refused` if etcd does not take the login, else `Unreachable`.
    pub(super) async fn connect(&self, address: &str, timeout: Duration) -> Result<Client, CallError> {
        let unreachable =
            |why: String| CallError::Unreachable(format!("etcd at {address} cannot be reached: {why}"));
        let endpoint = self.endpoint(address, timeout).await.map_err(unreachable)?;
        let channel =
            self.network.connect(&endpoint).await.map_err(|error| unreachable(with_causes(&error)))?;
        let options = |login: Option<&EtcdLogin>| {
            // A member that lost its cluster says so, instead of hanging.
            let options = ConnectOptions::new().with_require_leader(true).with_auto_token_refresh(true);
            Some(match login {
                Some(login) => options.with_user(&login.user, &login.password),
                None => options,
            })
        };
        let channel = etcd_client::Channel::Tonic(channel);
        match Client::from_channel(channel.clone(), options(self.login.as_ref())).await.map_err(classify) {
            Ok(client) => Ok(client),
            Err(CallError::Refused(text)) if text.ends_with("authentication is not enabled") => {
                tracing::warn!(address, "etcd has authentication switched off: it takes anybody's calls");
                Client::from_channel(channel, options(None)).await.map_err(classify)
            }
            Err(refused @ CallError::Refused(_)) => Err(refused.at(address)),
            // Nothing but the login was sent.
            Err(error) => Err(unreachable(error.into_text())),
        }
    }

    async fn endpoint(&self, address: &str, timeout: Duration) -> Result<Endpoint, String> {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let endpoint = Endpoint::from_shared(format!("{scheme}://{address}"))
            .map_err(|error| with_causes(&error))?
            .tcp_nodelay(true)
            .connect_timeout(timeout)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true);
        match &self.tls {
            Some(tls) => endpoint
                .tls_config(tls.config().await?)
                .map_err(|error| format!("TLS: {}", with_causes(&error))),
            None => Ok(endpoint),
        }
    }

    /// Whether connections can be made at all: what is wrong with the files.
    pub(super) async fn check(&self) -> Result<(), String> {
        self.endpoint("localhost:1", Duration::from_secs(1)).await.map(|_| ())
    }
}

impl EtcdTls {
    async fn config(&self) -> Result<ClientTlsConfig, String> {
        let config = match &self.ca {
            Some(ca) => {
                ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(ca, "CERTIFICATE").await?))
            }
            None => ClientTlsConfig::new().with_native_roots(),
        };
        Ok(match &self.identity {
            Some((certificate, key)) => config.identity(Identity::from_pem(
                read(certificate, "CERTIFICATE").await?,
                read(key, "PRIVATE KEY").await?,
            )),
            None => config,
        })
    }
}

/// Reads a PEM file that is to hold a `kind`.
async fn read(path: &Path, kind: &str) -> Result<Vec<u8>, String> {
    let pem = tokio::fs::read(path).await.map_err(|error| format!("{}: {error}", path.display()))?;
    if !String::from_utf8_lossy(&pem).contains(&format!("{kind}-----")) {
        return Err(format!("{} holds no {} in PEM", path.display(), kind.to_lowercase()));
    }
    Ok(pem)
}
