//! Volumes that must be attached to a node before a pod there can use them: VolumeAttachments made for pods' nodes, and
//! removed when no pod needs them and the node has let go. Attaching itself is the driver's.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use client::{Change, Gvr, Informer, Patch};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::{CSIDriver, VolumeAttachment};
use meta::{Object, Status};
use serde_json::{Value, json};

use crate::node_lifecycle::{BY_NODE, index_pods_by_node};
use crate::nodes;
use crate::plan::{Action, Note, Plan};
use crate::pod_facts::{self, facts};
use crate::pods::{self, seconds_between};
use crate::runner::{Ask, Controller, own_key};
use crate::volumes::{BY_CLAIM, claims_of};
use crate::{Context, decoded, status_of};

/// Seconds after which a volume is taken from a node that is not healthy and has not let go.
const FORCE_AFTER: i64 = 360;
/// What attachments made here are called, before the digest of what they attach.
const PREFIX: &str = "csi-";
/// The index of attachments by node.
const BY_TARGET: &str = "node";

fn attachments_resource() -> Gvr {
    client::gvr_of::<VolumeAttachment>()
}

/// A volume a driver attaches.
#[derive(Clone, Debug, PartialEq)]
pub struct Attachable {
    pub volume: String,
    pub driver: String,
    pub handle: String,
    /// Only one node may have it at a time.
    pub exclusive: bool,
}

impl Attachable {
    /// What the attachment to a node is called; kubelets compute the same name.
    pub fn attachment(&self, node: &str) -> String {
        let text = format!("{}{}{node}", self.handle, self.driver);
        let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
        let hex: String = digest.as_ref().iter().map(|b| format!("{b:02x}")).collect();
        format!("{PREFIX}{hex}")
    }

    /// What nodes call it in their status.
    pub fn unique_name(&self) -> String {
        format!("kubernetes.io/csi/{}^{}", self.driver, self.handle)
    }
}

/// A node, what its pods need, and what is attached to it.
pub struct World<'a> {
    pub node: &'a str,
    /// None when the node is gone.
    pub state: Option<NodeState>,
    /// Needed volumes, each with a pod that needs it.
    pub needed: Vec<(Attachable, &'a Object)>,
    /// Attachments to the node, with what they attach (when that is still known).
    pub attached: Vec<(Arc<Object>, Option<Attachable>)>,
    /// Whether an exclusive volume is attached to another node.
    pub elsewhere: &'a dyn Fn(&Attachable) -> bool,
    /// Since when a volume is not needed here.
    pub unneeded_since: &'a dyn Fn(&str) -> Timestamp,
    /// Whether a volume is taken from an unhealthy node in the end.
    pub forces: bool,
}

/// What a node says of itself.
#[derive(Clone, Debug, Default)]
pub struct NodeState {
    pub in_use: BTreeSet<String>,
    pub healthy: bool,
    pub out_of_service: bool,
}

