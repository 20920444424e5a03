//! The built-in types, from the committed table of facts.
//!
//! `facts.txt` is written by `cargo xtask facts` and read once, on first use. Its lines:
//!
//! - `package NAME GROUP VERSION` opens a package; `-` is no group;
//! - `enum NAME VALUE|VALUE…`: a string type with its values;
//! - `NAME [kind] [atomic]` opens a struct, which gets the full name `PACKAGE.NAME`;
//! - ` name tag type flag…`, indented, is a field. A tag `2.1` is field 1 of the message inlined as field 2. A type is a scalar,
//!   `%Enum` or a struct's name (without its package if it is the same one) behind any of `[]` (list), `[=]` (list wrapped in
//!   a message), `{}` (map). Flags: `ptr` and `always` (see [`Presence`]), `req`, `atomic`, `set`, `map=KEYS`, `merge`,
//!   `merge=KEY`, `retain`, `default=JSON`.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use super::{Field, ListKind, META_GROUP, Node, PatchStrategy, Presence, Scalar, Shape, Struct, TypeId, Types};
use crate::Gvk;

const FACTS: &str = include_str!("facts.txt");

/// The package whose kinds belong to every group.
const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";

/// All built-in types, parsed on first use.
pub fn builtin() -> &'static Arc<Types> {
    static TYPES: OnceLock<Arc<Types>> = OnceLock::new();
    TYPES.get_or_init(|| Arc::new(Reader::default().read(FACTS)))
}

#[derive(Default)]
struct Reader<'a> {
    types: Types,
    /// Structs by full name, from their first mention on.
    ids: HashMap<String, TypeId>,
    enums: HashMap<String, &'a str>,
    /// Nodes that are alike are one node.
    shared: HashMap<String, TypeId>,
    words: HashMap<&'a str, Arc<str>>,
    paths: HashMap<&'a str, Arc<[u32]>>,
    package: &'a str,
}

