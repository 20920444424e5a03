//! Volumes, claims, storage classes and CSI.

use meta::Value;

use crate::cells::{age, name, or_none, quantity, texts};
use crate::strategy::Strategy;
use crate::tree::Tree;

kinds! {
    PersistentVolume: "Name|Capacity|Access Modes|Reclaim Policy|Status|Claim|StorageClass|VolumeAttributesClass|Reason|Age|VolumeMode*";
    PersistentVolumeClaim: "Name|Status|Volume|Capacity|Access Modes|StorageClass|VolumeAttributesClass|Age|VolumeMode*";
    StorageClass: "Name|Provisioner|ReclaimPolicy|VolumeBindingMode|AllowVolumeExpansion|Age";
    VolumeAttachment: "Name|Attacher|PV|Node|Attached|Age";
    VolumeAttributesClass: "Name|DriverName|Age";
    CsiDriver: "Name|AttachRequired|PodInfoOnMount|StorageCapacity|TokenRequests|RequiresRepublish|Modes|Age";
    CsiNode: "Name|Drivers#|Age";
    CsiStorageCapacity: "Name|StorageClassName|Capacity";
}

const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";
const DEFAULT_CLASS_ANNOTATIONS: [&str; 2] =
    ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];

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

impl Strategy for PersistentVolume {
    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        let claim = object.at("spec.claimRef");
        let claim = if claim.is_null() { String::new() } else { format!("{}/{}", claim.text("namespace"), claim.text("name")) };
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

impl Strategy for PersistentVolumeClaim {
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

impl Strategy for StorageClass {
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
    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        vec![name(object), object.text("driverName").into(), age(object, now)]
    }
}

impl Strategy for CsiDriver {
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
    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        vec![name(object), object.list("spec.drivers").len().into(), age(object, now)]
    }
}

impl Strategy for CsiStorageCapacity {
    fn table_row(&self, object: &Value, _now: &str) -> Vec<Value> {
        let capacity = if object.has("capacity") { quantity(object.at("capacity")) } else { "<unset>".into() };
        vec![name(object), object.text("storageClassName").into(), capacity.into()]
    }
}
