//! Pods leave devices whose `NoExecute` taints their claims do not tolerate, at once or when their time is over. Taints
//! stand in what drivers publish, or in rules of administrators, which are told how far their eviction is.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use client::{Change, Informer};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Taint, Toleration};
use k8s_openapi::api::resource::v1::{
    DeviceRequestAllocationResult, DeviceTaint, DeviceTaintRule, DeviceTaintSelector, ResourceClaim, ResourceSlice,
};
use meta::{Object, Status};
use serde_json::json;

use crate::conditions::{self, Condition};
use crate::plan::{Action, Note, Plan};
use crate::pod_facts::{self, facts};
use crate::pods::{PodView, seconds_between};
use crate::resource_claims::claims_of;
use crate::runner::{Ask, Controller};
use crate::taint_eviction::{evict, is_tolerated, may_stay};
use crate::{Context, decoded, nodes, status_of};

/// Keys of pods and of rules share a queue.
const RULE: &str = "rule:";
/// The index of pods by the claims they use.
const BY_CLAIM: &str = "resource-claims";
/// The index of slices by driver and pool.
const BY_POOL: &str = "pool";

/// A device a pod has: its taints, and what its claim tolerates.
pub struct Device {
    pub taints: Vec<Taint>,
    pub tolerations: Vec<Toleration>,
}

/// Device taints compare as those of nodes do.
fn taint(of: &DeviceTaint) -> Taint {
    Taint { key: of.key.clone(), value: of.value.clone(), effect: of.effect.clone(), time_added: of.time_added.clone() }
}

fn tolerations(of: &DeviceRequestAllocationResult) -> Vec<Toleration> {
    let each = of.tolerations.iter().flatten().map(|t| Toleration {
        key: t.key.clone(),
        operator: t.operator.clone(),
        value: t.value.clone(),
        effect: t.effect.clone(),
        toleration_seconds: t.toleration_seconds,
    });
    each.collect()
}

/// Seconds a pod may stay with its devices yet; `None` for ever.
pub fn stays(devices: &[Device], created: Timestamp, now: Timestamp) -> Option<i64> {
    let each = devices.iter().filter_map(|device| {
        if !is_tolerated(&device.taints, &device.tolerations) {
            return Some(0);
        }
        let stay = may_stay(&device.taints, &device.tolerations)?;
        let since = device.taints.iter().filter_map(|t| t.time_added.as_ref()).map(|t| t.0).min();
        Some((stay - seconds_between(since.unwrap_or(created), now)).max(0))
    });
    each.min()
}

/// What becomes of one pod.
pub fn plan(pod: &PodView, devices: &[Device], now: Timestamp) -> Result<Plan, Status> {
    let mut plan = Plan::nothing();
    match stays(devices, pod.created(), now) {
        None => {}
        Some(0) => {
            let said = "Device Taint manager: deleting due to NoExecute taint";
            evict(&mut plan, pod, "DeletionByDeviceTaintManager", said, now);
            plan.note(Note::normal(&pod.object, "DeviceTaintManagerEviction", "Marking for deletion"));
        }
        Some(left) => drop(plan.again_after(Duration::from_secs(left.unsigned_abs()))),
    }
    Ok(plan)
}

/// How far a rule's eviction is, by the pods that still have devices it taints.
pub fn plan_rule(
    rule: &Object,
    evicts: bool,
    pending: usize,
    namespaces: usize,
    now: Timestamp,
) -> Result<Plan, Status> {
    let mut plan = Plan::nothing();
    let known = status_of(rule)?;
    let mut status = if known.is_object() { known.clone() } else { json!({}) };
    let count = |n: usize, one: &str, many: &str| format!("{n} {}", if n == 1 { one } else { many });
    let pods = count(pending, "pod needs to be evicted in ", "pods need to be evicted in ");
    let said = format!("{pods}{}.", count(namespaces, "namespace", "different namespaces"));
    let (state, reason, message) = match (evicts, pending) {
        (false, _) => ("False", "NoEffect", "The taint's effect is not NoExecute."),
        (true, 0) => ("False", "Completed", "No pod needs to be evicted."),
        (true, _) => ("True", "PodsPendingEviction", said.as_str()),
    };
    conditions::update(&mut status, Condition { kind: "EvictionInProgress", status: state, reason, message }, now);
    for condition in status["conditions"].as_array_mut().into_iter().flatten() {
        condition["observedGeneration"] = rule.meta.generation.into();
    }
    if status != known {
        plan.act(Action::status(&client::gvr_of::<DeviceTaintRule>(), rule, status)?);
    }
    Ok(plan)
}

