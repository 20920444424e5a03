//! storage.k8s.io: storage classes, attachments and CSI.

use std::collections::{BTreeMap, BTreeSet};

use meta::{FieldError, Value};
use serde_json::json;

use crate::cells::{age, name, or_none, quantity, texts};
use crate::strategy::{Context, Strategy};
use crate::validate::{At, Errors, IMMUTABLE, formats, resources, same, selectors, volumes};
use meta::Tree;

kinds! {
    StorageClass: "Name|Provisioner|ReclaimPolicy|VolumeBindingMode|AllowVolumeExpansion|Age";
    VolumeAttachment: "Name|Attacher|PV|Node|Attached?|Age";
    VolumeAttributesClass: "Name|DriverName|Age";
    CsiDriver: "Name|AttachRequired?|PodInfoOnMount?|StorageCapacity?|TokenRequests|RequiresRepublish?|Modes|Age";
    CsiNode: "Name|Drivers#|Age";
    CsiStorageCapacity: "Name|StorageClassName|Capacity";
}

const LIFECYCLES: [&str; 2] = ["Ephemeral", "Persistent"];
/// Bytes of the name a CSI driver gives a node.
const MAX_NODE_ID: usize = 256;

const DEFAULT_CLASS_ANNOTATIONS: [&str; 2] =
    ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];

/// Where a class's volumes may be: terms that differ, each of keys that differ, each with values that differ.
fn check_topologies(at: &At<'_>, errors: &mut Errors) {
    let mut terms = Vec::new();
    for term in at.items() {
        let expressions = term.child("matchLabelExpressions");
        let mut wanted = BTreeMap::new();
        for expression in expressions.items() {
            let (key, values) = (expression.child("key"), expression.child("values"));
            if values.value.list("").is_empty() {
                errors.required(&values, "");
            }
            let mut seen = BTreeSet::new();
            for value in values.items() {
                if !seen.insert(value.str()) {
                    errors.duplicate(&value);
                }
            }
            errors.format(&key, formats::qualified_name);
            if wanted.insert(key.str(), seen).is_some() {
                errors.duplicate(&key);
            }
        }
        if terms.contains(&wanted) {
            errors.0.push(FieldError::duplicate(&expressions.path, ""));
        }
        terms.push(wanted);
    }
}

impl Strategy for StorageClass {
    fn default(&self, object: &mut Value) {
        object.or_put("reclaimPolicy", "Delete");
        object.or_put("volumeBindingMode", "Immediate");
    }

    fn validate_create(&self, _cx: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let (at, mut errors) = (At::root(object), Errors::default());
        let provisioner = at.child("provisioner");
        if errors.need(&provisioner, "") {
            let lower = provisioner.str().to_lowercase();
            for complaint in formats::qualified_name(&lower) {
                errors.invalid_as(&provisioner, lower.as_str(), complaint);
            }
        }
        if object.map("parameters").contains_key("") {
            errors.invalid_as(&at.child("parameters"), "", "field can not be empty.");
        }
        errors.may_one_of(&at.child("reclaimPolicy"), &["Delete", "Retain"]);
        errors.need_one_of(&at.child("volumeBindingMode"), &["Immediate", "WaitForFirstConsumer"]);
        check_topologies(&at.child("allowedTopologies"), &mut errors);
        errors.0
    }

    fn validate_update(&self, cx: &Context<'_>, object: &Value, old: &Value) -> Vec<FieldError> {
        let (at, mut errors) = (At::root(object), Errors(self.validate_create(cx, object)));
        for field in ["parameters", "provisioner", "reclaimPolicy"] {
            if !same(object.at(field), old.at(field)) {
                errors.forbidden(&at.child(field), format!("updates to {field} are forbidden."));
            }
        }
        errors.immutable(&at.child("volumeBindingMode"), old.at("volumeBindingMode"));
        errors.0
    }

    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        let annotations = object.map("metadata.annotations");
        let default = DEFAULT_CLASS_ANNOTATIONS.iter().any(|a| annotations.get(*a).is_some_and(|v| v == "true"));
        vec![
            format!("{}{}", object.text("metadata.name"), if default { " (default)" } else { "" }).into(),
            object.text("provisioner").into(),
            object.at("reclaimPolicy").as_str().unwrap_or("Delete").into(),
            object.at("volumeBindingMode").as_str().unwrap_or("Immediate").into(),
            object.flag("allowVolumeExpansion").into(),
            age(object, now),
        ]
    }
}

