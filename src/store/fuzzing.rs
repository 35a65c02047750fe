//! What fuzzing enters here: what a store reads back.

use super::encoding::{self, Decoded};
use super::{Revision, StoreError, embedded, etcd};
use crate::record::{Key, Namespace, RecordKey};

pub use super::embedded::fuzzing::{log, logs};

/// The stored form of a record. What decodes is written as it was read, and only what is damaged does not decode.
pub fn stored_form(data: &[u8]) {
    const REVISION: Revision = Revision(42);
    let expiry = encoding::decode_keep_until_ms(data);
    match encoding::decode(data, REVISION) {
        Ok(Decoded { record, placement }) => {
            assert_eq!(expiry, Ok(placement.keep_until_ms), "a sweep and a reader differ");
            let again = encoding::decode(&encoding::encode(&record, &placement), REVISION);
            assert!(again == Ok(Decoded { record, placement }), "it changes when it is written again");
        }
        Err(error) => assert!(matches!(error, StoreError::Corrupt { .. }), "{error:?}"),
    }
}

/// Records to begin with, one in each state.
pub fn stored_forms() -> Vec<Vec<u8>> {
    use crate::record::world::{begin_of, complete, fingerprint, release, resolve};
    use crate::record::{Begin, Command, Disposition, OnLapse, Resolution, Seen, Timestamp, decide};
    let placement = encoding::Placement { lock_lease: 7, keep_until_ms: 1_000 };
    let begin = Begin { fingerprint: fingerprint("red"), on_lapse: OnLapse::Hold, ..begin_of(1) };
    let commands = [
        Command::Begin(begin),
        release(1, Disposition::InDoubt),
        resolve(1, Resolution::Retry),
        Command::Begin(begin_of(2)),
        complete(1, "done"),
    ];
    let (mut current, mut stored) = (None, Vec::new());
    for command in commands {
        let seen = current.as_ref().map(|record| Seen { record, lock: crate::record::Lock::Held });
        if let crate::record::Decision::Write(change) = decide(&command, seen, Timestamp::from_micros(1)) {
            current = change.into_next().map(|record| record.written_at(1));
            stored.extend(current.as_ref().map(|record| encoding::encode(record, &placement)));
        }
    }
    stored
}

/// The name of a key in either store: a prefix, a namespace and a key, each ended by a line break but the last.
pub fn name(data: &[u8]) {
    let mut parts = data.splitn(3, |&byte| byte == b'\n');
    let (Some(prefix), Some(namespace), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
        return;
    };
    let Some(namespace) = std::str::from_utf8(namespace).ok().and_then(Namespace::new) else { return };
    etcd::fuzzing::foreign(key, &namespace);
    let (Ok(prefix), Some(key)) =
        (std::str::from_utf8(prefix), std::str::from_utf8(key).ok().and_then(Key::new))
    else {
        return;
    };
    let key = RecordKey { namespace, key };
    etcd::fuzzing::name(prefix, &key);
    embedded::fuzzing::row(&key);
}

/// Names to begin with.
pub fn names() -> Vec<Vec<u8>> {
    ["\norders\norder-1", "a/b\nr\nl/0000000000000001", "l\n0\n/\0\n", "p\nn\n00000000000000ff"]
        .map(|name| name.as_bytes().to_vec())
        .into()
}