fn selects(selector: Option<&DeviceTaintSelector>, device: &DeviceRequestAllocationResult) -> bool {
    let is = |wanted: &Option<String>, has: &str| wanted.as_deref().is_none_or(|w| w == has);
    selector
        .is_some_and(|s| is(&s.driver, &device.driver) && is(&s.pool, &device.pool) && is(&s.device, &device.device))
}

fn pool(driver: &str, name: &str) -> String {
    format!("{driver}/{name}")
}

struct World {
    pods: Arc<Informer>,
    claims: Arc<Informer>,
    slices: Arc<Informer>,
    rules: Arc<Informer>,
}

impl World {
    /// The devices a pod has.
    fn allocated(&self, pod: &Object) -> Result<Vec<DeviceRequestAllocationResult>, Status> {
        let mut out = Vec::new();
        for name in claims_of(pod) {
            let Some(claim) = self.claims.get(&meta::object::object_key(&pod.meta.namespace, &name)) else { continue };
            let claim = decoded::<ResourceClaim>(&claim)?;
            let Some(status) = &claim.status else { continue };
            if !status.reserved_for.iter().flatten().any(|r| r.uid == *pod.meta.uid) {
                continue;
            }
            let results = status.allocation.as_ref().and_then(|a| a.devices.as_ref()?.results.clone());
            out.extend(results.into_iter().flatten());
        }
        Ok(out)
    }

    /// The `NoExecute` taints of a device.
    fn taints(&self, device: &DeviceRequestAllocationResult) -> Result<Vec<Taint>, Status> {
        let slices = self.slices.by_index(BY_POOL, &pool(&device.driver, &device.pool));
        let slices = slices.iter().map(|s| decoded::<ResourceSlice>(s)).collect::<Result<Vec<_>, _>>()?;
        // Slices of an older generation are about to go.
        let newest = slices.iter().map(|s| s.spec.pool.generation).max();
        let published = slices.iter().filter(|s| Some(s.spec.pool.generation) == newest);
        let published = published.flat_map(|s| s.spec.devices.iter().flatten()).filter(|d| d.name == device.device);
        let mut taints: Vec<Taint> = published.flat_map(|d| d.taints.iter().flatten()).map(taint).collect();
        for rule in self.rules.list(None) {
            let rule = decoded::<DeviceTaintRule>(&rule)?;
            if selects(rule.spec.device_selector.as_ref(), device) {
                taints.push(taint(&rule.spec.taint));
            }
        }
        taints.retain(|t| t.effect == "NoExecute");
        Ok(taints)
    }

    fn devices(&self, pod: &Object) -> Result<Vec<Device>, Status> {
        let each = self.allocated(pod)?.into_iter();
        each.map(|d| Ok(Device { taints: self.taints(&d)?, tolerations: tolerations(&d) })).collect()
    }

    fn reconcile(&self, ask: &Ask) -> Result<Plan, Status> {
        let Some(name) = ask.key.strip_prefix(RULE) else {
            let Some(object) = self.pods.get(&ask.key) else { return Ok(Plan::nothing()) };
            let pod = PodView::new(object)?;
            return if pod.is_active() {
                plan(&pod, &self.devices(&pod.object)?, ask.now)
            } else {
                Ok(Plan::nothing())
            };
        };
        let Some(object) = self.rules.get(name) else { return Ok(Plan::nothing()) };
        let rule = decoded::<DeviceTaintRule>(&object)?;
        let (mut pending, mut namespaces) = (0, BTreeSet::new());
        let tainting = [taint(&rule.spec.taint)];
        for pod in self.users() {
            let mut has = self.allocated(&pod)?.into_iter();
            let hit = |d: DeviceRequestAllocationResult| {
                selects(rule.spec.device_selector.as_ref(), &d)
                    && nodes::untolerated(&tainting, &tolerations(&d), &["NoExecute"]).is_some()
            };
            if has.any(hit) {
                pending += 1;
                namespaces.insert(pod.meta.namespace.clone());
            }
        }
        let evicts = rule.spec.taint.effect == "NoExecute";
        plan_rule(&object, evicts, pending, namespaces.len(), ask.now)
    }

