//! Brings the built-in `ObjectMeta` into a CRD's arena.

use super::Builder;
use crate::schema::{Field, Node, Scalar, Shape, Struct, TypeId, Types, builtin};

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

impl Builder {
    /// The node of an object's own metadata.
    pub(super) fn object_meta(&mut self) -> TypeId {
        let types = builtin();
        match types.names.get(OBJECT_META) {
            Some(id) => self.import(types, *id),
            None => self.any(),
        }
    }

    fn import(&mut self, from: &Types, id: TypeId) -> TypeId {
        if let Some(here) = self.imported.get(&id) {
            return *here;
        }
        let original = from.node(id);
        // The place is taken first, for structs that contain themselves.
        let here = self.push(Node { shape: Shape::Scalar(Scalar::Any), ..original.clone() });
        self.imported.insert(id, here);
        let shape = match &original.shape {
            Shape::Struct(s) => {
                let fields = s.fields.iter().map(|f| Field { node: self.import(from, f.node), ..f.clone() }).collect();
                self.types.names.insert(s.name.clone(), here);
                Shape::Struct(Struct { fields, ..s.clone() })
            }
            Shape::Map { value } => Shape::Map { value: self.import(from, *value) },
            Shape::List { item, kind, patch } => {
                Shape::List { item: self.import(from, *item), kind: kind.clone(), patch: patch.clone() }
            }
            Shape::Scalar(scalar) => Shape::Scalar(*scalar),
        };
        self.types.nodes[here.0 as usize].shape = shape;
        here
    }
}
