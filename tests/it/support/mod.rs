//! What the tests stand on.

pub mod call_proxy;
pub mod caller;
pub mod certificates;
pub mod clock;
pub mod cluster;
pub mod collector;
pub mod etcd;
pub mod exposition;
pub mod faulty;
pub mod frames;
pub mod http;
pub mod log;
pub mod numbers;
pub mod onced;
pub mod open_call;
mod peers;
pub mod proxy;
#[path = "../../shared/recorded.rs"]
pub mod recorded;
#[path = "../../shared/rounds.rs"]
pub mod rounds;
pub mod server;
pub mod stand_in;
pub mod stores;
