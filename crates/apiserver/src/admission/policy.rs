//! Expressions of admission, run: what they see of a request, and what they may spend.
//!
//! Policies and webhook conditions share this. Follows `k8s.io/apiserver/pkg/admission/plugin/cel`: expressions run one
//! after another on one budget; a policy's variables are worked out once, when an expression asks for them.

use std::collections::BTreeMap;
use std::sync::Arc;

use cel::value::Object as CelObject;
use cel::{Authorize, Check, Decision, Error, Opaque, PER_CALL_LIMIT, Program, Value as Cel, Variables};
use meta::Value;
use resources::validate::expressions::{self, Purpose, Scope};
use serde::Deserialize;

use crate::authn::User;
use crate::authz;
use crate::server::ApiServer;

/// What the validations, the audit annotations or one mutation of a policy may cost.
pub const BUDGET: i64 = 10_000_000;
/// What the conditions of a webhook or policy may cost.
const CONDITIONS_BUDGET: i64 = 2_500_000;
const OUT: &str = "validation failed due to running out of cost budget, no further validation rules will be run";

/// An expression, compiled if it could be.
#[derive(Debug)]
pub struct Expression {
    pub text: String,
    pub program: Result<Program, String>,
}

impl Expression {
    pub fn new(scope: &Scope, text: &Value, purpose: Purpose) -> Self {
        let text = text.as_str().unwrap_or_default().to_string();
        Self { program: scope.compile(&text, purpose), text }
    }
}

/// Named conditions that must all hold.
#[derive(Debug, Default)]
pub struct Conditions(pub Vec<Expression>);

impl Conditions {
    pub fn of(scope: &Scope, conditions: &Value) -> Self {
        let list = conditions.as_array().into_iter().flatten();
        Self(list.map(|c| Expression::new(scope, &c["expression"], Purpose::Condition)).collect())
    }

    /// Whether all hold. One that does not is enough for a no, whatever fails beside it.
    pub fn hold(&self, inputs: &Inputs<'_>, variables: &[(String, Expression)]) -> Result<bool, String> {
        let mut session = Session::new(inputs, variables, CONDITIONS_BUDGET);
        let mut failed = Vec::new();
        for condition in &self.0 {
            match session.eval(condition) {
                Ok(Cel::Bool(false)) => return Ok(false),
                Ok(_) => {}
                Err(Stop::Spent) => return Err(OUT.into()),
                Err(Stop::Failed(why)) => failed.push(why),
            }
        }
        match &failed[..] {
            [] => Ok(true),
            [one] => Err(one.clone()),
            many => Err(format!("[{}]", many.join(", "))),
        }
    }
}

/// A webhook's conditions, compiled where its configuration is read.
#[derive(Clone, Debug, Default)]
pub struct WebhookConditions(pub Arc<Conditions>);

impl<'de> Deserialize<'de> for WebhookConditions {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let conditions = Value::deserialize(deserializer)?;
        Ok(Self(Arc::new(Conditions::of(&Scope::webhook(), &conditions))))
    }
}

/// What expressions see of one request.
pub struct Inputs<'a> {
    pub object: Option<&'a Value>,
    pub old: Option<&'a Value>,
    pub request: &'a Value,
    pub namespace: Option<&'a Value>,
    pub params: Option<&'a Value>,
    pub authorizer: &'a dyn Authorize,
}

struct Sight<'i, 'a> {
    inputs: &'i Inputs<'a>,
    variables: Option<Cel<'a>>,
}

impl<'a> Variables<'a> for Sight<'_, 'a> {
    fn get(&self, name: &str) -> Option<Result<Cel<'a>, Error>> {
        let inputs = self.inputs;
        let maybe = |value: Option<&'a Value>| Ok(value.map_or(Cel::Null, Cel::json));
        Some(match name {
            "object" => maybe(inputs.object),
            "oldObject" => maybe(inputs.old),
            "params" => maybe(inputs.params),
            "request" => Cel::of(inputs.request, expressions::request()),
            "namespaceObject" => match inputs.namespace {
                Some(namespace) => Cel::of(namespace, expressions::namespace()),
                None => Ok(Cel::Null),
            },
            "variables" => Ok(self.variables.clone()?),
            "authorizer" => Ok(Cel::Opaque(Opaque::Authorizer(inputs.authorizer, Arc::default()))),
            "authorizer.requestResource" => {
                let text = |field: &str| inputs.request[field].as_str().unwrap_or_default().to_string();
                let resource =
                    |field: &str| inputs.request["requestResource"][field].as_str().unwrap_or_default().to_string();
                let check = Check {
                    group: resource("group"),
                    resource: resource("resource"),
                    subresource: text("requestSubResource"),
                    namespace: text("namespace"),
                    name: text("name"),
                    ..Check::default()
                };
                Ok(Cel::Opaque(Opaque::ResourceCheck(inputs.authorizer, Arc::new(check))))
            }
            _ => return None,
        })
    }
}

