//! The rules of a custom resource's schema (`x-kubernetes-validations`), before they are accepted.
//!
//! Every rule must compile against its part of the schema, and its cost, estimated over the largest data the schema
//! admits, must stay within limits, each rule's and the whole schema's. Follows
//! `k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/validation`. Running rules is the API server's.

use cel::{Decl, Env, PER_CALL_LIMIT, Program, Structs, Type};
use meta::{FieldError, FieldPath, Value};
use serde_json::json;

use super::{At, Errors};
use meta::Tree;

/// The most one rule may cost by estimate.
const RULE_LIMIT: u64 = 10_000_000;
/// The most all rules of a schema may cost by estimate.
const SCHEMA_LIMIT: u64 = 100_000_000;
/// Rules named when all together cost too much.
const NAMED: usize = 4;

/// One rule, compiled.
pub struct Rule {
    pub program: Program,
    pub message: Option<Program>,
    pub uses_old: bool,
}

/// What is wrong with a rule: with itself, or with its messageExpression.
pub struct RuleErrors {
    pub rule: Option<String>,
    pub message: Option<String>,
}

/// Compiles a rule over data of a declared shape.
pub fn compile(rule: &Value, decl: &Decl) -> Result<Rule, RuleErrors> {
    let structs = Structs::of([decl]);
    let old = if rule.flag("optionalOldSelf") { Type::optional(decl.ty()) } else { decl.ty() };
    let env = Env::new(&structs).var("self", decl.ty()).var("oldSelf", old);
    let wrong = |why: String| RuleErrors { rule: Some(why), message: None };
    let program = env.compile(rule.text("rule")).map_err(|issues| wrong(format!("compilation failed: {issues}")))?;
    if *program.output() != Type::Bool {
        return Err(wrong("cel expression must evaluate to a bool".into()));
    }
    let uses_old = program.uses("oldSelf");
    let message = match rule.text("messageExpression") {
        "" => None,
        text => {
            let wrong = |why: String| RuleErrors { rule: None, message: Some(why) };
            let program =
                env.compile(text).map_err(|issues| wrong(format!("messageExpression compilation failed: {issues}")))?;
            if *program.output() != Type::String {
                return Err(wrong("messageExpression must evaluate to a string".into()));
            }
            Some(program)
        }
    };
    Ok(Rule { program, message, uses_old })
}

struct Walk<'w> {
    errors: &'w mut Errors,
    costly_is_fine: bool,
    total: u64,
    dearest: Vec<(u64, FieldPath)>,
}

/// What surrounds a node.
#[derive(Clone)]
struct Place {
    root: bool,
    /// How often data of the node may occur; `None` where nothing bounds it.
    count: Option<u64>,
    /// The list whose items cannot be told from those of before.
    uncorrelatable: Option<FieldPath>,
}

/// Checks the rules of a whole schema.
pub fn schema(at: &At<'_>, costly_is_fine: bool, errors: &mut Errors) {
    let mut walk = Walk { errors, costly_is_fine, total: 0, dearest: Vec::new() };
    walk.node(at.value, &at.path, &Place { root: true, count: Some(1), uncorrelatable: None });
    if walk.total > SCHEMA_LIMIT && !costly_is_fine {
        let total = walk.total;
        walk.dearest.sort_by_key(|(cost, _)| std::cmp::Reverse(*cost));
        for (_, path) in walk.dearest.iter().take(NAMED) {
            let detail = "contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema";
            walk.errors.0.push(FieldError::forbidden(path, detail));
        }
        let name = "x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema";
        walk.errors.0.push(FieldError::forbidden(&at.path, exceeded(name, total, SCHEMA_LIMIT)));
    }
}

fn exceeded(name: &str, cost: u64, limit: u64) -> String {
    let factor = cost as f64 / limit as f64;
    let factor = match factor {
        f if f > 100.0 => "more than 100x".to_string(),
        f if f < 1.5 => format!("{f:.6}x"),
        f => format!("{f:.1}x"),
    };
    format!(
        "{name} exceeds budget by factor of {factor} (try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)"
    )
}

