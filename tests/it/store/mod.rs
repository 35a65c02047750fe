//! The stores: one suite for what all of them promise, and tests of what is particular to each.

mod conformance;
mod embedded;
mod etcd;
pub mod fixture;
