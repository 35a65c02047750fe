//! The stores: one suite for what all of them promise, and tests of what is particular to each.

mod conformance;
pub mod embedded;
pub mod etcd;
pub mod fixture;
