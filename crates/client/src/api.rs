//! Calls on one resource: [`DynamicApi`] for any, [`Api`] for the kinds of `k8s-openapi`.

use std::marker::PhantomData;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use meta::{Gvr, List, Object, Reply, Request, RequestBody, Status, Verb, WatchStream};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::Client;

/// A kind of `k8s-openapi` that has objects.
pub trait Kind:
    k8s_openapi::Resource + k8s_openapi::Metadata<Ty = ObjectMeta> + DeserializeOwned + Serialize + Send + Sync + 'static
{
}

impl<K> Kind for K where
    K: k8s_openapi::Resource
        + k8s_openapi::Metadata<Ty = ObjectMeta>
        + DeserializeOwned
        + Serialize
        + Send
        + Sync
        + 'static
{
}

/// Where a kind lives.
pub fn gvr_of<K: k8s_openapi::Resource>() -> Gvr {
    Gvr::new(K::GROUP, K::VERSION, K::URL_PATH_SEGMENT)
}

/// What to list or watch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ListOptions {
    pub label_selector: Option<String>,
    pub field_selector: Option<String>,
    /// `0`: any version a cache has; `None`: the newest.
    pub resource_version: Option<String>,
    pub limit: Option<u64>,
    pub continue_token: Option<String>,
    /// Only for watches.
    pub timeout_seconds: Option<u64>,
    /// Only for watches: they begin with everything there is, and a bookmark that says so behind it.
    pub everything_first: bool,
}

impl ListOptions {
    pub fn labels(selector: impl Into<String>) -> Self {
        Self { label_selector: Some(selector.into()), ..Self::default() }
    }

    pub fn fields(selector: impl Into<String>) -> Self {
        Self { field_selector: Some(selector.into()), ..Self::default() }
    }
}

/// What becomes of an object's dependents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    Background,
    Foreground,
    Orphan,
}

impl Propagation {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Background => "Background",
            Self::Foreground => "Foreground",
            Self::Orphan => "Orphan",
        }
    }
}

/// `metav1.DeleteOptions`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DeleteOptions {
    /// Seconds; `Some(0)` removes at once.
    pub grace: Option<i64>,
    /// Precondition.
    pub uid: Option<String>,
    /// Precondition.
    pub resource_version: Option<String>,
    pub propagation: Option<Propagation>,
}

impl DeleteOptions {
    pub fn uid(uid: impl Into<String>) -> Self {
        Self { uid: Some(uid.into()), ..Self::default() }
    }

    pub fn grace(mut self, seconds: i64) -> Self {
        self.grace = Some(seconds);
        self
    }

    pub fn propagation(mut self, propagation: Propagation) -> Self {
        self.propagation = Some(propagation);
        self
    }

    fn body(&self) -> Value {
        let mut out = json!({"kind": "DeleteOptions", "apiVersion": "v1"});
        if let Some(grace) = self.grace {
            out["gracePeriodSeconds"] = grace.into();
        }
        if let Some(uid) = &self.uid {
            out["preconditions"]["uid"] = uid.as_str().into();
        }
        if let Some(version) = &self.resource_version {
            out["preconditions"]["resourceVersion"] = version.as_str().into();
        }
        if let Some(propagation) = self.propagation {
            out["propagationPolicy"] = propagation.as_str().into();
        }
        out
    }
}

/// A patch and how it is meant.
#[derive(Clone, Debug, PartialEq)]
pub enum Patch {
    /// RFC 7386.
    Merge(Value),
    /// RFC 6902.
    Json(Value),
    /// Kubernetes' strategic merge.
    Strategic(Value),
    /// Server-side apply.
    Apply { manager: String, force: bool, value: Value },
}

/// The API of one resource, untyped. Namespaced calls need [`DynamicApi::namespaced`] first.
#[derive(Clone, Debug)]
pub struct DynamicApi {
    client: Client,
    resource: Gvr,
    namespace: String,
}

fn internal(error: impl std::fmt::Display) -> Status {
    Status::internal(error)
}

/// The object in a reply, whether stored or not.
fn object_of(reply: Reply) -> Result<Arc<Object>, Status> {
    match reply {
        Reply::Object { object, .. } => Ok(object),
        Reply::Value { value, .. } => Object::from_value(&value).map(Arc::new).map_err(internal),
        Reply::List(_) | Reply::Watch(_) => {
            Err(internal("the server answered a collection where one object was asked"))
        }
    }
}

