//! The seam: what a transport must do, and the [`Client`] that hides which one it is.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use meta::{Gvr, Reply, Request, Status};

use crate::api::{Api, DynamicApi, Kind};

/// Carries requests to an API server. Authentication and authorization stand behind it, never in it.
#[async_trait]
pub trait Transport: Send + Sync + 'static {
    /// One request on a resource.
    async fn call(&self, request: Request) -> Result<Reply, Status>;

    /// The body of a `GET` on a path that is no resource: discovery, `/version`, `/healthz`, OpenAPI.
    async fn get_path(&self, path_and_query: &str) -> Result<Bytes, Status>;
}

/// A handle on an API server; cheap to clone.
#[derive(Clone)]
pub struct Client {
    transport: Arc<dyn Transport>,
    field_manager: Option<Arc<str>>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("field_manager", &self.field_manager).finish_non_exhaustive()
    }
}

impl Client {
    pub fn new(transport: impl Transport) -> Self {
        Self::from_arc(Arc::new(transport))
    }

    pub fn from_arc(transport: Arc<dyn Transport>) -> Self {
        Self { transport, field_manager: None }
    }

    /// A remote client from a kubeconfig file's current context. The user agent also names the field manager.
    pub async fn from_kubeconfig(path: &Path, user_agent: &str) -> Result<Self, Status> {
        Ok(Self::new(crate::remote::Remote::from_kubeconfig(path, user_agent).await?).with_field_manager(user_agent))
    }

    /// The same, of a server at another address than the kubeconfig's.
    pub async fn of_server(path: &Path, server: &str, user_agent: &str) -> Result<Self, Status> {
        Ok(Self::new(crate::remote::Remote::of_server(path, server, user_agent).await?).with_field_manager(user_agent))
    }

    /// The same for one of very many that share a server: it asks for so few things at once.
    pub async fn modest(path: &Path, user_agent: &str, in_flight: usize) -> Result<Self, Status> {
        let remote = crate::remote::Remote::from_kubeconfig(path, user_agent).await?;
        Ok(Self::new(remote.at_most(in_flight)).with_field_manager(user_agent))
    }

    /// A remote client from a pod's service account.
    pub fn in_cluster(user_agent: &str) -> Result<Self, Status> {
        Ok(Self::new(crate::remote::Remote::in_cluster(user_agent)?).with_field_manager(user_agent))
    }

    /// The name under which this client's writes own fields. Anything behind a slash (a version) is left out, as
    /// servers do with user agents.
    pub fn with_field_manager(mut self, name: &str) -> Self {
        self.field_manager = Some(name.split('/').next().unwrap_or(name).into());
        self
    }

    /// The typed API of a kind, over all namespaces until [`Api::namespaced`].
    pub fn api<K: Kind>(&self) -> Api<K> {
        Api::new(self.clone())
    }

    /// The API of any resource.
    pub fn dynamic(&self, resource: Gvr) -> DynamicApi {
        DynamicApi::new(self.clone(), resource)
    }

    /// One raw request.
    pub async fn call(&self, mut request: Request) -> Result<Reply, Status> {
        if request.verb.is_write() && request.options.field_manager.is_none() {
            request.options.field_manager = self.field_manager.as_deref().map(Into::into);
        }
        self.transport.call(request).await
    }

    /// The body of a `GET` on a path that is no resource.
    pub async fn get_path(&self, path_and_query: &str) -> Result<Bytes, Status> {
        self.transport.get_path(path_and_query).await
    }
}
