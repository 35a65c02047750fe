//! The integration tests, which see the crate from outside: one binary, since each costs a link.

// Clippy knows #[test] functions, but not what they are made of.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod access;
mod cli;
mod client;
mod cluster;
mod contract;
mod coordinator;
mod exec_across_hosts;
#[path = "../shared/fake_etcd/mod.rs"]
#[allow(
    dead_code,
    unused_imports,
    reason = "in simulations it fails; here it is only held against the real one"
)]
mod fake_etcd;
mod histories;
mod hostile;
mod proxy;
mod reference;
mod server;
mod store;
mod support;
