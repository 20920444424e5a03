//! Persistent volumes and the claims on them.

use meta::quantity::Quantity;
use meta::{FieldError, Value};
use serde_json::json;

use crate::cells::{age, name, quantity};
use crate::strategy::{Context, Strategy};
use crate::validate::{At, Errors, formats, resources, same, scheduling, selectors, volumes};
use meta::Tree;

kinds! {
    PersistentVolume: "Name|Capacity|Access Modes|Reclaim Policy|Status|Claim|StorageClass|VolumeAttributesClass|Reason|Age|VolumeMode*";
    PersistentVolumeClaim: "Name|Status|Volume|Capacity|Access Modes|StorageClass|VolumeAttributesClass|Age|VolumeMode*";
}

const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";

/// `RWO,ROX`: each mode once, in upstream's order.
fn access_modes(modes: &[Value]) -> Value {
    const SHORT: [(&str, &str); 4] =
        [("ReadWriteOnce", "RWO"), ("ReadOnlyMany", "ROX"), ("ReadWriteMany", "RWX"), ("ReadWriteOncePod", "RWOP")];
    let short = SHORT.iter().filter(|(mode, _)| modes.iter().any(|m| m == mode)).map(|(_, short)| *short);
    short.collect::<Vec<_>>().join(",").into()
}

fn class(object: &Value) -> Value {
    let annotation = object.map("metadata.annotations").get(CLASS_ANNOTATION).and_then(Value::as_str);
    annotation.unwrap_or(object.text("spec.storageClassName")).into()
}

fn attributes_class(object: &Value) -> Value {
    object.at("spec.volumeAttributesClassName").as_str().unwrap_or("<unset>").into()
}

fn phase(object: &Value) -> Value {
    if object.has("metadata.deletionTimestamp") { "Terminating".into() } else { object.text("status.phase").into() }
}

fn volume_mode(object: &Value) -> Value {
    object.at("spec.volumeMode").as_str().unwrap_or("<unset>").into()
}

const ACCESS_MODES: [&str; 4] = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
/// Sources a volume may have, exactly one of them.
const SOURCES: [&str; 22] = [
    "awsElasticBlockStore",
    "azureDisk",
    "azureFile",
    "cephfs",
    "cinder",
    "csi",
    "fc",
    "flexVolume",
    "flocker",
    "gcePersistentDisk",
    "glusterfs",
    "hostPath",
    "iscsi",
    "local",
    "nfs",
    "photonPersistentDisk",
    "portworxVolume",
    "quobyte",
    "rbd",
    "scaleIO",
    "storageos",
    "vsphereVolume",
];

/// Secrets a CSI volume may name.
const SECRETS: [&str; 5] = [
    "controllerPublishSecretRef",
    "controllerExpandSecretRef",
    "nodePublishSecretRef",
    "nodeStageSecretRef",
    "nodeExpandSecretRef",
];

fn check_access_modes(at: &At<'_>, errors: &mut Errors) {
    for mode in at.items().filter(|m| !ACCESS_MODES.contains(&m.str())) {
        errors.0.push(FieldError::not_supported(&at.path, mode.value.clone(), &ACCESS_MODES));
    }
    let alone = |m: &At<'_>| m.str() == "ReadWriteOncePod";
    if at.items().any(|m| alone(&m)) && at.items().any(|m| !alone(&m)) {
        errors.forbidden(at, "may not use ReadWriteOncePod with other access modes");
    }
}

fn check_positive(at: &At<'_>, errors: &mut Errors) {
    match Quantity::from_value(at.value) {
        Ok(amount) if amount.sign() <= 0 => errors.invalid(at, "must be greater than zero"),
        Ok(_) => {}
        Err(error) => errors.invalid(at, error.to_string()),
    }
}

