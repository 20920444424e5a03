//! NodeRestriction: a kubelet changes its own Node and its own pods only.
//!
//! The node authorizer lets a node write objects of these kinds; here, where the object is known, it is held to its own.
//! Follows `plugin/pkg/admission/noderestriction`.

use async_trait::async_trait;
use meta::{Status, Value};

use super::{Attributes, Operation, Plugin, Write};
use crate::authz::node::{MIRROR, identity};
use crate::authz::references::{self, Kind};
use crate::server::ApiServer;

pub struct NodeRestriction;

const RESTRICTED: &str = "node-restriction.kubernetes.io";
/// Labels below `kubernetes.io` and `k8s.io` that a node may give itself.
const KUBELET_LABELS: [&str; 11] = [
    "kubernetes.io/hostname",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "beta.kubernetes.io/instance-type",
    "node.kubernetes.io/instance-type",
    "kubernetes.io/os",
    "kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
];
const KUBELET_NAMESPACES: [&str; 2] = ["kubelet.kubernetes.io", "node.kubernetes.io"];

fn below(namespace: &str, root: &str) -> bool {
    namespace.strip_suffix(root).is_some_and(|head| head.is_empty() || head.ends_with('.'))
}

/// The labels that differ and that a node has no say in, joined.
fn forbidden_labels(new: &Value, old: &Value) -> String {
    let keys =
        |labels: &Value| labels.as_object().map(|map| map.keys().cloned().collect::<Vec<_>>()).unwrap_or_default();
    let mut changed: Vec<String> =
        keys(new).into_iter().chain(keys(old)).filter(|key| new.get(key) != old.get(key)).collect();
    changed.sort();
    changed.dedup();
    changed.retain(|label| {
        let namespace = label.split_once('/').map_or("", |(namespace, _)| namespace);
        let system = below(namespace, "kubernetes.io") || below(namespace, "k8s.io");
        let own =
            KUBELET_LABELS.contains(&label.as_str()) || KUBELET_NAMESPACES.iter().any(|root| below(namespace, root));
        below(namespace, RESTRICTED) || (system && !own)
    });
    changed.join(", ")
}

fn or_empty(list: &Value) -> &[Value] {
    list.as_array().map_or(&[], Vec::as_slice)
}

#[async_trait]
impl Plugin for NodeRestriction {
    fn concerns(&self, _server: &ApiServer, a: &Attributes<'_>) -> bool {
        identity(&a.target.caller.user).is_some()
    }

    async fn validate(&self, write: &Write<'_>, object: Option<&Value>) -> Result<(), Status> {
        let Write { server, a, old } = *write;
        let Some(node) = identity(&a.target.caller.user) else { return Ok(()) };
        if node.is_empty() {
            return Err(a.forbid("", format!("could not determine node from user {:?}", a.target.caller.user.name)));
        }
        let null = Value::Null;
        let (object, old) = (object.unwrap_or(&null), old.unwrap_or(&null));
        let verdict = match (a.target.group(), a.target.plural(), &*a.target.request.subresource) {
            ("", "pods", "") => pod(server, node, a.operation, object, old),
            ("", "pods", "status") => pod_status(node, a.operation, object, old),
            ("", "pods", "eviction") => Ok(()), // Evictions arrive here as the deletes they become.
            ("", "pods", other) => {
                Err(format!("unexpected pod subresource {other:?}, only 'status' and 'eviction' are allowed"))
            }
            ("", "nodes", _) => own_node(node, a.operation, object, old),
            ("", "persistentvolumeclaims", "status") => claim_status(node, object, old),
            ("", "persistentvolumeclaims", _) => Err("may only update PVC status".into()),
            ("", "serviceaccounts", "token") => token(server, node, &a.target.request.namespace, object),
            ("coordination.k8s.io", "leases", _) if a.target.request.namespace != "kube-node-lease" => {
                Err("can only access leases in the \"kube-node-lease\" system namespace".into())
            }
            ("coordination.k8s.io", "leases", _) => {
                same_name(node, object, old, "can only access node lease with the same name as the requesting node")
            }
            ("storage.k8s.io", "csinodes", _) => {
                same_name(node, object, old, "can only access CSINode with the same name as the requesting node")
            }
            ("certificates.k8s.io", "podcertificaterequests", _) => certificate_request(server, node, object),
            ("resource.k8s.io", "resourceslices", _) => slice(node, object, old),
            _ => Ok(()),
        };
        verdict.map_err(|why| {
            let named =
                [object, old].iter().find_map(|o| o["metadata"]["name"].as_str()).unwrap_or(&a.target.request.name);
            a.forbid(named, why)
        })
    }
}

