//! Amounts of resources, and how much a pod asks for.
//!
//! CPU in thousandths of a core, everything else in its own unit (bytes, pieces), all as 64-bit integers, rounded up as
//! upstream does. Follows `k8s.io/component-helpers/resource` (`PodRequests`).

use meta::quantity::Quantity;

use crate::symbol::Symbol;
use crate::view::{ContainerStatusView, ContainerView, PodSpecView, PodStatusView, Quantities};

/// What scheduling assumes of a container that asks for no CPU, in thousandths of a core, when nodes are scored.
const ASSUMED_CPU: i64 = 100;
/// The same for memory, in bytes.
const ASSUMED_MEMORY: i64 = 200 * 1024 * 1024;

/// An amount of a resource that is not CPU, memory or ephemeral storage.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Extended {
    pub resource: Symbol,
    pub name: Box<str>,
    pub amount: i64,
}

/// Amounts of resources.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Amounts {
    pub cpu: i64,
    pub memory: i64,
    pub ephemeral: i64,
    pub extended: Vec<Extended>,
}

impl Amounts {
    /// A resource list. An amount that is no quantity counts as none: the API refuses it anyway.
    pub fn of(list: &Quantities) -> Self {
        let mut out = Self::default();
        for (name, text) in list {
            let Ok(quantity) = text.parse::<Quantity>() else { continue };
            match &**name {
                "cpu" => out.cpu = quantity.milli_value(),
                "memory" => out.memory = quantity.value(),
                "ephemeral-storage" => out.ephemeral = quantity.value(),
                "pods" => {}
                _ => out.extended.push(Extended {
                    resource: Symbol::of(name),
                    name: name.clone(),
                    amount: quantity.value(),
                }),
            }
        }
        out
    }

    pub fn extended(&self, resource: Symbol) -> i64 {
        self.extended.iter().find(|e| e.resource == resource).map_or(0, |e| e.amount)
    }

    fn combine(&mut self, other: &Self, with: impl Fn(i64, i64) -> i64) {
        self.cpu = with(self.cpu, other.cpu);
        self.memory = with(self.memory, other.memory);
        self.ephemeral = with(self.ephemeral, other.ephemeral);
        for theirs in &other.extended {
            match self.extended.iter_mut().find(|e| e.resource == theirs.resource) {
                Some(own) => own.amount = with(own.amount, theirs.amount),
                None => self.extended.push(Extended { amount: with(0, theirs.amount), ..theirs.clone() }),
            }
        }
    }

    pub fn add(&mut self, other: &Self) {
        self.combine(other, i64::saturating_add);
    }

    pub fn subtract(&mut self, other: &Self) {
        self.combine(other, i64::saturating_sub);
    }

    pub fn raise_to(&mut self, other: &Self) {
        self.combine(other, i64::max);
    }
}

/// The pods a node takes (`allocatable.pods`).
pub fn pods_allowed(list: &Quantities) -> u32 {
    let value = list.get("pods").and_then(|t| t.parse::<Quantity>().ok()).map_or(0, |q| q.value());
    u32::try_from(value.max(0)).unwrap_or(u32::MAX)
}

/// What one container counts for: its requests, or what it still holds of an earlier, larger size.
fn of_container(container: &ContainerView, statuses: &[ContainerStatusView], assume: bool) -> Amounts {
    let mut out = Amounts::of(&container.resources.requests);
    if let Some(status) = statuses.iter().find(|s| s.name == container.name) {
        out.raise_to(&Amounts::of(&status.resources.requests));
    }
    if assume {
        if !container.resources.requests.contains_key("cpu") {
            out.cpu = ASSUMED_CPU;
        }
        if !container.resources.requests.contains_key("memory") {
            out.memory = ASSUMED_MEMORY;
        }
    }
    out
}

/// What the containers of a pod come to at its hungriest moment, `own` telling what each counts for (and whether it is one
/// of those that start before the others).
fn of_containers(spec: &PodSpecView, own: impl Fn(&ContainerView, bool) -> Amounts) -> Amounts {
    let mut total = Amounts::default();
    for container in &spec.containers {
        total.add(&own(container, false));
    }
    // Sidecars stay; a plain init container runs beside the sidecars that precede it.
    let (mut sidecars, mut peak) = (Amounts::default(), Amounts::default());
    for container in &spec.init_containers {
        let mut own = own(container, true);
        if &*container.restart_policy == "Always" {
            total.add(&own);
            sidecars.add(&own);
            own = sidecars.clone();
        } else {
            own.add(&sidecars);
        }
        peak.raise_to(&own);
    }
    total.raise_to(&peak);
    total
}

