//! The node authorizer: a kubelet may do what the pods on its node need, and nothing more.
//!
//! Users `system:node:NAME` in group `system:nodes`. Secrets, configuration, claims, volumes and service account tokens are
//! allowed when a pod bound to the node leads to them; everything that is not divided so follows the `system:node` role.
//! Follows `plugin/pkg/auth/authorizer/node`. What pods lead to is an index kept current from the pod cache's history, so
//! deciding costs what changed since the last decision. Writes are judged further by the NodeRestriction admission plugin.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, RwLock};

use meta::{EventKind, Object, Value};

use super::rbac::Rule;
use super::references::{self, Kind};
use super::{Attributes, Decision};
use crate::authn::User;
use crate::server::ApiServer;

const GROUP: &str = "system:nodes";
const PREFIX: &str = "system:node:";
const LEASE_NAMESPACE: &str = "kube-node-lease";
pub const MIRROR: &str = "kubernetes.io/config.mirror";
/// Changes of pods taken in at a time.
const BATCH: usize = 10_000;

/// The node a user is, when it is one: `None` for others, an empty name for one that does not say.
pub fn identity(user: &User) -> Option<&str> {
    if !user.in_group(GROUP) {
        return None;
    }
    user.name.strip_prefix(PREFIX)
}

/// Rules for what is not divided by node.
static RULES: LazyLock<Vec<Rule>> = LazyLock::new(|| {
    let rules = crate::bootstrap::policy::rules_of("system:node");
    // The rows of the policy table are written in this very form.
    serde_json::from_value(rules).unwrap_or_default()
});

type Reference = (Kind, Box<str>, Box<str>);

/// Which node a pod is on, and what it leads to.
struct Held {
    node: Box<str>,
    references: Vec<Reference>,
}

/// From objects to the nodes that reach them.
#[derive(Default)]
struct Index {
    /// The pod cache's revision this is complete up to.
    at: u64,
    pods: HashMap<Arc<str>, Held>,
    /// Pods on each node that lead to an object.
    nodes: HashMap<Reference, HashMap<Box<str>, usize>>,
}

impl Index {
    fn remove(&mut self, key: &str) {
        let Some(held) = self.pods.remove(key) else { return };
        for reference in held.references {
            let Some(nodes) = self.nodes.get_mut(&reference) else { continue };
            if let Some(count) = nodes.get_mut(&held.node) {
                *count -= 1;
                if *count == 0 {
                    nodes.remove(&held.node);
                }
            }
            if nodes.is_empty() {
                self.nodes.remove(&reference);
            }
        }
    }

    fn insert(&mut self, key: Arc<str>, object: &Object) {
        let Ok(pod) = object.value() else { return };
        let Some(node) = pod["spec"]["nodeName"].as_str().filter(|n| !n.is_empty()) else { return };
        let mut references = Vec::new();
        // A mirror pod is what its node said it is: it gives the node nothing.
        if pod["metadata"]["annotations"][MIRROR].is_null() {
            references::of_pod(&pod, |kind, name| {
                let reference: Reference = (kind, object.meta.namespace.clone(), name.into());
                if !references.contains(&reference) {
                    references.push(reference);
                }
            });
        }
        for reference in &references {
            *self.nodes.entry(reference.clone()).or_default().entry(node.into()).or_default() += 1;
        }
        self.pods.insert(key, Held { node: node.into(), references });
    }

    fn reaches(&self, node: &str, kind: Kind, namespace: &str, name: &str) -> bool {
        self.nodes.get(&(kind, namespace.into(), name.into())).is_some_and(|nodes| nodes.contains_key(node))
    }
}

/// The authorizer.
#[derive(Default)]
pub struct NodeAuthorizer {
    index: RwLock<Index>,
}

impl NodeAuthorizer {
    /// Takes in what happened to pods since the last time.
    fn refresh(&self, server: &ApiServer) {
        let catalog = server.catalog();
        let Some(cache) = catalog.find("", "pods").and_then(|served| served.cache.clone()) else { return };
        let newest = cache.newest();
        if self.index.read().unwrap_or_else(std::sync::PoisonError::into_inner).at >= newest {
            return;
        }
        let mut index = self.index.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        while index.at < newest {
            let Some(events) = cache.since(index.at, BATCH) else {
                let slice = cache.list(cache.prefix());
                *index = Index { at: slice.newest, ..Index::default() };
                for pod in slice.items {
                    index.insert(format!("{}/{}/{}", cache.prefix(), pod.meta.namespace, pod.meta.name).into(), &pod);
                }
                break;
            };
            let Some(last) = events.last().map(|event| event.revision()) else { break };
            for event in events {
                index.remove(&event.key);
                if event.kind != EventKind::Deleted {
                    index.insert(event.key.clone(), &event.object);
                }
            }
            index.at = last;
        }
    }

