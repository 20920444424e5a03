//! admissionregistration.k8s.io: webhooks and admission policies.

use meta::{FieldError, Value};
use serde_json::Map;

use crate::cells::{age, name};
use crate::strategy::{Context, Strategy};
use crate::validate::{At, Errors, expressions, formats, selectors, webhooks};
use meta::Tree;

kinds! {
    /// Both kinds of webhook configuration.
    Webhooks: "Name|Webhooks#|Age";
    ValidatingPolicy: "Name|Validations#|ParamKind|Age";
    MutatingPolicy: "Name|Mutations#|ParamKind|Age";
    /// Both kinds of policy binding.
    PolicyBinding: "Name|PolicyName|ParamRef|Age";
}

const OPERATIONS: [&str; 5] = ["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
const WEBHOOK_SECONDS: i64 = 10;

fn default_rules(holder: &mut Value, path: &str) {
    for rule in holder.list_mut(path) {
        rule.or_put("scope", "*");
    }
}

/// Which requests a webhook or policy sees.
fn check_rule(rule: &At<'_>, errors: &mut Errors) {
    let operations = rule.child("operations");
    if operations.value.list("").is_empty() {
        errors.required(&operations, "");
    }
    for operation in operations.items() {
        errors.one_of(&operation, &OPERATIONS);
    }
    for (field, others) in [("operations", "operations"), ("apiGroups", "API groups"), ("apiVersions", "API versions")]
    {
        let list = rule.child(field);
        if field != "operations" && list.value.list("").is_empty() {
            errors.required(&list, "");
        }
        if list.value.list("").len() > 1 && list.items().any(|i| i.str() == "*") {
            errors.invalid(&list, format!("if '*' is present, must not specify other {others}"));
        }
    }
    for version in rule.each("apiVersions").filter(At::blank) {
        errors.required(&version, "");
    }
    let resources = rule.child("resources");
    let has = |text: &str| resources.items().any(|r| r.str() == text);
    if resources.value.list("").is_empty() {
        errors.required(&resources, "");
    }
    for resource in resources.items() {
        match resource.str().split_once('/') {
            _ if resource.blank() => errors.required(&resource, ""),
            Some((name, sub)) if sub != "*" && has(&format!("{name}/*")) => {
                errors.invalid(&resource, format!("if '{name}/*' is present, must not specify {}", resource.str()));
            }
            Some((name, sub)) if name != "*" && has(&format!("*/{sub}")) => {
                errors.invalid(&resource, format!("if '*/{sub}' is present, must not specify {}", resource.str()));
            }
            _ => {}
        }
    }
    if resources.value.list("").len() > 1 && has("*/*") {
        errors.invalid(&resources, "if '*/*' is present, must not specify other resources");
    }
    if has("*") && resources.items().any(|r| r.str() != "*" && !r.str().contains('/')) {
        errors.invalid(&resources, "if '*' is present, must not specify other resources without subresources");
    }
    errors.may_one_of(&rule.child("scope"), &["*", "Cluster", "Namespaced"]);
}

fn check_webhook(hook: &At<'_>, errors: &mut Errors) {
    let name = hook.child("name");
    if errors.need(&name, "") {
        let complaints = formats::dns_subdomain(name.str());
        if complaints.is_empty() && name.str().split('.').count() < 3 {
            errors.invalid(&name, "should be a domain with at least three segments separated by dots");
        }
        for complaint in complaints {
            errors.invalid(&name, complaint);
        }
    }
    for rule in hook.each("rules") {
        check_rule(&rule, errors);
    }
    errors.may_one_of(&hook.child("failurePolicy"), &["Fail", "Ignore"]);
    errors.may_one_of(&hook.child("matchPolicy"), &["Equivalent", "Exact"]);
    errors.may_one_of(&hook.child("reinvocationPolicy"), &["IfNeeded", "Never"]);
    let effects = hook.child("sideEffects");
    if effects.there() {
        errors.one_of(&effects, &["None", "NoneOnDryRun"]);
    } else {
        errors.required(&effects, "must specify one of None, NoneOnDryRun");
    }
    let timeout = hook.child("timeoutSeconds");
    if timeout.number().is_some_and(|s| !(1..=30).contains(&s)) {
        errors.invalid(&timeout, "the timeout value must be between 1 and 30 seconds");
    }
    selectors::label_selector(&hook.child("namespaceSelector"), errors);
    selectors::label_selector(&hook.child("objectSelector"), errors);
    webhooks::client(&hook.child("clientConfig"), errors);
    let versions = hook.child("admissionReviewVersions");
    if versions.value.list("").is_empty() {
        errors.required(&versions, "must specify one of v1, v1beta1");
    } else {
        webhooks::review_versions(&versions, errors);
    }
    for condition in hook.each("matchConditions") {
        errors.need_format(&condition.child("name"), formats::qualified_name);
        errors.need(&condition.child("expression"), "");
    }
    errors.unique(hook.each("matchConditions").map(|c| c.child("name")));
    expressions::conditions(&expressions::Scope::webhook(), hook, errors);
}

impl Strategy for Webhooks {
    fn default(&self, object: &mut Value) {
        let mutating = object.text("kind").starts_with("Mutating");
        for hook in object.list_mut("webhooks") {
            hook.or_put("failurePolicy", "Fail");
            hook.or_put("matchPolicy", "Equivalent");
            hook.or_put("namespaceSelector", Map::new());
            hook.or_put("objectSelector", Map::new());
            hook.or_put("timeoutSeconds", WEBHOOK_SECONDS);
            if mutating {
                hook.or_put("reinvocationPolicy", "Never");
            }
            default_rules(hook, "rules");
            if let Some(service) = hook.at_mut("clientConfig.service") {
                service.or_put("port", 443);
            }
        }
    }

    fn validate_create(&self, _cx: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let (at, mut errors) = (At::root(object), Errors::default());
        for hook in at.each("webhooks") {
            check_webhook(&hook, &mut errors);
        }
        errors.unique(at.each("webhooks").map(|h| h.child("name")));
        errors.0
    }

    fn tracks_generation(&self, _has_status: bool) -> bool {
        true
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }

    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        vec![name(object), object.list("webhooks").len().into(), age(object, now)]
    }
}

