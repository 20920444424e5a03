//! What people do with a cluster: an application, its services, its configuration, a job, a new version.

use std::io::{Read, Write};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use client::Patch;
use serde_json::{Value, json};

use super::{Stage, image, value, wait};

/// Serves its pod's name over HTTP, and says what it does.
const SERVE: &str = "echo started $HOSTNAME; hostname > /www/index.html; exec httpd -f -p 8080 -h /www";

fn deployment(name: &str, replicas: u32, script: &str) -> Value {
    // Pods leave a lost node after a second, not after five minutes.
    let lost = |key: &str| json!({"key": format!("node.kubernetes.io/{key}"), "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 1});
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": {
            "metadata": {"labels": {"app": name}},
            "spec": {
                "terminationGracePeriodSeconds": 1,
                "tolerations": [lost("not-ready"), lost("unreachable")],
                "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": {"matchLabels": {"app": name}}}],
                "containers": [{
                    "name": "c", "image": image::NAME, "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", script],
                    "ports": [{"name": "http", "containerPort": 8080}],
                    "readinessProbe": {"httpGet": {"path": "/", "port": "http"}, "periodSeconds": 1},
                }],
            },
        }},
    })
}

fn name(pod: &Value) -> &str {
    pod["metadata"]["name"].as_str().unwrap_or_default()
}

/// A Deployment of three, their logs, a command in one.
pub async fn application(stage: &Stage) -> Result<()> {
    stage.api("apps", "v1", "deployments").create(deployment("web", 3, SERVE)).await?;
    let pods = stage.ready_pods("app=web", 3).await?;
    let mut nodes: Vec<_> = pods.iter().map(|p| p["spec"]["nodeName"].to_string()).collect();
    nodes.sort();
    nodes.dedup();
    ensure!(nodes.len() == stage.nodes, "the pods are on {nodes:?} alone");
    for pod in &pods {
        let log = stage.client.get_path(&format!("/api/v1/namespaces/default/pods/{}/log", name(pod))).await?;
        ensure!(
            String::from_utf8_lossy(&log) == format!("started {}\n", name(pod)),
            "the log of {} is {log:?}",
            name(pod)
        );
    }
    stage.exec(name(&pods[0]), "cat /www/index.html", name(&pods[0])).await?;
    wait("the Deployment is available", || async {
        let web = value(&*stage.api("apps", "v1", "deployments").get("web").await?)?;
        ensure!(
            web["status"]["availableReplicas"] == 3
                && web["status"]["observedGeneration"] == web["metadata"]["generation"],
            "its status is {}",
            web["status"]
        );
        Ok(())
    })
    .await
}

fn service(name: &str, spec: Value) -> Value {
    let mut body = json!({"metadata": {"name": name}, "spec": {"selector": {"app": "web"}, "ports": [{"name": "http", "port": 80, "targetPort": "http"}]}});
    for (field, value) in spec.as_object().into_iter().flatten() {
        body["spec"][field] = value.clone();
    }
    body
}

/// A request from the host, on a thread of its own.
async fn fetch(port: u16) -> Result<String> {
    let work = move || -> Result<String> {
        let mut stream = std::net::TcpStream::connect_timeout(&([127, 0, 0, 1], port).into(), Duration::from_secs(2))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let body = text.rsplit("\r\n").next().unwrap_or_default().trim();
        ensure!(!body.is_empty(), "no answer behind port {port}");
        Ok(body.to_string())
    };
    tokio::task::spawn_blocking(work).await?
}

/// Cluster IP, name, node port, headless name; each over all endpoints, across nodes.
pub async fn services(stage: &Stage) -> Result<()> {
    let services = stage.api("", "v1", "services");
    let made = value(&*services.create(service("web", json!({"type": "NodePort"}))).await?)?;
    services.create(service("headless", json!({"clusterIP": "None"}))).await?;
    let ip = made["spec"]["clusterIP"].as_str().context("no cluster IP")?;
    let port = u16::try_from(made["spec"]["ports"][0]["nodePort"].as_u64().context("no node port")?)?;
    let pods = stage.pods("app=web").await?;
    let mut names: Vec<_> = pods.iter().map(|p| name(p).to_string()).collect();
    names.sort();
    // From the host.
    let seen = std::sync::Mutex::new(std::collections::BTreeSet::new());
    wait("the node port reaches every pod", || async {
        let answer = fetch(port).await?;
        let mut seen = seen.lock().map_err(|_| anyhow::anyhow!("poisoned"))?;
        seen.insert(answer);
        ensure!(seen.iter().eq(&names), "it reaches {seen:?} of {names:?}");
        Ok(())
    })
    .await?;
    if stage.kubectl.is_none() {
        return Ok(());
    }
    // From a pod.
    let from = &names[0];
    for host in [ip, "web", "web.default.svc.cluster.local"] {
        let all = format!("for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do fetch {host} 80; done");
        wait(&format!("{host} reaches every pod"), || async {
            let said = stage.exec(from, &all, "web").await?.unwrap_or_default();
            let mut reached: Vec<_> = said.lines().filter(|l| l.starts_with("web-")).map(str::to_string).collect();
            reached.sort();
            reached.dedup();
            ensure!(reached == names, "it reaches {reached:?} of {names:?}");
            Ok(())
        })
        .await?;
    }
    stage.exec(from, "nslookup web.default.svc.cluster.local", ip).await?;
    for pod in &pods {
        let address = pod["status"]["podIP"].as_str().context("no pod IP")?;
        stage.exec(from, "nslookup headless.default.svc.cluster.local", address).await?;
        // Directly, also across nodes.
        stage.exec(from, &format!("fetch {address} 8080"), name(pod)).await?;
    }
    Ok(())
}

