//! Every limit of a record, in one place, with the relations between them checked by the compiler.

use std::time::Duration;

/// The longest namespace, in bytes.
pub const NAMESPACE_MAX_BYTES: usize = 63;
/// The longest key, in bytes of UTF-8.
pub const KEY_MAX_BYTES: usize = 512;
/// The longest fingerprint, in bytes: room for SHA-512.
pub const FINGERPRINT_MAX_BYTES: usize = 64;
/// The longest owner, in bytes of UTF-8.
pub const OWNER_MAX_BYTES: usize = 256;
/// The longest reason of a Release, in bytes of UTF-8.
pub const REASON_MAX_BYTES: usize = 1_024;
/// The largest encoded outcome, in bytes; a server may be configured for less.
pub const OUTCOME_MAX_BYTES: usize = 1 << 20;
/// The largest checkpoint, in bytes.
pub const CHECKPOINT_MAX_BYTES: usize = 64 << 10;

/// The shortest lock TTL. etcd turns a lease of 1 s into one of 2 s.
pub const LOCK_TTL_MIN: Duration = Duration::from_secs(2);
/// The longest lock TTL: a holder with longer work renews.
pub const LOCK_TTL_MAX: Duration = Duration::from_secs(3_600);
/// The lock TTL of a Begin that names none.
pub const LOCK_TTL_DEFAULT: Duration = Duration::from_secs(30);

/// The shortest retention.
pub const RETENTION_MIN: Duration = Duration::from_secs(60);
/// The longest retention.
pub const RETENTION_MAX: Duration = Duration::from_secs(31 * 24 * 3_600);
/// The retention of a Begin that names none.
pub const RETENTION_DEFAULT: Duration = Duration::from_secs(24 * 3_600);
/// How much longer a store keeps a record than it announces: the clocks of servers may differ by this.
pub const RETENTION_MARGIN: Duration = Duration::from_secs(120);

/// The most records on one page of a List.
pub const PAGE_SIZE_MAX: usize = 1_000;
/// The records on a page of a List that names no size.
pub const PAGE_SIZE_DEFAULT: usize = 100;

/// The largest stored value, in bytes: an outcome, or a checkpoint, and what surrounds them.
pub const STORED_MAX_BYTES: usize = OUTCOME_MAX_BYTES + (16 << 10);

/// What etcd takes in one request by default, in bytes.
const ETCD_REQUEST_MAX_BYTES: usize = 1_536 << 10;

const _: () = assert!(LOCK_TTL_MIN.as_secs() < LOCK_TTL_DEFAULT.as_secs());
const _: () = assert!(LOCK_TTL_DEFAULT.as_secs() < LOCK_TTL_MAX.as_secs());
const _: () = assert!(RETENTION_MIN.as_secs() < RETENTION_DEFAULT.as_secs());
const _: () = assert!(RETENTION_DEFAULT.as_secs() < RETENTION_MAX.as_secs());
const _: () = assert!(CHECKPOINT_MAX_BYTES < OUTCOME_MAX_BYTES);
// A record in progress has a checkpoint and no outcome, a completed one the reverse.
const _: () = assert!(OWNER_MAX_BYTES + REASON_MAX_BYTES + FINGERPRINT_MAX_BYTES + 1_024 < 16 << 10);
// The largest record and its key must fit into one request of etcd.
const _: () = assert!(STORED_MAX_BYTES + 4 * (KEY_MAX_BYTES + NAMESPACE_MAX_BYTES) < ETCD_REQUEST_MAX_BYTES);
const _: () = assert!(PAGE_SIZE_DEFAULT <= PAGE_SIZE_MAX);
