//! What the tests stand on.

pub mod clock;
pub mod etcd;
pub mod faulty;
pub mod proxy;
