//! What webhooks and policies are asked about: a request, the forms its object can be shown in, and the review that says it.

use std::sync::Arc;

use meta::{Gvk, Gvr, Request, Status, Value, Verb};
use resources::SubresourceKind;
use serde_json::json;

use super::configuration::{self, Asked, Webhook};
use crate::admission::{Attributes, Operation};
use crate::authn::User;
use crate::catalog::Served;
use crate::pipeline::delete::DeleteOptions;
use crate::pipeline::{Caller, metadata};
use crate::server::ApiServer;
use crate::subresource::scale;

/// Review versions this server speaks; they differ in name alone.
const REVIEWS: [&str; 2] = ["v1", "v1beta1"];

/// A request as webhooks are told of it.
pub struct Subject<'a> {
    pub(crate) caller: &'a Caller,
    pub(super) operation: Operation,
    pub(super) dry_run: bool,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(super) subresource: &'a str,
    pub(super) options: Value,
    /// The resource requested, then the other versions and groups its objects are served in.
    pub(crate) forms: Vec<Gvr>,
    /// The row that converts between forms; absent where the object is the same in all of them.
    pub(super) served: Option<&'a Arc<Served>>,
    /// Where webhooks see the Scale of the object.
    pub(super) scale: Option<&'a SubresourceKind>,
    pub(super) kind: Gvk,
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

    pub(super) fn new(a: &'a Attributes<'_>, request: &'a Request) -> Self {
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

    pub(super) fn kind_in(&self, form: &Gvr) -> Gvk {
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

    pub(super) async fn review(
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
