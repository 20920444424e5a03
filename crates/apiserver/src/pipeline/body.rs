//! Bodies: from bytes to trees in the requested version, and the documents that change objects.
//!
//! JSON, YAML and protobuf become one tree; the schema prunes and checks it under the client's field validation policy
//! (Ignore, Warn, Strict); patches are applied in the requested version, so that they mean what their author saw.

use meta::decode::Issues;
use meta::{FieldError, RequestBody, Status, Value, Verb};

use super::{Target, metadata, owners};
use crate::catalog::Served;
use crate::server::ApiServer;

/// Operations one JSON patch may hold, as upstream.
const MAX_JSON_PATCH_OPS: usize = 10_000;

/// Bytes of a field manager's name.
const MAX_MANAGER: usize = 128;

/// `fieldValidation`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FieldValidation {
    Ignore,
    Warn,
    Strict,
}

fn field_validation(target: &Target<'_>) -> Result<FieldValidation, Status> {
    match target.request.options.field_validation.as_deref().unwrap_or_default() {
        "Ignore" => Ok(FieldValidation::Ignore),
        "" | "Warn" => Ok(FieldValidation::Warn),
        "Strict" => Ok(FieldValidation::Strict),
        other => {
            let path = meta::FieldPath::new("fieldValidation");
            let error = FieldError::not_supported(&path, other, &["", "Ignore", "Strict", "Warn"]);
            Err(Status::invalid("meta.k8s.io", options_kind(target), "", &[error]))
        }
    }
}

/// The type alone, in small letters, which nearly all clients use.
fn media_type(content_type: &str) -> std::borrow::Cow<'_, str> {
    let media = content_type.split(';').next().unwrap_or_default().trim();
    if media.bytes().any(|b| b.is_ascii_uppercase()) { media.to_ascii_lowercase().into() } else { media.into() }
}

fn unsupported(content_type: &str, supported: &str) -> Status {
    let message =
        format!("the body of the request was in an unknown format - accepted media types include: {supported}");
    tracing::debug!(content_type, "unsupported media type");
    Status::new(meta::Reason::UnsupportedMediaType, message)
}

/// Bytes of a body that an error shows.
const SHOWN: usize = 30;

/// The beginning of a body, as text where it looks like JSON.
fn summary(bytes: &[u8]) -> String {
    let (start, more) = (&bytes[..bytes.len().min(SHOWN)], if bytes.len() > SHOWN { " ..." } else { "" });
    match bytes.first() {
        None => "<empty>".into(),
        Some(b'{') => String::from_utf8_lossy(start).into_owned() + more,
        Some(_) => start.iter().map(|b| format!("{b:02x}")).collect::<String>() + more,
    }
}

/// A body that is no object of any kind.
fn unrecognized(kind: &str, body: &RequestBody, why: impl std::fmt::Display) -> Status {
    let summary = match body {
        RequestBody::Bytes { bytes, .. } => summary(bytes),
        _ => summary(b""),
    };
    let why = why.to_string();
    let why = why.strip_prefix("error converting YAML to JSON: ").unwrap_or(&why);
    Status::bad_request(format!("the object provided is unrecognized (must be of type {kind}): {why} ({summary})"))
}

/// A tree of bytes, and what a strict reader objects to so far.
fn parse(body: &RequestBody) -> Result<(Value, Issues), Status> {
    match body {
        RequestBody::None => Err(Status::bad_request("the request has no body")),
        RequestBody::Value { value, .. } => Ok((value.clone(), Issues::default())),
        RequestBody::Bytes { content_type, bytes } => {
            let refuse = |error: &dyn std::fmt::Display| Status::bad_request(error.to_string());
            match &*media_type(content_type) {
                "" | "application/json" => meta::decode::json(bytes).map_err(|e| refuse(&e)),
                "application/yaml" => meta::decode::yaml(bytes).map_err(|e| refuse(&e)),
                "application/vnd.kubernetes.protobuf" => Ok((
                    meta::protobuf::decode(meta::schema::builtin(), bytes).map_err(|e| refuse(&e))?,
                    Issues::default(),
                )),
                other => {
                    Err(unsupported(other, "application/json, application/yaml, application/vnd.kubernetes.protobuf"))
                }
            }
        }
    }
}

