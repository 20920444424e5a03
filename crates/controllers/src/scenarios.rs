//! Whole stories: the controllers at work in the simulated world.

use serde_json::{Value, json};

use crate::sim::Sim;

fn template(image: &str) -> Value {
    json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": image, "ports": [{"name": "http", "containerPort": 8080}]}]}})
}

fn deployment(replicas: i64) -> Value {
    json!({"metadata": {"name": "web"}, "spec": {
        "replicas": replicas, "selector": {"matchLabels": {"app": "web"}}, "template": template("a"), "progressDeadlineSeconds": 600, "revisionHistoryLimit": 10,
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}},
    }})
}

/// Pods by image: how many there are.
fn images(sim: &Sim) -> Vec<(String, usize)> {
    let mut out = std::collections::BTreeMap::new();
    for pod in sim.all("pods") {
        *out.entry(pod["spec"]["containers"][0]["image"].as_str().unwrap().to_string()).or_insert(0) += 1;
    }
    out.into_iter().collect()
}

fn condition(object: &Value, kind: &str) -> String {
    let list = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let found = list.iter().find(|c| c["type"] == kind).cloned().unwrap_or_default();
    format!("{} {}", found["status"].as_str().unwrap_or("-"), found["reason"].as_str().unwrap_or("-"))
}

fn rolled_out(sim: &Sim, image: &str, replicas: i64) -> bool {
    let deployment = sim.get("deployments", "n/web");
    let status = &deployment["status"];
    status["observedGeneration"] == deployment["metadata"]["generation"]
        && ["replicas", "updatedReplicas", "readyReplicas", "availableReplicas"].iter().all(|f| status[f] == replicas)
        && images(sim) == [(image.to_string(), replicas as usize)]
        && condition(&deployment, "Progressing") == "True NewReplicaSetAvailable"
}

