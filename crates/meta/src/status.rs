//! Errors as the API speaks them: one `Status` with reason, code and causes by field path.
//!
//! Reasons, codes and wording follow `k8s.io/apimachinery/pkg/api/errors` and `util/validation/field`, because clients
//! match on them.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// `metav1.StatusReason`: the machine-readable why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    Unknown,
    Unauthorized,
    Forbidden,
    NotFound,
    AlreadyExists,
    Conflict,
    Gone,
    Invalid,
    ServerTimeout,
    StoreReadError,
    Timeout,
    TooManyRequests,
    BadRequest,
    MethodNotAllowed,
    NotAcceptable,
    RequestEntityTooLarge,
    UnsupportedMediaType,
    InternalError,
    Expired,
    ServiceUnavailable,
}

/// (reason, wire name, HTTP code)
const REASONS: &[(Reason, &str, u16)] = &[
    (Reason::Unknown, "", 500),
    (Reason::Unauthorized, "Unauthorized", 401),
    (Reason::Forbidden, "Forbidden", 403),
    (Reason::NotFound, "NotFound", 404),
    (Reason::AlreadyExists, "AlreadyExists", 409),
    (Reason::Conflict, "Conflict", 409),
    (Reason::Gone, "Gone", 410),
    (Reason::Invalid, "Invalid", 422),
    (Reason::ServerTimeout, "ServerTimeout", 500),
    (Reason::StoreReadError, "StorageReadError", 500),
    (Reason::Timeout, "Timeout", 504),
    (Reason::TooManyRequests, "TooManyRequests", 429),
    (Reason::BadRequest, "BadRequest", 400),
    (Reason::MethodNotAllowed, "MethodNotAllowed", 405),
    (Reason::NotAcceptable, "NotAcceptable", 406),
    (Reason::RequestEntityTooLarge, "RequestEntityTooLarge", 413),
    (Reason::UnsupportedMediaType, "UnsupportedMediaType", 415),
    (Reason::InternalError, "InternalError", 500),
    (Reason::Expired, "Expired", 410),
    (Reason::ServiceUnavailable, "ServiceUnavailable", 503),
];

impl Reason {
    pub fn as_str(self) -> &'static str {
        REASONS.iter().find(|r| r.0 == self).map_or("", |r| r.1)
    }

    /// The reason of that wire name; `Unknown` for one this server does not know.
    pub fn from_wire(name: &str) -> Self {
        REASONS.iter().find(|r| r.1 == name).map_or(Reason::Unknown, |r| r.0)
    }

    pub fn code(self) -> u16 {
        REASONS.iter().find(|r| r.0 == self).map_or(500, |r| r.2)
    }
}

/// `details.causes[]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cause {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub field: String,
}

/// `status.details`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Details {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// The kind or the resource, as upstream's constructors fill it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kind: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<Cause>,
    #[serde(skip_serializing_if = "is_zero")]
    pub retry_after_seconds: u32,
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

/// A failed API request, or (with `success`) the answer of a delete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    pub success: bool,
    pub reason: Reason,
    pub code: u16,
    pub message: String,
    pub details: Option<Box<Details>>,
    /// Where a list that cannot go on as it began may go on all the same (`metadata.continue`).
    pub continue_token: Option<Box<str>>,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Status {}

