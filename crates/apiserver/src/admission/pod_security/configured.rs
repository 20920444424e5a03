//! `PodSecurityConfiguration`: what counts for namespaces that do not say, and of whom nothing is asked.

use meta::{FieldError, FieldPath, Value};
use serde::Deserialize;

use super::checks::Level;
use super::{MODES, PREFIX, is_version};
use crate::document::{self, joined};

const VERSIONS: [&str; 3] = [
    "pod-security.admission.config.k8s.io/v1",
    "pod-security.admission.config.k8s.io/v1beta1",
    "pod-security.admission.config.k8s.io/v1alpha1",
];

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Document {
    defaults: Defaults,
    exemptions: Exemptions,
}

/// Levels and versions by mode.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct Defaults {
    enforce: String,
    enforce_version: String,
    audit: String,
    audit_version: String,
    warn: String,
    warn_version: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Exemptions {
    usernames: Vec<String>,
    namespaces: Vec<String>,
    runtime_classes: Vec<String>,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Configured {
    defaults: Defaults,
    exemptions: Exemptions,
}

impl Defaults {
    /// Level and version of each of [`MODES`].
    fn by_mode(&self) -> [(&str, &str, &str); 3] {
        let [enforce, audit, warn] = MODES;
        [
            (enforce, &self.enforce, &self.enforce_version),
            (audit, &self.audit, &self.audit_version),
            (warn, &self.warn, &self.warn_version),
        ]
    }
}

impl Configured {
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let Document { defaults, exemptions } = document::read(bytes, "PodSecurityConfiguration", &VERSIONS)?;
        let path = FieldPath::new("defaults");
        let mut errors = Vec::new();
        for (mode, level, version) in defaults.by_mode() {
            if !level.is_empty() && Level::parse(level).is_none() {
                let why = "must be one of privileged, baseline, restricted";
                errors.push(FieldError::invalid(&path.child(mode), level, why));
            }
            if !version.is_empty() && !is_version(version) {
                let path = path.child(&format!("{mode}-version"));
                errors.push(FieldError::invalid(&path, version, "must be \"latest\" or \"v1.x\""));
            }
        }
        if errors.is_empty() { Ok(Self { defaults, exemptions }) } else { Err(joined(&errors)) }
    }

    /// Whether it changes nothing.
    pub fn is_plain(&self) -> bool {
        self.defaults.by_mode().iter().all(|(_, level, _)| level.is_empty())
    }

    /// Why nothing is asked of a pod, if that is so.
    pub fn exempts(&self, user: &str, namespace: &str, pod: &Value) -> Option<&'static str> {
        let has = |list: &[String], name: &str| list.iter().any(|entry| entry == name);
        let class = pod["spec"]["runtimeClassName"].as_str();
        let of = &self.exemptions;
        match () {
            () if has(&of.namespaces, namespace) => Some("namespace"),
            () if has(&of.usernames, user) => Some("user"),
            () if class.is_some_and(|class| has(&of.runtime_classes, class)) => Some("runtimeClass"),
            () => None,
        }
    }

    /// Adds to a namespace's labels what they do not say.
    pub fn fill_in(&self, labels: &mut Value) {
        let Some(labels) = labels.as_object_mut() else { return };
        for (mode, level, version) in self.defaults.by_mode() {
            for (suffix, value) in [("", level), ("-version", version)] {
                if !value.is_empty() {
                    labels.entry(format!("{PREFIX}{mode}{suffix}")).or_insert_with(|| value.into());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn namespaces_that_do_not_say() {
        let text = "apiVersion: pod-security.admission.config.k8s.io/v1\nkind: PodSecurityConfiguration\ndefaults: {enforce: baseline, warn: restricted, warn-version: v1.30}\nexemptions: {usernames: [jane], namespaces: [kube-system], runtimeClasses: [kata]}";
        let configured = Configured::parse(text.as_bytes()).unwrap();
        let mut labels = json!({"pod-security.kubernetes.io/enforce": "privileged"});
        configured.fill_in(&mut labels);
        assert_eq!(
            labels,
            json!({"pod-security.kubernetes.io/enforce": "privileged", "pod-security.kubernetes.io/warn": "restricted",
                "pod-security.kubernetes.io/warn-version": "v1.30"})
        );
        let plain = json!({"spec": {}});
        let kata = json!({"spec": {"runtimeClassName": "kata"}});
        for (user, namespace, pod, expect) in [
            ("joe", "default", &plain, None),
            ("jane", "default", &plain, Some("user")),
            ("joe", "kube-system", &plain, Some("namespace")),
            ("joe", "default", &kata, Some("runtimeClass")),
        ] {
            assert_eq!(configured.exempts(user, namespace, pod), expect);
        }
    }
}
