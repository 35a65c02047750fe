//! The only file that knows both a record and its stored form.

#[allow(clippy::all, clippy::pedantic)]
mod stored {
    include!(concat!(env!("OUT_DIR"), "/onced.store.v1.rs"));
}
