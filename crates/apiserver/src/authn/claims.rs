//! What an issuer's claims come to: a user, or nobody.
//!
//! Follows `k8s.io/apiserver/plugin/pkg/authenticator/token/oidc`: mappings first, then rules over the claims, then rules
//! over the user. Signatures and times were looked at before.

use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};

use cel::decl::{ListKind, Shape};
use cel::{Decl, Env, PER_CALL_LIMIT, Program, Structs, Type, Value as Cel};
use meta::{FieldError, FieldPath};
use serde_json::{Value, json};

use super::User;
use super::configuration::{JwtAuthenticator, Mapping};

const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";
const NOT_TEXTS: &str = "expression must return a string or a list of strings";

/// The shape of `user`.
fn user_decl() -> &'static Arc<Decl> {
    static USER: OnceLock<Arc<Decl>> = OnceLock::new();
    USER.get_or_init(|| {
        let text = || Decl::leaf(Shape::String);
        let texts = || Decl::leaf(Shape::List { item: text(), kind: ListKind::Atomic });
        Decl::with_fields(
            "kubernetes.UserInfo",
            [
                ("username", text()),
                ("uid", text()),
                ("groups", texts()),
                ("extra", Decl::leaf(Shape::Map { value: texts() })),
            ],
        )
    })
}

/// An expression over claims or a user.
#[derive(Debug)]
struct Expression {
    text: String,
    program: Program,
    message: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Over {
    Claims,
    User,
}

/// Compiles, and asks for a bool where a rule stands.
fn compile(text: &str, message: &str, over: Over, rule: bool) -> Result<Expression, String> {
    let nothing = Structs::of([&**user_decl()]);
    let env = Env::new(&nothing);
    let env = match over {
        Over::Claims => env.var("claims", Type::map(Type::String, Type::Dyn)),
        Over::User => env.var("user", user_decl().ty()),
    };
    let program = env.compile(text).map_err(|issues| format!("compilation failed: {issues}"))?;
    if rule && *program.output() != Type::Bool {
        return Err("must evaluate to bool".into());
    }
    Ok(Expression { text: text.into(), program, message: message.into() })
}

impl Expression {
    fn over<'a>(&self, name: &str, value: Cel<'a>) -> Result<Cel<'a>, String> {
        let vars = &[(name, value)][..];
        let (result, _) = self.program.eval(&vars, PER_CALL_LIMIT);
        result.map_err(|error| format!("expression '{}' resulted in error: {error}", self.text))
    }

    fn holds(&self, name: &str, value: Cel<'_>) -> Result<(), String> {
        match self.over(name, value)? {
            Cel::Bool(true) => Ok(()),
            Cel::Bool(false) => Err(format!("validation expression '{}' failed: {}", self.text, self.message)),
            _ => Err("validation expression must return a boolean".into()),
        }
    }
}

/// A field of the user: a claim with a prefix, or an expression.
#[derive(Debug)]
enum From {
    Nothing,
    Claim(String, String),
    Expression(Box<Expression>),
}

/// Makes users of claims.
#[derive(Debug)]
pub struct Mapper {
    username: From,
    groups: From,
    uid: From,
    extra: Vec<(String, Expression)>,
    required: Vec<(String, String)>,
    rules: Vec<Expression>,
    user_rules: Vec<Expression>,
}

/// Collects what is wrong.
struct Checks<'e> {
    errors: &'e mut Vec<FieldError>,
    email: bool,
    verified: bool,
}

impl Checks<'_> {
    fn compile(&mut self, path: &FieldPath, text: &str, message: &str, over: Over, rule: bool) -> Option<Expression> {
        let compiled = compile(text, message, over, rule);
        compiled.map_err(|why| self.errors.push(FieldError::invalid(path, text, why))).ok()
    }

    fn note(&mut self, expression: &Expression) {
        self.verified |= expression.program.fields_of("claims").contains(&"email_verified");
    }

    fn mapping(&mut self, mapping: &Mapping, path: &FieldPath, required: bool, prefixed: bool) -> From {
        match (&*mapping.claim, &*mapping.expression) {
            ("", "") if required => {
                self.errors.push(FieldError::required(path, "claim or expression is required"));
            }
            ("", "") => {}
            ("", text) => {
                if let Some(prefix) = &mapping.prefix {
                    let why = "may not be specified when expression is set";
                    self.errors.push(FieldError::invalid(&path.child("prefix"), &**prefix, why));
                }
                let compiled = self.compile(&path.child("expression"), text, "", Over::Claims, false);
                return compiled.map_or(From::Nothing, |e| From::Expression(Box::new(e)));
            }
            (claim, "") => {
                if prefixed && mapping.prefix.is_none() {
                    let why =
                        "prefix is required when claim is set. It can be set to an empty string to disable prefixing";
                    self.errors.push(FieldError::required(&path.child("prefix"), why));
                }
                return From::Claim(claim.into(), mapping.prefix.clone().unwrap_or_default());
            }
            _ => self.errors.push(FieldError::invalid(path, "", "claim and expression can't both be set")),
        }
        From::Nothing
    }
}

