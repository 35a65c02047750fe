//! The checker, checked: it passes what can have been, and finds what cannot.

#![allow(clippy::unwrap_used, clippy::expect_used)] // It is all test.

mod bad;
mod generated;
mod good;
mod readers;
mod story;
mod totals;
mod world;