fn same_name(node: &str, object: &Value, old: &Value, why: &str) -> Result<(), String> {
    let named = [object, old].iter().find_map(|o| o["metadata"]["name"].as_str());
    if named == Some(node) { Ok(()) } else { Err(why.into()) }
}

/// A node asks for certificates of the pods that run on it, and says the truth about them.
fn certificate_request(server: &ApiServer, node: &str, object: &Value) -> Result<(), String> {
    let wish = |field: &str| object["spec"][field].as_str().unwrap_or_default();
    if wish("nodeName") != node {
        return Err(format!(
            "PodCertificateRequest.Spec.NodeName={:?}, which is not the requesting node {node:?}",
            wish("nodeName")
        ));
    }
    let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default();
    let pod = server.lookup("", "pods", namespace, wish("podName")).and_then(|p| p.value().ok());
    let Some(pod) = pod.filter(|p| p["metadata"]["uid"] == wish("podUID")) else {
        return Err(format!("pod \"{namespace}/{}\" with that UID does not exist", wish("podName")));
    };
    if pod["spec"]["nodeName"] != node {
        return Err(format!("pod \"{namespace}/{}\" is not running on node {node:?}", wish("podName")));
    }
    if pod["spec"]["serviceAccountName"] != wish("serviceAccountName") {
        return Err(format!(
            "pod \"{namespace}/{}\" does not run as service account {:?}",
            wish("podName"),
            wish("serviceAccountName")
        ));
    }
    Ok(())
}

fn slice(node: &str, object: &Value, old: &Value) -> Result<(), String> {
    let other = |slice: &Value| !slice.is_null() && slice["spec"]["nodeName"] != node;
    if other(old) {
        return Err(format!("can only delete ResourceSlice with the same NodeName as the requesting node {node:?}"));
    }
    if other(object) {
        return Err("can only create ResourceSlice with the same NodeName as the requesting node".into());
    }
    Ok(())
}

fn own_node(node: &str, operation: Operation, object: &Value, old: &Value) -> Result<(), String> {
    let named = [object, old].iter().find_map(|o| o["metadata"]["name"].as_str()).unwrap_or_default();
    if named != node {
        return Err(format!("node {node:?} is not allowed to modify node {named:?}"));
    }
    let forbidden = forbidden_labels(&object["metadata"]["labels"], &old["metadata"]["labels"]);
    match operation {
        Operation::Create if !object["spec"]["configSource"].is_null() => {
            Err(format!("node {node:?} is not allowed to create pods with a non-nil configSource"))
        }
        Operation::Create if !forbidden.is_empty() => {
            Err(format!("node {node:?} is not allowed to set the following labels: {forbidden}"))
        }
        Operation::Update if or_empty(&object["spec"]["taints"]) != or_empty(&old["spec"]["taints"]) => {
            Err(format!("node {node:?} is not allowed to modify taints"))
        }
        Operation::Update if !forbidden.is_empty() => Err(format!("is not allowed to modify labels: {forbidden}")),
        Operation::Update if object["metadata"]["ownerReferences"] != old["metadata"]["ownerReferences"] => {
            Err(format!("node {node:?} is not allowed to modify ownerReferences"))
        }
        _ => Ok(()),
    }
}

fn pod(server: &ApiServer, node: &str, operation: Operation, object: &Value, old: &Value) -> Result<(), String> {
    match operation {
        Operation::Create => mirror_pod(server, node, object),
        Operation::Delete if old["spec"]["nodeName"] == node => Ok(()),
        Operation::Delete => Err(format!("node {node:?} can only delete pods with spec.nodeName set to itself")),
        other => Err(format!(
            "unexpected operation {:?}, node {node:?} can only create and delete mirror pods",
            other.as_str()
        )),
    }
}

