//! What fuzzing enters here.

use super::*;

/// A key's name in etcd below a prefix gives the key back, and is the name of nothing else.
pub fn name(prefix: &str, key: &RecordKey) {
    let Ok(keyspace) = Keyspace::new(prefix) else { return };
    let name = keyspace.record(key);
    assert_eq!(keyspace.key_of(&key.namespace, name.as_bytes()), Some(key.key.clone()));
    assert_eq!(keyspace.lease_of(name.as_bytes()), None);
    assert_ne!(name, keyspace.meta());
}

/// What somebody put into etcd below the prefix: taken for ours only if we would have called it so.
pub fn foreign(rest: &[u8], namespace: &Namespace) {
    let Ok(keyspace) = Keyspace::new(PREFIX_DEFAULT) else { return };
    let name = [keyspace.records(namespace).as_bytes(), rest].concat();
    if let Some(key) = keyspace.key_of(namespace, &name) {
        let key = RecordKey { namespace: namespace.clone(), key };
        assert_eq!(keyspace.record(&key).as_bytes(), name);
    }
    let name = [keyspace.sentinels().as_bytes(), rest].concat();
    if let Some(lease) = keyspace.lease_of(&name) {
        assert_eq!(keyspace.sentinel(lease).as_bytes(), name);
    }
}