fn policy_row(object: &Value, rules: &str, now: &str) -> Vec<Value> {
    let param = object.at("spec.paramKind");
    let param =
        if param.is_null() { "<unset>".into() } else { format!("{}/{}", param.text("apiVersion"), param.text("kind")) };
    vec![name(object), object.list(rules).len().into(), param.into(), age(object, now)]
}

fn default_matches(holder: &mut Value, path: &str) {
    if let Some(matches) = holder.at_mut(path) {
        matches.or_put("matchPolicy", "Equivalent");
        matches.or_put("namespaceSelector", Map::new());
        matches.or_put("objectSelector", Map::new());
        default_rules(matches, "resourceRules");
        default_rules(matches, "excludeResourceRules");
    }
}

/// Matching and parameters, which both kinds of policies have. Expressions are compiled by who evaluates them.
fn check_policy(spec: &At<'_>, errors: &mut Errors) {
    errors.one_of(&spec.child("failurePolicy"), &["Fail", "Ignore"]);
    let kind = spec.child("paramKind");
    if kind.there() {
        errors.need(&kind.child("apiVersion"), "");
        errors.need(&kind.child("kind"), "");
    }
    let matches = spec.child("matchConstraints");
    if !matches.there() {
        errors.required(&matches, "");
    } else if matches.value.list("resourceRules").is_empty() {
        errors.required(&matches.child("resourceRules"), "");
    }
    for rule in ["resourceRules", "excludeResourceRules"].iter().flat_map(|list| matches.each(list)) {
        check_rule(&rule, errors);
    }
    selectors::label_selector(&matches.child("namespaceSelector"), errors);
    selectors::label_selector(&matches.child("objectSelector"), errors);
    for condition in spec.each("matchConditions") {
        errors.need(&condition.child("name"), "");
        errors.need(&condition.child("expression"), "");
    }
    for variable in spec.each("variables") {
        errors.need(&variable.child("name"), "name is not specified");
        errors.need(&variable.child("expression"), "expression is not specified");
    }
    errors.unique(spec.each("matchConditions").map(|c| c.child("name")));
    expressions::policy(spec, errors);
}

impl Strategy for ValidatingPolicy {
    fn allow_unconditional_update(&self) -> bool {
        false
    }

    fn default(&self, object: &mut Value) {
        object.or_put("spec.failurePolicy", "Fail");
        default_matches(object, "spec.matchConstraints");
    }

