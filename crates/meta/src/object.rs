//! The stored object: immutable, encoded once, shared by pointer.
//!
//! An [`Object`] keeps the JSON bytes as they lie in the store, without `resourceVersion`, and the offset at which that
//! one field is spliced in when the object is written out. So the store's record, the watch cache, every list, every
//! watch event and every in-process informer share one buffer. Only its metadata is parsed; the body is parsed by
//! whoever asks ([`Object::value`] on writes, [`Object::typed`] by components, once for all of them).

use std::any::Any;
use std::borrow::Cow;
use std::sync::{Arc, LazyLock, OnceLock};

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::alike::{Alike, hash_of};
use crate::labels::Labels;
use crate::managed::{apart, without_managed_fields};

/// `metadata.ownerReferences[]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OwnerReference {
    pub api_version: String,
    pub kind: String,
    pub name: String,
    pub uid: String,
    pub controller: Option<bool>,
    pub block_owner_deletion: Option<bool>,
}

/// The part of `ObjectMeta` the machinery itself needs. Follows `k8s.io/apimachinery` `meta/v1.ObjectMeta`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Meta {
    pub name: Box<str>,
    /// Empty for cluster-scoped objects.
    pub namespace: Box<str>,
    pub uid: Box<str>,
    pub generation: i64,
    #[serde(deserialize_with = "or_default")]
    pub labels: Labels,
    /// RFC 3339, whole seconds, `Z`.
    #[serde(deserialize_with = "or_default")]
    pub creation_timestamp: Box<str>,
    /// Set while the object waits for its finalizers or grace period.
    pub deletion_timestamp: Option<Box<str>>,
    pub deletion_grace_period_seconds: Option<i64>,
    #[serde(deserialize_with = "exact")]
    pub finalizers: Vec<Box<str>>,
    #[serde(deserialize_with = "list")]
    pub owner_references: Arc<[OwnerReference]>,
    /// As the wire spells it; [`Object::resource_version`] is the one to use.
    #[serde(rename = "resourceVersion")]
    wire_version: Option<Box<str>>,
}

/// Go clients write `null` for empty maps and lists; it means the same as leaving the field out.
fn or_default<'de, D: serde::Deserializer<'de>, T: Deserialize<'de> + Default>(d: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(d)?.unwrap_or_default())
}

/// As [`or_default`], with no room to spare: hardly anything is ever added.
fn exact<'de, D: serde::Deserializer<'de>, T: Deserialize<'de>>(d: D) -> Result<Vec<T>, D::Error> {
    let mut list: Vec<T> = or_default(d)?;
    list.shrink_to_fit();
    Ok(list)
}

fn list<'de, D: serde::Deserializer<'de>, T: Deserialize<'de>>(d: D) -> Result<Arc<[T]>, D::Error> {
    let list: Vec<T> = or_default(d)?;
    Ok(if list.is_empty() { Arc::default() } else { list.into() })
}

/// Owners that some object kept for long has: a controller's objects all have the same.
static OWNERS: LazyLock<Alike<[OwnerReference]>> = LazyLock::new(Alike::default);

impl Meta {
    /// Shares labels and owners with objects that have the same, for those who keep very many objects.
    fn share(&mut self) {
        if !self.owner_references.is_empty() {
            self.owner_references = OWNERS.one(hash_of(&self.owner_references), self.owner_references.clone());
        }
        self.labels.share();
    }

    /// `namespace/name`, or `name` for cluster-scoped objects: the key components use, as client-go's
    /// `MetaNamespaceKeyFunc` writes it.
    pub fn key(&self) -> String {
        object_key(&self.namespace, &self.name)
    }

    pub fn label(&self, name: &str) -> Option<&str> {
        self.labels.get(name)
    }

    /// The owner with `controller: true`.
    pub fn controller(&self) -> Option<&OwnerReference> {
        self.owner_references.iter().find(|o| o.controller == Some(true))
    }
}

/// `namespace/name`, or `name` when the namespace is empty.
pub fn object_key(namespace: &str, name: &str) -> String {
    if namespace.is_empty() { name.to_string() } else { format!("{namespace}/{name}") }
}

