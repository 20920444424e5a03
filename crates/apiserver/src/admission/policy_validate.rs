//! ValidatingAdmissionPolicy: validations that deny, warn or are only noted.
//!
//! Follows `k8s.io/apiserver/pkg/admission/plugin/policy/validating`. A policy is compiled once, with the object that holds
//! it, and runs for each of its bindings and each of a binding's parameters.

use std::collections::BTreeMap;

use async_trait::async_trait;
use cel::Value as Cel;
use meta::status::Cause;
use meta::{Reason, Status, Value};
use resources::validate::expressions::{Purpose, Scope};
use serde::Deserialize;
use serde_json::json;

use super::policy::{Asker, BUDGET, Conditions, Expression, Inputs, Session, Stop};
use super::policy_match::{self, GROUP};
use super::{Attributes, Plugin, Write};
use crate::server::ApiServer;
use crate::webhook::admission::Subject;

/// Bytes of a message that an expression makes.
const MAX_MESSAGE: usize = 5 * 1024;
/// Characters of an audit annotation that an expression makes.
const MAX_ANNOTATION: usize = 10 * 1024;

/// Where the audit log is told what validations failed that only note so.
const FAILURE_KEY: &str = "validation.policy.admission.k8s.io/validation_failure";

struct Validation {
    expression: Expression,
    message_expression: Option<Expression>,
    message: String,
    reason: String,
}

/// A policy, compiled.
pub struct Policy {
    name: String,
    spec: Value,
    variables: Vec<(String, Expression)>,
    conditions: Conditions,
    validations: Vec<Validation>,
    /// By key.
    audits: Vec<(String, Expression)>,
}

/// The variables of a policy, each knowing those before it.
pub fn variables(scope: &mut Scope, spec: &Value) -> Vec<(String, Expression)> {
    let mut out = Vec::new();
    for variable in spec["variables"].as_array().into_iter().flatten() {
        let name = variable["name"].as_str().unwrap_or_default().to_string();
        let expression = Expression::new(scope, &variable["expression"], Purpose::Variable);
        scope.variable(&name, expression.program.as_ref().map_or(cel::Type::Dyn, |p| p.output().clone()));
        out.push((name, expression));
    }
    out
}

impl Policy {
    fn of(mut object: Value) -> Self {
        let spec = object["spec"].take();
        let mut scope = Scope::policy(spec["paramKind"].is_object(), false);
        let variables = variables(&mut scope, &spec);
        let text = |value: &Value| value.as_str().unwrap_or_default().trim().to_string();
        let validations = spec["validations"].as_array().into_iter().flatten().map(|v| Validation {
            expression: Expression::new(&scope, &v["expression"], Purpose::Condition),
            message_expression: (!text(&v["messageExpression"]).is_empty())
                .then(|| Expression::new(&scope, &v["messageExpression"], Purpose::Message)),
            message: text(&v["message"]),
            reason: text(&v["reason"]),
        });
        let audits = spec["auditAnnotations"].as_array().into_iter().flatten();
        Self {
            name: text(&object["metadata"]["name"]),
            conditions: Conditions::of(&scope, &spec["matchConditions"]),
            validations: validations.collect(),
            audits: audits
                .map(|a| (text(&a["key"]), Expression::new(&scope, &a["valueExpression"], Purpose::AuditValue)))
                .collect(),
            variables,
            spec,
        }
    }

    fn fails_open(&self) -> bool {
        self.spec["failurePolicy"] == "Ignore"
    }