pub fn plan(world: &World<'_>, now: Timestamp) -> Plan {
    let mut plan = Plan::nothing();
    let present: BTreeSet<&str> = world.attached.iter().map(|(o, _)| &*o.meta.name).collect();
    let mut wanted = BTreeMap::new();
    for (volume, pod) in &world.needed {
        wanted.entry(volume.attachment(world.node)).or_insert((volume, *pod));
    }
    for (name, (volume, pod)) in wanted.iter().filter(|(name, _)| !present.contains(name.as_str())) {
        if world.state.is_none() {
            continue;
        }
        if volume.exclusive && (world.elsewhere)(volume) {
            let said = format!(
                "Multi-Attach error for volume {:?} Volume is already exclusively attached to one node and can't be attached to another",
                volume.volume
            );
            plan.note(Note::warning(pod, "FailedAttachVolume", said));
            plan.again_after(Duration::from_secs(10));
            continue;
        }
        let body = json!({
            "apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttachment", "metadata": {"name": name},
            "spec": {"attacher": volume.driver, "nodeName": world.node, "source": {"persistentVolumeName": volume.volume}},
        });
        let failed = format!("AttachVolume.Attach failed for volume {:?} : {{}}", volume.volume);
        plan.act(Action::create(&attachments_resource(), "", body).may_exist().failed(Note::warning(
            pod,
            "FailedAttachVolume",
            failed,
        )));
    }
    for (object, volume) in &world.attached {
        let unneeded = !wanted.contains_key(&*object.meta.name) && object.meta.deletion_timestamp.is_none();
        // One that bears another name than this controller gives is somebody else's.
        if !unneeded || !object.meta.name.starts_with(PREFIX) {
            continue;
        }
        let used = |state: &NodeState| volume.as_ref().is_none_or(|v| state.in_use.contains(&v.unique_name()));
        if let Some(state) = world.state.as_ref().filter(|s| used(s) && !s.out_of_service) {
            let waited = seconds_between((world.unneeded_since)(&object.meta.name), now);
            if state.healthy || !world.forces || waited < FORCE_AFTER {
                plan.again_after(Duration::from_secs((FORCE_AFTER - waited).max(10).unsigned_abs()));
                continue;
            }
        }
        plan.act(Action::delete(&attachments_resource(), object));
    }
    plan
}

/// What a node's status lists as attached.
fn listed(attached: &[(Arc<Object>, Option<Attachable>)]) -> Vec<Value> {
    let mut out: Vec<String> = attached
        .iter()
        .filter(|(o, _)| status_of(o).is_ok_and(|s| s["attached"] == true))
        .filter_map(|(_, v)| Some(v.as_ref()?.unique_name()))
        .collect();
    out.sort();
    out.into_iter().map(|name| json!({"name": name, "devicePath": ""})).collect()
}

struct Gather {
    pods: Arc<Informer>,
    nodes: Arc<Informer>,
    claims: Arc<Informer>,
    volumes: Arc<Informer>,
    drivers: Arc<Informer>,
    attachments: Arc<Informer>,
    unneeded: Mutex<HashMap<String, Timestamp>>,
    forces: bool,
}

impl Gather {
    fn attachable(&self, volume: &Object) -> Option<Attachable> {
        let typed = volume.typed::<PersistentVolume>().ok()?;
        let spec = typed.spec.as_ref()?;
        let csi = spec.csi.as_ref()?;
        let driver = self.drivers.get(&csi.driver).and_then(|d| d.typed::<CSIDriver>().ok());
        if driver.is_some_and(|d| d.spec.attach_required == Some(false)) {
            return None;
        }
        let modes = spec.access_modes.as_deref().unwrap_or_default();
        Some(Attachable {
            volume: volume.meta.name.to_string(),
            driver: csi.driver.clone(),
            handle: csi.volume_handle.clone(),
            exclusive: !modes.is_empty() && modes.iter().all(|m| m.starts_with("ReadWriteOnce")),
        })
    }

    fn needs(&self, pod: &Object) -> Vec<Attachable> {
        let bound = |key: String| -> Option<Attachable> {
            let claim = self.claims.get(&key)?;
            let volume = claim.typed::<PersistentVolumeClaim>().ok()?.spec.as_ref()?.volume_name.clone()?;
            self.attachable(&*self.volumes.get(&volume)?)
        };
        claims_of(pod).into_iter().filter_map(bound).collect()
    }

