//! What extends the API: custom resource definitions and API services.

use meta::{FieldError, FieldPath, Value};
use serde_json::{Map, json};

use crate::cells::{age, name, some_of};
use crate::kinds::Plain;
use crate::strategy::{Context, Strategy};
use crate::validate::{At, Errors, formats, rules, same, structural, webhooks};
use meta::Tree;

/// API servers of a storage version shown before the rest is counted.
const SERVERS_SHOWN: usize = 3;

kinds! {
    CustomResourceDefinition: "Name|Created At";
    ApiService: "Name|Service|Available|Age";
    StorageVersion: "Name|CommonEncodingVersion|StorageVersions|Age";
}

const COLUMN_TYPES: [&str; 5] = ["boolean", "date", "integer", "number", "string"];
/// Bytes of a version's deprecation warning.
const MAX_WARNING: usize = 256;
const SIMPLE_PATH: &str = "must be a simple json path starting with .";
const COLUMN_FORMATS: [&str; 9] = ["", "byte", "date", "date-time", "double", "float", "int32", "int64", "password"];
/// Groups of the project itself, whose APIs need its approval.
const PROTECTED: [&str; 2] = ["k8s.io", "kubernetes.io"];
const APPROVAL: &str = "api-approved.kubernetes.io";

fn storage_version(definition: &Value) -> &str {
    definition.list("spec.versions").iter().find(|v| v.flag("storage")).map_or("", |v| v.text("name"))
}

/// Complaints on one line, as CRDs put them.
fn joined(at: &At<'_>, text: &str, before: &str, errors: &mut Errors) {
    let complaints = formats::dns_1035_label(text);
    if !complaints.is_empty() {
        errors.invalid(at, format!("{before}{}", complaints.join(",")));
    }
}

fn check_names(names: &At<'_>, errors: &mut Errors) {
    const CASE: &str = "may have mixed case, but should otherwise match: ";
    for field in ["plural", "singular", "kind", "listKind"].map(|f| names.child(f)) {
        errors.need(&field, "");
    }
    for field in ["plural", "singular"].map(|f| names.child(f)).into_iter().filter(|f| !f.blank()) {
        joined(&field, field.str(), "", errors);
    }
    for field in ["kind", "listKind"].map(|f| names.child(f)).into_iter().filter(|f| !f.blank()) {
        joined(&field, &field.str().to_lowercase(), CASE, errors);
    }
    for name in names.each("shortNames").chain(names.each("categories")) {
        joined(&name, name.str(), "", errors);
    }
    if !names.child("kind").blank() && names.value.text("kind") == names.value.text("listKind") {
        errors.invalid(&names.child("listKind"), "kind and listKind may not be the same");
    }
}

/// Protected groups name where they were approved, or say that they were not.
fn disapproved(said: &str, path: &FieldPath) -> Option<FieldError> {
    const SEE: &str = "see https://github.com/kubernetes/enhancements/pull/1111";
    let needed = format!("protected groups must have approval annotation {APPROVAL:?}");
    let is_url = said.split_once("://").is_some_and(|(scheme, rest)| {
        !scheme.is_empty()
            && scheme.bytes().all(|b| b.is_ascii_alphanumeric())
            && !rest.is_empty()
            && !rest.starts_with('/')
    });
    match said {
        "" => Some(FieldError::required(path, format!("{needed}, {SEE}"))),
        said if is_url || said.starts_with("unapproved") => None,
        said => {
            let why = format!("{needed} with either a URL or a reason starting with \"unapproved\", {SEE}");
            Some(FieldError::invalid(path, said, why))
        }
    }
}

fn check_scale(scale: &At<'_>, errors: &mut Errors) {
    if !scale.there() {
        return;
    }
    for (field, root, required) in
        [("specReplicasPath", ".spec", true), ("statusReplicasPath", ".status", true), ("labelSelectorPath", "", false)]
    {
        let path = scale.child(field);
        if required && !errors.need(&path, "") {
            continue;
        }
        if !path.blank() && !path.str().starts_with('.') {
            errors.invalid(&path, SIMPLE_PATH);
            continue;
        }
        let below = |root: &str| path.str().strip_prefix(root).is_some_and(|rest| rest.starts_with('.'));
        if !path.blank() && !(if root.is_empty() { below(".spec") || below(".status") } else { below(root) }) {
            let where_ = if root.is_empty() { "either .spec or .status" } else { root };
            errors.invalid(&path, format!("should be a json path under {where_}"));
        }
    }
}

