//! Webhook configurations, and which requests a webhook is asked about.
//!
//! Follows `k8s.io/apiserver/pkg/admission/plugin/webhook` (generic, predicates, rules). The rules know a request only by
//! its names: converting objects to what a rule matched is done elsewhere.

use meta::{Gvr, LabelSelector, Value};
use serde::Deserialize;

use super::client::WebhookClientConfig;
use crate::admission::policy::WebhookConditions;

/// `MutatingWebhookConfiguration` and `ValidatingWebhookConfiguration`, whose webhooks differ in one field.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Configuration {
    pub webhooks: Vec<Webhook>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Webhook {
    /// Where it stands.
    #[serde(skip)]
    pub configuration: String,
    pub name: String,
    pub client_config: WebhookClientConfig,
    pub rules: Vec<Rule>,
    pub failure_policy: String,
    pub match_policy: String,
    pub namespace_selector: Option<Value>,
    pub object_selector: Option<Value>,
    pub side_effects: String,
    pub timeout_seconds: Option<u64>,
    pub admission_review_versions: Vec<String>,
    pub reinvocation_policy: String,
    pub match_conditions: WebhookConditions,
}

/// `RuleWithOperations`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Rule {
    pub operations: Vec<String>,
    pub api_groups: Vec<String>,
    pub api_versions: Vec<String>,
    pub resources: Vec<String>,
    pub scope: Option<String>,
}

/// What rules look at.
pub struct Asked<'a> {
    pub operation: &'a str,
    pub resource: &'a Gvr,
    pub subresource: &'a str,
    pub namespace: &'a str,
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|item| item == "*" || item == wanted)
}

impl Rule {
    pub fn matches(&self, asked: &Asked<'_>) -> bool {
        has(&self.api_groups, &asked.resource.group)
            && has(&self.api_versions, &asked.resource.version)
            && has(&self.operations, asked.operation)
            && self.resources.iter().any(|resource| {
                let (resource, sub) = resource.split_once('/').unwrap_or((resource, ""));
                (resource == "*" || *resource == *asked.resource.resource) && (sub == "*" || sub == asked.subresource)
            })
            && self.in_scope(asked)
    }

    fn in_scope(&self, asked: &Asked<'_>) -> bool {
        let namespaced = !asked.namespace.is_empty() && &*asked.resource.resource != "namespaces";
        match self.scope.as_deref() {
            Some("Namespaced") => namespaced,
            Some("Cluster") => !namespaced,
            _ => true,
        }
    }
}

/// Webhooks are not asked about what configures them.
pub fn is_exempt(resource: &Gvr) -> bool {
    const EXEMPT: [&str; 6] = [
        "validatingwebhookconfigurations",
        "mutatingwebhookconfigurations",
        "validatingadmissionpolicies",
        "validatingadmissionpolicybindings",
        "mutatingadmissionpolicies",
        "mutatingadmissionpolicybindings",
    ];
    &*resource.group == "admissionregistration.k8s.io" && EXEMPT.contains(&&*resource.resource)
}

impl Webhook {
    /// Which of the forms a request has is the one this webhook is asked about: the one requested if a rule names it,
    /// else (`Equivalent`) the first other that a rule names.
    pub fn form<'f>(&self, forms: &'f [Gvr], asked: &Asked<'_>) -> Option<&'f Gvr> {
        let candidates = if self.match_policy == "Exact" { forms.get(..1).unwrap_or_default() } else { forms };
        candidates.iter().find(|form| self.rules.iter().any(|rule| rule.matches(&Asked { resource: form, ..*asked })))
    }

    pub fn ignores_failure(&self) -> bool {
        self.failure_policy == "Ignore"
    }

    /// Whether a dry run may ask it.
    pub fn is_free_of_effects(&self) -> bool {
        matches!(&*self.side_effects, "None" | "NoneOnDryRun")
    }

    /// Whether the selector takes the labels of the object as it was or as it will be.
    pub fn selects_object(&self, object: Option<&Value>, old: Option<&Value>) -> Result<bool, String> {
        let selector = selector(self.object_selector.as_ref())?;
        Ok(selector.is_everything() || [object, old].into_iter().flatten().any(|o| selector.matches(&labels(o))))
    }
}