/// What keeps a key from being `domain/path`, each with the part it is wrong in.
pub fn not_domain_prefixed(key: &str) -> Vec<(&str, String)> {
    let (domain, rest) = key.split_once('/').unwrap_or((key, ""));
    if domain.is_empty() || rest.is_empty() {
        return vec![(key, "must be a domain-prefixed path (such as \"acme.io/foo\")".into())];
    }
    let mut wrong: Vec<(&str, String)> =
        meta::formats::dns_subdomain(domain).into_iter().map(|why| (domain, why)).collect();
    let of_path = |b: u8| b.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:".contains(&b);
    if !rest.bytes().all(of_path) {
        let pattern = r"[A-Za-z0-9/\-._~%!$&'()*+,;=:]+";
        wrong.push((rest, format!("Invalid path (regex used for validation is '{pattern}')")));
    }
    wrong
}

/// Whether a key is `domain/path`, in small letters, of a domain that is not Kubernetes' own.
fn check_extra_key(key: &str, path: &FieldPath, errors: &mut Vec<FieldError>) {
    for (said, why) in not_domain_prefixed(key) {
        errors.push(if key.is_empty() { FieldError::required(path, "") } else { FieldError::invalid(path, said, why) });
    }
    if key.to_lowercase() != key {
        errors.push(FieldError::invalid(path, key, "must be lowercase"));
    }
    let domain = key.split_once('/').map_or("", |(domain, _)| domain);
    let own = |own: &str| domain == own || domain.strip_suffix(own).is_some_and(|rest| rest.ends_with('.'));
    if own("kubernetes.io") || own("k8s.io") {
        let why = "k8s.io, kubernetes.io and their subdomains are reserved for Kubernetes use";
        errors.push(FieldError::invalid(path, key, why));
    }
}

impl Mapper {
    /// Of a configuration, with what is wrong with it.
    pub fn compile(said: &JwtAuthenticator, path: &FieldPath, errors: &mut Vec<FieldError>) -> Self {
        let mut checks = Checks { errors, email: false, verified: false };
        let (mut required, mut rules) = (Vec::new(), Vec::new());
        let mut seen = BTreeSet::new();
        for (at, rule) in said.claim_validation_rules.iter().enumerate() {
            let path = path.child("claimValidationRules").index(at);
            let twice = !seen.insert((&*rule.claim, &*rule.expression));
            match (&*rule.claim, &*rule.expression) {
                ("", "") => checks.errors.push(FieldError::required(&path, "claim or expression is required")),
                (claim, "") => {
                    if !rule.message.is_empty() {
                        let why = "may not be specified when claim is set";
                        checks.errors.push(FieldError::invalid(&path.child("message"), &*rule.message, why));
                    }
                    if twice {
                        checks.errors.push(FieldError::duplicate(&path.child("claim"), claim));
                    }
                    required.push((claim.to_string(), rule.required_value.clone()));
                }
                ("", text) => {
                    if !rule.required_value.is_empty() {
                        let why = "may not be specified when expression is set";
                        let path = path.child("requiredValue");
                        checks.errors.push(FieldError::invalid(&path, &*rule.required_value, why));
                    }
                    let path = path.child("expression");
                    if twice {
                        checks.errors.push(FieldError::duplicate(&path, text));
                    } else if let Some(rule) = checks.compile(&path, text, &rule.message, Over::Claims, true) {
                        checks.note(&rule);
                        rules.push(rule);
                    }
                }
                (claim, _) => {
                    let why = "claim and expression can't both be set";
                    checks.errors.push(FieldError::invalid(&path, claim, why));
                }
            }
        }
        let mappings = path.child("claimMappings");
        let username = checks.mapping(&said.claim_mappings.username, &mappings.child("username"), true, true);
        if let From::Expression(expression) = &username {
            checks.email |= expression.program.fields_of("claims").contains(&"email");
            checks.note(expression);
        }
        let groups = checks.mapping(&said.claim_mappings.groups, &mappings.child("groups"), false, true);
        let uid = checks.mapping(&said.claim_mappings.uid, &mappings.child("uid"), false, false);
        let extra = Self::extra(said, &mappings, &mut checks);
        if checks.email && !checks.verified {
            let why = "claims.email_verified must be used in claimMappings.username.expression or claimMappings.extra[*].valueExpression or claimValidationRules[*].expression when claims.email is used in claimMappings.username.expression";
            let path = mappings.child("username").child("expression");
            checks.errors.push(FieldError::invalid(&path, &*said.claim_mappings.username.expression, why));
        }
        let mut user_rules = Vec::new();
        let mut seen = BTreeSet::new();
        for (at, rule) in said.user_validation_rules.iter().enumerate() {
            let path = path.child("userValidationRules").index(at).child("expression");
            if rule.expression.is_empty() {
                checks.errors.push(FieldError::required(&path, ""));
            } else if !seen.insert(&rule.expression) {
                checks.errors.push(FieldError::duplicate(&path, &*rule.expression));
            } else {
                user_rules.extend(checks.compile(&path, &rule.expression, &rule.message, Over::User, true));
            }
        }
        Self { username, groups, uid, extra, required, rules, user_rules }
    }