/// Splits what [`object_key`] joined: `(namespace, name)`.
pub fn split_key(key: &str) -> (&str, &str) {
    key.split_once('/').unwrap_or(("", key))
}

/// Where `resourceVersion` goes when the object is written.
#[derive(Clone, Copy, Debug)]
enum Splice {
    /// After this many bytes (just behind `"metadata":{`, which is never empty).
    At(u32),
    /// The bytes already hold it: the object came over the wire.
    Present,
}

#[derive(Deserialize)]
struct Head {
    #[serde(default, rename = "apiVersion")]
    api_version: Box<str>,
    #[serde(default)]
    kind: Box<str>,
    #[serde(default)]
    metadata: Meta,
}

/// Why bytes are not an object.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    #[error("not an object: {0}")]
    Json(#[from] serde_json::Error),
    #[error("stored object does not begin with its kind, apiVersion and metadata")]
    NotCanonical,
    #[error("invalid resourceVersion {0:?}")]
    ResourceVersion(String),
}

/// One version of one object.
pub struct Object {
    pub meta: Meta,
    pub api_version: Box<str>,
    pub kind: Box<str>,
    /// The store's revision at which this version was written; 0 before it is stored.
    pub resource_version: u64,
    /// Values of the kind's selectable fields, in the order of its row; filled by the API server.
    pub fields: Box<[Box<str>]>,
    raw: Bytes,
    splice: Splice,
    typed: Views,
}

/// Typed views by their type, each parsed once: a chain, since there are hardly ever two.
#[derive(Default)]
struct Views(OnceLock<Box<(Arc<dyn Any + Send + Sync>, Views)>>);

impl Views {
    fn get<T: Send + Sync + 'static>(&self) -> Option<Arc<T>> {
        let (view, rest) = &**self.0.get()?;
        view.clone().downcast::<T>().ok().or_else(|| rest.get())
    }

    fn add(&self, view: Arc<dyn Any + Send + Sync>) {
        // Of two threads that race the second adds behind the first; the same type twice does no harm.
        if let Err(entry) = self.0.set(Box::new((view, Views::default())))
            && let Some((_, rest)) = self.0.get().map(|b| &**b)
        {
            rest.add(entry.0);
        }
    }
}

impl std::fmt::Debug for Object {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}@{}", self.kind, self.meta.key(), self.resource_version)
    }
}

/// Encodes a body in stored form: kind, apiVersion and metadata first, no `resourceVersion`.
pub fn encode_stored(body: &Value) -> Result<Bytes, ObjectError> {
    encode_stored_with(body, None)
}

/// As [`encode_stored`], with `managedFields` that were written as text and are not in the body.
pub fn encode_stored_with(body: &Value, managed: Option<&str>) -> Result<Bytes, ObjectError> {
    let map = body.as_object().ok_or(ObjectError::NotCanonical)?;
    let mut out = Vec::with_capacity(1024 + managed.map_or(0, |text| 2 * text.len()));
    out.push(b'{');
    for key in ["kind", "apiVersion"] {
        let value = map.get(key).and_then(Value::as_str).ok_or(ObjectError::NotCanonical)?;
        out.extend_from_slice(b"\"");
        out.extend_from_slice(key.as_bytes());
        out.extend_from_slice(b"\":");
        serde_json::to_writer(&mut out, value)?;
        out.push(b',');
    }
    out.extend_from_slice(METADATA);
    let metadata = map.get("metadata").and_then(Value::as_object).ok_or(ObjectError::NotCanonical)?;
    let (mut first, mut managed) = (true, managed);
    let mut field = |out: &mut Vec<u8>, key: &str| {
        if !std::mem::take(&mut first) {
            out.push(b',');
        }
        serde_json::to_writer(&mut *out, key)?;
        out.push(b':');
        Ok::<_, serde_json::Error>(())
    };
    for (key, value) in metadata.iter().filter(|(k, _)| *k != "resourceVersion") {
        if let Some(text) = managed.take_if(|_| key.as_str() > MANAGED_FIELDS) {
            field(&mut out, MANAGED_FIELDS)?;
            out.extend_from_slice(text.as_bytes());
        }
        field(&mut out, key)?;
        serde_json::to_writer(&mut out, value)?;
    }
    if let Some(text) = managed {
        field(&mut out, MANAGED_FIELDS)?;
        out.extend_from_slice(text.as_bytes());
    }
    if first {
        return Err(ObjectError::NotCanonical);
    }
    out.push(b'}');
    for (key, value) in map.iter().filter(|(k, _)| !matches!(k.as_str(), "kind" | "apiVersion" | "metadata")) {
        out.push(b',');
        serde_json::to_writer(&mut out, key)?;
        out.push(b':');
        serde_json::to_writer(&mut out, value)?;
    }
    out.push(b'}');
    out.shrink_to_fit();
    Ok(Bytes::from(out))
}