impl Status {
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            success: false,
            reason,
            code: reason.code(),
            message: message.into(),
            details: None,
            continue_token: None,
        }
    }

    fn named(reason: Reason, group: &str, kind: &str, name: &str, message: String) -> Self {
        let details = Details { name: name.into(), group: group.into(), kind: kind.into(), ..Details::default() };
        Self { details: Some(Box::new(details)), ..Self::new(reason, message) }
    }

    pub fn success() -> Self {
        Self { success: true, code: 200, ..Self::new(Reason::Unknown, "") }
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(Reason::BadRequest, message)
    }

    pub fn internal(message: impl fmt::Display) -> Self {
        let message = message.to_string();
        let causes = vec![Cause { message: message.clone(), ..Cause::default() }];
        let details = Details { causes, ..Details::default() };
        Self {
            details: Some(Box::new(details)),
            ..Self::new(Reason::InternalError, format!("Internal error occurred: {message}"))
        }
    }

    pub fn not_found(group: &str, resource: &str, name: &str) -> Self {
        let what = crate::names::group_resource(group, resource);
        Self::named(Reason::NotFound, group, resource, name, format!("{what} \"{name}\" not found"))
    }

    /// No such path or resource at all.
    pub fn unknown_path() -> Self {
        Self {
            details: Some(Box::default()),
            ..Self::new(Reason::NotFound, "the server could not find the requested resource")
        }
    }

    /// A path that is there, but not for this method.
    pub fn wrong_method() -> Self {
        let message = "the server does not allow this method on the requested resource";
        Self { details: Some(Box::default()), ..Self::new(Reason::MethodNotAllowed, message) }
    }

    pub fn already_exists(group: &str, resource: &str, name: &str) -> Self {
        let what = crate::names::group_resource(group, resource);
        Self::named(Reason::AlreadyExists, group, resource, name, format!("{what} \"{name}\" already exists"))
    }

    pub fn conflict(group: &str, resource: &str, name: &str, why: impl fmt::Display) -> Self {
        let what = crate::names::group_resource(group, resource);
        let message = format!("Operation cannot be fulfilled on {what} \"{name}\": {why}");
        Self::named(Reason::Conflict, group, resource, name, message)
    }

    pub fn forbidden(group: &str, resource: &str, name: &str, why: impl fmt::Display) -> Self {
        let what = crate::names::group_resource(group, resource);
        let message = match (what.is_empty(), name.is_empty()) {
            (true, _) => format!("forbidden: {why}"),
            (_, true) => format!("{what} is forbidden: {why}"),
            (_, false) => format!("{what} \"{name}\" is forbidden: {why}"),
        };
        Self::named(Reason::Forbidden, group, resource, name, message)
    }

    pub fn unauthorized() -> Self {
        Self::new(Reason::Unauthorized, "Unauthorized")
    }

    pub fn method_not_allowed(group: &str, resource: &str, verb: &str) -> Self {
        let message = format!(
            "{verb} is not supported on resources of kind \"{}\"",
            crate::names::group_resource(group, resource)
        );
        Self::named(Reason::MethodNotAllowed, group, resource, "", message)
    }

    pub fn too_many_requests(message: impl Into<String>, retry_after_seconds: u32) -> Self {
        let details = Details { retry_after_seconds, ..Details::default() };
        Self { details: Some(Box::new(details)), ..Self::new(Reason::TooManyRequests, message) }
    }

    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(Reason::Expired, message)
    }

    pub fn timeout(message: impl Into<String>, retry_after_seconds: u32) -> Self {
        let details = Details { retry_after_seconds, ..Details::default() };
        Self { details: Some(Box::new(details)), ..Self::new(Reason::Timeout, message) }
    }

    /// `Kind.group "name" is invalid: …`, one cause an error.
    pub fn invalid(group: &str, kind: &str, name: &str, errors: &[FieldError]) -> Self {
        let what = if group.is_empty() { kind.to_string() } else { format!("{kind}.{group}") };
        let said = match errors {
            [one] => one.to_string(),
            many => format!("[{}]", many.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
        };
        let mut status =
            Self::named(Reason::Invalid, group, kind, name, format!("{what} \"{name}\" is invalid: {said}"));
        if let Some(details) = &mut status.details {
            details.causes = errors
                .iter()
                .map(|e| Cause { reason: e.kind.cause().into(), message: e.body(), field: e.field.clone() })
                .collect();
        }
        status
    }

    pub fn with_causes(mut self, causes: Vec<Cause>) -> Self {
        self.details.get_or_insert_default().causes = causes;
        self
    }

    /// The object on the wire.
    pub fn to_value(&self) -> Value {
        let mut out = serde_json::json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "code": self.code});
        out["status"] = if self.success { "Success" } else { "Failure" }.into();
        if !self.message.is_empty() {
            out["message"] = self.message.clone().into();
        }
        if !self.reason.as_str().is_empty() {
            out["reason"] = self.reason.as_str().into();
        }
        if let Some(token) = &self.continue_token {
            out["metadata"]["continue"] = (**token).into();
        }
        if let Some(details) = &self.details {
            out["details"] = serde_json::to_value(details).unwrap_or_default();
        }
        out
    }

    /// Reads a `Status` object a server answered.
    pub fn from_value(value: &Value) -> Self {
        let text = |key: &str| value[key].as_str().unwrap_or_default();
        let success = text("status") == "Success";
        Self {
            success,
            reason: Reason::from_wire(text("reason")),
            code: value["code"].as_u64().and_then(|c| u16::try_from(c).ok()).unwrap_or(if success { 200 } else { 500 }),
            message: text("message").to_string(),
            details: Details::deserialize(&value["details"]).ok().map(Box::new),
            continue_token: value["metadata"]["continue"].as_str().map(Into::into),
        }
    }

    pub fn is(&self, reason: Reason) -> bool {
        !self.success && self.reason == reason
    }

    pub fn is_not_found(&self) -> bool {
        self.is(Reason::NotFound)
    }

    pub fn is_conflict(&self) -> bool {
        self.is(Reason::Conflict)
    }

    pub fn is_already_exists(&self) -> bool {
        self.is(Reason::AlreadyExists)
    }
}