/// Fields that all versions have alike, which upstream moves out of them before it looks: complaints name the place they
/// were moved to, and come once.
#[derive(Clone, Copy, Default)]
struct Alike {
    schema: bool,
    subresources: bool,
    columns: bool,
    selectable: bool,
}

impl Alike {
    fn of(versions: &[Value]) -> Self {
        let alike = |field: &str| versions.iter().all(|v| same(v.at(field), versions[0].at(field)));
        Self {
            schema: alike("schema"),
            subresources: alike("subresources"),
            columns: alike("additionalPrinterColumns"),
            selectable: alike("selectableFields"),
        }
    }
}

/// A field of a version where complaints look for it; nothing where another version has said it already.
fn part<'v>(version: &At<'v>, field: &str, alike: bool, moved: &str, first: bool) -> At<'v> {
    let at = version.child(field);
    match alike {
        true if first => At { path: FieldPath::new(moved), ..at },
        true => At { value: &Value::Null, ..at },
        false => at,
    }
}

fn check_warning(version: &At<'_>, errors: &mut Errors) {
    let warning = version.child("deprecationWarning");
    if !warning.there() {
        return;
    }
    if !version.value.flag("deprecated") {
        return errors.invalid(&warning, "can only be set for deprecated versions");
    }
    if warning.str().len() > MAX_WARNING {
        errors.invalid(&warning, format!("must be <= {MAX_WARNING} characters long"));
    }
    if warning.str().is_empty() {
        errors.invalid(&warning, "must not be an empty string");
    }
    if let Some((at, _)) = warning.str().char_indices().find(|(_, c)| c.is_control()) {
        let why = "must only contain printable UTF-8 characters; non-printable character found at index";
        errors.invalid(&warning, format!("{why} {at}"));
    }
}

fn check_version(version: &At<'_>, unchanged: &[&str], alike: Alike, first: bool, errors: &mut Errors) {
    let name = version.child("name");
    joined(&name, name.str(), "", errors);
    if first {
        // The version that other versions are compared with has a field of its own.
        joined(&At { path: FieldPath::new("spec.version"), ..name.clone() }, name.str(), "", errors);
    }
    let schema = part(version, "schema.openAPIV3Schema", alike.schema, "spec.validation.openAPIV3Schema", first);
    if schema.there() {
        let before = errors.0.len();
        structural::schema(&schema, errors);
        // Rules over a schema that is wrong would only be complained about in riddles.
        if errors.0.len() == before {
            // Defaults must be what their schema asks for.
            if let Err(wrong) = meta::schema::structural::build(schema.value, &schema.path) {
                errors.0.extend(wrong);
            }
            rules::schema(&schema, unchanged.contains(&version.value.text("name")), errors);
        }
    } else if !version.value.has("schema.openAPIV3Schema") {
        errors.required(&version.child("schema.openAPIV3Schema"), "schemas are required");
    }
    let fields = part(version, "selectableFields", alike.selectable, "spec.selectableFields", first);
    selectable(&fields, version.value.at("schema.openAPIV3Schema"), errors);
    let scale = part(version, "subresources.scale", alike.subresources, "spec.subresources.scale", first);
    check_scale(&scale, errors);
    check_warning(version, errors);
    let columns = part(version, "additionalPrinterColumns", alike.columns, "spec.additionalPrinterColumns", first);
    for column in columns.items() {
        errors.need(&column.child("name"), "");
        let (kind, format) = (column.child("type"), column.child("format"));
        let one_of = format!("must be one of {}", COLUMN_TYPES.join(","));
        if errors.need(&kind, &one_of) && !COLUMN_TYPES.contains(&kind.str()) {
            errors.invalid(&kind, one_of);
        }
        if !COLUMN_FORMATS.contains(&format.str()) {
            errors.invalid(&format, format!("must be one of {}", COLUMN_FORMATS[1..].join(",")));
        }
        let path = At { path: column.path.child("JSONPath"), ..column.child("jsonPath") };
        if errors.need(&path, "") && !path.str().starts_with('.') {
            errors.invalid(&path, SIMPLE_PATH);
        }
    }
}