/// Why an expression has no value.
pub enum Stop {
    Failed(String),
    /// The budget is spent; nothing further runs.
    Spent,
}

impl Stop {
    pub fn text(self) -> String {
        match self {
            Stop::Failed(why) => why,
            Stop::Spent => OUT.into(),
        }
    }
}

/// Expressions of one policy over one request.
pub struct Session<'i, 'a> {
    inputs: &'i Inputs<'a>,
    variables: &'i [(String, Expression)],
    worked: BTreeMap<Arc<str>, Result<Cel<'a>, Error>>,
    pub budget: i64,
}

impl<'i, 'a> Session<'i, 'a> {
    pub fn new(inputs: &'i Inputs<'a>, variables: &'i [(String, Expression)], budget: i64) -> Self {
        Self { inputs, variables, worked: BTreeMap::new(), budget }
    }

    fn run(&mut self, program: &Program) -> Result<Result<Cel<'a>, Error>, Stop> {
        let names: Vec<String> = program.fields_of("variables").into_iter().map(str::to_string).collect();
        for name in names {
            // A variable only asks for earlier ones: this ends.
            if self.worked.contains_key(&*name) {
                continue;
            }
            let found = self.variables.iter().find(|(n, _)| *n == name);
            let Some((_, expression)) = found else { continue };
            let value = match &expression.program {
                Ok(program) => match self.run(program)? {
                    Err(why) => Err(Error::Eval(format!("composited variable {name:?} fails to evaluate: {why}"))),
                    value => value,
                },
                Err(why) => Err(Error::Eval(format!("composited variable {name:?} fails to compile: {why}"))),
            };
            self.worked.insert(name.into(), value);
        }
        let fields = CelObject::Worked(expressions::VARIABLES.into(), std::rc::Rc::new(self.worked.clone()));
        let sight = Sight { inputs: self.inputs, variables: Some(Cel::Object(fields)) };
        let (value, cost) = program.eval(&sight, PER_CALL_LIMIT);
        match i64::try_from(cost) {
            Ok(cost) if cost <= self.budget => self.budget -= cost,
            _ => {
                self.budget = -1;
                return Err(Stop::Spent);
            }
        }
        Ok(value)
    }

    /// An expression's value.
    pub fn eval(&mut self, expression: &Expression) -> Result<Cel<'a>, Stop> {
        let program = match &expression.program {
            Ok(program) => program,
            Err(why) => return Err(Stop::Failed(format!("compilation error: {why}"))),
        };
        let failed = |why: Error| Stop::Failed(format!("expression '{}' resulted in error: {why}", expression.text));
        self.run(program)?.map_err(failed)
    }
}

/// Asks the server's authorizer in the name of the request's user, or of a service account.
pub struct Asker<'s> {
    pub server: &'s ApiServer,
    pub user: &'s User,
}

impl Authorize for Asker<'_> {
    fn authorize(&self, check: &Check) -> Decision {
        let account = check.service_account.as_ref().map(|(namespace, name)| {
            let groups =
                ["system:serviceaccounts", &format!("system:serviceaccounts:{namespace}"), "system:authenticated"];
            User::new(&format!("system:serviceaccount:{namespace}:{name}"), &groups)
        });
        let attributes = authz::Attributes {
            verb: &check.verb,
            group: &check.group,
            version: "*",
            resource: &check.resource,
            subresource: &check.subresource,
            namespace: &check.namespace,
            name: &check.name,
            path: (!check.path.is_empty()).then_some(&*check.path),
            field_selector: &check.field_selector,
            label_selector: &check.label_selector,
        };
        match authz::decide(self.server, account.as_ref().unwrap_or(self.user), &attributes) {
            authz::Decision::Allow(reason) => Decision { allowed: true, reason, error: String::new() },
            authz::Decision::Deny(reason) | authz::Decision::NoOpinion(reason) => {
                Decision { allowed: false, reason, error: String::new() }
            }
        }
    }
}