    fn reconcile(&self, ask: &Ask) -> Result<Plan, Status> {
        let attached: Vec<(Arc<Object>, Option<Attachable>)> = self
            .attachments
            .by_index(BY_TARGET, &ask.key)
            .into_iter()
            .map(|o| {
                let typed = o.typed::<VolumeAttachment>().ok();
                let volume = typed.and_then(|t| t.spec.source.persistent_volume_name.clone());
                let volume = volume.and_then(|v| self.volumes.get(&v)).and_then(|v| self.attachable(&v));
                (o, volume)
            })
            .collect();
        let views = pods::views(self.pods.by_index(BY_NODE, &ask.key))?;
        let needed: Vec<(Attachable, &Object)> = views
            .iter()
            .filter(|p| !p.is_finished())
            .flat_map(|p| self.needs(&p.object).into_iter().map(|v| (v, &*p.object)))
            .collect();
        if attached.is_empty() && needed.is_empty() {
            return Ok(Plan::nothing());
        }
        let node = self.nodes.get(&ask.key);
        let state = match &node {
            None => None,
            Some(object) => {
                let typed = decoded::<Node>(object)?;
                let in_use = typed.status.as_ref().and_then(|s| s.volumes_in_use.clone()).unwrap_or_default();
                Some(NodeState {
                    in_use: in_use.into_iter().collect(),
                    healthy: nodes::condition(&typed, "Ready").is_some_and(|c| c.status == "True"),
                    out_of_service: nodes::taints(&typed).iter().any(|t| t.key == nodes::OUT_OF_SERVICE),
                })
            }
        };
        let elsewhere = |volume: &Attachable| {
            self.attachments.list(None).iter().any(|o| {
                o.typed::<VolumeAttachment>().is_ok_and(|a| {
                    a.spec.node_name != *ask.key
                        && a.spec.source.persistent_volume_name.as_deref() == Some(&volume.volume)
                })
            })
        };
        {
            let names: BTreeSet<String> = needed.iter().map(|(v, _)| v.attachment(&ask.key)).collect();
            let mut unneeded = self.unneeded.lock().unwrap_or_else(PoisonError::into_inner);
            unneeded.retain(|name, _| !names.contains(name) && self.attachments.get(name).is_some());
            for (object, _) in attached.iter().filter(|(o, _)| !names.contains(&*o.meta.name)) {
                unneeded.entry(object.meta.name.to_string()).or_insert(ask.now);
            }
        }
        let since = |name: &str| {
            self.unneeded.lock().unwrap_or_else(PoisonError::into_inner).get(name).copied().unwrap_or(ask.now)
        };
        let status = listed(&attached);
        let world = World {
            node: &ask.key,
            state,
            needed,
            attached,
            elsewhere: &elsewhere,
            unneeded_since: &since,
            forces: self.forces,
        };
        let mut plan = plan(&world, ask.now);
        if let Some(node) = &node {
            let known = status_of(node)?;
            let known = known["volumesAttached"].as_array().cloned().unwrap_or_default();
            if known != status {
                let value = if status.is_empty() { Value::Null } else { status.into() };
                let patch = Patch::Merge(json!({"status": {"volumesAttached": value}}));
                plan.act(Action::patch(&client::gvr_of::<Node>(), node, "status", patch));
            }
        }
        Ok(plan)
    }
}

fn node_of_pod(object: &Object) -> Option<String> {
    facts(object).map(|f| f.node.to_string()).filter(|n| !n.is_empty())
}

