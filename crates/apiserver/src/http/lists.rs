//! Lists of objects as JSON, made as they are sent.
//!
//! Objects are encoded already; a list is their bytes between commas. It goes out in pieces of one TLS record, each copied
//! together only when the connection has room for it: a list takes no more memory than what is under way of it, and that
//! memory is used again and again.

use std::sync::Arc;

use bytes::Bytes;
use meta::Object;

/// One HTTP/2 DATA frame in one TLS record: header and authentication tag deducted from 16 KiB.
pub const PIECE: usize = 16_375;

/// How a list ends.
const END: &[u8] = b"]}\n";

/// The pieces of a list's JSON, all but the last [`PIECE`] bytes long.
pub struct Pieces {
    items: std::vec::IntoIter<Arc<Object>>,
    /// Items do not say their kind.
    bare: bool,
    /// What comes next: text made for the list, of which so much is gone, then stored bytes.
    text: Vec<u8>,
    gone: usize,
    stored: Bytes,
    first: bool,
    ended: bool,
}

impl Pieces {
    /// `head` is the list's JSON without items; `bare` items leave out their kind, which the list says.
    pub fn new(head: &str, items: Vec<Arc<Object>>, bare: bool) -> Self {
        let mut text = head.strip_suffix('}').unwrap_or(head).as_bytes().to_vec();
        text.extend_from_slice(b",\"items\":[");
        let items = items.into_iter();
        Pieces { items, bare, text, gone: 0, stored: Bytes::new(), first: true, ended: false }
    }

    /// The length of all that is to come, or a little more.
    pub fn about(&self) -> usize {
        self.text.len() + END.len() + self.items.as_slice().iter().map(|object| object.json_len() + 1).sum::<usize>()
    }

    /// Copies what fits of what comes next.
    fn fill(&mut self, piece: &mut Vec<u8>) {
        let text = &self.text[self.gone..];
        let text = &text[..text.len().min(PIECE - piece.len())];
        piece.extend_from_slice(text);
        self.gone += text.len();
        let stored = self.stored.split_to(self.stored.len().min(PIECE - piece.len()));
        piece.extend_from_slice(&stored);
    }

    /// Makes ready what comes after; says whether there is anything.
    fn advance(&mut self) -> bool {
        if self.gone < self.text.len() || !self.stored.is_empty() {
            return true;
        }
        self.text.clear();
        self.gone = 0;
        match self.items.next() {
            Some(object) => {
                if !std::mem::take(&mut self.first) {
                    self.text.push(b',');
                }
                let stored = object.begin_json(self.bare, &mut self.text);
                self.stored = object.raw().slice_ref(stored);
            }
            None if self.ended => return false,
            None => {
                self.ended = true;
                self.text.extend_from_slice(END);
            }
        }
        true
    }
}

impl Iterator for Pieces {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let mut piece = Vec::new();
        while piece.len() < PIECE && self.advance() {
            if piece.is_empty() {
                piece.reserve_exact(PIECE);
            }
            self.fill(&mut piece);
        }
        (!piece.is_empty()).then(|| piece.into())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn object(at: usize, bytes: usize) -> Arc<Object> {
        let body = json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": format!("n{at}"), "uid": "u"}, "data": {"k": "x".repeat(bytes)}});
        let stored = meta::object::encode_stored(&body).expect("JSON");
        Arc::new(Object::from_stored(stored, 7).expect("an object"))
    }

    #[test]
    fn pieces_are_records_and_make_the_list() {
        // Objects of no bytes, of some, of more than a piece, and lists that end where a piece does.
        for sizes in [vec![], vec![0], vec![1; 100], vec![5000; 20], vec![40_000, 1, 40_000], vec![0; 3000]] {
            for bare in [true, false] {
                let items: Vec<_> = sizes.iter().enumerate().map(|(at, bytes)| object(at, *bytes)).collect();
                let pieces = Pieces::new(r#"{"kind":"L"}"#, items.clone(), bare);
                let about = pieces.about();
                let pieces: Vec<Bytes> = pieces.collect();
                let (last, full) = pieces.split_last().expect("a head at least");
                assert!(full.iter().all(|piece| piece.len() == PIECE) && (1..=PIECE).contains(&last.len()));
                let text = pieces.concat();
                assert!(text.len() <= about && text.ends_with(END), "{} of {about}", text.len());
                let wanted: Vec<Value> = items
                    .iter()
                    .map(|object| {
                        let mut value = object.value().expect("JSON");
                        if bare {
                            value
                                .as_object_mut()
                                .expect("an object")
                                .retain(|key, _| key != "kind" && key != "apiVersion");
                        }
                        value
                    })
                    .collect();
                let made: Value = serde_json::from_slice(&text).expect("JSON");
                assert_eq!(made, json!({"kind": "L", "items": wanted}), "{sizes:?}");
            }
        }
    }
}
