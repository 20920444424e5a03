//! Mutating and validating admission webhooks.
//!
//! Follows `k8s.io/apiserver/pkg/admission/plugin/webhook` (mutating, validating): mutating webhooks one after another in
//! the order of their configurations' names, each seeing what the one before made of the object, and a second round for
//! those that ask for it; validating ones all at once. Objects are sent in the version the webhook's rule names, and what
//! comes back is pruned by that version's schema.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine;
use meta::{Gvk, Gvr, Request, Status, Value, Verb};
use resources::SubresourceKind;
use serde_json::json;

use super::client;
use super::conditions;
use super::configuration::{self, Asked, Configuration, Webhook};
use crate::admission::{Attributes, Operation, Plugin, policy_validate};
use crate::authn::User;
use crate::catalog::Served;
use crate::instruments::{self, Called, Half};
use crate::pipeline::delete::DeleteOptions;
use crate::pipeline::{Caller, metadata};
use crate::server::ApiServer;
use crate::subresource::scale;

const GROUP: &str = "admissionregistration.k8s.io";
/// What a webhook without `timeoutSeconds` gets.
const DEFAULT_SECONDS: u64 = 10;
const MAX_SECONDS: u64 = 30;
/// Review versions this server speaks; they differ in name alone.
const REVIEWS: [&str; 2] = ["v1", "v1beta1"];

/// A request as webhooks are told of it.
pub struct Subject<'a> {
    pub(crate) caller: &'a Caller,
    operation: Operation,
    dry_run: bool,
    pub(crate) namespace: String,
    pub(crate) name: String,
    subresource: &'a str,
    options: Value,
    /// The resource requested, then the other versions and groups its objects are served in.
    pub(crate) forms: Vec<Gvr>,
    /// The row that converts between forms; absent where the object is the same in all of them.
    served: Option<&'a Arc<Served>>,
    /// Where webhooks see the Scale of the object.
    scale: Option<&'a SubresourceKind>,
    kind: Gvk,
}

impl<'a> Subject<'a> {
    /// A write of the resource itself or a part of it. `None` for acting subresources: webhooks are asked about their
    /// bodies, which are at hand elsewhere.
    pub(crate) fn of_write(server: &ApiServer, a: &'a Attributes<'_>, object: &Value) -> Option<Self> {
        let target = &a.target;
        let request = target.request;
        let sub = target.served.resource.subresource(&request.subresource);
        match sub.map(|sub| &sub.kind) {
            Some(SubresourceKind::Action) => return None,
            Some(kind @ SubresourceKind::Scale { .. }) => {
                let mut subject = Self::new(a, request);
                subject.scale = Some(kind);
                subject.kind = Gvk::new("autoscaling", "v1", "Scale");
                return Some(subject);
            }
            _ => {}
        }
        let mut subject = Self::new(a, request);
        subject.served = Some(target.served);
        subject.kind = Gvk::new(target.group(), &target.version.name, &target.served.resource.kind);
        // What goes with its whole collection is not named, as upstream has it.
        if request.verb == Verb::DeleteCollection {
            subject.name = String::new();
        } else if subject.name.is_empty() {
            subject.name = metadata::text(object, "name").into();
        }
        if &*request.resource.resource == "namespaces" && request.resource.group.is_empty() {
            subject.namespace = subject.name.clone();
        }
        let catalog = server.catalog();
        let kin = catalog.kinds().iter().filter(|s| s.resource.prefix == target.served.resource.prefix);
        let others = kin.flat_map(|s| s.resource.versions.iter().filter(|v| v.served).map(|v| s.resource.gvr(&v.name)));
        subject.forms.extend(others.filter(|gvr| *gvr != request.resource));
        Some(subject)
    }

    fn new(a: &'a Attributes<'_>, request: &'a Request) -> Self {
        Self {
            caller: a.target.caller,
            operation: a.operation,
            dry_run: a.dry_run,
            namespace: request.namespace.clone(),
            name: request.name.clone(),
            subresource: &request.subresource,
            options: options(a.operation, request),
            forms: vec![request.resource.clone()],
            served: None,
            scale: None,
            kind: Gvk::new("", "", ""),
        }
    }