fn check_volume_source(spec: &At<'_>, errors: &mut Errors) {
    let mut sources = SOURCES.iter().filter(|s| spec.value.has(s));
    let Some(source) = sources.next() else {
        return errors.required(spec, "must specify a volume type");
    };
    for more in sources {
        errors.forbidden(&spec.child(more), "may not specify more than 1 volume type");
    }
    let at = spec.child(source);
    match *source {
        "hostPath" => {
            let path = at.child("path");
            if errors.need(&path, "") && path.str().split('/').any(|p| p == "..") {
                errors.invalid(&path, "must not contain '..'");
            }
            errors.may_one_of(&at.child("type"), volumes::HOST_PATH_TYPES);
            if path.str() == "/" && spec.value.text("persistentVolumeReclaimPolicy") == "Recycle" {
                errors.forbidden(
                    &spec.child("persistentVolumeReclaimPolicy"),
                    "may not be 'recycle' for a hostPath mount of '/'",
                );
            }
        }
        "local" => {
            errors.need(&at.child("path"), "");
            if !spec.value.has("nodeAffinity") {
                errors.required(&spec.child("nodeAffinity"), "Local volume requires node affinity");
            }
        }
        "nfs" => {
            errors.need(&at.child("server"), "");
            errors.need(&at.child("path"), "");
            if !at.value.text("path").starts_with('/') {
                errors.invalid(&at.child("path"), "must be an absolute path");
            }
        }
        "csi" => {
            errors.driver_name(&at.child("driver"));
            errors.need(&at.child("volumeHandle"), "");
            for secret in SECRETS.map(|s| at.child(s)).into_iter().filter(At::there) {
                errors.need_format(&secret.child("name"), formats::dns_subdomain);
                errors.need_format(&secret.child("namespace"), formats::dns_label);
            }
        }
        _ => {}
    }
}

impl Strategy for PersistentVolume {
    fn default(&self, object: &mut Value) {
        object.or_put("status.phase", "Pending");
        let Some(spec) = object.at_mut("spec") else { return };
        spec.or_put("persistentVolumeReclaimPolicy", "Retain");
        spec.or_put("volumeMode", "Filesystem");
        if let Some(path) = spec.at_mut("hostPath") {
            path.or_put("type", "");
        }
        if let Some(iscsi) = spec.at_mut("iscsi") {
            iscsi.or_put("iscsiInterface", "default");
        }
    }

    fn prepare_create(&self, cx: &Context<'_>, object: &mut Value) {
        object.put("status", json!({"phase": "Pending", "lastPhaseTransitionTime": cx.now}));
    }

    fn prepare_update(&self, cx: &Context<'_>, object: &mut Value, old: &Value) {
        if cx.subresource == "status" && object.text("status.phase") != old.text("status.phase") {
            object.put("status.lastPhaseTransitionTime", cx.now);
        }
    }

    fn validate_create(&self, _cx: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let (spec, mut errors) = (At::new(object.at("spec"), "spec"), Errors::default());
        let (modes, capacity) = (spec.child("accessModes"), spec.child("capacity"));
        if modes.value.list("").is_empty() {
            errors.required(&modes, "");
        }
        check_access_modes(&modes, &mut errors);
        if capacity.value.map("").is_empty() {
            errors.required(&capacity, "");
        }
        if !capacity.value.has("storage") || capacity.value.map("").len() > 1 {
            errors.0.push(FieldError::not_supported(&capacity.path, capacity.value.clone(), &["storage"]));
        }
        for (_, amount) in capacity.entries() {
            check_positive(&amount, &mut errors);
        }
        errors.may_one_of(&spec.child("persistentVolumeReclaimPolicy"), &["Delete", "Recycle", "Retain"]);
        errors.may_one_of(&spec.child("volumeMode"), &["Block", "Filesystem"]);
        errors.may_format(&spec.child("storageClassName"), formats::dns_subdomain);
        let attributes = spec.child("volumeAttributesClassName");
        if attributes.there() {
            if errors.need(&attributes, "an empty string is disallowed") {
                errors.format(&attributes, formats::dns_subdomain);
            }
            if !spec.value.has("csi") {
                errors.required(&spec.child("csi"), "has to be specified when using volumeAttributesClassName");
            }
        }
        let affinity = spec.child("nodeAffinity");
        if affinity.there() {
            if affinity.value.has("required") {
                scheduling::node_selector(&affinity.child("required"), &mut errors);
            } else {
                errors.required(&affinity.child("required"), "must specify required node constraints");
            }
        }
        check_volume_source(&spec, &mut errors);
        errors.0
    }

    fn validate_update(&self, cx: &Context<'_>, object: &Value, old: &Value) -> Vec<FieldError> {
        if cx.subresource == "status" {
            return Vec::new();
        }
        let mut errors = Errors(self.validate_create(cx, object));
        let (at, before) = (At::root(object), old.at("spec"));
        let sources = |spec: &Value| {
            let mut spec = spec.clone();
            // Secrets for expansion may come later.
            for secret in ["csi.controllerExpandSecretRef", "csi.nodeExpandSecretRef"] {
                if !before.has(secret) {
                    spec.drop(secret);
                }
            }
            SOURCES.map(|s| spec.at(s).clone())
        };
        if !sources(object.at("spec")).iter().zip(&sources(before)).all(|(a, b)| same(a, b)) {
            errors.forbidden(
                &at.child("spec.persistentvolumesource"),
                "spec.persistentvolumesource is immutable after creation",
            );
        }
        let mode = At::new(object.at("spec.volumeMode"), "volumeMode");
        errors.immutable(&mode, before.at("volumeMode"));
        let affinity = At::new(object.at("spec.nodeAffinity"), "nodeAffinity");
        errors.set_once(&affinity, before.at("nodeAffinity"));
        errors.0
    }

