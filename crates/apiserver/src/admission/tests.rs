//! Admission as clients meet it: requests to a whole server.

use meta::Verb;
use serde_json::{Value, json};

use crate::authn::User;
use crate::testing::{Fixture, admin, pod, said};

fn object(api_version: &str, kind: &str, name: &str, rest: Value) -> Value {
    let mut out = json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": name}});
    crate::testing::merge(&mut out, rest);
    out
}

fn sized(name: &str, requests: Value, limits: Value) -> Value {
    pod(
        name,
        json!({"spec": {"containers": [{"name": "c", "image": "i", "resources": {"requests": requests, "limits": limits}}]}}),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn limits() {
    let f = Fixture::start().await;
    f.namespace("n", Value::Null).await;
    let range = json!({"spec": {"limits": [
        {"type": "Container", "min": {"cpu": "50m"}, "max": {"cpu": "1"}, "default": {"cpu": "500m"}, "defaultRequest": {"cpu": "100m"}},
        {"type": "Pod", "maxLimitRequestRatio": {"cpu": "8"}},
        {"type": "PersistentVolumeClaim", "max": {"storage": "2Gi"}},
    ]}});
    f.create("limitranges", "n", object("v1", "LimitRange", "r", range)).await.unwrap();
    let claim = |size: &str| {
        object(
            "v1",
            "PersistentVolumeClaim",
            "claim",
            json!({"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}}}),
        )
    };
    let made = f.create("pods", "n", pod("plain", json!({}))).await.unwrap();
    assert_eq!(
        made["spec"]["containers"][0]["resources"],
        json!({"requests": {"cpu": "100m"}, "limits": {"cpu": "500m"}})
    );
    assert_eq!(
        made["metadata"]["annotations"]["kubernetes.io/limit-ranger"],
        "LimitRanger plugin set: cpu request for container c; cpu limit for container c"
    );
    for (resource, body, expect) in [
        (
            "pods",
            sized("a", json!({"cpu": "10m"}), json!({"cpu": "70m"})),
            "403 pods \"a\" is forbidden: minimum cpu usage per Container is 50m, but request is 10m",
        ),
        (
            "pods",
            sized("a", json!({"cpu": "1"}), json!({"cpu": "2"})),
            "403 pods \"a\" is forbidden: maximum cpu usage per Container is 1, but limit is 2",
        ),
        (
            "pods",
            sized("a", json!({"cpu": "100m"}), json!({"cpu": "1"})),
            "403 pods \"a\" is forbidden: cpu max limit to request ratio per Pod is 8, but provided ratio is 10.000000",
        ),
        ("pods", sized("a", json!({"cpu": "200m"}), json!({"cpu": "1"})), "ok"),
        (
            "persistentvolumeclaims",
            claim("3Gi"),
            "403 persistentvolumeclaims \"claim\" is forbidden: maximum storage usage per PersistentVolumeClaim is 2Gi, but request is 3Gi",
        ),
        ("persistentvolumeclaims", claim("1Gi"), "ok"),
    ] {
        assert_eq!(said(&f.create(resource, "n", body.clone()).await), expect, "{body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn quotas() {
    let f = Fixture::start().await;
    f.namespace("n", Value::Null).await;
    let hard = json!({"pods": "2", "requests.cpu": "1", "count/deployments.apps": "0", "configmaps": "1"});
    let quota = object("v1", "ResourceQuota", "q", json!({"spec": {"hard": hard}}));
    f.create("resourcequotas", "n", quota.clone()).await.unwrap();
    let mut known = quota;
    known["status"] = json!({"hard": hard, "used": {"pods": "0", "requests.cpu": "0", "count/deployments.apps": "0", "configmaps": "0"}});
    f.ask(&admin(), Verb::Update, "resourcequotas:status", "n", "q", known).await.unwrap();
    let map = |name: &str| object("v1", "ConfigMap", name, json!({}));
    let cpu = |name: &str, cpu: &str| sized(name, json!({"cpu": cpu}), Value::Null);
    let deployment = json!({"spec": {"selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    for (resource, body, expect) in [
        ("pods", cpu("a", "600m"), "ok"),
        (
            "pods",
            cpu("b", "500m"),
            "403 pods \"b\" is forbidden: exceeded quota: q, requested: requests.cpu=500m, used: requests.cpu=600m, limited: requests.cpu=1",
        ),
        ("pods", pod("c", json!({})), "403 pods \"c\" is forbidden: failed quota: q: must specify requests.cpu for: c"),
        ("pods", cpu("d", "400m"), "ok"),
        (
            "pods",
            cpu("e", "0"),
            "403 pods \"e\" is forbidden: exceeded quota: q, requested: pods=1, used: pods=2, limited: pods=2",
        ),
        ("configmaps", map("one"), "ok"),
        (
            "configmaps",
            map("two"),
            "403 configmaps \"two\" is forbidden: exceeded quota: q, requested: configmaps=1, used: configmaps=1, limited: configmaps=1",
        ),
        (
            "apps/v1/deployments",
            object("apps/v1", "Deployment", "d", deployment),
            "403 deployments.apps \"d\" is forbidden: exceeded quota: q, requested: count/deployments.apps=1, used: count/deployments.apps=0, limited: count/deployments.apps=0",
        ),
    ] {
        assert_eq!(said(&f.create(resource, "n", body.clone()).await), expect, "{body}");
    }
    let now = f.ask(&admin(), Verb::Get, "resourcequotas", "n", "q", Value::Null).await.unwrap();
    assert_eq!(
        now["status"]["used"],
        json!({"pods": "2", "requests.cpu": "1", "count/deployments.apps": "0", "configmaps": "1"})
    );
}

/// Creates at once share what is left, and no more.
#[tokio::test(flavor = "multi_thread")]
async fn quota_race() {
    let f = Fixture::start().await;
    f.namespace("n", Value::Null).await;
    let mut quota = object("v1", "ResourceQuota", "q", json!({"spec": {"hard": {"secrets": "5"}}}));
    f.create("resourcequotas", "n", quota.clone()).await.unwrap();
    quota["status"] = json!({"hard": {"secrets": "5"}, "used": {"secrets": "0"}});
    f.ask(&admin(), Verb::Update, "resourcequotas:status", "n", "q", quota).await.unwrap();
    let tries = (0..20).map(|n| f.create("secrets", "n", object("v1", "Secret", &format!("s{n}"), json!({}))));
    let results = futures::future::join_all(tries).await;
    assert_eq!(results.iter().filter(|r| r.is_ok()).count(), 5, "{:?}", results.iter().map(said).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn escalation() {
    let f = Fixture::start().await;
    f.namespace("n", Value::Null).await;
    let rbac = |kind: &str, name: &str, rest: Value| object("rbac.authorization.k8s.io/v1", kind, name, rest);
    let role = |name: &str, verbs: Value| {
        rbac("Role", name, json!({"rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": verbs}]}))
    };
    let own = json!({"rules": [
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]},
        {"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["roles", "rolebindings"], "verbs": ["create"]},
        {"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["clusterroles"], "resourceNames": ["view"], "verbs": ["bind"]},
    ]});
    f.create("rbac.authorization.k8s.io/v1/roles", "n", rbac("Role", "own", own)).await.unwrap();
    let to = |kind: &str, name: &str| json!({"roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name}, "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "u"}]});
    f.create("rbac.authorization.k8s.io/v1/rolebindings", "n", rbac("RoleBinding", "own", to("Role", "own")))
        .await
        .unwrap();
    let user = User::new("u", &["g"]);
    for (plural, body, expect) in [
        ("roles", role("less", json!(["get"])), "ok"),
        (
            "roles",
            role("more", json!(["get", "list", "watch"])),
            "403 roles.rbac.authorization.k8s.io \"more\" is forbidden: user \"u\" (groups=[\"g\"]) is attempting to grant RBAC permissions not currently held:\n{APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"list\" \"watch\"]}",
        ),
        ("rolebindings", rbac("RoleBinding", "less", to("Role", "less")), "ok"),
        ("rolebindings", rbac("RoleBinding", "view", to("ClusterRole", "view")), "ok"),
        (
            "rolebindings",
            rbac("RoleBinding", "none", to("Role", "none")),
            "404 roles.rbac.authorization.k8s.io \"none\" not found",
        ),
    ] {
        let result =
            f.ask(&user, Verb::Create, &format!("rbac.authorization.k8s.io/v1/{plural}"), "n", "", body.clone()).await;
        assert_eq!(said(&result), expect, "{body}");
    }
    let edit = f
        .ask(
            &user,
            Verb::Create,
            "rbac.authorization.k8s.io/v1/rolebindings",
            "n",
            "",
            rbac("RoleBinding", "edit", to("ClusterRole", "edit")),
        )
        .await;
    assert!(said(&edit).contains("is attempting to grant RBAC permissions not currently held"), "{}", said(&edit));
}

#[tokio::test(flavor = "multi_thread")]
async fn claims() {
    let f = Fixture::start().await;
    f.namespace("n", Value::Null).await;
    let class = |name: &str, annotations: Value, grows: bool| {
        object(
            "storage.k8s.io/v1",
            "StorageClass",
            name,
            json!({"provisioner": "p.example.com", "allowVolumeExpansion": grows, "metadata": {"annotations": annotations}}),
        )
    };
    f.create("storage.k8s.io/v1/storageclasses", "", class("other", json!({}), false)).await.unwrap();
    f.create(
        "storage.k8s.io/v1/storageclasses",
        "",
        class("main", json!({"storageclass.kubernetes.io/is-default-class": "true"}), true),
    )
    .await
    .unwrap();
    let claim = |name: &str, class: Value, size: &str| {
        object(
            "v1",
            "PersistentVolumeClaim",
            name,
            json!({"spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": class, "resources": {"requests": {"storage": size}}}}),
        )
    };
    for (name, class, expect) in
        [("a", Value::Null, json!("main")), ("b", json!("other"), json!("other")), ("c", json!(""), json!(""))]
    {
        let mut body = claim(name, class.clone(), "1Gi");
        if class.is_null() {
            body["spec"].as_object_mut().unwrap().remove("storageClassName");
        }
        let made = f.create("persistentvolumeclaims", "n", body).await.unwrap();
        assert_eq!(made["spec"]["storageClassName"], expect);
    }
    for (name, bound, expect) in [
        (
            "a",
            false,
            "422 PersistentVolumeClaim \"a\" is invalid: spec: Forbidden: spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims",
        ),
        (
            "b",
            true,
            "403 persistentvolumeclaims \"b\" is forbidden: only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize",
        ),
        ("a", true, "ok"),
    ] {
        let mut now = f.ask(&admin(), Verb::Get, "persistentvolumeclaims", "n", name, Value::Null).await.unwrap();
        if bound {
            now["status"] = json!({"phase": "Bound", "capacity": {"storage": "1Gi"}});
            now = f.ask(&admin(), Verb::Update, "persistentvolumeclaims:status", "n", name, now).await.unwrap();
        }
        now["spec"]["resources"]["requests"]["storage"] = "2Gi".into();
        let result = f.ask(&admin(), Verb::Update, "persistentvolumeclaims", "n", name, now).await;
        assert_eq!(said(&result), expect, "{name} {bound}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ingresses() {
    let f = Fixture::start().await;
    f.namespace("n", Value::Null).await;
    let class = |name: &str, default: &str| {
        let annotations = json!({"ingressclass.kubernetes.io/is-default-class": default});
        let more = json!({"metadata": {"annotations": annotations}, "spec": {"controller": "example.com/c"}});
        object("networking.k8s.io/v1", "IngressClass", name, more)
    };
    let ingress = |name: &str, annotations: Value, class: Value| {
        let backend = json!({"service": {"name": "s", "port": {"number": 80}}});
        let more = json!({"metadata": {"annotations": annotations}, "spec": {"ingressClassName": class, "defaultBackend": backend}});
        object("networking.k8s.io/v1", "Ingress", name, more)
    };
    let classes = "networking.k8s.io/v1/ingressclasses";
    f.create(classes, "", class("a-other", "false")).await.unwrap();
    for (name, default, annotations, class_name, expect) in [
        ("none", None, json!({}), Value::Null, Value::Null),
        ("default", Some("b-main"), json!({}), Value::Null, json!("b-main")),
        ("named", None, json!({}), json!("a-other"), json!("a-other")),
        ("annotated", None, json!({"kubernetes.io/ingress.class": "x"}), Value::Null, Value::Null),
    ] {
        if let Some(default) = default {
            f.create(classes, "", class(default, "true")).await.unwrap();
        }
        let made = f.create("networking.k8s.io/v1/ingresses", "n", ingress(name, annotations, class_name)).await;
        assert_eq!(made.unwrap()["spec"]["ingressClassName"], expect, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pod_security() {
    let f = Fixture::start().await;
    f.namespace("n", json!({"pod-security.kubernetes.io/enforce": "baseline", "pod-security.kubernetes.io/warn": "restricted", "pod-security.kubernetes.io/warn-version": "v1.30"})).await;
    let host = f.create("pods", "n", pod("host", json!({"spec": {"hostNetwork": true}}))).await;
    assert_eq!(
        said(&host),
        "403 pods \"host\" is forbidden: violates PodSecurity \"baseline:latest\": host namespaces (hostNetwork=true)"
    );
    let (made, warnings) = f.ask_warned(&admin(), Verb::Create, "pods", "n", "", pod("plain", json!({}))).await;
    assert_eq!(said(&made), "ok");
    assert!(
        warnings.iter().any(|w| w.starts_with(
            "would violate PodSecurity \"restricted:v1.30\": allowPrivilegeEscalation != false (container \"c\""
        )),
        "{warnings:?}"
    );
    let mut namespace = f.ask(&admin(), Verb::Get, "namespaces", "n", "n", Value::Null).await.unwrap();
    namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] = "restricted".into();
    let (changed, warnings) = f.ask_warned(&admin(), Verb::Update, "namespaces", "n", "n", namespace.clone()).await;
    assert_eq!(said(&changed), "ok");
    assert_eq!(
        warnings,
        [
            "existing pods in namespace \"n\" violate the new PodSecurity enforce level \"restricted:latest\"",
            "plain: allowPrivilegeEscalation != false, unrestricted capabilities, runAsNonRoot != true, seccompProfile"
        ]
    );
    let mut namespace = changed.unwrap();
    namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] = "strict".into();
    let refused = f.ask(&admin(), Verb::Update, "namespaces", "n", "n", namespace).await;
    assert!(said(&refused).starts_with("422 Namespace \"n\" is invalid: metadata.labels[pod-security.kubernetes.io/enforce]: Invalid value: \"strict\": must be one of"), "{}", said(&refused));
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_say_where_their_node_is() {
    let f = Fixture::start().await;
    f.namespace("n", Value::Null).await;
    let labels = json!({"topology.kubernetes.io/zone": "z", "other": "x"});
    f.create("nodes", "", object("v1", "Node", "node", json!({"metadata": {"labels": labels}}))).await.unwrap();
    for (at, (node, own, expect)) in [
        (Value::Null, json!({"a": "b"}), json!({"a": "b"})),
        ("node".into(), json!({"a": "b"}), json!({"a": "b", "topology.kubernetes.io/zone": "z"})),
        ("node".into(), json!({"topology.kubernetes.io/zone": "wrong"}), json!({"topology.kubernetes.io/zone": "z"})),
        ("nowhere".into(), json!({"a": "b"}), json!({"a": "b"})),
    ]
    .into_iter()
    .enumerate()
    {
        let body = pod(&format!("p-{at}"), json!({"metadata": {"labels": own}, "spec": {"nodeName": node}}));
        let made = f.create("pods", "n", body).await.unwrap();
        assert_eq!(made["metadata"]["labels"], expect);
    }
}