    /// A stream or proxied call, and the options object that stands for it.
    pub fn of_connect(caller: &'a Caller, request: &'a Request, query: &str) -> (Self, Value) {
        let kind = match (&*request.resource.resource, &*request.subresource) {
            ("pods", "exec") => "PodExecOptions",
            ("pods", "attach") => "PodAttachOptions",
            ("pods", "portforward") => "PodPortForwardOptions",
            ("services", _) => "ServiceProxyOptions",
            ("nodes", _) => "NodeProxyOptions",
            _ => "PodProxyOptions",
        };
        let subject = Self {
            caller,
            operation: Operation::Connect,
            dry_run: false,
            namespace: request.namespace.clone(),
            name: request.name.clone(),
            subresource: &request.subresource,
            options: Value::Null,
            forms: vec![request.resource.clone()],
            served: None,
            scale: None,
            kind: Gvk::new("", "v1", kind),
        };
        let mut object = json!({"apiVersion": "v1", "kind": kind});
        for (key, value) in crate::http::route::pairs(query) {
            match key.as_str() {
                "stdin" | "stdout" | "stderr" | "tty" => object[&key] = matches!(&*value, "" | "1" | "true").into(),
                "container" | "path" => object[&key] = value.into(),
                "command" | "ports" => {
                    // Query values that are no numbers are refused by who opens the stream.
                    let value = if key == "ports" {
                        value.parse::<i64>().map_or(Value::Null, Value::from)
                    } else {
                        value.into()
                    };
                    match object[&key].as_array_mut() {
                        Some(list) => list.push(value),
                        None => object[&key] = json!([value]),
                    }
                }
                _ => {}
            }
        }
        (subject, object)
    }

