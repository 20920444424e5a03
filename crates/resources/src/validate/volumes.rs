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

/// A path that does not lead up.
pub fn no_backsteps(at: &At<'_>, errors: &mut Errors) {
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
    divisor(&at.child("divisor"), resource.str(), errors);
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

/// Bytes of one, told apart by their names.
const SIZES: [&str; 13] = ["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"];

/// The unit a container's resource is shown in.
fn divisor(at: &At<'_>, resource: &str, errors: &mut Errors) {
    let Ok(unit) = meta::quantity::Quantity::from_value(at.value) else { return };
    let (units, of): (&[&str], _) = match resource.split_once('.').map_or("", |(_, of)| of) {
        "cpu" => (&["1m", "1"], "cpu"),
        "memory" => (&SIZES, "memory"),
        "ephemeral-storage" => (&SIZES, "local ephemeral storage"),
        of if of.starts_with("hugepages-") => (&SIZES, "hugepages"),
        _ => return,
    };
    if !unit.is_zero() && !units.contains(&unit.to_string().as_str()) {
        let several = if of == "cpu" { units.join(" and ") } else { units.join(", ") };
        errors.invalid_as(
            at,
            resource,
            format!("only divisor's values {several} are supported with the {of} resource"),
        );
    }
}

fn trust_bundle(at: &At<'_>, errors: &mut Errors) {
    let (name, signer) = (at.child("name"), at.child("signerName"));
    match (name.there(), signer.there()) {
        (true, true) => errors.invalid(at, "only one of name and signerName may be used"),
        (true, false) => {
            errors.need(&name, "must be a valid object name");
            if at.value.has("labelSelector") {
                let selector = at.child("labelSelector");
                errors.invalid(&selector, "labelSelector must be unset if name is specified");
            }
        }
        (false, true) => {
            errors.need(&signer, "must be a valid signer name");
            super::selectors::label_selector(&at.child("labelSelector"), errors);
        }
        (false, false) => errors.required(at, "either name or signerName must be specified"),
    }
    let path = at.child("path");
    errors.need(&path, "");
    file_path(&path, errors);
}

/// The shortest life of a pod's certificate, and its longest, by anybody's signers and by Kubernetes' own.
const CERTIFICATE_SECONDS: (i64, i64, i64) = (3600, 91 * 24 * 3600, 24 * 3600);

fn pod_certificate(at: &At<'_>, errors: &mut Errors) {
    let (signer, seconds) = (at.child("signerName"), at.child("maxExpirationSeconds"));
    errors.need(&signer, "");
    let kinds = ["RSA3072", "RSA4096", "ECDSAP256", "ECDSAP384", "ECDSAP521", "ED25519"];
    errors.one_of(&at.child("keyType"), &kinds);
    let (least, most, own) = CERTIFICATE_SECONDS;
    let most = if signer.str().starts_with("kubernetes.io/") { own } else { most };
    errors.at_least(&seconds, least, &format!("if provided, maxExpirationSeconds must be >= {least}"));
    if seconds.number().is_some_and(|s| s > most) {
        errors.invalid(&seconds, format!("if provided, maxExpirationSeconds must be <= {most}"));
    }
    let paths = ["credentialBundlePath", "keyPath", "certificateChainPath"].map(|f| at.child(f));
    let given = || paths.iter().filter(|path| !path.blank());
    given().for_each(|path| file_path(path, errors));
    if given().next().is_none() {
        let detail = "specify at least one of credentialBundlePath, keyPath, and certificateChainPath";
        errors.required(at, detail);
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
            // Upstream says of the path where the volume is.
            let path = At { path: at.path.child("path"), ..token.child("path") };
            if errors.need(&path, "") {
                file_path(&path, errors);
            }
        }
        let (bundle, certificate) = (source.child("clusterTrustBundle"), source.child("podCertificate"));
        if bundle.there() {
            trust_bundle(&bundle, errors);
        }
        if certificate.there() {
            pod_certificate(&certificate, errors);
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

/// Fields other sources need, strings and lists alike.
const NEEDED: [(&str, &[&str]); 6] = [
    ("rbd", &["monitors", "image"]),
    ("glusterfs", &["endpoints", "path"]),
    ("cephfs", &["monitors"]),
    ("azureFile", &["secretName", "shareName"]),
    ("flexVolume", &["driver"]),
    ("photonPersistentDisk", &["pdID"]),
];
const UNIT: &str = "must be between 0 and 255, inclusive";

fn fibre_channel(at: &At<'_>, errors: &mut Errors) {
    let (targets, lun) = (at.child("targetWWNs"), at.child("lun"));
    match (targets.value.list("").is_empty(), at.value.list("wwids").is_empty()) {
        (true, true) => errors.required(&targets, "must specify either targetWWNs or wwids, but not both"),
        (false, false) => errors.invalid(&targets, "targetWWNs and wwids can not be specified simultaneously"),
        _ => {}
    }
    if targets.value.list("").is_empty() {
    } else if !lun.there() {
        errors.required(&lun, "lun is required if targetWWNs is specified");
    } else if lun.number().is_some_and(|lun| !(0..=255).contains(&lun)) {
        errors.invalid(&lun, UNIT);
    }
}

fn iscsi(at: &At<'_>, errors: &mut Errors) {
    errors.need(&at.child("targetPortal"), "");
    let (name, lun) = (at.child("iqn"), at.child("lun"));
    if errors.need(&name, "") && !["iqn", "eui", "naa"].iter().any(|form| name.str().starts_with(form)) {
        errors.invalid(&name, "must be valid format starting with iqn, eui, or naa");
    }
    if lun.number().is_some_and(|lun| !(0..=255).contains(&lun)) {
        errors.invalid(&lun, UNIT);
    }
    let checked = at.value.flag("chapAuthDiscovery") || at.value.flag("chapAuthSession");
    if checked && !at.value.has("secretRef") {
        errors.required(&at.child("secretRef"), "");
    }
}

fn source(volume: &At<'_>, kind: &str, in_pod: bool, errors: &mut Errors) {
    let at = volume.child(kind);
    for field in NEEDED.iter().filter(|(of, _)| *of == kind).flat_map(|(_, fields)| *fields).map(|f| at.child(f)) {
        if field.blank() || field.value.as_array().is_some_and(Vec::is_empty) {
            errors.required(&field, "");
        }
    }
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
        "csi" => {
            errors.driver_name(&at.child("driver"));
            let secret = at.child("nodePublishSecretRef.name");
            if at.value.has("nodePublishSecretRef") && errors.need(&secret, "") {
                errors.format(&At { path: at.path.child("name"), ..secret }, formats::dns_subdomain);
            }
        }
        "ephemeral" => {
            let template = at.child("volumeClaimTemplate");
            if errors.need(&template, "") {
                // Upstream leaves `metadata` out of these paths.
                let metadata = At { path: template.path.clone(), ..template.child("metadata") };
                crate::metadata::template(&metadata, errors);
                crate::kinds::volume::check_claim(&template.child("spec"), errors);
            }
        }
        "fc" => fibre_channel(&at, errors),
        "iscsi" => iscsi(&at, errors),
        "image" => {
            // Templates may leave it to whoever makes the pod.
            if in_pod {
                errors.need(&at.child("reference"), "");
            }
        }
        "gitRepo" => {
            errors.need(&at.child("repository"), "");
            descending_path(&at.child("directory"), errors);
        }
        _ => {}
    }
}

/// The volumes of a pod spec; answers with the names of the good ones.
pub fn volumes<'v>(at: &At<'v>, in_pod: bool, errors: &mut Errors) -> HashSet<&'v str> {
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
            Some(kind) => source(&volume, kind, in_pod, errors),
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
    for name in spec.each("volumes").filter(|v| v.value.has("ephemeral")).map(|v| v.child("name")) {
        let claim = format!("{pod}-{}", name.str());
        for complaint in formats::dns_subdomain(&claim) {
            errors.invalid(&name, format!("PVC name {claim:?}: {complaint}"));
        }
    }
    for claim in spec.each("volumes").map(|v| v.child("persistentVolumeClaim.claimName")) {
        if made.contains(claim.str()) {
            errors.invalid(&claim, "must not reference a PVC that gets created for an ephemeral volume");
        }
    }
}
