//! resource.k8s.io: claims on devices and the slices that offer them.

use meta::{FieldError, Status, Value};

use crate::cells::{age, name, or_none};
use crate::strategy::{Context, Strategy};
use crate::validate::{At, Errors, devices, formats, resources, slices};
use meta::Tree;

kinds! {
    DeviceClass: "Name|Age";
    DeviceTaintRule: "Name|Age";
    ResourceClaimTemplate: "Name|Age";
    ResourceClaim: "Name|State|Age";
    ResourceSlice: "Name|Node|Driver|Pool|Age";
}

impl Strategy for DeviceClass {
    fn validate_create(&self, _cx: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let (spec, mut errors) = (At::new(object.at("spec"), "spec"), Errors::default());
        devices::selectors(&spec.child("selectors"), &mut errors);
        devices::configurations(&spec.child("config"), &mut errors);
        let extended = spec.child("extendedResourceName");
        if extended.there() && !resources::is_extended(extended.str()) {
            errors.invalid(&extended, "must be a valid extended resource name");
        }
        errors.0
    }

    fn validate_update(&self, cx: &Context<'_>, object: &Value, _old: &Value) -> Vec<FieldError> {
        self.validate_create(cx, object)
    }

    fn tracks_generation(&self, _has_status: bool) -> bool {
        true
    }

    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        vec![name(object), age(object, now)]
    }
}

/// Since when a taint is there, where nobody says: since now.
fn date_taint(taint: &mut Value, now: &str) {
    if taint.is_object() && taint.at("timeAdded").is_null() {
        taint["timeAdded"] = now.into();
    }
}

impl Strategy for DeviceTaintRule {
    fn prepare_create(&self, cx: &Context<'_>, object: &mut Value) {
        if let Some(taint) = object.at_mut("spec.taint") {
            date_taint(taint, cx.now);
        }
    }

    fn prepare_update(&self, cx: &Context<'_>, object: &mut Value, _old: &Value) {
        self.prepare_create(cx, object);
    }

    fn validate_create(&self, _cx: &Context<'_>, object: &Value) -> Vec<FieldError> {
        check_rule(object, None)
    }

    fn validate_update(&self, cx: &Context<'_>, object: &Value, old: &Value) -> Vec<FieldError> {
        if cx.subresource.is_empty() {
            return check_rule(object, Some(old));
        }
        let mut errors = Errors::default();
        crate::validate::conditions::conditions(&At::root(object).child("status.conditions"), &mut errors);
        errors.0
    }

    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        vec![name(object), age(object, now)]
    }
}

fn check_rule(object: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let (spec, mut errors) = (At::new(object.at("spec"), "spec"), Errors::default());
    let selector = spec.child("deviceSelector");
    let [driver, pool, device] = ["driver", "pool", "device"].map(|f| selector.child(f));
    if driver.there() {
        errors.driver_name(&driver);
    }
    if pool.there() {
        devices::pool_name(&pool, &mut errors);
    }
    errors.format_if_set(&device, formats::dns_label);
    devices::taint(&spec.child("taint"), old.map(|old| old.at("spec.taint")), &mut errors);
    errors.0
}

/// Defaults of a claim's spec: one device, if not said otherwise.
fn default_claim(spec: &mut Value) {
    for request in spec.list_mut("devices.requests") {
        if let Some(exactly) = request.at_mut("exactly") {
            default_request(exactly);
        }
        for alternative in request.list_mut("firstAvailable") {
            default_request(alternative);
        }
    }
}

fn default_request(request: &mut Value) {
    request.or_put("allocationMode", "ExactCount");
    if request.text("allocationMode") == "ExactCount" && request.int("count") == 0 {
        request.put("count", 1);
    }
}

/// What v1beta1 says of a request itself, and later versions of what is asked for exactly.
const REQUESTED: [&str; 7] =
    ["deviceClassName", "selectors", "allocationMode", "count", "adminAccess", "tolerations", "capacity"];
/// What v1beta1 says of a basic device, and later versions of any.
const OF_DEVICES: [&str; 12] = [
    "attributes",
    "capacity",
    "consumesCounters",
    "nodeName",
    "nodeSelector",
    "allNodes",
    "taints",
    "bindsToNode",
    "bindingConditions",
    "bindingFailureConditions",
    "allowMultipleAllocations",
    "nodeAllocatableResources",
];
const FLAT: &str = "v1beta1";