    pub(crate) fn asked(&self) -> Asked<'_> {
        Asked {
            operation: self.operation.as_str(),
            resource: &self.forms[0],
            subresource: self.subresource,
            namespace: &self.namespace,
        }
    }

    /// The object as `form` shows it.
    pub(crate) async fn shown(&self, server: &ApiServer, form: &Gvr, object: &Value) -> Result<Value, Status> {
        if let Some(kind) = self.scale {
            return Ok(scale::scale_of(kind, object));
        }
        let Some(served) = self.served else { return Ok(object.clone()) };
        let mut shown = object.clone();
        self.row(server, form, served).from_storage(&mut shown, &form.version).await?;
        Ok(shown)
    }

    /// The row that serves a form: another one only where groups share a kind (events).
    pub(crate) fn row(&self, server: &ApiServer, form: &Gvr, served: &Arc<Served>) -> Arc<Served> {
        if form.group == served.resource.group {
            return served.clone();
        }
        server.catalog().find(&form.group, &form.resource).unwrap_or(served).clone()
    }

    fn kind_in(&self, form: &Gvr) -> Gvk {
        if self.served.is_some() { Gvk::new(&form.group, &form.version, &self.kind.kind) } else { self.kind.clone() }
    }

    /// All of an `AdmissionRequest` but the objects.
    pub(crate) fn request(&self, form: &Gvr) -> Value {
        let gvk = |g: &Gvk| json!({"group": &*g.group, "version": &*g.version, "kind": &*g.kind});
        let gvr = |g: &Gvr| json!({"group": &*g.group, "version": &*g.version, "resource": &*g.resource});
        let mut request = json!({
            "kind": gvk(&self.kind_in(form)),
            "resource": gvr(form),
            "requestKind": gvk(&self.kind),
            "requestResource": gvr(&self.forms[0]),
            "operation": self.operation.as_str(),
            "userInfo": user_info(&self.caller.user),
            "dryRun": self.dry_run,
            "options": self.options,
        });
        for (field, value) in [
            ("name", &*self.name),
            ("namespace", &self.namespace),
            ("subResource", self.subresource),
            ("requestSubResource", self.subresource),
        ] {
            if !value.is_empty() {
                request[field] = value.into();
            }
        }
        request
    }

    /// Whether the request is about a Namespace itself, which is named as its own namespace.
    pub(crate) fn is_of_namespaces(&self) -> bool {
        &*self.forms[0].resource == "namespaces" && self.forms[0].group.is_empty()
    }

    /// The row that serves a form of the object written, if one is.
    pub(crate) fn row_of(&self, server: &ApiServer, form: &Gvr) -> Option<Arc<Served>> {
        if self.scale.is_some() {
            return None;
        }
        self.served.map(|served| self.row(server, form, served))
    }

    async fn review(
        &self,
        server: &ApiServer,
        hook: &Webhook,
        form: &Gvr,
        object: Option<&Value>,
        old: Option<&Value>,
    ) -> Result<(Value, Option<Value>), Status> {
        let sent = match object {
            Some(object) => Some(self.shown(server, form, object).await?),
            None => None,
        };
        let before = match old {
            Some(old) => Some(self.shown(server, form, old).await?),
            None => None,
        };
        let version = hook.admission_review_versions.iter().find(|v| REVIEWS.contains(&v.as_str()));
        let version = version
            .ok_or_else(|| Status::internal("webhook does not accept known AdmissionReview versions (v1, v1beta1)"))?;
        let mut request = self.request(form);
        request["uid"] = uuid::Uuid::new_v4().to_string().into();
        request["object"] = sent.clone().unwrap_or(Value::Null);
        request["oldObject"] = before.unwrap_or(Value::Null);
        Ok((
            json!({"kind": "AdmissionReview", "apiVersion": format!("admission.k8s.io/{version}"), "request": request}),
            sent,
        ))
    }

    /// The form in which the webhook wants to be asked about this, if at all.
    pub(crate) fn wanted<'s>(
        &'s self,
        server: &ApiServer,
        hook: &Webhook,
        object: Option<&Value>,
        old: Option<&Value>,
    ) -> Result<Option<&'s Gvr>, Status> {
        let Some(form) = hook.form(&self.forms, &self.asked()) else { return Ok(None) };
        let selected =
            self.in_namespace(server, hook, object)? && hook.selects_object(object, old).map_err(Status::internal)?;
        Ok(selected.then_some(form))
    }

    pub(crate) fn in_namespace(
        &self,
        server: &ApiServer,
        hook: &Webhook,
        object: Option<&Value>,
    ) -> Result<bool, Status> {
        let selector = configuration::selector(hook.namespace_selector.as_ref()).map_err(Status::internal)?;
        if selector.is_everything() {
            return Ok(true);
        }
        let itself = &*self.forms[0].resource == "namespaces" && self.forms[0].group.is_empty();
        if self.namespace.is_empty() && !itself {
            return Ok(true);
        }
        if itself && self.subresource.is_empty() && matches!(self.operation, Operation::Create | Operation::Update) {
            return Ok(object.is_some_and(|o| selector.matches(&configuration::labels(o))));
        }
        let namespace = server
            .lookup("", "namespaces", "", &self.namespace)
            .ok_or_else(|| Status::not_found("", "namespaces", &self.namespace))?;
        Ok(selector.matches(&namespace.meta.labels))
    }
}

fn user_info(user: &User) -> Value {
    let mut info = json!({"username": user.name, "groups": user.groups});
    if !user.uid.is_empty() {
        info["uid"] = user.uid.as_str().into();
    }
    if !user.extra.is_empty() {
        info["extra"] = json!(user.extra);
    }
    info
}

/// The request's `CreateOptions` and their like.
fn options(operation: Operation, request: &Request) -> Value {
    let kind = match (operation, request.verb) {
        (Operation::Create, _) => "CreateOptions",
        (Operation::Update, Verb::Patch) => "PatchOptions",
        (Operation::Update, _) => "UpdateOptions",
        (Operation::Delete, _) => "DeleteOptions",
        (Operation::Connect, _) => return Value::Null,
    };
    let mut out = json!({"kind": kind, "apiVersion": "meta.k8s.io/v1"});
    let o = &request.options;
    if operation == Operation::Delete {
        // Options that cannot be read have failed the delete before anyone is asked about it.
        let said = DeleteOptions::of(request).unwrap_or_default();
        let mut put = |field: &str, value: Option<Value>| value.into_iter().for_each(|v| out[field] = v);
        put("gracePeriodSeconds", said.grace_period_seconds.map(Value::from));
        put("propagationPolicy", said.propagation.map(Value::from));
        put("dryRun", (!said.dry_run.is_empty()).then(|| said.dry_run.into()));
        if said.uid.is_some() || said.resource_version.is_some() {
            let conditions = [("uid", said.uid), ("resourceVersion", said.resource_version)];
            out["preconditions"] = conditions
                .into_iter()
                .filter_map(|(k, v)| Some((k.to_string(), Value::from(v?))))
                .collect::<serde_json::Map<_, _>>()
                .into();
        }
        return out;
    }
    for (field, value) in [("fieldManager", &o.field_manager), ("fieldValidation", &o.field_validation)] {
        if let Some(value) = value {
            out[field] = value.as_str().into();
        }
    }
    if !o.dry_run.is_empty() {
        out["dryRun"] = json!(o.dry_run);
    }
    if let (Some(force), "PatchOptions") = (o.force, kind) {
        out["force"] = force.into();
    }
    out
}

