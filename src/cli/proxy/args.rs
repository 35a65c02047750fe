//! The settings of the proxy, by flags and environment.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use http::{HeaderName, Method};
use onced_client::OnFailure;
use tokio_util::sync::CancellationToken;

use super::forward;
use super::limit::REQUESTS_MAX;
use super::listen;
use super::rules::{Pattern, Rules};
use super::upstream::{Connections, Upstream};
use crate::cli::connect::ConnectArgs;
use crate::cli::input::{self, DURATION, OnLapseArg};
use crate::telemetry::LogFormat;

/// The largest body that requests may be allowed, in bytes: each is held in memory.
const BODY_MAX_BYTES: usize = 1 << 30;
/// The most connections that may be allowed.
const CONNECTIONS_MAX: usize = 1_000_000;

const AFTER_HELP: &str = "\
Each flag but --timeout and --token-in-plaintext can be given in the environment as well, by the name that stands with \
it. docs/proxy.md tells what becomes of a key in each case.";

/// Give a service the Idempotency-Key header: run each request once, and answer duplicates with what was stored
///
/// Stands in front of the service, which needs no code for it.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
#[command(mut_arg("timeout", |arg| arg.default_value("10s").help("How long to try while no server of onced answers; then a request with a key is refused, and nothing has run")))]
#[command(mut_arg("namespace", |arg| arg.help("The namespace of the keys in onced")))]
pub struct ProxyArgs {
    /// The service behind: http://HOST:PORT or https://HOST:PORT; a path is put before that of each request
    #[arg(long, env = "ONCED_PROXY_UPSTREAM", value_name = "URL")]
    pub upstream: Upstream,

    /// Where to listen for requests: HTTP/1.1, and HTTP/2 without TLS
    #[arg(long, env = "ONCED_PROXY_LISTEN", default_value = "127.0.0.1:7413", value_name = "ADDRESS")]
    pub listen: SocketAddr,

    /// Where to answer /livez, /readyz and /metrics; off for nowhere
    #[arg(long, env = "ONCED_PROXY_ADMIN_LISTEN", default_value = "127.0.0.1:7414", value_name = "ADDRESS", value_parser = admin)]
    pub admin_listen: Admin,

    #[command(flatten)]
    pub connect: ConnectArgs,

    #[command(flatten)]
    pub keys: KeyArgs,

    #[command(flatten)]
    pub behind: UpstreamArgs,

    #[command(flatten)]
    pub limits: LimitArgs,

    /// What to log: a level, or levels by target
    #[arg(long, env = "ONCED_PROXY_LOG", default_value = "info", value_name = "FILTER")]
    pub log: String,

    /// How to log
    #[arg(long, env = "ONCED_PROXY_LOG_FORMAT", value_enum, default_value = "pretty")]
    pub log_format: LogFormatArg,
}

/// Which requests are run once, and how.
#[derive(Debug, Args)]
#[command(next_help_heading = "keys")]
pub struct KeyArgs {
    /// The methods that take a key; requests by others are handed on
    #[arg(
        long = "method",
        env = "ONCED_PROXY_METHODS",
        default_value = "POST,PATCH",
        value_delimiter = ',',
        value_parser = method,
        value_name = "METHOD,…"
    )]
    pub methods: Vec<Method>,

    /// The paths that take a key, by what they begin with; * is any one segment [default: all]
    #[arg(long = "path", env = "ONCED_PROXY_PATHS", value_delimiter = ',', value_name = "PATH,…")]
    pub paths: Vec<Pattern>,

    /// Whether a request without a key is refused, or handed on
    #[arg(long, env = "ONCED_PROXY_KEY", value_enum, default_value = "required")]
    pub key: KeyArg,

    /// The header that says whose key it is, so that two tenants may use the same one, such as X-Account. Whoever sets
    /// it must be trusted. Not Authorization: tokens change, and the key with them
    #[arg(long, env = "ONCED_PROXY_SCOPE_HEADER", value_name = "NAME", value_parser = scope)]
    pub scope_header: Option<HeaderName>,

    /// How long a duplicate waits for the answer; 0s answers at once
    #[arg(long, env = "ONCED_PROXY_WAIT", default_value = "10s", value_parser = input::duration, value_name = DURATION)]
    pub wait: Duration,

    /// How soon a duplicate is run if this proxy dies, 2s to 1h [default: the namespace's, 30s]
    #[arg(long, env = "ONCED_PROXY_TTL", value_parser = input::duration, value_name = DURATION)]
    pub ttl: Option<Duration>,

    /// How long answers are kept, at least, 1min to 31d [default: the namespace's, 24h]
    #[arg(long, env = "ONCED_PROXY_RETENTION", value_parser = input::duration, value_name = DURATION)]
    pub retention: Option<Duration>,

    /// What becomes of a key if this proxy dies while the service works for it
    #[arg(long, env = "ONCED_PROXY_ON_LAPSE", value_enum, default_value = "take-over")]
    pub on_lapse: OnLapseArg,

    /// What becomes of a key if the service answers with a 5xx
    #[arg(long, env = "ONCED_PROXY_ON_5XX", value_enum, default_value = "retry")]
    pub on_5xx: RuleArg,

    /// What becomes of a key if the service may have got the request, and has not answered to the end
    #[arg(long, env = "ONCED_PROXY_ON_LOST", value_enum, default_value = "in-doubt")]
    pub on_lost: RuleArg,

    /// Headers of answers to store besides the usual ones
    #[arg(
        long = "store-header",
        env = "ONCED_PROXY_STORE_HEADERS",
        value_delimiter = ',',
        value_name = "NAME,…"
    )]
    pub store_headers: Vec<HeaderName>,

    /// Run requests without protection once no server of onced has answered for so long: they may run twice
    #[arg(long, env = "ONCED_PROXY_FAIL_OPEN", value_parser = input::duration, value_name = DURATION)]
    pub fail_open: Option<Duration>,
}

