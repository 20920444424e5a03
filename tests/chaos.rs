//! Controllers against a real API server and its store while everything between them breaks: leaders die in the middle of
//! what they do, the server is stopped and started, watches are cut, come late and twice, answers to writes are lost.
//!
//! The end is always the same: what was asked for runs, no pod was ever made twice, nothing is left without its owner, and
//! once all is quiet a look at everything finds nothing to do. What breaks when is random; what holds at the end is not.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use async_trait::async_trait;
use bytes::Bytes;
use client::{Client, DeleteOptions, DynamicApi, Gvr, Informers, ListOptions, Patch, Propagation, Transport};
use futures::{StreamExt, stream};
use meta::{EventKind, Reason, Reply, Request, Status, WatchEvent, WatchStream};
use nauplius::cli::Ranges;
use nauplius::local::Local;
use nauplius::pki::Pki;
use nauplius::roles::{self, apiserver};
use rand::Rng;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

const MANAGER: &str = "system:kube-controller-manager";
/// How long anything may take: many times what it does.
const MOST: Duration = Duration::from_secs(90);
/// Milliseconds a leader lives at most.
const LIFE: u64 = 700;
/// Seconds after which, and then again, the server is taken down.
const DOWN_EVERY: Duration = Duration::from_millis(2500);
/// Looks at everything come this often here.
const RESYNC: Duration = Duration::from_secs(2);

/// The server, while there is one.
struct Stage {
    dir: tempfile::TempDir,
    pki: Pki,
    ranges: Ranges,
    up: Mutex<Option<(apiserver::Running, CancellationToken)>>,
}

impl Stage {
    async fn new() -> Result<Arc<Self>> {
        nauplius::tls::install_provider();
        let dir = tempfile::tempdir()?;
        let pki = Pki::open(&dir.path().join("pki"))?;
        let ranges = Ranges {
            service_cluster_ip_range: vec!["10.96.0.0/12".parse()?],
            cluster_cidr: vec!["10.244.0.0/16".parse()?],
        };
        let stage = Arc::new(Self { dir, pki, ranges, up: Mutex::default() });
        stage.start().await?;
        Ok(stage)
    }

    fn up(&self) -> std::sync::MutexGuard<'_, Option<(apiserver::Running, CancellationToken)>> {
        self.up.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn start(&self) -> Result<()> {
        let options = apiserver::Options {
            data_dir: self.dir.path().into(),
            listen: "127.0.0.1:0".parse()?,
            advertise_address: None,
            audit: Default::default(),
            ranges: self.ranges.clone(),
            network_namespace: None,
            serving: Default::default(),
            store: Default::default(),
            access: Default::default(),
            listening: Default::default(),
        };
        let cancel = CancellationToken::new();
        let begun = Instant::now();
        // The one before may still be letting go of its store.
        let running = loop {
            match apiserver::start(&options, &self.pki, cancel.clone()).await {
                Ok(running) => break running,
                Err(error) if begun.elapsed() > MOST => return Err(error),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        *self.up() = Some((running, cancel));
        Ok(())
    }

    async fn restart(&self) -> Result<()> {
        let before = self.up().take();
        if let Some((running, cancel)) = before {
            cancel.cancel();
            running.ended().await;
        }
        self.start().await
    }

    fn client(self: &Arc<Self>, user: &'static str, groups: &'static [&'static str], faulty: bool) -> Client {
        Client::new(Wire { stage: self.clone(), user, groups, faulty }).with_field_manager("chaos")
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Some((_, cancel)) = self.up().take() {
            cancel.cancel();
        }
    }
}

/// What lies between a component and the server.
struct Wire {
    stage: Arc<Stage>,
    user: &'static str,
    groups: &'static [&'static str],
    faulty: bool,
}

fn one_in(n: u32) -> bool {
    rand::rng().random_ratio(1, n)
}

/// Milliseconds below a bound, at random.
fn a_moment(below: u64) -> Duration {
    Duration::from_millis(rand::rng().random_range(1..below))
}

fn lost() -> Status {
    Status::new(Reason::ServiceUnavailable, "connection reset by peer")
}

impl Wire {
    fn local(&self) -> Result<Local, Status> {
        let up = self.stage.up();
        let (running, _) = up.as_ref().ok_or_else(lost)?;
        Ok(Local::new(running.server.clone(), self.user, self.groups, "chaos"))
    }
}

#[async_trait]
impl Transport for Wire {
    async fn call(&self, request: Request) -> Result<Reply, Status> {
        let local = self.local()?;
        if !self.faulty {
            return local.call(request).await;
        }
        if one_in(4) {
            tokio::time::sleep(a_moment(8)).await;
        }
        if one_in(20) {
            return Err(lost());
        }
        let write = request.verb.is_write();
        match local.call(request).await? {
            Reply::Watch(events) => Ok(Reply::Watch(torn(events))),
            // Done, and nobody told.
            _ if write && one_in(12) => Err(lost()),
            reply => Ok(reply),
        }
    }

    async fn get_path(&self, path: &str) -> Result<Bytes, Status> {
        self.local()?.get_path(path).await
    }
}

/// A watch that stutters, lags, and breaks off.
fn torn(events: WatchStream) -> WatchStream {
    let faults = stream::unfold((events, false), |(mut events, cut)| async move {
        if cut {
            return None;
        }
        let batch = events.next().await?;
        if one_in(5) {
            tokio::time::sleep(a_moment(30)).await;
        }
        let batch = if one_in(5) { [batch.clone(), batch].concat() } else { batch };
        Some((batch, (events, one_in(10))))
    });
    faults.boxed()
}

/// Leaders that die, one after the other, until told to stop; then a last one that lives.
async fn leaders(stage: Arc<Stage>, quiet: CancellationToken) -> Result<()> {
    loop {
        let client = stage.client(MANAGER, &[], true);
        let options = controllers::Options {
            resync: RESYNC,
            ..roles::controller_manager::options_of(&stage.ranges, &stage.pki, stage.dir.path())?
        };
        let run = controllers::run(client.clone(), Informers::new(client), options, CancellationToken::new());
        if quiet.is_cancelled() {
            return run.await.map_err(Into::into);
        }
        let _ = tokio::time::timeout(a_moment(LIFE), run).await;
    }
}

async fn until<F: Future<Output = Result<bool>>>(what: &str, holds: impl Fn() -> F) -> Result<()> {
    let begun = Instant::now();
    // While the server is away nothing holds.
    while !holds().await.unwrap_or(false) {
        ensure!(begun.elapsed() < MOST, "never: {what}");
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    Ok(())
}

struct World {
    client: Client,
}

const NAMESPACE: &str = "chaos";

fn template(app: &str, image: &str, restart: &str) -> Value {
    json!({"metadata": {"labels": {"app": app}}, "spec": {
        "restartPolicy": restart, "terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": image}],
    }})
}

impl World {
    fn api(&self, group: &str, resource: &str) -> DynamicApi {
        self.client.dynamic(Gvr::new(group, "v1", resource)).namespaced(NAMESPACE)
    }