impl DynamicApi {
    pub(crate) fn new(client: Client, resource: Gvr) -> Self {
        Self { client, resource, namespace: String::new() }
    }

    /// The same resource in one namespace; the empty string means all (or cluster-scoped).
    pub fn namespaced(mut self, namespace: &str) -> Self {
        self.namespace = namespace.into();
        self
    }

    pub fn resource(&self) -> &Gvr {
        &self.resource
    }

    fn request(&self, verb: Verb, name: &str) -> Request {
        Request::new(verb, self.resource.clone(), &self.namespace, name)
    }

    fn collection(&self, verb: Verb, options: &ListOptions) -> Request {
        let mut request = self.request(verb, "");
        request.options.label_selector = options.label_selector.clone();
        request.options.field_selector = options.field_selector.clone();
        request.options.resource_version = options.resource_version.clone();
        request.options.limit = options.limit;
        request.options.continue_token = options.continue_token.clone();
        request.options.timeout_seconds = options.timeout_seconds;
        if options.everything_first {
            request.options.send_initial_events = Some(true);
            request.options.resource_version_match = Some("NotOlderThan".into());
        }
        request
    }

    pub async fn get(&self, name: &str) -> Result<Arc<Object>, Status> {
        object_of(self.client.call(self.request(Verb::Get, name)).await?)
    }

    /// `None` when there is no such object.
    pub async fn get_opt(&self, name: &str) -> Result<Option<Arc<Object>>, Status> {
        match self.get(name).await {
            Ok(object) => Ok(Some(object)),
            Err(status) if status.is_not_found() => Ok(None),
            Err(status) => Err(status),
        }
    }

    pub async fn get_subresource(&self, name: &str, subresource: &str) -> Result<Arc<Object>, Status> {
        object_of(self.client.call(self.request(Verb::Get, name).subresource(subresource)).await?)
    }

    pub async fn list(&self, options: &ListOptions) -> Result<List, Status> {
        match self.client.call(self.collection(Verb::List, options)).await? {
            Reply::List(list) => Ok(list),
            _ => Err(internal("the server answered no list")),
        }
    }

    /// Events after `options.resource_version`, with bookmarks.
    pub async fn watch(&self, options: &ListOptions) -> Result<WatchStream, Status> {
        let mut request = self.collection(Verb::Watch, options);
        request.options.allow_watch_bookmarks = true;
        match self.client.call(request).await? {
            Reply::Watch(stream) => Ok(stream),
            _ => Err(internal("the server answered no watch")),
        }
    }

    pub async fn create(&self, body: Value) -> Result<Arc<Object>, Status> {
        object_of(self.client.call(self.request(Verb::Create, "").json(body)).await?)
    }

    /// `POST` to a subresource: binding, eviction, token, scale.
    pub async fn create_subresource(&self, name: &str, subresource: &str, body: Value) -> Result<Arc<Object>, Status> {
        object_of(self.client.call(self.request(Verb::Create, name).subresource(subresource).json(body)).await?)
    }

    /// `PUT`; with `metadata.resourceVersion` in the body it is conditional.
    pub async fn update(&self, name: &str, body: Value) -> Result<Arc<Object>, Status> {
        object_of(self.client.call(self.request(Verb::Update, name).json(body)).await?)
    }

    pub async fn update_subresource(&self, name: &str, subresource: &str, body: Value) -> Result<Arc<Object>, Status> {
        object_of(self.client.call(self.request(Verb::Update, name).subresource(subresource).json(body)).await?)
    }

    pub async fn patch(&self, name: &str, patch: Patch) -> Result<Arc<Object>, Status> {
        self.patch_subresource(name, "", patch).await
    }

    pub async fn patch_subresource(&self, name: &str, subresource: &str, patch: Patch) -> Result<Arc<Object>, Status> {
        let mut request = self.request(Verb::Patch, name).subresource(subresource);
        let (content_type, value) = match patch {
            Patch::Merge(value) => ("application/merge-patch+json", value),
            Patch::Json(value) => ("application/json-patch+json", value),
            Patch::Strategic(value) => ("application/strategic-merge-patch+json", value),
            Patch::Apply { manager, force, value } => {
                request.options.field_manager = Some(manager);
                request.options.force = Some(force);
                ("application/apply-patch+yaml", value)
            }
        };
        request.body = RequestBody::Value { content_type, value };
        object_of(self.client.call(request).await?)
    }

