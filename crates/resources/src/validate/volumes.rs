//! Volumes of a pod.

use std::collections::HashSet;

use super::{At, Errors, formats};
use meta::Tree;

/// Sources a volume may have, exactly one of them.
const SOURCES: &[&str] = &[
    "emptyDir",
    "hostPath",
    "gitRepo",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "secret",
    "nfs",
    "iscsi",
    "glusterfs",
    "persistentVolumeClaim",
    "rbd",
    "flexVolume",
    "cinder",
    "cephfs",
    "flocker",
    "downwardAPI",
    "fc",
    "azureFile",
    "configMap",
    "quobyte",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "scaleIO",
    "storageos",
    "projected",
    "csi",
    "ephemeral",
    "image",
];
/// What a path of the host may be asked to be.
pub const HOST_PATH_TYPES: &[&str] =
    &["", "DirectoryOrCreate", "Directory", "FileOrCreate", "File", "Socket", "CharDevice", "BlockDevice"];
const FILE_MODE: &str = "must be a number between 0 and 0777 (octal), both inclusive";
/// Fields the downward API shows in files.
const FILE_FIELDS: &[&str] =
    &["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];
const RESOURCES: &[&str] = &[
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.ephemeral-storage",
];
/// A projected token's longest life.
pub const MAX_TOKEN_SECONDS: i64 = 1 << 32;
/// And its shortest.
pub const MIN_TOKEN_SECONDS: i64 = 600;

fn no_backsteps(at: &At<'_>, errors: &mut Errors) {
    if at.str().split(['/', '\\']).any(|part| part == "..") {
        errors.invalid(at, "must not contain '..'");
    }
}

/// A path below something.
pub fn descending_path(at: &At<'_>, errors: &mut Errors) {
    if at.str().starts_with('/') {
        errors.invalid(at, "must be a relative path");
    }
    no_backsteps(at, errors);
}

/// As `descending_path`, free of names that files made from configuration need for themselves.
fn file_path(at: &At<'_>, errors: &mut Errors) {
    descending_path(at, errors);
    if at.str().starts_with("..") && !at.str().starts_with("../") {
        errors.invalid(at, "must not start with '..'");
    }
}

fn mode(at: &At<'_>, errors: &mut Errors) {
    if at.number().is_some_and(|m| !(0..=0o777).contains(&m)) {
        errors.invalid(at, FILE_MODE);
    }
}

fn keys_to_paths(at: &At<'_>, errors: &mut Errors) {
    for item in at.items() {
        errors.need(&item.child("key"), "");
        if errors.need(&item.child("path"), "") {
            file_path(&item.child("path"), errors);
        }
        mode(&item.child("mode"), errors);
    }
}

/// A field the downward API shows. `fields` may be followed by `['key']` for labels and annotations.
pub fn field_ref(at: &At<'_>, fields: &[&str], errors: &mut Errors) {
    let path = at.child("fieldPath");
    if !errors.need(&at.child("apiVersion"), "") || !errors.need(&path, "") {
        return;
    }
    match path.str().split_once("['").and_then(|(field, key)| Some((field, key.strip_suffix("']")?))) {
        Some(("metadata.annotations", key)) => {
            for complaint in formats::qualified_name(&key.to_lowercase()) {
                errors.invalid_as(at, key, complaint);
            }
        }
        Some(("metadata.labels", key)) => {
            for complaint in formats::qualified_name(key) {
                errors.invalid_as(at, key, complaint);
            }
        }
        Some((field, _)) => errors.invalid_as(at, field, "does not support subscript"),
        None if fields.contains(&path.str()) => {}
        None if super::containers::DOWNWARD_FIELDS.contains(&path.str()) || FILE_FIELDS.contains(&path.str()) => {
            errors.not_supported(&path, fields);
        }
        None => errors.invalid(&path, format!("error converting fieldPath: field label not supported: {}", path.str())),
    }
}

/// A container's resource the downward API shows.
pub fn resource_ref(at: &At<'_>, in_file: bool, errors: &mut Errors) {
    let resource = at.child("resource");
    if in_file && at.child("containerName").blank() {
        errors.required(&at.child("containerName"), "");
    } else if errors.need(&resource, "")
        && !RESOURCES.contains(&resource.str())
        && !["requests.hugepages-", "limits.hugepages-"].iter().any(|p| resource.str().starts_with(p))
    {
        errors.not_supported(&resource, RESOURCES);
    }
}

/// Upstream says of these which volume they are in, not which item.
fn downward_items(at: &At<'_>, errors: &mut Errors) {
    for item in at.each("items").map(|item| At { path: at.path.clone(), ..item }) {
        if errors.need(&item.child("path"), "") {
            file_path(&item.child("path"), errors);
        }
        let (field, resource) = (item.child("fieldRef"), item.child("resourceFieldRef"));
        match (field.there(), resource.there()) {
            (true, true) => errors.invalid_as(
                &item,
                "resource",
                "fieldRef and resourceFieldRef can not be specified simultaneously",
            ),
            (true, false) => field_ref(&field, FILE_FIELDS, errors),
            (false, true) => resource_ref(&resource, true, errors),
            (false, false) => errors.required(&item, "one of fieldRef and resourceFieldRef is required"),
        }
        mode(&item.child("mode"), errors);
    }
}

fn projected(at: &At<'_>, errors: &mut Errors) {
    const KINDS: [&str; 6] =
        ["secret", "configMap", "downwardAPI", "serviceAccountToken", "clusterTrustBundle", "podCertificate"];
    mode(&at.child("defaultMode"), errors);
    let mut paths = HashSet::new();
    for source in at.each("sources") {
        let kinds = KINDS.iter().filter(|k| source.value.has(k)).count();
        if kinds > 1 {
            errors.forbidden(&source, "may not specify more than 1 volume type");
        }
        for kind in ["secret", "configMap"] {
            let of = source.child(kind);
            if of.there() {
                errors.need(&of.child("name"), "");
                keys_to_paths(&of.child("items"), errors);
            }
        }
        downward_items(&source.child("downwardAPI"), errors);
        let token = source.child("serviceAccountToken");
        if token.there() {
            let seconds = token.child("expirationSeconds");
            errors.at_least(&seconds, MIN_TOKEN_SECONDS, "may not specify a duration less than 10 minutes");
            if seconds.number().is_some_and(|s| s > MAX_TOKEN_SECONDS) {
                errors.invalid(&seconds, "may not specify a duration larger than 2^32 seconds");
            }
            errors.need(&token.child("path"), "");
        }
        for kind in ["secret", "configMap", "downwardAPI"].map(|k| source.child(k)) {
            for path in kind.each("items").map(|i| i.child("path")).filter(|p| !p.blank()) {
                if !paths.insert(path.str()) {
                    let shown = kind.value.at("name").as_str().unwrap_or(path.str());
                    errors.invalid_as(at, shown, "conflicting duplicate paths");
                }
            }
        }
    }
}

fn source(volume: &At<'_>, kind: &str, errors: &mut Errors) {
    let at = volume.child(kind);
    match kind {
        "emptyDir" => {
            let limit = at.child("sizeLimit");
            if limit.there() && meta::quantity::Quantity::from_value(limit.value).is_ok_and(|q| q.sign() < 0) {
                errors.forbidden(&limit, "SizeLimit field must be a valid resource quantity");
            }
        }
        "hostPath" => {
            errors.need(&at.child("path"), "");
            no_backsteps(&at.child("path"), errors);
            errors.may_one_of(&at.child("type"), HOST_PATH_TYPES);
        }
        "secret" | "configMap" => {
            errors.need(&at.child(if kind == "secret" { "secretName" } else { "name" }), "");
            mode(&at.child("defaultMode"), errors);
            keys_to_paths(&at.child("items"), errors);
        }
        "nfs" => {
            errors.need(&at.child("server"), "");
            let path = at.child("path");
            errors.need(&path, "");
            if !path.str().starts_with('/') {
                errors.invalid(&path, "must be an absolute path");
            }
        }
        "persistentVolumeClaim" => drop(errors.need(&at.child("claimName"), "")),
        "downwardAPI" => {
            mode(&at.child("defaultMode"), errors);
            downward_items(&at, errors);
        }
        "projected" => projected(&at, errors),
        "csi" => errors.driver_name(&at.child("driver")),
        "ephemeral" => drop(errors.need(&at.child("volumeClaimTemplate"), "")),
        _ => {}
    }
}

/// The volumes of a pod spec; answers with the names of the good ones.
pub fn volumes<'v>(at: &At<'v>, errors: &mut Errors) -> HashSet<&'v str> {
    let mut names = HashSet::new();
    for volume in at.items() {
        let before = errors.0.len();
        // A volume has few members, and there are many sources.
        let members = volume.value.map("").iter().filter(|(_, of)| !of.is_null());
        let mut kinds: Vec<usize> = members.filter_map(|(kind, _)| SOURCES.iter().position(|s| s == kind)).collect();
        kinds.sort_unstable();
        let mut kinds = kinds.into_iter().map(|kind| SOURCES[kind]);
        match kinds.next() {
            None => errors.required(&volume, "must specify a volume type"),
            Some(kind) => source(&volume, kind, errors),
        }
        for extra in kinds {
            errors.forbidden(&volume.child(extra), "may not specify more than 1 volume type");
        }
        let name = volume.child("name");
        errors.need_format(&name, formats::dns_label);
        if names.contains(name.str()) {
            errors.duplicate(&name);
        }
        if errors.0.len() == before {
            names.insert(name.str());
        }
    }
    names
}

/// Claims made for ephemeral volumes belong to them alone.
pub fn ephemeral_claims(spec: &At<'_>, pod: &str, errors: &mut Errors) {
    let made: HashSet<String> = spec
        .each("volumes")
        .filter(|v| v.value.has("ephemeral"))
        .map(|v| format!("{pod}-{}", v.value.text("name")))
        .collect();
    for claim in spec.each("volumes").map(|v| v.child("persistentVolumeClaim.claimName")) {
        if made.contains(claim.str()) {
            errors.invalid(&claim, "must not reference a PVC that gets created for an ephemeral volume");
        }
    }
}