    fn extra(said: &JwtAuthenticator, mappings: &FieldPath, checks: &mut Checks<'_>) -> Vec<(String, Expression)> {
        let mut out: Vec<(String, Expression)> = Vec::new();
        let mut seen = BTreeSet::new();
        for (at, mapping) in said.claim_mappings.extra.iter().enumerate() {
            let path = mappings.child("extra").index(at);
            check_extra_key(&mapping.key, &path.child("key"), checks.errors);
            let value = path.child("valueExpression");
            if !seen.insert(&mapping.key) {
                checks.errors.push(FieldError::duplicate(&path.child("key"), &*mapping.key));
            } else if mapping.value_expression.is_empty() {
                checks.errors.push(FieldError::required(&value, ""));
            } else if let Some(found) = checks.compile(&value, &mapping.value_expression, "", Over::Claims, false) {
                checks.note(&found);
                out.push((mapping.key.clone(), found));
            }
        }
        out
    }

    /// The user these claims make, or why they make none.
    pub fn user(&self, claims: &Value) -> Result<User, String> {
        let said = || Cel::json(claims);
        let mut user = User { name: self.username(claims)?, ..User::default() };
        user.groups = match &self.groups {
            From::Nothing => Vec::new(),
            From::Claim(claim, prefix) => match claims.get(claim) {
                None => Vec::new(),
                Some(value) => claim_texts(value)
                    .ok_or_else(|| {
                        format!("parse groups claim {claim:?}: {value} is no string and no list of strings")
                    })?
                    .into_iter()
                    .map(|group| format!("{prefix}{group}"))
                    .collect(),
            },
            From::Expression(expression) => expression
                .over("claims", said())
                .and_then(|value| texts(&value))
                .map_err(|why| format!("error evaluating group claim expression: {why}"))?,
        };
        user.uid = match &self.uid {
            From::Nothing => String::new(),
            From::Claim(claim, _) => {
                claim_text(claims, claim).map_err(|why| format!("parse uid claim {claim:?}: {why}"))?
            }
            From::Expression(expression) => match expression.over("claims", said()) {
                Ok(Cel::String(text)) => text.to_string(),
                Ok(_) => {
                    return Err(
                        "error evaluating uid claim expression: uid claim expression must return a string".into()
                    );
                }
                Err(why) => return Err(format!("error evaluating uid claim expression: {why}")),
            },
        };
        if let Some(id) = claims["jti"].as_str().filter(|id| !id.is_empty()) {
            user.extra.insert(CREDENTIAL_ID.into(), vec![format!("JTI={id}")]);
        }
        for (key, expression) in &self.extra {
            let values = expression.over("claims", said()).and_then(|value| texts(&value));
            let values =
                values.map_err(|why| format!("error evaluating extra claim expression: {}: {why}", expression.text))?;
            if !values.is_empty() {
                user.extra.insert(key.clone(), values);
            }
        }
        for (claim, wanted) in &self.required {
            let Some(value) = claims.get(claim) else {
                return Err(format!("required claim {claim} not present in ID token"));
            };
            let got = value.as_str().ok_or_else(|| format!("parse claim {claim}: {value} is no string"))?;
            if got != wanted {
                return Err(format!("required claim {claim} value does not match. Got = {got}, want = {wanted}"));
            }
        }
        for rule in &self.rules {
            rule.holds("claims", said())
                .map_err(|why| format!("error evaluating claim validation expression: {why}"))?;
        }
        if !self.user_rules.is_empty() {
            let shown = json!({"username": user.name, "uid": user.uid, "groups": user.groups, "extra": user.extra});
            for rule in &self.user_rules {
                let value = Cel::of(&shown, user_decl()).map_err(|e| e.to_string())?;
                rule.holds("user", value)
                    .map_err(|why| format!("error evaluating user info validation rule: {why}"))?;
            }
        }
        Ok(user)
    }

