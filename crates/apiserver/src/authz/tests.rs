//! What a node may do, from authorization to admission.

use meta::Verb;
use serde_json::{Value, json};

use super::{Attributes, Decision, decide};
use crate::testing::{Fixture, admin, node, pod, said};

async fn cluster() -> Fixture {
    let f = Fixture::start().await;
    f.namespace("n", Value::Null).await;
    for name in ["a", "b"] {
        f.create("nodes", "", json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})).await.unwrap();
    }
    for name in ["used", "other", "of-volume", "pull"] {
        f.create("secrets", "n", json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}}))
            .await
            .unwrap();
    }
    let claim = |name: &str| {
        json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}})
    };
    f.create("persistentvolumeclaims", "n", claim("claim")).await.unwrap();
    let volume = |name: &str, claim: &str| {
        json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": {
        "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "claimRef": {"namespace": "n", "name": claim},
        "csi": {"driver": "d.example.com", "volumeHandle": "h", "nodePublishSecretRef": {"namespace": "n", "name": "of-volume"}}}})
    };
    f.create("persistentvolumes", "", volume("mine", "claim")).await.unwrap();
    f.create("persistentvolumes", "", volume("theirs", "another")).await.unwrap();
    let on_a = json!({"spec": {"nodeName": "a", "imagePullSecrets": [{"name": "pull"}], "volumes": [
        {"name": "c", "persistentVolumeClaim": {"claimName": "claim"}},
        {"name": "p", "projected": {"sources": [{"configMap": {"name": "conf"}}]}},
    ], "containers": [{"name": "c", "image": "i", "env": [{"name": "E", "valueFrom": {"secretKeyRef": {"name": "used", "key": "k"}}}]}]}});
    f.create("pods", "n", pod("on-a", on_a)).await.unwrap();
    f.create("pods", "n", pod("on-b", json!({"spec": {"nodeName": "b"}}))).await.unwrap();
    f
}