const MANAGED_FIELDS: &str = "managedFields";
const METADATA: &[u8] = b"\"metadata\":{";
const RESOURCE_VERSION: &[u8] = b"\"resourceVersion\":\"";

impl Object {
    /// An object as the store holds it: canonical order (see [`encode_stored`]), without `resourceVersion`.
    pub fn from_stored(raw: Bytes, resource_version: u64) -> Result<Self, ObjectError> {
        let head: Head = serde_json::from_slice(&raw)?;
        Self::with_meta(raw, head.metadata, head.api_version, head.kind, resource_version)
    }

    /// As [`Object::from_stored`], when the writer still has the body's tree at hand and the bytes need no second parse.
    pub fn from_stored_body(raw: Bytes, body: &Value, resource_version: u64) -> Result<Self, ObjectError> {
        let mut meta = Meta::deserialize(&body["metadata"])?;
        meta.wire_version = None;
        let text = |key: &str| body[key].as_str().unwrap_or_default().into();
        Self::with_meta(raw, meta, text("apiVersion"), text("kind"), resource_version)
    }

    fn with_meta(raw: Bytes, meta: Meta, api_version: Box<str>, kind: Box<str>, rv: u64) -> Result<Self, ObjectError> {
        // Kind and apiVersion hold no braces, so the first match is the object's own metadata.
        let window = &raw[..raw.len().min(512)];
        let at = window.windows(METADATA.len()).position(|w| w == METADATA).ok_or(ObjectError::NotCanonical)?;
        let splice = Splice::At((at + METADATA.len()) as u32);
        Ok(Self {
            meta,
            api_version,
            kind,
            resource_version: rv,
            fields: Box::default(),
            raw,
            splice,
            typed: Views::default(),
        })
    }

    /// An object as it came over the wire, with its `resourceVersion` inside.
    pub fn from_wire(raw: Bytes) -> Result<Self, ObjectError> {
        let mut head: Head = serde_json::from_slice(&raw)?;
        let rv = match head.metadata.wire_version.take().as_deref() {
            None | Some("") => 0,
            Some(rv) => rv.parse().map_err(|_| ObjectError::ResourceVersion(rv.to_string()))?,
        };
        Ok(Self {
            meta: head.metadata,
            api_version: head.api_version,
            kind: head.kind,
            resource_version: rv,
            fields: Box::default(),
            raw,
            splice: Splice::Present,
            typed: Views::default(),
        })
    }

    /// An object from a tree, with whatever `resourceVersion` the tree holds (answers that are not stored).
    pub fn from_value(body: &Value) -> Result<Self, ObjectError> {
        Self::from_wire(Bytes::from(serde_json::to_vec(body)?))
    }

    /// The same object with another body, in stored form, and no version yet. What the body says of the parsed metadata
    /// must be as it was, or be changed by the caller.
    pub fn with_body(&self, raw: Bytes) -> Result<Self, ObjectError> {
        let mut object = Self::with_meta(raw, self.meta.clone(), self.api_version.clone(), self.kind.clone(), 0)?;
        object.fields = self.fields.clone();
        Ok(object)
    }

