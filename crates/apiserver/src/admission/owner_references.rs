//! OwnerReferencesPermissionEnforcement, off unless asked for: who gives an object an owner could delete it, and who holds up an
//! owner's deletion may set that owner's finalizers.

use async_trait::async_trait;
use meta::{Status, Value};

use super::{Attributes, Operation, Plugin, Write};
use crate::authz::{self, Decision};
use crate::server::ApiServer;

pub struct OwnerReferencesPermission;

fn owners(object: &Value) -> &[Value] {
    object["metadata"]["ownerReferences"].as_array().map_or(&[], Vec::as_slice)
}

/// Owners whose deletion the object holds up, and did not before.
fn newly_blocking<'o>(object: &'o Value, old: Option<&Value>) -> Vec<&'o Value> {
    let blocks = |owner: &&Value| owner["blockOwnerDeletion"] == true;
    let before: Vec<&Value> = old.map_or(&[][..], owners).iter().filter(blocks).map(|owner| &owner["uid"]).collect();
    owners(object).iter().filter(blocks).filter(|owner| !before.contains(&&owner["uid"])).collect()
}

#[async_trait]
impl Plugin for OwnerReferencesPermission {
    fn concerns(&self, _server: &ApiServer, a: &Attributes<'_>) -> bool {
        matches!(a.operation, Operation::Create | Operation::Update)
    }

    async fn validate(&self, write: &Write<'_>, object: Option<&Value>) -> Result<(), Status> {
        let Write { server, a, old } = *write;
        let Some(object) = object else { return Ok(()) };
        // A pod's status cannot change its owners.
        if a.target.plural() == "pods" && a.target.request.subresource == "status"
            || owners(object) == old.map_or(&[][..], owners)
        {
            return Ok(());
        }
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let user = &a.target.caller.user;
        let may = |attributes: &authz::Attributes<'_>| match authz::decide(server, user, attributes) {
            Decision::Allow(_) => Ok(()),
            Decision::Deny(reason) | Decision::NoOpinion(reason) => Err(reason),
        };
        if a.operation == Operation::Update {
            let delete = authz::Attributes { verb: "delete", ..authz::Attributes::of(a.target.request) };
            may(&delete).map_err(|reason| {
                a.forbid(name, format!("cannot set an ownerRef on a resource you can't delete: {reason}, <nil>"))
            })?;
        }
        let blocking = newly_blocking(object, old);
        let finalizers = authz::Attributes { verb: "update", subresource: "finalizers", ..Default::default() };
        let any = authz::Attributes { group: "*", version: "*", resource: "*", name: "*", ..finalizers };
        if blocking.is_empty() || may(&any).is_ok() {
            return Ok(());
        }
        let catalog = server.catalog();
        for owner in blocking {
            let text = |field: &str| owner[field].as_str().unwrap_or_default();
            let (group, version) = text("apiVersion").split_once('/').unwrap_or(("", text("apiVersion")));
            let found =
                catalog.find_kind(group, text("kind")).filter(|found| found.resource.version(version).is_some());
            let Some(found) = found else {
                let (version, kind) = (text("apiVersion"), text("kind"));
                let why = format!("no matches for kind {kind:?} in version {version:?}");
                return Err(a.forbid(
                    name,
                    format!("cannot set blockOwnerDeletion in this case because cannot find RESTMapping for APIVersion {version} Kind {kind}: {why}"),
                ));
            };
            let resource = &found.resource;
            let namespace = if resource.namespaced { &*a.target.request.namespace } else { "" };
            let asked = authz::Attributes {
                group,
                version,
                resource: &resource.plural,
                name: text("name"),
                namespace,
                ..finalizers
            };
            may(&asked).map_err(|reason| {
                a.forbid(
                    name,
                    format!("cannot set blockOwnerDeletion if an ownerReference refers to a resource you can't set finalizers on: {reason}, <nil>"),
                )
            })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn owners_that_are_held_up_anew() {
        let with = |owners: &[(&str, bool)]| {
            let list: Vec<Value> =
                owners.iter().map(|(uid, blocks)| json!({"uid": uid, "blockOwnerDeletion": blocks})).collect();
            json!({"metadata": {"ownerReferences": list}})
        };
        for (new, old, expect) in [
            (with(&[("a", true), ("b", false)]), None, vec!["a"]),
            (with(&[("a", true), ("b", true)]), Some(with(&[("a", true)])), vec!["b"]),
            (with(&[("a", true)]), Some(with(&[("a", false)])), vec!["a"]),
            (with(&[("a", false)]), Some(with(&[("a", true)])), vec![]),
        ] {
            let said: Vec<&str> = newly_blocking(&new, old.as_ref()).iter().filter_map(|o| o["uid"].as_str()).collect();
            assert_eq!(said, expect, "{new} {old:?}");
        }
    }
}