impl<'a> Reader<'a> {
    fn read(mut self, text: &'a str) -> Types {
        // Enums are named before they are declared, by packages that sort earlier.
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("package ") {
                self.package = rest.split(' ').next().unwrap_or_default();
            } else if let Some((name, values)) = line.strip_prefix("enum ").and_then(|rest| rest.split_once(' ')) {
                self.enums.insert(format!("{}.{name}", self.package), values);
            }
        }
        let (mut group, mut version) = ("", "");
        let mut current: Option<TypeId> = None;
        let mut fields: HashMap<TypeId, Vec<Field>> = HashMap::new();
        for line in text.lines() {
            if let Some(field) = line.strip_prefix(' ') {
                let field = self.field(field);
                if let Some(id) = current {
                    fields.entry(id).or_default().push(field);
                }
            } else if let Some(rest) = line.strip_prefix("package ") {
                let mut words = rest.split(' ');
                self.package = words.next().unwrap_or_default();
                group = words.next().filter(|g| *g != "-").unwrap_or_default();
                version = words.next().unwrap_or_default();
                if self.package == META {
                    group = META_GROUP;
                }
            } else if !line.starts_with('#') && !line.starts_with("enum ") {
                let mut words = line.split(' ');
                let name = words.next().unwrap_or_default();
                let id = self.named(name);
                for word in words {
                    match word {
                        "atomic" => self.types.nodes[id.0 as usize].atomic = true,
                        _ => drop(self.types.kinds.insert(Gvk::new(group, version, name), id)),
                    }
                }
                if self.package == META && matches!(name, "WatchEvent" | "Patch") {
                    self.types.kinds.insert(Gvk::new(group, version, name), id);
                }
                current = Some(id);
            }
        }
        for (id, fields) in fields {
            if let Shape::Struct(s) = &mut self.types.nodes[id.0 as usize].shape {
                s.fields = fields.into();
                let mut order: Vec<u16> =
                    (0..s.fields.len() as u16).filter(|i| s.fields[usize::from(*i)].tag != 0).collect();
                let path = |i: &u16| s.fields[usize::from(*i)].wire_path();
                order.sort_by(|a, b| path(a).cmp(path(b)));
                s.wire_order = order.into();
            }
        }
        self.types.nodes.shrink_to_fit();
        self.types
    }

    fn push(&mut self, node: Node) -> TypeId {
        self.types.nodes.push(node);
        TypeId(self.types.nodes.len() as u32 - 1)
    }

    /// The struct of a name, its fields known or still to come.
    fn named(&mut self, name: &str) -> TypeId {
        let full = self.full(name);
        if let Some(id) = self.ids.get(&full) {
            return *id;
        }
        let name: Arc<str> = full.as_str().into();
        let id = self.push(Node::from(Shape::Struct(Struct { name: name.clone(), ..Struct::default() })));
        self.types.names.insert(name, id);
        self.ids.insert(full, id);
        id
    }

    fn full(&self, name: &str) -> String {
        if name.contains('.') { name.to_string() } else { format!("{}.{name}", self.package) }
    }

    fn word(&mut self, word: &'a str) -> Arc<str> {
        self.words.entry(word).or_insert_with(|| word.into()).clone()
    }

    fn field(&mut self, line: &'a str) -> Field {
        let (line, default) = match line.split_once(" default=") {
            Some((line, text)) => (line, serde_json::from_str(text).ok().map(Arc::new)),
            None => (line, None),
        };
        let mut words = line.split(' ');
        let name = self.word(words.next().unwrap_or_default());
        let tags = words.next().unwrap_or_default();
        let ty = words.next().unwrap_or_default();
        let (around, tag) = tags.rsplit_once('.').unwrap_or(("", tags));
        let inlined_in = self
            .paths
            .entry(around)
            .or_insert_with(|| around.split('.').filter_map(|t| t.parse().ok()).collect())
            .clone();
        let mut field = Field { name, tag: tag.parse().unwrap_or(0), inlined_in, default, ..Field::default() };
        let (mut atomic, mut kind, mut patch) = (false, ListKind::Atomic, PatchStrategy::default());
        for word in words {
            match word.split_once('=') {
                None => match word {
                    "ptr" => field.presence = Presence::Pointer,
                    "always" => field.presence = Presence::Always,
                    "req" => field.required = true,
                    "atomic" => atomic = true,
                    "set" => kind = ListKind::Set,
                    "merge" => patch.merge = true,
                    "retain" => patch.retain_keys = true,
                    _ => {}
                },
                Some(("map", keys)) => kind = ListKind::Map { keys: keys.split(',').map(|k| self.word(k)).collect() },
                Some(("merge", key)) => patch = PatchStrategy { merge: true, merge_key: self.word(key), ..patch },
                Some(_) => {}
            }
        }
        field.retain_keys = patch.retain_keys && !ty.starts_with("[]");
        field.node = self.node(ty, atomic, kind, patch);
        field
    }

    /// The node of a type as used in a field.
    fn node(&mut self, ty: &'a str, atomic: bool, kind: ListKind, patch: PatchStrategy) -> TypeId {
        if let Some(item) = ty.strip_prefix("[]") {
            let item = self.node(item, false, ListKind::Atomic, PatchStrategy::default());
            let key = format!("[]{} {kind:?} {patch:?}", item.0);
            return self.share(key, |_| Node::from(Shape::List { item, kind, patch }));
        }
        if let Some(item) = ty.strip_prefix("[=]") {
            let item = self.node(item, false, ListKind::Atomic, PatchStrategy::default());
            let shape = Shape::List { item, kind: ListKind::Atomic, patch: PatchStrategy::default() };
            return self.share(format!("[=]{}", item.0), |_| Node { wrapped: true, ..Node::from(shape) });
        }
        if let Some(value) = ty.strip_prefix("{}") {
            let value = self.node(value, false, ListKind::Atomic, PatchStrategy::default());
            let key = format!("{{}}{} {atomic}", value.0);
            return self.share(key, |_| Node { atomic, ..Node::from(Shape::Map { value }) });
        }
        if let Some(name) = ty.strip_prefix('%') {
            let full = self.full(name);
            return self.share(format!("%{full}"), |reader| {
                let values = reader.enums.get(&full).map_or("", |v| *v);
                let enumeration = values.split('|').map(|v| v.into()).collect();
                Node { enumeration, ..Node::from(Shape::Scalar(Scalar::String)) }
            });
        }
        match scalar(ty) {
            Some((scalar, format)) => self.share(ty.to_string(), |reader| {
                let format = reader.word(format);
                Node { format, ..Node::from(Shape::Scalar(scalar)) }
            }),
            None => self.named(ty),
        }
    }

    fn share(&mut self, key: String, make: impl FnOnce(&mut Self) -> Node) -> TypeId {
        if let Some(id) = self.shared.get(&key) {
            return *id;
        }
        let node = make(self);
        let id = self.push(node);
        self.shared.insert(key, id);
        id
    }
}