    fn username(&self, claims: &Value) -> Result<String, String> {
        match &self.username {
            From::Expression(expression) => match expression.over("claims", Cel::json(claims)) {
                Ok(Cel::String(text)) if text.is_empty() => {
                    Err("empty username via CEL expression is not allowed".into())
                }
                Ok(Cel::String(text)) => Ok(text.to_string()),
                Ok(_) => {
                    Err("error evaluating username claim expression: username claim expression must return a string"
                        .into())
                }
                Err(why) => Err(format!("error evaluating username claim expression: {why}")),
            },
            From::Claim(claim, prefix) => {
                let name =
                    claim_text(claims, claim).map_err(|why| format!("parse username claims {claim:?}: {why}"))?;
                // An address somebody only says is theirs names nobody.
                if claim == "email" && claims.get("email_verified").is_some_and(|verified| *verified != true) {
                    return Err("email not verified".into());
                }
                Ok(format!("{prefix}{name}"))
            }
            From::Nothing => Err("no claim names the user".into()),
        }
    }
}

fn claim_text(claims: &Value, claim: &str) -> Result<String, String> {
    let value = claims.get(claim).ok_or("claim not present")?;
    value.as_str().map(String::from).ok_or_else(|| format!("{value} is no string"))
}

/// A string, or a list of them.
fn claim_texts(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(one) => Some(vec![one.clone()]),
        Value::Array(many) => many.iter().map(|v| v.as_str().map(String::from)).collect(),
        Value::Null => Some(Vec::new()),
        _ => None,
    }
}

