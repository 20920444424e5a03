//! A transport under a service account's name: a component that may ask for its accounts' tokens lets each of its parts
//! write under an account of its own, with that account's rights.
//!
//! Tokens are asked for when they are needed and again before they end. An account that is not there is made. Upstream
//! gives its controllers' accounts the right to `update` where we patch; a merge patch that is refused is done as
//! read, merge and update, under the same preconditions.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::config::{AuthInfo, KubeConfigOptions, Kubeconfig};
use meta::{Reason, Reply, Request, RequestBody, Status, Verb};
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::remote::Remote;
use crate::{Client, Transport};

/// Seconds a token is asked to last.
const TOKEN_SECONDS: u64 = 3600;
/// When it is replaced.
const RENEW_AFTER: Duration = Duration::from_secs(2700);
const MERGE: &str = "application/merge-patch+json";

/// See the module.
pub struct Account {
    /// May make accounts and ask for their tokens.
    main: Client,
    kubeconfig: PathBuf,
    namespace: String,
    name: String,
    agent: String,
    current: Mutex<Option<(Arc<Remote>, Instant)>>,
}

/// RFC 7386.
fn merge(into: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_object() else {
        *into = patch.clone();
        return;
    };
    if !into.is_object() {
        *into = json!({});
    }
    for (key, value) in patch {
        if value.is_null() {
            if let Some(map) = into.as_object_mut() {
                map.remove(key);
            }
        } else {
            merge(&mut into[key], value);
        }
    }
}

impl Account {
    /// The server is the kubeconfig's; only its credentials are not used.
    pub fn new(main: Client, kubeconfig: PathBuf, namespace: &str, name: &str, agent: &str) -> Self {
        let (namespace, name, agent) = (namespace.into(), name.into(), agent.into());
        Self { main, kubeconfig, namespace, name, agent, current: Mutex::default() }
    }

    async fn token(&self) -> Result<String, Status> {
        let accounts = self.main.api::<ServiceAccount>().namespaced(&self.namespace);
        let ask = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": TOKEN_SECONDS},
        });
        let answer = match accounts.create_subresource(&self.name, "token", &ask).await {
            Err(status) if status.is_not_found() => {
                let body = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": self.name, "namespace": self.namespace}});
                match accounts.dynamic().create(body).await {
                    Err(status) if !status.is_already_exists() => return Err(status),
                    _ => accounts.create_subresource(&self.name, "token", &ask).await?,
                }
            }
            other => other?,
        };
        let answer = answer.value().map_err(Status::internal)?;
        let token = answer["status"]["token"].as_str();
        token.map(Into::into).ok_or_else(|| Status::internal("the server answered no token"))
    }

    /// The kubeconfig's server under a token.
    async fn connect(&self, token: &str) -> Result<Remote, Status> {
        let wrong =
            |e: &dyn std::fmt::Display| Status::bad_request(format!("kubeconfig {}: {e}", self.kubeconfig.display()));
        let mut kubeconfig = Kubeconfig::read_from(&self.kubeconfig).map_err(|e| wrong(&e))?;
        let own: AuthInfo = serde_json::from_value(json!({"token": token})).map_err(Status::internal)?;
        for named in &mut kubeconfig.auth_infos {
            named.auth_info = Some(own.clone());
        }
        let options = KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(|e| wrong(&e))?;
        Remote::from_config(config, &self.agent)
    }

    async fn remote(&self) -> Result<Arc<Remote>, Status> {
        // Held while asking, so that many calls at once ask for one token.
        let mut current = self.current.lock().await;
        if let Some((remote, _)) = current.as_ref().filter(|(_, since)| since.elapsed() < RENEW_AFTER) {
            return Ok(remote.clone());
        }
        let token = self.token().await?;
        let remote = Arc::new(self.connect(&token).await?);
        *current = Some((remote.clone(), Instant::now()));
        Ok(remote)
    }

    /// A refused merge patch, as read, merge and update.
    async fn update_instead(&self, remote: &Remote, request: &Request, patch: &Value) -> Result<Reply, Status> {
        let read = Request::new(Verb::Get, request.resource.clone(), &request.namespace, &request.name);
        let Reply::Object { object, .. } = remote.call(read).await? else {
            return Err(Status::internal("the server answered no object"));
        };
        let mut body = object.value().map_err(Status::internal)?;
        merge(&mut body, patch);
        let update = Request::new(Verb::Update, request.resource.clone(), &request.namespace, &request.name);
        remote.call(update.subresource(&request.subresource).json(body)).await
    }
}

#[async_trait]
impl Transport for Account {
    async fn call(&self, request: Request) -> Result<Reply, Status> {
        let remote = self.remote().await?;
        let patch = match &request.body {
            RequestBody::Value { content_type, value } if *content_type == MERGE => Some(value.clone()),
            _ => None,
        };
        let again = patch.map(|patch| (patch, Request { body: RequestBody::None, ..request.clone() }));
        match remote.call(request).await {
            Err(status) if status.is(Reason::Unauthorized) => {
                *self.current.lock().await = None;
                Err(status)
            }
            Err(status) if status.is(Reason::Forbidden) => match again {
                Some((patch, request)) => self.update_instead(&remote, &request, &patch).await,
                None => Err(status),
            },
            other => other,
        }
    }

    async fn get_path(&self, path_and_query: &str) -> Result<Bytes, Status> {
        self.remote().await?.get_path(path_and_query).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merging() {
        let mut value = json!({"a": {"b": 1, "c": 2}, "l": [1]});
        merge(&mut value, &json!({"a": {"b": null, "d": 3}, "l": [2]}));
        assert_eq!(value, json!({"a": {"c": 2, "d": 3}, "l": [2]}));
    }
}
