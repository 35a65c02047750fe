//! Every setting: the one place where its name, meaning, default and bounds stand. Flags, environment variables, the
//! file's keys, `--print-config` and docs/configuration.md all follow from here.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::form::{
    Address, Bytes, Collector, Count, File, Filter, Lapse, Name, OneOf, Optional, OrOff, Quota, Store,
    Switch, Time,
};
use super::setting::settings;
use super::{Namespaces, Secret, StoreUrl};
use crate::access::tls::CLIENT_AUTH;
use crate::access::{ClientAuth, Rules};
use crate::record::OnLapse;
use crate::record::limits::{
    LOCK_TTL_DEFAULT, LOCK_TTL_MAX, LOCK_TTL_MIN, OUTCOME_MAX_BYTES, RETENTION_DEFAULT, RETENTION_MAX,
    RETENTION_MIN,
};
use crate::telemetry::LogFormat;

const LOG_FORMATS: &[(&str, LogFormat)] = &[("pretty", LogFormat::Pretty), ("json", LogFormat::Json)];

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

const fn s(s: u64) -> Duration {
    Duration::from_secs(s)
}

settings! {
    /// What a server is made of.
    Config {
        /// Where to listen for gRPC
        listen: SocketAddr = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 7411), Address, Restart;
        /// Where to listen for health and metrics, over HTTP; off: nowhere
        admin_listen: Option<SocketAddr> = Some(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 7412)), OrOff(Address), Restart;
        /// Where records are kept: file:DIR, memory: (for tests), or etcd://HOST:PORT,HOST:PORT/prefix (etcds://:
        /// by TLS)
        store: StoreUrl = StoreUrl::default(), Store, Restart;
        /// What to log to standard error: error, warn, info, debug or trace, or levels by target. RUST_LOG is read
        /// too, where ONCED_LOG is not set
        log: String = "info".to_owned(), Filter, Live;
        /// How to write it: for people, or in JSON, an object for each line
        log_format: LogFormat = LogFormat::Pretty, OneOf(LOG_FORMATS), Restart;
        /// Where to send traces, by OTLP over gRPC: the URL of a collector, without TLS. Unset: nowhere
        otlp_endpoint: Option<String> = None, Optional(Collector), Restart;
        /// Of the calls whose caller is in no trace, how many begin one, in percent. Callers that keep their traces
        /// (W3C's traceparent) find all their calls in them
        trace_percent: u32 = 100, Count(0..=100), Restart;
        /// How many threads serve calls. Unset: one for each two cores
        worker_threads: Option<usize> = None, Optional(Count(1..=1_024)), Restart;
        /// How long a shutdown may take before connections are dropped
        drain_limit: Duration = s(30), Time(s(0)..=s(3_600)), Restart;
    }
    tables {
        /// How callers are spoken to by TLS.
        tls: Tls, "tls";
        /// Who may call.
        access: Access, "access";
        /// How to get along with etcd, if records are kept there.
        etcd: Etcd, "etcd";
        /// What it lets connections do.
        limits: Limits, "limits";
        /// How calls are served.
        rpc: Calls, "limits";
        /// How the store is asked.
        coordinator: Coordination, "limits";
        /// What holds in each namespace.
        namespaces: Namespaces, "defaults";
    }
    beside {
        /// What each may do.
        rules: Rules;
        /// The password of the etcd user. It has no key: files and command lines are there to be shown.
        etcd_password: Option<Secret>;
    }
}

settings! {
    /// What a server shows of itself, and whose certificates it takes. The files are read again when they change.
    Tls {
        /// The certificate of this server, in PEM, followed by those between it and its CA. With it, only TLS is
        /// spoken
        cert: Option<PathBuf> = None, Optional(File), Restart;
        /// The key of the certificate, in PEM
        key: Option<PathBuf> = None, Optional(File), Restart;
        /// The CA that signs the certificates of callers, in PEM. Unset: none are asked for
        client_ca: Option<PathBuf> = None, Optional(File), Restart;
        /// Whether there is no connection without a certificate, or a token will do instead
        client_auth: ClientAuth = ClientAuth::Required, OneOf(CLIENT_AUTH), Restart;
    }
}

