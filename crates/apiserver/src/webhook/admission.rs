//! Mutating and validating admission webhooks.
//!
//! Follows `k8s.io/apiserver/pkg/admission/plugin/webhook` (mutating, validating): mutating webhooks one after another in
//! the order of their configurations' names, each seeing what the one before made of the object, and a second round for
//! those that ask for it; validating ones all at once. Objects are sent in the version the webhook's rule names, and what
//! comes back is pruned by that version's schema.

use async_trait::async_trait;
use meta::{Gvk, Gvr, Request, Status, Value};
use serde_json::json;

use super::asking::{ask, judge};
use super::conditions;
use super::configuration::{self, Configuration, Webhook};
pub use super::subject::Subject;
use crate::admission::{Attributes, Plugin, Write, policy_validate};
use crate::instruments::Half;
use crate::pipeline::Caller;
use crate::server::ApiServer;
use crate::subresource::scale;

const GROUP: &str = "admissionregistration.k8s.io";

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
    fn concerns(&self, server: &ApiServer, a: &Attributes<'_>) -> bool {
        server.has_any(GROUP, "validatingwebhookconfigurations")
            && !configuration::is_exempt(&a.target.request.resource)
    }

    async fn validate(&self, write: &Write<'_>, object: Option<&Value>) -> Result<(), Status> {
        let Write { server, a, old } = *write;
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
