//! The store's words as messages.

use super::key;
use crate::etcdserverpb::{self as pb, event::EventType};
use crate::{Change, ChangeKind, KeyValue, LeaseId};

/// A key with its value, or, for `keys_only`, without.
pub fn key_value(kv: KeyValue, keys_only: bool) -> pb::KeyValue {
    pb::KeyValue {
        key: key::to_bytes(&kv.key),
        create_revision: kv.create_revision as i64,
        mod_revision: kv.mod_revision as i64,
        version: kv.version as i64,
        value: if keys_only { Default::default() } else { kv.value },
        lease: kv.lease.map_or(0, |lease| lease.0),
    }
}

/// A change as an event, with what was before when asked for.
pub fn event(change: &Change, previous: bool) -> pb::Event {
    let (kind, kv) = match &change.kind {
        ChangeKind::Put(kv) => (EventType::Put, key_value(kv.clone(), false)),
        ChangeKind::Delete => {
            let key = key::to_bytes(&change.key);
            (EventType::Delete, pb::KeyValue { key, mod_revision: change.revision as i64, ..Default::default() })
        }
    };
    let prev_kv = change.previous.as_ref().filter(|_| previous).map(|kv| key_value(kv.clone(), false));
    pb::Event { r#type: kind.into(), kv: Some(kv), prev_kv }
}

/// A lease's name; 0 means none.
pub fn lease(id: i64) -> Option<LeaseId> {
    (id != 0).then_some(LeaseId(id))
}