/// Selectable fields of one version, at most.
const MAX_SELECTABLE: usize = 8;

fn selectable(fields: &At<'_>, schema: &Value, errors: &mut Errors) {
    let mut seen = std::collections::HashSet::new();
    for field in fields.items() {
        let path = field.child("jsonPath");
        if !errors.need(&path, "") {
            continue;
        }
        let (found, at) = match rules::field_path(path.str(), schema, false) {
            Ok((found, at)) => (found, at),
            Err(why) => {
                errors.invalid(&path, format!("is an invalid path: {why}"));
                continue;
            }
        };
        if found.as_str().split('.').next() == Some("metadata") {
            errors.invalid(&path, "must not point to fields in metadata");
        }
        if !matches!(at.text("type"), "string" | "boolean" | "integer") {
            errors.invalid(&path, "must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.");
        }
        if !seen.insert(found.as_str().to_string()) {
            errors.0.push(FieldError::duplicate(&path.path, path.str()));
        }
    }
    if seen.len() > MAX_SELECTABLE {
        errors.0.push(FieldError::too_many(&fields.path, seen.len(), MAX_SELECTABLE));
    }
}

fn check_conversion(at: &At<'_>, errors: &mut Errors) {
    // Complaints name the fields of the older version, as upstream's do.
    let client = At { path: at.path.child("webhookClientConfig"), ..at.child("webhook.clientConfig") };
    let versions =
        At { path: at.path.child("conversionReviewVersions"), ..at.child("webhook.conversionReviewVersions") };
    const OTHERWISE: &str = "should not be set when strategy is not set to Webhook";
    errors.need_one_of(&at.child("strategy"), &["None", "Webhook"]);
    match at.value.text("strategy") {
        "Webhook" => {
            if !client.there() {
                errors.required(&client, "required when strategy is set to Webhook");
            } else {
                webhooks::client(&client, errors);
            }
            if versions.value.list("").is_empty() {
                errors.required(&versions, "");
            } else {
                webhooks::review_versions(&versions, errors);
            }
        }
        _ => {
            if client.there() {
                errors.forbidden(&client, OTHERWISE);
            }
            if !versions.value.list("").is_empty() {
                errors.forbidden(&versions, OTHERWISE);
            }
        }
    }
}

/// `unchanged` names versions whose schema was accepted before: what it costs is not asked again.
fn check_definition(object: &Value, unchanged: &[&str]) -> Errors {
    let (at, mut errors) = (At::root(object), Errors::default());
    let (spec, group) = (at.child("spec"), at.child("spec.group"));
    if errors.need(&group, "") {
        let complaints = formats::dns_subdomain(group.str());
        if !complaints.is_empty() {
            errors.invalid(&group, complaints.join(","));
        } else if !group.str().contains('.') {
            errors.invalid(&group, "should be a domain with at least one dot");
        }
    }
    let wanted = format!("{}.{}", spec.value.text("names.plural"), group.str());
    let name = at.child("metadata.name");
    if name.str() != wanted {
        errors.invalid(&name, "must be spec.names.plural+\".\"+spec.group");
    }
    errors.need_one_of(&spec.child("scope"), &["Cluster", "Namespaced"]);
    if spec.value.flag("preserveUnknownFields") {
        errors.invalid(
            &spec.child("preserveUnknownFields"),
            "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead",
        );
    }
    let versions = spec.child("versions");
    let alike = Alike::of(versions.value.list(""));
    for (at, version) in versions.items().enumerate() {
        check_version(&version, unchanged, alike, at == 0, &mut errors);
    }
    let names: std::collections::HashSet<&str> = versions.items().map(|v| v.value.text("name")).collect();
    if names.len() != versions.items().count() {
        errors.invalid(&versions, "must contain unique version names");
    }
    if versions.items().filter(|v| v.value.flag("storage")).count() != 1 {
        errors.invalid(&versions, "must have exactly one version marked as storage version");
    }
    for stored in at.child("status").each("storedVersions").filter(|s| !names.contains(s.str())) {
        errors.invalid(&stored, "must appear in spec.versions");
    }
    check_names(&spec.child("names"), &mut errors);
    check_conversion(&spec.child("conversion"), &mut errors);
    errors
}

/// What `v1beta1` says once for all versions, and `v1` in each.
const SHARED: [(&str, &str); 3] = [
    ("validation", "schema"),
    ("subresources", "subresources"),
    ("additionalPrinterColumns", "additionalPrinterColumns"),
];

