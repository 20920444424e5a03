//! What is gathered of one request while it is served.
//!
//! Whoever learns something of the request adds it: the object sent, the decision of authorization, a webhook's annotation.
//! The last holder of a trail whose answer goes on (a watch, a stream) tells of its end by letting it go.

use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use futures::StreamExt;
use meta::{Reply, RequestBody, Status, Value, WatchStream};

use super::event::{self, AuthenticationMetadata, Event, ObjectReference};
use super::policy::{Level, Stage, Verdict};
use super::{Audit, Received};
use crate::pipeline::{Target, metadata};

pub struct Trail {
    audit: Arc<Audit>,
    level: Level,
    stages: [bool; 4],
    omit_managed_fields: bool,
    long_running: bool,
    event: Mutex<Event>,
    /// The last stage was told.
    over: std::sync::atomic::AtomicBool,
}

impl Trail {
    pub(super) fn new(audit: Arc<Audit>, verdict: &Verdict<'_>, received: Received<'_>) -> Self {
        let Received { audit_id, uri, user, source_ips, user_agent, attributes: a, long_running } = received;
        let mut event = Event::new(verdict.level, audit_id.into(), uri, a.verb, user_agent);
        event.source_ips = source_ips;
        event.user = user.map(Into::into).unwrap_or_default();
        if a.path.is_none() {
            event.object_ref = Some(ObjectReference {
                resource: a.resource.into(),
                namespace: a.namespace.into(),
                name: a.name.into(),
                api_group: a.group.into(),
                api_version: a.version.into(),
                subresource: a.subresource.into(),
                ..ObjectReference::default()
            });
        }
        Self {
            audit,
            level: verdict.level,
            stages: verdict.stages(),
            omit_managed_fields: verdict.omit_managed_fields,
            long_running,
            event: Mutex::new(event),
            over: Default::default(),
        }
    }

    fn event(&self) -> MutexGuard<'_, Event> {
        self.event.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The event as it is now, at a stage that is told.
    fn at(&self, stage: Stage) -> Option<Bytes> {
        let told = Stage::ALL.iter().position(|s| *s == stage).is_some_and(|at| self.stages[at]);
        if !told {
            return None;
        }
        let mut event = self.event();
        event.stage = stage.as_str();
        if stage != Stage::RequestReceived {
            event.stage_timestamp = event::now();
        }
        match serde_json::to_vec(&*event) {
            Ok(bytes) => Some(bytes.into()),
            Err(error) => {
                tracing::error!(%error, "an audit event cannot be written");
                None
            }
        }
    }

    async fn tell(&self, stage: Stage) {
        if let Some(event) = self.at(stage) {
            self.audit.tell(event).await;
        }
    }

    pub async fn received(&self) {
        self.tell(Stage::RequestReceived).await;
    }

    /// The request is made as another user; `constraint` is the verb that allowed it, where one did for this alone.
    pub fn impersonating(&self, user: &crate::authn::User, constraint: Option<String>) {
        let mut event = self.event();
        event.impersonated_user = Some(user.into());
        event.authentication_metadata =
            constraint.map(|impersonation_constraint| AuthenticationMetadata { impersonation_constraint });
    }

    /// The first word under a key stays.
    pub fn annotate(&self, key: impl Into<String>, value: impl Into<String>) {
        self.event().annotations.entry(key.into()).or_insert_with(|| value.into());
    }

    /// Whether bodies are told, and not only names.
    pub fn wants_bodies(&self) -> bool {
        self.level >= Level::Request
    }

    fn trimmed(&self, mut value: Value) -> Value {
        if self.omit_managed_fields {
            event::without_managed_fields(&mut value);
        }
        value
    }

    /// The object a client sent, in the version it sent it.
    pub async fn sent(&self, target: &Target<'_>, body: &Value) {
        {
            let mut event = self.event();
            let reference = event.object_ref.get_or_insert_default();
            for (known, field) in [
                (&mut reference.namespace, "namespace"),
                (&mut reference.name, "name"),
                (&mut reference.uid, "uid"),
                (&mut reference.resource_version, "resourceVersion"),
            ] {
                if known.is_empty() {
                    *known = metadata::text(body, field).into();
                }
            }
        }
        if !self.wants_bodies() {
            return;
        }
        let mut shown = body.clone();
        // As upstream reads it: with its defaults. What cannot be converted is refused a moment later.
        let (served, version) = (target.served, &target.version.name);
        if target.request.subresource.is_empty() && served.to_storage(&mut shown, version).await.is_ok() {
            crate::pipeline::body::default(served, &mut shown);
            if served.from_storage(&mut shown, version).await.is_err() {
                shown = body.clone();
            }
        }
        self.event().request_object = Some(self.trimmed(shown));
    }