/// Whether anybody wants to change what is written.
pub fn any_mutating(server: &ApiServer) -> bool {
    server.has_any(GROUP, "mutatingwebhookconfigurations")
}

/// The webhooks of all configurations of a kind, in the order of the configurations' names.
fn webhooks(server: &ApiServer, plural: &str) -> Vec<Webhook> {
    let mut found = Vec::new();
    for object in server.lookup_all(GROUP, plural, "") {
        match object.typed::<Configuration>() {
            Ok(configuration) => {
                let named = |hook: &Webhook| Webhook { configuration: object.meta.name.to_string(), ..hook.clone() };
                found.extend(configuration.webhooks.iter().map(named));
            }
            Err(error) => {
                tracing::error!(configuration = %object.meta.name, %error, "webhook configuration cannot be read")
            }
        }
    }
    found
}

/// What a webhook said.
struct Answer {
    patch: Option<Value>,
}

enum Failure {
    /// It said no, or the request may not ask it at all.
    Refused(Status),
    /// It could not be asked, or its answer is none.
    Calling(String),
}

/// Asks a webhook, and counts what came of it.
async fn ask(
    server: &ApiServer,
    subject: &Subject<'_>,
    hook: &Webhook,
    half: Half,
    review: &Value,
) -> Result<Answer, Failure> {
    let began = std::time::Instant::now();
    let answer = asked(server, subject, hook, review).await;
    let called = match &answer {
        Ok(_) => Called::Allowed,
        Err(Failure::Refused(status)) => Called::Denied(status.code),
        Err(Failure::Calling(_)) => Called::Failed { open: hook.ignores_failure() },
    };
    instruments::webhook(&hook.name, half, subject.operation.as_str(), &called, began.elapsed());
    answer
}

async fn asked(server: &ApiServer, subject: &Subject<'_>, hook: &Webhook, review: &Value) -> Result<Answer, Failure> {
    if subject.dry_run && !hook.is_free_of_effects() {
        return Err(Failure::Refused(Status::bad_request(format!(
            "admission webhook {:?} does not support dry run",
            hook.name
        ))));
    }
    let timeout = Duration::from_secs(hook.timeout_seconds.unwrap_or(DEFAULT_SECONDS).clamp(1, MAX_SECONDS));
    let called = client::post(server, &hook.client_config, review, timeout).await;
    let answer = called.map_err(|why| Failure::Calling(format!("failed to call webhook: {why}")))?;
    let invalid = |why: String| Failure::Calling(format!("received invalid webhook response: {why}"));
    let response = &answer["response"];
    if !response.is_object() {
        return Err(invalid("webhook response was absent".into()));
    }
    if review["apiVersion"] == "admission.k8s.io/v1" {
        if answer["apiVersion"] != review["apiVersion"] || answer["kind"] != review["kind"] {
            let text = |field: &str| answer[field].as_str().unwrap_or_default().to_string();
            return Err(invalid(format!(
                "expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got {}, Kind={}",
                text("apiVersion"),
                text("kind")
            )));
        }
        if response["uid"] != review["request"]["uid"] {
            return Err(invalid(format!(
                "expected response.uid={}, got {}",
                review["request"]["uid"], response["uid"]
            )));
        }
    }
    for (key, value) in response["auditAnnotations"].as_object().into_iter().flatten() {
        subject.caller.annotate(format!("{}/{key}", hook.name), value.as_str().unwrap_or_default());
    }
    for warning in response["warnings"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        subject.caller.warn(warning);
    }
    if response["allowed"] != true {
        return Err(Failure::Refused(denial(&hook.name, &response["status"])));
    }
    let patch = response["patch"].as_str().unwrap_or_default();
    if patch.is_empty() {
        return Ok(Answer { patch: None });
    }
    match response["patchType"].as_str() {
        Some("JSONPatch") => {}
        Some(other) => return Err(invalid(format!("invalid response.patchType of {other:?}, expected \"JSONPatch\""))),
        None if review["apiVersion"] == "admission.k8s.io/v1" => {
            return Err(invalid("webhook returned response.patch but not response.patchType".into()));
        }
        None => {}
    }
    let bytes =
        base64::engine::general_purpose::STANDARD.decode(patch).map_err(|e| invalid(format!("response.patch: {e}")))?;
    let patch = serde_json::from_slice(&bytes).map_err(|e| invalid(format!("response.patch: {e}")))?;
    Ok(Answer { patch: Some(patch) })
}

