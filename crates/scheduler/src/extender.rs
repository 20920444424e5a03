//! HTTP extenders: servers that have a say in where pods go, by upstream's `kube-scheduler/extender/v1`.
//!
//! They are asked one pod at a time, after the plugins: which of the nodes left will do, how they like them, which pods may
//! make room, and to bind. Field names are taken in any case, as Go takes them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use client::Site;
use client::site::Tls;
use futures::future::join_all;
use meta::{Object, Status};
use serde_json::{Value, json};

use crate::view::PodView;
use crate::world::view;

/// The best score an extender gives (`MaxExtenderPriority`).
const MOST: i64 = 10;

/// What the configuration says of an extender.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    pub url: String,
    pub filter: String,
    pub prioritize: String,
    pub preempt: String,
    pub bind: String,
    pub weight: i64,
    pub tls: Tls,
    pub within: Duration,
    /// Nodes are told by name only.
    pub names_only: bool,
    /// Only pods that ask for one of these concern it; none: all pods.
    pub managed: Vec<String>,
    /// Its failures are passed over.
    pub ignorable: bool,
}

/// An extender, reachable.
pub struct Extender {
    settings: Settings,
    site: Site,
}

/// What an extender says of nodes.
#[derive(Debug, Default, PartialEq)]
pub struct Filtered {
    /// By name.
    pub kept: Vec<String>,
    /// Reasons by name, and whether fewer pods there could change it.
    pub refused: BTreeMap<String, (String, bool)>,
}

/// Who would have to go from a node.
pub struct Victims {
    pub node: Arc<str>,
    pub pods: Vec<Arc<Object>>,
    pub broken_budgets: usize,
}

/// A field whatever its case.
fn field<'v>(of: &'v Value, name: &str) -> &'v Value {
    let found = of.as_object().and_then(|map| map.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)));
    found.map_or(&Value::Null, |f| f.1)
}

fn named(of: &Value) -> String {
    field(field(of, "metadata"), "name").as_str().unwrap_or_default().into()
}

/// The extenders of a configuration.
pub async fn connect(settings: &[Settings]) -> Result<Vec<Extender>, Status> {
    let mut out = Vec::with_capacity(settings.len());
    for settings in settings {
        let site = Site::new(&settings.url, &settings.tls, settings.within).await;
        let site = site.map_err(|why| Status::bad_request(format!("extender {}: {why}", settings.url)))?;
        out.push(Extender { settings: settings.clone(), site });
    }
    Ok(out)
}

impl Extender {
    /// Whether a pod concerns it.
    pub fn is_interested(&self, pod: &Object) -> bool {
        let managed = &self.settings.managed;
        managed.is_empty()
            || view::<PodView>(pod).is_some_and(|pod| {
                let containers = pod.spec.containers.iter().chain(&pod.spec.init_containers);
                let mut names = containers.flat_map(|c| c.resources.requests.keys().chain(c.resources.limits.keys()));
                names.any(|name| managed.iter().any(|m| **m == **name))
            })
    }

    pub fn is_ignorable(&self) -> bool {
        self.settings.ignorable
    }

    pub fn preempts(&self) -> bool {
        !self.settings.preempt.is_empty()
    }

    pub fn binds(&self) -> bool {
        !self.settings.bind.is_empty()
    }

    async fn ask(&self, verb: &str, body: Vec<u8>) -> Result<Value, String> {
        let url = &self.settings.url;
        let answer = self.site.post(verb, body).await;
        let answer = answer.map_err(|why| format!("failed {verb} with extender at URL {url}, {why}"))?;
        serde_json::from_slice(&answer).map_err(|why| format!("extender {url}: {why}"))
    }