    fn tracks_generation(&self, _has_status: bool) -> bool {
        false
    }

    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        let claim = object.at("spec.claimRef");
        let claim =
            if claim.is_null() { String::new() } else { format!("{}/{}", claim.text("namespace"), claim.text("name")) };
        vec![
            name(object),
            quantity(object.at("spec.capacity.storage")).into(),
            access_modes(object.list("spec.accessModes")),
            object.text("spec.persistentVolumeReclaimPolicy").into(),
            phase(object),
            claim.into(),
            class(object),
            attributes_class(object),
            object.text("status.reason").into(),
            age(object, now),
            volume_mode(object),
        ]
    }
}

/// The older field says nothing but of claims and snapshots.
fn drop_strange_source(spec: &mut Value) {
    let source = spec.at("dataSource");
    let known = [("", "PersistentVolumeClaim"), ("snapshot.storage.k8s.io", "VolumeSnapshot")];
    if !known.contains(&(source.text("apiGroup"), source.text("kind"))) {
        spec.drop("dataSource");
    }
}

/// Two fields say where a claim's contents come from; the older one knows no namespaces.
fn mirror_data_source(spec: &mut Value) {
    if spec.has("dataSource") && !spec.has("dataSourceRef") {
        let source = spec.at("dataSource").clone();
        spec.put("dataSourceRef", source);
    } else if spec.has("dataSourceRef") && !spec.has("dataSource") && spec.text("dataSourceRef.namespace").is_empty() {
        let source = spec.at("dataSourceRef").clone();
        spec.put("dataSource", source);
    }
}

/// A claim's spec, also in templates.
pub fn check_claim(spec: &At<'_>, errors: &mut Errors) {
    let modes = spec.child("accessModes");
    if modes.value.list("").is_empty() {
        errors.required(&modes, "at least 1 access mode is required");
    }
    check_access_modes(&modes, errors);
    selectors::label_selector(&spec.child("selector"), errors);
    let storage =
        At { value: spec.value.at("resources.requests.storage"), path: spec.path.child("resources").key("storage") };
    if storage.there() {
        check_positive(&storage, errors);
    } else {
        errors.required(&storage, "");
    }
    errors.may_format(&spec.child("storageClassName"), formats::dns_subdomain);
    errors.may_format(&spec.child("volumeAttributesClassName"), formats::dns_subdomain);
    errors.may_one_of(&spec.child("volumeMode"), &["Block", "Filesystem"]);
    for source in ["dataSource", "dataSourceRef"].map(|s| spec.child(s)).into_iter().filter(At::there) {
        errors.need(&source.child("name"), "");
        if errors.need(&source.child("kind"), "")
            && source.value.text("apiGroup").is_empty()
            && source.value.text("kind") != "PersistentVolumeClaim"
        {
            errors.invalid_as(
                &source,
                source.value.text("kind"),
                "must be 'PersistentVolumeClaim' when referencing the default apiGroup",
            );
        }
    }
    if spec.value.has("dataSource")
        && spec.value.has("dataSourceRef")
        && spec.value.text("dataSourceRef.namespace").is_empty()
        && !same(spec.value.at("dataSource"), spec.value.at("dataSourceRef"))
    {
        errors.invalid_as(spec, "dataSource", "must match dataSourceRef");
    }
}

impl Strategy for PersistentVolumeClaim {
    fn default(&self, object: &mut Value) {
        object.or_put("status.phase", "Pending");
        if let Some(spec) = object.at_mut("spec") {
            spec.or_put("volumeMode", "Filesystem");
        }
    }

    fn prepare_create(&self, _cx: &Context<'_>, object: &mut Value) {
        object.put("status", json!({"phase": "Pending"}));
        if let Some(spec) = object.at_mut("spec") {
            drop_strange_source(spec);
            mirror_data_source(spec);
        }
    }

    fn prepare_update(&self, cx: &Context<'_>, object: &mut Value, _old: &Value) {
        if cx.subresource.is_empty()
            && let Some(spec) = object.at_mut("spec")
        {
            mirror_data_source(spec);
        }
    }

    fn validate_create(&self, _cx: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        check_claim(&At::new(object.at("spec"), "spec"), &mut errors);
        errors.0
    }

