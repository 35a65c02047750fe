//! An etcd that asks who calls.

use std::time::Duration;

use etcd_client::{Client, Permission};
use onced::store::etcd::{EtcdConfig, EtcdLogin, OpenError, SizeWatch};
use onced::store::{Expected, StoreError, Swapped};

use super::opening::refused;
use super::{long_claim, open};
use crate::store::fixture::{PATIENCE, create, held, key};
use crate::support::etcd::EtcdProcess;

const PREFIX: &str = "ours";
/// How long etcd remembers who an idle caller is, in seconds.
const TOKEN_TTL: &str = "1";

/// An etcd where `onced` may use its prefix, `reader` may only read it, and `stranger` neither.
async fn start() -> EtcdProcess {
    let (etcd, client) = start_open().await;
    client.auth_client().auth_enable().await.unwrap();
    etcd
}

/// The same before it asks who calls.
async fn start_open() -> (EtcdProcess, Client) {
    let etcd = EtcdProcess::start_with(&["--auth-token-ttl", TOKEN_TTL]);
    let mut client = Client::connect([etcd.endpoint()], None).await.unwrap();
    let below = || format!("{PREFIX}/");
    client.role_add("writers").await.unwrap();
    client.role_grant_permission("writers", Permission::read_write(below()).with_prefix()).await.unwrap();
    client.role_add("readers").await.unwrap();
    client.role_grant_permission("readers", Permission::read(below()).with_prefix()).await.unwrap();
    for user in ["root", "onced", "reader", "stranger"] {
        client.user_add(user, password(user), None).await.unwrap();
    }
    for (user, role) in [("root", "root"), ("onced", "writers"), ("reader", "readers")] {
        client.user_grant_role(user, role).await.unwrap();
    }
    (etcd, client)
}

fn password(user: &str) -> String {
    format!("the password of {user}")
}

fn config(etcd: &EtcdProcess, user: &str, password: String) -> EtcdConfig {
    let login = Some(EtcdLogin { user: user.to_owned(), password });
    // Looks at the size would keep a token alive.
    let size = SizeWatch { interval: Duration::from_secs(3_600), ..SizeWatch::default() };
    EtcdConfig { login, size, ..EtcdConfig::new(vec![etcd.endpoint()], PREFIX) }
}

#[tokio::test]
async fn every_kind_of_call_survives_that_etcd_forgets_who_calls() {
    let etcd = start().await;
    let config = config(&etcd, "onced", password("onced"));
    // Each has a token of its own, which its next call finds forgotten.
    let mut stores = Vec::new();
    for _ in 0..5 {
        stores.push(open(&config).await);
    }
    let [loads, swaps, grants, watches, scans] = &stores[..] else { panic!() };
    create(loads, &key("there"), &long_claim()).await;
    create(swaps, &key("before"), &long_claim()).await;
    let _open = watches.watch(&key("before")).await.unwrap();
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(watches.watch(&key("there")).await.is_ok());
    assert!(matches!(loads.load(&key("there")).await, Ok(Some(_))));
    let swapped = swaps.swap(&key("a"), Expected::Absent, Some(&long_claim())).await;
    assert!(matches!(swapped, Ok(Swapped::Done(_))), "{swapped:?}");
    let swapped = grants.swap(&key("b"), Expected::Absent, Some(&held("holder"))).await;
    assert!(matches!(swapped, Ok(Swapped::Done(_))), "{swapped:?}");
    assert!(!scans.scan(&key("a").namespace, None, 10).await.unwrap().records.is_empty());
}

#[tokio::test]
async fn a_login_is_made_up_for_once_etcd_asks_who_calls() {
    let (etcd, client) = start_open().await;
    let store = open(&config(&etcd, "onced", password("onced"))).await;
    create(&store, &key("before"), &long_claim()).await;
    client.auth_client().auth_enable().await.unwrap();
    let served = async {
        while store.load(&key("before")).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, served).await.expect("it logs in");
}

#[tokio::test]
async fn who_may_not_is_told_what_is_missing() {
    let etcd = start().await;
    // Its prefix is made first: a reader could not.
    open(&config(&etcd, "onced", password("onced"))).await;
    let nobody = EtcdConfig::new(vec![etcd.endpoint()], PREFIX);
    for (config, do_this) in [
        (config(&etcd, "onced", "wrong".to_owned()), "check --etcd-user"),
        (config(&etcd, "unknown", password("unknown")), "check --etcd-user"),
        (nobody, "give --etcd-user"),
        (config(&etcd, "stranger", password("stranger")), "grant-permission onced readwrite ours/ --prefix"),
        (config(&etcd, "reader", password("reader")), "user grant-role reader onced"),
        (
            EtcdConfig { prefix: "theirs".to_owned(), ..config(&etcd, "onced", password("onced")) },
            "\"theirs\"",
        ),
    ] {
        let error = refused(config).await;
        assert!(matches!(error, OpenError::Refused { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains(do_this) && text.contains(&etcd.endpoint()), "{do_this}: {text}");
        assert!(!text.contains("the password of"), "{text}");
    }
}

#[tokio::test]
async fn a_password_that_is_changed_meanwhile_is_told_of_as_at_the_start() {
    let etcd = start().await;
    let store = open(&config(&etcd, "onced", password("onced"))).await;
    create(&store, &key("k"), &long_claim()).await;
    let root = etcd_client::ConnectOptions::new().with_user("root", password("root"));
    let root = Client::connect([etcd.endpoint()], Some(root)).await.unwrap();
    root.auth_client().user_change_password("onced", "another").await.unwrap();
    let told = async {
        loop {
            match store.load(&key("k")).await {
                Err(StoreError::NotApplied(why)) if why.contains("check --etcd-user") => return why,
                Ok(_) | Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    };
    let why = tokio::time::timeout(PATIENCE, told).await.expect("it is told what to do");
    assert!(why.contains(&etcd.endpoint()), "{why}");
}

#[tokio::test]
async fn a_login_is_no_error_where_nobody_asks() {
    let etcd = EtcdProcess::shared();
    let store = open(&EtcdConfig {
        prefix: crate::support::etcd::fresh_prefix(),
        ..config(etcd, "onced", password("onced"))
    })
    .await;
    create(&store, &key("k"), &long_claim()).await;
}

#[tokio::test]
async fn a_password_is_not_shown() {
    let config = config(EtcdProcess::shared(), "onced", password("onced"));
    assert!(!format!("{config:?}").contains("the password of"));
}
