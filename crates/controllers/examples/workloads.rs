//! How fast a cluster's controllers are, ours or anybody's: times of whole stories, seen from outside through the API.
//!
//! `cargo run --release -p controllers --example workloads -- KUBECONFIG SCENARIO[=SIZE]...`
//!
//! Scenarios: `deployment` (replicas: created until all are available, then rolled over), `namespace` (ConfigMaps in one
//! that is deleted), `endpoints` (Services over the same hundred pods, of which one goes, then all), `cronjobs` (due in
//! the same minute: from that minute until all their Jobs are there), `fill` (so many pods and as many ConfigMaps, which
//! stay: for who measures memory). Pods need nodes; simulated ones will do.

use std::future::Future;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use client::{Client, DeleteOptions, DynamicApi, Gvr, Informer, ListOptions, Object, Patch, Scope};
use futures::{StreamExt, TryStreamExt, stream};
use meta::Status;
use serde::Deserialize;
use serde_json::{Value, json};

/// Writes of this program under way at once.
const PARALLEL: usize = 64;
/// How often is looked.
const LOOK: Duration = Duration::from_millis(20);
/// How long anything may take.
const MOST: Duration = Duration::from_secs(900);
/// Pods behind each Service.
const ENDPOINTS: usize = 100;

struct Stage {
    client: Client,
    namespace: String,
}

impl Stage {
    async fn new(client: &Client, name: &str) -> Result<Self, Status> {
        let namespace = format!("{name}-{}", std::process::id());
        let body = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
        client.dynamic(Gvr::new("", "v1", "namespaces")).create(body).await?;
        let stage = Self { client: client.clone(), namespace };
        // Pods need it.
        let accounts = stage.api("", "serviceaccounts");
        until(|| async { Ok(accounts.get_opt("default").await?.is_some()) }).await?;
        Ok(stage)
    }

    fn api(&self, group: &str, resource: &str) -> DynamicApi {
        self.client.dynamic(Gvr::new(group, "v1", resource)).namespaced(&self.namespace)
    }

    async fn create_all(&self, api: &DynamicApi, bodies: impl Iterator<Item = Value>) -> Result<(), Status> {
        let creations = stream::iter(bodies).map(|body| async { api.create(body).await.map(drop) });
        creations.buffer_unordered(PARALLEL).try_collect().await
    }

    /// Deletes the namespace and waits until it is gone.
    async fn close(self) -> Result<(), Status> {
        let namespaces = self.client.dynamic(Gvr::new("", "v1", "namespaces"));
        namespaces.delete(&self.namespace, &DeleteOptions::default()).await?;
        until(|| async { Ok(namespaces.get_opt(&self.namespace).await?.is_none()) }).await.map(drop)
    }
}

/// Seconds until something holds.
async fn until<F: Future<Output = Result<bool, Status>>>(holds: impl Fn() -> F) -> Result<f64, Status> {
    let start = Instant::now();
    while !holds().await? {
        if start.elapsed() > MOST {
            return Err(Status::internal("it takes too long"));
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(start.elapsed().as_secs_f64())
}

fn pod_template(image: &str) -> Value {
    json!({"metadata": {"labels": {"app": "w"}}, "spec": {"terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": image}]}})
}

async fn deployment(client: &Client, replicas: usize) -> Result<(), Status> {
    let stage = Stage::new(client, "w-deployment").await?;
    let api = stage.api("apps", "deployments");
    let body = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "w"}, "spec": {
        "replicas": replicas, "selector": {"matchLabels": {"app": "w"}}, "template": pod_template("a"),
    }});
    let is_out = || async {
        let body = api.get("w").await?.value().map_err(Status::internal)?;
        let counts = ["replicas", "updatedReplicas", "availableReplicas"];
        let all = counts.iter().all(|f| body["status"][f] == replicas);
        Ok(all && body["status"]["observedGeneration"] == body["metadata"]["generation"])
    };
    api.create(body).await?;
    println!("deployment of {replicas}: available after {:.2} s", until(is_out).await?);
    api.patch("w", Patch::Merge(json!({"spec": {"template": pod_template("b")}}))).await?;
    println!("deployment of {replicas}: rolled over after {:.2} s", until(is_out).await?);
    let start = Instant::now();
    stage.close().await?;
    println!("deployment of {replicas}: gone with its namespace after {:.2} s", start.elapsed().as_secs_f64());
    Ok(())
}

async fn namespace(client: &Client, objects: usize) -> Result<(), Status> {
    let stage = Stage::new(client, "w-namespace").await?;
    let api = stage.api("", "configmaps");
    let map = |i: usize| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("m{i}")}, "data": {"a": "b"}});
    stage.create_all(&api, (0..objects).map(map)).await?;
    let start = Instant::now();
    stage.close().await?;
    println!("namespace of {objects} objects: gone after {:.2} s", start.elapsed().as_secs_f64());
    Ok(())
}

/// What of a slice is looked at.
#[derive(Deserialize)]
struct Slice {
    endpoints: Option<Vec<Endpoint>>,
}

#[derive(Deserialize)]
struct Endpoint {
    conditions: Conditions,
}

#[derive(Deserialize)]
struct Conditions {
    ready: Option<bool>,
}

impl Slice {
    fn ready(&self) -> usize {
        self.endpoints.iter().flatten().filter(|e| e.conditions.ready == Some(true)).count()
    }
}