    /// A body that is no stored object: a patch, options, a review.
    pub fn sent_as_it_is(&self, body: &RequestBody) {
        if !self.wants_bodies() {
            return;
        }
        let value = match body {
            RequestBody::None => return,
            RequestBody::Value { value, .. } => value.clone(),
            RequestBody::Bytes { bytes, .. } if bytes.is_empty() => return,
            RequestBody::Bytes { content_type, bytes } => {
                let tree = if content_type.starts_with("application/vnd.kubernetes.protobuf") {
                    meta::protobuf::decode(meta::schema::builtin(), bytes).ok()
                } else {
                    // JSON is YAML, too.
                    serde_json::from_slice(bytes).ok().or_else(|| meta::decode::yaml(bytes).ok().map(|(v, _)| v))
                };
                let Some(tree) = tree else { return };
                tree
            }
        };
        self.event().request_object = Some(value);
    }

    /// A refusal, however it came about.
    pub fn refused(&self, status: &Status) {
        let mut event = self.event();
        event.response_status = Some(event::told(status));
        if self.level == Level::RequestResponse {
            event.response_object = Some(status.to_value());
        }
    }

    /// A reply, for those who do not encode it.
    pub(super) fn answered(&self, reply: &Reply) {
        match reply {
            Reply::Object { object, .. } if self.wants_answers() => {
                if let Ok(value) = object.value() {
                    self.answer(value);
                }
            }
            Reply::Value { value, .. } => self.answer(value.clone()),
            Reply::List(list) if self.wants_answers() => {
                let items: Vec<Value> = list.items.iter().filter_map(|item| item.value().ok()).collect();
                let revision = list.resource_version.to_string();
                self.answer(serde_json::json!({"metadata": {"resourceVersion": revision}, "items": items}));
            }
            _ => {}
        }
    }

    /// Whether answers' bodies are told.
    pub fn wants_answers(&self) -> bool {
        self.level == Level::RequestResponse
    }

    /// The body of an answer, or at least what it says of itself.
    pub fn answer(&self, body: Value) {
        let is_status = body["kind"] == "Status" && body["apiVersion"] == "v1";
        if is_status {
            self.event().response_status = Some(event::told(&Status::from_value(&body)));
        }
        if self.wants_answers() {
            let body = self.trimmed(body);
            self.event().response_object = Some(body);
        }
    }

    /// The answer's code is known. Unless it goes on, this is the end.
    pub async fn ended(&self, code: u16) {
        {
            let mut event = self.event();
            let status = event.response_status.get_or_insert_with(|| serde_json::json!({"metadata": {}}));
            status["code"] = code.into();
        }
        if self.long_running {
            self.tell(Stage::ResponseStarted).await;
        } else if !self.over.swap(true, std::sync::atomic::Ordering::AcqRel) {
            self.tell(Stage::ResponseComplete).await;
        }
    }

    /// The handler panicked.
    pub async fn panicked(&self, message: &str) {
        let status = Status::internal(message);
        self.event().response_status = Some(event::told(&Status { message: message.into(), ..status }));
        self.over.store(true, std::sync::atomic::Ordering::Release);
        self.tell(Stage::Panic).await;
    }

    /// Nobody could be made out: this is all that is told.
    pub async fn unauthenticated(&self, attempted: &str) {
        let message = format!("Authentication failed, attempted: {attempted}");
        self.event().response_status = Some(serde_json::json!({"metadata": {}, "message": message, "code": 401}));
        self.over.store(true, std::sync::atomic::Ordering::Release);
        self.tell(Stage::ResponseStarted).await;
    }
}

impl Drop for Trail {
    fn drop(&mut self) {
        if *self.over.get_mut() {
            return;
        }
        let Some(event) = self.at(Stage::ResponseComplete) else { return };
        let audit = self.audit.clone();
        // At the very end of the process there is nobody left to write it.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { audit.tell(event).await });
        }
    }
}

pub(super) fn held_stream(events: WatchStream, trail: Arc<Trail>) -> WatchStream {
    events
        .inspect(move |_| {
            let _ = &trail;
        })
        .boxed()
}
