//! PodSecurity: a namespace's labels say which of the Pod Security Standards its pods must meet.
//!
//! `enforce` refuses pods; `warn` tells of pods and of workloads whose pods would be refused. The standards are in
//! [`checks`], at their latest version whatever version a label names. Follows `k8s.io/pod-security-admission`.

mod checks;
mod configured;

use std::collections::BTreeMap;

use async_trait::async_trait;
use meta::{FieldError, FieldPath, Status, Value};

use super::{Attributes, Operation, Plugin, Write};
use crate::server::ApiServer;
use checks::Level;
pub use configured::Configured;

pub struct PodSecurity;

const PREFIX: &str = "pod-security.kubernetes.io/";
const MODES: [&str; 3] = ["enforce", "audit", "warn"];
/// Pods of a namespace looked at when its level changes.
const MAX_PODS: usize = 3000;
/// Where workloads keep their pod.
const TEMPLATES: &[(&str, &str, &str)] = &[
    ("", "podtemplates", "/template"),
    ("", "replicationcontrollers", "/spec/template"),
    ("apps", "deployments", "/spec/template"),
    ("apps", "replicasets", "/spec/template"),
    ("apps", "statefulsets", "/spec/template"),
    ("apps", "daemonsets", "/spec/template"),
    ("batch", "jobs", "/spec/template"),
    ("batch", "cronjobs", "/spec/jobTemplate/spec/template"),
];

