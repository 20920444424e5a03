//! The rules of a custom kind's schema (`x-kubernetes-validations`), run over its objects.
//!
//! Follows `k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel`: rules run from the root down, a rule about change only
//! where there is something to compare with, and all rules of an object share one budget. A rule that does not hold for
//! a value the write did not touch is no error: see [`Correlation`].

use std::collections::BTreeMap;
use std::sync::Arc;

use cel::{Decl, Error, PER_CALL_LIMIT, Program, Value as Cel};
use meta::{FieldError, FieldPath, Status, Value};
use resources::validate::rules;

use crate::pipeline::Target;

/// What all rules of one object may cost to run.
const BUDGET: i64 = 10_000_000;
/// Bytes of a message that an expression makes.
const MAX_MESSAGE: usize = 5 * 1024;

struct Compiled {
    source: Value,
    rule: Result<rules::Rule, String>,
    /// Where an error is reported, below the rule's own place.
    field: String,
}

/// The rules at one place of a schema and below.
pub struct Rules {
    kind: String,
    decl: Arc<Decl>,
    compiled: Vec<Compiled>,
    /// Maps of this place have their values told apart by key.
    correlates_values: bool,
    list_keys: Option<Vec<String>>,
    properties: BTreeMap<String, Rules>,
    values: Option<Box<Rules>>,
    items: Option<Box<Rules>>,
    all_of: Vec<Rules>,
}

/// What came of running an object's rules.
#[derive(Default)]
pub struct Found {
    pub errors: Vec<FieldError>,
    /// Rules that fail about what was there before and did not change.
    pub warnings: Vec<String>,
}

impl Rules {
    /// The rules of a whole schema; `None` if it has none.
    pub fn of(schema: &Value) -> Option<Self> {
        Self::node(schema, schema, true)
    }

    /// `says` has the rules, `shape` the structure: they differ below `allOf`.
    fn node(says: &Value, shape: &Value, root: bool) -> Option<Self> {
        let decl = Decl::of(shape, root, "selfType")?;
        let embedded = |shape: &Value| shape["x-kubernetes-embedded-resource"] == true;
        let compiled: Vec<Compiled> = says["x-kubernetes-validations"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|rule| !rule["rule"].as_str().unwrap_or_default().trim().is_empty())
            .map(|source| {
                let path = source["fieldPath"].as_str().unwrap_or_default();
                let field = match path {
                    "" => Ok(String::new()),
                    path => rules::field_path(path, shape, true).map(|(path, _)| path.as_str().to_string()),
                };
                let rule = rules::compile(source, &decl).map_err(|e| e.rule.or(e.message).unwrap_or_default());
                Compiled { source: source.clone(), rule, field: field.unwrap_or_default() }
            })
            .collect();
        let properties: BTreeMap<String, Rules> = says["properties"]
            .as_object()
            .into_iter()
            .flatten()
            .filter_map(|(name, says)| {
                let shape = shape["properties"].get(name)?;
                Some((name.clone(), Self::node(says, shape, embedded(shape))?))
            })
            .collect();
        let below = |key: &str| {
            let (says, shape) = (&says[key], &shape[key]);
            (says.is_object() && shape.is_object()).then(|| Self::node(says, shape, embedded(shape)))?.map(Box::new)
        };
        let (values, items) = (below("additionalProperties"), below("items"));
        let parts = says["allOf"].as_array().into_iter().flatten();
        let all_of: Vec<Rules> = parts.filter_map(|part| Self::node(part, shape, root)).collect();
        let none = compiled.is_empty() && properties.is_empty() && values.is_none() && items.is_none();
        if none && all_of.is_empty() {
            return None;
        }
        let keys = shape["x-kubernetes-list-map-keys"].as_array().into_iter().flatten();
        let by_key = shape["x-kubernetes-list-type"] == "map";
        Some(Self {
            kind: shape["type"].as_str().unwrap_or_default().into(),
            decl,
            compiled,
            correlates_values: matches!(shape["x-kubernetes-map-type"].as_str(), None | Some("granular" | "atomic")),
            list_keys: by_key.then(|| keys.filter_map(Value::as_str).map(Into::into).collect()),
            properties,
            values,
            items,
            all_of,
        })
    }

