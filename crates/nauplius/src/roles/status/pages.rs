//! `/statusz` and `/flagz` of a component: text for people, JSON for programs that ask by kind.

use std::collections::BTreeMap;
use std::time::Duration;

use resources::gates::Gates;
use serde_json::{Value, json};

const WARNING: &str = "Warning: This endpoint is not meant to be machine parseable, has no formatting compatibility guarantees and is for debugging purposes only.";
/// The group of both kinds, and the versions of it that are told.
const GROUP: &str = "config.k8s.io";
const VERSIONS: [&str; 2] = ["v1beta1", "v1alpha1"];
/// The minor version of Kubernetes this is.
const KUBERNETES: &str = "1.37";
pub const ACCEPTED: &str = "only the following media types are accepted: text/plain, application/json";
/// What is told beside the health checks, to whom may read it.
pub const PATHS: [&str; 5] = ["/configz", "/flagz", "/metrics", "/metrics/slis", "/statusz"];

/// An answer.
#[derive(Debug, PartialEq)]
pub enum Told {
    Text(String),
    Json(Value),
    Unacceptable,
}

/// By what the client takes: text (where it says nothing, too), or a kind.
fn told(component: &str, accept: &str, kind: &str, fields: Value, shown: String) -> Told {
    let mut clauses = accept.split(',').map(str::trim).filter(|c| !c.is_empty()).peekable();
    let silent = clauses.peek().is_none();
    for clause in clauses {
        let mut parts = clause.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default();
        let said: BTreeMap<&str, &str> = parts.filter_map(|part| part.split_once('=')).collect();
        let is = |key: &str, value: &str| said.get(key).is_some_and(|v| *v == value);
        match (media, VERSIONS.into_iter().find(|version| is("v", version))) {
            ("*/*" | "text/*" | "text/plain", _) => return text(component, kind, shown),
            ("application/json", Some(version)) if is("g", GROUP) && is("as", kind) => {
                let mut whole =
                    json!({"kind": kind, "apiVersion": format!("{GROUP}/{version}"), "metadata": {"name": component}});
                if let (Some(whole), Value::Object(fields)) = (whole.as_object_mut(), fields) {
                    whole.extend(fields);
                }
                return Told::Json(whole);
            }
            _ => {}
        }
    }
    if silent { text(component, kind, shown) } else { Told::Unacceptable }
}

fn text(component: &str, kind: &str, shown: String) -> Told {
    Told::Text(format!("\n{component} {}\n{WARNING}\n\n{shown}", kind.to_lowercase()))
}

/// Since when a component runs, and what it is. `more` are paths that others do not have.
pub fn statusz(component: &str, more: &[&str], accept: &str, up: Duration, now: jiff::Timestamp) -> Told {
    let began = now.checked_sub(up).unwrap_or(now);
    let (seconds, binary) = (up.as_secs(), env!("CARGO_PKG_VERSION"));
    let mut paths = vec!["/healthz", "/livez", "/readyz"];
    paths.extend(PATHS.iter().chain(more));
    paths.sort_unstable();
    let fields = json!({"startTime": began.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(), "uptimeSeconds": seconds,
        "binaryVersion": binary, "emulationVersion": KUBERNETES, "paths": paths});
    let shown = format!(
        "Started: {}\nUp: {} hr {:02} min {:02} sec\nBinary version: {binary}\nEmulation version: {KUBERNETES}\nPaths: {}\n",
        began.strftime("%a %b %e %H:%M:%S UTC %Y"),
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60,
        paths.join(" ")
    );
    told(component, accept, "Statusz", fields, shown)
}

/// The flags a component was started with.
pub fn flagz(component: &str, accept: &str, flags: &BTreeMap<String, String>) -> Told {
    let shown = flags.iter().map(|(name, value)| format!("{name}={value}\n")).collect();
    told(component, accept, "Flagz", json!({"flags": flags}), shown)
}

/// What this was built from, for `/metrics`.
pub fn build_info() -> String {
    let name = "kubernetes_build_info";
    let (version, (major, minor)) = (env!("CARGO_PKG_VERSION"), KUBERNETES.split_once('.').unwrap_or_default());
    format!(
        "# HELP {name} [ALPHA] What this was built from.\n# TYPE {name} gauge\n{name}{{git_version=\"v{KUBERNETES}.0+nauplius-{version}\",major=\"{major}\",minor=\"{minor}\"}} 1\n"
    )
}

/// Which gates are open, for `/metrics`.
pub fn features(gates: &Gates) -> String {
    let (name, mut out) = ("kubernetes_feature_enabled", String::new());
    client::metrics::head(&mut out, name, "gauge", "[BETA] Feature gates, and whether they are open.");
    for (gate, open) in gates.all() {
        let (gate, stage) = (gate.name, gate.stage.as_str());
        out.push_str(&format!("{name}{{name=\"{gate}\",stage=\"{stage}\"}} {}\n", u8::from(open)));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_get_text_and_programs_a_kind() {
        let now = jiff::Timestamp::from_second(1_725_607_316).unwrap();
        let status =
            |accept: &str| statusz("kube-scheduler", &["/metrics/resources"], accept, Duration::from_secs(3725), now);
        for accept in ["", "*/*", "text/plain;charset=utf-8"] {
            let Told::Text(text) = status(accept) else { panic!("{accept}") };
            assert!(text.starts_with("\nkube-scheduler statusz\nWarning: "), "{text}");
            assert!(text.contains("\nStarted: Fri Sep  6 06:19:51 UTC 2024\nUp: 1 hr 02 min 05 sec\n"), "{text}");
        }
        let Told::Json(kind) = status("application/json;v=v1beta1;g=config.k8s.io;as=Statusz") else { panic!() };
        assert_eq!((&kind["kind"], &kind["uptimeSeconds"]), (&json!("Statusz"), &json!(3725)));
        assert_eq!(status("application/json"), Told::Unacceptable);
        let flags = BTreeMap::from([("secure-port".to_string(), "10259".to_string())]);
        let Told::Text(text) = flagz("kube-scheduler", "", &flags) else { panic!() };
        assert!(text.ends_with("\n\nsecure-port=10259\n"), "{text}");
        assert!(build_info().contains("major=\"1\",minor=\"37\""));
        let features = features(&Gates::default());
        assert!(
            features.contains("kubernetes_feature_enabled{name=\"GenericWorkload\",stage=\"BETA\"} 0\n"),
            "{features}"
        );
    }
}
