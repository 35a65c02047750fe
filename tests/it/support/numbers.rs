//! What the code under test counts and measures.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Label, Metadata, Recorder, SharedString, Unit};

/// Takes numbers down, of one thread (`metrics::set_default_local_recorder`): of a test all whose tasks run there.
#[derive(Default)]
pub struct Numbers(Mutex<HashMap<Key, Arc<AtomicU64>>>);

impl Numbers {
    /// How often it was counted.
    pub fn counter(&self, name: &'static str) -> u64 {
        self.of(&Key::from_static_name(name)).load(Ordering::SeqCst)
    }

    /// What was measured last.
    pub fn gauge(&self, name: &'static str, label: &'static str, value: &str) -> f64 {
        let key = Key::from_parts(name, vec![Label::new(label, value.to_owned())]);
        f64::from_bits(self.of(&key).load(Ordering::SeqCst))
    }

    fn of(&self, key: &Key) -> Arc<AtomicU64> {
        Arc::clone(self.0.lock().unwrap().entry(key.clone()).or_default())
    }
}

impl Recorder for Numbers {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.of(key))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.of(key))
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}
