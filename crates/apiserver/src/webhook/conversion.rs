//! Conversion webhooks: custom resources from one version to another, by whoever defined them.
//!
//! Follows `k8s.io/apiextensions-apiserver/pkg/apiserver/conversion`: one review a batch; what comes back must be the same
//! objects in the same order, and of their metadata only labels and annotations are taken over.

use std::sync::{Arc, Weak};
use std::time::Duration;

use meta::{Status, Value};
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
            let failed = |why: String| Status::internal(format!("conversion webhook for {kind} failed: {why}"));
            let sent: Vec<&Value> = batch.iter().map(|o| &**o).collect();
            let converted = self.ask(&sent, api_version).await.map_err(failed)?;
            for (at, (object, new)) in batch.iter_mut().zip(converted).enumerate() {
                let new = checked(object, new, api_version).map_err(|why| {
                    Status::internal(format!(
                        "conversion webhook for {kind} returned invalid converted object at index {at}: {why}"
                    ))
                })?;
                **object = new;
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
        let response = &mut answer["response"];
        if !response.is_object() {
            return Err("invalid response: the webhook's answer has no response".into());
        }
        if response["uid"] != uid.as_str() {
            return Err(format!("invalid response: expected response.uid={uid:?}, got {}", response["uid"]));
        }
        if response["result"]["status"] != "Success" {
            let message = response["result"]["message"].as_str().unwrap_or_default();
            return Err(if message.is_empty() {
                format!("response.result.status was {}, not 'Success'", response["result"]["status"])
            } else {
                message.to_string()
            });
        }
        let Value::Array(converted) = response["convertedObjects"].take() else {
            return Err(format!("returned 0 objects, expected {}", objects.len()));
        };
        if converted.len() != objects.len() {
            return Err(format!("returned {} objects, expected {}", converted.len(), objects.len()));
        }
        Ok(converted)
    }
}

fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object[field].as_str().unwrap_or_default()
}

/// What a webhook made of an object, if it is still that object. Its metadata is the original's but for labels and
/// annotations.
fn checked(original: &Value, mut converted: Value, api_version: &str) -> Result<Value, String> {
    if converted["apiVersion"] != api_version {
        return Err(format!("invalid groupVersion, expected={api_version}, got={}", text(&converted, "apiVersion")));
    }
    if converted["kind"] != original["kind"] {
        return Err(format!("invalid kind, expected={}, got={}", text(original, "kind"), text(&converted, "kind")));
    }
    for field in ["name", "namespace", "uid"] {
        let (before, after) = (text(&original["metadata"], field), text(&converted["metadata"], field));
        if before != after {
            return Err(format!(
                "must have the same {}: {after} != {before}",
                if field == "uid" { "UID" } else { field }
            ));
        }
    }
    let said = converted["metadata"].take();
    let mut kept = original["metadata"].clone();
    for field in ["labels", "annotations"] {
        let Some(map) = kept.as_object_mut() else { break };
        match &said[field] {
            Value::Null => drop(map.remove(field)),
            value @ Value::Object(entries) if entries.values().all(Value::is_string) => {
                drop(map.insert(field.into(), value.clone()))
            }
            _ => return Err(format!("metadata.{field}: Invalid value: must be a map of strings")),
        }
    }
    converted["metadata"] = kept;
    Ok(converted)
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
            (json!({"name": "b", "namespace": "n", "uid": "u"}), "must have the same name: b != a"),
            (json!({"name": "a", "namespace": "n"}), "must have the same UID:  != u"),
            (
                json!({"name": "a", "namespace": "n", "uid": "u", "labels": {"a": 1}}),
                "metadata.labels: Invalid value: must be a map of strings",
            ),
        ] {
            assert_eq!(checked(&original, with(metadata), "g/v2").unwrap_err(), expect);
        }
        assert!(checked(&original, original.clone(), "g/v2").unwrap_err().starts_with("invalid groupVersion"));
    }
}
