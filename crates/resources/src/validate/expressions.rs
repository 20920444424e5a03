//! Expressions of admission: what they may name, and whether they compile to what is asked of them.
//!
//! Follows `k8s.io/apiserver/pkg/admission/plugin/cel`: objects are dynamic, the request and its namespace have declared
//! shapes, variables of a policy have the types of their expressions. Running them is the API server's.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use cel::decl::{ListKind, Shape};
use cel::{Decl, Env, Library, Program, Provider, Structs, Type};
use meta::FieldError;

use super::{At, Errors};
use meta::Tree;

pub const VARIABLES: &str = "kubernetes.variables";
const AUTHORIZER: &str = "kubernetes.authorization.Authorizer";
const RESOURCE_CHECK: &str = "kubernetes.authorization.ResourceCheck";

fn leaf(shape: Shape) -> Arc<Decl> {
    Decl::leaf(shape)
}

fn text() -> Arc<Decl> {
    leaf(Shape::String)
}

fn list(item: Arc<Decl>) -> Arc<Decl> {
    leaf(Shape::List { item, kind: ListKind::Atomic })
}

/// The shape of `request`.
pub fn request() -> &'static Arc<Decl> {
    static REQUEST: OnceLock<Arc<Decl>> = OnceLock::new();
    REQUEST.get_or_init(|| {
        let kind = || {
            Decl::with_fields("kubernetes.GroupVersionKind", [("group", text()), ("version", text()), ("kind", text())])
        };
        let resource = || {
            Decl::with_fields(
                "kubernetes.GroupVersionResource",
                [("group", text()), ("version", text()), ("resource", text())],
            )
        };
        let user = Decl::with_fields(
            "kubernetes.UserInfo",
            [
                ("username", text()),
                ("uid", text()),
                ("groups", list(text())),
                ("extra", leaf(Shape::Map { value: list(text()) })),
            ],
        );
        Decl::with_fields(
            "kubernetes.AdmissionRequest",
            [
                ("kind", kind()),
                ("resource", resource()),
                ("subResource", text()),
                ("requestKind", kind()),
                ("requestResource", resource()),
                ("requestSubResource", text()),
                ("name", text()),
                ("namespace", text()),
                ("operation", text()),
                ("userInfo", user),
                ("dryRun", leaf(Shape::Bool)),
                ("options", leaf(Shape::Dyn)),
            ],
        )
    })
}

/// The shape of `namespaceObject`.
pub fn namespace() -> &'static Arc<Decl> {
    static NAMESPACE: OnceLock<Arc<Decl>> = OnceLock::new();
    NAMESPACE.get_or_init(|| {
        let texts = || leaf(Shape::Map { value: text() });
        let metadata = Decl::with_fields(
            "kubernetes.NamespaceMetadata",
            [
                ("name", text()),
                ("generateName", text()),
                ("namespace", text()),
                ("labels", texts()),
                ("annotations", texts()),
                ("UID", text()),
                ("creationTimestamp", leaf(Shape::Timestamp)),
                ("deletionGracePeriodSeconds", leaf(Shape::Int)),
                ("deletionTimestamp", leaf(Shape::Timestamp)),
                ("generation", leaf(Shape::Int)),
                ("resourceVersion", text()),
                ("finalizers", list(text())),
            ],
        );
        let condition = Decl::with_fields(
            "kubernetes.NamespaceCondition",
            [
                ("status", text()),
                ("type", text()),
                ("lastTransitionTime", leaf(Shape::Timestamp)),
                ("message", text()),
                ("reason", text()),
            ],
        );
        let spec = Decl::with_fields("kubernetes.NamespaceSpec", [("finalizers", list(text()))]);
        let status =
            Decl::with_fields("kubernetes.NamespaceStatus", [("conditions", list(condition)), ("phase", text())]);
        Decl::with_fields("kubernetes.Namespace", [("metadata", metadata), ("spec", spec), ("status", status)])
    })
}

/// The structs expressions know: of requests, of variables, and those mutations make.
struct Known {
    structs: Structs,
    patches: bool,
    /// Types of objects, where they are known: type checking.
    objects: Option<Arc<dyn Provider + Send + Sync>>,
}

fn is_object(name: &str) -> bool {
    name == "Object" || name.starts_with("Object.")
}

impl Provider for Known {
    fn field(&self, name: &str, field: &str) -> Option<Type> {
        if self.patches && name == "JSONPatch" {
            return match field {
                "op" | "path" | "from" => Some(Type::String),
                "value" => Some(Type::Dyn),
                _ => None,
            };
        }
        if self.patches && is_object(name) {
            return Some(Type::Dyn);
        }
        self.structs.field(name, field).or_else(|| self.objects.as_ref()?.field(name, field))
    }

