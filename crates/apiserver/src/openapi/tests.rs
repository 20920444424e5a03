//! What is published, beside upstream's published document of v1.36: every definition and every operation.
//!
//! Sentences aside, the two must say the same but for what v1.37 added and what upstream's document has because all its alpha
//! features were turned on when it was made: both are listed here as data.

use std::collections::{BTreeMap, BTreeSet};

use meta::Value;
use meta::schema::builtin;
use serde_json::{Map, json};

use super::kind_of;
use meta::openapi::Kind;

/// Group-versions off by default, as paths and definitions spell them.
const OFF: &[(&str, &str)] = &[
    ("admissionregistration.k8s.io/v1alpha1", "admissionregistration.v1alpha1"),
    ("admissionregistration.k8s.io/v1beta1", "admissionregistration.v1beta1"),
    ("certificates.k8s.io/v1alpha1", "certificates.v1alpha1"),
    ("certificates.k8s.io/v1beta1", "certificates.v1beta1"),
    ("coordination.k8s.io/v1alpha2", "coordination.v1alpha2"),
    ("coordination.k8s.io/v1beta1", "coordination.v1beta1"),
    ("internal.apiserver.k8s.io/", "apiserverinternal.v1alpha1"),
    ("networking.k8s.io/v1beta1", "networking.v1beta1"),
    ("resource.k8s.io/v1alpha3", "resource.v1alpha3"),
    ("resource.k8s.io/v1beta1", "resource.v1beta1"),
    ("resource.k8s.io/v1beta2", "resource.v1beta2"),
    ("scheduling.k8s.io/v1alpha2", "scheduling.v1alpha2"),
    ("storage.k8s.io/v1beta1", "storage.v1beta1"),
    ("storagemigration.k8s.io/v1beta1", "storagemigration.v1beta1"),
];

/// Paths v1.37 added, by what follows `/apis/` and a watch's or a namespace's part.
const NEW_PATHS: &[&str] = &[
    "certificates.k8s.io/v1/clustertrustbundles",
    "certificates.k8s.io/v1/podcertificaterequests",
    "resource.k8s.io/v1/devicetaintrules",
    "storagemigration.k8s.io/v1/",
];