#[tokio::test(start_paused = true)]
async fn a_deployment_rolls_out_scales_and_rolls_back() {
    let sim = Sim::default();
    let all = ["deployment-controller", "replicaset-controller", "garbage-collector-controller"];
    sim.with_controllers(&all, async {
        sim.create("deployments", deployment(3));
        sim.until("rolled out", |s| rolled_out(s, "a", 3)).await;
        let revision = |s: &Sim| {
            s.get("deployments", "n/web")["metadata"]["annotations"]["deployment.kubernetes.io/revision"].clone()
        };
        sim.until("has a revision", |s| revision(s) == "1").await;
        assert_eq!(condition(&sim.get("deployments", "n/web"), "Available"), "True MinimumReplicasAvailable");
        let creations = sim.log().iter().filter(|l| l.starts_with("create pods")).count();
        assert_eq!(creations, 3, "never twice");

        sim.patch("deployments", "n/web", "", json!({"spec": {"template": template("b")}}));
        sim.until("rolled over", |s| rolled_out(s, "b", 3) && revision(s) == "2").await;
        assert_eq!(sim.all("replicasets").len(), 2);

        sim.patch("deployments", "n/web", "", json!({"spec": {"replicas": 5}}));
        sim.until("scaled", |s| rolled_out(s, "b", 5)).await;

        sim.patch("deployments", "n/web", "", json!({"spec": {"template": template("a")}}));
        sim.until("rolled back", |s| rolled_out(s, "a", 5) && revision(s) == "3").await;
        let sets = sim.all("replicasets");
        assert_eq!(sets.len(), 2, "the old set is used again");
        let histories: Vec<&Value> =
            sets.iter().map(|s| &s["metadata"]["annotations"]["deployment.kubernetes.io/revision-history"]).collect();
        assert!(histories.contains(&&json!("1")), "{histories:?}");

        sim.log();
        sim.settle().await;
        assert_eq!(sim.log(), Vec::<String>::new(), "a settled world is left alone");

        sim.delete("deployments", "n/web", json!({}));
        sim.until("all gone", |s| s.all("replicasets").is_empty() && s.all("pods").is_empty()).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn deleting_in_the_foreground_waits_and_orphaning_keeps() {
    let sim = Sim::default();
    let all = ["deployment-controller", "replicaset-controller", "garbage-collector-controller"];
    sim.with_controllers(&all, async {
        sim.create("deployments", deployment(2));
        sim.until("rolled out", |s| rolled_out(s, "a", 2)).await;
        sim.delete("deployments", "n/web", json!({"propagationPolicy": "Foreground"}));
        assert!(!sim.get("deployments", "n/web").is_null(), "waits for its dependents");
        sim.until("gone, last of all", |s| s.get("deployments", "n/web").is_null()).await;
        assert!(sim.all("replicasets").is_empty() && sim.all("pods").is_empty());

        sim.create("deployments", deployment(1));
        sim.until("rolled out", |s| rolled_out(s, "a", 1)).await;
        sim.delete("deployments", "n/web", json!({"propagationPolicy": "Orphan"}));
        sim.until("gone", |s| s.get("deployments", "n/web").is_null()).await;
        sim.settle().await;
        let sets = sim.all("replicasets");
        assert_eq!(sets.len(), 1);
        assert_eq!(sets[0]["metadata"]["ownerReferences"], json!([]));
        sim.create("deployments", deployment(1));
        sim.until("adopted", |s| rolled_out(s, "a", 1)).await;
        assert_eq!(sim.all("replicasets").len(), 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn recreate_stops_all_before_it_starts_any() {
    let sim = Sim::default();
    sim.with_controllers(&["deployment-controller", "replicaset-controller"], async {
        let mut body = deployment(2);
        body["spec"]["strategy"] = json!({"type": "Recreate"});
        sim.create("deployments", body);
        sim.until("rolled out", |s| rolled_out(s, "a", 2)).await;
        sim.log();
        sim.patch("deployments", "n/web", "", json!({"spec": {"template": template("b")}}));
        sim.until("replaced", |s| {
            assert!(images(s).len() <= 1, "never both");
            rolled_out(s, "b", 2)
        })
        .await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_job_counts_each_pod_once() {
    let sim = Sim::default();
    sim.with_controllers(&["job-controller"], async {
        let selector = json!({"matchLabels": {"app": "web"}});
        for (name, mode) in [("plain", "NonIndexed"), ("indexed", "Indexed")] {
            let mut spec = json!({"completions": 5, "parallelism": 2, "completionMode": mode, "backoffLimit": 6, "selector": selector, "template": template("a")});
            spec["template"]["spec"]["restartPolicy"] = "Never".into();
            sim.create("jobs", json!({"metadata": {"name": name}, "spec": spec}));
            let key = format!("n/{name}");
            sim.until_with("complete", |_| Some("Succeeded"), |s| condition(&s.get("jobs", &key), "Complete") == "True CompletionsReached").await;
            let job = sim.get("jobs", &key);
            assert_eq!(job["status"]["succeeded"], 5, "{job}");
            assert_eq!(job["status"].get("active"), None);
            sim.until("no finalizers", |s| s.all("pods").iter().all(|p| p["metadata"]["finalizers"].as_array().is_none_or(Vec::is_empty))).await;
            let owned = sim.all("pods").into_iter().filter(|p| p["metadata"]["ownerReferences"][0]["name"] == name).count();
            assert_eq!(owned, 5);
        }
        assert_eq!(sim.get("jobs", "n/indexed")["status"]["completedIndexes"], "0-4");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_job_over_its_limit_fails() {
    let sim = Sim::default();
    sim.with_controllers(&["job-controller"], async {
        let mut spec = json!({"completions": 1, "parallelism": 1, "backoffLimit": 0, "selector": {"matchLabels": {"app": "web"}}, "template": template("a")});
        spec["template"]["spec"]["restartPolicy"] = "Never".into();
        sim.create("jobs", json!({"metadata": {"name": "bad"}, "spec": spec}));
        sim.until_with("failed", |_| Some("Failed"), |s| condition(&s.get("jobs", "n/bad"), "Failed") == "True BackoffLimitExceeded").await;
        assert_eq!(sim.get("jobs", "n/bad")["status"]["failed"], 1);
        assert_eq!(sim.all("pods").len(), 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_stateful_set_keeps_its_order() {
    let sim = Sim::default();
    sim.with_controllers(&["statefulset-controller"], async {
        let spec = json!({
            "replicas": 3, "serviceName": "web", "selector": {"matchLabels": {"app": "web"}}, "template": template("a"),
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}}, "revisionHistoryLimit": 10,
            "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"]}}],
        });
        sim.create("statefulsets", json!({"metadata": {"name": "web"}, "spec": spec}));
        let settled = |s: &Sim, image: &str, n: i64| {
            let set = s.get("statefulsets", "n/web");
            let status = &set["status"];
            status["readyReplicas"] == n
                && status["updatedReplicas"] == n
                && status["currentRevision"] == status["updateRevision"]
                && images(s) == [(image.into(), n as usize)]
        };
        sim.until("three pods", |s| settled(s, "a", 3)).await;
        let pods: Vec<String> = sim.log().into_iter().filter(|l| l.starts_with("create p")).collect();
        let expect = [
            "persistentvolumeclaims data-web-0",
            "pods web-0",
            "persistentvolumeclaims data-web-1",
            "pods web-1",
            "persistentvolumeclaims data-web-2",
            "pods web-2",
        ];
        assert_eq!(pods, expect.map(|e| format!("create {e}")));
        sim.patch("statefulsets", "n/web", "", json!({"spec": {"template": template("b")}}));
        sim.until("updated", |s| settled(s, "b", 3)).await;
        let steps: Vec<String> =
            sim.log().into_iter().filter(|l| l.starts_with("delete pods") || l.starts_with("create pods")).collect();
        let expect = [
            "delete pods web-2",
            "create pods web-2",
            "delete pods web-1",
            "create pods web-1",
            "delete pods web-0",
            "create pods web-0",
        ];
        assert_eq!(steps, expect);
        sim.patch("statefulsets", "n/web", "", json!({"spec": {"replicas": 1}}));
        sim.until("scaled down", |s| settled(s, "b", 1)).await;
        let steps: Vec<String> = sim.log().into_iter().filter(|l| l.starts_with("delete pods")).collect();
        assert_eq!(steps, ["delete pods web-2", "delete pods web-1"]);
        assert_eq!(sim.all("persistentvolumeclaims").len(), 3, "claims stay");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_daemon_runs_on_every_node_that_fits() {
    let sim = Sim::default();
    sim.with_controllers(&["daemonset-controller"], async {
        for node in ["node-1", "node-2"] {
            sim.create("nodes", json!({"metadata": {"name": node}, "spec": {}}));
        }
        let taint = json!([{"key": "special", "effect": "NoSchedule"}]);
        sim.create("nodes", json!({"metadata": {"name": "node-3"}, "spec": {"taints": taint}}));
        let spec = json!({
            "selector": {"matchLabels": {"app": "web"}}, "template": template("a"), "revisionHistoryLimit": 10,
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}},
        });
        sim.create("daemonsets", json!({"metadata": {"name": "web"}, "spec": spec}));
        let settled = |s: &Sim, image: &str, n: i64| {
            let set = s.get("daemonsets", "n/web");
            let fields = [
                "desiredNumberScheduled",
                "currentNumberScheduled",
                "numberReady",
                "numberAvailable",
                "updatedNumberScheduled",
            ];
            fields.iter().all(|f| set["status"][f] == n) && images(s) == [(image.into(), n as usize)]
        };
        sim.until("on two nodes", |s| settled(s, "a", 2)).await;
        sim.patch("nodes", "node-3", "", json!({"spec": {"taints": null}}));
        sim.until("on three nodes", |s| settled(s, "a", 3)).await;
        sim.patch("daemonsets", "n/web", "", json!({"spec": {"template": template("b")}}));
        sim.until("updated", |s| settled(s, "b", 3)).await;
        assert_eq!(sim.all("controllerrevisions").len(), 2);
        sim.delete("nodes", "node-3", json!({}));
        sim.until("two nodes count", |s| s.get("daemonsets", "n/web")["status"]["desiredNumberScheduled"] == 2).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_service_has_the_endpoints_of_its_ready_pods() {
    let sim = Sim::default();
    let all = ["replicaset-controller", "endpointslice-controller", "endpoints-controller"];
    sim.with_controllers(&all, async {
        let ports = json!([{"name": "web", "port": 80, "targetPort": "http", "protocol": "TCP"}]);
        let service = json!({"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}, "clusterIP": "10.1.0.1", "ipFamilies": ["IPv4"], "ports": ports}});
        sim.create("services", service);
        sim.until("a slice that says none", |s| s.all("endpointslices").len() == 1).await;
        let spec = json!({"replicas": 150, "selector": {"matchLabels": {"app": "web"}}, "template": template("a")});
        sim.create("replicasets", json!({"metadata": {"name": "web"}, "spec": spec}));
        let ready = |s: &Sim| s.all("endpointslices").iter().flat_map(|e| e["endpoints"].as_array().cloned().unwrap_or_default()).filter(|e| e["conditions"]["ready"] == true).count();
        sim.until("all ready", |s| ready(s) == 150).await;
        let slices = sim.all("endpointslices");
        let sizes: Vec<usize> = slices.iter().map(|s| s["endpoints"].as_array().map_or(0, Vec::len)).collect();
        assert!(sizes.iter().all(|n| *n <= 100), "{sizes:?}");
        assert!(slices.iter().any(|s| s["ports"] == json!([{"name": "web", "port": 8080, "protocol": "TCP"}])));
        let addresses = |s: &Sim| s.get("endpoints", "n/web")["subsets"][0]["addresses"].as_array().map_or(0, Vec::len);
        sim.until("endpoints too", |s| addresses(s) == 150).await;
        sim.patch("replicasets", "n/web", "", json!({"spec": {"replicas": 0}}));
        sim.until("none left", |s| ready(s) == 0 && s.all("endpointslices").len() == 1 && s.get("endpoints", "n/web").get("subsets").is_none()).await;
        sim.delete("services", "n/web", json!({}));
        sim.until("endpoints gone", |s| s.all("endpoints").is_empty()).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_namespace_is_furnished_and_emptied() {
    let sim = Sim::default();
    sim.with_controllers(
        &["namespace-controller", "serviceaccount-controller", "replicaset-controller", "garbage-collector-controller"],
        async {
            sim.create("namespaces", json!({"metadata": {"name": "n"}, "spec": {"finalizers": ["kubernetes"]}}));
            sim.until("furnished", |s| !s.get("serviceaccounts", "n/default").is_null()).await;
            let spec = json!({"replicas": 3, "selector": {"matchLabels": {"app": "web"}}, "template": template("a")});
            sim.create("replicasets", json!({"metadata": {"name": "web"}, "spec": spec}));
            sim.create("configmaps", json!({"metadata": {"name": "held", "finalizers": ["example.com/hold"]}}));
            sim.until("running", |s| s.get("replicasets", "n/web")["status"]["readyReplicas"] == 3).await;
            sim.delete("namespaces", "n", json!({}));
            sim.until("waits", |s| {
                condition(&s.get("namespaces", "n"), "NamespaceFinalizersRemaining") == "True SomeFinalizersRemain"
            })
            .await;
            assert!(sim.all("pods").is_empty() || sim.all("replicasets").is_empty());
            sim.patch("configmaps", "n/held", "", json!({"metadata": {"finalizers": []}}));
            sim.until("gone", |s| s.get("namespaces", "n").is_null()).await;
        },
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn nodes_get_addresses_and_taints_by_their_conditions() {
    let sim = Sim::default();
    sim.with_controllers(&["node-lifecycle-controller", "taint-eviction-controller"], async {
        let ready = |status: &str| json!({"status": {"conditions": [{"type": "Ready", "status": status, "lastHeartbeatTime": "2026-01-01T00:00:00Z"}]}});
        let start = json!([{"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}]);
        sim.create("nodes", json!({"metadata": {"name": "node-1"}, "spec": {"taints": start}}));
        sim.create("nodes", json!({"metadata": {"name": "node-2"}, "spec": {}}));
        sim.patch("nodes", "node-2", "status", ready("True"));
        sim.settle().await;
        let taints = |s: &Sim, n: &str| s.get("nodes", n)["spec"]["taints"].as_array().map_or(0, Vec::len);
        assert_eq!(taints(&sim, "node-1"), 1, "still unheard of");
        sim.patch("nodes", "node-1", "status", ready("True"));
        sim.until("schedulable", |s| taints(s, "node-1") == 0).await;
        sim.create("pods", json!({"metadata": {"name": "stays"}, "spec": {"nodeName": "node-1", "containers": [], "tolerations": [{"operator": "Exists"}]}}));
        sim.create("pods", json!({"metadata": {"name": "leaves"}, "spec": {"nodeName": "node-1", "containers": []}}));
        sim.patch("nodes", "node-1", "status", ready("False"));
        sim.until("both taints", |s| taints(s, "node-1") == 2).await;
        sim.until("evicted", |s| s.get("pods", "n/leaves").is_null()).await;
        assert!(!sim.get("pods", "n/stays").is_null());
        sim.patch("nodes", "node-1", "status", ready("True"));
        sim.until("well again", |s| taints(s, "node-1") == 0).await;
    })
    .await;
}