/// Where a write's object has the template of a pod, if it has one.
fn template(a: &Attributes<'_>) -> Option<&'static str> {
    TEMPLATES.iter().find(|(group, plural, _)| a.is(group, plural)).map(|(_, _, path)| *path)
}

/// Whether a write changes what a pod's security may rest on.
fn is_pod(a: &Attributes<'_>) -> bool {
    let sub = &*a.target.request.subresource;
    a.target.group().is_empty() && a.target.plural() == "pods" && matches!(sub, "" | "ephemeralcontainers" | "resize")
}

/// A mode's level and the version it names, as messages say it.
fn policy(labels: &Value, mode: &str) -> (Level, String) {
    let text = |suffix: &str| labels.get(format!("{PREFIX}{mode}{suffix}")).and_then(Value::as_str);
    // What cannot be read is the strictest; namespaces with such labels are refused.
    let level = text("").map_or(Level::Privileged, |level| Level::parse(level).unwrap_or(Level::Restricted));
    let version = text("-version").filter(|v| is_version(v)).unwrap_or("latest");
    (level, format!("{}:{version}", level.as_str()))
}

fn is_version(text: &str) -> bool {
    text == "latest"
        || text.strip_prefix("v1.").is_some_and(|minor| {
            !minor.is_empty() && minor.bytes().all(|b| b.is_ascii_digit()) && (minor == "0" || !minor.starts_with('0'))
        })
}

fn violations(level: Level, pod: &Value) -> Option<String> {
    let found = checks::check(level, pod);
    let said: Vec<String> = found
        .into_iter()
        .map(|v| if v.detail.is_empty() { v.reason } else { format!("{} ({})", v.reason, v.detail) })
        .collect();
    (!said.is_empty()).then(|| said.join(", "))
}

#[async_trait]
impl Plugin for PodSecurity {
    fn concerns(&self, _server: &ApiServer, a: &Attributes<'_>) -> bool {
        matches!(a.operation, Operation::Create | Operation::Update)
            && (a.is("", "namespaces") || is_pod(a) || template(a).is_some())
    }

    async fn validate(&self, write: &Write<'_>, object: Option<&Value>) -> Result<(), Status> {
        let Write { server, a, old } = *write;
        let Some(object) = object else { return Ok(()) };
        if a.is("", "namespaces") {
            return namespace(server, a, object, old);
        }
        let template = template(a);
        let pod = match template {
            Some(path) => object.pointer(path),
            None => is_pod(a).then_some(object),
        };
        let Some(pod) = pod else { return Ok(()) };
        // Nothing of a pod's security can change without its spec or annotations.
        let annotations = |object: &Value| object["metadata"]["annotations"].clone();
        if old.is_some_and(|old| {
            old["spec"] == object["spec"]
                && old["template"] == object["template"]
                && (template.is_some() || annotations(old) == annotations(object))
        }) {
            return Ok(());
        }
        let Some(namespace) = server.lookup("", "namespaces", "", &a.target.request.namespace) else { return Ok(()) };
        let configured = &server.config().settings.pod_security;
        // Without a level of its own everything is let through, and only an audit trail tells of it.
        if configured.is_plain()
            && a.target.caller.trail.is_none()
            && !namespace.meta.labels.iter().any(|(key, _)| key.starts_with(PREFIX))
        {
            return Ok(());
        }
        if let Some(why) = configured.exempts(&a.target.caller.user.name, &a.target.request.namespace, pod) {
            a.target.caller.annotate(format!("{PREFIX}exempt"), why);
            return Ok(());
        }
        let mut labels: Value = namespace
            .meta
            .labels
            .iter()
            .map(|(k, v)| (k.to_string(), Value::from(&**v)))
            .collect::<serde_json::Map<_, _>>()
            .into();
        configured.fill_in(&mut labels);
        let (enforce, named) = policy(&labels, "enforce");
        if template.is_none() {
            a.target.caller.annotate(format!("{PREFIX}enforce-policy"), &*named);
        }
        if template.is_none()
            && let Some(why) = violations(enforce, pod)
        {
            return Err(a.forbid(
                object["metadata"]["name"].as_str().unwrap_or_default(),
                format!("violates PodSecurity {named:?}: {why}"),
            ));
        }
        let (audit, named) = policy(&labels, "audit");
        if a.target.caller.trail.is_some()
            && let Some(why) = violations(audit, pod)
        {
            let said = format!("would violate PodSecurity {named:?}: {why}");
            a.target.caller.annotate(format!("{PREFIX}audit-violations"), said);
        }
        let (warn, named) = policy(&labels, "warn");
        if let Some(why) = violations(warn, pod) {
            a.target.caller.warn(format!("would violate PodSecurity {named:?}: {why}"));
        }
        Ok(())
    }
}

fn namespace(server: &ApiServer, a: &Attributes<'_>, object: &Value, old: Option<&Value>) -> Result<(), Status> {
    let (labels, before) = (&object["metadata"]["labels"], old.map_or(&Value::Null, |old| &old["metadata"]["labels"]));
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    let mut errors = Vec::new();
    let path = FieldPath::new("metadata.labels");
    for mode in MODES {
        for (key, valid, why) in [
            (
                format!("{PREFIX}{mode}"),
                Level::parse as fn(&str) -> Option<Level>,
                "must be one of privileged, baseline, restricted",
            ),
            (
                format!("{PREFIX}{mode}-version"),
                |v: &str| is_version(v).then_some(Level::Privileged),
                "must be \"latest\" or \"v1.x\"",
            ),
        ] {
            if let Some(value) = labels.get(&key).and_then(Value::as_str)
                && valid(value).is_none()
                && before.get(&key) != labels.get(&key)
            {
                errors.push(FieldError::invalid(&path.key(&key), value, why));
            }
        }
    }
    if !errors.is_empty() {
        return Err(Status::invalid("", "Namespace", name, &errors));
    }
    let (level, named) = policy(labels, "enforce");
    if old.is_none() || level <= policy(before, "enforce").0 {
        return Ok(());
    }
    // Pods that are there stay; whoever tightened the level should know of them.
    let pods = server.lookup_all("", "pods", name);
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for pod in pods.iter().take(MAX_PODS) {
        if let Some(why) = pod.value().ok().and_then(|pod| violations(level, &pod)) {
            found.entry(why).or_default().push(pod.meta.name.to_string());
        }
    }
    let warn = |text: String| a.target.caller.warn(text);
    if pods.len() > MAX_PODS {
        warn(format!(
            "new PodSecurity enforce level only checked against the first {MAX_PODS} of {} existing pods",
            pods.len()
        ));
    }
    if !found.is_empty() {
        warn(format!("existing pods in namespace {name:?} violate the new PodSecurity enforce level {named:?}"));
    }
    for (why, pods) in found {
        let others = match pods.len() - 1 {
            0 => String::new(),
            1 => " (and 1 other pod)".into(),
            n => format!(" (and {n} other pods)"),
        };
        // Reasons alone: details name containers of one pod only.
        let reasons =
            why.split("), ").map(|part| part.split(" (").next().unwrap_or(part)).collect::<Vec<_>>().join(", ");
        warn(format!("{}{others}: {reasons}", pods[0]));
    }
    Ok(())
}