/// What v1.37 added, removed or changed in definitions below `io.k8s.api.`: `Definition`, `Definition.` and a part of it. That
/// `required` moved is confirmed by the types of the k8s-openapi crate, made of v1.37's document.
const CHANGED_IN_1_37: &[&str] = &[
    "apps.v1.ControllerRevision.required",
    "apps.v1.DaemonSet.required",
    "apps.v1.DaemonSetCondition.required",
    "apps.v1.Deployment.required",
    "apps.v1.DeploymentCondition.required",
    "apps.v1.ReplicaSet.required",
    "apps.v1.ReplicaSetCondition.required",
    "apps.v1.StatefulSet.required",
    "apps.v1.StatefulSetCondition.required",
    "authentication.v1.TokenRequestSpec.properties.attestations",
    "autoscaling.v2.HorizontalPodAutoscalerCondition.properties.observedGeneration",
    "batch.v1.JobSchedulingConfiguration",
    "batch.v1.JobSpec.properties.scheduling",
    "certificates.v1.ClusterTrustBundle",
    "certificates.v1.PodCertificateRequest",
    "core.v1.ClusterTrustBundleProjection.properties.user",
    "core.v1.ConfigMapVolumeSource.properties.defaultUser",
    "core.v1.DownwardAPIVolumeFile.properties.user",
    "core.v1.DownwardAPIVolumeSource.properties.defaultUser",
    "core.v1.EmptyDirVolumeSource.properties.mode",
    "core.v1.EvictionResponder",
    "core.v1.GRPCAction.properties.mode",
    "core.v1.HTTPGetAction.properties.protocol",
    "core.v1.KeyToPath.properties.user",
    "core.v1.NodeAllocatable",
    "core.v1.NodePodPreemptionPolicy",
    "core.v1.NodeSpec.properties.podPreemptionPolicy",
    "core.v1.PersistentVolumeClaimStatus.properties.healthStatus",
    "core.v1.PodCertificateProjection.properties.user",
    "core.v1.PodSpec.properties.evictionResponders",
    "core.v1.PodStatus.properties.nodeAllocatableResourceClaimStatuses",
    "core.v1.PodStatus.properties.volumeHealth",
    "core.v1.PodVolumeHealth",
    "core.v1.ProjectedVolumeSource.properties.defaultUser",
    "core.v1.SecretVolumeSource.properties.defaultUser",
    "core.v1.ServiceAccountTokenProjection.properties.user",
    "core.v1.VolumeHealth",
    "core.v1.VolumeMount.properties.bindMountOptions",
    "flowcontrol.v1.FlowSchema.required",
    "flowcontrol.v1.FlowSchemaCondition.required",
    "flowcontrol.v1.LimitedPriorityLevelConfiguration.required",
    "flowcontrol.v1.PriorityLevelConfiguration.required",
    "flowcontrol.v1.PriorityLevelConfigurationCondition.required",
    "resource.v1.Device.properties.nodeAllocatableResource",
    "resource.v1.DeviceClass.required",
    "resource.v1.DeviceRequestAllocationResult.properties.skipNodeOperations",
    "resource.v1.DeviceTaintRule",
    "resource.v1.DeviceTaintSelector",
    "resource.v1.NodeAllocatable",
    "resource.v1.ResourceClaim.required",
    "resource.v1.ResourceClaimTemplate.required",
    "resource.v1.ResourceClaimTemplateSpec.required",
    "resource.v1.ResourceSliceSpec.properties.partitionTypeAttribute",
    "resource.v1.ResourceSliceSpec.properties.skipNodeOperations",
    "scheduling.v1alpha3.",
    "storage.v1.CSINode.properties.status",
    "storage.v1.CSINodeStatus",
    "storage.v1.StorageHealth",
    "storagemigration.v1.",
];

/// Versions whose `DeleteOptions` and `WatchEvent` one of the two releases knows and the other does not.
const REGISTERED_ANEW: &[(&str, &str)] =
    &[("storagemigration.k8s.io", "v1"), ("scheduling.k8s.io", "v1alpha2"), ("scheduling.k8s.io", "v1alpha3")];

/// Paths that are not served.
const UNSERVED: &[&str] = &["/logs/", "/logs/{logpath}"];

/// Media types and parameters behind gates that are off by default.
const ALPHA: &[&str] = &["application/cbor", "application/cbor-seq", "application/apply-patch+cbor", "shardSelector"];

fn published() -> Option<Value> {
    let root = std::env::var_os("NAUPLIUS_REFERENCE").map(std::path::PathBuf::from);
    let root =
        root.unwrap_or_else(|| std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/reference"));
    let Ok(text) = std::fs::read(root.join("openapi-v2-1.36.json")) else {
        println!("skipped: no published document at {} (set NAUPLIUS_REFERENCE)", root.display());
        return None;
    };
    Some(serde_json::from_slice(&text).expect("document"))
}

/// Every built-in kind in every version that is served by default.
fn ours() -> Value {
    let rows = resources::builtin::table(builtin(), &Default::default());
    let mut kinds: Vec<Kind<'_>> = Vec::new();
    for row in rows.iter().filter(|row| &*row.group != "metrics.k8s.io") {
        kinds.extend(row.versions.iter().filter(|v| v.served).map(|v| kind_of(row, v)));
    }
    meta::openapi::v2(&kinds, &())
}

fn without_sentences(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let kept = map.iter().filter(|(k, v)| !(*k == "description" && v.is_string()));
            Value::Object(kept.map(|(k, v)| (k.clone(), without_sentences(v))).collect())
        }
        Value::Array(items) => items.iter().map(without_sentences).collect(),
        other => other.clone(),
    }
}