    /// What the policy has against a request; annotations it makes are put with the others.
    fn run(&self, inputs: &Inputs<'_>, annotations: &mut Annotations) -> Vec<Denial> {
        let failed = |message: String| {
            if self.fails_open() {
                Vec::new()
            } else {
                vec![Denial { message, reason: Reason::Invalid, at: 0, error: "invalid_error", always: false }]
            }
        };
        match self.conditions.hold(inputs, &self.variables) {
            Ok(true) => {}
            Ok(false) => return Vec::new(),
            Err(why) => return failed(why),
        }
        let mut denials = Vec::new();
        let mut session = Session::new(inputs, &self.variables, BUDGET);
        let mut outcomes = Vec::with_capacity(self.validations.len());
        for validation in &self.validations {
            match session.eval(&validation.expression) {
                Err(Stop::Spent) => return failed(Stop::Spent.text()),
                outcome => outcomes.push(outcome),
            }
        }
        for (at, (validation, outcome)) in self.validations.iter().zip(outcomes).enumerate() {
            match outcome {
                Ok(Cel::Bool(true)) => {}
                Ok(_) => {
                    let made = validation.message_expression.as_ref().map(|e| session.eval(e));
                    let message = match made {
                        Some(Err(Stop::Spent)) => {
                            let spent = failed(format!("failed messageExpression: {}", Stop::Spent.text()));
                            denials.extend(spent.into_iter().map(|denial| Denial { at, ..denial }));
                            continue;
                        }
                        Some(Ok(Cel::String(text))) => text.trim().to_string(),
                        _ => String::new(),
                    };
                    let fits = !message.is_empty() && message.len() <= MAX_MESSAGE && !message.contains('\n');
                    let message = match (fits, validation.message.is_empty()) {
                        (true, _) => message,
                        (false, false) => validation.message.clone(),
                        (false, true) => format!("failed expression: {}", validation.expression.text.trim()),
                    };
                    denials.push(Denial {
                        message,
                        reason: reason(&validation.reason),
                        at,
                        error: "no_error",
                        always: false,
                    });
                }
                Err(stop) => denials.extend(failed(stop.text()).into_iter().map(|denial| Denial { at, ..denial })),
            }
        }
        denials.extend(self.audit(inputs, annotations));
        denials
    }

    /// Works out annotations. What fails counts whether or not anybody reads them.
    fn audit(&self, inputs: &Inputs<'_>, annotations: &mut Annotations) -> Vec<Denial> {
        let mut session = Session::new(inputs, &self.variables, BUDGET);
        let mut denials = Vec::new();
        for (key, expression) in &self.audits {
            match session.eval(expression) {
                Ok(Cel::String(value)) => {
                    let value: String = value.trim().chars().take(MAX_ANNOTATION).collect();
                    let values = annotations.entry(format!("{}/{key}", self.name)).or_default();
                    if !value.is_empty() && !values.contains(&value) {
                        values.push(value);
                    }
                }
                Ok(_) => {}
                Err(_) if self.fails_open() => {}
                Err(stop) => {
                    let (message, reason) = (stop.text(), Reason::Invalid);
                    denials.push(Denial { message, reason, at: 0, error: "invalid_error", always: true });
                }
            }
        }
        denials
    }
}

impl<'de> Deserialize<'de> for Policy {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self::of(Value::deserialize(deserializer)?))
    }
}

/// What policies tell the audit log: by key, each value once.
type Annotations = BTreeMap<String, Vec<String>>;

struct Denial {
    message: String,
    reason: Reason,
    /// Which of the policy's validations.
    at: usize,
    /// As counts tell it.
    error: &'static str,
    /// Denies whatever the binding's actions are.
    always: bool,
}

fn reason(text: &str) -> Reason {
    match text {
        "Unauthorized" => Reason::Unauthorized,
        "Forbidden" => Reason::Forbidden,
        "RequestEntityTooLarge" => Reason::RequestEntityTooLarge,
        _ => Reason::Invalid,
    }
}