fn has_rules(schema: &Value) -> bool {
    let below = |v: &Value| has_rules(v);
    !schema.list("x-kubernetes-validations").is_empty()
        || schema.map("properties").values().any(below)
        || schema.get("items").is_some_and(below)
        || schema.get("additionalProperties").is_some_and(below)
}

impl Walk<'_> {
    fn node(&mut self, schema: &Value, path: &FieldPath, place: &Place) {
        if !has_rules(schema) {
            return;
        }
        let more = schema.get("additionalProperties");
        let bound = |key: &str| schema.get(key).and_then(Value::as_u64);
        let most = match schema.text("type") {
            "array" => bound("maxItems"),
            "object" if more.is_some() => bound("maxProperties"),
            _ => Some(1),
        };
        let below = |child: &Value, uncorrelatable: Option<FieldPath>| Place {
            root: child.flag("x-kubernetes-embedded-resource"),
            count: place.count.zip(most).map(|(count, most)| count.saturating_mul(most)),
            uncorrelatable: place.uncorrelatable.clone().or(uncorrelatable),
        };
        for (name, child) in schema.map("properties") {
            self.node(child, &path.child("properties").key(name), &below(child, None));
        }
        if let Some(child) = more.filter(|m| m.is_object()) {
            self.node(child, &path.child("additionalProperties"), &below(child, None));
        }
        if let Some(child) = schema.get("items") {
            let by_key = schema.get("x-kubernetes-list-type").and_then(Value::as_str) == Some("map");
            let at = (!by_key).then(|| path.clone());
            self.node(child, &path.child("items"), &below(child, at));
        }
        self.rules(schema, path, place);
    }

    fn rules(&mut self, schema: &Value, path: &FieldPath, place: &Place) {
        let list = path.child("x-kubernetes-validations");
        let rules = schema.get("x-kubernetes-validations").and_then(Value::as_array);
        let Some(rules) = rules.filter(|r| !r.is_empty()) else { return };
        let Some(decl) = Decl::of(schema, place.root, "selfType") else {
            let detail = "internal error: failed to construct type information for x-kubernetes-validations rules: unable to convert structural schema to CEL declarations";
            self.errors.0.push(FieldError::internal(&list, detail));
            return;
        };
        for (at, rule) in rules.iter().enumerate() {
            let (rule_path, message_path) = (list.index(at).child("rule"), list.index(at).child("messageExpression"));
            let compiled = match compile(rule, &decl) {
                Ok(compiled) => compiled,
                Err(wrong) => {
                    let shown = shown(rule);
                    let mut push = |path: &FieldPath, why: Option<String>| {
                        let errors = why.map(|why| FieldError::invalid(path, shown.clone(), why));
                        self.errors.0.extend(errors);
                    };
                    push(&rule_path, wrong.rule);
                    push(&message_path, wrong.message);
                    continue;
                }
            };
            let count = place.count.unwrap_or((cel::decl::MAX_REQUEST_BYTES / (decl.min_size + 1)) as u64);
            let cost = compiled.program.estimate(Some(&decl)).max.saturating_mul(count);
            self.spend("estimated rule cost", cost, &rule_path);
            if let Some(message) = &compiled.message {
                self.spend("estimated messageExpression cost", message.estimate(Some(&decl)).max, &message_path);
            }
            if compiled.uses_old {
                if let Some(within) = &place.uncorrelatable {
                    let detail =
                        format!("oldSelf cannot be used on the uncorrelatable portion of the schema within {within}");
                    self.errors.0.push(FieldError::invalid(&rule_path, rule.text("rule"), detail));
                }
            } else if let Some(said) = rule.get("optionalOldSelf").filter(|v| !v.is_null()) {
                let detail = "may not be set if oldSelf is not used in rule";
                let path = list.index(at).child("optionalOldSelf");
                self.errors.0.push(FieldError::invalid(&path, said.clone(), detail));
            }
        }
    }

    fn spend(&mut self, name: &str, cost: u64, path: &FieldPath) {
        if cost > RULE_LIMIT && !self.costly_is_fine {
            self.errors.0.push(FieldError::forbidden(path, exceeded(name, cost, RULE_LIMIT)));
        }
        self.total = self.total.saturating_add(cost);
        if cost >= SCHEMA_LIMIT / 100 {
            self.dearest.push((cost, path.clone()));
        }
    }
}