impl Strategy for VolumeAttachment {
    fn prepare_create(&self, _cx: &Context<'_>, object: &mut Value) {
        object.put("status.attached", false);
    }

    fn prepare_update(&self, cx: &Context<'_>, object: &mut Value, old: &Value) {
        if cx.subresource == "status" {
            for field in ["labels", "annotations", "finalizers", "ownerReferences"] {
                object.copy_from(&format!("metadata.{field}"), old);
            }
        }
    }

    fn validate_create(&self, _cx: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let (spec, mut errors) = (At::new(object.at("spec"), "spec"), Errors::default());
        errors.driver_name(&spec.child("attacher"));
        errors.format(&spec.child("nodeName"), formats::dns_subdomain);
        let source = spec.child("source");
        let volume = source.child("persistentVolumeName");
        if volume.there() {
            errors.need(&volume, "must specify non empty persistentVolumeName");
            errors.format(&volume, formats::dns_subdomain);
        }
        match (source.value.has("persistentVolumeName"), source.value.has("inlineVolumeSpec")) {
            (false, false) => {
                errors.required(&source, "must specify exactly one of inlineVolumeSpec and persistentVolumeName")
            }
            (true, true) => {
                errors.forbidden(&source, "must specify exactly one of inlineVolumeSpec and persistentVolumeName")
            }
            _ => {}
        }
        errors.0
    }

    fn validate_update(&self, _cx: &Context<'_>, object: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        errors.immutable(&At::root(object).child("spec"), old.at("spec"));
        errors.0
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }

    fn tracks_generation(&self, _has_status: bool) -> bool {
        false
    }

    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        vec![
            name(object),
            object.text("spec.attacher").into(),
            object.text("spec.source.persistentVolumeName").into(),
            object.text("spec.nodeName").into(),
            object.flag("status.attached").into(),
            age(object, now),
        ]
    }
}

impl Strategy for VolumeAttributesClass {
    fn validate_create(&self, _cx: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let (at, mut errors) = (At::root(object), Errors::default());
        errors.need(&at.child("driverName"), "");
        if object.map("parameters").is_empty() {
            errors.required(&at.child("parameters"), "must contain at least one key/value pair");
        }
        errors.0
    }

    fn validate_update(&self, _cx: &Context<'_>, object: &Value, old: &Value) -> Vec<FieldError> {
        let (at, mut errors) = (At::root(object), Errors::default());
        for field in ["driverName", "parameters"].into_iter().filter(|f| !same(object.at(f), old.at(f))) {
            errors.forbidden(&at.child(field), format!("updates to {field} are forbidden."));
        }
        errors.0
    }

    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        vec![name(object), object.text("driverName").into(), age(object, now)]
    }
}

impl Strategy for CsiDriver {
    fn default(&self, object: &mut Value) {
        for (field, value) in [
            ("attachRequired", true),
            ("podInfoOnMount", false),
            ("storageCapacity", false),
            ("requiresRepublish", false),
            ("seLinuxMount", false),
        ] {
            object.or_put(&format!("spec.{field}"), value);
        }
        object.or_put("spec.fsGroupPolicy", "ReadWriteOnceWithFSType");
        if object.list("spec.volumeLifecycleModes").is_empty() {
            object.put("spec.volumeLifecycleModes", json!(["Persistent"]));
        }
    }

    fn validate_create(&self, _cx: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let (spec, mut errors) = (At::new(object.at("spec"), "spec"), Errors::default());
        errors.need_one_of(&spec.child("fsGroupPolicy"), &["File", "None", "ReadWriteOnceWithFSType"]);
        for mode in spec.each("volumeLifecycleModes") {
            if !LIFECYCLES.contains(&mode.str()) {
                let path = spec.child("volumeLifecycleModes").path;
                errors.0.push(FieldError::not_supported(&path, mode.value.clone(), &LIFECYCLES));
            }
        }
        for token in spec.each("tokenRequests") {
            let seconds = token.child("expirationSeconds");
            errors.at_least(&seconds, volumes::MIN_TOKEN_SECONDS, "may not specify a duration less than 10 minutes");
            if seconds.number().is_some_and(|s| s > volumes::MAX_TOKEN_SECONDS) {
                errors.invalid(&seconds, "may not specify a duration larger than 2^32 seconds");
            }
        }
        errors.unique(spec.each("tokenRequests").map(|t| t.child("audience")));
        errors.0
    }