    fn validate_update(&self, cx: &Context<'_>, object: &Value, old: &Value) -> Vec<FieldError> {
        const DETAIL: &str =
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";
        const SIZE: &str = "resources.requests.storage";
        let mut errors = Errors::default();
        if cx.subresource == "status" {
            resources::list(&At::root(object).child("status.capacity"), &mut errors);
            return errors.0;
        }
        errors.0 = self.validate_create(cx, object);
        let (spec, before) = (At::new(object.at("spec"), "spec"), old.at("spec"));
        let mut rest = spec.value.clone();
        if !before.has("volumeName") || before.text("volumeName").is_empty() {
            rest.copy_from("volumeName", before);
        }
        if !before.has("storageClassName") {
            rest.copy_from("storageClassName", before);
        }
        if object.text("status.phase") == "Bound" {
            rest.copy_from(SIZE, before);
            rest.copy_from("volumeAttributesClassName", before);
        }
        if !same(&rest, before) {
            errors.forbidden(&spec, DETAIL);
        }
        let amount = |v: &Value| Quantity::from_value(v).unwrap_or_else(|_| Quantity::zero());
        let (wanted, had, has) =
            (amount(spec.value.at(SIZE)), amount(before.at(SIZE)), amount(old.at("status.capacity.storage")));
        if wanted < had && wanted <= has {
            errors.forbidden(&spec.child("resources.requests.storage"), "field can not be less than status.capacity");
        }
        errors.0
    }

    fn tracks_generation(&self, _has_status: bool) -> bool {
        false
    }

    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        let volume = object.text("spec.volumeName");
        let (capacity, modes) = if volume.is_empty() {
            (String::new(), "".into())
        } else {
            (quantity(object.at("status.capacity.storage")), access_modes(object.list("status.accessModes")))
        };
        vec![
            name(object),
            phase(object),
            volume.into(),
            capacity.into(),
            modes,
            class(object),
            attributes_class(object),
            age(object, now),
            volume_mode(object),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::tests::expect;

    const CX: Context<'static> = Context::SOMEBODY;

    #[test]
    fn volumes_are_checked() {
        let check = |spec: Value, expected: &[&str]| {
            let mut object = json!({"spec": spec});
            PersistentVolume.default(&mut object);
            expect(&PersistentVolume.validate_create(&CX, &object), expected, &object);
        };
        let good =
            || json!({"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/x"}});
        let with = |field: &str, value: Value| {
            let mut spec = good();
            spec.put(field, value);
            spec
        };
        check(good(), &[]);
        check(
            json!({}),
            &[
                "spec.accessModes: Required value",
                "spec.capacity: Required value",
                "spec.capacity: Unsupported value: null: supported values: \"storage\"",
                "spec: Required value: must specify a volume type",
            ],
        );
        check(with("nfs", json!({})), &["spec.nfs: Forbidden: may not specify more than 1 volume type"]);
        check(
            with("capacity.storage", json!("0")),
            &["spec.capacity[storage]: Invalid value: \"0\": must be greater than zero"],
        );
        check(
            with("accessModes", json!(["ReadWriteOnce", "ReadWriteOncePod"])),
            &["spec.accessModes: Forbidden: may not use ReadWriteOncePod with other access modes"],
        );
        let old = json!({"spec": good()});
        let new = json!({"spec": with("hostPath.path", json!("/y"))});
        expect(
            &PersistentVolume.validate_update(&CX, &new, &old),
            &["spec.persistentvolumesource: Forbidden: spec.persistentvolumesource is immutable after creation"],
            &new,
        );
    }

    #[test]
    fn claims_are_checked_and_may_grow() {
        let claim = |size: &str, phase: &str| {
            let mut object = json!({"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}},
                "status": {"phase": phase, "capacity": {"storage": "1Gi"}}});
            PersistentVolumeClaim.default(&mut object);
            object
        };
        let check = |new: Value, old: Value, expected: &[&str]| {
            expect(&PersistentVolumeClaim.validate_update(&CX, &new, &old), expected, &new)
        };
        check(claim("2Gi", "Bound"), claim("1Gi", "Bound"), &[]);
        check(
            claim("2Gi", "Pending"),
            claim("1Gi", "Pending"),
            &[
                "spec: Forbidden: spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims",
            ],
        );
        check(
            claim("512Mi", "Bound"),
            claim("1Gi", "Bound"),
            &["spec.resources.requests.storage: Forbidden: field can not be less than status.capacity"],
        );
        let empty = json!({"spec": {}});
        expect(
            &PersistentVolumeClaim.validate_create(&CX, &empty),
            &[
                "spec.accessModes: Required value: at least 1 access mode is required",
                "spec.resources[storage]: Required value",
            ],
            &empty,
        );
    }
}