fn mirror_pod(server: &ApiServer, node: &str, pod: &Value) -> Result<(), String> {
    if pod["metadata"]["annotations"][MIRROR].is_null() {
        return Err(format!("pod does not have {MIRROR:?} annotation, node {node:?} can only create mirror pods"));
    }
    if pod["spec"]["nodeName"] != node {
        return Err(format!("node {node:?} can only create pods with spec.nodeName set to itself"));
    }
    let owner = match or_empty(&pod["metadata"]["ownerReferences"]) {
        [] => return Err(format!("node {node:?} can only create pods with an owner reference set to itself")),
        [one] => one,
        _ => return Err(format!("node {node:?} can only create pods with a single owner reference set to itself")),
    };
    if owner["apiVersion"] != "v1" || owner["kind"] != "Node" || owner["name"] != node {
        return Err(format!("node {node:?} can only create pods with an owner reference set to itself"));
    }
    if owner["controller"] != true {
        return Err(format!("node {node:?} can only create pods with a controller owner reference set to itself"));
    }
    if owner["blockOwnerDeletion"] == true {
        return Err(format!("node {node:?} must not set blockOwnerDeletion on an owner reference"));
    }
    let found = server
        .lookup("", "nodes", "", node)
        .ok_or_else(|| format!("error looking up node {node} to verify uid: nodes {node:?} not found"))?;
    let said = owner["uid"].as_str().unwrap_or_default();
    if said != &*found.meta.uid {
        return Err(format!("node {node} UID mismatch: expected {said} got {}", found.meta.uid));
    }
    let mut verdict = Ok(());
    references::of_pod(pod, |kind, _| {
        let what = match kind {
            Kind::ServiceAccount => "a service account",
            Kind::Secret => "secrets",
            Kind::ConfigMap => "configmaps",
            Kind::PersistentVolumeClaim => "persistentvolumeclaims",
            Kind::ResourceClaim => "resourceclaims",
        };
        if verdict.is_ok() {
            verdict = Err(format!("node {node:?} can not create pods that reference {what}"));
        }
    });
    verdict
}

fn pod_status(node: &str, operation: Operation, object: &Value, old: &Value) -> Result<(), String> {
    if operation != Operation::Update {
        return Err(format!("unexpected operation {:?}", operation.as_str()));
    }
    if old["spec"]["nodeName"] != node {
        return Err(format!("node {node:?} can only update pod status for pods with spec.nodeName set to itself"));
    }
    if object["metadata"]["labels"] != old["metadata"]["labels"] {
        return Err(format!("node {node:?} cannot update labels through pod status"));
    }
    if object["status"]["resourceClaimStatuses"] != old["status"]["resourceClaimStatuses"] {
        return Err(format!("node {node:?} cannot update resource claim statuses"));
    }
    Ok(())
}

/// Besides its growth, a node has nothing to say of a claim.
fn claim_status(node: &str, object: &Value, old: &Value) -> Result<(), String> {
    let without = |claim: &Value| {
        let mut claim = claim.clone();
        for field in ["capacity", "conditions", "allocatedResources", "allocatedResourceStatuses"] {
            if let Some(status) = claim["status"].as_object_mut() {
                status.remove(field);
            }
        }
        if let Some(metadata) = claim["metadata"].as_object_mut() {
            metadata.remove("managedFields");
            metadata.remove("resourceVersion");
        }
        claim
    };
    if without(object) != without(old) {
        return Err(format!(
            "node {node:?} is not allowed to update fields other than status.capacity and status.conditions"
        ));
    }
    Ok(())
}

fn token(server: &ApiServer, node: &str, namespace: &str, review: &Value) -> Result<(), String> {
    let bound = &review["spec"]["boundObjectRef"];
    let text = |field: &str| bound[field].as_str().unwrap_or_default();
    if text("apiVersion") != "v1" || text("kind") != "Pod" || text("name").is_empty() {
        return Err("node requested token not bound to a pod".into());
    }
    if text("uid").is_empty() {
        return Err("node requested token with a pod binding without a uid".into());
    }
    let pod = server
        .lookup("", "pods", namespace, text("name"))
        .ok_or_else(|| format!("pod {:?} not found", text("name")))?;
    if text("uid") != &*pod.meta.uid {
        return Err(format!(
            "the UID in the bound object reference ({}) does not match the UID in record. The object might have been deleted and then recreated",
            text("uid")
        ));
    }
    let pod = pod.value().map_err(|e| e.to_string())?;
    if pod["spec"]["nodeName"] != node {
        return Err("node requested token bound to a pod scheduled on a different node".into());
    }
    Ok(())
}