#[tokio::test(flavor = "multi_thread")]
async fn node_decisions() {
    let f = cluster().await;
    // (verb, group, resource[/sub], namespace, name, field selector, whether allowed)
    for (verb, group, resource, namespace, name, fields, expect) in [
        ("get", "", "secrets", "n", "used", "", true),
        ("get", "", "secrets", "n", "pull", "", true),
        ("get", "", "secrets", "n", "of-volume", "", true),
        ("get", "", "secrets", "n", "other", "", false),
        ("update", "", "secrets", "n", "used", "", false),
        ("list", "", "secrets", "n", "", "", false),
        ("list", "", "secrets", "n", "", "metadata.name=used", true),
        ("watch", "", "secrets", "n", "", "metadata.name=used", true),
        ("watch", "", "secrets", "n", "", "metadata.name=other", false),
        ("list", "", "secrets", "", "", "metadata.name=used", false),
        ("get", "", "configmaps", "n", "conf", "", true),
        ("get", "", "configmaps", "n", "elsewhere", "", false),
        ("get", "", "persistentvolumeclaims", "n", "claim", "", true),
        ("list", "", "persistentvolumeclaims", "n", "", "", false),
        ("patch", "", "persistentvolumeclaims/status", "n", "claim", "", true),
        ("get", "", "persistentvolumes", "", "mine", "", true),
        ("get", "", "persistentvolumes", "", "theirs", "", false),
        ("create", "", "serviceaccounts/token", "n", "default", "", true),
        ("create", "", "serviceaccounts/token", "n", "nobody", "", false),
        ("create", "", "serviceaccounts", "n", "", "", false),
        ("get", "", "nodes", "", "a", "", true),
        ("get", "", "nodes", "", "b", "", false),
        ("list", "", "nodes", "", "", "", false),
        ("watch", "", "nodes", "", "", "metadata.name=a", true),
        ("patch", "", "nodes/status", "", "a", "", true),
        ("delete", "", "nodes", "", "a", "", false),
        ("list", "", "pods", "", "", "spec.nodeName=a", true),
        ("watch", "", "pods", "", "", "spec.nodeName=b", false),
        ("list", "", "pods", "", "", "", false),
        ("get", "", "pods", "n", "on-a", "", true),
        ("get", "", "pods", "n", "on-b", "", false),
        ("patch", "", "pods/status", "n", "on-a", "", true),
        ("patch", "", "pods", "n", "on-a", "", false),
        ("create", "", "pods/eviction", "n", "on-a", "", true),
        ("create", "", "pods/exec", "n", "on-a", "", false),
        ("list", "", "services", "", "", "", true),
        ("create", "", "services", "n", "", "", false),
        ("create", "", "events", "n", "", "", true),
        ("get", "coordination.k8s.io", "leases", "kube-node-lease", "a", "", true),
        ("get", "coordination.k8s.io", "leases", "kube-node-lease", "b", "", false),
        ("get", "coordination.k8s.io", "leases", "kube-system", "a", "", false),
        ("update", "storage.k8s.io", "csinodes", "", "a", "", true),
        ("update", "storage.k8s.io", "csinodes", "", "b", "", false),
        ("list", "apps", "deployments", "n", "", "", false),
    ] {
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        let mut a = Attributes {
            verb,
            group,
            version: "v1",
            resource,
            subresource,
            namespace,
            name,
            field_selector: fields,
            ..Attributes::default()
        };
        if name.is_empty() {
            a.name = a.selected("metadata.name").unwrap_or_default();
        }
        let decision = decide(&f.server, &node("a"), &a);
        assert_eq!(matches!(decision, Decision::Allow(_)), expect, "{a:?}: {decision:?}");
    }
    // What no pod leads to any more is out of reach.
    let gone = f
        .ask(
            &admin(),
            Verb::Delete,
            "pods",
            "n",
            "on-a",
            json!({"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0}),
        )
        .await;
    gone.unwrap();
    let refused = f.ask(&node("a"), Verb::Get, "secrets", "n", "used", Value::Null).await;
    assert_eq!(
        said(&refused),
        "403 secrets \"used\" is forbidden: User \"system:node:a\" cannot get resource \"secrets\" in API group \"\" in the namespace \"n\": no relationship found between node 'a' and this object"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn node_restriction() {
    let f = cluster().await;
    let a = node("a");
    let uid = f.ask(&a, Verb::Get, "nodes", "", "a", Value::Null).await.unwrap()["metadata"]["uid"].clone();
    let pod_uid = f.ask(&a, Verb::Get, "pods", "n", "on-a", Value::Null).await.unwrap()["metadata"]["uid"].clone();
    let merge = |labels: Value, taints: Value| json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "a", "labels": labels}, "spec": {"taints": taints}});
    let tainted = json!([{"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}]);
    let mirror = |owner: Value, spec: Value| {
        let mut pod = pod(
            "mirror",
            json!({"metadata": {"annotations": {"kubernetes.io/config.mirror": "x"}, "ownerReferences": [owner]}, "spec": {"nodeName": "a"}}),
        );
        crate::testing::merge(&mut pod, json!({"spec": spec}));
        pod
    };
    let owner = json!({"apiVersion": "v1", "kind": "Node", "name": "a", "uid": uid, "controller": true});
    let token = |bound: Value| json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": [], "boundObjectRef": bound}});
    let lease = |name: &str| json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name}, "spec": {}});
    for (verb, resource, namespace, name, body, expect) in [
        (
            Verb::Update,
            "nodes",
            "",
            "a",
            merge(json!({"kubernetes.io/hostname": "a", "free": "1"}), tainted.clone()),
            "ok",
        ),
        (
            Verb::Update,
            "nodes",
            "",
            "a",
            merge(
                json!({"node-restriction.kubernetes.io/x": "1", "kubernetes.io/hostname": "a", "free": "1"}),
                tainted.clone(),
            ),
            "403 nodes \"a\" is forbidden: is not allowed to modify labels: node-restriction.kubernetes.io/x",
        ),
        (
            Verb::Update,
            "nodes",
            "",
            "a",
            merge(json!({"kubernetes.io/hostname": "a", "free": "1"}), json!([])),
            "403 nodes \"a\" is forbidden: node \"a\" is not allowed to modify taints",
        ),
        (
            Verb::Create,
            "nodes",
            "",
            "",
            json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "z"}}),
            "403 nodes \"z\" is forbidden: node \"a\" is not allowed to modify node \"z\"",
        ),
        (
            Verb::Delete,
            "pods",
            "n",
            "on-b",
            Value::Null,
            "403 pods \"on-b\" is forbidden: node \"a\" can only delete pods with spec.nodeName set to itself",
        ),
        (
            Verb::Create,
            "pods",
            "n",
            "",
            pod("plain", json!({"spec": {"nodeName": "a"}})),
            "403 pods \"plain\" is forbidden: pod does not have \"kubernetes.io/config.mirror\" annotation, node \"a\" can only create mirror pods",
        ),
        (
            Verb::Create,
            "pods",
            "n",
            "",
            mirror(owner.clone(), json!({"nodeName": "b"})),
            "403 pods \"mirror\" is forbidden: node \"a\" can only create pods with spec.nodeName set to itself",
        ),
        (
            Verb::Create,
            "pods",
            "n",
            "",
            mirror(owner.clone(), json!({"volumes": [{"name": "s", "secret": {"secretName": "used"}}]})),
            "403 pods \"mirror\" is forbidden: node \"a\" can not create pods that reference secrets",
        ),
        (Verb::Create, "pods", "n", "", mirror(owner.clone(), json!({})), "ok"),
        (
            Verb::Create,
            "serviceaccounts:token",
            "n",
            "default",
            token(Value::Null),
            "403 serviceaccounts \"default\" is forbidden: node requested token not bound to a pod",
        ),
        (
            Verb::Create,
            "serviceaccounts:token",
            "n",
            "default",
            token(json!({"apiVersion": "v1", "kind": "Pod", "name": "on-a", "uid": pod_uid})),
            "ok",
        ),
        (Verb::Create, "coordination.k8s.io/v1/leases", "kube-node-lease", "", lease("a"), "ok"),
        (
            Verb::Create,
            "coordination.k8s.io/v1/leases",
            "kube-node-lease",
            "",
            lease("b"),
            "403 leases.coordination.k8s.io \"b\" is forbidden: can only access node lease with the same name as the requesting node",
        ),
        (Verb::Delete, "pods", "n", "on-a", Value::Null, "ok"),
    ] {
        let result = f.ask(&a, verb, resource, namespace, name, body.clone()).await;
        assert_eq!(said(&result), expect, "{verb:?} {resource} {name} {body}");
    }
}
