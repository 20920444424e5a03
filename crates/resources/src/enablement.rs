//! `--runtime-config` and what gates open: which built-in kinds are served in which versions.
//!
//! A version stands in its row as on or off by default. The flag's words count from the general to the particular: stages
//! (`api/all`, then `api/ga`, `api/beta`, `api/alpha`), then `GROUP/VERSION`, then `GROUP/VERSION/RESOURCE`. A kind that
//! needs a gate is served only where that is open, whatever the flag says. Refusals are upstream's.

use std::collections::BTreeMap;

use crate::gates::Gates;

/// The general words, in the order they are applied, and whether they mean a version.
const STAGES: [(&str, fn(&str) -> bool); 4] = [
    ("api/all", |_| true),
    ("api/ga", |version| stage(version) == Some("")),
    ("api/beta", |version| stage(version) == Some("beta")),
    ("api/alpha", |version| stage(version) == Some("alpha")),
];

/// `beta` of `v2beta1`, nothing of `v1`; `None` where it is no such version.
fn stage(version: &str) -> Option<&str> {
    let number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let rest = version.strip_prefix('v')?;
    let word = rest.trim_start_matches(|c: char| c.is_ascii_digit());
    let kind = word.trim_end_matches(|c: char| c.is_ascii_digit());
    let fits = number(&rest[..rest.len() - word.len()]) && (word.is_empty() || number(&word[kind.len()..]));
    fits.then_some(kind)
}

/// What is served.
#[derive(Clone, Debug, Default)]
pub struct Enablement {
    pub gates: Gates,
    /// The flag's pairs.
    said: BTreeMap<String, String>,
}

impl Enablement {
    /// `said` are the flag's `KEY=VALUE` words; a key alone is true.
    pub fn new<'a>(said: impl IntoIterator<Item = &'a str>, gates: Gates) -> Result<Self, String> {
        let pair = |word: &str| {
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            (key.trim().to_string(), value.trim().to_string())
        };
        let said: BTreeMap<String, String> =
            said.into_iter().flat_map(|s| s.split(',')).filter(|word| !word.is_empty()).map(pair).collect();
        if said.len() == 1 && said.get("api/all").is_some_and(|v| v == "false") {
            return Err("invalid key with only api/all=false".into());
        }
        let mut unknown = Vec::new();
        for (key, value) in &said {
            if STAGES.iter().any(|(stage, _)| stage == key) {
                if !matches!(value.as_str(), "true" | "false") {
                    return Err(format!("invalid value {key}={value}"));
                }
                continue;
            }
            let (group, version, resource) = match key.split('/').collect::<Vec<_>>()[..] {
                [group, version] => (group, version, ""),
                [group, version, resource] => (group, version, resource),
                _ => return Err(format!("runtime-config invalid key {key}")),
            };
            if !meta::schema::builtin().kinds.keys().any(|k| &*k.group == group) {
                unknown.push(group);
                continue;
            }
            if !meta::openapi::is_registered(group, version) {
                return Err(format!("group version {group}/{version} that has not been registered"));
            }
            if truth(value).is_none() {
                let why = format!("strconv.ParseBool: parsing {value:?}: invalid syntax");
                return Err(format!("invalid value of {key}: {value}, err: {why}"));
            }
            if resource.to_lowercase() != resource {
                return Err(format!(
                    "invalid key {key}: group/version/resource and resource is always lowercase plural, not {resource:?}"
                ));
            }
        }
        if !unknown.is_empty() {
            return Err(format!("unknown api groups {}", unknown.join(",")));
        }
        Ok(Self { gates, said })
    }

    /// Whether a version of a kind is served, which is `default` in its row and may need a gate.
    pub fn serves(&self, group: &str, version: &str, plural: &str, gate: Option<&str>, default: bool) -> bool {
        let word = |key: &str| self.said.get(key).and_then(|value| truth(value));
        let general = || {
            STAGES.iter().rev().filter(|(_, means)| means(version)).find_map(|(key, _)| word(key)).unwrap_or(default)
        };
        let version = format!("{group}/{version}");
        gate.is_none_or(|gate| self.gates.is_open(gate))
            && word(&format!("{version}/{plural}")).or_else(|| word(&version)).unwrap_or_else(general)
    }
}

/// As Go reads a truth; nothing is true.
fn truth(text: &str) -> Option<bool> {
    match text {
        "" | "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(said: &str, gates: &[&str]) -> Result<Enablement, String> {
        let gates = Gates::new(gates.iter().map(|g| (g.to_string(), true)))?;
        Enablement::new([said], gates)
    }

    #[test]
    fn the_particular_word_counts() {
        let check = |said: &str, version: &str, expect: bool| {
            let enabled = with(said, &[]).unwrap();
            let served = enabled.serves("resource.k8s.io", version, "resourceclaims", None, version == "v1");
            assert_eq!(served, expect, "{version} after {said}");
        };
        check("", "v1", true);
        check("", "v1beta1", false);
        check("api/all=true", "v1beta1", true);
        check("api/beta=true", "v1beta1", true);
        check("api/beta=true", "v1alpha3", false);
        check("api/all=true,api/beta=false", "v1beta1", false);
        check("api/beta=false,resource.k8s.io/v1beta1=true", "v1beta1", true);
        check("resource.k8s.io/v1beta1", "v1beta1", true);
        check("resource.k8s.io/v1beta1=true,resource.k8s.io/v1beta1/resourceclaims=false", "v1beta1", false);
        check("resource.k8s.io/v1beta1/resourceclaims=true", "v1beta1", true);
        check("resource.k8s.io/v1=false", "v1", false);
    }

    #[test]
    fn a_gate_is_needed_besides() {
        let group = "scheduling.k8s.io/v1beta1=true";
        let serves =
            |e: Enablement| e.serves("scheduling.k8s.io", "v1beta1", "podgroups", Some("GenericWorkload"), false);
        assert!(!serves(with(group, &[]).unwrap()));
        assert!(!serves(with("", &["GenericWorkload"]).unwrap()));
        assert!(serves(with(group, &["GenericWorkload"]).unwrap()));
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        let refused = |said: &str, why: &str| assert_eq!(with(said, &[]).unwrap_err(), why, "{said}");
        refused("api/all=false", "invalid key with only api/all=false");
        refused("api/all=no", "invalid value api/all=no");
        refused("v1=true", "runtime-config invalid key v1");
        refused("foo/v1=true", "unknown api groups foo");
        refused("apps/v9=true", "group version apps/v9 that has not been registered");
        refused(
            "apps/v1=maybe",
            "invalid value of apps/v1: maybe, err: strconv.ParseBool: parsing \"maybe\": invalid syntax",
        );
        refused(
            "apps/v1/Deployments=true",
            "invalid key apps/v1/Deployments: group/version/resource and resource is always lowercase plural, not \"Deployments\"",
        );
        assert!(with("apps/v1beta1=true", &[]).is_ok());
    }
}
