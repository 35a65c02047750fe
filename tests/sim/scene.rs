//! The scene: members of etcd, servers and callers, each a host on a simulated network, in one thread.

use std::cell::Cell;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use fastrand::Rng;
use futures_util::future::join_all;
use onced::clock::{Clock, Moment};
use onced::server;
use onced::store::etcd::{EtcdConfig, EtcdStore, Network};
use onced_history::{Bounds, History, Time, Totals};
use turmoil::Sim;
use turmoil::net::{TcpListener, TcpStream};

use crate::caller::{Caller, EXPIRES_WITHIN, GRACE, RETENTION, World};
use crate::chaos::{Chaos, Stage};
use crate::fake_etcd::{FakeEtcd, Member};
use crate::net::PORT;
use crate::panics;
use crate::weather::{Counts, MEMBERS, Weather};

pub const SERVERS: usize = 2;
pub const CALLER_HOSTS: usize = 2;
const CALLERS_PER_HOST: usize = 3;
const KEYS: usize = 4;
/// When all faults are over.
pub const HEALED: Time = Duration::from_secs(6);
/// How long after that the keys are looked after. They are to be usable in less.
const LOOKED_AFTER: Duration = Duration::from_secs(20);
/// When it is given up, if somebody is still not answered.
const ENDS_AT_LAST: Time = Duration::from_secs(60);
/// One seed of so many goes on until its records have expired. It takes many times as long as another.
const ONE_OUTLASTS_OF: u8 = 32;
/// What hosts do at once, before the next one has its turn.
const TICK: Duration = Duration::from_millis(20);
/// What the network takes to deliver, at most, while it is well; and a tick at least, so that no host hears of what
/// comes later than its own time.
pub const LATENCY_MAX: Duration = Duration::from_millis(50);
/// Where the store lies in etcd.
pub const PREFIX: &str = "sim";
const ETCD_PORT: u16 = 2379;

/// What came of a seed.
pub struct Story {
    pub history: History,
    pub faults: Counts,
    /// How much was seen, or what was wrong.
    pub verdict: Result<Totals, String>,
    /// The same for the same seed.
    pub digest: u64,
}

pub fn member(i: usize) -> String {
    format!("etcd-{i}")
}

pub fn server(i: usize) -> String {
    format!("onced-{i}")
}

pub fn callers(i: usize) -> String {
    format!("callers-{i}")
}

/// Plays a seed.
pub fn play(seed: u64) -> Story {
    // For all that the product draws.
    fastrand::seed(seed);
    LAST.set(Duration::ZERO);
    let mut rng = Rng::with_seed(seed);
    let outlasts = rng.u8(..ONE_OUTLASTS_OF) == 0;
    let expiry = if outlasts { RETENTION + 2 * EXPIRES_WITHIN } else { Duration::ZERO };
    let mut sim = turmoil::Builder::new()
        .rng_seed(rng.u64(..))
        .epoch(UNIX_EPOCH)
        .tick_duration(TICK)
        .simulation_duration(ENDS_AT_LAST + expiry)
        .min_message_latency(TICK)
        .max_message_latency(LATENCY_MAX)
        .enable_random_order()
        .build();
    let weather = Arc::new(Weather::new(rng.fork()));
    let etcd = FakeEtcd::new(weather.clone(), clock());
    for i in 0..MEMBERS {
        let it = etcd.member(i);
        sim.host(member(i), move || serve_etcd(it.clone()));
    }
    for i in 0..SERVERS {
        sim.host(server(i), serve);
    }
    let chaos = Chaos::plan(rng.fork(), HEALED);
    let world = Rc::new(World {
        history: History::default(),
        keys: (0..KEYS).map(|i| format!("order-{i}").into()).collect(),
        ttls_mixed: rng.u8(..4) == 0,
        always_due: chaos.spares_servers(),
        well: Cell::new(false),
        weather: weather.clone(),
    });
    enter_callers(&mut sim, &mut rng, &world, outlasts);
    weather.turn_bad();
    let locks_end_early = chaos.ends_locks_early();
    let ended = run(&mut sim, chaos, &etcd, &weather, &world);
    let elapsed = sim.elapsed();
    drop(sim);
    let World { history, .. } = Rc::into_inner(world).expect("its callers are gone");
    let verdict = ended.and_then(|()| judge(&history, elapsed, locks_end_early));
    let digest = digest(&history, &etcd);
    Story { history, faults: weather.counts(), verdict, digest }
}