    async fn bodies(&self, group: &str, resource: &str, labels: &str) -> Result<Vec<Value>> {
        let list = self.api(group, resource).list(&ListOptions::labels(labels)).await?;
        Ok(list.items.iter().map(|o| o.value()).collect::<Result<_, _>>()?)
    }

    /// How many pods of an application run, all of one image; `None` when any other is there.
    async fn running(&self, app: &str, image: &str) -> Result<Option<usize>> {
        let pods = self.bodies("", "pods", &format!("app={app}")).await?;
        let fits = |p: &Value| {
            p["spec"]["containers"][0]["image"] == image
                && p["status"]["phase"] == "Running"
                && p["metadata"].get("deletionTimestamp").is_none()
        };
        Ok(pods.iter().all(fits).then_some(pods.len()))
    }

    async fn deployed(&self, image: &str) -> Result<bool> {
        let web = self.api("apps", "deployments").get("web").await?.value()?;
        let all = ["replicas", "updatedReplicas", "availableReplicas"].iter().all(|f| web["status"][f] == 5);
        let seen = web["status"]["observedGeneration"] == web["metadata"]["generation"];
        Ok(all && seen && self.running("web", image).await? == Some(5))
    }

    async fn has_condition(&self, group: &str, resource: &str, name: &str, condition: &str) -> Result<bool> {
        let body = self.api(group, resource).get(name).await?.value()?;
        let list = body["status"]["conditions"].as_array().cloned().unwrap_or_default();
        Ok(list.iter().any(|c| c["type"] == condition && c["status"] == "True"))
    }

    async fn ready_endpoints(&self) -> Result<usize> {
        let slices = self.bodies("discovery.k8s.io", "endpointslices", "kubernetes.io/service-name=web").await?;
        let endpoints = slices.iter().flat_map(|s| s["endpoints"].as_array().cloned().unwrap_or_default());
        Ok(endpoints.filter(|e| e["conditions"]["ready"] == true).count())
    }