    /// Whether a pod on the node leads to the object.
    fn reaches(&self, server: &ApiServer, node: &str, kind: Kind, namespace: &str, name: &str) -> bool {
        self.refresh(server);
        let index = self.index.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        if index.reaches(node, kind, namespace, name) {
            return true;
        }
        if kind != Kind::Secret {
            return false;
        }
        // A secret may be one that a volume of the node's pods needs.
        drop(index);
        server.lookup_all("", "persistentvolumes", "").iter().filter_map(|volume| volume.value().ok()).any(|volume| {
            references::of_volume(&volume).iter().any(|(ns, secret)| ns == namespace && secret == name)
                && self.reaches_volume(server, node, &volume)
        })
    }

    fn reaches_volume(&self, server: &ApiServer, node: &str, volume: &Value) -> bool {
        let claim = |field: &str| volume["spec"]["claimRef"][field].as_str().unwrap_or_default();
        self.refresh(server);
        let index = self.index.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        !claim("name").is_empty() && index.reaches(node, Kind::PersistentVolumeClaim, claim("namespace"), claim("name"))
    }

    pub fn decide(&self, server: &ApiServer, user: &User, a: &Attributes<'_>) -> Decision {
        let Some(node) = identity(user) else { return Decision::NoOpinion(String::new()) };
        if node.is_empty() {
            return Decision::NoOpinion(format!("unknown node for user {:?}", user.name));
        }
        let divided = match (a.path, a.group, a.resource) {
            (Some(_), ..) => None,
            (_, "", "secrets") => Some(self.read_of(server, node, Kind::Secret, a)),
            (_, "", "configmaps") => Some(self.read_of(server, node, Kind::ConfigMap, a)),
            (_, "", "persistentvolumeclaims") if a.subresource == "status" => Some(match a.verb {
                "get" | "update" | "patch" => self.related(server, node, Kind::PersistentVolumeClaim, a),
                _ => Err("can only get/update/patch this type".into()),
            }),
            (_, "", "persistentvolumeclaims") => {
                Some(get_only(a).and_then(|()| self.related(server, node, Kind::PersistentVolumeClaim, a)))
            }
            (_, "", "persistentvolumes") => Some(get_only(a).and_then(|()| {
                let volume = server.lookup("", "persistentvolumes", "", a.name).and_then(|v| v.value().ok());
                related(node, volume.is_some_and(|volume| self.reaches_volume(server, node, &volume)))
            })),
            (_, "storage.k8s.io", "volumeattachments") => Some(get_only(a).and_then(|()| {
                let attachment = server.lookup(a.group, a.resource, "", a.name).and_then(|v| v.value().ok());
                related(node, attachment.is_some_and(|v| v["spec"]["nodeName"] == node))
            })),
            (_, "resource.k8s.io", "resourceclaims") => {
                Some(get_only(a).and_then(|()| self.related(server, node, Kind::ResourceClaim, a)))
            }
            (_, "resource.k8s.io", "resourceslices") => Some(slice(server, node, a)),
            (_, "certificates.k8s.io", "podcertificaterequests") => Some(certificate_request(server, node, a)),
            (_, "", "serviceaccounts") => Some(self.token(server, node, a)),
            (_, "coordination.k8s.io", "leases") => Some(lease(node, a)),
            (_, "storage.k8s.io", "csinodes") => Some(csi_node(node, a)),
            (_, "", "nodes") => Some(own_node(node, a)),
            (_, "", "pods") => Some(pod(server, node, a)),
            _ => None,
        };
        match divided {
            Some(Ok(())) => Decision::Allow(String::new()),
            Some(Err(reason)) => Decision::NoOpinion(reason),
            None if RULES.iter().any(|rule| rule.allows(a)) => Decision::Allow(String::new()),
            None => Decision::NoOpinion(String::new()),
        }
    }

    fn related(&self, server: &ApiServer, node: &str, kind: Kind, a: &Attributes<'_>) -> Result<(), String> {
        if a.name.is_empty() {
            return Err("No Object name found".into());
        }
        related(node, self.reaches(server, node, kind, a.namespace, a.name))
    }

    fn read_of(&self, server: &ApiServer, node: &str, kind: Kind, a: &Attributes<'_>) -> Result<(), String> {
        match a.verb {
            "get" | "list" | "watch" if !a.subresource.is_empty() => Err("cannot read subresource".into()),
            "get" | "list" | "watch" if a.namespace.is_empty() => {
                Err("can only read namespaced object of this type".into())
            }
            "get" | "list" | "watch" => self.related(server, node, kind, a),
            _ => Err("can only read resources of this type".into()),
        }
    }

    fn token(&self, server: &ApiServer, node: &str, a: &Attributes<'_>) -> Result<(), String> {
        match (a.verb, a.subresource) {
            // A credential provider may be told of annotations of the accounts of the node's pods.
            ("get", "") if !a.name.is_empty() => self.related(server, node, Kind::ServiceAccount, a),
            ("create", "token") if !a.name.is_empty() => self.related(server, node, Kind::ServiceAccount, a),
            ("create", _) if !a.name.is_empty() => Err("can only create token subresource of serviceaccount".into()),
            _ => Err("can only create tokens for individual service accounts".into()),
        }
    }
}