    fn constructible(&self, name: &str) -> bool {
        self.patches && (name == "JSONPatch" || is_object(name))
    }
}

/// Where expressions of one policy or webhook stand.
pub struct Scope {
    params: bool,
    variables: BTreeMap<String, Type>,
    has_variables: bool,
    object: Type,
    params_type: Type,
    known: Known,
}

/// What an expression is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    Condition,
    Message,
    AuditValue,
    Variable,
    ApplyConfiguration,
    JsonPatch,
}

impl Scope {
    /// Of a webhook's conditions.
    pub fn webhook() -> Self {
        Self {
            params: false,
            variables: BTreeMap::new(),
            has_variables: false,
            object: Type::Dyn,
            params_type: Type::Dyn,
            known: Known { structs: Structs::of([&**request(), &**namespace()]), patches: false, objects: None },
        }
    }

    /// Of a policy's expressions; variables are added one after another.
    pub fn policy(params: bool, patches: bool) -> Self {
        let mut scope = Self::webhook();
        scope.params = params;
        scope.has_variables = true;
        scope.known.patches = patches;
        scope.known.structs.insert(VARIABLES, BTreeMap::new());
        scope
    }

    /// With the types of what is admitted and of the parameters, as far as they are known.
    pub fn typed(mut self, object: Type, params: Type, objects: Arc<dyn Provider + Send + Sync>) -> Self {
        (self.object, self.params_type, self.known.objects) = (object, params, Some(objects));
        self
    }

    /// One more variable, of the type its expression has.
    pub fn variable(&mut self, name: &str, ty: Type) {
        self.variables.insert(name.into(), ty);
        self.known.structs.insert(VARIABLES, self.variables.clone());
    }

    /// Compiles, and asks for the type the purpose wants.
    pub fn compile(&self, expression: &str, purpose: Purpose) -> Result<Program, String> {
        let mut env = Env::new(&self.known)
            .var("object", self.object.clone())
            .var("oldObject", self.object.clone())
            .var("namespaceObject", namespace().ty())
            .var("request", request().ty());
        if self.params {
            env = env.var("params", self.params_type.clone());
        }
        if self.has_variables {
            env = env.var("variables", Type::Struct(VARIABLES.into()));
        }
        if purpose != Purpose::Message {
            env = env
                .var("authorizer", Type::opaque(AUTHORIZER))
                .var("authorizer.requestResource", Type::opaque(RESOURCE_CHECK));
        }
        if self.known.patches {
            env = env.library(Library::Patches);
        }
        let program = env.compile(expression).map_err(|issues| format!("compilation failed: {issues}"))?;
        let wanted: &[Type] = match purpose {
            Purpose::Condition => &[Type::Bool],
            Purpose::Message => &[Type::String],
            Purpose::AuditValue => &[Type::String, Type::Null],
            Purpose::Variable => return Ok(program),
            Purpose::ApplyConfiguration => &[Type::Struct("Object".into())],
            Purpose::JsonPatch => &[Type::list(Type::Struct("JSONPatch".into()))],
        };
        if wanted.contains(program.output()) {
            return Ok(program);
        }
        let names: Vec<String> = wanted.iter().map(Type::full).collect();
        let found = program.output().full();
        Err(match &names[..] {
            [one] => format!("must evaluate to {one} but got {found}"),
            many => format!("must evaluate to one of [{}] but got {found}", many.join(" ")),
        })
    }
}

fn check(scope: &Scope, at: &At<'_>, purpose: Purpose, errors: &mut Errors) -> Option<Program> {
    if at.str().trim().is_empty() {
        return None;
    }
    match scope.compile(at.str(), purpose) {
        Ok(program) => Some(program),
        Err(why) => {
            errors.0.push(FieldError::invalid(&at.path, at.str(), why));
            None
        }
    }
}

/// Conditions of a webhook or policy.
pub fn conditions(scope: &Scope, holder: &At<'_>, errors: &mut Errors) {
    for condition in holder.each("matchConditions") {
        check(scope, &condition.child("expression"), Purpose::Condition, errors);
    }
}

fn is_identifier(name: &str) -> bool {
    let mut chars = name.chars();
    chars.next().is_some_and(|c| c == '_' || c.is_ascii_alphabetic())
        && chars.all(|c| c == '_' || c.is_ascii_alphanumeric())
}