async fn endpoints(client: &Client, services: usize) -> Result<(), Status> {
    let stage = Stage::new(client, "w-endpoints").await?;
    let pods = stage.api("", "pods");
    let pod = |i: usize| {
        let mut body = pod_template("a");
        body["apiVersion"] = "v1".into();
        body["kind"] = "Pod".into();
        body["metadata"]["name"] = format!("p{i}").into();
        body
    };
    stage.create_all(&pods, (0..ENDPOINTS).map(pod)).await?;
    // An endpoint has a node: theirs must say that they are ready.
    let is_ready = |pod: &Object| {
        let body = pod.value().unwrap_or_default();
        let conditions = body["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
    };
    let all_ready = || async {
        let items = pods.list(&ListOptions::default()).await?.items;
        Ok(items.iter().filter(|p| is_ready(p)).count() == ENDPOINTS)
    };
    until(all_ready).await?;
    let service = |i: usize| json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": format!("s{i}")}, "spec": {"selector": {"app": "w"}, "ports": [{"port": 80}]}});
    // Followed, not listed: asking for all of them again and again would be most of the work.
    let all = Scope {
        namespace: stage.namespace.clone(),
        ..Scope::all(Gvr::new("discovery.k8s.io", "v1", "endpointslices"))
    };
    let slices = Informer::start(client, all);
    slices.synced().await;
    let ready = |wanted: usize| {
        let slices = slices.clone();
        move || {
            let is_full = |slice: &Object| slice.typed::<Slice>().is_ok_and(|s| s.ready() == wanted);
            let full = slices.list_where(None, is_full).len();
            async move { Ok(full == services) }
        }
    };
    // From the first Service on: whose API server takes longer to make them has the slices of the first while it does.
    let start = Instant::now();
    stage.create_all(&stage.api("", "services"), (0..services).map(service)).await?;
    let made = start.elapsed().as_secs_f64();
    until(ready(ENDPOINTS)).await?;
    let complete = start.elapsed().as_secs_f64();
    println!("{services} services of {ENDPOINTS} pods: made after {made:.2} s");
    println!("{services} services of {ENDPOINTS} pods: made and complete after {complete:.2} s");
    let now = || DeleteOptions { grace: Some(0), ..DeleteOptions::default() };
    pods.delete("p0", &now()).await?;
    println!(
        "{services} services of {ENDPOINTS} pods: one pod less told after {:.2} s",
        until(ready(ENDPOINTS - 1)).await?
    );
    for i in 1..ENDPOINTS {
        pods.delete(&format!("p{i}"), &now()).await?;
    }
    println!("{services} services of {ENDPOINTS} pods: empty after {:.2} s", until(ready(0)).await?);
    stage.close().await
}

async fn cronjobs(client: &Client, crons: usize) -> Result<(), Status> {
    let stage = Stage::new(client, "w-cronjobs").await?;
    // Due at the next minute but one: all must be there before.
    let now = jiff::Timestamp::now().as_second();
    let due = (now / 60 + if now % 60 > 30 { 2 } else { 1 }) * 60;
    let minute = due / 60 % 60;
    let cron = |i: usize| {
        let pod = json!({"restartPolicy": "Never", "containers": [{"name": "c", "image": "a"}]});
        json!({"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": format!("c{i}")}, "spec": {
            "schedule": format!("{minute} * * * *"), "jobTemplate": {"spec": {"template": {"spec": pod}}},
        }})
    };
    stage.create_all(&stage.api("batch", "cronjobs"), (0..crons).map(cron)).await?;
    // Followed, as slices are; and to the millisecond.
    let all = Scope { namespace: stage.namespace.clone(), ..Scope::all(Gvr::new("batch", "v1", "jobs")) };
    let jobs = Informer::start(client, all);
    jobs.synced().await;
    let wait = due * 1000 - jiff::Timestamp::now().as_millisecond();
    tokio::time::sleep(Duration::from_millis(u64::try_from(wait).unwrap_or(0))).await;
    let all = || {
        let there = jobs.len() >= crons;
        async move { Ok(there) }
    };
    println!("{crons} cron jobs of one minute: all jobs there after {:.2} s", until(all).await?);
    stage.close().await
}

async fn fill(client: &Client, objects: usize) -> Result<(), Status> {
    let stage = Stage::new(client, "w-fill").await?;
    let api = stage.api("apps", "deployments");
    let body = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "w"}, "spec": {
        "replicas": objects, "selector": {"matchLabels": {"app": "w"}}, "template": pod_template("a"),
    }});
    api.create(body).await?;
    let is_out = || async {
        Ok(api.get("w").await?.value().map_err(Status::internal)?["status"]["availableReplicas"] == objects)
    };
    until(is_out).await?;
    println!("{objects} pods");
    let maps = stage.api("", "configmaps");
    let map = |i: usize| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("m{i}")}, "data": {"a": "b"}});
    stage.create_all(&maps, (0..objects).map(map)).await?;
    println!("{objects} ConfigMaps");
    Ok(())
}

#[tokio::main]
async fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let Some(kubeconfig) = args.next() else {
        eprintln!("usage: workloads KUBECONFIG SCENARIO[=SIZE]...");
        return ExitCode::FAILURE;
    };
    let run = async {
        let client = Client::from_kubeconfig(Path::new(&kubeconfig), "workloads").await?;
        for arg in args {
            let (scenario, size) = arg.split_once('=').unwrap_or((&arg, ""));
            let size = |usual: usize| size.parse().unwrap_or(usual);
            match scenario {
                "deployment" => deployment(&client, size(5000)).await?,
                "namespace" => namespace(&client, size(20_000)).await?,
                "endpoints" => endpoints(&client, size(1000)).await?,
                "cronjobs" => cronjobs(&client, size(500)).await?,
                "fill" => fill(&client, size(10_000)).await?,
                other => return Err(Status::bad_request(format!("no scenario is called {other:?}"))),
            }
        }
        Ok(())
    };
    match run.await {
        Ok(()) => ExitCode::SUCCESS,
        Err(status) => {
            eprintln!("{status}");
            ExitCode::FAILURE
        }
    }
}
