//! One request as the audit log tells it: `audit.k8s.io/v1` Event, its fields in upstream's order.

use std::collections::BTreeMap;

use meta::{Status, Value};
use serde::Serialize;

use super::policy::{Level, Stage};
use crate::authn::User;

/// Bytes of a user agent that are told, as upstream.
const MAX_USER_AGENT: usize = 1024;

#[derive(Clone, Debug, Default, Serialize)]
pub struct UserInfo {
    #[serde(skip_serializing_if = "String::is_empty")]
    username: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    uid: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    groups: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    extra: BTreeMap<String, Vec<String>>,
}

impl From<&User> for UserInfo {
    fn from(user: &User) -> Self {
        let User { name, uid, groups, extra } = user.clone();
        Self { username: name, uid, groups, extra }
    }
}

#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectReference {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub resource: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub api_group: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub api_version: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub resource_version: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub subresource: String,
}

/// How somebody came to be who they are.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AuthenticationMetadata {
    /// The verb that allowed to act as another.
    pub impersonation_constraint: String,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    kind: &'static str,
    api_version: &'static str,
    pub level: &'static str,
    #[serde(rename = "auditID")]
    pub audit_id: String,
    pub stage: &'static str,
    #[serde(rename = "requestURI")]
    pub request_uri: String,
    pub verb: String,
    pub user: UserInfo,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub impersonated_user: Option<UserInfo>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authentication_metadata: Option<AuthenticationMetadata>,
    #[serde(rename = "sourceIPs", skip_serializing_if = "Vec::is_empty")]
    pub source_ips: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub user_agent: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object_ref: Option<ObjectReference>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_status: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_object: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_object: Option<Value>,
    pub request_received_timestamp: String,
    pub stage_timestamp: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// Now, as `metav1.MicroTime` spells it.
pub fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

impl Event {
    pub fn new(level: Level, audit_id: String, request_uri: String, verb: &str, user_agent: &str) -> Self {
        let mut agent: String = user_agent.into();
        if agent.len() > MAX_USER_AGENT {
            let end = (0..=MAX_USER_AGENT).rev().find(|at| agent.is_char_boundary(*at)).unwrap_or(0);
            agent.truncate(end);
            agent.push_str("...TRUNCATED");
        }
        let received = now();
        Self {
            kind: "Event",
            api_version: "audit.k8s.io/v1",
            level: level.as_str(),
            audit_id,
            stage: Stage::RequestReceived.as_str(),
            request_uri,
            verb: verb.into(),
            user: UserInfo::default(),
            impersonated_user: None,
            authentication_metadata: None,
            source_ips: Vec::new(),
            user_agent: agent,
            object_ref: None,
            response_status: None,
            request_object: None,
            response_object: None,
            stage_timestamp: received.clone(),
            request_received_timestamp: received,
            annotations: BTreeMap::new(),
        }
    }
}

/// What is told of an answer's `Status`.
pub fn told(status: &Status) -> Value {
    let mut value = status.to_value();
    if let Some(map) = value.as_object_mut() {
        map.retain(|field, _| !matches!(field.as_str(), "kind" | "apiVersion"));
        map.insert("metadata".into(), Value::Object(Default::default()));
    }
    value
}

/// Takes who owns which field out of an object, a list's items, a table's rows.
pub fn without_managed_fields(value: &mut Value) {
    let take = |object: &mut Value| {
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("managedFields");
        }
    };
    take(value);
    for (list, within) in [("items", None), ("rows", Some("object"))] {
        for item in value.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            match within {
                Some(field) => item.get_mut(field).map(take).unwrap_or_default(),
                None => take(item),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn managed_fields_go_wherever_they_stand() {
        let object = || json!({"metadata": {"name": "a", "managedFields": [1]}});
        for (mut value, expect) in [
            (object(), json!({"metadata": {"name": "a"}})),
            (
                json!({"metadata": {}, "items": [object()]}),
                json!({"metadata": {}, "items": [{"metadata": {"name": "a"}}]}),
            ),
            (
                json!({"rows": [{"object": object()}, {}]}),
                json!({"rows": [{"object": {"metadata": {"name": "a"}}}, {}]}),
            ),
            (json!([{"op": "add"}]), json!([{"op": "add"}])),
        ] {
            without_managed_fields(&mut value);
            assert_eq!(value, expect);
        }
    }

    #[test]
    fn events_read_as_upstreams() {
        let mut event = Event::new(Level::Metadata, "id".into(), "/version".into(), "get", "");
        (event.request_received_timestamp, event.stage_timestamp) = ("t".into(), "t".into());
        event.response_status = Some(told(&Status::unauthorized()));
        let expect = r#"{"kind":"Event","apiVersion":"audit.k8s.io/v1","level":"Metadata","auditID":"id","stage":"RequestReceived","requestURI":"/version","verb":"get","user":{},"responseStatus":{"code":401,"message":"Unauthorized","metadata":{},"reason":"Unauthorized","status":"Failure"},"requestReceivedTimestamp":"t","stageTimestamp":"t"}"#;
        assert_eq!(serde_json::to_string(&event).unwrap(), expect);
        let long = Event::new(Level::Metadata, String::new(), String::new(), "", &"é".repeat(1000));
        assert!(long.user_agent.ends_with("é...TRUNCATED") && long.user_agent.len() < 1040);
    }
}