/// Of a webhook's field, where absent means everything.
pub fn selector(value: Option<&Value>) -> Result<LabelSelector, String> {
    value.filter(|v| !v.is_null()).map_or_else(|| Ok(LabelSelector::everything()), LabelSelector::from_value)
}

pub fn labels(object: &Value) -> meta::Labels {
    let labels = object["metadata"]["labels"].as_object().into_iter().flatten();
    labels.filter_map(|(k, v)| Some((k.as_str().into(), v.as_str()?.into()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rule(operations: &[&str], groups: &[&str], versions: &[&str], resources: &[&str], scope: &str) -> Value {
        json!({"operations": operations, "apiGroups": groups, "apiVersions": versions, "resources": resources, "scope": scope})
    }

    fn hook(rule: Value, policy: &str) -> Webhook {
        serde_json::from_value(json!({"name": "a.b.c", "rules": [rule], "matchPolicy": policy})).unwrap()
    }

    #[test]
    fn rules_choose_the_form() {
        let events = [Gvr::new("", "v1", "events"), Gvr::new("events.k8s.io", "v1", "events")];
        let namespaces = [Gvr::new("", "v1", "namespaces")];
        let pods = [Gvr::new("", "v1", "pods")];
        let all = ["*"];
        // rule, policy, forms, subresource, namespace, group of the form chosen
        let cases: [(Value, &str, &[Gvr], &str, &str, Option<&str>); 12] = [
            (rule(&all, &all, &all, &["*/*"], "*"), "Exact", &pods, "exec", "n", Some("")),
            (rule(&all, &all, &all, &["*"], "*"), "Exact", &pods, "exec", "n", None),
            (rule(&all, &all, &all, &["pods/*"], "*"), "Exact", &pods, "exec", "n", Some("")),
            (rule(&all, &all, &all, &["pods/*"], "*"), "Exact", &pods, "", "n", Some("")),
            (rule(&all, &all, &all, &["*/exec"], "*"), "Exact", &pods, "attach", "n", None),
            (rule(&["CREATE"], &all, &all, &["pods"], "*"), "Exact", &pods, "", "n", Some("")),
            (rule(&["DELETE"], &all, &all, &["pods"], "*"), "Exact", &pods, "", "n", None),
            (rule(&all, &all, &all, &["pods"], "Cluster"), "Exact", &pods, "", "n", None),
            (rule(&all, &all, &all, &["namespaces"], "Cluster"), "Exact", &namespaces, "", "n", Some("")),
            (rule(&all, &all, &all, &["namespaces"], "Namespaced"), "Exact", &namespaces, "", "n", None),
            (rule(&all, &["events.k8s.io"], &all, &["events"], "*"), "Exact", &events, "", "n", None),
            (
                rule(&all, &["events.k8s.io"], &all, &["events"], "*"),
                "Equivalent",
                &events,
                "",
                "n",
                Some("events.k8s.io"),
            ),
        ];
        for (rule, policy, forms, subresource, namespace, expect) in cases {
            let asked = Asked { operation: "CREATE", resource: &forms[0], subresource, namespace };
            let found = hook(rule.clone(), policy);
            assert_eq!(found.form(forms, &asked).map(|f| &*f.group), expect, "{rule} {policy} {subresource}");
        }
    }

    #[test]
    fn selectors_take_either_state_of_the_object() {
        let (with, without) = (json!({"metadata": {"labels": {"a": "b"}}}), json!({"metadata": {}}));
        let hook: Webhook =
            serde_json::from_value(json!({"name": "a.b.c", "objectSelector": {"matchLabels": {"a": "b"}}})).unwrap();
        for (object, old, expect) in [
            (Some(&with), None, true),
            (Some(&without), None, false),
            (Some(&without), Some(&with), true),
            (None, Some(&without), false),
            (None, None, false),
        ] {
            assert_eq!(hook.selects_object(object, old).unwrap(), expect);
        }
    }
}