    /// The same bytes at another version: what a deletion leaves behind carries the deletion's own revision.
    pub fn at_version(&self, resource_version: u64) -> Self {
        Self {
            meta: self.meta.clone(),
            api_version: self.api_version.clone(),
            kind: self.kind.clone(),
            resource_version,
            fields: self.fields.clone(),
            raw: self.raw.clone(),
            splice: self.splice,
            typed: Views::default(),
        }
    }

    /// Leaves out `managedFields`, for those who keep what came over the wire; bytes shared with others stay as they are.
    pub fn trim(&mut self) {
        if let (Splice::Present, Cow::Owned(trimmed)) = (self.splice, without_managed_fields(&self.raw)) {
            self.raw = trimmed.into_boxed_slice().into();
        }
    }

    /// Leaves out all that no view taken before and no field of this struct says. Asking for the body, or for another view,
    /// is an error from now on. Bytes shared with others stay as they are.
    pub fn forget_body(&mut self) {
        if matches!(self.splice, Splice::Present) {
            self.raw = Bytes::new();
            self.meta.share();
        }
    }

    /// The group, version and kind the bytes are written in.
    pub fn gvk(&self) -> crate::Gvk {
        let (group, version) = self.api_version.split_once('/').unwrap_or(("", &self.api_version));
        crate::Gvk::new(group, version, &self.kind)
    }

    /// The bytes as stored: the shared buffer itself, without `resourceVersion` unless it came over the wire.
    pub fn raw(&self) -> &Bytes {
        &self.raw
    }

    /// Length of the JSON that [`Object::write_json`] writes, or a little more.
    pub fn json_len(&self) -> usize {
        self.raw.len() + RESOURCE_VERSION.len() + 22
    }

    /// Appends the object as clients see it.
    pub fn write_json(&self, out: &mut Vec<u8>) {
        let stored = self.begin_json(false, out);
        out.extend_from_slice(stored);
    }

    /// Appends how the JSON begins that clients see, and gives the stored bytes it ends with. A `bare` object is an item of
    /// a list of its kind: without `kind` and `apiVersion`, which the list says.
    pub fn begin_json(&self, bare: bool, out: &mut Vec<u8>) -> &[u8] {
        let at = match self.splice {
            Splice::At(at) => at as usize,
            Splice::Present => {
                if bare && let Ok(Value::Object(mut body)) = self.value() {
                    body.remove("kind");
                    body.remove("apiVersion");
                    // Writing a tree to memory does not fail.
                    let _ = serde_json::to_writer(out, &body);
                    return &[];
                }
                return &self.raw;
            }
        };
        if bare {
            out.push(b'{');
            out.extend_from_slice(METADATA);
        } else {
            out.extend_from_slice(&self.raw[..at]);
        }
        out.extend_from_slice(RESOURCE_VERSION);
        write_decimal(self.resource_version, out);
        out.extend_from_slice(b"\",");
        &self.raw[at..]
    }

    /// The object as clients see it.
    pub fn to_json(&self) -> Bytes {
        let mut out = Vec::with_capacity(self.json_len());
        self.write_json(&mut out);
        out.into()
    }

    /// Parses the whole body, `metadata.resourceVersion` included.
    pub fn value(&self) -> Result<Value, ObjectError> {
        self.parse(&self.raw)
    }

    /// As [`Object::value`], with `managedFields` left the text they are (empty for none).
    pub fn value_apart(&self) -> Result<(Value, String), ObjectError> {
        let Splice::At(at) = self.splice else {
            let mut body = self.value()?;
            let metadata = body.get_mut("metadata").and_then(Value::as_object_mut);
            let managed = metadata.and_then(|metadata| metadata.remove(MANAGED_FIELDS));
            return Ok((body, managed.map(|list| list.to_string()).unwrap_or_default()));
        };
        let (body, managed) = apart(&self.raw, at as usize);
        Ok((self.parse(&body)?, String::from_utf8_lossy(managed).into_owned()))
    }