/// A list whose order says nothing.
fn sorted(value: &Value) -> Value {
    let mut items: Vec<Value> = value.as_array().cloned().unwrap_or_default();
    items.retain(|i| !i.as_str().is_some_and(|text| ALPHA.contains(&text)));
    items.sort_by_key(Value::to_string);
    items.into()
}

/// Operations by path and method, each with all its parameters and nothing shared.
fn operations(document: &Value) -> BTreeMap<String, Value> {
    let mut out = BTreeMap::new();
    let empty = Map::new();
    let resolve = |parameter: &Value| match parameter["$ref"].as_str() {
        Some(reference) => without_sentences(document.pointer(&reference[1..]).expect("shared parameter")),
        None => without_sentences(parameter),
    };
    for (path, item) in document["paths"].as_object().unwrap_or(&empty) {
        let listed = |at: &Value| at["parameters"].as_array().cloned().unwrap_or_default();
        let common = listed(item);
        for (method, operation) in item.as_object().into_iter().flatten().filter(|(k, _)| *k != "parameters") {
            let mut operation = without_sentences(operation);
            let mut parameters: Vec<Value> = common.iter().chain(&listed(&operation)).map(resolve).collect();
            parameters.retain(|p| !p["name"].as_str().is_some_and(|name| ALPHA.contains(&name)));
            operation["parameters"] = sorted(&parameters.into());
            for key in ["consumes", "produces", "tags"] {
                operation[key] = sorted(&operation[key]);
            }
            out.insert(format!("{method} {path}"), operation);
        }
    }
    out
}

/// What differs, by pointer.
fn compare(at: &str, ours: &Value, theirs: &Value, out: &mut Vec<String>) {
    match (ours, theirs) {
        (Value::Object(a), Value::Object(b)) => {
            for key in a.keys().chain(b.keys()).collect::<BTreeSet<_>>() {
                let null = Value::Null;
                let at = format!("{at}.{key}");
                compare(&at, a.get(key).unwrap_or(&null), b.get(key).unwrap_or(&null), out);
            }
        }
        (a, b) if a == b => {}
        (a, b) => out.push(format!("{at}: ours {a}, published {b}")),
    }
}

/// A definition without what says the same in any order. The published document was made without the feature that publishes
/// enumerations, which is on by default.
fn definition(value: &Value) -> Value {
    fn without_enumerations(value: &mut Value) {
        if let Value::Object(map) = value {
            map.retain(|key, v| !(key == "enum" && v.is_array()));
            map.values_mut().for_each(without_enumerations);
        }
    }
    let mut value = without_sentences(value);
    without_enumerations(&mut value);
    for key in ["required", "x-kubernetes-group-version-kind"] {
        if let Some(list) = value.get_mut(key) {
            *list = sorted(list);
            let known = |v: &Value| REGISTERED_ANEW.iter().any(|(g, n)| v["group"] == *g && v["version"] == *n);
            let events = |v: &Value| matches!(v["kind"].as_str(), Some("DeleteOptions" | "WatchEvent"));
            list.as_array_mut().into_iter().for_each(|list| list.retain(|v| !(known(v) && events(v))));
        }
    }
    value
}

fn paths_differ(ours: &Value, published: &Value) -> Vec<String> {
    let new = |path: &str| {
        let mut path =
            path.trim_start_matches("/apis/").replace("/watch/", "/").replace("/namespaces/{namespace}/", "/");
        path.push('/');
        NEW_PATHS.iter().any(|new| path.starts_with(new))
    };
    let off = |path: &str| OFF.iter().any(|(gv, _)| path.strip_prefix("/apis/").is_some_and(|p| p.starts_with(gv)));
    let (mine, theirs) = (operations(ours), operations(published));
    let mut out = Vec::new();
    for name in mine.keys().chain(theirs.keys()).collect::<BTreeSet<_>>() {
        let path = name.split(' ').nth(1).unwrap_or_default();
        if !UNSERVED.contains(&path) && !off(path) && !new(path) {
            let get = |of: &BTreeMap<String, Value>| of.get(name).cloned().unwrap_or(json!(null));
            compare(name, &get(&mine), &get(&theirs), &mut out);
        }
    }
    out
}