/// A scalar's word in the table, with its OpenAPI format.
fn scalar(word: &str) -> Option<(Scalar, &'static str)> {
    Some(match word {
        "string" => (Scalar::String, ""),
        "bool" => (Scalar::Boolean, ""),
        "int32" => (Scalar::Int32, "int32"),
        "int64" => (Scalar::Int64, "int64"),
        "uint32" => (Scalar::Uint32, "int64"),
        "uint64" => (Scalar::Uint64, "int64"),
        "float" => (Scalar::Float32, "float"),
        "double" => (Scalar::Float64, "double"),
        "bytes" => (Scalar::Bytes, "byte"),
        "time" => (Scalar::Time, "date-time"),
        "microtime" => (Scalar::MicroTime, "date-time"),
        "duration" => (Scalar::Duration, ""),
        "quantity" => (Scalar::Quantity, ""),
        "intorstring" => (Scalar::IntOrString, "int-or-string"),
        "raw" | "json" => (Scalar::Any, ""),
        "fieldsv1" => (Scalar::FieldsV1, ""),
        "schemaorbool" => (Scalar::SchemaOrBool, ""),
        "schemaorarray" => (Scalar::SchemaOrArray, ""),
        "schemaorstrings" => (Scalar::SchemaOrStrings, ""),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::View;

    fn kind(group: &str, version: &str, kind: &str) -> View<'static> {
        builtin().kind(&Gvk::new(group, version, kind)).unwrap_or_else(|| panic!("no {kind}"))
    }

    #[test]
    fn every_named_struct_is_declared() {
        // Mentioned by a field but never declared: neither fields nor a name in the table.
        for name in builtin().names.keys() {
            let short = name.rsplit('.').next().unwrap_or_default();
            let declared = FACTS
                .lines()
                .any(|l| l.strip_prefix(short).is_some_and(|rest| rest.is_empty() || rest.starts_with(' ')));
            assert!(declared, "{name} is not declared");
        }
        let structs = FACTS
            .lines()
            .filter(|l| !l.starts_with([' ', '#']) && !l.starts_with("package ") && !l.starts_with("enum "));
        assert_eq!(builtin().names.len(), structs.count());
    }

    #[test]
    fn fields_have_their_facts() {
        let pod = kind("", "v1", "Pod");
        let spec = pod.child("spec").unwrap();
        let containers = spec.child("containers").unwrap();
        let Shape::List { kind: list, patch, .. } = containers.shape() else { panic!("no list") };
        assert_eq!(*list, ListKind::Map { keys: ["name".into()].into() });
        assert_eq!(*patch, PatchStrategy { merge: true, retain_keys: false, merge_key: "name".into() });
        let container = containers.item().unwrap();
        let ports = container.child("ports").unwrap();
        let Shape::List { kind: list, patch, .. } = ports.shape() else { panic!("no list") };
        assert_eq!(*list, ListKind::Map { keys: ["containerPort".into(), "protocol".into()].into() });
        assert_eq!(&*patch.merge_key, "containerPort");
        let protocol = ports.item().unwrap().field_facts("protocol").unwrap();
        assert_eq!(protocol.default.as_deref(), Some(&serde_json::json!("TCP")));
        assert_eq!(builtin().node(protocol.node).enumeration, ["SCTP", "TCP", "UDP"]);
        // Inlined structs.
        let probe = container.child("livenessProbe").unwrap();
        let get = probe.field_facts("httpGet").unwrap();
        assert_eq!((&*get.inlined_in, get.tag), (&[1u32][..], 2));
        assert!(container.field_facts("name").unwrap().required);
        assert!(pod.child("metadata").unwrap().child("ownerReferences").unwrap().item().unwrap().node().atomic);
        assert!(kind("apps", "v1", "Deployment").child("spec").unwrap().field_facts("strategy").unwrap().retain_keys);
        assert_eq!(kind("apps", "v1", "DeleteOptions").id, kind("", "v1", "DeleteOptions").id);
    }
}