    /// A pod and nodes, as they are asked about.
    fn arguments(&self, pod: &Object, nodes: &[Arc<Object>]) -> Vec<u8> {
        let mut out = br#"{"Pod":"#.to_vec();
        pod.write_json(&mut out);
        if self.settings.names_only {
            let names: Vec<&str> = nodes.iter().map(|n| &*n.meta.name).collect();
            out.extend_from_slice(format!(r#","Nodes":null,"NodeNames":{}}}"#, json!(names)).as_bytes());
            return out;
        }
        out.extend_from_slice(br#","Nodes":{"metadata":{},"items":["#);
        for (at, node) in nodes.iter().enumerate() {
            if at > 0 {
                out.push(b',');
            }
            node.write_json(&mut out);
        }
        out.extend_from_slice(br#"]},"NodeNames":null}"#);
        out
    }

    /// Which nodes will do for a pod.
    pub async fn filter(&self, pod: &Object, nodes: &[Arc<Object>]) -> Result<Filtered, String> {
        if self.settings.filter.is_empty() {
            let kept = nodes.iter().map(|n| n.meta.name.to_string()).collect();
            return Ok(Filtered { kept, ..Filtered::default() });
        }
        let answer = self.ask(&self.settings.filter, self.arguments(pod, nodes)).await?;
        if let Some(error) = field(&answer, "error").as_str().filter(|e| !e.is_empty()) {
            return Err(error.into());
        }
        let mut out = Filtered::default();
        if let (true, Some(names)) = (self.settings.names_only, field(&answer, "nodeNames").as_array()) {
            out.kept = names.iter().filter_map(|n| n.as_str().map(str::to_string)).collect();
        } else {
            let items = field(field(&answer, "nodes"), "items").as_array();
            out.kept = items.into_iter().flatten().map(named).collect();
        }
        if let Some(unknown) = out.kept.iter().find(|k| nodes.iter().all(|n| *n.meta.name != ***k)) {
            return Err(format!(
                "extender {:?} claims a filtered node {unknown:?} which is not found in the input node list",
                self.settings.url
            ));
        }
        // Who is in both lists is refused for good.
        for (list, resolvable) in [("failedNodes", true), ("failedAndUnresolvableNodes", false)] {
            for (node, why) in field(&answer, list).as_object().into_iter().flatten() {
                out.refused.insert(node.clone(), (why.as_str().unwrap_or_default().into(), resolvable));
            }
        }
        Ok(out)
    }

    /// How it likes nodes, by name.
    async fn prioritize(&self, pod: &Object, nodes: &[Arc<Object>]) -> Result<BTreeMap<String, i64>, String> {
        if self.settings.prioritize.is_empty() {
            return Ok(BTreeMap::new());
        }
        let answer = self.ask(&self.settings.prioritize, self.arguments(pod, nodes)).await?;
        let weight = self.settings.weight * (crate::plugins::MAX_SCORE / MOST);
        let score = |of: &Value| {
            let (host, score) = (field(of, "host").as_str()?, field(of, "score").as_i64()?);
            Some((host.to_string(), score.saturating_mul(weight)))
        };
        Ok(answer.as_array().into_iter().flatten().filter_map(score).collect())
    }

    /// Who may go, of those that would have to: nodes by name, with the uids of pods and how many budgets break.
    pub async fn preempt(
        &self,
        pod: &Object,
        victims: &[Victims],
    ) -> Result<Vec<(String, Vec<String>, usize)>, String> {
        let (mut whole, mut by_uid) = (serde_json::Map::new(), serde_json::Map::new());
        for victims in victims {
            let node = victims.node.to_string();
            if self.settings.names_only {
                let pods: Vec<Value> = victims.pods.iter().map(|p| json!({"UID": &*p.meta.uid})).collect();
                by_uid.insert(node, json!({"Pods": pods, "NumPDBViolations": victims.broken_budgets}));
            } else {
                let pods: Vec<Value> = victims.pods.iter().filter_map(|p| p.value().ok()).collect();
                whole.insert(node, json!({"Pods": pods, "NumPDBViolations": victims.broken_budgets}));
            }
        }
        let some = |map: serde_json::Map<String, Value>| if map.is_empty() { Value::Null } else { map.into() };
        let body = json!({
            "Pod": pod.value().map_err(|why| why.to_string())?,
            "NodeNameToVictims": some(whole), "NodeNameToMetaVictims": some(by_uid),
        });
        let answer = self.ask(&self.settings.preempt, body.to_string().into_bytes()).await?;
        let one = |(node, of): (&String, &Value)| {
            let uid = |p: &Value| field(p, "uid").as_str().unwrap_or_default().to_string();
            let pods = field(of, "pods").as_array().into_iter().flatten().map(uid).collect();
            let broken = field(of, "numPDBViolations").as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
            (node.clone(), pods, broken)
        };
        Ok(field(&answer, "nodeNameToMetaVictims").as_object().into_iter().flatten().map(one).collect())
    }

    /// Has it bind a pod.
    pub async fn bind(&self, pod: &Object, node: &str) -> Result<(), Status> {
        let meta = &pod.meta;
        let body =
            json!({"PodName": &*meta.name, "PodNamespace": &*meta.namespace, "PodUID": &*meta.uid, "Node": node});
        let answer = self.ask(&self.settings.bind, body.to_string().into_bytes()).await.map_err(Status::internal)?;
        match field(&answer, "error").as_str().filter(|e| !e.is_empty()) {
            Some(error) => Err(Status::internal(error)),
            None => Ok(()),
        }
    }
}

/// How all extenders together like nodes. One that fails has no say.
pub async fn prioritize(extenders: &[&Extender], pod: &Object, nodes: &[Arc<Object>]) -> BTreeMap<String, i64> {
    let mut sum: BTreeMap<String, i64> = BTreeMap::new();
    for scores in join_all(extenders.iter().map(|e| e.prioritize(pod, nodes))).await {
        match scores {
            Ok(scores) => scores.into_iter().for_each(|(node, score)| *sum.entry(node).or_insert(0) += score),
            Err(why) => tracing::debug!("no scores: {why}"),
        }
    }
    sum
}
