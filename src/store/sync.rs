//! What the threads and tasks that pass hints on share things by. They take it from here, so that tests can put in its
//! place what tries out every order in which threads may run (`schedules`).

pub(super) use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