/// Configuration in files and variables, and a job that reads it and ends.
pub async fn volumes(stage: &Stage) -> Result<()> {
    stage
        .api("", "v1", "configmaps")
        .create(json!({"metadata": {"name": "config"}, "data": {"colour": "red"}}))
        .await?;
    stage
        .api("", "v1", "secrets")
        .create(json!({"metadata": {"name": "secret"}, "stringData": {"word": "sesame"}}))
        .await?;
    let script = "echo $(cat /config/colour) $(cat /secret/word) $(cat /down/labels) $COLOUR $NAME; touch /scratch/file && test -s /var/run/secrets/kubernetes.io/serviceaccount/token";
    let mounts = ["config", "secret", "down", "scratch"].map(|v| json!({"name": v, "mountPath": format!("/{v}")}));
    let pod = json!({
        "restartPolicy": "Never",
        "volumes": [
            {"name": "config", "configMap": {"name": "config"}},
            {"name": "secret", "secret": {"secretName": "secret"}},
            {"name": "down", "downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels['part']"}}]}},
            {"name": "scratch", "emptyDir": {}},
        ],
        "containers": [{
            "name": "c", "image": image::NAME, "command": ["sh", "-c", script],
            "env": [
                {"name": "COLOUR", "valueFrom": {"configMapKeyRef": {"name": "config", "key": "colour"}}},
                {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}},
            ],
            "volumeMounts": mounts,
        }],
    });
    let job = json!({"metadata": {"name": "reader"}, "spec": {"backoffLimit": 0, "template": {"metadata": {"labels": {"part": "reader"}}, "spec": pod}}});
    stage.api("batch", "v1", "jobs").create(job).await?;
    wait("the job is complete", || async {
        let job = value(&*stage.api("batch", "v1", "jobs").get("reader").await?)?;
        let conditions = job["status"]["conditions"].as_array().cloned().unwrap_or_default();
        if conditions.iter().any(|c| c["type"] == "Complete" && c["status"] == "True") {
            return Ok(());
        }
        bail!("its status is {}; pods: {}", job["status"], super::states(&stage.pods("part=reader").await?))
    })
    .await?;
    let pods = stage.pods("part=reader").await?;
    ensure!(pods.len() == 1, "{} pods", pods.len());
    let log = stage.client.get_path(&format!("/api/v1/namespaces/default/pods/{}/log", name(&pods[0]))).await?;
    ensure!(&*log == b"red sesame reader red default\n", "the job says {log:?}");
    Ok(())
}

/// A new template, then the old one again.
pub async fn rollout(stage: &Stage) -> Result<()> {
    let deployments = stage.api("apps", "v1", "deployments");
    let before = value(&*deployments.get("web").await?)?["spec"]["template"].clone();
    let rolled = |script: String| async move {
        let pods = stage.ready_pods("app=web", 3).await?;
        ensure!(
            pods.iter().all(|p| p["spec"]["containers"][0]["command"][2] == script.as_str()),
            "old pods are left: {}",
            super::states(&pods)
        );
        Ok(())
    };
    let newer = SERVE.replace("started", "restarted");
    let patch =
        json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "command": ["sh", "-c", newer]}]}}}});
    deployments.patch("web", Patch::Strategic(patch)).await?;
    wait("the new version is out", || rolled(newer.clone())).await?;
    if stage.kubectl(&["rollout", "undo", "deployment/web"])?.is_none() {
        deployments
            .patch("web", Patch::Json(json!([{"op": "replace", "path": "/spec/template", "value": before}])))
            .await?;
    }
    wait("the old version is back", || rolled(SERVE.to_string())).await?;
    let sets = stage.api("apps", "v1", "replicasets").list(&Default::default()).await?;
    ensure!(sets.items.len() == 2, "{} ReplicaSets, expected that the first is used again", sets.items.len());
    Ok(())
}