pub fn attach_detach(cx: &Context) -> Controller {
    let gather = Arc::new(Gather {
        pods: pod_facts::informer(&cx.informers),
        nodes: cx.informers.get::<Node>(),
        claims: cx.informers.get::<PersistentVolumeClaim>(),
        volumes: cx.informers.get::<PersistentVolume>(),
        drivers: cx.informers.get::<CSIDriver>(),
        attachments: cx.informers.get::<VolumeAttachment>(),
        unneeded: Mutex::default(),
        forces: cx.options.force_detach,
    });
    index_pods_by_node(&gather.pods);
    gather.pods.add_index(BY_CLAIM, claims_of);
    let target = |o: &Object| o.typed::<VolumeAttachment>().ok().map(|a| a.spec.node_name.clone());
    gather.attachments.add_index(BY_TARGET, move |o| target(o).into_iter().collect());
    let (g, by_claim) = (gather.clone(), gather.pods.clone());
    Controller::new("persistentvolume-attach-detach-controller", move |ask| g.reconcile(&ask))
        // Only pods with claims can need anything attached.
        .watch(&gather.pods, |change: &Change| {
            let both = [&change.old, &change.new].into_iter().flatten();
            let nodes: BTreeSet<String> =
                both.filter(|o| !claims_of(o).is_empty()).filter_map(|o| node_of_pod(o)).collect();
            nodes.into_iter().collect()
        })
        .watch(&gather.claims, move |change: &Change| {
            by_claim.by_index(BY_CLAIM, &change.key).iter().filter_map(|p| node_of_pod(p)).collect()
        })
        .watch(&gather.attachments, move |change: &Change| {
            change.object().and_then(|o| target(o)).into_iter().collect()
        })
        .watch(&gather.nodes, |change: &Change| {
            let in_use = |o: &Arc<Object>| {
                o.typed::<Node>().ok().and_then(|n| n.status.as_ref().and_then(|s| s.volumes_in_use.clone()))
            };
            match (&change.old, &change.new) {
                (Some(old), Some(new)) if in_use(old) == in_use(new) => Vec::new(),
                _ => own_key(change),
            }
        })
        .read(&gather.volumes)
        .read(&gather.drivers)
        .workers(cx.options.concurrency)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_follow_pods() {
        let now: Timestamp = "2026-01-01T00:10:00Z".parse().unwrap();
        let object = |kind: &str, name: &str| {
            Arc::new(
                Object::from_value(&json!({"kind": kind, "apiVersion": "v1", "metadata": {"name": name, "uid": name}}))
                    .unwrap(),
            )
        };
        let volume = Attachable { volume: "pv".into(), driver: "d".into(), handle: "h".into(), exclusive: true };
        let (pod, name) = (object("Pod", "p"), volume.attachment("n1"));
        let state = |in_use: bool, healthy: bool| NodeState {
            in_use: if in_use { [volume.unique_name()].into() } else { BTreeSet::new() },
            healthy,
            out_of_service: false,
        };
        // (needed, attached, node, elsewhere, unneeded for minutes, what is done); a time below 0: nothing is forced
        for (needed, attached, state, elsewhere, minutes, expect) in [
            (true, false, Some(state(false, true)), false, 0, "create"),
            (true, false, Some(state(false, true)), true, 0, "FailedAttachVolume"),
            (true, true, Some(state(true, true)), false, 0, ""),
            (true, false, None, false, 0, ""),
            (false, true, Some(state(true, true)), false, 9, ""),
            (false, true, Some(state(false, true)), false, 0, "delete"),
            (false, true, Some(state(true, false)), false, 1, ""),
            (false, true, Some(state(true, false)), false, 7, "delete"),
            (false, true, Some(state(true, false)), false, -7, ""),
            (false, true, None, false, 0, "delete"),
        ] {
            let since = now - jiff::SignedDuration::from_mins(i64::abs(minutes));
            let mut attached =
                if attached { vec![(object("VolumeAttachment", &name), Some(volume.clone()))] } else { Vec::new() };
            // Somebody else's, which nobody here needs: left alone in every case.
            attached.push((object("VolumeAttachment", "theirs"), None));
            let world = World {
                node: "n1",
                state,
                needed: if needed { vec![(volume.clone(), &*pod)] } else { Vec::new() },
                attached,
                elsewhere: &|_| elsewhere,
                unneeded_since: &|_| since,
                forces: minutes >= 0,
            };
            let plan = plan(&world, now);
            let mut said: Vec<String> =
                plan.actions.iter().map(|a| a.to_string().split(' ').next().unwrap().to_string()).collect();
            said.extend(plan.notes.iter().map(|n| n.reason.to_string()));
            assert_eq!(said.join(" "), expect, "{needed} {elsewhere} {minutes}");
        }
    }
}