/// A webhook's no, as the caller gets it: the webhook's code and reason, never one of success.
fn denial(name: &str, said: &Value) -> Status {
    let mut status = Status::from_value(said);
    status.success = false;
    status.code =
        said["code"].as_u64().and_then(|c| u16::try_from(c).ok()).filter(|c| (400..600).contains(c)).unwrap_or(400);
    let reason = said["reason"].as_str().unwrap_or_default();
    let denied = format!("admission webhook {name:?} denied the request");
    status.message = match (&*status.message, reason) {
        ("", "") => format!("{denied} without explanation"),
        ("", reason) => format!("{denied}: {reason}"),
        (message, _) => format!("{denied}: {message}"),
    };
    if said["details"].is_null() {
        status.details = None;
    }
    status
}

/// A failure, if the webhook's policy lets it count; `place` is where the audit log is told if it does not.
fn judge(caller: &Caller, hook: &Webhook, place: &str, failure: Failure) -> Result<(), Status> {
    match failure {
        Failure::Refused(status) => Err(status),
        Failure::Calling(why) if hook.ignores_failure() => {
            tracing::warn!(webhook = hook.name, why, "failed calling webhook, failing open");
            caller.annotate(format!("failed-open.{place}"), &*hook.name);
            Ok(())
        }
        Failure::Calling(why) => Err(Status::internal(format!("failed calling webhook {:?}: {why}", hook.name))),
    }
}

/// Lets mutating webhooks change a body in the storage version. Says whether any did.
pub async fn mutate(
    server: &ApiServer,
    a: &Attributes<'_>,
    object: &mut Value,
    old: Option<&Value>,
    round: &mut Round,
) -> Result<bool, Status> {
    if configuration::is_exempt(&a.target.request.resource) {
        return Ok(false);
    }
    let hooks = webhooks(server, "mutatingwebhookconfigurations");
    if hooks.is_empty() {
        return Ok(false);
    }
    match Subject::of_write(server, a, object) {
        Some(subject) => round.run(server, &subject, &hooks, object, old).await,
        None => Ok(false),
    }
}

/// One pass over the mutating webhooks, or the second one for those that want it.
#[derive(Default)]
pub struct Round {
    second: bool,
    /// Which webhooks were asked, by place and name, and how many changes there had been after each.
    asked: Vec<(usize, String, usize)>,
    changes: usize,
}

impl Round {
    /// Another pass, over what others changed since.
    pub fn again(self) -> Self {
        Self { second: true, ..self }
    }

