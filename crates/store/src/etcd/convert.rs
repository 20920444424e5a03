//! etcd's answers and errors in this crate's words.

use std::time::Duration;

use tonic::{Code, Status};

use crate::etcdserverpb::{self as pb, event::EventType};
use crate::{Change, ChangeKind, Key, KeyValue, LeaseId, Revision, StoreError, limits};

/// The revision in an answer's header.
pub fn revision_of(header: &Option<pb::ResponseHeader>) -> Revision {
    header.map_or(0, |header| header.revision as Revision)
}

fn key_of(key: &[u8]) -> Result<Key, StoreError> {
    match std::str::from_utf8(key) {
        Ok(key) => Ok(Key::from(key)),
        Err(_) => Err(StoreError::Corrupt(format!("a key in etcd is not text: {}", key.escape_ascii()))),
    }
}

/// A key-value pair; the value is shared.
pub fn key_value(kv: pb::KeyValue) -> Result<KeyValue, StoreError> {
    let key = key_of(&kv.key)?;
    Ok(named(key, kv))
}

fn named(key: Key, kv: pb::KeyValue) -> KeyValue {
    KeyValue {
        key,
        value: kv.value,
        create_revision: kv.create_revision as Revision,
        mod_revision: kv.mod_revision as Revision,
        version: kv.version as u64,
        lease: (kv.lease != 0).then_some(LeaseId(kv.lease)),
    }
}

/// A watch event.
pub fn change(event: pb::Event) -> Result<Change, StoreError> {
    let kind = event.r#type();
    let Some(kv) = event.kv else { return Err(StoreError::Unavailable("etcd sent an event without a key".into())) };
    let key = key_of(&kv.key)?;
    let revision = kv.mod_revision as Revision;
    let kind = match kind {
        EventType::Put => ChangeKind::Put(named(key.clone(), kv)),
        EventType::Delete => ChangeKind::Delete,
    };
    let previous = event.prev_kv.map(|previous| named(key.clone(), previous));
    Ok(Change { key, revision, kind, previous })
}

/// Whether to try again: a read whenever etcd was away, a write only when it never left.
pub fn retry(error: &Status, idempotent: bool) -> bool {
    match error.code() {
        Code::Unavailable => idempotent || error.message().contains("connect error"),
        // The connection broke under the request.
        Code::Cancelled => idempotent,
        _ => false,
    }
}

/// No answer came in time.
pub fn silent(name: &str, timeout: Duration) -> StoreError {
    StoreError::Unavailable(format!("no answer from etcd at {name} within {} s", timeout.as_secs_f32()))
}

/// An error of etcd or of the way to it. Revisions and leases that its message does not name are 0.
pub fn map_error(name: &str, error: &Status) -> StoreError {
    let message = error.message();
    let says = |text: &str| message.contains(text);
    if says("no leader") || says("leader changed") || says("etcdserver: request timed out") {
        return StoreError::Unavailable(format!(
            "etcd at {name} has no leader: most of its members are down or cut off from each other ({message})"
        ));
    }
    if says("required revision has been compacted") {
        StoreError::Compacted { compacted: 0, current: 0 }
    } else if says("required revision is a future revision") {
        StoreError::FutureRevision { requested: 0, current: 0 }
    } else if says("requested lease not found") {
        StoreError::LeaseNotFound(LeaseId(0))
    } else if says("request is too large") {
        StoreError::TooLarge { size: 0, limit: limits::MAX_REQUEST_BYTES }
    } else if error.code() == Code::OutOfRange && says("message length too large") {
        StoreError::TooLarge { size: 0, limit: super::MAX_ANSWER_BYTES }
    } else if says("database space exceeded") {
        StoreError::Full(message.to_owned())
    } else if says("duplicate key given") || says("key is not provided") || says("too many operations") {
        StoreError::Invalid(message.to_owned())
    } else {
        StoreError::Unavailable(format!("etcd at {name}: {}", said(error)))
    }
}

/// An error's message with its causes, which name what it leaves out: the address, the refused connection, the certificate.
pub fn said(error: &Status) -> String {
    let causes = std::error::Error::source(error).map(|cause| format!(": {}", super::causes(cause)));
    format!("{}{}", error.message(), causes.unwrap_or_default())
}