/// A rule as upstream's internal type prints it.
fn shown(rule: &Value) -> Value {
    let text = |field: &str| rule.text(field).to_string();
    json!({
        "Rule": text("rule"), "Message": text("message"), "MessageExpression": text("messageExpression"),
        "Reason": rule.get("reason").cloned(), "FieldPath": text("fieldPath"),
        "OptionalOldSelf": rule.get("optionalOldSelf").cloned(),
    })
}

/// A JSON path of fields (`.a.b['c']`) below a schema: as a field path, and the schema it leads to.
pub fn field_path<'s>(text: &str, schema: &'s Value, brackets: bool) -> Result<(FieldPath, &'s Value), String> {
    let (mut at, mut path, mut rest) = (schema, FieldPath::root(), text);
    while !rest.is_empty() {
        let (name, tail) = if let Some(after) = rest.strip_prefix('.') {
            let end = after.find(['.', '[', ']']).unwrap_or(after.len());
            if end == 0 && after.is_empty() {
                return Err("unexpected end of JSON path".into());
            }
            (after[..end].to_string(), &after[end..])
        } else if let Some(after) = rest.strip_prefix('[') {
            if !brackets {
                return Err("array notation is not allowed".into());
            }
            quoted(after)?
        } else {
            let end = rest.find(['.', '[', ']']).unwrap_or(rest.len()).max(1);
            return Err(format!("expected [ or . but got: {}", rest.get(..end).unwrap_or(rest)));
        };
        let property = at.get("properties").and_then(|p| p.get(&name));
        (at, path) = match (property, at.get("properties"), at.get("additionalProperties")) {
            (Some(child), ..) => (child, path.child(&name)),
            (None, None, Some(child)) => (child, path.key(&name)),
            _ => return Err("does not refer to a valid field".into()),
        };
        rest = tail;
    }
    Ok((path, at))
}

/// `'name']`, the name unescaped, and what follows.
fn quoted(text: &str) -> Result<(String, &str), String> {
    let Some(inner) = text.strip_prefix('\'') else {
        let end = text.find(['.', '[', ']']).unwrap_or(text.len());
        return Err(format!("expected single quoted string but got {}", &text[..end]));
    };
    let mut name = String::new();
    let mut chars = inner.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\'' => {
                let tail = &inner[at + 1..];
                return match tail.strip_prefix(']') {
                    Some(tail) => Ok((name, tail)),
                    None if tail.is_empty() => Err("unexpected end of JSON path".into()),
                    None => Err(format!("expected ] but got {tail}")),
                };
            }
            '\\' => match chars.next().map(|(_, c)| c) {
                Some('a') => name.push('\u{7}'),
                Some('b') => name.push('\u{8}'),
                Some('f') => name.push('\u{c}'),
                Some('n') => name.push('\n'),
                Some('r') => name.push('\r'),
                Some('t') => name.push('\t'),
                Some('v') => name.push('\u{b}'),
                Some(c @ ('\'' | '\\')) => name.push(c),
                other => return Err(format!("invalid string literal: invalid escape char \\{}", other.unwrap_or(' '))),
            },
            c => name.push(c),
        }
    }
    Err("unexpected end of JSON path".into())
}