    fn validate_update(&self, cx: &Context<'_>, object: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Errors(self.validate_create(cx, object));
        let spec = At::new(object.at("spec"), "spec");
        for field in ["attachRequired", "volumeLifecycleModes"] {
            if !same(spec.value.at(field), old.at("spec").at(field)) {
                errors.invalid(&spec.child(field), IMMUTABLE);
            }
        }
        errors.0
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }

    fn tracks_generation(&self, _has_status: bool) -> bool {
        true
    }

    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        let spec = object.at("spec");
        let tokens = match spec.at("tokenRequests") {
            Value::Array(tokens) => tokens.iter().map(|t| t.text("audience")).collect::<Vec<_>>().join(","),
            _ => "<unset>".into(),
        };
        vec![
            name(object),
            spec.at("attachRequired").as_bool().unwrap_or(true).into(),
            spec.flag("podInfoOnMount").into(),
            spec.flag("storageCapacity").into(),
            tokens.into(),
            spec.flag("requiresRepublish").into(),
            or_none(&texts(spec.list("volumeLifecycleModes")).collect::<Vec<_>>().join(",")),
            age(object, now),
        ]
    }
}

impl Strategy for CsiNode {
    fn validate_create(&self, _cx: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let (spec, mut errors) = (At::new(object.at("spec"), "spec"), Errors::default());
        for driver in spec.each("drivers") {
            errors.driver_name(&driver.child("name"));
            let node = driver.child("nodeID");
            errors.need(&node, "");
            if node.str().len() > MAX_NODE_ID {
                errors.invalid(&node, format!("must be {MAX_NODE_ID} characters or less"));
            }
            errors.not_negative(&driver.child("allocatable.count"));
            let mut keys = BTreeSet::new();
            for key in driver.each("topologyKeys") {
                // Upstream says of these which driver they are of, not which of them.
                let key = At { path: driver.path.clone(), ..key };
                errors.need(&key, "");
                if !keys.insert(key.str()) {
                    errors.duplicate(&key);
                }
                errors.format(&key, formats::qualified_name);
            }
        }
        errors.unique(spec.each("drivers").map(|d| d.child("name")));
        errors.0
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }

    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        vec![name(object), object.list("spec.drivers").len().into(), age(object, now)]
    }
}

impl Strategy for CsiStorageCapacity {
    fn validate_create(&self, _cx: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let (at, mut errors) = (At::root(object), Errors::default());
        selectors::label_selector(&at.child("nodeTopology"), &mut errors);
        errors.need_format(&at.child("storageClassName"), formats::dns_subdomain);
        for field in ["capacity", "maximumVolumeSize"].map(|f| at.child(f)).into_iter().filter(At::there) {
            resources::amount(&field, "storage", &mut errors);
        }
        errors.0
    }

    fn validate_update(&self, cx: &Context<'_>, object: &Value, old: &Value) -> Vec<FieldError> {
        let (at, mut errors) = (At::root(object), Errors(self.validate_create(cx, object)));
        for field in ["nodeTopology", "storageClassName"] {
            errors.immutable(&at.child(field), old.at(field));
        }
        errors.0
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }

    fn table_row(&self, object: &Value, _now: &str) -> Vec<Value> {
        let capacity = if object.has("capacity") { quantity(object.at("capacity")) } else { "<unset>".into() };
        vec![name(object), object.text("storageClassName").into(), capacity.into()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::tests::expect;

    const CX: Context<'static> = Context::SOMEBODY;

    #[test]
    fn classes_stay() {
        let mut old = json!({"provisioner": "example.com/p", "parameters": {"a": "b"}});
        StorageClass.default(&mut old);
        expect(&StorageClass.validate_create(&CX, &old), &[], &old);
        let mut new = old.clone();
        new.put("parameters.a", "c");
        new.put("allowVolumeExpansion", true);
        expect(
            &StorageClass.validate_update(&CX, &new, &old),
            &["parameters: Forbidden: updates to parameters are forbidden."],
            &new,
        );
    }
}