/// Lets validating policies judge a request.
pub async fn validate(
    server: &ApiServer,
    subject: &Subject<'_>,
    object: Option<&Value>,
    old: Option<&Value>,
) -> Result<(), Status> {
    let mut first: Option<(String, Reason)> = None;
    let (mut annotations, mut failures) = (Annotations::new(), Vec::new());
    let mut deny = |message: String, reason: Reason| {
        first.get_or_insert((message, reason));
    };
    for policy in server.lookup_all(GROUP, "validatingadmissionpolicies", "") {
        let policy = policy.typed::<Policy>().map_err(Status::internal)?;
        let configured = |why: &str| (!policy.fails_open()).then(|| why.to_string());
        let form = match policy_match::form(server, subject, &policy.spec["matchConstraints"], object, old) {
            Ok(Some(form)) => form,
            Ok(None) => continue,
            Err(status) => {
                if let Some(why) = configured(&status.message) {
                    let message = format!(
                        "ValidatingAdmissionPolicy '{}' denied request: failed to configure policy: {why}",
                        policy.name
                    );
                    deny(message, Reason::Invalid);
                }
                continue;
            }
        };
        let mut sight = None;
        for binding in policy_match::bindings(server, "validatingadmissionpolicybindings", &policy.name) {
            let (name, spec) = (binding["metadata"]["name"].as_str().unwrap_or_default(), &binding["spec"]);
            let denied = |message: &str| {
                format!("ValidatingAdmissionPolicy '{}' with binding '{name}' denied request: {message}", policy.name)
            };
            let kind = &policy.spec["paramKind"];
            let params = match policy_match::bound(server, subject, kind, spec, object, old).await {
                Ok(Some(params)) => params,
                Ok(None) => continue,
                Err(why) => {
                    if let Some(why) = configured(&why) {
                        deny(denied(&format!("failed to configure binding: {why}")), Reason::Invalid);
                    }
                    continue;
                }
            };
            if params.is_empty() {
                continue;
            }
            if sight.is_none() {
                sight = Some(Seen::of(server, subject, form, object, old).await?);
            }
            let Some(seen) = &sight else { continue };
            let action =
                |wanted: &str| spec["validationActions"].as_array().is_some_and(|a| a.iter().any(|a| a == wanted));
            for param in params {
                let param = param.map(|p| p.value()).transpose().map_err(Status::internal)?;
                let asker = Asker { server, user: &subject.caller.user };
                let denials = policy.run(&seen.inputs(&asker, param.as_ref()), &mut annotations);
                if denials.is_empty() {
                    crate::instruments::policy(&policy.name, name, "allow", "no_error");
                }
                for denial in denials {
                    if action("Warn") && !denial.always {
                        subject.caller.warn(format!(
                            "Validation failed for ValidatingAdmissionPolicy '{}' with binding '{name}': {}",
                            policy.name, denial.message
                        ));
                    }
                    let counted = if action("Deny") || denial.always {
                        "deny"
                    } else if action("Warn") {
                        "warn"
                    } else {
                        "audit"
                    };
                    crate::instruments::policy(&policy.name, name, counted, denial.error);
                    if action("Audit") && !denial.always {
                        failures.push(json!({
                            "message": denial.message, "policy": policy.name, "binding": name,
                            "expressionIndex": denial.at, "validationActions": spec["validationActions"],
                        }));
                    }
                    if action("Deny") || denial.always {
                        deny(denied(&denial.message), denial.reason);
                    }
                }
            }
        }
    }
    for (key, values) in annotations.into_iter().filter(|(_, values)| !values.is_empty()) {
        subject.caller.annotate(key, values.join(", "));
    }
    if !failures.is_empty() {
        subject.caller.annotate(FAILURE_KEY, Value::from(failures).to_string());
    }
    let Some((message, reason)) = first else { return Ok(()) };
    let resource = &subject.forms[0];
    let mut status = Status::forbidden(&resource.group, &resource.resource, &subject.name, &message);
    (status.reason, status.code) = (reason, reason.code());
    if let Some(details) = &mut status.details {
        details.causes.push(Cause { message, ..Cause::default() });
    }
    Err(status)
}

/// A request as a policy sees it: in the version its rules name.
pub struct Seen {
    pub object: Option<Value>,
    pub old: Option<Value>,
    pub request: Value,
    pub namespace: Option<Value>,
}

impl Seen {
    pub async fn of(
        server: &ApiServer,
        subject: &Subject<'_>,
        form: &meta::Gvr,
        object: Option<&Value>,
        old: Option<&Value>,
    ) -> Result<Self, Status> {
        let (mut shown, mut before) = (None, None);
        if let Some(object) = object {
            shown = Some(subject.shown(server, form, object).await?);
        }
        if let Some(old) = old {
            before = Some(subject.shown(server, form, old).await?);
        }
        Ok(Self {
            object: shown,
            old: before,
            request: subject.request(form),
            namespace: policy_match::namespace(server, subject)?,
        })
    }

    pub fn inputs<'s>(&'s self, authorizer: &'s Asker<'_>, params: Option<&'s Value>) -> Inputs<'s> {
        Inputs {
            object: self.object.as_ref(),
            old: self.old.as_ref(),
            request: &self.request,
            namespace: self.namespace.as_ref(),
            params,
            authorizer,
        }
    }
}

/// Judges writes.
pub struct ValidatingPolicies;

#[async_trait]
impl Plugin for ValidatingPolicies {
    fn concerns(&self, server: &ApiServer, a: &Attributes<'_>) -> bool {
        server.has_any(GROUP, "validatingadmissionpolicies") && !policy_match::is_exempt(a.target.request)
    }

    async fn validate(&self, write: &Write<'_>, object: Option<&Value>) -> Result<(), Status> {
        let Write { server, a, old } = *write;
        match Subject::of_write(server, a, object.or(old).unwrap_or(&Value::Null)) {
            Some(subject) => Box::pin(validate(server, &subject, object, old)).await,
            None => Ok(()),
        }
    }
}