/// Has what is said of the pod as a whole stand instead of its containers', for the resources of which that may be said.
fn override_by(total: &mut Amounts, said: &Quantities) {
    for name in said.keys() {
        let whole = Amounts::of(said);
        match &**name {
            "cpu" => total.cpu = whole.cpu,
            "memory" => total.memory = whole.memory,
            _ if name.starts_with("hugepages-") => {
                total.extended.retain(|e| e.name != *name);
                total.extended.extend(whole.extended.into_iter().filter(|e| e.name == *name));
            }
            _ => {}
        }
    }
}

/// What a pod takes of its node. With `assume`, containers that ask for no CPU or memory count with assumed amounts, as
/// scoring wants it.
pub fn of_pod(spec: &PodSpecView, status: &PodStatusView, assume: bool) -> Amounts {
    let mut total = of_containers(spec, |container, init| {
        let statuses = if init { &status.init_container_statuses } else { &status.container_statuses };
        of_container(container, statuses, assume)
    });
    override_by(&mut total, &spec.resources.requests);
    total.add(&Amounts::of(&spec.overhead));
    total.extended.retain(|e| e.amount > 0);
    total.extended.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    total
}

/// What a pod may take at most, of resources that are limited.
pub fn limits_of_pod(spec: &PodSpecView) -> Amounts {
    let mut total = of_containers(spec, |container, _| Amounts::of(&container.resources.limits));
    override_by(&mut total, &spec.resources.limits);
    let mut overhead = Amounts::of(&spec.overhead);
    // What is not limited stays so.
    overhead.cpu *= i64::from(total.cpu > 0);
    overhead.memory *= i64::from(total.memory > 0);
    overhead.ephemeral *= i64::from(total.ephemeral > 0);
    overhead.extended.retain(|e| total.extended(e.resource) > 0);
    total.add(&overhead);
    total.extended.retain(|e| e.amount > 0);
    total
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn a_pod_takes_what_its_hungriest_moment_takes() {
        let cpu = |amount: &str| json!({"resources": {"requests": {"cpu": amount}}});
        let sidecar = |amount: &str| json!({"restartPolicy": "Always", "resources": {"requests": {"cpu": amount}}});
        let cases: &[(Value, i64, i64)] = &[
            (json!({"containers": [cpu("100m"), cpu("0.2")]}), 300, 300),
            (json!({"containers": [{}]}), 0, 100),
            (json!({"containers": [cpu("1")], "initContainers": [cpu("3"), cpu("2")]}), 3000, 3000),
            (
                json!({"containers": [cpu("1")], "initContainers": [sidecar("1"), cpu("2"), sidecar("500m")]}),
                3000,
                3000,
            ),
            (
                json!({"containers": [cpu("4")], "initContainers": [sidecar("1")], "overhead": {"cpu": "250m"}}),
                5250,
                5250,
            ),
            (json!({"containers": [cpu("1")], "resources": {"requests": {"cpu": "1500m"}}}), 1500, 1500),
        ];
        for (spec, real, assumed) in cases {
            let view: PodSpecView = serde_json::from_value(spec.clone()).unwrap();
            let status = PodStatusView::default();
            assert_eq!(
                (of_pod(&view, &status, false).cpu, of_pod(&view, &status, true).cpu),
                (*real, *assumed),
                "{spec}"
            );
        }
        let grown: PodSpecView =
            serde_json::from_value(json!({"containers": [{"name": "a", "resources": {"requests": {"cpu": "1"}}}]}))
                .unwrap();
        let held: PodStatusView = serde_json::from_value(
            json!({"containerStatuses": [{"name": "a", "resources": {"requests": {"cpu": "2"}}}]}),
        )
        .unwrap();
        assert_eq!(of_pod(&grown, &held, false).cpu, 2000);
    }
}
