//! Kubernetes' protobuf: trees ↔ bytes by schema, and the `k8s\0` envelope around them.
//!
//! Built-in kinds only; upstream, too, serves CRs as JSON alone. Bytes come out as upstream's own encoder writes them (ascending
//! tags, sorted maps, zero values of what are no pointers in Go); reading takes any valid encoding, skips unknown fields and
//! is bounded in depth.

mod read;
pub(crate) mod wire;
mod write;

use serde_json::Value;

use crate::Gvk;
use crate::schema::{Types, View};

pub use read::read_message;
pub use write::write_message;

/// The first bytes of every object in protobuf.
pub const MAGIC: &[u8; 4] = b"k8s\0";

/// The media type of protobuf bodies.
pub const CONTENT_TYPE: &str = "application/vnd.kubernetes.protobuf";

/// Why bytes are no object, or a tree is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtobufError {
    #[error("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")]
    Prefix,
    #[error("unexpected EOF")]
    Truncated,
    #[error("proto: {0}")]
    Malformed(&'static str),
    #[error("no kind {kind:?} is registered for version {api_version:?}")]
    UnknownKind { api_version: String, kind: String },
    #[error("{field}: {why}")]
    Value { field: String, why: &'static str },
}

/// An opened envelope (`runtime.Unknown`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Envelope<'b> {
    pub api_version: &'b str,
    pub kind: &'b str,
    /// The message.
    pub raw: &'b [u8],
    pub content_type: &'b str,
}

impl<'b> Envelope<'b> {
    /// Opens an envelope.
    pub fn open(bytes: &'b [u8]) -> Result<Self, ProtobufError> {
        let bytes = bytes.strip_prefix(MAGIC).ok_or(ProtobufError::Prefix)?;
        let mut envelope = Self::default();
        let mut reader = wire::Reader::new(bytes);
        while let Some((tag, value)) = reader.field()? {
            match tag {
                1 => {
                    let mut meta = wire::Reader::new(value.bytes()?);
                    while let Some((tag, value)) = meta.field()? {
                        match tag {
                            1 => envelope.api_version = value.text()?,
                            2 => envelope.kind = value.text()?,
                            _ => {}
                        }
                    }
                }
                2 => envelope.raw = value.bytes()?,
                4 => envelope.content_type = value.text()?,
                _ => {}
            }
        }
        Ok(envelope)
    }

    /// The kind the envelope names.
    pub fn gvk(&self) -> Gvk {
        let (group, version) = self.api_version.split_once('/').unwrap_or(("", self.api_version));
        Gvk::new(group, version, self.kind)
    }
}

/// Whether bytes are an object in protobuf.
pub fn is_protobuf(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC)
}

/// Reads an object: the envelope says its kind, `types` its schema. The tree has apiVersion and kind.
pub fn decode(types: &Types, bytes: &[u8]) -> Result<Value, ProtobufError> {
    let envelope = Envelope::open(bytes)?;
    let view = types.kind(&envelope.gvk()).ok_or_else(|| ProtobufError::UnknownKind {
        api_version: envelope.api_version.into(),
        kind: envelope.kind.into(),
    })?;
    decode_as(view, &envelope)
}

/// Reads an envelope's message as a type of the caller's choice (bodies that may leave out their kind).
pub fn decode_as(view: View<'_>, envelope: &Envelope<'_>) -> Result<Value, ProtobufError> {
    let mut value = read_message(view, envelope.raw)?;
    if let Value::Object(map) = &mut value {
        for (key, text) in [("apiVersion", envelope.api_version), ("kind", envelope.kind)] {
            if !text.is_empty() {
                map.insert(key.into(), text.into());
            }
        }
    }
    Ok(value)
}

/// Writes an object with its envelope; the tree names its apiVersion and kind.
pub fn encode(view: View<'_>, value: &Value) -> Result<Vec<u8>, ProtobufError> {
    let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default();
    let mut raw = Vec::with_capacity(1024);
    write_message(view, value, &mut raw)?;
    Ok(seal(text("apiVersion"), text("kind"), &raw))
}

/// Puts a message into an envelope.
pub fn seal(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(raw.len() + api_version.len() + kind.len() + 32);
    begin_envelope(api_version, kind, raw.len(), &mut out);
    out.extend_from_slice(raw);
    out.extend_from_slice(ENVELOPE_END);
    out
}

/// An envelope up to its message.
fn begin_envelope(api_version: &str, kind: &str, raw_bytes: usize, out: &mut Vec<u8>) {
    out.extend_from_slice(MAGIC);
    wire::message(out, 1, |out| {
        wire::bytes(out, 1, api_version.as_bytes());
        wire::bytes(out, 2, kind.as_bytes());
    });
    wire::key(out, 2, 2);
    wire::varint(out, raw_bytes as u64);
}

/// Behind the message: no encoding and no media type, which are written nevertheless.
const ENVELOPE_END: &[u8] = &[3 << 3 | 2, 0, 4 << 3 | 2, 0];

/// A list's envelope in pieces that follow each other, those of items at least `piece` bytes long but for the last. An
/// item's tree is asked for when it is its turn, so that there is one of them at a time. `item` is the schema of one, `kind`
/// the list's.
pub fn encode_list<E: From<ProtobufError>>(
    item: View<'_>,
    (api_version, kind): (&str, &str),
    metadata: &Value,
    items: impl IntoIterator<Item = Result<Value, E>>,
    piece: usize,
) -> Result<Vec<Vec<u8>>, E> {
    let list_meta = item.types.named(LIST_META).ok_or(ProtobufError::Malformed("no ListMeta"))?;
    let (mut pieces, mut last) = (vec![Vec::new()], Vec::new());
    wire::message(&mut last, 1, |out| write_message(list_meta, metadata, out))?;
    for value in items {
        if last.len() >= piece {
            pieces.push(std::mem::take(&mut last));
        }
        let value = value?;
        wire::message(&mut last, 2, |out| write_message(item, &value, out))?;
    }
    pieces.push(last);
    let raw_bytes = pieces.iter().map(Vec::len).sum();
    begin_envelope(api_version, kind, raw_bytes, &mut pieces[0]);
    pieces.push(ENVELOPE_END.to_vec());
    Ok(pieces)
}

const LIST_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta";

impl From<ProtobufError> for crate::Status {
    fn from(error: ProtobufError) -> Self {
        Self::internal(error)
    }
}

/// One frame of a watch: the length in four bytes, then a `WatchEvent` whose object is an object with its envelope.
pub fn watch_frame(kind: &str, object: &[u8]) -> Vec<u8> {
    let mut out = vec![0; 4];
    wire::bytes(&mut out, 1, kind.as_bytes());
    wire::message(&mut out, 2, |out| wire::bytes(out, 1, object));
    let length = (out.len() - 4) as u32;
    out[..4].copy_from_slice(&length.to_be_bytes());
    out
}

#[cfg(test)]
mod tests;
