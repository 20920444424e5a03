//! ServiceAccount: every pod runs as one, and finds its token, the cluster's CA and its namespace mounted.

use std::sync::Arc;

use async_trait::async_trait;
use meta::{Status, Value};
use serde::Deserialize;
use serde_json::json;

use super::{Attributes, Plugin, Write};
use crate::pipeline::metadata::generate_name;
use crate::server::ApiServer;

pub struct ServiceAccount;

/// What pods take from their account.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Account {
    image_pull_secrets: Option<Vec<Value>>,
    automount_service_account_token: Option<bool>,
}

const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Lifetime of mounted tokens: an hour and a little, as upstream.
const TOKEN_SECONDS: i64 = 3607;
const MIRROR: &str = "kubernetes.io/config.mirror";

#[async_trait]
impl Plugin for ServiceAccount {
    fn concerns(&self, _server: &ApiServer, a: &Attributes<'_>) -> bool {
        a.creates("", "pods")
    }

    async fn mutate(&self, write: &Write<'_>, pod: &mut Value) -> Result<(), Status> {
        let Write { server, a, .. } = *write;
        if !pod["metadata"]["annotations"][MIRROR].is_null() {
            return Ok(());
        }
        let namespace = &*a.target.request.namespace;
        let pod_name = pod["metadata"]["name"].as_str().unwrap_or_default().to_string();
        let Some(spec) = pod["spec"].as_object_mut() else { return Ok(()) };
        let name = match spec.get("serviceAccountName").and_then(Value::as_str) {
            None | Some("") => "default".to_string(),
            Some(name) => name.to_string(),
        };
        spec.insert("serviceAccountName".into(), name.as_str().into());
        spec.insert("serviceAccount".into(), name.as_str().into());
        let account = match server.lookup("", "serviceaccounts", namespace, &name) {
            Some(found) => Some(found),
            None => {
                server.await_newest().await?;
                server.lookup("", "serviceaccounts", namespace, &name)
            }
        };
        let account = account.ok_or_else(|| {
            a.forbid(
                &pod_name,
                format!("error looking up service account {namespace}/{name}: serviceaccount {name:?} not found"),
            )
        })?;
        let account: Arc<Account> = account.typed().map_err(Status::internal)?;
        if spec.get("imagePullSecrets").and_then(Value::as_array).is_none_or(Vec::is_empty)
            && let Some(secrets) = account.image_pull_secrets.as_ref().filter(|s| !s.is_empty())
        {
            spec.insert("imagePullSecrets".into(), secrets.clone().into());
        }
        let wanted = spec.get("automountServiceAccountToken").and_then(Value::as_bool);
        if !wanted.or(account.automount_service_account_token).unwrap_or(true) {
            return Ok(());
        }
        mount(spec);
        Ok(())
    }
}

fn mount(spec: &mut serde_json::Map<String, Value>) {
    let volume = generate_name("kube-api-access-");
    let mut mounted = false;
    for list in ["initContainers", "containers"] {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            let Some(container) = container.as_object_mut() else { continue };
            let mounts = container.entry("volumeMounts").or_insert_with(|| json!([]));
            let Some(mounts) = mounts.as_array_mut() else { continue };
            if mounts.iter().any(|m| m["mountPath"] == MOUNT_PATH) {
                continue;
            }
            mounts.push(json!({"name": volume, "mountPath": MOUNT_PATH, "readOnly": true}));
            mounted = true;
        }
    }
    if !mounted {
        return;
    }
    let volumes = spec.entry("volumes").or_insert_with(|| json!([]));
    if let Some(volumes) = volumes.as_array_mut() {
        volumes.push(json!({"name": volume, "projected": {"defaultMode": 0o644, "sources": [
            {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
        ]}}));
    }
}