impl Strategy for CustomResourceDefinition {
    fn past_versions(&self) -> &'static [&'static str] {
        &["v1beta1"]
    }

    /// Upstream stores definitions in `v1beta1`, which is shorter.
    fn upgrade(&self, object: &mut Value) {
        let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else { return };
        let only = spec.remove("version").unwrap_or_default();
        if spec.get("versions").and_then(Value::as_array).is_none_or(Vec::is_empty) {
            spec.insert("versions".into(), json!([{"name": only, "served": true, "storage": true}]));
        }
        for (once, each) in SHARED {
            let shared = spec.remove(once).filter(|shared| !shared.is_null());
            let versions = spec.get_mut("versions").and_then(Value::as_array_mut).into_iter().flatten();
            for (version, shared) in versions.zip(std::iter::repeat(shared)) {
                if let Some(shared) = shared {
                    version.or_put(each, shared);
                }
                for column in version.list_mut("additionalPrinterColumns").iter_mut().filter_map(Value::as_object_mut) {
                    if let Some(path) = column.remove("JSONPath") {
                        column.insert("jsonPath".into(), path);
                    }
                }
            }
        }
        if spec.get("preserveUnknownFields") == Some(&Value::Bool(false)) {
            spec.remove("preserveUnknownFields");
        }
        if let Some(conversion) = spec.get_mut("conversion").and_then(Value::as_object_mut) {
            let versions = conversion.remove("conversionReviewVersions");
            if let Some(client) = conversion.remove("webhookClientConfig") {
                let webhook = json!({"clientConfig": client, "conversionReviewVersions": versions});
                conversion.insert("webhook".into(), webhook);
            }
        }
    }

    fn default(&self, object: &mut Value) {
        let Some(spec) = object.at_mut("spec") else { return };
        let kind = spec.text("names.kind").to_string();
        if !kind.is_empty() {
            if spec.text("names.singular").is_empty() {
                spec.put("names.singular", kind.to_lowercase());
            }
            if spec.text("names.listKind").is_empty() {
                spec.put("names.listKind", format!("{kind}List"));
            }
        }
        spec.or_put("conversion", json!({"strategy": "None"}));
        if let Some(service) = spec.at_mut("conversion.webhook.clientConfig.service") {
            service.or_put("port", 443);
        }
    }

    fn prepare_create(&self, _cx: &Context<'_>, object: &mut Value) {
        let stored = storage_version(object).to_string();
        let versions: Vec<String> = Some(stored).filter(|s| !s.is_empty()).into_iter().collect();
        object.put(
            "status",
            json!({"storedVersions": versions, "conditions": null, "acceptedNames": {"plural": "", "kind": ""}}),
        );
    }

    fn prepare_update(&self, _cx: &Context<'_>, object: &mut Value, _old: &Value) {
        let stored = storage_version(object).to_string();
        let mut versions = object.list("status.storedVersions").to_vec();
        if !stored.is_empty() && !versions.iter().any(|v| *v == stored) {
            versions.push(stored.into());
            object.put("status.storedVersions", versions);
        }
    }

    fn validate_create(&self, _cx: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let mut errors = check_definition(object, &[]);
        let group = object.text("spec.group");
        let protected =
            PROTECTED.iter().any(|p| group == *p || group.strip_suffix(p).is_some_and(|g| g.ends_with('.')));
        if protected {
            let said = object.map("metadata.annotations").get(APPROVAL).and_then(Value::as_str).unwrap_or_default();
            let path = FieldPath::new("metadata.annotations").key(APPROVAL);
            errors.0.extend(disapproved(said, &path));
        }
        errors.0
    }

    fn validate_update(&self, _cx: &Context<'_>, object: &Value, old: &Value) -> Vec<FieldError> {
        let schema = |v: &Value| v.at("schema").clone();
        let unchanged: Vec<&str> = old
            .list("spec.versions")
            .iter()
            .filter(|v| {
                object.find("spec.versions", "name", v.text("name")).is_some_and(|now| schema(now) == schema(v))
            })
            .map(|v| v.text("name"))
            .collect();
        let (spec, mut errors) = (At::new(object.at("spec"), "spec"), check_definition(object, &unchanged));
        let established =
            old.find("status.conditions", "type", "Established").is_some_and(|c| c.text("status") == "True");
        let kept: &[&str] =
            if established { &["group", "names.plural", "scope", "names.kind"] } else { &["group", "names.plural"] };
        for field in kept {
            errors.immutable(&spec.child(field), old.at("spec").at(field));
        }
        errors.0
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }

    /// Its objects go before it does.
    fn prepare_delete(&self, object: &mut Value) {
        if object.find("status.conditions", "type", "Terminating").is_some() {
            return;
        }
        let mut conditions = object.list("status.conditions").to_vec();
        conditions.push(json!({
            "type": "Terminating", "status": "True", "lastTransitionTime": object.text("metadata.deletionTimestamp"),
            "reason": "InstanceDeletionPending",
            "message": "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon",
        }));
        object.put("status.conditions", conditions);
    }

    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        Plain.table_row(object, now)
    }
}