/// A path to a field, written as upstream writes it: `spec.containers[0].name`, `metadata.labels[a/b]`.
///
/// Validation makes one of every field it looks at, and shows hardly any: short ones, which most are, take no memory of
/// their own.
#[derive(Clone)]
pub struct FieldPath(Text);

/// Bytes of a path kept in place: enough for most of a pod's.
const SHORT: usize = 70;

#[derive(Clone)]
enum Text {
    /// The text's bytes; those behind it mean nothing.
    Short {
        length: u8,
        bytes: [u8; SHORT],
    },
    Long(Box<[u8]>),
}

impl FieldPath {
    pub fn root() -> Self {
        Self::default()
    }

    pub fn new(path: &str) -> Self {
        Self::joined(&[path.as_bytes()])
    }

    pub fn child(&self, name: &str) -> Self {
        if self.bytes().is_empty() { Self::new(name) } else { Self::joined(&[self.bytes(), b".", name.as_bytes()]) }
    }

    pub fn index(&self, index: usize) -> Self {
        match u8::try_from(index) {
            Ok(few @ 0..10) => Self::joined(&[self.bytes(), &[b'[', b'0' + few, b']']]),
            _ => Self::joined(&[self.bytes(), b"[", index.to_string().as_bytes(), b"]"]),
        }
    }

    pub fn key(&self, key: &str) -> Self {
        Self::joined(&[self.bytes(), b"[", key.as_bytes(), b"]"])
    }

    pub fn as_str(&self) -> &str {
        match self.text() {
            "" => "<nil>",
            text => text,
        }
    }

    fn bytes(&self) -> &[u8] {
        match &self.0 {
            Text::Short { length, bytes } => &bytes[..usize::from(*length)],
            Text::Long(bytes) => bytes,
        }
    }

    fn text(&self) -> &str {
        // Made of whole texts only.
        std::str::from_utf8(self.bytes()).unwrap_or_default()
    }

    /// `parts` are whole texts, one after the other.
    fn joined(parts: &[&[u8]]) -> Self {
        let mut bytes = [0; SHORT];
        let mut length = 0;
        for part in parts {
            let Some(room) = bytes.get_mut(length..length + part.len()) else {
                return Self(Text::Long(parts.concat().into()));
            };
            room.copy_from_slice(part);
            length += part.len();
        }
        Self(Text::Short { length: length as u8, bytes })
    }
}

impl Default for FieldPath {
    fn default() -> Self {
        Self(Text::Short { length: 0, bytes: [0; SHORT] })
    }
}

impl PartialEq for FieldPath {
    fn eq(&self, other: &Self) -> bool {
        self.bytes() == other.bytes()
    }
}

impl Eq for FieldPath {}

impl fmt::Debug for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FieldPath").field(&self.text()).finish()
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// `field.ErrorType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldErrorKind {
    NotFound,
    Required,
    Duplicate,
    Invalid,
    NotSupported,
    Forbidden,
    TooLong,
    TooMany,
    Internal,
    TypeInvalid,
    /// As `Invalid`, of a value too large to print.
    InvalidUnprinted,
}

impl FieldErrorKind {
    /// (cause reason, words in front)
    fn facts(self) -> (&'static str, &'static str) {
        match self {
            Self::NotFound => ("FieldValueNotFound", "Not found"),
            Self::Required => ("FieldValueRequired", "Required value"),
            Self::Duplicate => ("FieldValueDuplicate", "Duplicate value"),
            Self::Invalid => ("FieldValueInvalid", "Invalid value"),
            Self::NotSupported => ("FieldValueNotSupported", "Unsupported value"),
            Self::Forbidden => ("FieldValueForbidden", "Forbidden"),
            Self::TooLong => ("FieldValueTooLong", "Too long"),
            Self::TooMany => ("FieldValueTooMany", "Too many"),
            Self::Internal => ("InternalError", "Internal error"),
            Self::TypeInvalid => ("FieldValueTypeInvalid", "Invalid value"),
            Self::InvalidUnprinted => ("FieldValueInvalid", "Invalid value"),
        }
    }

    fn cause(self) -> &'static str {
        self.facts().0
    }
}