/// All expressions of a policy.
pub fn policy(spec: &At<'_>, errors: &mut Errors) {
    let mut scope = Scope::policy(spec.value.has("paramKind"), spec.value.has("mutations"));
    for variable in spec.each("variables") {
        let name = variable.child("name");
        if !name.blank() && !is_identifier(name.str()) {
            errors.invalid(&name, "name is not a valid CEL identifier");
        }
        if let Some(program) = check(&scope, &variable.child("expression"), Purpose::Variable, errors) {
            scope.variable(name.str(), program.output().clone());
        } else {
            scope.variable(name.str(), Type::Dyn);
        }
    }
    conditions(&scope, spec, errors);
    for validation in spec.each("validations") {
        check(&scope, &validation.child("expression"), Purpose::Condition, errors);
        check(&scope, &validation.child("messageExpression"), Purpose::Message, errors);
    }
    for audit in spec.each("auditAnnotations") {
        check(&scope, &audit.child("valueExpression"), Purpose::AuditValue, errors);
    }
    for mutation in spec.each("mutations") {
        for (field, kind, purpose) in [
            ("applyConfiguration", "ApplyConfiguration", Purpose::ApplyConfiguration),
            ("jsonPatch", "JSONPatch", Purpose::JsonPatch),
        ] {
            let patch = mutation.child(field);
            let said = mutation.value.text("patchType");
            let known = ["ApplyConfiguration", "JSONPatch"].contains(&said);
            match (said == kind, patch.there()) {
                (true, false) => {
                    errors.required(&patch, &format!("must be specified when patchType is {kind}"));
                }
                (false, true) if known => {
                    errors.forbidden(&patch, format!("must be unset when patchType is not {kind}"));
                }
                (true, true) => {
                    let expression = patch.child("expression");
                    errors.need(&expression, "");
                    check(&scope, &expression, purpose, errors);
                }
                (false, _) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::tests::expect;
    use meta::Value;
    use serde_json::json;

    #[test]
    fn expressions_of_policies_compile() {
        let check = |spec: Value, expected: &[&str]| {
            let mut errors = Errors::default();
            policy(&At::new(&spec, "spec"), &mut errors);
            expect(&errors.0, expected, &spec);
        };
        check(
            json!({"paramKind": {}, "variables": [{"name": "n", "expression": "object.spec.replicas"},
                {"name": "m", "expression": "variables.n > 1"}],
                "matchConditions": [{"name": "c", "expression": "request.operation == 'CREATE' && request.namespace != 'a' && variables.m"}],
                "validations": [{"expression": "variables.n <= params.max && namespaceObject.metadata.name != '' && authorizer.requestResource.check('delete').allowed()",
                    "messageExpression": "'n is ' + string(variables.n)"}],
                "auditAnnotations": [{"key": "k", "valueExpression": "variables.m ? 'a' : null"}]}),
            &[
                "spec.auditAnnotations[0].valueExpression: Invalid value: \"variables.m ? 'a' : null\": compilation failed: ERROR: <input>:1:13: found no matching overload for '_?_:_' applied to '(bool, string, null)'\n | variables.m ? 'a' : null\n | ............^",
            ],
        );
        check(
            json!({"variables": [{"name": "a-b", "expression": "1"}], "validations": [{"expression": "'a'"}, {"expression": "params.x"},
                {"expression": "true", "messageExpression": "authorizer.path('/x').check('get').allowed() ? 'a' : 'b'"}]}),
            &[
                "spec.variables[0].name: Invalid value: \"a-b\": name is not a valid CEL identifier",
                "spec.validations[0].expression: Invalid value: \"'a'\": must evaluate to bool but got string",
                "spec.validations[1].expression: Invalid value: \"params.x\": compilation failed: ERROR: <input>:1:1: undeclared reference to 'params' (in container '')\n | params.x\n | ^",
                "spec.validations[2].messageExpression: Invalid value: \"authorizer.path('/x').check('get').allowed() ? 'a' : 'b'\": compilation failed: ERROR: <input>:1:1: undeclared reference to 'authorizer' (in container '')\n | authorizer.path('/x').check('get').allowed() ? 'a' : 'b'\n | ^",
            ],
        );
        check(
            json!({"mutations": [
                {"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": "Object{metadata: Object.metadata{labels: {'a': 'b'}}}"}},
                {"patchType": "JSONPatch", "jsonPatch": {"expression": "[JSONPatch{op: 'add', path: '/metadata/labels/' + jsonpatch.escapeKey('a/b'), value: 'x'}]"}},
                {"patchType": "JSONPatch", "jsonPatch": {"expression": "[JSONPatch{wrong: 1}]"}},
                {"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": "1"}}]}),
            &[
                "spec.mutations[2].jsonPatch.expression: Invalid value: \"[JSONPatch{wrong: 1}]\": compilation failed: ERROR: <input>:1:19: undefined field 'wrong'\n | [JSONPatch{wrong: 1}]\n | ..................^",
                "spec.mutations[3].applyConfiguration.expression: Invalid value: \"1\": must evaluate to Object but got int",
            ],
        );
    }
}