    fn parse(&self, body: &[u8]) -> Result<Value, ObjectError> {
        let mut body: Value = serde_json::from_slice(body)?;
        if let (Splice::At(_), Some(metadata)) = (self.splice, body.get_mut("metadata").and_then(Value::as_object_mut))
        {
            metadata.insert("resourceVersion".into(), Value::String(self.resource_version.to_string()));
        }
        Ok(body)
    }

    /// As [`Object::typed`], for a type that reads neither `managedFields` nor `resourceVersion`: the bytes are read as they
    /// lie, without a copy.
    pub fn view<T: DeserializeOwned + Send + Sync + 'static>(&self) -> Result<Arc<T>, ObjectError> {
        if let Some(view) = self.typed.get() {
            return Ok(view);
        }
        let Ok(view) = serde_json::from_slice::<T>(&self.raw).map(Arc::new) else { return self.typed() };
        self.typed.add(view.clone());
        Ok(view)
    }

    /// The body as a typed kind, parsed once and shared by all who ask for the same type; `managedFields` are left out.
    pub fn typed<T: DeserializeOwned + Send + Sync + 'static>(&self) -> Result<Arc<T>, ObjectError> {
        if let Some(view) = self.typed.get() {
            return Ok(view);
        }
        let parsed = match self.splice {
            Splice::Present => serde_json::from_slice(&without_managed_fields(&self.raw)),
            Splice::At(_) => serde_json::from_slice(&without_managed_fields(&self.to_json())),
        };
        let view: Arc<T> = Arc::new(match parsed {
            Ok(view) => view,
            Err(error) => {
                // Told as it was found if filling in does not help.
                let mut body = self.value()?;
                date_conditions(&mut body);
                serde_json::from_value(body).map_err(|_| error)?
            }
        });
        self.typed.add(view.clone());
        Ok(view)
    }
}

/// Dates conditions that say no time, as Go reads them: typed kinds here demand a time, Go's clients and servers do not.
fn date_conditions(value: &mut Value) {
    const NEVER: &str = "0001-01-01T00:00:00Z";
    match value {
        Value::Object(map) => {
            for (key, inner) in map {
                let conditions = if key == "conditions" { inner.as_array_mut() } else { None };
                for condition in conditions.into_iter().flatten().filter_map(Value::as_object_mut) {
                    let time = condition.entry("lastTransitionTime").or_insert(Value::Null);
                    if time.is_null() {
                        *time = NEVER.into();
                    }
                }
                date_conditions(inner);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(date_conditions),
        _ => {}
    }
}

fn write_decimal(mut n: u64, out: &mut Vec<u8>) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (n % 10) as u8;
        n /= 10;
        if n == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn stored_bytes_gain_the_resource_version_when_written() {
        let body = json!({"data": {"metadata": "{"}, "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "a", "namespace": "n", "uid": "u", "resourceVersion": "7", "labels": null}});
        let object = Object::from_stored(encode_stored(&body).unwrap(), 42).unwrap();
        assert_eq!(object.meta.key(), "n/a");
        let seen: Value = serde_json::from_slice(&object.to_json()).unwrap();
        assert_eq!(seen["metadata"]["resourceVersion"], "42");
        assert_eq!(seen["data"], body["data"]);
        assert_eq!(object.value().unwrap(), seen);
        for object in [&object, &Object::from_wire(object.to_json()).unwrap()] {
            let mut item = Vec::new();
            let stored = object.begin_json(true, &mut item);
            item.extend_from_slice(stored);
            let mut expected = seen.clone();
            expected.as_object_mut().unwrap().retain(|field, _| field != "kind" && field != "apiVersion");
            assert_eq!(serde_json::from_slice::<Value>(&item).unwrap(), expected);
        }
        assert_eq!(Object::from_wire(object.to_json()).unwrap().resource_version, 42);
        let same = Object::from_stored_body(encode_stored(&body).unwrap(), &body, 42).unwrap();
        assert_eq!(same.to_json(), object.to_json());
    }

    #[test]
    fn what_is_not_an_object_is_refused() {
        for body in [json!([]), json!({}), json!({"kind": "A", "apiVersion": "v1", "metadata": {}})] {
            assert!(encode_stored(&body).is_err(), "{body}");
        }
    }
}