/// The same of an expression's value; empty strings are nothing.
fn texts(value: &Cel<'_>) -> Result<Vec<String>, String> {
    let text = |value: &Cel<'_>| match value {
        Cel::String(text) => Ok(text.to_string()),
        _ => Err(NOT_TEXTS.to_string()),
    };
    let all = match value {
        Cel::Null => Vec::new(),
        Cel::String(_) => vec![text(value)?],
        Cel::List(list) => {
            let items = list.items().map_err(|e| e.to_string())?;
            items.iter().map(text).collect::<Result<_, _>>()?
        }
        _ => return Err(NOT_TEXTS.into()),
    };
    Ok(all.into_iter().filter(|text| !text.is_empty()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The configuration's mappings and rules.
    fn mapper(said: Value) -> Result<Mapper, String> {
        let said: JwtAuthenticator = serde_json::from_value(said).unwrap();
        let mut errors = Vec::new();
        let mapper = Mapper::compile(&said, &FieldPath::new("jwt").index(0), &mut errors);
        if errors.is_empty() { Ok(mapper) } else { Err(crate::document::joined(&errors)) }
    }

    #[test]
    fn claims_become_users() {
        let claims = json!({
            "sub": "1", "email": "jane@example.com", "email_verified": true, "hd": "example.com", "jti": "x",
            "roles": ["dev", "ops", ""], "team": {"name": "blue"}, "exp": 200, "nbf": 100,
        });
        let simple = json!({"claim": "sub", "prefix": "oidc:"});
        for (said, expect) in [
            (
                json!({"claimMappings": {"username": simple, "groups": {"claim": "roles", "prefix": "g:"}}}),
                "oidc:1 [g:dev g:ops g:] ",
            ),
            (
                json!({"claimMappings": {"username": simple, "groups": {"claim": "hd", "prefix": ""}, "uid": {"claim": "sub"}}}),
                "oidc:1 [example.com] 1",
            ),
            (
                json!({"claimMappings": {"username": {"claim": "nobody", "prefix": ""}}}),
                "parse username claims \"nobody\": claim not present",
            ),
            (
                json!({"claimMappings": {
                    "username": {"expression": "claims.email_verified ? claims.email : ''"},
                    "groups": {"expression": "claims.roles + [claims.team.name]"},
                    "uid": {"expression": "claims.sub"},
                    "extra": [{"key": "example.com/team", "valueExpression": "claims.team.name"}]}}),
                "jane@example.com [dev ops blue] 1 example.com/team=blue",
            ),
            (
                json!({"claimMappings": {"username": {"expression": "claims.missing"}}}),
                "error evaluating username claim expression: expression 'claims.missing' resulted in error: no such key: missing",
            ),
            (
                json!({"claimMappings": {"username": {"expression": "claims.exp"}}}),
                "error evaluating username claim expression: username claim expression must return a string",
            ),
            (
                json!({"claimMappings": {"username": simple}, "claimValidationRules": [{"claim": "hd", "requiredValue": "other"}]}),
                "required claim hd value does not match. Got = example.com, want = other",
            ),
            (
                json!({"claimMappings": {"username": simple}, "claimValidationRules": [{"expression": "claims.exp - claims.nbf <= 50", "message": "too long"}]}),
                "error evaluating claim validation expression: validation expression 'claims.exp - claims.nbf <= 50' failed: too long",
            ),
            (
                json!({"claimMappings": {"username": simple}, "userValidationRules": [{"expression": "!user.username.startsWith('oidc:')", "message": "reserved"}]}),
                "error evaluating user info validation rule: validation expression '!user.username.startsWith('oidc:')' failed: reserved",
            ),
        ] {
            let found = match mapper(said.clone()).unwrap().user(&claims) {
                Ok(mut user) => {
                    assert_eq!(user.extra.remove(CREDENTIAL_ID), Some(vec!["JTI=x".to_string()]));
                    let extra: String = user.extra.iter().map(|(k, v)| format!(" {k}={}", v.join(","))).collect();
                    format!("{} [{}] {}{extra}", user.name, user.groups.join(" "), user.uid)
                }
                Err(why) => why,
            };
            assert_eq!(found, expect, "{said}");
        }
    }

    #[test]
    fn an_address_nobody_verified_names_nobody() {
        let mapper = mapper(json!({"claimMappings": {"username": {"claim": "email", "prefix": ""}}})).unwrap();
        let user = |claims: Value| mapper.user(&claims).map(|user| user.name);
        assert_eq!(user(json!({"email": "a@b"})).unwrap(), "a@b");
        assert_eq!(user(json!({"email": "a@b", "email_verified": true})).unwrap(), "a@b");
        assert_eq!(user(json!({"email": "a@b", "email_verified": false})).unwrap_err(), "email not verified");
    }

    #[test]
    fn mappings_are_refused_as_upstream_refuses_them() {
        let with = |mappings: Value| json!({"claimMappings": mappings});
        for (said, expect) in [
            (with(json!({})), "jwt[0].claimMappings.username: Required value: claim or expression is required"),
            (
                with(json!({"username": {"claim": "sub"}})),
                "jwt[0].claimMappings.username.prefix: Required value: prefix is required when claim is set. It can be set to an empty string to disable prefixing",
            ),
            (
                with(json!({"username": {"claim": "sub", "expression": "claims.sub"}})),
                "jwt[0].claimMappings.username: Invalid value: \"\": claim and expression can't both be set",
            ),
            (
                with(json!({"username": {"expression": "claims.email"}})),
                "claims.email_verified must be used in claimMappings.username.expression",
            ),
            (
                with(json!({"username": {"expression": "claims."}})),
                "jwt[0].claimMappings.username.expression: Invalid value: \"claims.\": compilation failed: ERROR: <input>:1:8: Syntax error",
            ),
            (
                with(
                    json!({"username": {"claim": "sub", "prefix": ""}, "extra": [{"key": "foo", "valueExpression": "''"}]}),
                ),
                "jwt[0].claimMappings.extra[0].key: Invalid value: \"foo\"",
            ),
            (
                with(
                    json!({"username": {"claim": "sub", "prefix": ""}, "extra": [{"key": "x.k8s.io/a", "valueExpression": "''"}]}),
                ),
                "reserved for Kubernetes use",
            ),
            (
                json!({"claimMappings": {"username": {"claim": "sub", "prefix": ""}}, "claimValidationRules": [{"expression": "claims.a"}]}),
                "jwt[0].claimValidationRules[0].expression: Invalid value: \"claims.a\": must evaluate to bool",
            ),
            (
                json!({"claimMappings": {"username": {"claim": "sub", "prefix": ""}}, "userValidationRules": [{"expression": "user.name == ''"}]}),
                "undefined field 'name'",
            ),
        ] {
            let why = mapper(said.clone()).unwrap_err();
            assert!(why.contains(expect), "{said}: {why}");
        }
    }
}
