//! What a kind does beyond its schema: each method has a default, and most kinds need one or two.
//!
//! Follows upstream's `registry/rest` strategies. A strategy sees JSON trees in the storage version, fully defaulted by the
//! schema; it never does IO and never decides order, authorization or admission.

use std::collections::BTreeMap;

use meta::{FieldError, Status, Value};

/// What a strategy may know about the request.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// Now, RFC 3339 in whole seconds with `Z`.
    pub now: &'a str,
    pub user: &'a str,
    pub groups: &'a [String],
    pub uid: &'a str,
    pub extra: &'a BTreeMap<String, Vec<String>>,
    /// Empty, or the subresource being written (`status`, `approval`, …).
    pub subresource: &'a str,
}

#[cfg(test)]
impl Context<'static> {
    /// A plain user's write of the object itself.
    pub const SOMEBODY: Self =
        Self { now: "2026-01-01T00:00:00Z", user: "u", groups: &[], uid: "", extra: &BTreeMap::new(), subresource: "" };
}

/// Deletion as the strategy wants it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deletion {
    /// Gone at once (finalizers aside).
    Immediate,
    /// Marked with `deletionTimestamp` and left to whoever finishes it; seconds to wait.
    Graceful(i64),
}

pub trait Strategy: Send + Sync + 'static {
    /// Defaults that depend on other fields, after the schema's own.
    fn default(&self, _object: &mut Value) {}

    /// Fills and clears what clients may not say on create. The pipeline itself has set metadata and, for kinds with a
    /// status subresource, dropped `status`.
    fn prepare_create(&self, _cx: &Context<'_>, _object: &mut Value) {}

    /// The same on update, the stored object at hand. The pipeline itself has restored immutable metadata and, by
    /// subresource, the half that may not change; it bumps `generation` when anything outside metadata and status changed.
    fn prepare_update(&self, _cx: &Context<'_>, _object: &mut Value, _old: &Value) {}

    fn validate_create(&self, _cx: &Context<'_>, _object: &Value) -> Vec<FieldError> {
        Vec::new()
    }

    fn validate_update(&self, cx: &Context<'_>, object: &Value, _old: &Value) -> Vec<FieldError> {
        self.validate_create(cx, object)
    }

    /// Whether the server counts `metadata.generation`; by default for kinds with a status subresource.
    fn tracks_generation(&self, has_status: bool) -> bool {
        has_status
    }

    /// Whether a change of annotations counts in `metadata.generation` as well: a Deployment's controller copies them to
    /// its ReplicaSets, so they are part of what is wanted.
    fn counts_annotations(&self) -> bool {
        false
    }

    /// Whether a status subresource keeps `status` out of ordinary creates and updates. False for kinds whose clients
    /// write both at once.
    fn drops_status_on_create(&self) -> bool {
        true
    }

    /// Texts for `Warning` headers.
    fn warnings(&self, _object: &Value) -> Vec<String> {
        Vec::new()
    }

    /// How names of this kind are checked; the text is upstream's complaint.
    fn validate_name(&self, name: &str, generate: bool) -> Result<(), String> {
        crate::strategy::dns_subdomain(name, generate)
    }

    /// A PUT to a name that does not exist creates it.
    fn allow_create_on_update(&self) -> bool {
        false
    }

    /// An update without `resourceVersion` overwrites whatever is there.
    fn allow_unconditional_update(&self) -> bool {
        true
    }

    /// `requested` is the client's `gracePeriodSeconds`, if any.
    fn deletion(&self, _object: &Value, _requested: Option<i64>) -> Deletion {
        Deletion::Immediate
    }

    /// What an object says of itself once it is marked with `deletionTimestamp` and stays for now.
    fn prepare_delete(&self, _object: &mut Value) {}

    /// Whether finalizers of other kinds (`spec.finalizers` of namespaces) still hold the object.
    fn held(&self, _object: &Value) -> bool {
        false
    }

    /// The propagation a delete gets when the client names none: `background` for all but ReplicationController-like
    /// kinds of old API versions.
    fn default_orphans(&self) -> bool {
        false
    }

    /// From one served version to another. Kinds with one version, and versions that differ in name alone, need nothing.
    fn convert(&self, _object: &mut Value, _from: &str, _to: &str) -> Result<(), Status> {
        Ok(())
    }

    /// Versions that are served no more but lie in stores of upstream's servers, which may store the oldest version they know.
    /// In protobuf the storage version's field numbers read them, but for what [`Strategy::upgrade`] puts right.
    fn past_versions(&self) -> &'static [&'static str] {
        &[]
    }

    /// From one of [`Strategy::past_versions`] to the storage version, what is the same in both aside.
    fn upgrade(&self, _object: &mut Value) {}

    /// The `apiVersion` this kind's objects are stored in when that is another row's: `events.k8s.io/v1` Events are core
    /// `v1` Events in the store. Such a row shares its prefix, cache and selectable values with that other row, and
    /// `convert` then gets whole `apiVersion`s.
    fn stored_as(&self) -> Option<&'static str> {
        None
    }

    /// Cells for the row's `Cell::Built` columns, in their order. `now` as in [`Context`].
    fn table_row(&self, _object: &Value, _now: &str) -> Vec<Value> {
        Vec::new()
    }
}

/// A kind whose schema says it all.
pub struct Default;

impl Strategy for Default {}

/// `IsDNS1123Subdomain`, as most kinds' names are checked. With `generate`, the name is a prefix and may end in a dash.
pub fn dns_subdomain(name: &str, generate: bool) -> Result<(), String> {
    const MAX: usize = 253;
    let name = if generate { name.strip_suffix('-').unwrap_or(name) } else { name };
    if name.len() > MAX {
        return Err(format!("must be no more than {MAX} characters"));
    }
    let label = |part: &str| {
        let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let bytes = part.as_bytes();
        edge(bytes.first())
            && edge(bytes.last())
            && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
    };
    if name.split('.').all(label) {
        return Ok(());
    }
    Err("a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')".into())
}