    async fn furnish(&self) -> Result<u64> {
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}});
        let version = self.client.dynamic(Gvr::new("", "v1", "namespaces")).create(namespace).await?.resource_version;
        until("the namespace has its account", || async {
            Ok(self.api("", "serviceaccounts").get_opt("default").await?.is_some())
        })
        .await?;
        let selector = json!({"matchLabels": {"app": "web"}});
        let web = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {
            "replicas": 5, "selector": selector, "template": template("web", "a", "Always"),
        }});
        let db = json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "db"}, "spec": {
            "replicas": 3, "serviceName": "db", "selector": {"matchLabels": {"app": "db"}}, "template": template("db", "a", "Always"),
        }});
        let job = json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "j"}, "spec": {
            "parallelism": 3, "completions": 6, "template": template("j", "a", "Never"),
        }});
        let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}});
        for (group, resource, body) in [
            ("", "services", service),
            ("apps", "deployments", web),
            ("apps", "statefulsets", db),
            ("batch", "jobs", job),
        ] {
            let name = body["metadata"]["name"].as_str().unwrap_or_default().to_string();
            until("made", || async {
                let api = self.api(group, resource);
                Ok(match api.create(body.clone()).await {
                    Err(status) if !status.is_already_exists() => api.get_opt(&name).await?.is_some(),
                    _ => true,
                })
            })
            .await?;
        }
        Ok(version)
    }

    /// Names of all pods that ever were, in the order they came, from the server's history.
    async fn pods_ever(&self, since: u64) -> Result<Vec<String>> {
        let options = ListOptions {
            resource_version: Some(since.to_string()),
            timeout_seconds: Some(1),
            ..ListOptions::default()
        };
        let mut events = self.api("", "pods").watch(&options).await?;
        let mut names = Vec::new();
        while let Some(batch) = events.next().await {
            for event in batch {
                match event {
                    WatchEvent::Object { kind: EventKind::Added, object } => names.push(object.meta.name.to_string()),
                    WatchEvent::Error(status) => return Err(status.into()),
                    _ => {}
                }
            }
        }
        Ok(names)
    }
}

/// Pods more than were asked for that there may have been: what a leader had under way when it ended may be done after its
/// successor looked. Their names differ all the same, and none of them stays.
const LATE: usize = 2;

/// What was under way may still be going on during the first looks, on a busy machine during several.
const LOOKS: usize = 10;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn controllers_survive_their_server_their_watches_and_themselves() -> Result<()> {
    let stage = Stage::new().await?;
    let world = World { client: stage.client("admin", &["system:masters"], false) };
    let end = CancellationToken::new();
    let _end = end.clone().drop_guard();
    let simulation = kubelet::simulated::Options {
        nodes: 3,
        schedule: kubelet::simulated::pod::Schedule { jobs_run_for: Duration::from_millis(300), ..Default::default() },
        ..Default::default()
    };
    let admin = || stage.client("admin", &["system:masters"], false);
    tokio::spawn(kubelet::simulated::run(admin(), simulation, end.clone()));
    tokio::spawn(roles::scheduler::run_scheduler(admin(), false, Default::default(), end.clone()));
    let quiet = CancellationToken::new();
    let leading = tokio::spawn(leaders(stage.clone(), quiet.clone()));
    let since = world.furnish().await?;

    let story = async {
        until("rolled out", || world.deployed("a")).await?;
        until("the Job is complete", || world.has_condition("batch", "jobs", "j", "Complete")).await?;
        until("the set is there", || async { Ok(world.running("db", "a").await? == Some(3)) }).await?;
        let image = Patch::Merge(json!({"spec": {"template": template("web", "b", "Always")}}));
        until("the image is changed", || async {
            Ok(world.api("apps", "deployments").patch("web", image.clone()).await.is_ok())
        })
        .await?;
        until("rolled over", || world.deployed("b")).await?;
        until("everybody is told of it", || async { Ok(world.ready_endpoints().await? == 5) }).await
    };
    let disaster = async {
        loop {
            tokio::time::sleep(DOWN_EVERY).await;
            if let Err(error) = stage.restart().await {
                return error;
            }
        }
    };
    tokio::select! {
        outcome = story => outcome?,
        error = disaster => return Err(error).context("the server does not come back"),
    }

    // From here on nothing breaks but the wires.
    quiet.cancel();
    let job = world.api("batch", "jobs").get("j").await?.value()?;
    let succeeded = job["status"]["succeeded"].as_u64().unwrap_or(0) as usize;
    ensure!((6..=6 + LATE).contains(&succeeded), "{}", job["status"]);
    let mut made = world.pods_ever(since).await?;
    let all = made.len();
    made.sort();
    made.dedup();
    let of = |prefix: &str| made.iter().filter(|name| name.starts_with(prefix)).count();
    ensure!(made.len() == all, "a name was used twice: {made:?}");
    ensure!((10..=10 + LATE).contains(&of("web-")), "pods there ever were: {made:?}");
    ensure!([of("j-"), of("db-")] == [succeeded, 3], "pods there ever were: {made:?}");

    // A look at everything, twice, finds nothing: all was told.
    let mut settled = false;
    for _ in 0..LOOKS {
        let before = controllers::metrics::resync_found();
        tokio::time::sleep(RESYNC * 2).await;
        settled = controllers::metrics::resync_found() == before;
        if settled {
            break;
        }
    }
    ensure!(settled, "looks at everything find something to do again and again");

    let background = DeleteOptions::default().propagation(Propagation::Background);
    world.api("apps", "deployments").delete("web", &background).await?;
    until("nothing is left of it", || async {
        let pods = world.bodies("", "pods", "app=web").await?;
        Ok(pods.is_empty() && world.bodies("apps", "replicasets", "app=web").await?.is_empty())
    })
    .await?;
    ensure!(!leading.is_finished(), "the last leader ended");
    leading.abort();
    Ok(())
}