/// Plays all of it: until the callers are done.
fn run(
    sim: &mut Sim<'_>,
    mut chaos: Chaos,
    etcd: &FakeEtcd,
    weather: &Weather,
    world: &World,
) -> Result<(), String> {
    loop {
        let mut stage = Stage { sim: &mut *sim, etcd, weather };
        if stage.sim.elapsed() < HEALED {
            chaos.act(&mut stage);
        } else if !world.well.replace(true) {
            chaos.heal(&mut stage);
        }
        if sim.step().map_err(|error| error.to_string())? {
            return panics::so_far();
        }
        panics::so_far()?;
    }
}

fn enter_callers(sim: &mut Sim<'_>, rng: &mut Rng, world: &Rc<World>, outlasts: bool) {
    let servers: Vec<String> = (0..SERVERS).map(server).collect();
    let mut caller = |name: String| Caller::new(name, rng.fork(), &servers, world.clone());
    for host in 0..CALLER_HOSTS {
        let hosted: Vec<Caller> =
            (0..CALLERS_PER_HOST).map(|i| caller(format!("caller-{host}-{i}"))).collect();
        sim.client(callers(host), async move {
            join_all(hosted.into_iter().map(Caller::take_part)).await;
            Ok(())
        });
    }
    // Those who look after the keys once all is well.
    let keepers = world.keys.iter().map(|key| (key.clone(), caller(format!("keeper of {key}"))));
    let keepers: Vec<_> = keepers.collect();
    sim.client("keepers", async move {
        tokio::time::sleep(HEALED + TICK).await;
        let keeping = keepers.into_iter().map(|(key, mut keeper)| async move {
            keeper.see_to_its_end(&key, HEALED + LOOKED_AFTER).await;
            keeper.look_around(&key).await;
            if outlasts {
                keeper.outlast(&key).await;
                keeper.look_around(&key).await;
            }
        });
        join_all(keeping).await;
        Ok(())
    });
}

/// Whether it can have been.
fn judge(history: &History, ended: Time, locks_end_early: bool) -> Result<Totals, String> {
    let bounds = Bounds { healed: Some(HEALED), late_max: GRACE, locks_end_early, ..Bounds::until(ended) };
    history.check(&bounds).map_err(|wrong| wrong.to_string())
}

async fn serve_etcd(member: Member) -> turmoil::Result {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, ETCD_PORT)).await?;
    let due = member.clone();
    tokio::spawn(async move { due.run().await });
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(member.connection(stream));
    }
}

/// A server, on the simulated network and time.
async fn serve() -> turmoil::Result {
    let network = Network::from_fn(TcpStream::connect::<String>);
    let endpoints = (0..MEMBERS).map(|i| format!("{}:{ETCD_PORT}", member(i))).collect();
    let config = EtcdConfig { network, ..EtcdConfig::new(endpoints, PREFIX) };
    let store = loop {
        // As whoever starts a server again that ended because of it.
        match EtcdStore::connect(config.clone(), clock()).await {
            Ok(store) => break Arc::new(store),
            Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
        }
    };
    let listener = Listener(TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).await?);
    server::run(server::Config::default(), listener, store, clock(), std::future::pending()).await;
    Ok(())
}

struct Listener(TcpListener);

impl server::Listener for Listener {
    type Stream = TcpStream;

    async fn accept(&self) -> std::io::Result<(TcpStream, SocketAddr)> {
        self.0.accept().await
    }
}

// The time that a host last saw.
thread_local!(static LAST: Cell<Duration> = const { Cell::new(Duration::ZERO) });

/// The time of the simulation; while none of its hosts is at work, as they last saw it.
fn clock() -> Clock {
    Clock::from_fn(|| {
        let at_work = tokio::runtime::Handle::try_current().is_ok();
        if let Some(now) = turmoil::sim_elapsed().filter(|_| at_work) {
            LAST.set(now);
        }
        Moment::from_start(LAST.get())
    })
}

/// A digest of all that callers saw, and of what etcd has in the end.
fn digest(history: &History, etcd: &FakeEtcd) -> u64 {
    // FNV-1a.
    let mut digest = 0xcbf2_9ce4_8422_2325_u64;
    let mut note = |bytes: &[u8]| {
        for byte in bytes {
            digest = (digest ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    note(format!("{:?}", history.operations()).as_bytes());
    etcd.with(|data, _| data.digest(&mut note));
    digest
}