    /// Runs all rules over an object and what it was before.
    pub fn check(&self, object: &Value, old: Option<&Value>) -> Found {
        let correlation = Correlation { now: old, unchanged_above: false, known: old.is_some(), root: true };
        self.run(&FieldPath::root(), object, old, &correlation)
    }

    /// The same of a value at some place, whether or not it is what it was.
    fn check_at(&self, path: &FieldPath, value: &Value, old: Option<&Value>) -> Found {
        self.run(path, value, old, &Correlation { now: None, unchanged_above: false, known: false, root: false })
    }

    fn run(&self, path: &FieldPath, value: &Value, old: Option<&Value>, correlation: &Correlation<'_>) -> Found {
        let mut run = Run { found: Found::default(), budget: BUDGET };
        // The budget ran out: what was found until then says so.
        let _ = run.node(self, path, value, old, correlation, value);
        run.found
    }
}

/// Whether a value was there before, and the same.
#[derive(Clone, Copy)]
struct Correlation<'v> {
    /// The same place of the old object, if places can be told apart here.
    now: Option<&'v Value>,
    /// Some value around this one can be compared, and is the same.
    unchanged_above: bool,
    known: bool,
    root: bool,
}

impl<'v> Correlation<'v> {
    fn is_unchanged(&self, value: &Value) -> bool {
        if self.known { self.now == Some(value) } else { self.unchanged_above }
    }

    fn below(&self, value: &Value, old: Option<&'v Value>, told_apart: bool) -> Self {
        let unchanged_above = self.is_unchanged(value);
        Correlation { now: old, unchanged_above, known: self.known && told_apart && old.is_some(), root: false }
    }
}

struct Run {
    found: Found,
    budget: i64,
}

/// The budget is spent: no further rule runs.
struct Spent;

fn said(rule: &Value) -> &str {
    let text = |field: &str| rule[field].as_str().unwrap_or_default().trim();
    if text("message").is_empty() { text("rule") } else { text("message") }
}