const MAX_GROUP_PRIORITY: i64 = 20_000;
const MAX_VERSION_PRIORITY: i64 = 1_000;

impl Strategy for ApiService {
    fn default(&self, object: &mut Value) {
        if let Some(service) = object.at_mut("spec.service") {
            service.or_put("port", 443);
        }
    }

    fn prepare_create(&self, cx: &Context<'_>, object: &mut Value) {
        object.put("status", Map::new());
        // Without a service this server itself answers.
        if !object.has("spec.service") {
            object.put("status.conditions", json!([{
                "type": "Available", "status": "True", "reason": "Local", "message": "Local APIServices are always available",
                "lastTransitionTime": cx.now,
            }]));
        }
    }

    fn validate_create(&self, _cx: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let (at, mut errors) = (At::root(object), Errors::default());
        let (spec, name) = (at.child("spec"), at.child("metadata.name"));
        let (group, version) = (spec.child("group"), spec.child("version"));
        let wanted = format!("{}.{}", version.str(), group.str());
        if name.str() != wanted {
            errors.invalid(&name, format!("must be `spec.version+\".\"+spec.group`: {wanted:?}"));
        }
        if group.blank() && version.str() != "v1" {
            errors.required(&group, "only v1 may have an empty group and it better be legacy kube");
        }
        errors.may_format(&group, formats::dns_subdomain);
        errors.format(&version, formats::dns_1035_label);
        for (field, max) in [("groupPriorityMinimum", MAX_GROUP_PRIORITY), ("versionPriority", MAX_VERSION_PRIORITY)] {
            let priority = spec.child(field);
            if !(1..=max).contains(&priority.number().unwrap_or(0)) {
                errors.invalid_as(
                    &priority,
                    priority.number().unwrap_or(0),
                    format!("must be positive and less than {max}"),
                );
            }
        }
        let (service, bundle, insecure) =
            (spec.child("service"), spec.child("caBundle"), spec.child("insecureSkipTLSVerify"));
        if !service.there() {
            if !bundle.blank() {
                errors.invalid_as(
                    &bundle,
                    format!("{} bytes", bundle.str().len() / 4 * 3),
                    "local APIServices may not have a caBundle",
                );
            }
            if insecure.value == &Value::Bool(true) {
                errors.invalid(&insecure, "local APIServices may not have insecureSkipTLSVerify");
            }
            return errors.0;
        }
        errors.need(&service.child("namespace"), "");
        errors.need(&service.child("name"), "");
        webhooks::port(&service.child("port"), &mut errors);
        if insecure.value == &Value::Bool(true) && !bundle.blank() {
            errors.invalid(&insecure, "may not be true if caBundle is present");
        }
        errors.0
    }

    fn validate_update(&self, cx: &Context<'_>, object: &Value, _old: &Value) -> Vec<FieldError> {
        if cx.subresource == "status" {
            let mut errors = Errors::default();
            for condition in At::new(object.at("status"), "status").each("conditions") {
                errors.one_of(&condition.child("status"), &["False", "True", "Unknown"]);
            }
            return errors.0;
        }
        self.validate_create(cx, object)
    }

    fn validate_name(&self, _name: &str, _generate: bool) -> Result<(), String> {
        Ok(())
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }

    fn tracks_generation(&self, _has_status: bool) -> bool {
        false
    }

    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        let service = object.at("spec.service");
        let service = if service.is_null() {
            "Local".into()
        } else {
            format!("{}/{}", service.text("namespace"), service.text("name"))
        };
        let available = match object.find("status.conditions", "type", "Available") {
            None => "Unknown".to_string(),
            Some(c) if c.text("status") == "False" => format!("False ({})", c.text("reason")),
            Some(c) => c.text("status").to_string(),
        };
        vec![name(object), service.into(), available.into(), age(object, now)]
    }
}

impl Strategy for StorageVersion {
    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        let servers = object.list("status.storageVersions").iter();
        let each = servers.map(|s| format!("{}={}", s.text("apiServerID"), s.text("encodingVersion")));
        vec![
            name(object),
            object.at("status.commonEncodingVersion").as_str().unwrap_or("<unset>").into(),
            some_of(each, SERVERS_SHOWN, ",", "<unset>"),
            age(object, now),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::tests::expect;

    const CX: Context<'static> = Context::SOMEBODY;

    fn definition(changes: &[(&str, Value)]) -> Value {
        let mut object = json!({"metadata": {"name": "foos.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"plural": "foos", "kind": "Foo"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}}}]}});
        for (path, value) in changes {
            object.put(path, value.clone());
        }
        CustomResourceDefinition.default(&mut object);
        CustomResourceDefinition.prepare_create(&CX, &mut object);
        object
    }

    #[test]
    fn definitions_are_checked() {
        let check = |changes: &[(&str, Value)], expected: &[&str]| {
            let object = definition(changes);
            expect(&CustomResourceDefinition.validate_create(&CX, &object), expected, &object);
        };
        let version = |name: &str, storage: bool| json!({"name": name, "served": true, "storage": storage, "schema": {"openAPIV3Schema": {"type": "object"}}});
        check(&[], &[]);
        assert_eq!(
            definition(&[])["spec"]["names"],
            json!({"plural": "foos", "singular": "foo", "kind": "Foo", "listKind": "FooList"})
        );
        assert_eq!(definition(&[])["status"]["storedVersions"], json!(["v1"]));
        check(
            &[("metadata.name", json!("x.example.com"))],
            &["metadata.name: Invalid value: \"x.example.com\": must be spec.names.plural+\".\"+spec.group"],
        );
        check(
            &[("spec.group", json!("example")), ("metadata.name", json!("foos.example"))],
            &["spec.group: Invalid value: \"example\": should be a domain with at least one dot"],
        );
        check(
            &[("spec.scope", json!("World"))],
            &["spec.scope: Unsupported value: \"World\": supported values: \"Cluster\", \"Namespaced\""],
        );
        check(
            &[("spec.versions", json!([{"name": "v1", "storage": true}]))],
            &["spec.versions[0].schema.openAPIV3Schema: Required value: schemas are required"],
        );
        assert!(
            CustomResourceDefinition
                .validate_create(
                    &CX,
                    &definition(&[("spec.versions", json!([version("v1", true), version("v2", true)]))])
                )
                .iter()
                .any(|e| e.detail == "must have exactly one version marked as storage version")
        );
        check(
            &[("spec.group", json!("x.k8s.io")), ("metadata.name", json!("foos.x.k8s.io"))],
            &[
                "metadata.annotations[api-approved.kubernetes.io]: Required value: protected groups must have approval annotation \"api-approved.kubernetes.io\", see https://github.com/kubernetes/enhancements/pull/1111",
            ],
        );
        let old = definition(&[]);
        let mut new = definition(&[("spec.versions", json!([version("v1", false), version("v2", true)]))]);
        new.put("status.storedVersions", json!(["v1"]));
        CustomResourceDefinition.prepare_update(&CX, &mut new, &old);
        assert_eq!(new["status"]["storedVersions"], json!(["v1", "v2"]));
        expect(&CustomResourceDefinition.validate_update(&CX, &new, &old), &[], &new);
    }

    #[test]
    fn api_services_are_checked() {
        let object = json!({"metadata": {"name": "v1.a.b"}, "spec": {"group": "a.b", "version": "v1", "groupPriorityMinimum": 100,
            "versionPriority": 0, "service": {"name": "s", "namespace": "n", "port": 443}}});
        expect(
            &ApiService.validate_create(&CX, &object),
            &["spec.versionPriority: Invalid value: 0: must be positive and less than 1000"],
            &object,
        );
    }
}