settings! {
    /// Who may call. The files are read again when they change.
    Access {
        /// A file of tokens of this server's own, with NAME = sha256:HASH in each line: onced token new NAME makes them
        tokens: Option<PathBuf> = None, Optional(File), Restart;
        /// A file (JWKS) with the public keys of an issuer whose JWTs are taken as tokens, too
        jwks: Option<PathBuf> = None, Optional(File), Restart;
        /// What the JWTs must have as their issuer (iss)
        jwt_issuer: Option<String> = None, Optional(Name), Restart;
        /// What the JWTs must have as their audience (aud), or among them
        jwt_audience: Option<String> = None, Optional(Name), Restart;
        /// Whether reflection tells everybody what there is to call, or only those who show who they are
        open_reflection: bool = true, Switch, Live;
        /// Takes tokens also where they come over a network without TLS, for all to read
        allow_tokens_in_plaintext: bool = false, Switch, Restart;
    }
}

settings! {
    /// What to know of etcd beside where it is.
    Etcd {
        /// The CA that signed etcd's certificates, in PEM. Unset: the ones this system trusts
        ca: Option<PathBuf> = None, Optional(File), Restart;
        /// A client certificate for etcd, in PEM
        cert: Option<PathBuf> = None, Optional(File), Restart;
        /// The key of the client certificate, in PEM
        key: Option<PathBuf> = None, Optional(File), Restart;
        /// The user to log in to etcd as; its password stands in a file, or in ONCED_ETCD_PASSWORD
        user: Option<String> = None, Optional(Name), Restart;
        /// A file that holds the password of the etcd user
        password_file: Option<PathBuf> = None, Optional(File), Restart;
        /// The --quota-backend-bytes of an etcd below 3.6, which does not tell it
        quota_bytes: u64 = 2 << 30, Bytes(MIB..=MIB * MIB), Restart;
        /// How long one call to etcd may take, tries at several endpoints included
        call_timeout: Duration = s(3), Time(ms(500)..=s(30)), Restart;
    }
}

settings! {
    /// What connections may do.
    Limits {
        /// How many connections there may be at a time. More are closed as soon as they are accepted, so that their
        /// clients try another server at once
        connections: usize = 8_192, Count(1..=1_000_000), Restart;
        /// How many calls, waiting ones included, a connection may have open; and how many calls of holders it may
        /// have at work: those of sessions count, and those that were reset, until their work ends
        streams_per_connection: u32 = 2_048, Count(1..=100_000), Restart;
        /// How many calls of a connection, those of holders aside, may be at work at once: those of sessions count,
        /// and those that were reset, until their work ends. Less than `max_active_calls`, so that one connection
        /// cannot take the places of all others
        active_calls_per_connection: usize = 1_536, Count(1..=100_000), Restart;
        /// How many bytes the calls of a connection may make the server keep: of requests until they are answered, of
        /// answers until they have left. Calls over it are refused
        bytes_per_connection: usize = 64 << 20, Bytes(MIB..=64 * KIB * MIB), Restart;
        /// How long a new connection may take to say that it speaks HTTP/2
        handshake: Duration = s(10), Time(ms(100)..=s(300)), Restart;
        /// How often a connection is asked whether its client is still there
        keepalive_interval: Duration = s(30), Time(s(1)..=s(3_600)), Restart;
        /// How long the client may take to answer that
        keepalive_timeout: Duration = s(20), Time(s(1)..=s(300)), Restart;
        /// How old a connection may become, give or take a tenth: then its client is told to open another one (GOAWAY), and
        /// what is open on it is still answered. So clients find servers that were added, and show certificates anew
        max_connection_age: Option<Duration> = Some(s(30 * 60)), OrOff(Time(s(1)..=s(7 * 24 * 3_600))), Restart;
        /// The largest header list of a request
        header_list_bytes: u32 = 16 << 10, Bytes(KIB..=MIB), Restart;
    }
}