    async fn run(
        &mut self,
        server: &ApiServer,
        subject: &Subject<'_>,
        hooks: &[Webhook],
        object: &mut Value,
        old: Option<&Value>,
    ) -> Result<bool, Status> {
        let before = self.changes;
        for (place, hook) in hooks.iter().enumerate() {
            let earlier = self.asked.iter().position(|(p, name, _)| *p == place && *name == hook.name);
            if self.second
                && !(hook.reinvocation_policy == "IfNeeded" && earlier.is_some_and(|e| self.asked[e].2 != self.changes))
            {
                continue;
            }
            let Some(form) = subject.wanted(server, hook, Some(object), old)? else { continue };
            if !conditions::hold(server, subject, hook, form, Some(object), old).await? {
                continue;
            }
            let (review, sent) = subject.review(server, hook, form, Some(object), old).await?;
            let told = Told { caller: subject.caller, hook, at: (u8::from(self.second), place) };
            let patch = match ask(server, subject, hook, Half::Admit, &review).await {
                Ok(answer) => answer.patch,
                Err(failure) => {
                    told.mutated(false);
                    judge(subject.caller, hook, &told.key("mutation"), failure)?;
                    None
                }
            };
            let mut mutated = false;
            if let (Some(patch), Some(sent)) = (patch, sent) {
                told.patch(&patch);
                let changed = patched(server, subject, form, object, sent, &patch).await?;
                if changed != *object {
                    *object = changed;
                    self.changes += 1;
                    mutated = true;
                }
            }
            told.mutated(mutated);
            match earlier {
                Some(earlier) => self.asked[earlier].2 = self.changes,
                None => self.asked.push((place, hook.name.clone(), self.changes)),
            }
        }
        Ok(self.changes != before)
    }
}

/// What the audit log is told of a mutating webhook's answer.
struct Told<'a> {
    caller: &'a Caller,
    hook: &'a Webhook,
    /// Round and place.
    at: (u8, usize),
}

impl Told<'_> {
    fn key(&self, what: &str) -> String {
        format!("{what}.webhook.admission.k8s.io/round_{}_index_{}", self.at.0, self.at.1)
    }

    fn annotate(&self, what: &str, fields: Value) {
        let mut value = json!({"configuration": self.hook.configuration, "webhook": self.hook.name});
        if let (Some(value), Value::Object(fields)) = (value.as_object_mut(), fields) {
            value.extend(fields);
        }
        self.caller.annotate(self.key(what), value.to_string());
    }

    fn mutated(&self, mutated: bool) {
        if self.caller.trail.is_some() {
            self.annotate("mutation", json!({"mutated": mutated}));
        }
    }

    fn patch(&self, patch: &Value) {
        if self.caller.trail.as_ref().is_some_and(|trail| trail.wants_bodies()) {
            self.annotate("patch", json!({"patch": patch, "patchType": "JSONPatch"}));
        }
    }
}

async fn patched(
    server: &ApiServer,
    subject: &Subject<'_>,
    form: &Gvr,
    object: &Value,
    sent: Value,
    patch: &Value,
) -> Result<Value, Status> {
    if !patch.is_array() {
        let found = if patch.is_object() { "object" } else { "value" };
        let why = format!("json: cannot unmarshal {found} into Go value of type jsonpatch.Patch");
        return Err(Status::internal(why));
    }
    let changed = meta::patch::json(sent, patch).map_err(|error| {
        let said = error.to_string();
        let why = said.split_once("due to an error in our request: ").map_or(&*said, |(_, why)| why);
        Status::internal(why)
    })?;
    settled(server, subject, form, object, changed).await
}

/// What admission made of an object in the form it was shown, as it is stored.
pub(crate) async fn settled(
    server: &ApiServer,
    subject: &Subject<'_>,
    form: &Gvr,
    object: &Value,
    mut changed: Value,
) -> Result<Value, Status> {
    if let Some(kind) = subject.scale {
        let mut scaled = object.clone();
        scale::set_replicas(kind, &mut scaled, &changed);
        return Ok(scaled);
    }
    let Some(served) = subject.served else { return Ok(changed) };
    let row = subject.row(server, form, served);
    if let Some(version) = row.resource.version(&form.version) {
        let mut issues = meta::decode::Issues::default();
        meta::schema::prune(version.schema.root(), &mut changed, &mut issues).map_err(Status::internal)?;
    }
    row.to_storage(&mut changed, &form.version).await?;
    crate::pipeline::body::default(served, &mut changed);
    Ok(changed)
}

/// Asks validating webhooks about a write, its trees in the storage version.
pub struct ValidatingWebhooks;

