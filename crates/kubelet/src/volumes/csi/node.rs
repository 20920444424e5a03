//! What the API knows of drivers on this node: the CSINode object's list, and the node's labels for where volumes can be.

use std::collections::BTreeMap;

use client::{Client, Patch, Status};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::storage::v1::{CSINode, CSINodeDriver, CSINodeSpec, VolumeNodeResources};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde_json::{Value, json};

use super::driver::{About, Driver};

/// Attempts against writers in between.
const ATTEMPTS: usize = 5;
/// Drivers' names for this node, as JSON, on the Node itself.
const NODE_IDS: &str = "csi.volume.kubernetes.io/nodeid";

fn row(name: &str, about: &About) -> CSINodeDriver {
    CSINodeDriver {
        name: name.into(),
        node_id: about.node_id.clone(),
        topology_keys: Some(about.topology.keys().cloned().collect()).filter(|k: &Vec<_>| !k.is_empty()),
        allocatable: about.limit.map(|count| VolumeNodeResources { count: Some(count) }),
    }
}

/// The list with a driver's row put in or taken out; `None` when it is so already.
fn with(rows: &[CSINodeDriver], name: &str, about: Option<&About>) -> Option<Vec<CSINodeDriver>> {
    let mut out: Vec<CSINodeDriver> = rows.iter().filter(|r| r.name != name).cloned().collect();
    out.extend(about.map(|a| row(name, a)));
    let same = out.len() == rows.len() && out.iter().all(|r| rows.contains(r));
    (!same).then_some(out)
}

async fn write(client: &Client, node: &Node, name: &str, about: Option<&About>) -> Result<(), Status> {
    let api = client.api::<CSINode>();
    let node_name = node.metadata.name.clone().unwrap_or_default();
    let mut last = Status::internal("no attempt");
    for _ in 0..ATTEMPTS {
        let written = match api.get_opt(&node_name).await? {
            Some(found) => {
                let Some(rows) = with(&found.spec.drivers, name, about) else { return Ok(()) };
                let mut next = CSINode::clone(&found);
                next.spec.drivers = rows;
                api.update(&next).await
            }
            None => {
                let Some(about) = about else { return Ok(()) };
                let owner = OwnerReference {
                    api_version: "v1".into(),
                    kind: "Node".into(),
                    name: node_name.clone(),
                    uid: node.metadata.uid.clone().unwrap_or_default(),
                    ..OwnerReference::default()
                };
                let metadata = ObjectMeta {
                    name: Some(node_name.clone()),
                    owner_references: Some(vec![owner]),
                    ..ObjectMeta::default()
                };
                let spec = CSINodeSpec { drivers: vec![row(name, about)] };
                api.create(&CSINode { metadata, spec, ..CSINode::default() }).await
            }
        };
        match written {
            Ok(_) => return Ok(()),
            Err(status) if status.is_conflict() || status.is_already_exists() => last = status,
            Err(status) => return Err(status),
        }
    }
    Err(last)
}

fn ids(node: &Node) -> BTreeMap<String, String> {
    let text = node.metadata.annotations.as_ref().and_then(|a| a.get(NODE_IDS));
    text.and_then(|t| serde_json::from_str(t).ok()).unwrap_or_default()
}

async fn annotate(client: &Client, node: &Node, ids: BTreeMap<String, String>, labels: Value) -> Result<(), Status> {
    let text = if ids.is_empty() { Value::Null } else { serde_json::to_string(&ids).unwrap_or_default().into() };
    let patch = json!({"metadata": {"annotations": {NODE_IDS: text}, "labels": labels}});
    client.api::<Node>().patch(node.metadata.name.as_deref().unwrap_or_default(), Patch::Merge(patch)).await.map(drop)
}

/// Adds or corrects a driver.
pub async fn add(client: &Client, node: &str, driver: &Driver) -> Result<(), Status> {
    let node = client.api::<Node>().get(node).await?;
    for (key, value) in &driver.about.topology {
        let had = node.metadata.labels.as_ref().and_then(|l| l.get(key));
        if let Some(had) = had.filter(|had| *had != value) {
            // Volumes were placed by it: it does not change under them.
            return Err(Status::internal(format!(
                "detected topology value collision: driver reported \"{key}\":\"{value}\" but existing label is \
                 \"{key}\":\"{had}\""
            )));
        }
    }
    let mut all = ids(&node);
    let before = all.insert(driver.name.clone(), driver.about.node_id.clone());
    let labelled = |key: &String| node.metadata.labels.as_ref().is_some_and(|l| l.contains_key(key));
    if before.as_ref() != Some(&driver.about.node_id) || !driver.about.topology.keys().all(labelled) {
        annotate(client, &node, all, json!(driver.about.topology)).await?;
    }
    write(client, &node, &driver.name, Some(&driver.about)).await
}

/// Takes a driver out again. Its labels stay: volumes may still be where they say.
pub async fn remove(client: &Client, node: &str, driver: &str) -> Result<(), Status> {
    let node = client.api::<Node>().get(node).await?;
    let mut all = ids(&node);
    if all.remove(driver).is_some() {
        annotate(client, &node, all, json!({})).await?;
    }
    write(client, &node, driver, None).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_change_only_when_they_must() {
        let about = |limit| About { node_id: "n".into(), limit, topology: BTreeMap::new() };
        let one = with(&[], "a", Some(&about(None))).unwrap();
        assert!(with(&one, "a", Some(&about(None))).is_none());
        let two = with(&one, "b", Some(&about(Some(3)))).unwrap();
        assert_eq!(two.len(), 2);
        assert_eq!(with(&two, "b", Some(&about(Some(4)))).unwrap()[1].allocatable.as_ref().unwrap().count, Some(4));
        assert_eq!(with(&two, "b", None).unwrap(), one);
        assert!(with(&one, "b", None).is_none());
    }
}
