//! Watches: what is never missed, and what needs no event at all.

use std::sync::Arc;
use std::time::Duration;

use onced::clock::Clock;
use onced::coordinator::{Begun, Coordinator, Patience, Settings};
use onced::record::{Begin, Command, Lock, OnLapse, Outcome, OutcomeResult, Record, RequestId, State, View};
use onced::store::etcd::EtcdConfig;
use onced::store::{Expected, RecordStore};

use super::{client, hinted, long_claim, open, raw, revoke};
use crate::store::fixture::{PATIENCE, create, key, load, write};
use crate::support::call_proxy::CallProxy;
use crate::support::etcd::EtcdProcess;
use crate::support::proxy::Proxy;

const NEVER: Duration = Duration::from_secs(3_600);

#[tokio::test]
async fn with_every_event_dropped_the_slow_poll_answers() {
    gets_the_outcome_without_events(Duration::from_millis(200), PATIENCE).await;
}

#[tokio::test]
async fn with_every_event_dropped_the_deadline_answers() {
    gets_the_outcome_without_events(NEVER, Duration::from_millis(700)).await;
}

/// Somebody waits for so long at a server that no event reaches, while the key is completed at another one.
async fn gets_the_outcome_without_events(poll: Duration, wait: Duration) {
    let etcd = EtcdProcess::shared();
    let (proxy, beside) = (CallProxy::start(etcd.endpoint()).await, etcd.config());
    let config = EtcdConfig { endpoints: vec![proxy.endpoint()], ..beside.clone() };
    let server = |store| Coordinator::new(store, Clock::system(), Settings { poll, ..Settings::default() });
    let (deaf_store, direct) = (open(&config).await, open(&beside).await);
    let (deaf, other) = (server(Arc::clone(&deaf_store)), server(direct));
    proxy.drop_events();
    let mut watch = deaf_store.watch(&key("k")).await.unwrap();
    let Ok(Begun::Claimed(mut claimed)) = begin(&other, 1, Duration::ZERO).await else { panic!("no claim") };
    claimed.delivered();
    let waiting = tokio::spawn(async move { begin(&deaf, 2, wait).await });
    // It waits by now, or else finds the outcome at once: it is right either way.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let result = OutcomeResult::Response("done".into());
    let outcome = Arc::new(Outcome { result, content_type: String::new(), metadata: Default::default() });
    let token = claimed.record.fencing_token;
    other.apply(key("k"), Command::Complete { token, outcome, retention: None }, None).await.unwrap();
    match tokio::time::timeout(PATIENCE, waiting).await.expect("an answer").unwrap() {
        Ok(Begun::Standing(View::Completed { record, .. })) => {
            assert!(matches!(&record.state, State::Completed { outcome, .. } if
                outcome.result == OutcomeResult::Response("done".into())));
        }
        other => panic!("{other:?}"),
    }
    let hint = tokio::time::timeout(Duration::from_millis(100), watch.changed()).await;
    assert!(hint.is_err(), "an event got through, so that this shows nothing");
}

async fn begin(server: &Coordinator, id: u8, wait: Duration) -> Result<Begun, onced::coordinator::Error> {
    let begin = Begin {
        request_id: RequestId([id; 16]),
        owner: "tester".to_owned(),
        fingerprint: None,
        lock_ttl: Duration::from_secs(600),
        retention: Duration::from_secs(60),
        on_lapse: OnLapse::TakeOver,
    };
    let arrived = server.clock().now();
    server.begin(key("k"), begin, Patience { arrived, until: arrived + wait, busy: None }).await
}

/// A store behind a proxy, another one beside it, and the way past the proxy.
async fn parted(etcd: &EtcdProcess) -> (Proxy, Arc<dyn RecordStore>, Arc<dyn RecordStore>, EtcdConfig) {
    let (proxy, beside) = (Proxy::start(etcd.endpoint()).await, etcd.config());
    let config = EtcdConfig { endpoints: vec![proxy.endpoint()], ..beside.clone() };
    let (store, direct) = (open(&config).await, open(&beside).await);
    (proxy, store, direct, beside)
}

#[tokio::test]
async fn what_happens_while_a_stream_is_down_is_hinted_when_it_is_back() {
    // etcd says often how far a watch has come, so that a wrong reading of that has its chance.
    let etcd = EtcdProcess::start_with(&["--watch-progress-notify-interval", "100ms"]);
    let (proxy, store, direct, beside) = parted(&etcd).await;
    let mut first = create(&store, &key("changes"), &long_claim()).await;
    create(&store, &key("lapses"), &long_claim()).await;
    let lease = raw(&beside, &key("lapses")).await.lock_lease;
    let mut watches = Vec::new();
    for name in ["changes", "lapses", "comes"] {
        watches.push(store.watch(&key(name)).await.unwrap());
        store.load(&key(name)).await.unwrap();
    }
    for round in 0..3 {
        proxy.close();
        let came = key(&format!("came in round {round}"));
        let next = Record { attempt: 2 + round, ..long_claim() };
        first = write(&direct, &key("changes"), Expected::At(first), Some(&next)).await;
        create(&direct, &came, &next).await;
        proxy.open();
        tokio::time::timeout(PATIENCE, watches[0].changed()).await.expect("a hint");
        assert_eq!(load(&store, &key("changes")).await.revision, first);
    }
    proxy.close();
    revoke(&beside, lease).await;
    create(&direct, &key("comes"), &long_claim()).await;
    proxy.open();
    // Nothing is read through the store before the hints: reading would tell of a lapse, too.
    for watch in &mut watches[1..] {
        tokio::time::timeout(PATIENCE, watch.changed()).await.expect("a hint");
    }
    assert_eq!(load(&store, &key("lapses")).await.lock, Lock::Lapsed);
}

/// The watch of the record itself goes on where it was: only that of the locks has lost its past.
#[tokio::test]
async fn a_lapse_that_was_compacted_away_is_hinted_to_all_who_wait() {
    let etcd = EtcdProcess::start();
    let (proxy, store, direct, beside) = parted(&etcd).await;
    // Its leases are at hand, so that the writes below make no more locks known.
    create(&direct, &key("before"), &long_claim()).await;
    let mut last = create(&direct, &key("k"), &long_claim()).await;
    let mut watch = store.watch(&key("k")).await.unwrap();
    for attempt in 2..6 {
        let next = Record { attempt, ..long_claim() };
        last = write(&direct, &key("k"), Expected::At(last), Some(&next)).await;
        hinted(&mut watch, &store, &key("k"), |seen| seen.revision == last && seen.lock == Lock::Held).await;
    }
    proxy.close();
    revoke(&beside, raw(&beside, &key("k")).await.lock_lease).await;
    client(&beside).await.compact(i64::try_from(last.0).unwrap(), None).await.unwrap();
    proxy.open();
    // Nothing is read through the store before the hint: reading would tell, too.
    tokio::time::timeout(PATIENCE, watch.changed()).await.expect("a hint");
    assert_eq!(load(&store, &key("k")).await.lock, Lock::Lapsed);
}
