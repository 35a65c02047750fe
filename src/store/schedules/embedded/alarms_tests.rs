//! Alarms: whoever watches has those of the newest revision, and nobody else has any.

use shuttle::sync::Mutex;
use shuttle::thread;

use super::super::hub::{Hub, Watch};
use super::super::sync::Arc;
use super::super::{in_every_order, key};
use super::alarms::Alarms;
use crate::clock::Moment;
use crate::store::Revision;

#[derive(Clone, Default)]
struct Store {
    hub: Hub,
    alarms: Arc<Alarms>,
    /// The revision of the record. It has as many alarms.
    revision: Arc<Mutex<u64>>,
}

impl Store {
    fn set_alarms(&self, revision: u64) {
        let moments =
            (0..revision).map(|hours| Moment::default() + std::time::Duration::from_secs(hours * 3_600));
        self.alarms.set(&key(), Revision(revision), moments.collect());
    }

    fn watch(&self) -> Watch {
        let (alarms, hub) = (Arc::clone(&self.alarms), self.hub.clone());
        let watch = self.hub.watch(&key(), Some(Box::new(move || alarms.clear_unwatched(&key(), &hub))));
        let revision = *self.revision.lock().unwrap();
        self.set_alarms(revision);
        watch
    }

    fn write(&self) {
        let mut revision = self.revision.lock().unwrap();
        *revision += 1;
        let written = *revision;
        drop(revision);
        if self.hub.is_watched(&key()) {
            self.set_alarms(written);
            self.hub.changed(&key());
        }
    }
}

#[test]
fn whoever_stays_has_the_newest_alarms_and_whoever_left_has_none() {
    in_every_order(|| {
        let store = Store::default();
        let on = |run: fn(&Store) -> Option<Watch>| {
            let store = store.clone();
            thread::spawn(move || run(&store))
        };
        let stays = on(|store| Some(store.watch()));
        let leaves = on(|store| {
            drop(store.watch());
            None
        });
        let writes = on(|store| {
            store.write();
            store.write();
            None
        });
        let watch = stays.join().unwrap();
        leaves.join().unwrap();
        writes.join().unwrap();
        assert_eq!(store.alarms.count(), 2, "not the alarms of the second revision");
        drop(watch);
        assert_eq!(store.alarms.count(), 0, "alarms that nobody waits for");
    });
}