    fn validate_create(&self, _cx: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let (spec, mut errors) = (At::new(object.at("spec"), "spec"), Errors::default());
        check_policy(&spec, &mut errors);
        let (validations, audits) = (spec.child("validations"), spec.child("auditAnnotations"));
        if validations.value.list("").is_empty() && audits.value.list("").is_empty() {
            let detail = "validations or auditAnnotations must contain at least one item";
            errors.required(&validations, detail);
            errors.required(&audits, detail);
        }
        for validation in validations.items() {
            let (expression, message) = (validation.child("expression"), validation.child("message"));
            if expression.str().trim().is_empty() {
                errors.required(&expression, "expression is not specified");
            }
            if message.there() && message.str().trim().is_empty() {
                errors.invalid(&message, "message must be non-empty if specified");
            } else if message.str().trim().contains('\n') {
                errors.invalid(&message, "message must not contain line breaks");
            }
            errors.may_one_of(
                &validation.child("reason"),
                &["Forbidden", "Invalid", "RequestEntityTooLarge", "Unauthorized"],
            );
        }
        for audit in audits.items() {
            errors.need_format(&audit.child("key"), formats::qualified_name);
            errors.need(&audit.child("valueExpression"), "valueExpression is not specified");
        }
        errors.0
    }

    fn validate_update(&self, cx: &Context<'_>, object: &Value, _old: &Value) -> Vec<FieldError> {
        if cx.subresource == "status" { Vec::new() } else { self.validate_create(cx, object) }
    }

    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        policy_row(object, "spec.validations", now)
    }
}

impl Strategy for MutatingPolicy {
    fn allow_unconditional_update(&self) -> bool {
        false
    }

    fn default(&self, object: &mut Value) {
        object.or_put("spec.failurePolicy", "Fail");
        default_matches(object, "spec.matchConstraints");
    }

    fn validate_create(&self, _cx: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let (spec, mut errors) = (At::new(object.at("spec"), "spec"), Errors::default());
        check_policy(&spec, &mut errors);
        let mutations = spec.child("mutations");
        if mutations.value.list("").is_empty() {
            errors.required(&mutations, "mutations must contain at least one item");
        }
        for mutation in mutations.items() {
            errors.need_one_of(&mutation.child("patchType"), &["ApplyConfiguration", "JSONPatch"]);
        }
        errors.need_one_of(&spec.child("reinvocationPolicy"), &["IfNeeded", "Never"]);
        errors.0
    }

    fn tracks_generation(&self, _has_status: bool) -> bool {
        true
    }

    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        policy_row(object, "spec.mutations", now)
    }
}

impl Strategy for PolicyBinding {
    fn allow_unconditional_update(&self) -> bool {
        false
    }

    fn default(&self, object: &mut Value) {
        default_matches(object, "spec.matchResources");
        if let Some(param) = object.at_mut("spec.paramRef") {
            param.or_put("parameterNotFoundAction", "Deny");
        }
    }

    fn validate_create(&self, _cx: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let (spec, mut errors) = (At::new(object.at("spec"), "spec"), Errors::default());
        errors.need_format(&spec.child("policyName"), formats::dns_subdomain);
        let param = spec.child("paramRef");
        if param.there() {
            let (name, selector) = (param.child("name"), param.child("selector"));
            match (name.blank(), selector.there()) {
                (true, false) => errors.required(&param, "one of name or selector must be specified"),
                (false, true) => errors.forbidden(&name, "name and selector are mutually exclusive"),
                _ => selectors::label_selector(&selector, &mut errors),
            }
            errors.need_one_of(&param.child("parameterNotFoundAction"), &["Allow", "Deny"]);
        }
        for rule in
            ["resourceRules", "excludeResourceRules"].iter().flat_map(|list| spec.child("matchResources").each(list))
        {
            check_rule(&rule, &mut errors);
        }
        let actions = spec.child("validationActions");
        if object.text("kind").starts_with("Validating") {
            if actions.value.list("").is_empty() {
                errors.required(&actions, "at least one validation action is required");
            }
            for action in actions.items() {
                errors.one_of(&action, &["Audit", "Deny", "Warn"]);
            }
            if ["Deny", "Warn"].iter().all(|a| actions.items().any(|x| x.str() == *a)) {
                errors.invalid(&actions, "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)");
            }
            errors.unique(actions.items());
        }
        errors.0
    }

