//! What panics while a seed is played: neither a caller may, nor any task of a server or of etcd.

use std::cell::RefCell;
use std::panic;
use std::sync::Once;

thread_local!(static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) });

/// What it came to, if nothing panicked on this thread.
pub fn none_in<T>(act: impl FnOnce() -> T + panic::UnwindSafe) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let hook = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            PANICS.with_borrow_mut(|panics| panics.push(info.to_string()));
            hook(info);
        }));
    });
    PANICS.take();
    let done = panic::catch_unwind(act);
    let so_far = so_far();
    so_far.and(done.map_err(|_| "it panicked".to_owned()))
}

/// Whether nothing has panicked yet.
pub fn so_far() -> Result<(), String> {
    // The first one is the cause of the others.
    PANICS.with_borrow(|panics| match panics.first() {
        Some(first) => Err(first.clone()),
        None => Ok(()),
    })
}