fn definitions_differ(ours: &Value, published: &Value) -> Vec<String> {
    let of = |document: &Value| -> BTreeMap<String, Value> {
        let all = document["definitions"].as_object().cloned().unwrap_or_default();
        all.iter().map(|(name, d)| (name.clone(), definition(d))).collect()
    };
    let (mine, theirs) = (of(ours), of(published));
    let mut out = Vec::new();
    for name in mine.keys().chain(theirs.keys()).collect::<BTreeSet<_>>() {
        let get = |of: &BTreeMap<String, Value>| of.get(name).cloned().unwrap_or(json!(null));
        compare(name, &get(&mine), &get(&theirs), &mut out);
    }
    let api = |difference: &str| difference.strip_prefix("io.k8s.api.").map(str::to_string);
    out.retain(|d| {
        api(d).is_none_or(|d| {
            !CHANGED_IN_1_37.iter().any(|known| d.starts_with(known))
                && !OFF.iter().any(|(_, gv)| d.strip_prefix(gv).is_some_and(|rest| rest.starts_with('.')))
        })
    });
    out
}

#[test]
fn what_is_published_is_what_upstream_publishes() {
    let Some(published) = published() else { return };
    let ours = ours();
    let mut differences = paths_differ(&ours, &published);
    differences.extend(definitions_differ(&ours, &published));
    assert!(differences.is_empty(), "{} differences:\n{}", differences.len(), differences.join("\n"));
}

/// A schema of the third version as the second says it.
fn schema_as_v2(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut out = Map::new();
            for (key, value) in map {
                match (key.as_str(), value) {
                    // A reference stands alone in the second version and beside others in the third.
                    ("allOf", Value::Array(items)) if items.len() == 1 && items[0].get("$ref").is_some() => {
                        out.extend(schema_as_v2(&items[0]).as_object().cloned().unwrap_or_default());
                    }
                    // The second version has no word for either of two types.
                    ("oneOf", Value::Array(_)) => drop(out.insert("type".into(), "string".into())),
                    ("$ref", Value::String(name)) => {
                        let name = name.replace("#/components/schemas/", "#/definitions/");
                        out.insert(key.clone(), name.into());
                    }
                    _ => {
                        out.insert(key.clone(), schema_as_v2(value));
                    }
                }
            }
            out.into()
        }
        Value::Array(items) => items.iter().map(schema_as_v2).collect(),
        other => other.clone(),
    }
}

/// Defaults of fields that Go never leaves out are told in the third version only.
fn without_defaults(value: &mut Value) {
    let Value::Object(map) = value else { return };
    // Not a property that is called so.
    let is_schema = |v: &Value| ["$ref", "type", "allOf"].iter().any(|key| v.get(key).is_some());
    map.retain(|key, v| key != "default" || is_schema(v));
    map.values_mut().for_each(without_defaults);
}