    /// Pods that have claims and have not ended.
    fn users(&self) -> Vec<Arc<Object>> {
        let unfinished = |o: &Object| {
            facts(o).is_some_and(|p| p.shape.resource_claims.is_some() && !matches!(&*p.phase, "Succeeded" | "Failed"))
        };
        self.pods.list_where(None, unfinished)
    }

    fn everybody(&self) -> Vec<String> {
        let rules = self.rules.list(None).into_iter().map(|r| format!("{RULE}{}", r.meta.name));
        self.users().iter().map(|p| p.meta.key()).chain(rules).collect()
    }
}

pub fn eviction(cx: &Context) -> Controller {
    let world = Arc::new(World {
        pods: pod_facts::informer(&cx.informers),
        claims: cx.informers.get::<ResourceClaim>(),
        slices: cx.informers.get::<ResourceSlice>(),
        rules: cx.informers.get::<DeviceTaintRule>(),
    });
    world.pods.add_index(BY_CLAIM, |o| {
        claims_of(o).iter().map(|name| meta::object::object_key(&o.meta.namespace, name)).collect()
    });
    world.slices.add_index(BY_POOL, |o| {
        let slice = o.typed::<ResourceSlice>().ok();
        slice.map(|s| pool(&s.spec.driver, &s.spec.pool.name)).into_iter().collect()
    });
    let (w, by_claim, of_slices, of_rules) = (world.clone(), world.clone(), world.clone(), world.clone());
    let pods_of = world.clone();
    Controller::new("device-taint-eviction-controller", move |ask| w.reconcile(&ask))
        .watch(&world.pods, move |change: &Change| {
            let Some(object) = change.object().filter(|o| !claims_of(o).is_empty()) else { return Vec::new() };
            let rules = pods_of.rules.list(None).into_iter().map(|r| format!("{RULE}{}", r.meta.name));
            std::iter::once(object.meta.key()).chain(rules).collect()
        })
        .watch(&world.claims, move |change: &Change| {
            by_claim.pods.by_index(BY_CLAIM, &change.key).iter().map(|p| p.meta.key()).collect()
        })
        .watch(&world.slices, move |_| of_slices.everybody())
        .watch(&world.rules, move |change: &Change| {
            // Its own status changes nothing for anybody.
            match (&change.old, &change.new) {
                (Some(old), Some(new)) if old.meta.generation == new.meta.generation => Vec::new(),
                _ => of_rules.everybody(),
            }
        })
        .workers(cx.options.concurrency)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taint(effect: &str) -> Taint {
        let added = "2026-01-01T00:00:00Z".parse().unwrap();
        Taint {
            key: "broken".into(),
            effect: effect.into(),
            value: None,
            time_added: Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(added)),
        }
    }

    #[test]
    fn pods_stay_as_long_as_their_claims_tolerate() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let tolerates = |seconds: Option<i64>| {
            vec![Toleration {
                key: Some("broken".into()),
                operator: Some("Exists".into()),
                toleration_seconds: seconds,
                ..Default::default()
            }]
        };
        for (taints, tolerations, expect) in [
            (vec![], vec![], None),
            (vec![taint("NoExecute")], vec![], Some(0)),
            (vec![taint("NoExecute")], tolerates(None), None),
            (vec![taint("NoExecute")], tolerates(Some(90)), Some(30)),
            (vec![taint("NoExecute")], tolerates(Some(30)), Some(0)),
        ] {
            let device = Device { taints, tolerations };
            let well = Device { taints: vec![], tolerations: vec![] };
            assert_eq!(stays(&[well, device], now, now), expect);
        }
    }

    #[test]
    fn rules_are_told() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let rule = json!({"kind": "DeviceTaintRule", "apiVersion": "resource.k8s.io/v1", "metadata": {"name": "r", "uid": "u"}, "spec": {"taint": {"key": "k", "effect": "NoExecute"}}});
        let rule = Object::from_value(&rule).unwrap();
        for (evicts, pending, expect) in [
            (true, 2, "True PodsPendingEviction 2 pods need to be evicted in 1 namespace."),
            (true, 0, "False Completed No pod needs to be evicted."),
            (false, 0, "False NoEffect The taint's effect is not NoExecute."),
        ] {
            let plan = plan_rule(&rule, evicts, pending, 1, now).unwrap();
            let crate::plan::What::Update { body, .. } = &plan.actions[0].what else { panic!("no update") };
            let c = &body["status"]["conditions"][0];
            let said = ["status", "reason", "message"].map(|f| c[f].as_str().unwrap());
            assert_eq!(said.join(" "), expect);
        }
    }
}