/// The type of a body that is not the resource itself.
fn options_type(kind: &str) -> Option<meta::schema::View<'static>> {
    let types = meta::schema::builtin();
    let (group, version) = match kind {
        "DeleteOptions" => return types.named("io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions"),
        "Scale" => ("autoscaling", "v1"),
        "Eviction" => ("policy", "v1"),
        "TokenRequest" => ("authentication.k8s.io", "v1"),
        _ => return None,
    };
    types.kind(&meta::Gvk::new(group, version, kind))
}

/// `DeleteOptions`, `Eviction` and other bodies that are not the resource itself.
pub fn decode_options(body: &RequestBody, kind: &str) -> Result<Value, Status> {
    let (mut value, _) = parse(body)?;
    if value.is_object()
        && let Some(view) = options_type(kind)
    {
        let misfit = meta::schema::prune(view, &mut value, &mut Issues::default());
        misfit.map_err(|error| {
            Status::bad_request(format!("{kind} in version \"v1\" cannot be handled as a {kind}: {error}"))
        })?;
    }
    match value["kind"].as_str() {
        Some(said) if said != kind && !said.is_empty() => {
            Err(Status::bad_request(format!("no kind \"{said}\" is registered for this request; it takes {kind}")))
        }
        _ if value.is_object() => Ok(value),
        _ => Err(Status::bad_request(format!("the body of the request is not a {kind}"))),
    }
}

/// What a strict reader objects to: an error's message under Strict, warnings under Warn.
fn report(target: &Target<'_>, issues: &Issues) -> Result<(), String> {
    report_texts(target, issues.texts().collect())
}

fn report_texts(target: &Target<'_>, texts: Vec<String>) -> Result<(), String> {
    match field_validation(target).unwrap_or(FieldValidation::Warn) {
        FieldValidation::Strict if !texts.is_empty() => Err(format!("strict decoding error: {}", texts.join(", "))),
        FieldValidation::Warn => {
            texts.into_iter().for_each(|text| target.caller.warn(text));
            Ok(())
        }
        _ => Ok(()),
    }
}

/// What stands before what is wrong with a JSON patch.
const OF_JSON_PATCH: &str = "json patch ";

/// Members of a JSON patch's operations that mean nothing.
fn unknown_members(patch: &Value, of: &str) -> Vec<String> {
    let operations = patch.as_array().filter(|_| of == OF_JSON_PATCH);
    let members = operations.into_iter().flatten().enumerate().flat_map(|(at, operation)| {
        operation.as_object().into_iter().flat_map(|o| o.keys()).map(move |member| (at, member))
    });
    members
        .filter(|(_, member)| !matches!(member.as_str(), "op" | "path" | "from" | "value"))
        .map(|(at, member)| format!("unknown field \"[{at}].{member}\""))
        .collect()
}

fn prune(target: &Target<'_>, body: &mut Value, issues: &mut Issues) -> Result<(), Status> {
    meta::schema::prune(target.version.schema.root(), body, issues).map_err(|error| {
        let (kind, version) = (&target.served.resource.kind, &target.version.name);
        Status::bad_request(format!("{kind} in version {version:?} cannot be handled as a {kind}: {error}"))
    })
}

/// Prunes and checks a tree against the schema of the requested version, telling the client what was wrong with it.
fn check(target: &Target<'_>, body: &mut Value, mut issues: Issues) -> Result<(), Status> {
    prune(target, body, &mut issues)?;
    // Upstream reads built-in kinds in one go; of custom ones it tells duplicates first, then what pruning found.
    if let RequestBody::Bytes { bytes, .. } = &target.request.body
        && !target.served.resource.custom
    {
        issues.arrange(bytes);
    }
    let (kind, version) = (&target.served.resource.kind, &target.version.name);
    report(target, &issues).map_err(|why| {
        Status::bad_request(format!("{kind} in version {version:?} cannot be handled as a {kind}: {why}"))
    })
}

/// As [`check`], of what a patch made: the patch is wrong then, for the reason given.
fn check_patched(target: &Target<'_>, body: &mut Value) -> Result<(), String> {
    let mut issues = Issues::default();
    meta::schema::prune(target.version.schema.root(), body, &mut issues).map_err(|error| error.to_string())?;
    report(target, &issues)
}

/// The answer to such a patch shows what came of it.
fn wrong_patch(came: &Value, why: String) -> Status {
    let path = meta::FieldPath::new("patch");
    Status::invalid("", "", "", &[FieldError::invalid(&path, came.to_string().as_str(), why)])
}

