//! Conversion webhooks: custom resources from one version to another, by whoever defined them.
//!
//! Follows `k8s.io/apiextensions-apiserver/pkg/apiserver/conversion`: one review a batch; what comes back must be the same
//! objects in the same order, and of their metadata only labels and annotations are taken over.

use std::sync::{Arc, Weak};
use std::time::Duration;

use meta::{Reason, Status, Value};
use serde::Deserialize;
use serde_json::json;

use super::client::{self, WebhookClientConfig};
use crate::server::ApiServer;

/// Upstream's limit of one conversion.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Objects in one review, so that no review outgrows what webhooks and this server read.
const BATCH: usize = 500;
const REVIEW: &str = "v1";

/// How objects of one definition are converted.
pub struct Conversion {
    /// Gone with the server, which owns the definitions that own this.
    server: Weak<ApiServer>,
    client: WebhookClientConfig,
    reviews: Vec<String>,
}

impl Conversion {
    /// Of a definition; `None` when its versions differ in name alone.
    pub fn of(server: &Arc<ApiServer>, definition: &Value) -> Option<Arc<Self>> {
        let conversion = &definition["spec"]["conversion"];
        if conversion["strategy"] != "Webhook" {
            return None;
        }
        let webhook = &conversion["webhook"];
        let reviews = webhook["conversionReviewVersions"].as_array().into_iter().flatten();
        Some(Arc::new(Self {
            server: Arc::downgrade(server),
            client: WebhookClientConfig::deserialize(&webhook["clientConfig"]).unwrap_or_default(),
            reviews: reviews.filter_map(Value::as_str).map(String::from).collect(),
        }))
    }

    /// Converts those objects that are not in `api_version` already.
    pub async fn convert(&self, objects: &mut [Value], api_version: &str) -> Result<(), Status> {
        let mut others: Vec<&mut Value> = objects.iter_mut().filter(|o| o["apiVersion"] != api_version).collect();
        for batch in others.chunks_mut(BATCH) {
            let kind = batch
                .first()
                .map_or_else(String::new, |o| format!("{}, Kind={}", text(o, "apiVersion"), text(o, "kind")));
            // Upstream's failures have no reason of their own.
            let refuse = |why: String| Status::new(Reason::Unknown, format!("conversion webhook for {kind} {why}"));
            let sent: Vec<&Value> = batch.iter().map(|o| &**o).collect();
            let converted = self.ask(&sent, api_version).await.map_err(|why| refuse(format!("failed: {why}")))?;
            if converted.len() != batch.len() {
                return Err(refuse(format!("returned {} objects, expected {}", converted.len(), batch.len())));
            }
            for (object, new) in batch.iter_mut().zip(converted) {
                **object =
                    checked(object, new, api_version).map_err(|why| refuse(format!("returned invalid {why}")))?;
            }
        }
        Ok(())
    }

    async fn ask(&self, objects: &[&Value], api_version: &str) -> Result<Vec<Value>, String> {
        let server = self.server.upgrade().ok_or("the server is shutting down")?;
        if !self.reviews.iter().any(|v| v == REVIEW) {
            return Err(format!("no supported conversion review versions: {:?}", self.reviews));
        }
        let uid = uuid::Uuid::new_v4().to_string();
        let review = json!({
            "apiVersion": format!("apiextensions.k8s.io/{REVIEW}"),
            "kind": "ConversionReview",
            "request": {"uid": uid, "desiredAPIVersion": api_version, "objects": objects},
        });
        let mut answer = client::post(&server, &self.client, &review, TIMEOUT).await?;
        let (said, kind) = (text(&answer, "apiVersion"), text(&answer, "kind"));
        if said != review["apiVersion"] || kind != review["kind"] {
            // A version without a group, and no version at all, are printed with an empty group.
            let slash = if said.contains('/') { "" } else { "/" };
            return Err(format!(
                "expected webhook response of apiextensions.k8s.io/{REVIEW}, Kind=ConversionReview, got {slash}{said}, Kind={kind}"
            ));
        }
        let response = &mut answer["response"];
        if !response.is_object() {
            return Err("no response provided".into());
        }
        if response["uid"] != uid.as_str() {
            return Err(format!("expected response.uid={uid:?}, got {:?}", text(response, "uid")));
        }
        let result = &response["result"];
        match (text(result, "status"), text(result, "message")) {
            ("Success", _) => {}
            (status, "") => return Err(format!("response.result.status was '{status}', not 'Success'")),
            (_, message) => return Err(message.to_string()),
        }
        match response["convertedObjects"].take() {
            Value::Array(converted) => Ok(converted),
            _ => Ok(Vec::new()),
        }
    }
}

fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object[field].as_str().unwrap_or_default()
}

/// What a webhook made of an object, if it is still that object. Its metadata is the original's but for labels and
/// annotations, and those must be fit to be stored where they are not as they were. Errors go on where "returned invalid"
/// ends.
fn checked(original: &Value, mut converted: Value, api_version: &str) -> Result<Value, String> {
    if converted["apiVersion"] != api_version {
        let said = text(&converted, "apiVersion");
        return Err(format!("object at index 0: invalid groupVersion (expected {api_version}, received {said})"));
    }
    if converted["kind"] != original["kind"] {
        let (kind, said) = (text(original, "kind"), text(&converted, "kind"));
        return Err(format!("object at index 0: invalid kind (expected {kind}, received {said})"));
    }
    for field in ["name", "namespace", "uid"] {
        let (before, after) = (text(&original["metadata"], field), text(&converted["metadata"], field));
        if before != after {
            let field = if field == "uid" { "UID" } else { field };
            return Err(format!("object: must have the same {field}: {before} != {after}"));
        }
    }
    let said = converted["metadata"].take();
    let mut kept = original["metadata"].clone();
    for field in ["labels", "annotations"] {
        let Some(map) = kept.as_object_mut() else { break };
        match &said[field] {
            Value::Null => drop(map.remove(field)),
            value @ Value::Object(entries) => {
                if let Some((key, value)) = entries.iter().find(|(_, value)| !value.is_string()) {
                    let found = go_type(value);
                    return Err(format!(
                        "metadata: metadata.{field}[{key}] must be a string, but is {found} in converted object"
                    ));
                }
                if map.get(field) != Some(value) {
                    let errors = resources::metadata::validate_map(field, value);
                    let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
                    match errors.as_slice() {
                        [] => {}
                        [error] => return Err(format!("metadata: {error}")),
                        errors => return Err(format!("metadata: [{}]", errors.join(", "))),
                    }
                }
                map.insert(field.into(), value.clone());
            }
            value => {
                let found = go_type(value);
                return Err(format!("metadata: invalid metadata.{field} of type {found} in converted object"));
            }
        }
    }
    converted["metadata"] = kept;
    Ok(converted)
}

/// What Go calls the type of a decoded value.
fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(n) if n.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_is_the_originals() {
        let original = json!({"apiVersion": "g/v1", "kind": "K", "metadata": {"name": "a", "namespace": "n", "uid": "u", "generation": 2, "labels": {"x": "y"}}, "a": 1});
        let with = |metadata: Value| json!({"apiVersion": "g/v2", "kind": "K", "metadata": metadata, "b": 1});
        let same = json!({"name": "a", "namespace": "n", "uid": "u", "generation": 9, "labels": {"z": "y"}});
        let converted = checked(&original, with(same), "g/v2").unwrap();
        assert_eq!(converted["metadata"]["generation"], 2);
        assert_eq!(converted["metadata"]["labels"], json!({"z": "y"}));
        for (metadata, expect) in [
            (json!({"name": "b", "namespace": "n", "uid": "u"}), "object: must have the same name: a != b"),
            (json!({"name": "a", "namespace": "n"}), "object: must have the same UID: u != "),
            (
                json!({"name": "a", "namespace": "n", "uid": "u", "labels": {"a": 1}}),
                "metadata: metadata.labels[a] must be a string, but is int64 in converted object",
            ),
            (
                json!({"name": "a", "namespace": "n", "uid": "u", "annotations": []}),
                "metadata: invalid metadata.annotations of type []interface {} in converted object",
            ),
            (
                json!({"name": "a", "namespace": "n", "uid": "u", "annotations": {"a b": ""}}),
                "metadata: metadata.annotation: Invalid value: \"a b\": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')",
            ),
        ] {
            assert_eq!(checked(&original, with(metadata), "g/v2").unwrap_err(), expect);
        }
        let wrong = checked(&original, original.clone(), "g/v2").unwrap_err();
        assert_eq!(wrong, "object at index 0: invalid groupVersion (expected g/v2, received g/v1)");
    }
}