/// What one rule may cost to run.
pub const RULE_RUN_LIMIT: u64 = PER_CALL_LIMIT;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::tests::expect;

    fn check(value: Value, expected: &[&str]) {
        let mut errors = Errors::default();
        schema(&At::new(&value, "s"), false, &mut errors);
        expect(&errors.0, expected, &value);
    }

    #[test]
    fn rules_compile_and_cost_little() {
        let rule = |rule: &str| json!([{"rule": rule}]);
        check(
            json!({"type": "object", "x-kubernetes-validations": rule("self.a < self.b"),
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}}),
            &[],
        );
        check(
            json!({"type": "object", "x-kubernetes-validations": rule("self.c"), "properties": {"a": {"type": "integer"}}}),
            &[
                "s.x-kubernetes-validations[0].rule: Invalid value: {\"FieldPath\":\"\",\"Message\":\"\",\"MessageExpression\":\"\",\"OptionalOldSelf\":null,\"Reason\":null,\"Rule\":\"self.c\"}: compilation failed: ERROR: <input>:1:5: undefined field 'c'\n | self.c\n | ....^",
            ],
        );
        check(
            json!({"type": "object", "properties": {"l": {"type": "array", "items": {"type": "string"},
            "x-kubernetes-validations": rule("self.all(x, self.all(y, x != y))")}}}),
            &[
                "s.properties[l].x-kubernetes-validations[0].rule: Forbidden: estimated rule cost exceeds budget by factor of more than 100x (try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)",
                "s.properties[l].x-kubernetes-validations[0].rule: Forbidden: contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema",
                "s: Forbidden: x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema exceeds budget by factor of more than 100x (try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)",
            ],
        );
        check(
            json!({"type": "object", "properties": {"l": {"type": "array", "maxItems": 5, "items": {"type": "string", "maxLength": 5,
            "x-kubernetes-validations": rule("self == oldSelf")}}}}),
            &[
                "s.properties[l].items.x-kubernetes-validations[0].rule: Invalid value: \"self == oldSelf\": oldSelf cannot be used on the uncorrelatable portion of the schema within s.properties[l]",
            ],
        );
        check(
            json!({"type": "object", "properties": {"i": {"type": "integer", "x-kubernetes-validations":
            [{"rule": "self > 0", "optionalOldSelf": true}, {"rule": "self"}, {"rule": "self > 1", "messageExpression": "1"}]}}}),
            &[
                "s.properties[i].x-kubernetes-validations[0].optionalOldSelf: Invalid value: true: may not be set if oldSelf is not used in rule",
                "s.properties[i].x-kubernetes-validations[1].rule: Invalid value: {\"FieldPath\":\"\",\"Message\":\"\",\"MessageExpression\":\"\",\"OptionalOldSelf\":null,\"Reason\":null,\"Rule\":\"self\"}: cel expression must evaluate to a bool",
                "s.properties[i].x-kubernetes-validations[2].messageExpression: Invalid value: {\"FieldPath\":\"\",\"Message\":\"\",\"MessageExpression\":\"1\",\"OptionalOldSelf\":null,\"Reason\":null,\"Rule\":\"self > 1\"}: messageExpression must evaluate to a string",
            ],
        );
    }

    #[test]
    fn paths_lead_to_fields() {
        let schema = json!({"properties": {"a": {"properties": {"b.c": {"type": "string"}}}, "m": {"additionalProperties": {"type": "string"}}}});
        for (path, expect) in [
            (".a['b.c']", Ok("a.b.c")),
            (".m.x", Ok("m[x]")),
            (".z", Err("does not refer to a valid field")),
            ("a", Err("expected [ or . but got: a")),
            (".a[0]", Err("expected single quoted string but got 0")),
        ] {
            let found = field_path(path, &schema, true).map(|(path, _)| path.as_str().to_string());
            assert_eq!(found.as_deref().map_err(|e| e.as_str()), expect, "{path}");
        }
    }
}