settings! {
    /// Every limit of calls. What is over one is refused with a reason, never queued.
    Calls {
        /// The longest that one call waits for somebody else's outcome, whatever it asks for
        max_wait: Duration = s(60), Time(s(0)..=s(3_600)), Live;
        /// How long before the deadline of a call its waiting ends, so that the answer still arrives in time
        deadline_margin: Duration = ms(100), Time(s(0)..=s(10)), Live;
        /// The largest request message. Well over an outcome, so that one that is a little too large is told its
        /// own limit
        max_message_bytes: usize = 2 * OUTCOME_MAX_BYTES, Bytes(64 * KIB..=64 * MIB), Restart;
        /// How many calls may be at work at once, those of holders aside. A call that only waits is not at work
        max_active_calls: usize = 2_048, Count(1..=1_000_000), Restart;
        /// How many calls of holders (Complete, Renew, Release) may be at work at once. Nobody else uses these
        /// places, so that a crowd of waiters never keeps out the holder they wait for
        max_holder_calls: usize = 16_384, Count(1..=1_000_000), Restart;
        /// How many calls may wait at once, watches included. A Begin or Lookup beyond does not wait; a Watch
        /// beyond is refused
        max_waiting_calls: usize = 32_768, Count(0..=1_000_000), Restart;
        /// How many calls of one session may be open at once
        max_session_calls: usize = 1_024, Count(1..=100_000), Live;
        /// How long a request may take to arrive whole. A session's stream may last for ever
        max_arrival: Duration = s(10), Time(ms(100)..=s(3_600)), Restart;
    }
}

settings! {
    /// How the store is asked.
    Coordination {
        /// How often a call that waits looks for itself, although nothing hinted at a change (with jitter)
        poll: Duration = s(5), Time(ms(100)..=s(60)), Restart;
        /// How long a trip to the store may take before its outcome counts as unknown
        store_timeout: Duration = s(5), Time(s(1)..=s(60)), Restart;
    }
}

settings! {
    /// What holds in a namespace.
    Policy {
        /// The lock TTL of a Begin that names none
        lock_ttl: Duration = LOCK_TTL_DEFAULT, Time(LOCK_TTL_MIN..=LOCK_TTL_MAX), Live;
        /// The longest lock TTL that a Begin may ask for
        max_lock_ttl: Duration = LOCK_TTL_MAX, Time(LOCK_TTL_MIN..=LOCK_TTL_MAX), Live;
        /// The retention of a Begin that names none
        retention: Duration = RETENTION_DEFAULT, Time(RETENTION_MIN..=RETENTION_MAX), Live;
        /// The longest retention that a call may ask for
        max_retention: Duration = RETENTION_MAX, Time(RETENTION_MIN..=RETENTION_MAX), Live;
        /// What becomes of a claim that lapses, where its Begin does not say
        on_lapse: OnLapse = OnLapse::TakeOver, Lapse, Live;
        /// The largest encoded outcome. A claim tells its holder; one that was told more before this was lowered is
        /// held to the lower limit
        max_outcome_bytes: usize = OUTCOME_MAX_BYTES, Bytes(KIB..=OUTCOME_MAX_BYTES as u64), Live;
        /// How many records may be begun in a second, and as many at once. A Begin that makes no claim costs nothing,
        /// but while there is no room for one all are refused. Quotas count at each server by itself
        begins_per_second: Option<u32> = None, Quota(1..=1_000_000), Live;
        /// How many calls may wait at once, watches included. A Begin or Lookup beyond does not wait; a Watch beyond is
        /// refused
        max_waiters: Option<u32> = None, Quota(0..=1_000_000), Live;
        /// How many claims that were begun at this server may be held. A Begin beyond is refused if it would make
        /// another claim; one that waits still gets its claim when its turn comes
        max_claims: Option<u32> = None, Quota(1..=10_000_000), Live;
    }
}
