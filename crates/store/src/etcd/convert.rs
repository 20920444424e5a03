//! etcd's answers and errors in this crate's words.

use std::time::Duration;

use bytes::Bytes;
use etcd_client::{Error, Event, EventType, ResponseHeader};

use crate::{Change, ChangeKind, Key, KeyValue, LeaseId, Revision, StoreError, limits};

// gRPC's codes, by number.
const CANCELLED: i32 = 1;
const OUT_OF_RANGE: i32 = 11;
const UNAVAILABLE: i32 = 14;

/// The revision in an answer's header.
pub fn revision_of(header: Option<&ResponseHeader>) -> Revision {
    header.map_or(0, |header| header.revision() as Revision)
}

fn key_of(key: &[u8]) -> Result<Key, StoreError> {
    match std::str::from_utf8(key) {
        Ok(key) => Ok(Key::from(key)),
        Err(_) => Err(StoreError::Corrupt(format!("a key in etcd is not text: {}", key.escape_ascii()))),
    }
}

fn lease_of(lease: i64) -> Option<LeaseId> {
    (lease != 0).then_some(LeaseId(lease))
}

/// A key-value pair; the value moves.
pub fn key_value(kv: etcd_client::KeyValue) -> Result<KeyValue, StoreError> {
    let (create, modified, version, lease) = (kv.create_revision(), kv.mod_revision(), kv.version(), kv.lease());
    let (key, value) = kv.into_key_value();
    Ok(KeyValue {
        key: key_of(&key)?,
        value: super::owned(value),
        create_revision: create as Revision,
        mod_revision: modified as Revision,
        version: version as u64,
        lease: lease_of(lease),
    })
}

fn borrowed(key: Key, kv: &etcd_client::KeyValue) -> KeyValue {
    KeyValue {
        key,
        value: Bytes::copy_from_slice(kv.value()),
        create_revision: kv.create_revision() as Revision,
        mod_revision: kv.mod_revision() as Revision,
        version: kv.version() as u64,
        lease: lease_of(kv.lease()),
    }
}

/// A watch event.
pub fn change(event: &Event) -> Result<Change, StoreError> {
    let Some(kv) = event.kv() else { return Err(StoreError::Unavailable("etcd sent an event without a key".into())) };
    let key = key_of(kv.key())?;
    let kind = match event.event_type() {
        EventType::Put => ChangeKind::Put(borrowed(key.clone(), kv)),
        EventType::Delete => ChangeKind::Delete,
    };
    let previous = event.prev_kv().map(|previous| borrowed(key.clone(), previous));
    Ok(Change { key, revision: kv.mod_revision() as Revision, kind, previous })
}

fn code(error: &Error) -> Option<(i32, &str)> {
    match error {
        Error::GRpcStatus(status) => Some((status.code() as i32, status.message())),
        _ => None,
    }
}

/// Whether to try again: a read whenever etcd was away, a write only when it never left.
pub fn retry(error: &Error, idempotent: bool) -> bool {
    match code(error) {
        Some((UNAVAILABLE, message)) => idempotent || message.contains("connect error"),
        // The connection broke under the request.
        Some((CANCELLED, _)) => idempotent,
        _ => false,
    }
}

/// No answer came in time.
pub fn silent(name: &str, timeout: Duration) -> StoreError {
    StoreError::Unavailable(format!("no answer from etcd at {name} within {} s", timeout.as_secs_f32()))
}

/// An error of etcd or of the way to it. Revisions and leases that its message does not name are 0.
pub fn map_error(name: &str, error: Error) -> StoreError {
    use std::error::Error as _;
    let Some((code, message)) = code(&error) else {
        return match error {
            Error::LeaseKeepAliveError(message) if message.contains("lease not found") => {
                StoreError::LeaseNotFound(LeaseId(0))
            }
            Error::InvalidArgs(message) => StoreError::Invalid(message),
            Error::InvalidUri(message) => StoreError::Invalid(format!("etcd endpoint: {message}")),
            other => StoreError::Unavailable(format!("etcd at {name}: {other}")),
        };
    };
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
    } else if code == OUT_OF_RANGE && says("message length too large") {
        StoreError::TooLarge { size: 0, limit: super::MAX_ANSWER_BYTES }
    } else if says("database space exceeded") {
        StoreError::Full(message.to_owned())
    } else if says("duplicate key given") || says("key is not provided") || says("too many operations") {
        StoreError::Invalid(message.to_owned())
    } else {
        let mut text = format!("etcd at {name}: {message}");
        // The cause names what the message leaves out: the address, the refused connection, the certificate.
        let Error::GRpcStatus(status) = &error else { return StoreError::Unavailable(text) };
        let mut cause = status.source();
        while let Some(error) = cause {
            let said = error.to_string();
            if !text.ends_with(&said) {
                text = format!("{text}: {said}");
            }
            cause = error.source();
        }
        StoreError::Unavailable(text)
    }
}