/// Checks the query's options, which come before anything the body says.
pub fn check_options(target: &Target<'_>) -> Result<(), Status> {
    let options = &target.request.options;
    if let Some(manager) = &options.field_manager {
        let path = meta::FieldPath::new("fieldManager");
        let error = if manager.len() > MAX_MANAGER {
            Some(FieldError::too_long(&path, MAX_MANAGER))
        } else {
            let why = "should only contain printable characters";
            manager.chars().any(char::is_control).then(|| FieldError::invalid(&path, manager.as_str(), why))
        };
        if let Some(error) = error {
            return Err(Status::invalid("meta.k8s.io", options_kind(target), "", &[error]));
        }
    }
    if options.dry_run.iter().any(|d| d != "All") {
        let path = meta::FieldPath::new("dryRun");
        let error = FieldError::not_supported(&path, options.dry_run.clone(), &["All"]);
        return Err(Status::invalid("meta.k8s.io", options_kind(target), "", &[error]));
    }
    field_validation(target).map(drop)
}

fn options_kind(target: &Target<'_>) -> &'static str {
    match target.request.verb {
        Verb::Update => "UpdateOptions",
        Verb::Patch => "PatchOptions",
        Verb::Delete | Verb::DeleteCollection => "DeleteOptions",
        _ => "CreateOptions",
    }
}

/// The body of a create or update, in the requested version.
pub fn decode_object(_server: &ApiServer, target: &Target<'_>, body: &RequestBody) -> Result<Value, Status> {
    let kind = &target.served.resource.kind;
    let (value, issues) = match parse(body) {
        Err(_) if matches!(body, RequestBody::None) => {
            let why = "couldn't get version/kind; json parse error: unexpected end of JSON input";
            return Err(unrecognized(kind, body, why));
        }
        Err(status)
            if status.is(meta::Reason::BadRequest)
                && (!is_protobuf(body) || status.message.contains("does not appear to be a protobuf message")) =>
        {
            return Err(unrecognized(kind, body, status.message));
        }
        parsed => parsed?,
    };
    object(target, body, value, issues)
}

/// The same of a tree that was handed over.
pub fn take_object(target: &Target<'_>, value: Value) -> Result<Value, Status> {
    object(target, &target.request.body, value, Issues::default())
}

fn object(target: &Target<'_>, body: &RequestBody, mut value: Value, issues: Issues) -> Result<Value, Status> {
    let kind = &target.served.resource.kind;
    if !value.is_object() && !value.is_null() {
        let go =
            r#"struct { APIVersion string "json:\"apiVersion,omitempty\""; Kind string "json:\"kind,omitempty\"" }"#;
        let found = meta::schema::json_type(&value);
        let why = format!(
            "couldn't get version/kind; json parse error: json: cannot unmarshal {found} into Go value of type {go}"
        );
        return Err(unrecognized(kind, body, why));
    }
    let strange = ["apiVersion", "kind"].into_iter().find(|f| !matches!(value[*f], Value::Null | Value::String(_)));
    if let Some(field) = strange {
        let found = meta::schema::json_type(&value[field]);
        let why = format!(
            "couldn't get version/kind; json parse error: json: cannot unmarshal {found} into Go struct field .{field} of type string"
        );
        return Err(unrecognized(kind, body, why));
    }
    // Go reads null into a struct as nothing said.
    if value.is_null() && !target.served.resource.custom {
        value = Value::Object(Default::default());
    }
    expect_kind(target, &mut value)?;
    check(target, &mut value, issues)?;
    Ok(value)
}

/// The same for those who only look: nothing is said of what is wrong with it.
pub fn decode_quietly(target: &Target<'_>) -> Option<Value> {
    let (mut value, mut issues) = parse(&target.request.body).ok()?;
    expect_kind(target, &mut value).ok()?;
    prune(target, &mut value, &mut issues).ok()?;
    Some(value)
}

fn is_protobuf(body: &RequestBody) -> bool {
    matches!(body, RequestBody::Bytes { content_type, .. } if media_type(content_type) == "application/vnd.kubernetes.protobuf")
}

/// A body of another kind or version than the URL's, as upstream's decoders word it.
fn other_kind(target: &Target<'_>, api_version: &str, kind: &str) -> Status {
    let resource = &target.served.resource;
    let expected = resource.group_version(&target.version.name).to_string();
    let own = &resource.kind;
    if resource.custom {
        let said = if kind.is_empty() || kind == &**own {
            api_version.to_string()
        } else {
            format!("{api_version}, Kind={kind}")
        };
        let wanted = if kind.is_empty() || kind == &**own { expected } else { format!("{expected}, Kind={own}") };
        return Status::bad_request(format!(
            "the API version in the data ({said}) does not match the expected API version ({wanted})"
        ));
    }
    let gv = meta::GroupVersion::parse(api_version).unwrap_or_else(|| meta::GroupVersion::new("", ""));
    let (kind, said) =
        (if kind.is_empty() { &**own } else { kind }, if api_version.is_empty() { &expected } else { api_version });
    let version = if api_version.is_empty() { &*target.version.name } else { &*gv.version };
    let group = if api_version.is_empty() { &resource.group } else { &gv.group };
    if meta::schema::builtin().kind(&meta::Gvk::new(group, version, kind)).is_none() {
        return Status::bad_request(format!(
            "{kind} in version {version:?} cannot be handled as a {own}: no kind {kind:?} is registered for version {said:?}"
        ));
    }
    if kind == &**own && **group == *resource.group {
        return Status::bad_request(format!(
            "the API version in the data ({said}) does not match the expected API version ({expected})"
        ));
    }
    let package = match resource.group.split('.').next() {
        Some("") | None => "core",
        Some(first) => first,
    };
    Status::bad_request(format!(
        "{kind} in version {version:?} cannot be handled as a {own}: converting ({version}.{kind}) to ({package}.{own}): unknown conversion"
    ))
}

/// The body must say what it is, and be what the URL says. In-process callers may leave it out.
fn expect_kind(target: &Target<'_>, value: &mut Value) -> Result<(), Status> {
    let resource = &target.served.resource;
    let wanted = resource.group_version(&target.version.name).to_string();
    let map = value
        .as_object_mut()
        .ok_or_else(|| Status::bad_request("couldn't get version/kind; json parse error: the body is not an object"))?;
    let kind = map.get("kind").and_then(Value::as_str).unwrap_or_default();
    let api_version = map.get("apiVersion").and_then(Value::as_str).unwrap_or_default();
    if (!kind.is_empty() && kind != &*resource.kind) || (!api_version.is_empty() && api_version != wanted) {
        return Err(other_kind(target, api_version, kind));
    }
    if resource.custom && (kind.is_empty() || api_version.is_empty()) {
        let what = if kind.is_empty() { "kind" } else { "apiVersion" };
        return Err(Status::bad_request(format!(
            "Object '{}' is missing in the body",
            if what == "kind" { "Kind" } else { "apiVersion" }
        )));
    }
    map.insert("kind".into(), resource.kind.to_string().into());
    map.insert("apiVersion".into(), wanted.into());
    Ok(())
}

/// Fills in defaults of a body in the storage version.
pub fn default(served: &Served, body: &mut Value) {
    meta::schema::default(served.storage().storage_version().schema.root(), body);
    served.resource.strategy.default(body);
}

/// Turns what a client made into the stored form. A custom kind's versions have schemas of their own: the defaults
/// are those of the client's version, and what that version forbids is told before what its conversion came to.
pub async fn to_storage(target: &Target<'_>, body: &mut Value) -> Result<(), Status> {
    let (served, version) = (target.served, target.version);
    if !served.resource.custom || served.is_storage(version) {
        return served.to_storage(body, &version.name).await;
    }
    meta::schema::default(version.schema.root(), body);
    let Err(status) = served.to_storage(body, &version.name).await else { return Ok(()) };
    match crate::crd_rules::validate(target, body, None).as_slice() {
        [] => Err(status),
        errors => Err(Status::invalid(target.group(), &served.resource.kind, metadata::text(body, "name"), errors)),
    }
}

/// Who applies says who he is.
fn named_manager(target: &Target<'_>) -> Result<(), Status> {
    match target.request.options.field_manager.as_deref().unwrap_or_default() {
        "" => {
            let error = FieldError::required(&meta::FieldPath::new("fieldManager"), "is required for apply patch");
            Err(Status::invalid("meta.k8s.io", "PatchOptions", "", &[error]))
        }
        _ => Ok(()),
    }
}

/// What is there already has its name: a configuration of it need not say it.
fn if_named_as_url(target: &Target<'_>, body: &Value) -> Result<(), Status> {
    if metadata::text(body, "name").is_empty() { Ok(()) } else { metadata::named_as_url(target, body) }
}

/// And in which version.
fn said_version(applied: &Value, expected: &str) -> Result<(), Status> {
    match applied["apiVersion"].as_str().unwrap_or_default() {
        said if said == expected => Ok(()),
        said => Err(Status::bad_request(format!(
            "Incorrect version specified in apply patch. Specified patch version: {said}, expected: {expected}"
        ))),
    }
}

/// The media types of patches that a kind takes.
fn patches_of(target: &Target<'_>) -> &'static str {
    match target.served.resource.custom {
        true => "application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml",
        false => {
            "application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json, application/apply-patch+yaml"
        }
    }
}

/// A document that makes a new body of an old one, in the requested version.
pub enum Document {
    Put(Value),
    JsonPatch(Value),
    MergePatch(Value),
    StrategicPatch(Value),
    Apply(Value),
}

impl Document {
    pub fn of(server: &ApiServer, target: &Target<'_>) -> Result<Self, Status> {
        check_options(target)?;
        if target.request.verb == Verb::Update {
            return Self::put(target, decode_object(server, target, &target.request.body)?);
        }
        let content_type = match &target.request.body {
            RequestBody::None => return Err(Status::bad_request("the request has no body")),
            RequestBody::Bytes { content_type, .. } => content_type,
            RequestBody::Value { content_type, .. } => *content_type,
        };
        let options = &target.request.options;
        let media = media_type(content_type);
        if options.force.is_some() && !media.starts_with("application/apply-patch") {
            let path = meta::FieldPath::new("force");
            let error = FieldError::forbidden(&path, "may not be specified for non-apply patch");
            return Err(Status::invalid("meta.k8s.io", "PatchOptions", "", &[error]));
        }
        let json = |of: &str| {
            let (value, issues) = match &target.request.body {
                RequestBody::Bytes { bytes, .. } => meta::decode::json(bytes)
                    .map_err(|error| Status::bad_request(format!("error decoding patch: {}", error.plain())))?,
                RequestBody::Value { value, .. } => (value.clone(), Issues::default()),
                RequestBody::None => (Value::Null, Issues::default()),
            };
            let twice = issues.texts().chain(unknown_members(&value, of)).map(|text| format!("{of}{text}"));
            report_texts(target, twice.collect()).map_err(|why| wrong_patch(&value, why))?;
            Ok::<_, Status>(value)
        };
        match &*media {
            "application/json-patch+json" => {
                let patch = json(OF_JSON_PATCH)?;
                if patch.as_array().is_some_and(|ops| ops.len() > MAX_JSON_PATCH_OPS) {
                    let message = format!(
                        "The allowed maximum operations in a JSON patch is {MAX_JSON_PATCH_OPS}, got {}",
                        patch.as_array().map_or(0, Vec::len)
                    );
                    return Err(Status::new(meta::Reason::RequestEntityTooLarge, message));
                }
                Ok(Self::JsonPatch(patch))
            }
            "application/merge-patch+json" => Ok(Self::MergePatch(json("")?)),
            "application/strategic-merge-patch+json" if !target.served.resource.custom => {
                Ok(Self::StrategicPatch(json("")?))
            }
            "application/apply-patch+yaml" | "application/apply-patch+json" => {
                named_manager(target)?;
                let (mut value, issues) = match &target.request.body {
                    RequestBody::Bytes { bytes, .. } => meta::decode::yaml(bytes)
                        .map_err(|e| Status::bad_request(format!("error decoding YAML: {e}")))?,
                    RequestBody::Value { value, .. } => (value.clone(), Issues::default()),
                    RequestBody::None => (Value::Null, Issues::default()),
                };
                if matches!(target.request.body, RequestBody::Bytes { .. }) {
                    said_version(&value, &target.served.resource.group_version(&target.version.name).to_string())?;
                }
                expect_kind(target, &mut value)?;
                if_named_as_url(target, &value)?;
                if value["metadata"]["managedFields"].is_array() {
                    return Err(Status::bad_request("metadata.managedFields must be nil"));
                }
                // Fields nobody knows make the apply fail, with a message that names them all: they stay.
                let mut known = value.clone();
                let mut unknown = Issues::default();
                prune(target, &mut known, &mut unknown)?;
                report(target, &issues)
                    .map_err(|message| Status::bad_request(format!("error strict decoding patch: {message}")))?;
                Ok(Self::Apply(if unknown.is_empty() { known } else { value }))
            }
            other if target.served.resource.custom => Err(unsupported(other, patches_of(target))),
            // As the framework under upstream says it.
            _ => Err(Status::new(meta::Reason::UnsupportedMediaType, "415: Unsupported Media Type")),
        }
    }

    /// The same of a PUT whose tree was handed over.
    pub fn of_tree(target: &Target<'_>, tree: Value) -> Result<Self, Status> {
        check_options(target)?;
        Self::put(target, take_object(target, tree)?)
    }

    fn put(target: &Target<'_>, body: Value) -> Result<Self, Status> {
        metadata::named_as_url(target, &body)?;
        Ok(Self::Put(body))
    }

    /// The body to create when there is nothing to change.
    pub fn as_new(&self, target: &Target<'_>, now: &str) -> Result<Value, Status> {
        match self {
            Self::Put(body) => Ok(body.clone()),
            Self::Apply(body) => {
                metadata::named_as_url(target, body)?;
                let uid = metadata::text(body, "uid");
                if !uid.is_empty() {
                    let why = format!(
                        "uid mismatch: the provided object specified uid {uid}, and no existing object was found"
                    );
                    return Err(Status::conflict(target.group(), target.plural(), &target.request.name, why));
                }
                let nothing =
                    serde_json::json!({"kind": body["kind"], "apiVersion": body["apiVersion"], "metadata": {}});
                let root = target.version.schema.root();
                meta::apply::apply(root, &nothing, body, false, &owners::applied_by(target, now))
                    .map_err(|c| c.status(target.group(), target.plural(), &target.request.name))
            }
            _ => Err(target.not_found()),
        }
    }

    /// The changed body, in the storage version. The body of a PUT is what becomes of it: another try reads it again.
    pub async fn changed(&mut self, target: &Target<'_>, old: &Value, now: &str) -> Result<Value, Status> {
        let mut body = match self {
            Self::Put(body) => std::mem::take(body),
            _ => self.laid_over(target, old, now).await?,
        };
        if !matches!(self, Self::Put(_) | Self::Apply(_))
            && let Err(why) = check_patched(target, &mut body)
        {
            // Checking left it other than it was.
            let came = self.laid_over(target, old, now).await?;
            let restored = matches!(self, Self::StrategicPatch(_))
                .then(|| meta::schema::restore::misfit(target.version.schema.root(), &came));
            return Err(wrong_patch(&came, restored.flatten().unwrap_or(why)));
        }
        to_storage(target, &mut body).await?;
        Ok(body)
    }

    /// Whether its body went into a try that came to nothing.
    pub fn is_spent(&self) -> bool {
        matches!(self, Self::Put(Value::Null))
    }

    /// The old body as it is shown to a patch, with whatever the patch could look at.
    async fn shown(&self, target: &Target<'_>, old: &Value) -> Result<Value, Status> {
        let mut seen = match old {
            // Entries that stay as they are are taken from the old body in the end.
            Value::Object(old) if self.leaves_entries() => {
                let plain = |(key, value): (&String, &Value)| {
                    let value = match value {
                        Value::Object(metadata) if key == "metadata" => metadata
                            .iter()
                            .filter(|(key, _)| *key != "managedFields")
                            .map(|(key, value)| (key.clone(), value.clone()))
                            .collect::<serde_json::Map<_, _>>()
                            .into(),
                        value => value.clone(),
                    };
                    (key.clone(), value)
                };
                Value::Object(old.iter().map(plain).collect())
            }
            old => old.clone(),
        };
        target.served.from_storage(&mut seen, &target.version.name).await?;
        Ok(seen)
    }

    /// Whether `managedFields` may be left out of what the document is laid over.
    pub fn leaves_entries(&self) -> bool {
        let plain = |of: &Value| of.get("$patch").is_none() && of.get("$retainKeys").is_none();
        match self {
            Self::Put(_) => true,
            Self::MergePatch(patch) | Self::StrategicPatch(patch) => {
                plain(patch)
                    && patch.get("metadata").is_none_or(|metadata| {
                        metadata.is_object() && plain(metadata) && metadata.get("managedFields").is_none()
                    })
            }
            _ => false,
        }
    }

    /// What the document makes of the old body, in the requested version.
    async fn laid_over(&self, target: &Target<'_>, old: &Value, now: &str) -> Result<Value, Status> {
        let served = target.served;
        let root = target.version.schema.root();
        let unprocessable = |error: meta::patch::PatchError| match error {
            meta::patch::PatchError::Invalid(message) => Status::bad_request(message),
            // Upstream says no more than this.
            meta::patch::PatchError::Unprocessable(why) => {
                tracing::debug!(why, "patch");
                let message = "the server rejected our request due to an error in our request";
                Status { details: Some(Box::default()), ..Status::new(meta::Reason::Invalid, message) }
            }
        };
        let mut body = match self {
            Self::Put(body) => return Ok(body.clone()),
            Self::JsonPatch(patch) => {
                meta::patch::json(self.shown(target, old).await?, patch).map_err(unprocessable)?
            }
            Self::MergePatch(patch) => {
                let mut body = self.shown(target, old).await?;
                meta::patch::merge(&mut body, patch).map_err(unprocessable)?;
                body
            }
            Self::StrategicPatch(patch) => {
                meta::patch::strategic(root, self.shown(target, old).await?, patch).map_err(unprocessable)?
            }
            Self::Apply(applied) => {
                let seen = self.shown(target, old).await?;
                let mut applied = applied.clone();
                let resource = &served.resource;
                if resource.custom
                    && resource.has_status()
                    && target.request.subresource.is_empty()
                    && let Some(map) = applied.as_object_mut()
                {
                    map.remove("status");
                }
                return owners::apply(target, &seen, &applied, now).await;
            }
        };
        expect_kind(target, &mut body)?;
        metadata::named_as_url(target, &body)?;
        Ok(body)
    }
}

/// A PUT or patch of a Scale.
pub enum ScaleDocument {
    Put(Value),
    JsonPatch(Value),
    /// A Scale has no lists: strategic patches mean the same.
    MergePatch(Value),
    /// A configuration, checked.
    Apply(Value),
}

impl ScaleDocument {
    pub fn of(target: &Target<'_>) -> Result<Self, Status> {
        if target.request.verb == Verb::Update {
            let scale = decode_options(&target.request.body, "Scale")?;
            metadata::named_as_url(target, &scale)?;
            return Ok(Self::Put(scale));
        }
        let (content_type, value) = match &target.request.body {
            RequestBody::Bytes { content_type, bytes } => {
                let (value, _) =
                    meta::decode::yaml(bytes).map_err(|e| Status::bad_request(format!("error decoding patch: {e}")))?;
                (content_type.as_str(), value)
            }
            RequestBody::Value { content_type, value } => (*content_type, value.clone()),
            RequestBody::None => return Err(Status::bad_request("the request has no body")),
        };
        match &*media_type(content_type) {
            "application/json-patch+json" => Ok(Self::JsonPatch(value)),
            "application/merge-patch+json" => Ok(Self::MergePatch(value)),
            "application/strategic-merge-patch+json" if !target.served.resource.custom => Ok(Self::MergePatch(value)),
            "application/apply-patch+yaml" | "application/apply-patch+json" => {
                named_manager(target)?;
                said_version(&value, "autoscaling/v1")?;
                if_named_as_url(target, &value)?;
                let (mut scale, mut issues) = (value, Issues::default());
                if let Some(view) = options_type("Scale") {
                    let fits = meta::schema::prune(view, &mut scale, &mut issues).map_err(|error| error.to_string());
                    fits.and_then(|()| report(target, &issues)).map_err(Status::bad_request)?;
                }
                Ok(Self::Apply(scale))
            }
            other => Err(unsupported(other, patches_of(target))),
        }
    }

    /// The changed Scale; fields that it does not have are told the client.
    pub fn changed(&self, target: &Target<'_>, before: &Value) -> Result<Value, Status> {
        let said = |error: meta::patch::PatchError| Status::bad_request(error.to_string());
        let came = match self {
            Self::Put(scale) | Self::Apply(scale) => return Ok(scale.clone()),
            Self::JsonPatch(patch) => meta::patch::json(before.clone(), patch).map_err(said)?,
            Self::MergePatch(patch) => {
                let mut scale = before.clone();
                meta::patch::merge(&mut scale, patch).map_err(said)?;
                scale
            }
        };
        let (mut scale, mut issues) = (came.clone(), Issues::default());
        if let Some(view) = options_type("Scale") {
            let fits = meta::schema::prune(view, &mut scale, &mut issues).map_err(|error| error.to_string());
            fits.and_then(|()| report(target, &issues)).map_err(|why| wrong_patch(&came, why))?;
        }
        Ok(scale)
    }
}
