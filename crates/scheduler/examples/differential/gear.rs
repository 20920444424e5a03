//! Claims on devices, as the other scheduler finds and leaves them.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use client::{Change, Client, Informer, Informers};
use meta::Object;
use rand::rngs::SmallRng;
use scheduler::Source;
use scheduler::devices::allocation;
use scheduler::pod::Pod;
use scheduler::symbol::Symbol;
use serde_json::Value;

use crate::support::{Cluster, cells, hardware};
use crate::{ROUND_WITHIN, create, resource};

/// Marks a claim as made by a scheduler for extended resources.
const EXTENDED: &str = "resource.kubernetes.io/extended-resource-claim";

pub struct Gear {
    client: Client,
    claims: Arc<Informer>,
    slices: Arc<Informer>,
    classes: Arc<Informer>,
}

/// How long claims that nobody uses are given to lose what they have.
const LEFT_ALONE: Duration = Duration::from_secs(10);

/// What claims have, by claim; what was made for extended resources by the pod.
pub type Given = BTreeMap<String, Value>;

/// An allocation without what is random in it.
fn told(mut allocation: Value) -> Value {
    let results = allocation["devices"]["results"].as_array_mut();
    for result in results.into_iter().flatten().filter_map(Value::as_object_mut) {
        result.remove("shareID");
    }
    allocation.as_object_mut().map(|a| a.remove("allocationTimestamp"));
    allocation
}

fn claim_of(body: &Value) -> Value {
    let mut out = body.clone();
    out.as_object_mut().map(|o| o.remove("status"));
    out
}

impl Gear {
    pub async fn new(
        client: &Client,
        informers: &Informers,
        all: &[cells::Cell],
        rng: &mut SmallRng,
    ) -> Result<Self, String> {
        create(client, "deviceclasses", all.iter().flat_map(|c| hardware::classes(c.number)).collect()).await?;
        create(client, "resourceslices", all.iter().flat_map(|c| hardware::slices(c, rng)).collect()).await?;
        create(client, "resourceclaims", all.iter().map(|c| hardware::shared(c.number)).collect()).await?;
        let follow = |kind| informers.get_gvr(resource(kind), "", None, None);
        let out = Self {
            client: client.clone(),
            claims: follow("resourceclaims"),
            slices: follow("resourceslices"),
            classes: follow("deviceclasses"),
        };
        informers.synced().await;
        Ok(out)
    }

    /// What does not change.
    pub fn begin(&self, cluster: &mut Cluster) {
        cluster.core.snapshot.devices.served = true;
        for (source, of) in [(Source::DeviceSlices, &self.slices), (Source::DeviceClasses, &self.classes)] {
            of.list(None).into_iter().for_each(|object| cluster.devices(source, object));
        }
        cluster.specs.classes = cluster.core.snapshot.devices.extended_classes();
    }

