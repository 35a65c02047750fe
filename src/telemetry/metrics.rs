//! Every metric: the one place where its name, kind, labels and meaning stand. What `/metrics` says of them and
//! docs/metrics.md follow from here.

use std::fmt::Write as _;
use std::sync::OnceLock;
use std::time::Duration;

use metrics::Histogram;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

/// The upper bounds of the buckets of times, in seconds: from an answer out of memory to the longest wait.
const TIMES: [f64; 18] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
    30.0, 60.0,
];
/// Those of numbers of things done together.
const NUMBERS: [f64; 11] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 100.0, 256.0, 1_024.0, 4_096.0];

/// A metric.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// Its kind.
    pub kind: Kind,
    /// Its labels. Their values are few: no key, namespace or address of a caller is among them.
    pub labels: &'static [&'static str],
    /// What it tells.
    pub help: &'static str,
}

/// The kind of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Grows until the process ends.
    Counter,
    /// What is now.
    Gauge,
    /// A histogram of times, in seconds.
    Times,
    /// A histogram of numbers.
    Numbers,
}

impl Kind {
    /// As Prometheus calls it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Times | Kind::Numbers => "histogram",
        }
    }
}

/// Declares the metrics. The comment on each is its help text.
macro_rules! declare {
    ($($(#[doc = $help:literal])+ $constant:ident = $name:literal, $kind:ident [$($label:literal),*];)*) => {
        $($(#[doc = $help])+ pub const $constant: &str = $name;)*

        /// All metrics.
        pub const METRICS: &[Metric] = &[$(Metric {
            name: $name,
            kind: Kind::$kind,
            labels: &[$($label),*],
            help: concat!($($help),+).trim_ascii(),
        }),*];
    };
}

declare! {
    /// How long calls took, from arrival to answer, by method and by what they came to; error_type is the reason of
    /// an error. The calls of a session are counted each, unless it is full or closes; watches not here
    CALL_DURATION = "rpc_server_call_duration_seconds", Times
        ["rpc_system_name", "rpc_method", "rpc_response_status_code", "error_type"];
    /// Begins by what they came to: claimed, taken_over (a claim after a lapse or a release), resumed, replayed,
    /// in_progress, in_doubt, mismatch (of fingerprints), failed (all else)
    BEGINS = "onced_begins_total", Counter ["result"];
    /// Outcomes that were accepted after the lock of their claim had lapsed, by this server's clock
    LATE_COMPLETES = "onced_late_completes_total", Counter [];
    /// Claims whose caller was gone before the answer left: given_back at once, or kept (they lapse, or a repeated
    /// Begin resumed them)
    UNRECEIVED_CLAIMS = "onced_unreceived_claims_total", Counter ["end"];
    /// Outcomes that Begins and Lookups were answered with, by where they came from: store (read for this caller), or
    /// memory (known here: a Complete passed through this server, others had read it, the embedded store has it in
    /// memory, or it was read from etcd before and etcd says that it still stands)
    REPLAYS = "onced_replays_total", Counter ["source"];
    /// Claims that this server wrote last and saw no end of, 16384 at most; one that lapsed unseen is among them
    CLAIMS_OPEN = "onced_claims_open", Gauge [];
    /// Keys with callers at this server
    ROOMS = "onced_rooms_open", Gauge [];
    /// How much of a limit is in use; max_waiting_calls are the calls that wait now, watches included; max_requests is
    /// of a proxy
    LIMIT_USED = "onced_limit_used", Gauge ["limit"];
    /// How much of it there is
    LIMIT_SIZE = "onced_limit_size", Gauge ["limit"];
    /// What was refused for want of it: calls, connections, what a connection may make the server keep
    /// (bytes_per_connection) or have at work (active_calls_per_connection; of holders streams_per_connection), or a
    /// wait (the call was then answered at once)
    LIMIT_SHED = "onced_limit_shed_total", Counter ["limit"];
    /// Calls that a quota of their namespace refused, or did not let wait (max_waiters; a Begin or Lookup was then
    /// answered at once)
    QUOTA_REFUSED = "onced_quota_refused_total", Counter ["limit"];
    /// Sessions that are open
    SESSIONS = "onced_sessions_open", Gauge [];
    /// Watches that are open
    WATCHES = "onced_watches_open", Gauge [];
    /// Watches that have ended, by what they came to: error_type is the reason of an error, those included that were
    /// refused at once; CANCELLED, who watched has left, and without a reason, the record was complete
    WATCHES_ENDED = "onced_watches_ended_total", Counter ["error_type"];
    /// Connections that were refused, by why: tls (no handshake came of it: certificates that do not fit, as a rule),
    /// protocol (something else was spoken than here), or silence (for longer than the limit). Who only knocks is not
    /// counted
    REFUSED_CONNECTIONS = "onced_refused_connections_total", Counter ["cause"];
    /// Requests that were refused before they were a call: unreadable, unknown, not gRPC at all, or from nobody knows
    /// whom (CREDENTIALS_MISSING, CREDENTIALS_INVALID, CREDENTIALS_EXPIRED). Who is known, and may not, makes a call
    /// that ends with ACCESS_DENIED
    REFUSED_REQUESTS = "onced_refused_requests_total", Counter ["error_type"];
    /// When the certificate ends that new connections are shown, in seconds since the epoch. Only where TLS is spoken
    CERTIFICATE_EXPIRY = "onced_tls_certificate_expiry_seconds", Gauge [];
    /// How often what stands in files was read again, by part: settings, access (tokens, keys and rules) or certificate; and
    /// by result: taken or refused. Only where there are files
    RELOADS = "onced_config_reloads_total", Counter ["part", "result"];
    /// Whether what the files of a part hold was refused, and the server goes on by what they held before: 1 or 0
    RELOAD_REFUSED = "onced_config_reload_refused", Gauge ["part"];
    /// Whether this server is ready: 1 or 0
    READY = "onced_ready", Gauge [];
    /// Probes of the store that it did not answer; ten seconds of them make a server unready
    FAILED_PROBES = "onced_store_probe_failures_total", Counter [];
    /// How long trips to the store took: load, check (whether what is in memory still stands), swap, watch or scan, by
    /// outcome: done, conflict (it had changed meanwhile), not_applied, unknown, full, corrupt, or timeout
    STORE_OPERATION_DURATION = "onced_store_operation_duration_seconds", Times ["operation", "outcome"];
    /// Trips to the store that came upon a record which cannot be read
    RECORDS_CORRUPT = "onced_records_corrupt_total", Counter [];

    /// How long commits of the embedded store took, until they were durable
    EMBEDDED_COMMIT_DURATION = "onced_embedded_commit_duration_seconds", Times [];
    /// How many writes its commits had
    EMBEDDED_COMMIT_WRITES = "onced_embedded_commit_writes", Numbers [];
    /// How long it took to move what the log holds to the tree, each time, its pauses for callers included
    EMBEDDED_MOVE_DURATION = "onced_embedded_move_duration_seconds", Times [];
    /// Rows that were moved from the log to the tree
    EMBEDDED_MOVED_ROWS = "onced_embedded_moved_rows_total", Counter [];
    /// Expired records that were swept from the tree
    EMBEDDED_SWEPT_RECORDS = "onced_embedded_swept_records_total", Counter [];
    /// The size of the tree's file
    EMBEDDED_TREE_BYTES = "onced_embedded_tree_bytes", Gauge [];
    /// The size of the log's files
    EMBEDDED_LOG_BYTES = "onced_embedded_log_bytes", Gauge [];
    /// What is free on the file system of both; below 512 MiB no new claim is made
    EMBEDDED_FREE_BYTES = "onced_embedded_free_bytes", Gauge [];

    /// Whether an endpoint of etcd answers: 1 or 0
    ETCD_ENDPOINT_UP = "onced_etcd_endpoint_up", Gauge ["endpoint"];
    /// How often calls to etcd went on to another endpoint
    ETCD_FAILOVERS = "onced_etcd_endpoint_failovers_total", Counter [];
    /// Transactions that wrote, by form: alone, flat (many writes, none of which may lose) or nested (each decides
    /// for itself)
    ETCD_WRITE_TRANSACTIONS = "onced_etcd_write_transactions_total", Counter ["form"];
    /// How many writes they had
    ETCD_WRITE_BATCH = "onced_etcd_write_batch_size", Numbers [];
    /// Leases that were granted, by purpose: lock or retention
    ETCD_LEASES_GRANTED = "onced_etcd_leases_granted_total", Counter ["purpose"];
    /// Leases that etcd was found to have ended early
    ETCD_LEASES_DISCARDED = "onced_etcd_leases_discarded_total", Counter ["purpose"];
    /// Watches on etcd that were lost and resumed
    ETCD_WATCH_RESUMES = "onced_etcd_watch_resumes_total", Counter [];
    /// Watches whose history etcd had compacted: what they missed was read anew
    ETCD_WATCH_COMPACTIONS = "onced_etcd_watch_compactions_total", Counter [];
    /// The size of etcd's file
    ETCD_DB_SIZE = "onced_etcd_db_size_bytes", Gauge [];
    /// How much of it is in use
    ETCD_DB_IN_USE = "onced_etcd_db_in_use_bytes", Gauge [];
    /// What etcd takes at most; from nine tenths in use on, no new claim is made
    ETCD_DB_QUOTA = "onced_etcd_db_quota_bytes", Gauge [];

    /// Requests to a proxy (onced proxy), by what became of them: ran (the service behind was called for a key), replayed,
    /// refused (by the rules of keys, or by the proxy itself), or passed (not meant to run once); and by the status that
    /// the caller got
    PROXY_REQUESTS = "onced_proxy_requests_total", Counter ["result", "status"];
    /// How long the service behind a proxy took, by what it came to: answered (with a key to the end of the answer, else
    /// to its start), unreachable (nothing was sent), lost, timeout, or cut_short (by the caller)
    PROXY_UPSTREAM_DURATION = "onced_proxy_upstream_duration_seconds", Times ["result"];
    /// Requests with a key that a proxy had run without a claim, since no server of onced answered (fail open): they may
    /// have run twice
    PROXY_UNPROTECTED = "onced_proxy_unprotected_total", Counter [];

    /// Always 1; its label tells the version of this server
    BUILD = "onced_build_info", Gauge ["version"];
    /// When this process started, in seconds since the epoch
    START_TIME = "process_start_time_seconds", Gauge [];
    /// The processor time that it took
    CPU = "process_cpu_seconds_total", Counter [];
    /// The memory that it has
    RESIDENT_MEMORY = "process_resident_memory_bytes", Gauge [];
    /// The files and sockets that it has open
    OPEN_FDS = "process_open_fds", Gauge [];
    /// How many it may have open
    MAX_FDS = "process_max_fds", Gauge [];
}

/// Why metrics are not kept.
#[derive(Debug, thiserror::Error)]
#[error("metrics cannot be kept: {0}")]
pub struct Error(String);

/// What has been counted so far. Cheap to clone.
#[derive(Clone)]
pub struct Counted(PrometheusHandle);

/// Starts to count, for the whole process: to be called once, before anything is made that counts.
///
/// # Errors
/// If something counts already.
pub fn start() -> Result<Counted, Error> {
    let mut builder = PrometheusBuilder::new();
    for metric in METRICS {
        let buckets: &[f64] = match metric.kind {
            Kind::Times => &TIMES,
            Kind::Numbers => &NUMBERS,
            Kind::Counter | Kind::Gauge => continue,
        };
        let name = Matcher::Full(metric.name.to_owned());
        builder = builder.set_buckets_for_metric(name, buckets).map_err(|error| Error(error.to_string()))?;
    }
    let recorder = builder.build_recorder();
    let counted = Counted(recorder.handle());
    metrics::set_global_recorder(recorder).map_err(|error| Error(error.to_string()))?;
    for metric in METRICS {
        match metric.kind {
            Kind::Counter => metrics::describe_counter!(metric.name, metric.help),
            Kind::Gauge => metrics::describe_gauge!(metric.name, metric.help),
            Kind::Times | Kind::Numbers => metrics::describe_histogram!(metric.name, metric.help),
        }
    }
    metrics::gauge!(BUILD, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    Ok(counted)
}

impl Counted {
    /// All of it, as Prometheus reads it.
    pub fn render(&self) -> String {
        // Counters are whole numbers here, and seconds of a processor are not: it is kept as a gauge.
        let kind = |kind: Kind| format!("# TYPE {CPU} {}\n", kind.name());
        self.0.render().replacen(&kind(Kind::Gauge), &kind(Kind::Counter), 1)
    }

    /// Sorts what was measured into its buckets; to be called every now and then, or it piles up.
    pub fn sort(&self) {
        self.0.run_upkeep();
    }
}

/// Histograms of times that differ by their labels alone, each made when it is first needed: what is never met
/// is never shown.
pub struct Times(Box<[OnceLock<Histogram>]>);

impl Times {
    /// So many histograms, none made yet.
    pub fn new(count: usize) -> Self {
        Self((0..count).map(|_| OnceLock::new()).collect())
    }

    /// Adds a time to one of them.
    pub fn record(&self, index: usize, time: Duration, make: impl FnOnce() -> Histogram) {
        if let Some(histogram) = self.0.get(index) {
            histogram.get_or_init(make).record(time);
        }
    }
}

/// One more, as long as this lives.
pub struct Present(metrics::Gauge);

impl Present {
    /// One more of what the gauge counts.
    pub fn new(gauge: metrics::Gauge) -> Self {
        gauge.increment(1.0);
        Self(gauge)
    }
}

impl Drop for Present {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

/// All metrics as a table in Markdown: that of docs/metrics.md.
pub fn reference() -> String {
    let mut table = "| metric | kind | labels | tells |\n|---|---|---|---|\n".to_owned();
    for Metric { name, kind, labels, help } in METRICS {
        let labels = labels.iter().map(|label| format!("`{label}`")).collect::<Vec<_>>().join(", ");
        // Writing to a text does not fail.
        let _ = writeln!(table, "| `{name}` | {} | {labels} | {help} |", kind.name());
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_as_prometheus_wants_them_and_each_is_there_once() {
        let mut seen = std::collections::HashSet::new();
        for metric in METRICS {
            assert!(seen.insert(metric.name), "{} is there twice", metric.name);
            assert_eq!(metric.name.ends_with("_total"), metric.kind == Kind::Counter, "{}", metric.name);
            assert_eq!(
                metric.kind == Kind::Times,
                metric.name.ends_with("_duration_seconds"),
                "{}",
                metric.name
            );
            assert!(!metric.help.contains('|') && !metric.help.ends_with('.'), "{}", metric.help);
        }
    }

    #[test]
    fn the_documentation_has_the_table() {
        let page = include_str!("../../docs/metrics.md");
        assert!(page.contains(&reference()), "docs/metrics.md is to hold:\n\n{}", reference());
    }
}
