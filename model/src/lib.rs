//! The protocol of onced as models, checked state by state: what may happen between callers, servers and store,
//! in every order, and that no order breaks a promise.
//!
//! What a command does to a record is not modelled: that is the product's own code, [`onced::record::decide`].
//! What surrounds it is: who sends what when, what is late, lost or done twice, what lapses and what expires.
//!
//! - [`protocol`]: one key, its callers, the servers and the store. The main model, at several sizes.
//! - [`rooms`]: callers of one server share reads.
//! - [`batches`]: writes share transactions.
//! - [`restarts`]: the embedded store dies and starts again.
//! - [`fault`]: the faults that each of them must find.
//! - [`suite`]: which sizes there are, and who finds what.

pub mod batches;
pub mod check;
pub mod fault;
pub mod protocol;
pub mod record;
pub mod restarts;
pub mod rooms;
pub mod suite;
