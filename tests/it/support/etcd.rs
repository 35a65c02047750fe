//! A real etcd for the tests, with nothing installed. `ONCED_TEST_ETCD=/path/to/etcd` takes another one; of several,
//! with a colon between them, the members of a cluster take one after the other.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use onced::store::etcd::EtcdConfig;

/// Runs etcd as it is told, and ends it when the tests end, however they end: a signal, a panic or an exit
/// closes the pipe that it reads from.
const WATCHDOG: &str = r#"
trap '' INT TERM HUP
dir=$1
shift
while read -r order; do
    case $order in
    start)
        "$@" >>"$dir/log" 2>&1 </dev/null &
        pid=$!
        ;;
    wipe) rm -rf "$dir/data" ;;
    kill) kill -KILL "$pid" && wait "$pid" ;;
    freeze)
        kill -STOP "$pid"
        # Each thread stops a moment later.
        while grep -L "T (stopped)" "/proc/$pid/task"/*/status 2>/dev/null | grep -q .; do sleep 0.01; done
        ;;
    thaw) kill -CONT "$pid" ;;
    esac
    echo "done: $order"
done
kill -KILL "$pid"
wait
rm -rf "$dir"
"#;

/// How long etcd may take to get ready, in steps of [`STEP`]. Two busy cores need a few seconds.
const READY_STEPS: u32 = 600;
const STEP: Duration = Duration::from_millis(100);
/// How many pairs of ports are tried.
const PORT_ATTEMPTS: u32 = 10;

/// Flags that are called `--experimental-…` before 3.6.
const EXPERIMENTAL_BEFORE_3_6: [&str; 1] = ["--watch-progress-notify-interval"];

/// An etcd process, with a data directory of its own. Ends when dropped, or with the tests.
pub struct EtcdProcess {
    watchdog: Mutex<Watchdog>,
    port: u16,
    /// Where it tells whether it is well, without TLS.
    health_port: u16,
    log: PathBuf,
}

/// A member that is to be started.
pub(super) struct Member<'a> {
    pub(super) name: &'a str,
    /// Which of its cluster.
    pub(super) index: usize,
    pub(super) ports: Ports,
    /// Where the others find it.
    pub(super) peer_url: &'a str,
    /// Each member of its cluster with where the others find it, as etcd wants it.
    pub(super) cluster: &'a str,
}

/// Where a member listens.
#[derive(Clone, Copy)]
pub(super) struct Ports {
    client: u16,
    /// For other members.
    pub(super) peer: u16,
}

impl Ports {
    /// Ports that are free now.
    pub(super) fn free() -> Self {
        Self { client: free_port(), peer: free_port() }
    }

    /// Where it listens for other members.
    fn peer_url(self) -> String {
        format!("http://127.0.0.1:{}", self.peer)
    }
}

struct Watchdog {
    child: Child,
    /// `None` once it is being ended.
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl EtcdProcess {
    /// The etcd that tests share, each on a prefix of its own. For tests that leave it alone.
    pub fn shared() -> &'static EtcdProcess {
        static SHARED: OnceLock<EtcdProcess> = OnceLock::new();
        SHARED.get_or_init(EtcdProcess::start)
    }

    /// An etcd of one's own, to be killed or frozen.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// An etcd of one's own with more flags, by the names that the newest version gives them.
    pub fn start_with(flags: &[&str]) -> Self {
        start_ready(|| {
            let ports = Ports::free();
            let peer_url = &ports.peer_url();
            let cluster = &format!("test={peer_url}");
            [Self::spawn(&Member { name: "test", index: 0, ports, peer_url, cluster }, flags)]
        })
        .into_iter()
        .next()
        .expect("one process")
    }

    /// Two that say they are the same member, and have nothing in common: so they come from a backup that was restored on
    /// each of two machines without the names of the others.
    pub fn start_clones() -> [Self; 2] {
        start_ready(|| {
            let both = [Ports::free(), Ports::free()];
            let peer_url = &both[0].peer_url();
            let cluster = &format!("test={peer_url}");
            both.map(|ports| Self::spawn(&Member { name: "test", index: 0, ports, peer_url, cluster }, &[]))
        })
    }

    pub(super) fn spawn(member: &Member<'_>, flags: &[&str]) -> Self {
        let binary = binary(member.index);
        let is_old = is_before_3_6(&binary);
        // The watchdog removes it, after etcd has ended.
        let dir = tempfile::Builder::new().prefix("onced-etcd-").tempdir().expect("a directory").keep();
        let port = member.ports.client;
        let tls = flags.contains(&"--cert-file");
        let (scheme, health_port) = if tls { ("https", free_port()) } else { ("http", port) };
        let (client, peer) = (format!("{scheme}://127.0.0.1:{port}"), member.ports.peer_url());
        let health = format!("http://127.0.0.1:{health_port}");
        let health_flags: &[&str] = if tls { &["--listen-metrics-urls", &health] } else { &[] };
        let mut child = Command::new("sh")
            .args(["-c", WATCHDOG, "etcd-watchdog"])
            .args([dir.as_os_str(), binary.as_os_str()])
            .arg("--data-dir")
            .arg(dir.join("data"))
            .args(["--name", member.name, "--initial-cluster", member.cluster])
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", member.peer_url])
            .args(["--auto-compaction-mode", "periodic", "--auto-compaction-retention", "5m"])
            .args(["--log-level", "warn"])
            .args(health_flags)
            .args(flags.iter().map(|flag| flag_of_this_version(flag, is_old)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("a shell");
        let answers = BufReader::new(child.stdout.take().expect("its output"));
        let watchdog = Watchdog { orders: child.stdin.take(), child, answers };
        let process = Self { watchdog: Mutex::new(watchdog), port, health_port, log: dir.join("log") };
        process.order("start");
        process
    }

    /// Where it listens, as host:port.
    pub fn endpoint(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The same by the name of this machine, for certificates.
    pub fn endpoint_by_name(&self) -> String {
        format!("localhost:{}", self.port)
    }

    /// A store in it, on a prefix that nobody else has.
    pub fn config(&self) -> EtcdConfig {
        EtcdConfig::new(vec![self.endpoint()], fresh_prefix())
    }

    /// Ends it as by kill -9. It can be started again.
    pub fn kill(&self) {
        self.order("kill");
    }

    /// Has it lose its data. It is to be killed before.
    pub fn wipe(&self) {
        self.order("wipe");
    }

    /// Starts it again on the same data and ports, and waits until it serves.
    pub fn restart(&self) {
        self.order("start");
        if let Err(log) = self.wait_ready() {
            panic!("etcd did not get ready again:\n{log}");
        }
    }

    /// Stops it in its tracks, connections open.
    pub fn freeze(&self) {
        self.order("freeze");
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.order("thaw");
    }

    fn order(&self, order: &str) {
        let mut watchdog = self.watchdog.lock().expect("no test panicked while it gave an order");
        let orders = watchdog.orders.as_mut().expect("it is not dropped");
        writeln!(orders, "{order}").expect("the watchdog reads orders");
        let mut answer = String::new();
        watchdog.answers.read_line(&mut answer).expect("the watchdog answers");
        assert_eq!(answer.trim(), format!("done: {order}"));
    }

    /// Waits until etcd serves; else its log.
    pub(super) fn wait_ready(&self) -> Result<(), String> {
        for _ in 0..READY_STEPS {
            if self.is_healthy() {
                return Ok(());
            }
            let log = self.log();
            if log.contains("address already in use") {
                return Err(log);
            }
            std::thread::sleep(STEP);
        }
        Err(self.log())
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// What it tells of itself, for Prometheus.
    pub async fn metrics(&self) -> String {
        let port = self.health_port;
        let asked = tokio::task::spawn_blocking(move || http_get(port, "/metrics"));
        asked.await.expect("it does not panic").expect("etcd answers")
    }

    /// How many requests it has been sent whose label is so, as it counts them: `grpc_method="Put"`.
    pub async fn requests(&self, label: &str) -> u64 {
        self.sum("grpc_server_started_total{", label).await as u64
    }

    /// How many bytes it has sent to its clients.
    pub async fn sent_bytes(&self) -> u64 {
        self.sum("etcd_network_client_grpc_sent_bytes_total", "").await as u64
    }

    /// The sum of what it counts under this name, where the label is as said.
    async fn sum(&self, name: &str, label: &str) -> f64 {
        let metrics = self.metrics().await;
        let counts = metrics.lines().filter(|line| line.starts_with(name) && line.contains(label));
        let value = |line: &str| line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok());
        let counts: Vec<f64> = counts.filter_map(value).collect();
        assert!(!counts.is_empty(), "etcd counts no {name} with {label}:\n{metrics}");
        counts.iter().sum()
    }

    fn is_healthy(&self) -> bool {
        http_get(self.health_port, "/health").is_ok_and(|answer| answer.contains(r#""health":"true""#))
    }

    /// Whether it says that it leads its cluster.
    pub(super) fn leads(&self) -> bool {
        self.measures("etcd_server_is_leader 1")
    }

    /// Whether it says that it hears a leader.
    pub(super) fn has_leader(&self) -> bool {
        self.measures("etcd_server_has_leader 1")
    }

    fn measures(&self, what: &str) -> bool {
        http_get(self.health_port, "/metrics").is_ok_and(|answer| answer.contains(&format!("\n{what}\n")))
    }

    /// What it is called by the others, in hexadecimal.
    pub(super) fn id(&self) -> String {
        let metrics = http_get(self.health_port, "/metrics").expect("etcd answers");
        let told =
            metrics.split("\netcd_server_id{server_id=\"").nth(1).and_then(|rest| rest.split('"').next());
        told.expect("it knows who it is").to_owned()
    }
}

/// Asks a server on this machine, and reads its whole answer.
fn http_get(port: u16, path: &str) -> std::io::Result<String> {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let mut connection = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
    connection.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(connection, "GET {path} HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer)?;
    Ok(answer)
}

impl Drop for EtcdProcess {
    fn drop(&mut self) {
        let watchdog = self.watchdog.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        watchdog.orders = None;
        let _ = watchdog.child.wait();
    }
}

/// Starts processes that have to see each other, and waits until all serve.
pub(super) fn start_ready<const N: usize>(mut spawn: impl FnMut() -> [EtcdProcess; N]) -> [EtcdProcess; N] {
    for _ in 0..PORT_ATTEMPTS {
        let processes = spawn();
        match processes.iter().try_for_each(EtcdProcess::wait_ready) {
            Ok(()) => return processes,
            // Somebody took a port between our look and etcd's.
            Err(log) if log.contains("address already in use") => {}
            Err(log) => panic!("etcd did not get ready:\n{log}"),
        }
    }
    panic!("no free ports for etcd after {PORT_ATTEMPTS} attempts");
}

/// The etcd under test, as this member of a cluster.
fn binary(member: usize) -> PathBuf {
    match std::env::var_os("ONCED_TEST_ETCD") {
        Some(paths) => {
            let paths: Vec<PathBuf> = std::env::split_paths(&paths).collect();
            paths[member % paths.len()].clone()
        }
        None => etcd_bin_vendored::etcd_bin_path().expect("an etcd for this machine").into(),
    }
}

fn is_before_3_6(binary: &Path) -> bool {
    let told = Command::new(binary).arg("--version").output().expect("etcd runs");
    let version = String::from_utf8(told.stdout).expect("text");
    ["etcd Version: 3.4.", "etcd Version: 3.5."].iter().any(|old| version.starts_with(old))
}

/// A flag as an etcd calls it that is as old as this.
fn flag_of_this_version(flag: &str, is_old: bool) -> String {
    match flag.strip_prefix("--") {
        Some(name) if is_old && EXPERIMENTAL_BEFORE_3_6.contains(&flag) => format!("--experimental-{name}"),
        Some(_) | None => flag.to_owned(),
    }
}

/// A prefix that nobody else has.
pub fn fresh_prefix() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("test-{}", COUNT.fetch_add(1, Ordering::Relaxed))
}

/// A port that is free now, below those that the system hands out for outgoing connections.
fn free_port() -> u16 {
    (0..1_000)
        .map(|_| fastrand::u16(10_000..32_000))
        .find(|&port| TcpListener::bind(("127.0.0.1", port)).is_ok())
        .expect("a free port")
}
