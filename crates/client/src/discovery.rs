//! Which resources a server has, from its discovery documents.

use meta::{Gvr, Status};
use serde::Deserialize;

use crate::Client;

/// One resource a server serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiResource {
    pub resource: Gvr,
    pub kind: String,
    pub namespaced: bool,
    pub verbs: Vec<String>,
    /// Whether the version is the one its group prefers.
    pub preferred: bool,
}

impl ApiResource {
    pub fn can(&self, verb: &str) -> bool {
        self.verbs.iter().any(|v| v == verb)
    }
}

#[derive(Deserialize)]
struct Groups {
    #[serde(default)]
    groups: Vec<Group>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Group {
    versions: Vec<Version>,
    preferred_version: Option<Version>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Version {
    group_version: String,
}

#[derive(Deserialize)]
struct Resources {
    #[serde(default)]
    resources: Vec<Resource>,
}

#[derive(Deserialize)]
struct Resource {
    name: String,
    kind: String,
    #[serde(default)]
    namespaced: bool,
    #[serde(default)]
    verbs: Vec<String>,
}

fn read<T: for<'de> Deserialize<'de>>(path: &str, bytes: &[u8]) -> Result<T, Status> {
    serde_json::from_slice(bytes).map_err(|e| Status::internal(format!("discovery at {path}: {e}")))
}

/// Discovery as far as it could be read.
#[derive(Clone, Debug, Default)]
pub struct Discovered {
    pub resources: Vec<ApiResource>,
    /// Groups whose documents could not be read (an aggregated server that is down): `group/version: why`.
    pub failed: Vec<String>,
}

impl Client {
    /// Every resource of every served version, without subresources. A group that cannot be read is named in
    /// [`Discovered::failed`]; only a server that answers nothing at all is an error.
    pub async fn discover(&self) -> Result<Discovered, Status> {
        let groups: Groups = read("/apis", &self.get_path("/apis").await?)?;
        let mut versions = vec![("v1".to_string(), "/api/v1".to_string(), true)];
        for group in groups.groups {
            let preferred = group.preferred_version.map(|v| v.group_version);
            for version in group.versions {
                let is_preferred = preferred.as_ref().is_none_or(|p| *p == version.group_version);
                let path = format!("/apis/{}", version.group_version);
                versions.push((version.group_version, path, is_preferred));
            }
        }
        let mut out = Discovered::default();
        for (version, path, preferred) in versions {
            let document = match self.get_path(&path).await.and_then(|bytes| read::<Resources>(&path, &bytes)) {
                Ok(document) => document,
                Err(status) => {
                    out.failed.push(format!("{version}: {status}"));
                    continue;
                }
            };
            let (group, version) = version.split_once('/').unwrap_or(("", &version));
            out.resources.extend(document.resources.into_iter().filter(|r| !r.name.contains('/')).map(|r| {
                ApiResource {
                    resource: Gvr::new(group, version, &r.name),
                    kind: r.kind,
                    namespaced: r.namespaced,
                    verbs: r.verbs,
                    preferred,
                }
            }));
        }
        Ok(out)
    }
}