/// How the service behind is called.
#[derive(Debug, Args)]
#[command(next_help_heading = "upstream")]
pub struct UpstreamArgs {
    /// The CA that signed its certificate, in PEM; without it, those that this system trusts
    #[arg(long, env = "ONCED_PROXY_UPSTREAM_CA", value_name = "FILE")]
    pub upstream_ca: Option<PathBuf>,

    /// Whether it is called by the name that the caller asked for, or by that of its URL
    #[arg(long, env = "ONCED_PROXY_HOST", value_enum, default_value = "keep")]
    pub host: HostArg,

    /// How long a connection to it may take to be made
    #[arg(long, env = "ONCED_PROXY_CONNECT_TIMEOUT", default_value = "5s", value_parser = some_time, value_name = DURATION)]
    pub connect_timeout: Duration,

    /// How long it may take to answer: with a key, to the end; without one, until its answer begins. And to take each
    /// piece of a request, also while it answers already
    #[arg(long, env = "ONCED_PROXY_ANSWER_TIMEOUT", default_value = "60s", value_parser = some_time, value_name = DURATION)]
    pub answer_timeout: Duration,

    /// How long a connection to it is kept that nothing uses; less than it keeps them itself, or requests are lost when
    /// it closes them. 0s takes a new one for each
    #[arg(long, env = "ONCED_PROXY_UPSTREAM_IDLE", default_value = "1s", value_parser = input::duration, value_name = DURATION)]
    pub upstream_idle: Duration,
}

/// What callers may take.
#[derive(Debug, Args)]
#[command(next_help_heading = "limits")]
pub struct LimitArgs {
    /// The largest body of a request with a key, in bytes
    #[arg(long, env = "ONCED_PROXY_MAX_REQUEST_BYTES", default_value = "1048576", value_name = "BYTES", value_parser = count(1, BODY_MAX_BYTES))]
    pub max_request_bytes: usize,

    /// The largest body of an answer that is stored, in bytes [default: what the server of onced takes]
    #[arg(long, env = "ONCED_PROXY_MAX_RESPONSE_BYTES", value_name = "BYTES", value_parser = count(1, BODY_MAX_BYTES))]
    pub max_response_bytes: Option<usize>,

    /// How many requests may be at work at once; more are refused
    #[arg(long, env = "ONCED_PROXY_MAX_REQUESTS", default_value = "512", value_name = "COUNT", value_parser = count(1, REQUESTS_MAX))]
    pub max_requests: usize,

    /// How many connections callers may have; more wait
    #[arg(long, env = "ONCED_PROXY_MAX_CONNECTIONS", default_value = "2048", value_name = "COUNT", value_parser = count(1, CONNECTIONS_MAX))]
    pub max_connections: usize,

    /// How long a caller may take to send its body, with a key; without one, a piece of it; and to read a piece of its
    /// answer
    #[arg(long, env = "ONCED_PROXY_BODY_TIMEOUT", default_value = "30s", value_parser = some_time, value_name = DURATION)]
    pub body_timeout: Duration,

    /// How long a connection may be without a request, and a request may take to show its headers; more than who is in
    /// front keeps connections
    #[arg(long, env = "ONCED_PROXY_IDLE_TIMEOUT", default_value = "75s", value_parser = some_time, value_name = DURATION)]
    pub idle_timeout: Duration,

    /// How long requests may go on that are at work when the proxy is told to end; then --on-lost says what becomes of
    /// their keys
    #[arg(long, env = "ONCED_PROXY_DRAIN_LIMIT", default_value = "25s", value_parser = input::duration, value_name = DURATION)]
    pub drain_limit: Duration,
}