#[async_trait]
impl Plugin for ValidatingWebhooks {
    async fn validate(
        &self,
        server: &ApiServer,
        a: &Attributes<'_>,
        object: Option<&Value>,
        old: Option<&Value>,
    ) -> Result<(), Status> {
        if configuration::is_exempt(&a.target.request.resource) {
            return Ok(());
        }
        let hooks = webhooks(server, "validatingwebhookconfigurations");
        if hooks.is_empty() {
            return Ok(());
        }
        match Subject::of_write(server, a, object.or(old).unwrap_or(&Value::Null)) {
            Some(subject) => Box::pin(validate_with(server, &subject, &hooks, object, old)).await,
            None => Ok(()),
        }
    }
}

/// Asks validating webhooks about a body that is no stored object: options of a connection.
pub async fn validate_body(server: &ApiServer, subject: &Subject<'_>, object: &Value) -> Result<(), Status> {
    policy_validate::validate(server, subject, Some(object), None).await?;
    validate_with(server, subject, &webhooks(server, "validatingwebhookconfigurations"), Some(object), None).await
}

/// Asks all webhooks about the body of an acting subresource: a Binding, an Eviction, a TokenRequest.
pub async fn admit_body(server: &ApiServer, a: &Attributes<'_>, kind: Gvk, object: &mut Value) -> Result<(), Status> {
    let asked = ["mutatingwebhookconfigurations", "validatingwebhookconfigurations", "validatingadmissionpolicies"];
    if !asked.iter().any(|plural| server.has_any(GROUP, plural)) {
        return Ok(());
    }
    Box::pin(ask_about_body(server, a, kind, object)).await
}

async fn ask_about_body(server: &ApiServer, a: &Attributes<'_>, kind: Gvk, object: &mut Value) -> Result<(), Status> {
    let (mutating, validating) =
        (webhooks(server, "mutatingwebhookconfigurations"), webhooks(server, "validatingwebhookconfigurations"));
    object["apiVersion"] = kind.api_version().into();
    object["kind"] = kind.kind.to_string().into();
    let subject = Subject { kind, ..Subject::new(a, a.target.request) };
    let mut round = Round::default();
    if round.run(server, &subject, &mutating, object, None).await? {
        round.again().run(server, &subject, &mutating, object, None).await?;
    }
    policy_validate::validate(server, &subject, Some(object), None).await?;
    validate_with(server, &subject, &validating, Some(object), None).await
}

async fn validate_with(
    server: &ApiServer,
    subject: &Subject<'_>,
    hooks: &[Webhook],
    object: Option<&Value>,
    old: Option<&Value>,
) -> Result<(), Status> {
    let mut calls = Vec::new();
    for (place, hook) in hooks.iter().enumerate() {
        if let Some(form) = subject.wanted(server, hook, object, old)? {
            calls.push(async move {
                if !conditions::hold(server, subject, hook, form, object, old).await? {
                    return Ok(());
                }
                let (review, _) = subject.review(server, hook, form, object, old).await?;
                match ask(server, subject, hook, Half::Validate, &review).await {
                    Ok(_) => Ok(()),
                    Err(failure) => {
                        let at = format!("validating.webhook.admission.k8s.io/round_0_index_{place}");
                        judge(subject.caller, hook, &at, failure)
                    }
                }
            });
        }
    }
    futures::future::join_all(calls).await.into_iter().collect()
}

/// Whether admission knows a call that is carried elsewhere: reading logs is none.
pub fn is_connect(request: &Request) -> bool {
    matches!(&*request.subresource, "exec" | "attach" | "portforward" | "proxy")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn denials_keep_the_webhooks_words_but_never_its_success() {
        for (said, code, message) in [
            (
                json!({"message": "no", "code": 403, "reason": "Forbidden"}),
                403,
                "admission webhook \"a.b.c\" denied the request: no",
            ),
            (json!({"reason": "why"}), 400, "admission webhook \"a.b.c\" denied the request: why"),
            (
                json!({"status": "Success", "code": 200}),
                400,
                "admission webhook \"a.b.c\" denied the request without explanation",
            ),
            (Value::Null, 400, "admission webhook \"a.b.c\" denied the request without explanation"),
        ] {
            let status = denial("a.b.c", &said);
            assert!(!status.success);
            assert_eq!((status.code, &*status.message), (code, message));
        }
    }
}
