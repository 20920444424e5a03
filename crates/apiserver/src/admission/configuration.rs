//! `AdmissionConfiguration` (`--admission-control-config-file`): what single plugins are told.
//!
//! Of the plugins that are here PodSecurity alone has something to be told. A document that tells others is refused: what it
//! asks for would not be done.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::pod_security::Configured;
use crate::document;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Document {
    plugins: Vec<Plugin>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Plugin {
    name: String,
    /// A file beside this one, instead of `configuration`.
    path: String,
    configuration: Value,
}

/// What PodSecurity is told by a document in `dir`.
pub fn parse(bytes: &[u8], dir: &Path) -> Result<Configured, String> {
    let versions = ["apiserver.config.k8s.io/v1", "apiserver.config.k8s.io/v1alpha1", "apiserver.k8s.io/v1alpha1"];
    let document: Document = document::read(bytes, "AdmissionConfiguration", &versions)?;
    let mut out = Configured::default();
    for plugin in document.plugins {
        if plugin.name != "PodSecurity" {
            return Err(format!("the admission plugin {:?} takes no configuration", plugin.name));
        }
        let bytes = match &*plugin.path {
            "" => plugin.configuration.to_string().into_bytes(),
            path => {
                let file = dir.join(path);
                std::fs::read(&file).map_err(|e| format!("cannot read {}: {e}", file.display()))?
            }
        };
        out = Configured::parse(&bytes).map_err(|why| format!("PodSecurity: {why}"))?;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plugins_are_told() {
        let with = |plugins: &str| {
            let text =
                format!("apiVersion: apiserver.config.k8s.io/v1\nkind: AdmissionConfiguration\nplugins: {plugins}");
            parse(text.as_bytes(), Path::new("/nowhere")).map(|told| told.is_plain())
        };
        let pod_security = |rest: &str| {
            format!(
                "[{{name: PodSecurity, configuration: {{apiVersion: pod-security.admission.config.k8s.io/v1, kind: PodSecurityConfiguration{rest}}}}}]"
            )
        };
        assert_eq!(with("[]"), Ok(true));
        assert_eq!(with(&pod_security("")), Ok(true));
        assert_eq!(with(&pod_security(", defaults: {enforce: baseline, enforce-version: v1.30}")), Ok(false));
        for (plugins, why) in [
            ("[{name: EventRateLimit}]".to_string(), "takes no configuration"),
            ("[{name: PodSecurity, path: a.yaml}]".into(), "cannot read /nowhere/a.yaml"),
            (pod_security(", defaults: {enforce: high}"), "defaults.enforce: Invalid value: \"high\""),
            (pod_security(", defaults: {audit-version: two}"), "defaults.audit-version: Invalid value: \"two\""),
            (pod_security(", who: 1"), "strict decoding error"),
        ] {
            let said = with(&plugins).unwrap_err();
            assert!(said.contains(why), "{plugins}: {said}");
        }
    }
}