/// Moves fields from an object to one inside it, which is there only if any of them is.
fn nest(object: &mut Value, inside: &str, fields: &[&str]) {
    for field in fields {
        let value = object.as_object_mut().and_then(|o| o.remove(*field)).filter(|v| *v != "");
        if let Some(value) = value {
            object.put(&format!("{inside}.{field}"), value);
        }
    }
}

/// The other way.
fn unnest(object: &mut Value, inside: &str) {
    let Some(object) = object.as_object_mut() else { return };
    if let Some(Value::Object(fields)) = object.remove(inside) {
        object.extend(fields);
    }
}

fn convert_claim(spec: Option<&mut Value>, from: &str, to: &str) {
    let Some(spec) = spec.filter(|_| (from == FLAT) != (to == FLAT)) else { return };
    for request in spec.list_mut("devices.requests") {
        if to == FLAT {
            unnest(request, "exactly");
        } else {
            nest(request, "exactly", &REQUESTED);
        }
    }
}

impl Strategy for ResourceClaimTemplate {
    fn convert(&self, object: &mut Value, from: &str, to: &str) -> Result<(), Status> {
        convert_claim(object.at_mut("spec.spec"), from, to);
        Ok(())
    }

    fn default(&self, object: &mut Value) {
        if let Some(spec) = object.at_mut("spec.spec") {
            default_claim(spec);
        }
    }

    fn validate_create(&self, _cx: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let (spec, mut errors) = (At::new(object.at("spec"), "spec"), Errors::default());
        crate::metadata::template(&spec.child("metadata"), &mut errors);
        devices::claim(&spec.child("spec"), &mut errors);
        errors.0
    }

    fn validate_update(&self, _cx: &Context<'_>, object: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        errors.immutable(&At::root(object).child("spec"), old.at("spec"));
        errors.0
    }

    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        vec![name(object), age(object, now)]
    }
}

impl Strategy for ResourceClaim {
    fn convert(&self, object: &mut Value, from: &str, to: &str) -> Result<(), Status> {
        convert_claim(object.at_mut("spec"), from, to);
        Ok(())
    }

    fn default(&self, object: &mut Value) {
        if let Some(spec) = object.at_mut("spec") {
            default_claim(spec);
        }
    }

    fn validate_create(&self, _cx: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        devices::claim(&At::new(object.at("spec"), "spec"), &mut errors);
        errors.0
    }

    fn validate_update(&self, cx: &Context<'_>, object: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        if cx.subresource.is_empty() {
            errors.immutable(&At::root(object).child("spec"), old.at("spec"));
        } else {
            devices::claim_status(object, old, &mut errors);
        }
        errors.0
    }

    fn tracks_generation(&self, _has_status: bool) -> bool {
        false
    }

    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        let deleted = object.has("metadata.deletionTimestamp");
        let mut states = Vec::new();
        if deleted {
            states.push("deleted");
        }
        if object.has("status.allocation") {
            states.push("allocated");
            if !object.list("status.reservedFor").is_empty() {
                states.push("reserved");
            }
        } else if !deleted {
            states.push("pending");
        }
        vec![name(object), states.join(",").into(), age(object, now)]
    }
}

impl Strategy for ResourceSlice {
    fn convert(&self, object: &mut Value, from: &str, to: &str) -> Result<(), Status> {
        for device in object.list_mut("spec.devices") {
            match (from == FLAT, to == FLAT) {
                (false, true) => nest(device, "basic", &OF_DEVICES),
                (true, false) => unnest(device, "basic"),
                _ => {}
            }
        }
        Ok(())
    }

    fn prepare_create(&self, cx: &Context<'_>, object: &mut Value) {
        for device in object.list_mut("spec.devices") {
            device.list_mut("taints").iter_mut().for_each(|taint| date_taint(taint, cx.now));
        }
    }

    fn prepare_update(&self, cx: &Context<'_>, object: &mut Value, _old: &Value) {
        self.prepare_create(cx, object);
    }

    fn validate_create(&self, _cx: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        slices::slice(&At::new(object.at("spec"), "spec"), None, &mut errors);
        errors.0
    }

    fn validate_update(&self, _cx: &Context<'_>, object: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        slices::slice(&At::new(object.at("spec"), "spec"), Some(old.at("spec")), &mut errors);
        errors.0
    }

    fn tracks_generation(&self, _has_status: bool) -> bool {
        true
    }

    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        let node =
            if object.flag("spec.allNodes") { "<all nodes>".into() } else { or_none(object.text("spec.nodeName")) };
        vec![
            name(object),
            node,
            object.text("spec.driver").into(),
            object.text("spec.pool.name").into(),
            age(object, now),
        ]
    }
}