/// Where the admin port is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admin(pub Option<SocketAddr>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KeyArg {
    /// It is refused
    Required,
    /// It is handed on
    Optional,
}

/// What becomes of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RuleArg {
    /// It is free: the same request runs again
    Retry,
    /// It is in doubt until an operator resolves it
    InDoubt,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum HostArg {
    /// By the name that the caller asked for
    Keep,
    /// By that of its URL
    Upstream,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormatArg {
    /// For people
    Pretty,
    /// For programs: an object of JSON for each line
    Json,
}

impl From<RuleArg> for OnFailure {
    fn from(arg: RuleArg) -> Self {
        match arg {
            RuleArg::Retry => OnFailure::Retry,
            RuleArg::InDoubt => OnFailure::InDoubt,
        }
    }
}

impl From<LogFormatArg> for LogFormat {
    fn from(arg: LogFormatArg) -> Self {
        match arg {
            LogFormatArg::Pretty => LogFormat::Pretty,
            LogFormatArg::Json => LogFormat::Json,
        }
    }
}

impl ProxyArgs {
    /// Which requests are run once.
    pub fn rules(&self) -> Rules {
        Rules {
            methods: self.keys.methods.clone(),
            paths: self.keys.paths.clone(),
            key_required: self.keys.key == KeyArg::Required,
        }
    }

    /// How requests are handed on, until `give_up`.
    pub fn forwarding(&self, give_up: CancellationToken) -> forward::Options {
        forward::Options {
            upstream: self.upstream.clone(),
            rewrite_host: self.behind.host == HostArg::Upstream,
            connect: self.behind.connect_timeout,
            answer: self.behind.answer_timeout,
            on_lost: self.keys.on_lost.into(),
            give_up,
        }
    }

    /// How connections to the upstream are made and kept.
    pub fn pooling(&self) -> Connections {
        let UpstreamArgs { connect_timeout: connect, answer_timeout: write, upstream_idle: idle, .. } =
            self.behind;
        Connections { connect, write, idle }
    }

    /// What the connections of callers may take.
    pub fn listening(&self) -> listen::Limits {
        listen::Limits {
            connections: self.limits.max_connections,
            idle: self.limits.idle_timeout,
            write: self.limits.body_timeout,
        }
    }
}

fn admin(text: &str) -> Result<Admin, String> {
    match text {
        "off" => Ok(Admin(None)),
        address => match address.parse() {
            Ok(address) => Ok(Admin(Some(address))),
            Err(_) => Err("write an address such as 127.0.0.1:7414, or off".to_owned()),
        },
    }
}

/// A method, as it stands in requests: `post` would match none of them.
fn method(text: &str) -> Result<Method, String> {
    text.to_ascii_uppercase().parse().map_err(|_| "no name of a method".to_owned())
}

fn scope(text: &str) -> Result<HeaderName, String> {
    let name: HeaderName = text.parse().map_err(|_| "no name of a header".to_owned())?;
    if name == http::header::AUTHORIZATION || name == http::header::COOKIE {
        return Err(format!(
            "{name} changes between a request and its repetition, which would then run twice"
        ));
    }
    Ok(name)
}

/// A duration that is not zero.
fn some_time(text: &str) -> Result<Duration, String> {
    let time = input::duration(text)?;
    if time.is_zero() { Err("it must be longer than 0s".to_owned()) } else { Ok(time) }
}

fn count(least: usize, most: usize) -> impl Fn(&str) -> Result<usize, String> + Clone {
    move |text| match text.parse() {
        Ok(count) if (least..=most).contains(&count) => Ok(count),
        _ => Err(format!("write a whole number from {least} to {most}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_are_written_as_they_stand_in_requests() {
        assert_eq!(method("post"), Ok(Method::POST));
        assert_eq!(method("PUT"), Ok(Method::PUT));
        for wrong in ["", "PO ST"] {
            assert!(method(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn what_cannot_be_given_in_the_environment_is_told() {
        let command = ProxyArgs::augment_args(clap::Command::new("proxy"));
        let without = command.get_arguments().filter(|arg| arg.get_env().is_none());
        let mut without: Vec<_> = without.filter_map(clap::Arg::get_long).collect();
        without.sort_unstable();
        assert_eq!(without, ["timeout", "token-in-plaintext"]);
        let page = include_str!("../../../docs/proxy.md");
        for flag in without {
            assert!(AFTER_HELP.contains(flag), "{flag}");
        }
        assert!(
            page.contains("Each but `--timeout` and `--token-in-plaintext` can be given in the environment")
        );
    }
}