    /// Asks for deletion. The object's last version when the server answers it: with a `deletionTimestamp` when it
    /// still waits for its grace period or finalizers.
    pub async fn delete(&self, name: &str, options: &DeleteOptions) -> Result<Option<Arc<Object>>, Status> {
        match self.client.call(self.request(Verb::Delete, name).json(options.body())).await? {
            Reply::Object { object, .. } => Ok(Some(object)),
            _ => Ok(None),
        }
    }

    pub async fn delete_collection(&self, options: &DeleteOptions, of: &ListOptions) -> Result<(), Status> {
        self.client.call(self.collection(Verb::DeleteCollection, of).json(options.body())).await.map(drop)
    }
}

/// The API of one kind of `k8s-openapi`.
pub struct Api<K> {
    dynamic: DynamicApi,
    kind: PhantomData<fn() -> K>,
}

impl<K> Clone for Api<K> {
    fn clone(&self) -> Self {
        Self { dynamic: self.dynamic.clone(), kind: PhantomData }
    }
}

impl<K: Kind> Api<K> {
    pub(crate) fn new(client: Client) -> Self {
        Self { dynamic: DynamicApi::new(client, gvr_of::<K>()), kind: PhantomData }
    }

    /// The same kind in one namespace; the empty string means all (or cluster-scoped).
    pub fn namespaced(self, namespace: &str) -> Self {
        Self { dynamic: self.dynamic.namespaced(namespace), kind: PhantomData }
    }

    /// The same API without the type.
    pub fn dynamic(&self) -> &DynamicApi {
        &self.dynamic
    }

    fn typed(object: Arc<Object>) -> Result<Arc<K>, Status> {
        object.typed::<K>().map_err(internal)
    }

    /// (name, body)
    fn encode(object: &K) -> Result<(String, Value), Status> {
        let name = object.metadata().name.clone().unwrap_or_default();
        Ok((name, serde_json::to_value(object).map_err(internal)?))
    }

    pub async fn get(&self, name: &str) -> Result<Arc<K>, Status> {
        Self::typed(self.dynamic.get(name).await?)
    }

    /// `None` when there is no such object.
    pub async fn get_opt(&self, name: &str) -> Result<Option<Arc<K>>, Status> {
        self.dynamic.get_opt(name).await?.map(Self::typed).transpose()
    }

    /// Objects and the version of the world they were read at; `item.typed::<K>()` gives the typed view.
    pub async fn list(&self, options: &ListOptions) -> Result<List, Status> {
        self.dynamic.list(options).await
    }

    pub async fn watch(&self, options: &ListOptions) -> Result<WatchStream, Status> {
        self.dynamic.watch(options).await
    }

    pub async fn create(&self, object: &K) -> Result<Arc<K>, Status> {
        Self::typed(self.dynamic.create(Self::encode(object)?.1).await?)
    }

    /// `POST` to a subresource: binding, eviction, token.
    pub async fn create_subresource(&self, name: &str, subresource: &str, body: &Value) -> Result<Arc<Object>, Status> {
        self.dynamic.create_subresource(name, subresource, body.clone()).await
    }

    /// `PUT`; conditional when the object carries its `resourceVersion`.
    pub async fn update(&self, object: &K) -> Result<Arc<K>, Status> {
        let (name, body) = Self::encode(object)?;
        Self::typed(self.dynamic.update(&name, body).await?)
    }

    pub async fn update_status(&self, object: &K) -> Result<Arc<K>, Status> {
        let (name, body) = Self::encode(object)?;
        Self::typed(self.dynamic.update_subresource(&name, "status", body).await?)
    }

    pub async fn patch(&self, name: &str, patch: Patch) -> Result<Arc<K>, Status> {
        Self::typed(self.dynamic.patch(name, patch).await?)
    }

    pub async fn patch_status(&self, name: &str, patch: Patch) -> Result<Arc<K>, Status> {
        Self::typed(self.dynamic.patch_subresource(name, "status", patch).await?)
    }

    pub async fn delete(&self, name: &str, options: &DeleteOptions) -> Result<(), Status> {
        self.dynamic.delete(name, options).await.map(drop)
    }
}