/// One thing wrong with one field.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldError {
    pub kind: FieldErrorKind,
    pub field: String,
    /// The bad value; not printed for kinds that have none.
    pub value: Value,
    pub detail: String,
}

impl FieldError {
    fn new(kind: FieldErrorKind, field: &FieldPath, value: Value, detail: impl Into<String>) -> Self {
        Self { kind, field: field.as_str().to_string(), value, detail: detail.into() }
    }

    pub fn required(field: &FieldPath, detail: impl Into<String>) -> Self {
        Self::new(FieldErrorKind::Required, field, Value::Null, detail)
    }

    pub fn invalid(field: &FieldPath, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self::new(FieldErrorKind::Invalid, field, value.into(), detail)
    }

    /// Wrong, and not printed: a whole object or list.
    pub fn invalid_unprinted(field: &FieldPath, detail: impl Into<String>) -> Self {
        Self::new(FieldErrorKind::InvalidUnprinted, field, Value::Null, detail)
    }

    pub fn type_invalid(field: &FieldPath, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self::new(FieldErrorKind::TypeInvalid, field, value.into(), detail)
    }

    pub fn forbidden(field: &FieldPath, detail: impl Into<String>) -> Self {
        Self::new(FieldErrorKind::Forbidden, field, Value::Null, detail)
    }

    pub fn duplicate(field: &FieldPath, value: impl Into<Value>) -> Self {
        Self::new(FieldErrorKind::Duplicate, field, value.into(), "")
    }

    pub fn not_found(field: &FieldPath, value: impl Into<Value>) -> Self {
        Self::new(FieldErrorKind::NotFound, field, value.into(), "")
    }

    /// As `not_found`, with what it was looked for in.
    pub fn not_found_of(field: &FieldPath, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self::new(FieldErrorKind::NotFound, field, value.into(), detail)
    }

    pub fn not_supported(field: &FieldPath, value: impl Into<Value>, supported: &[&str]) -> Self {
        let mut list: Vec<String> = supported.iter().map(|s| format!("{s:?}")).collect();
        list.sort();
        let detail = if list.is_empty() { String::new() } else { format!("supported values: {}", list.join(", ")) };
        Self::new(FieldErrorKind::NotSupported, field, value.into(), detail)
    }

    /// As `not_supported`, where upstream lists what is supported in an order of its own.
    pub fn not_supported_of(field: &FieldPath, value: impl Into<Value>, supported: &[&str]) -> Self {
        let list: Vec<String> = supported.iter().map(|s| format!("{s:?}")).collect();
        let detail = format!("supported values: {}", list.join(", "));
        Self::new(FieldErrorKind::NotSupported, field, value.into(), detail)
    }

    pub fn too_long(field: &FieldPath, max_bytes: usize) -> Self {
        Self::new(FieldErrorKind::TooLong, field, Value::Null, format!("may not be more than {max_bytes} bytes"))
    }

    pub fn too_many(field: &FieldPath, actual: usize, max: usize) -> Self {
        Self::new(FieldErrorKind::TooMany, field, actual.into(), format!("must have at most {max} items"))
    }

    pub fn internal(field: &FieldPath, detail: impl Into<String>) -> Self {
        Self::new(FieldErrorKind::Internal, field, Value::Null, detail)
    }

    /// The message without the field's path.
    fn body(&self) -> String {
        use FieldErrorKind::*;
        let words = self.kind.facts().1;
        let said = match self.kind {
            Required | Forbidden | TooLong | Internal | InvalidUnprinted => words.to_string(),
            // Go prints strings quoted and everything else as JSON-like text.
            _ => format!("{words}: {}", self.value),
        };
        if self.detail.is_empty() { said } else { format!("{said}: {}", self.detail) }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.body())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_long_and_short() {
        let (name, list) = ("a".repeat(SHORT), FieldPath::new("spec").child("list"));
        for (path, text) in [
            (FieldPath::root(), "<nil>".to_string()),
            (FieldPath::root().child("metadata").key("a/b"), "metadata[a/b]".into()),
            (list.index(7).child("é"), "spec.list[7].é".into()),
            (list.index(12).child(&name), format!("spec.list[12].{name}")),
            (FieldPath::new(&name), name.clone()),
            (FieldPath::new(&name).child("x").index(0), format!("{name}.x[0]")),
        ] {
            assert_eq!(path.to_string(), text);
            assert_eq!(path.clone(), path);
        }
        assert_ne!(list, FieldPath::new("spec.lis"));
    }
}