fn related(node: &str, is: bool) -> Result<(), String> {
    if is { Ok(()) } else { Err(format!("no relationship found between node '{node}' and this object")) }
}

fn get_only(a: &Attributes<'_>) -> Result<(), String> {
    match a.verb {
        "get" if !a.subresource.is_empty() => Err("cannot get subresource".into()),
        "get" if a.name.is_empty() => Err("No Object name found".into()),
        "get" => Ok(()),
        _ => Err("can only get individual resources of this type".into()),
    }
}

fn lease(node: &str, a: &Attributes<'_>) -> Result<(), String> {
    match a.verb {
        "get" | "create" | "update" | "patch" | "delete" => {}
        _ => return Err("can only get, create, update, patch, or delete a node lease".into()),
    }
    if a.namespace != LEASE_NAMESPACE {
        return Err(format!("can only access leases in the {LEASE_NAMESPACE:?} system namespace"));
    }
    // The name of what is created is admission's to check.
    if a.verb != "create" && a.name != node {
        return Err("can only access node lease with the same name as the requesting node".into());
    }
    Ok(())
}

fn csi_node(node: &str, a: &Attributes<'_>) -> Result<(), String> {
    match a.verb {
        "get" | "create" | "update" | "patch" | "delete" => {}
        _ => return Err("can only get, create, update, patch, or delete a CSINode".into()),
    }
    if !a.subresource.is_empty() {
        return Err("cannot authorize CSINode subresources".into());
    }
    if a.verb != "create" && a.name != node {
        return Err("can only access CSINode with the same name as the requesting node".into());
    }
    Ok(())
}

fn own_node(node: &str, a: &Attributes<'_>) -> Result<(), String> {
    match (a.subresource, a.verb) {
        // Whose Node is written is admission's to check, where the object is known.
        ("", "create" | "update" | "patch") | ("status", "update" | "patch") => Ok(()),
        ("", "get" | "list" | "watch") if a.name == node => Ok(()),
        ("", "get" | "list" | "watch") => {
            Err(format!("node '{node}' cannot read '{}', only its own Node object", a.name))
        }
        _ => Err(String::new()),
    }
}

fn pod(server: &ApiServer, node: &str, a: &Attributes<'_>) -> Result<(), String> {
    let bound = || {
        let pod = server.lookup("", "pods", a.namespace, a.name).and_then(|pod| pod.value().ok());
        related(node, pod.is_some_and(|pod| pod["spec"]["nodeName"] == node))
    };
    match (a.subresource, a.verb) {
        ("", "get") => bound(),
        ("", "list" | "watch") if a.selected("spec.nodeName") == Some(node) => Ok(()),
        ("", "list" | "watch") if !a.name.is_empty() && !a.namespace.is_empty() => bound(),
        ("", "list" | "watch") => Err("can only list/watch pods with spec.nodeName field selector".into()),
        ("", "create" | "delete") | ("status", "update" | "patch") | ("eviction", "create") => Ok(()),
        _ => Err(String::new()),
    }
}

/// That it asks for a pod of its own, admission sees.
fn certificate_request(server: &ApiServer, node: &str, a: &Attributes<'_>) -> Result<(), String> {
    match a.verb {
        _ if !a.subresource.is_empty() => Err("cannot authorize PodCertificateRequest subresources".into()),
        "create" => Ok(()),
        "get" => {
            let request = server.lookup(a.group, a.resource, a.namespace, a.name).and_then(|r| r.value().ok());
            related(node, request.is_some_and(|r| r["spec"]["nodeName"] == node))
        }
        "list" | "watch" if a.selected("spec.nodeName") == Some(node) => Ok(()),
        "list" | "watch" => Err("can only list/watch podcertificaterequests with nodeName field selector".into()),
        _ => Err("only the following verbs are allowed for a PodCertificateRequest: get, watch, list, create".into()),
    }
}

fn slice(server: &ApiServer, node: &str, a: &Attributes<'_>) -> Result<(), String> {
    if !a.subresource.is_empty() {
        return Err("cannot authorize ResourceSlice subresources".into());
    }
    match a.verb {
        "create" => Ok(()),
        "get" | "update" | "patch" | "delete" => {
            let slice = server.lookup(a.group, a.resource, "", a.name).and_then(|slice| slice.value().ok());
            related(node, slice.is_some_and(|slice| slice["spec"]["nodeName"] == node))
        }
        "list" | "watch" | "deletecollection" if a.selected("spec.nodeName") == Some(node) => Ok(()),
        "list" | "watch" | "deletecollection" => Err("can only list/watch/deletecollection resourceslices with nodeName field selector".into()),
        _ => Err("only the following verbs are allowed for a ResourceSlice: get, watch, list, create, update, patch, delete, deletecollection".into()),
    }
}
