//! Servers and stores on a real etcd of three members, of which some die, freeze, or cannot be
//! reached, by clients or by each other.

mod callers;
mod closed_loop;
mod leases;
mod members;
mod partitions;
mod readiness;
mod rolling;