    fn tracks_generation(&self, _has_status: bool) -> bool {
        true
    }

    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        let param = object.at("spec.paramRef");
        let param = match (param.is_null(), param.text("namespace"), param.text("name")) {
            (true, ..) => "<unset>".to_string(),
            (_, "", param) => param.into(),
            (_, namespace, param) => format!("{namespace}/{param}"),
        };
        vec![name(object), object.text("spec.policyName").into(), param.into(), age(object, now)]
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::validate::tests::expect;

    const CX: Context<'static> = Context::SOMEBODY;

    #[test]
    fn webhooks_are_checked() {
        let check = |changes: Value, expected: &[&str]| {
            let mut hook = json!({"name": "a.b.c", "clientConfig": {"service": {"name": "s", "namespace": "n"}}, "sideEffects": "None",
                "admissionReviewVersions": ["v1"],
                "rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}]});
            for (path, value) in changes.as_object().unwrap() {
                hook.put(path, value.clone());
            }
            let mut object = json!({"kind": "MutatingWebhookConfiguration", "webhooks": [hook]});
            Webhooks.default(&mut object);
            expect(&Webhooks.validate_create(&CX, &object), expected, &object);
            object
        };
        let object = check(json!({}), &[]);
        let hook = &object["webhooks"][0];
        assert_eq!(
            (hook.text("reinvocationPolicy"), hook.int("clientConfig.service.port"), hook["rules"][0].text("scope")),
            ("Never", 443, "*")
        );
        check(
            json!({"name": "a.b"}),
            &[
                "webhooks[0].name: Invalid value: \"a.b\": should be a domain with at least three segments separated by dots",
            ],
        );
        check(
            json!({"clientConfig": {}}),
            &["webhooks[0].clientConfig: Required value: exactly one of url or service is required"],
        );
        check(
            json!({"clientConfig": {"url": "http://x"}}),
            &[
                "webhooks[0].clientConfig.url: Invalid value: \"http\": 'https' is the only allowed URL scheme; desired format: https://host[/path]",
            ],
        );
        check(
            json!({"clientConfig": {"url": "https://u@a/b?c#d"}}),
            &[
                "webhooks[0].clientConfig.url: Invalid value: \"u\": user information is not permitted in the URL",
                "webhooks[0].clientConfig.url: Invalid value: \"d\": fragments are not permitted in the URL",
                "webhooks[0].clientConfig.url: Invalid value: \"c\": query parameters are not permitted in the URL",
            ],
        );
        check(
            json!({"clientConfig": {"service": {"name": "a", "namespace": "b", "path": "a//b"}}}),
            &[
                "webhooks[0].clientConfig.service.path: Invalid value: \"a//b\": must start with a '/'",
                "webhooks[0].clientConfig.service.path: Invalid value: \"a//b\": segment[0] may not be empty",
                "webhooks[0].clientConfig.service.path: Invalid value: \"a//b\": segment[1] may not be empty",
            ],
        );
        check(
            json!({"sideEffects": null, "timeoutSeconds": 31}),
            &[
                "webhooks[0].sideEffects: Required value: must specify one of None, NoneOnDryRun",
                "webhooks[0].timeoutSeconds: Invalid value: 31: the timeout value must be between 1 and 30 seconds",
            ],
        );
        check(
            json!({"rules": [{"operations": ["*", "CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["*", "pods"]}]}),
            &[
                "webhooks[0].rules[0].operations: Invalid value: [\"*\",\"CREATE\"]: if '*' is present, must not specify other operations",
                "webhooks[0].rules[0].resources: Invalid value: [\"*\",\"pods\"]: if '*' is present, must not specify other resources without subresources",
            ],
        );
    }

    #[test]
    fn policies_are_checked() {
        let rule = || json!({"operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*"]});
        let check = |spec: Value, expected: &[&str]| {
            let mut object = json!({"spec": spec});
            ValidatingPolicy.default(&mut object);
            expect(&ValidatingPolicy.validate_create(&CX, &object), expected, &object);
        };
        check(json!({"matchConstraints": {"resourceRules": [rule()]}, "validations": [{"expression": "true"}]}), &[]);
        check(
            json!({"validations": [{"expression": " "}]}),
            &[
                "spec.matchConstraints: Required value",
                "spec.validations[0].expression: Required value: expression is not specified",
            ],
        );
        let binding = json!({"kind": "ValidatingAdmissionPolicyBinding", "spec": {"policyName": "p"}});
        expect(
            &PolicyBinding.validate_create(&CX, &binding),
            &["spec.validationActions: Required value: at least one validation action is required"],
            &binding,
        );
    }
}