fn operation_as_v2(operation: &Value) -> Value {
    let mut out = schema_as_v2(operation);
    let parameter = |parameter: &Value| {
        let mut parameter = parameter.as_object().cloned().unwrap_or_default();
        if let Some(Value::Object(schema)) = parameter.remove("schema") {
            parameter.extend(schema);
        }
        Value::Object(parameter)
    };
    let mut parameters: Vec<Value> = out["parameters"].as_array().into_iter().flatten().map(parameter).collect();
    let Some(map) = out.as_object_mut() else { return out };
    let content = |of: &Value| -> Map<String, Value> { of["content"].as_object().cloned().unwrap_or_default() };
    map.insert("consumes".into(), json!(["*/*"]));
    if let Some(body) = map.remove("requestBody") {
        let content = content(&body);
        let mut told =
            json!({"in": "body", "name": "body", "schema": content.values().next().map(|c| c["schema"].clone())});
        if body["required"] == true {
            told["required"] = true.into();
        }
        parameters.push(told);
        map.insert("consumes".into(), content.keys().cloned().collect());
    }
    let mut produces = BTreeSet::new();
    for response in map.get_mut("responses").and_then(Value::as_object_mut).into_iter().flat_map(|r| r.values_mut()) {
        let content = content(response);
        produces.extend(content.keys().cloned());
        if let (Some(response), Some(first)) = (response.as_object_mut(), content.values().next()) {
            response.remove("content");
            response.insert("schema".into(), first["schema"].clone());
        }
    }
    map.insert("produces".into(), produces.into_iter().collect());
    map.insert("parameters".into(), parameters.into());
    map.insert("schemes".into(), json!(["https"]));
    out
}

/// The documents of all group-versions, as one of the second version.
fn ours_by_group_version() -> Value {
    let rows = resources::builtin::table(builtin(), &Default::default());
    let mut by_version: BTreeMap<String, Vec<Kind<'_>>> = BTreeMap::new();
    for row in rows.iter().filter(|row| &*row.group != "metrics.k8s.io") {
        for version in row.versions.iter().filter(|v| v.served) {
            let gv = row.group_version(&version.name).to_string();
            by_version.entry(gv).or_default().push(kind_of(row, version));
        }
    }
    let (mut paths, mut definitions) = (Map::new(), Map::new());
    let all: Vec<meta::GroupVersion> = by_version.keys().filter_map(|gv| meta::GroupVersion::parse(gv)).collect();
    for kinds in by_version.values() {
        let document = meta::openapi::v3(kinds, &all, &());
        for (path, item) in document["paths"].as_object().into_iter().flatten() {
            let methods = item.as_object().into_iter().flatten().map(|(method, operation)| {
                let told = if method == "parameters" {
                    operation_as_v2(&json!({"parameters": operation}))["parameters"].clone()
                } else {
                    operation_as_v2(operation)
                };
                (method.clone(), told)
            });
            paths.insert(path.clone(), Value::Object(methods.collect()));
        }
        for (name, schema) in document["components"]["schemas"].as_object().into_iter().flatten() {
            definitions.insert(name.clone(), schema_as_v2(schema));
        }
    }
    json!({"paths": paths, "definitions": definitions})
}

#[test]
fn each_group_versions_document_says_what_upstream_publishes() {
    let Some(mut published) = published() else { return };
    let mut ours = ours_by_group_version();
    // What tells about the server or its versions has documents of its own; what none refers to is in none.
    let served: BTreeSet<String> =
        ours["paths"].as_object().into_iter().flatten().map(|(path, _)| path.clone()).collect();
    let of_a_version = |path: &str| match path.split('/').collect::<Vec<_>>()[..] {
        ["", "api", _, first, ..] => !first.is_empty(),
        ["", "apis", _, _, first, ..] => !first.is_empty(),
        _ => false,
    };
    for document in [&mut ours, &mut published] {
        if let Some(paths) = document["paths"].as_object_mut() {
            paths.retain(|path, _| of_a_version(path));
        }
        without_defaults(&mut document["definitions"]);
    }
    let known: BTreeSet<String> =
        ours["definitions"].as_object().into_iter().flatten().map(|(n, _)| n.clone()).collect();
    if let Some(definitions) = published["definitions"].as_object_mut() {
        definitions.retain(|name, _| known.contains(name));
    }
    assert!(served.len() > 300 && known.len() > 500, "{} paths, {} definitions", served.len(), known.len());
    let mut differences = paths_differ(&ours, &published);
    differences.extend(definitions_differ(&ours, &published));
    assert!(differences.is_empty(), "{} differences:\n{}", differences.len(), differences.join("\n"));
}
