//! What many watchers are sent alike is encoded once.
//!
//! A change goes to all who watch its kind as one object, at about the same time. Whole objects in JSON are copied from the
//! object's own bytes; what has to be made of them, in protobuf or as metadata alone, is kept for the next watcher while
//! it is among the last few, as upstream's watch cache does with what it serializes. Knows nothing of how it is made.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use meta::{Object, Status};

use super::negotiated::{Format, View};

/// Most objects kept: a batch of changes, in a form or two.
const KEPT: usize = 128;
/// Most bytes kept.
const KEPT_BYTES: usize = 2 << 20;

struct Encoded {
    /// Held, so that no other object comes to lie where it does.
    object: Arc<Object>,
    form: (Format, View),
    bytes: Bytes,
}

#[derive(Default)]
struct Recent {
    /// The newest last.
    encoded: VecDeque<Encoded>,
    bytes: usize,
}

impl Recent {
    fn get(&self, object: &Arc<Object>, form: (Format, View)) -> Option<Bytes> {
        let found = |encoded: &&Encoded| Arc::ptr_eq(&encoded.object, object) && encoded.form == form;
        self.encoded.iter().rev().find(found).map(|encoded| encoded.bytes.clone())
    }

    fn add(&mut self, encoded: Encoded) {
        if encoded.bytes.len() > KEPT_BYTES {
            return;
        }
        self.bytes += encoded.bytes.len();
        self.encoded.push_back(encoded);
        while self.encoded.len() > KEPT || self.bytes > KEPT_BYTES {
            self.bytes -= self.encoded.pop_front().map_or(0, |oldest| oldest.bytes.len());
        }
    }
}

static RECENT: Mutex<Recent> = Mutex::new(Recent { encoded: VecDeque::new(), bytes: 0 });

/// The object in a form, made unless it was made a moment ago. Watchers that come at the same time may each make it.
pub fn once(
    object: &Arc<Object>,
    form: (Format, View),
    make: impl FnOnce() -> Result<Bytes, Status>,
) -> Result<Bytes, Status> {
    let recent = || RECENT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(bytes) = recent().get(object, form) {
        return Ok(bytes);
    }
    let bytes = make()?;
    recent().add(Encoded { object: object.clone(), form, bytes: bytes.clone() });
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_last_few_are_kept() {
        let object = |name: &str| {
            Arc::new(Object::from_value(&json!({"kind": "A", "apiVersion": "v1", "metadata": {"name": name}})).unwrap())
        };
        let whole = (Format::Protobuf, View::Whole);
        let one = object("one");
        let mut recent = Recent::default();
        let add = |recent: &mut Recent, object: &Arc<Object>, form, bytes: Vec<u8>| {
            recent.add(Encoded { object: object.clone(), form, bytes: bytes.into() })
        };
        add(&mut recent, &one, whole, vec![1]);
        assert_eq!(recent.get(&one, whole).as_deref(), Some(&[1][..]));
        assert_eq!(recent.get(&one, (Format::Json, View::Metadata)), None, "another form");
        assert_eq!(recent.get(&object("one"), whole), None, "another object that says the same");
        add(&mut recent, &object("too large"), whole, vec![0; KEPT_BYTES + 1]);
        assert!(recent.get(&one, whole).is_some(), "what does not fit pushes nothing out");
        for _ in 0..KEPT {
            add(&mut recent, &object("other"), whole, vec![2]);
        }
        assert_eq!((recent.get(&one, whole), recent.encoded.len(), recent.bytes), (None, KEPT, KEPT));
        add(&mut recent, &object("large"), whole, vec![0; KEPT_BYTES]);
        assert_eq!((recent.encoded.len(), recent.bytes), (1, KEPT_BYTES));
    }
}