impl Run {
    fn node(
        &mut self,
        rules: &Rules,
        path: &FieldPath,
        value: &Value,
        old: Option<&Value>,
        correlation: &Correlation<'_>,
        _whole: &Value,
    ) -> Result<(), Spent> {
        if value.is_null() {
            return Ok(());
        }
        self.rules(rules, path, value, old.filter(|o| !o.is_null()), correlation)?;
        for part in &rules.all_of {
            // What stands below `allOf` is compared with nothing of its own.
            let apart = Correlation { known: false, ..*correlation };
            self.node(part, path, value, old, &apart, value)?;
        }
        match value {
            Value::Array(items) => {
                let Some(inner) = &rules.items else { return Ok(()) };
                let before = old.and_then(Value::as_array);
                for (at, item) in items.iter().enumerate() {
                    let same = rules
                        .list_keys
                        .as_ref()
                        .and_then(|keys| before?.iter().find(|o| keys.iter().all(|k| o.get(k) == item.get(k))));
                    let correlation = correlation.below(value, same, rules.list_keys.is_some());
                    self.node(inner, &path.index(at), item, same, &correlation, value)?;
                }
            }
            Value::Object(map) => {
                let before = old.and_then(Value::as_object).filter(|_| rules.correlates_values);
                for (name, field) in map {
                    let same = before.and_then(|b| b.get(name));
                    // Conversion makes these the same, whatever was sent.
                    let told_apart = !(correlation.root && matches!(name.as_str(), "apiVersion" | "kind"));
                    let correlation = correlation.below(value, same, told_apart);
                    if let Some(inner) = &rules.values {
                        self.node(inner, &path.key(name), field, same, &correlation, value)?;
                    }
                    if let Some(inner) = rules.properties.get(name) {
                        self.node(inner, &path.child(name), field, same, &correlation, value)?;
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn push(&mut self, error: FieldError) {
        self.found.errors.push(error);
    }

    fn invalid(&mut self, rules: &Rules, path: &FieldPath, why: String) {
        self.push(FieldError::invalid(path, rules.kind.as_str(), why));
    }

    fn spend(&mut self, cost: u64) -> bool {
        match i64::try_from(cost) {
            Ok(cost) if cost <= self.budget => {
                self.budget -= cost;
                true
            }
            _ => false,
        }
    }

    fn rules(
        &mut self,
        rules: &Rules,
        path: &FieldPath,
        value: &Value,
        old: Option<&Value>,
        correlation: &Correlation<'_>,
    ) -> Result<(), Spent> {
        const OUT: &str =
            "validation failed due to running out of cost budget, no further validation rules will be run";
        if rules.compiled.is_empty() {
            return Ok(());
        }
        if self.budget <= 0 {
            self.invalid(rules, path, OUT.into());
            return Err(Spent);
        }
        for compiled in &rules.compiled {
            let source = &compiled.source;
            let rule = match &compiled.rule {
                Ok(rule) => rule,
                Err(why) => {
                    self.invalid(rules, path, format!("rule compile error: {why}"));
                    continue;
                }
            };
            let optional = source["optionalOldSelf"] == true;
            if rule.uses_old && old.is_none() && !optional {
                continue;
            }
            let vars = match variables(rules, value, old, optional) {
                Ok(vars) => vars,
                Err(why) => {
                    self.invalid(rules, path, format!("{why} evaluating rule: {}", said(source)));
                    continue;
                }
            };
            let (outcome, cost) = rule.program.eval(&&vars[..], PER_CALL_LIMIT);
            if !self.spend(cost) {
                self.invalid(rules, path, OUT.into());
                return Err(Spent);
            }
            let said = said(source);
            match outcome {
                Ok(Cel::Bool(true)) => {}
                Ok(_) => {
                    let at = if compiled.field.is_empty() { path.clone() } else { path.child(&compiled.field) };
                    let message = match &rule.message {
                        Some(program) => self.message(rules, &at, program, source, &vars)?,
                        None => None,
                    };
                    let error = failed(rules, source, &at, value, message);
                    if !rule.uses_old && correlation.is_unchanged(value) {
                        self.found.warnings.push(error.to_string());
                    } else {
                        self.push(error);
                    }
                }
                Err(why @ Error::CostLimit) => {
                    let detail = format!(
                        "'{why}': no further validation rules will be run due to call cost exceeds limit for rule: {said}"
                    );
                    self.invalid(rules, path, detail);
                    return Err(Spent);
                }
                Err(why) if why.to_string().starts_with("no such overload") => {
                    let detail = format!(
                        "'{why}': call arguments did not match a supported operator, function or macro signature for rule: {said}"
                    );
                    self.invalid(rules, path, detail);
                }
                Err(why) => self.invalid(rules, path, format!("{why} evaluating rule: {said}")),
            }
        }
        Ok(())
    }

    /// The message an expression makes; `None` where the rule's own stands in.
    fn message(
        &mut self,
        rules: &Rules,
        path: &FieldPath,
        program: &Program,
        source: &Value,
        vars: &[(&str, Cel<'_>)],
    ) -> Result<Option<String>, Spent> {
        let expression = source["messageExpression"].as_str().unwrap_or_default();
        let (outcome, cost) = program.eval(&vars, PER_CALL_LIMIT);
        if !self.spend(cost) {
            let why = "messageExpression evaluation failed due to running out of cost budget, no further validation rules will be run";
            self.invalid(rules, path, why.into());
            return Err(Spent);
        }
        let text = match outcome {
            Ok(Cel::String(text)) => text.trim().to_string(),
            Err(Error::CostLimit) => {
                let why = format!(
                    "no further validation rules will be run due to call cost exceeds limit for messageExpression: {expression:?}"
                );
                self.invalid(rules, path, why);
                return Err(Spent);
            }
            outcome => {
                let why = outcome.err().map(|e| e.to_string()).unwrap_or_default();
                tracing::debug!(expression, why, "messageExpression");
                return Ok(None);
            }
        };
        Ok((!text.is_empty() && text.len() <= MAX_MESSAGE && !text.contains('\n')).then_some(text))
    }
}

fn variables<'v>(
    rules: &'v Rules,
    value: &'v Value,
    old: Option<&'v Value>,
    optional: bool,
) -> Result<[(&'static str, Cel<'v>); 2], Error> {
    let before = match old {
        Some(old) => Some(Cel::of(old, &rules.decl)?),
        None => None,
    };
    let before = if optional { Cel::Optional(before.map(std::rc::Rc::new)) } else { before.unwrap_or(Cel::Null) };
    Ok([("self", Cel::of(value, &rules.decl)?), ("oldSelf", before)])
}

fn failed(rules: &Rules, source: &Value, path: &FieldPath, value: &Value, message: Option<String>) -> FieldError {
    let detail = message.unwrap_or_else(|| match source["message"].as_str().filter(|m| !m.is_empty()) {
        Some(message) => message.trim().to_string(),
        None => format!("failed rule: {}", said(source)),
    });
    let printed = !matches!(&*rules.kind, "object" | "array");
    match source["reason"].as_str() {
        Some("FieldValueForbidden") => FieldError::forbidden(path, detail),
        Some("FieldValueRequired") => FieldError::required(path, detail),
        Some("FieldValueDuplicate") => FieldError::duplicate(path, value.clone()),
        _ if printed => FieldError::invalid(path, value.clone(), detail),
        _ => FieldError::invalid_unprinted(path, detail),
    }
}

/// Everything wrong with a stored custom object, as the version that was asked for shows it.
pub async fn validate_stored(
    target: &Target<'_>,
    object: &Value,
    old: Option<&Value>,
) -> Result<Vec<FieldError>, Status> {
    let (served, version) = (target.served, target.version);
    let resource = &served.resource;
    if &*resource.plural == crate::crd::PLURAL && &*resource.group == crate::crd::GROUP {
        return Ok(if old.is_some_and(|old| old["spec"] == object["spec"]) {
            Vec::new()
        } else {
            wrong_defaults(object)
        });
    }
    if !resource.custom || served.is_storage(version) {
        return Ok(validate(target, object, old));
    }
    let mut seen = object.clone();
    served.from_storage(&mut seen, &version.name).await?;
    let mut before = old.cloned();
    if let Some(before) = &mut before {
        served.from_storage(before, &version.name).await?;
    }
    Ok(validate(target, &seen, before.as_ref()))
}

/// Everything wrong with a custom object by its version's schema, and by the schema's rules if they can be asked.
pub fn validate(target: &Target<'_>, object: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let (served, version) = (target.served, target.version);
    // Built-in kinds are checked by decoding and their strategies.
    if !served.resource.custom {
        return Vec::new();
    }
    let mut errors = meta::schema::validate_with(version.schema.root(), object, &FieldPath::root(), embedded);
    if let (Some(old), Some(schema), false) = (old, &version.published, errors.is_empty()) {
        errors = ratchet(errors, schema, object, old);
    }
    let Some(rules) = served.rules(version) else { return errors };
    use meta::status::FieldErrorKind::{Required, TooLong, TooMany, TypeInvalid};
    if errors.iter().any(|e| matches!(e.kind, Required | TooLong | TooMany | TypeInvalid)) {
        let why = "some validation rules were not checked because the object was invalid; correct the existing errors to complete validation";
        errors.push(FieldError::invalid(&FieldPath::new("<nil>"), Value::Null, why));
        return errors;
    }
    let found = rules.check(object, old);
    found.warnings.into_iter().for_each(|warning| target.caller.warn(warning));
    errors.extend(found.errors);
    errors
}

/// What is wrong with the metadata of an object within an object.
fn embedded(object: &Value) -> Vec<FieldError> {
    let metadata = &object["metadata"];
    let namespaced = metadata["namespace"].as_str().is_some_and(|namespace| !namespace.is_empty());
    let mut errors = resources::metadata::validate(object, namespaced);
    for field in ["generateName", "name"] {
        let said = metadata[field].as_str().unwrap_or_default();
        if let Some(why) = resources::validate::formats::not_a_path_segment(said) {
            errors.push(FieldError::invalid(&FieldPath::new("metadata").child(field), said, why));
        }
    }
    errors
}

/// What is wrong with the defaults of a definition's schemas by their own rules. The schemas are good otherwise.
pub fn wrong_defaults(definition: &Value) -> Vec<FieldError> {
    let versions = definition["spec"]["versions"].as_array().map_or(&[][..], Vec::as_slice);
    let schema = |version: &Value| version["schema"]["openAPIV3Schema"].clone();
    let alike = versions.iter().all(|version| schema(version) == schema(&versions[0]));
    let mut errors = Vec::new();
    for (at, version) in versions.iter().enumerate().take(if alike { 1 } else { versions.len() }) {
        let path = match alike {
            true => FieldPath::new("spec.validation.openAPIV3Schema"),
            false => FieldPath::new("spec.versions").index(at).child("schema.openAPIV3Schema"),
        };
        defaults_of(&version["schema"]["openAPIV3Schema"], &path, &mut errors);
    }
    errors
}

fn defaults_of(schema: &Value, path: &FieldPath, errors: &mut Vec<FieldError>) {
    if let Some(default) = schema.get("default").filter(|default| !default.is_null())
        && let Some(rules) = Rules::node(schema, schema, false)
    {
        let at = path.child("default");
        // Where there is nothing to be changed, a default is what it was.
        let found = rules.check_at(&at, default, Some(default));
        errors.extend(found.errors);
    }
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        defaults_of(property, &path.child("properties").key(name), errors);
    }
    for below in ["items", "additionalProperties"] {
        if schema[below].is_object() {
            defaults_of(&schema[below], &path.child(below), errors);
        }
    }
}

/// Complaints about what the write left as it was: an old object may break a schema that came after it.
pub fn ratchet(errors: Vec<FieldError>, schema: &Value, object: &Value, old: &Value) -> Vec<FieldError> {
    errors.into_iter().filter(|error| !is_unchanged(&error.field, schema, object, old)).collect()
}

/// Whether the place of an error, or one around it that can be told apart, is as it was.
fn is_unchanged(path: &str, schema: &Value, object: &Value, old: &Value) -> bool {
    let (mut schema, mut now, mut before, mut rest) = (schema, object, old, path);
    let mut depth = 0;
    loop {
        // The whole object never counts: then nothing was written.
        if depth > 0 && now == before {
            return true;
        }
        depth += 1;
        if rest.is_empty() {
            return false;
        }
        let next = match now {
            Value::Array(items) => {
                let Some((index, tail)) = rest.strip_prefix('[').and_then(|r| r.split_once(']')) else { return false };
                let Some(item) = index.parse::<usize>().ok().and_then(|i| items.get(i)) else { return false };
                if schema["x-kubernetes-list-type"] != "map" {
                    return false;
                }
                let keys = schema["x-kubernetes-list-map-keys"].as_array();
                let same = before.as_array().and_then(|before| {
                    before
                        .iter()
                        .find(|o| keys.into_iter().flatten().filter_map(Value::as_str).all(|k| o.get(k) == item.get(k)))
                });
                same.map(|same| (&schema["items"], item, same, tail))
            }
            Value::Object(map) => {
                let bare = rest.trim_start_matches('.');
                let bracketed = rest.strip_prefix('[');
                // The longest name that stands here: names may have dots in them.
                let found = map
                    .keys()
                    .filter_map(|key| {
                        let tail = match bracketed {
                            Some(inner) => inner.strip_prefix(key.as_str())?.strip_prefix(']')?,
                            None => bare.strip_prefix(key.as_str())?,
                        };
                        (tail.is_empty() || tail.starts_with(['.', '['])).then_some((key, tail))
                    })
                    .max_by_key(|(key, _)| key.len());
                found.and_then(|(key, tail)| {
                    let property = &schema["properties"][key];
                    let schema = if property.is_null() { &schema["additionalProperties"] } else { property };
                    Some((schema, map.get(key)?, before.get(key)?, tail))
                })
            }
            _ => None,
        };
        let Some(next) = next else { return false };
        (schema, now, before, rest) = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn found(schema: &Value, object: Value, old: Option<Value>) -> Vec<String> {
        let found = Rules::of(schema).unwrap().check(&object, old.as_ref());
        let warned = found.warnings.into_iter().map(|w| format!("warning: {w}"));
        found.errors.iter().map(ToString::to_string).chain(warned).collect()
    }

    #[test]
    fn rules_run_where_they_stand() {
        let schema = json!({"type": "object", "properties": {"spec": {"type": "object",
            "x-kubernetes-validations": [
                {"rule": "self.min <= self.max", "message": "min over max", "fieldPath": ".min", "reason": "FieldValueForbidden"},
                {"rule": "self.max < 10", "messageExpression": "'max is ' + string(self.max)"}],
            "properties": {
                "min": {"type": "integer"},
                "max": {"type": "integer", "x-kubernetes-validations": [{"rule": "self >= oldSelf", "message": "only up"}]},
                "name": {"type": "string", "x-kubernetes-validations": [
                    {"rule": "!oldSelf.hasValue() || oldSelf.value() == self", "optionalOldSelf": true},
                    {"rule": "self.startsWith('a')"}]},
                "list": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
                    "items": {"type": "object", "x-kubernetes-validations": [{"rule": "self.v == oldSelf.v", "message": "fixed"}],
                        "properties": {"k": {"type": "string"}, "v": {"type": "integer"}}}}}}}});
        let spec = |spec: Value| json!({"spec": spec});
        assert_eq!(found(&schema, spec(json!({"min": 1, "max": 2})), None), [""; 0]);
        assert_eq!(
            found(&schema, spec(json!({"min": 12, "max": 11})), None),
            ["spec.min: Forbidden: min over max", "spec: Invalid value: max is 11"]
        );
        assert_eq!(
            found(&schema, spec(json!({"min": 1, "max": 2})), Some(spec(json!({"min": 1, "max": 3})))),
            ["spec.max: Invalid value: 2: only up"]
        );
        assert_eq!(
            found(&schema, spec(json!({"min": 1, "max": 2, "name": "b"})), None),
            ["spec.name: Invalid value: \"b\": failed rule: self.startsWith('a')"]
        );
        let before = json!({"min": 1, "max": 2, "name": "b", "list": [{"k": "x", "v": 1}]});
        assert_eq!(
            found(
                &schema,
                spec(json!({"min": 2, "max": 2, "name": "b", "list": [{"k": "y", "v": 3}, {"k": "x", "v": 2}]})),
                Some(spec(before))
            ),
            [
                "spec.list[1]: Invalid value: fixed",
                "warning: spec.name: Invalid value: \"b\": failed rule: self.startsWith('a')"
            ]
        );
        assert_eq!(
            found(&schema, spec(json!({"min": 1})), None),
            [
                "spec: Invalid value: \"object\": no such key: max evaluating rule: min over max",
                "spec: Invalid value: \"object\": no such key: max evaluating rule: self.max < 10"
            ]
        );
    }

    #[test]
    fn the_budget_ends_it() {
        let schema = json!({"type": "object", "properties": {"l": {"type": "array", "items": {"type": "integer"},
            "x-kubernetes-validations": [{"rule": "self.all(x, self.all(y, x == y))"}]}}});
        let object = json!({"l": vec![1; 1000]});
        assert_eq!(
            found(&schema, object, None),
            [
                "l: Invalid value: \"array\": 'operation cancelled: actual cost limit exceeded': no further validation rules will be run due to call cost exceeds limit for rule: self.all(x, self.all(y, x == y))"
            ]
        );
    }

    #[test]
    fn what_was_wrong_before_may_stay() {
        let schema = json!({"properties": {"a": {}, "l": {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"]}, "s": {}}});
        let old = json!({"a": {"b.c": 1}, "l": [{"k": "x", "v": 1}], "s": [1]});
        let now = json!({"a": {"b.c": 1, "d": 2}, "l": [{"k": "y", "v": 1}, {"k": "x", "v": 1}], "s": [1, 2]});
        for (path, expect) in [
            ("a.b.c", true),
            ("a.d", false),
            ("a[b.c]", true),
            ("l[0].v", false),
            ("l[1].v", true),
            ("s[0]", false),
            ("z", false),
        ] {
            assert_eq!(is_unchanged(path, &schema, &now, &old), expect, "{path}");
        }
    }
}