    /// Makes what pods want to be there.
    pub async fn fill(&self, all: impl Iterator<Item = &hardware::Hardware>) -> Result<(), String> {
        let (mut claims, mut templates) = (Vec::new(), Vec::new());
        for hardware in all {
            claims.extend(hardware.claims.iter().cloned());
            templates.extend(hardware.templates.iter().cloned());
        }
        create(&self.client, "resourceclaimtemplates", templates).await?;
        let keys: Vec<String> = claims.iter().map(key).collect();
        create(&self.client, "resourceclaims", claims).await?;
        let begun = Instant::now();
        while !keys.iter().all(|key| self.claims.get(key).is_some()) {
            if begun.elapsed() > ROUND_WITHIN {
                return Err("claims are not seen in time".into());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Shows all claims as they are.
    pub fn show(&self, cluster: &mut Cluster, known: &mut HashSet<String>) {
        let now: HashSet<String> = self
            .claims
            .list(None)
            .into_iter()
            .map(|object| {
                let key = object.meta.key();
                cluster.devices(Source::DeviceClaims, object);
                key
            })
            .collect();
        for gone in known.difference(&now) {
            let change = Change { key: gone.as_str().into(), old: None, new: None };
            cluster.core.snapshot.devices.take(Source::DeviceClaims, &change);
        }
        *known = now;
    }

    /// Shows claims that were made since, as they were before they got anything.
    pub fn show_new(&self, cluster: &mut Cluster, known: &mut HashSet<String>) {
        for object in self.claims.list(None) {
            let key = object.meta.key();
            let body = object.value().ok().filter(|b| b["metadata"]["annotations"][EXTENDED].is_null());
            let Some(body) = body.filter(|_| !known.contains(&key)) else { continue };
            cluster.devices(Source::DeviceClaims, Arc::new(crate::support::object(claim_of(&body))));
            known.insert(key);
        }
    }

    /// Shows a claim as if it had nothing.
    pub fn show_empty(&self, cluster: &mut Cluster, key: &str) {
        if let Some(body) = self.claims.get(key).and_then(|o| o.value().ok().map(|body| claim_of(&body))) {
            cluster.devices(Source::DeviceClaims, Arc::new(crate::support::object(body)));
        }
    }

    fn extended_claim(pod: &Value) -> Option<String> {
        let name = pod["status"]["extendedResourceClaimStatus"]["resourceClaimName"].as_str()?;
        Some(format!("{}/{name}", pod["metadata"]["namespace"].as_str()?))
    }

    /// What the other scheduler gave a pod that it placed: waits until it is seen.
    pub async fn given(&self, object: &Object, pod: &Pod) -> Result<Given, String> {
        let body = object.value().map_err(|e| e.to_string())?;
        let mut wanted = Vec::new();
        for claim in body["spec"]["resourceClaims"].as_array().into_iter().flatten() {
            let statuses = body["status"]["resourceClaimStatuses"].as_array().into_iter().flatten();
            let made = statuses.filter(|s| s["name"] == claim["name"]).find_map(|s| s["resourceClaimName"].as_str());
            if let Some(name) = claim["resourceClaimName"].as_str().or(made) {
                let (namespace, _) = meta::object::split_key(&pod.key);
                wanted.push((format!("{namespace}/{name}"), format!("{namespace}/{name}")));
            }
        }
        wanted.extend(Self::extended_claim(&body).map(|claim| (claim, pod.key.to_string())));
        let begun = Instant::now();
        let mut out = Given::new();
        for (claim, name) in wanted {
            loop {
                let has =
                    self.claims.get(&claim).and_then(|o| o.value().ok()).map(|b| b["status"]["allocation"].clone());
                if let Some(has) = has.filter(|h| !h.is_null()) {
                    out.insert(name, told(has));
                    break;
                }
                if begun.elapsed() > ROUND_WITHIN {
                    return Err(format!("{claim} got nothing that is seen in time"));
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        Ok(out)
    }

    /// What the core would give it on a node.
    pub fn would_give(&self, cluster: &Cluster, pod: &Pod, node: &str) -> Result<Given, String> {
        let snapshot = &cluster.core.snapshot;
        let id = snapshot.node_id(Symbol::of(node)).ok_or("no such node")?;
        let steps = cluster.core.device_steps(pod, id);
        let mut out = Given::new();
        for (key, claim) in scheduler::plugins::dynamic_resources::claims(&snapshot.devices, pod)? {
            if let Some(has) = allocation(&claim) {
                out.insert(key.to_string(), told(serde_json::to_value(has).unwrap_or_default()));
            }
        }
        for step in steps {
            let Some(gets) = &step.allocation else { continue };
            let name = if step.make.is_some() { &pod.key } else { &step.claim };
            out.insert(name.to_string(), told(serde_json::to_value(&**gets).unwrap_or_default()));
        }
        Ok(out)
    }

    /// Waits until what removed pods had is free again.
    pub async fn settled(&self, pods: &Informer) -> Result<(), String> {
        let begun = Instant::now();
        loop {
            let uids: HashSet<String> = pods.list(None).iter().map(|p| p.meta.uid.to_string()).collect();
            let there = |uid: &Value| uid.as_str().is_some_and(|uid| uids.contains(uid));
            let restless = self.claims.list(None).into_iter().find(|o| {
                let Ok(body) = o.value() else { return false };
                let owners = body["metadata"]["ownerReferences"].as_array().into_iter().flatten();
                let consumers: Vec<&Value> = body["status"]["reservedFor"].as_array().into_iter().flatten().collect();
                let has = !body["status"]["allocation"].is_null();
                !owners.into_iter().all(|o| there(&o["uid"]))
                    || !consumers.iter().all(|c| there(&c["uid"]))
                    || has && consumers.is_empty() && begun.elapsed() < LEFT_ALONE
            });
            let Some(restless) = restless else { return Ok(()) };
            if begun.elapsed() > ROUND_WITHIN {
                return Err(format!("claim {} is not given back in time", restless.meta.key()));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

fn key(body: &Value) -> String {
    let text = |name: &str| body["metadata"][name].as_str().unwrap_or_default().to_string();
    meta::object::object_key(&text("namespace"), &text("name"))
}
