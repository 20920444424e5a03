//! Requests and limits: QoS class, cgroup numbers, out-of-memory scores, and the sums admission compares.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::Kind;
use crate::cri::v1::LinuxContainerResources;
use crate::quantity::{amount, milli, value};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Qos {
    Guaranteed,
    Burstable,
    BestEffort,
}

impl Qos {
    pub fn as_str(self) -> &'static str {
        match self {
            Qos::Guaranteed => "Guaranteed",
            Qos::Burstable => "Burstable",
            Qos::BestEffort => "BestEffort",
        }
    }
}

const CPU_PERIOD_MICROS: i64 = 100_000;
const MIN_QUOTA_MICROS: i64 = 1000;
const MIN_SHARES: i64 = 2;
const MAX_SHARES: i64 = 262_144;

/// The quality-of-service class: what the API recorded, else computed from cpu and memory of all containers.
pub fn qos(pod: &Pod) -> Qos {
    match pod.status.as_ref().and_then(|s| s.qos_class.as_deref()) {
        Some("Guaranteed") => return Qos::Guaranteed,
        Some("Burstable") => return Qos::Burstable,
        Some("BestEffort") => return Qos::BestEffort,
        _ => {}
    }
    let all: Vec<Option<&ResourceRequirements>> = match pod_level(pod) {
        Some(whole) => vec![Some(whole)],
        None => super::all_containers(pod).map(|(_, c)| c.resources.as_ref()).collect(),
    };
    let set = |list: Option<&BTreeMap<String, Quantity>>, name: &str| amount(list, name).filter(|v| *v > 0);
    let (mut any, mut guaranteed) = (false, true);
    for resources in all {
        for name in ["cpu", "memory"] {
            let limit = set(resources.and_then(|r| r.limits.as_ref()), name);
            let request = set(resources.and_then(|r| r.requests.as_ref()), name);
            any |= limit.is_some() || request.is_some();
            guaranteed &= limit.is_some() && request.is_none_or(|r| Some(r) == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => Qos::BestEffort,
        (true, true) => Qos::Guaranteed,
        (true, false) => Qos::Burstable,
    }
}

/// What a pod asks for as a whole, when it does.
pub fn pod_level(pod: &Pod) -> Option<&ResourceRequirements> {
    super::spec(pod).resources.as_ref().filter(|r| r.requests.is_some() || r.limits.is_some())
}

/// Whether a container's own resources are guaranteed: all of them are in a guaranteed pod, unless the pod is so by what
/// it asks for as a whole.
pub fn is_guaranteed(pod: &Pod, container: &Container) -> bool {
    let own = || {
        let resources = container.resources.as_ref();
        ["cpu", "memory"].iter().all(|name| {
            let limit = amount(resources.and_then(|r| r.limits.as_ref()), name).filter(|v| *v > 0);
            let request = amount(resources.and_then(|r| r.requests.as_ref()), name);
            limit.is_some() && request.is_none_or(|r| Some(r) == limit)
        })
    };
    qos(pod) == Qos::Guaranteed && (pod_level(pod).is_none() || own())
}

pub fn shares(milli_cpu: i64) -> i64 {
    (milli_cpu.saturating_mul(1024) / 1000).clamp(MIN_SHARES, MAX_SHARES)
}

pub fn quota(milli_cpu: i64) -> i64 {
    if milli_cpu <= 0 { 0 } else { (milli_cpu.saturating_mul(CPU_PERIOD_MICROS) / 1000).max(MIN_QUOTA_MICROS) }
}

/// Quotas reckoned by another period than the usual.
pub fn stretch(numbers: &mut LinuxContainerResources, period: std::time::Duration) {
    let micros = period.as_micros() as i64;
    if micros != numbers.cpu_period && numbers.cpu_quota > 0 {
        numbers.cpu_quota = (numbers.cpu_quota.saturating_mul(micros) / numbers.cpu_period).max(MIN_QUOTA_MICROS);
        numbers.cpu_period = micros;
    }
}

/// How early the kernel should pick the container when memory runs out.
pub fn oom_score(pod: &Pod, kind: Kind, container: &Container, memory_capacity: i64) -> i64 {
    if super::spec(pod).priority.unwrap_or(0) >= 2_000_001_000 {
        return -997;
    }
    match qos(pod) {
        Qos::Guaranteed => return -997,
        Qos::BestEffort => return 1000,
        Qos::Burstable => {}
    }
    let of = |c: &Container| amount(c.resources.as_ref().and_then(|r| r.requests.as_ref()), "memory").unwrap_or(0);
    let mut request = of(container);
    if kind == Kind::Sidecar {
        // A sidecar must not die before the containers it serves.
        request = super::spec(pod).containers.iter().map(of).min().unwrap_or(0).max(request);
    }
    if let Some(whole) = pod_level(pod).and_then(|r| amount(r.requests.as_ref(), "memory")) {
        // What the pod asks for beyond its containers is everybody's alike.
        let lasting = || super::all_containers(pod).filter(|(kind, _)| matches!(kind, Kind::Main | Kind::Sidecar));
        let named: i64 = lasting().map(|(_, c)| of(c)).sum();
        request += whole.saturating_sub(named).max(0) / lasting().count().max(1) as i64;
    }
    let score = 1000 - (1000i128 * i128::from(request) / i128::from(memory_capacity.max(1))) as i64;
    if score < 3 {
        3
    } else if score == 1000 {
        999
    } else {
        score
    }
}

/// Pod-level limits stand in for containers that set none.
fn limits<'a>(pod: &'a Pod, container: &'a Container, name: &str) -> Option<i64> {
    amount(container.resources.as_ref().and_then(|r| r.limits.as_ref()), name)
        .or_else(|| amount(super::spec(pod).resources.as_ref().and_then(|r| r.limits.as_ref()), name))
}

/// A container's cgroup numbers.
pub fn container(pod: &Pod, kind: Kind, container: &Container, memory_capacity: i64) -> LinuxContainerResources {
    let resources = container.resources.as_ref();
    let requests = resources.and_then(|r| r.requests.as_ref());
    let cpu_limit = limits(pod, container, "cpu").unwrap_or(0);
    let cpu_request = amount(requests, "cpu").unwrap_or(cpu_limit);
    let hugepages = resources.and_then(|r| r.limits.as_ref()).into_iter().flatten().filter_map(|(name, q)| {
        let size = name.strip_prefix("hugepages-")?;
        // The kernel spells sizes with B: 2Mi is 2MB.
        Some(crate::cri::v1::HugepageLimit { page_size: size.replace('i', "B"), limit: value(q) as u64 })
    });
    LinuxContainerResources {
        cpu_period: CPU_PERIOD_MICROS,
        cpu_quota: quota(cpu_limit),
        cpu_shares: shares(cpu_request),
        memory_limit_in_bytes: limits(pod, container, "memory").unwrap_or(0),
        // Without swap accounting for workloads, memory and memory+swap are the same bound.
        memory_swap_limit_in_bytes: limits(pod, container, "memory").unwrap_or(0),
        oom_score_adj: oom_score(pod, kind, container, memory_capacity),
        hugepage_limits: hugepages.collect(),
        ..Default::default()
    }
}

/// The pod's total requests (or limits): the larger of the main containers with all sidecars, and each init container
/// with the sidecars before it; plus overhead. `cpu` in thousandths.
pub fn pod_total(pod: &Pod, limits: bool) -> BTreeMap<String, i64> {
    let pick = |r: Option<&ResourceRequirements>| -> BTreeMap<String, i64> {
        let list = r.and_then(|r| if limits { r.limits.as_ref() } else { r.requests.as_ref() });
        list.into_iter().flatten().map(|(k, q)| (k.clone(), if k == "cpu" { milli(q) } else { value(q) })).collect()
    };
    let add = |into: &mut BTreeMap<String, i64>, what: &BTreeMap<String, i64>| {
        for (k, v) in what {
            *into.entry(k.clone()).or_default() += v;
        }
    };
    let mut total = BTreeMap::new();
    for container in &super::spec(pod).containers {
        add(&mut total, &pick(container.resources.as_ref()));
    }
    let (mut sidecars, mut init_peak) = (BTreeMap::new(), BTreeMap::<String, i64>::new());
    for (kind, container) in super::init_containers(pod) {
        let own = pick(container.resources.as_ref());
        let mut at_once = own.clone();
        add(&mut at_once, &sidecars);
        if kind == Kind::Sidecar {
            add(&mut sidecars, &own);
            add(&mut total, &own);
        }
        for (k, v) in at_once {
            let peak = init_peak.entry(k).or_default();
            *peak = (*peak).max(v);
        }
    }
    for (k, v) in init_peak {
        let all = total.entry(k).or_default();
        *all = (*all).max(v);
    }
    for (k, v) in pick(super::spec(pod).resources.as_ref()) {
        total.insert(k, v);
    }
    if let Some(overhead) = &super::spec(pod).overhead {
        add(
            &mut total,
            &overhead.iter().map(|(k, q)| (k.clone(), if k == "cpu" { milli(q) } else { value(q) })).collect(),
        );
    }
    total
}

/// The pod cgroup's numbers: shares from requests, quota and memory only when every container is limited.
pub fn pod_cgroup(pod: &Pod) -> LinuxContainerResources {
    let (requests, totals) = (pod_total(pod, false), pod_total(pod, true));
    let pod_level = super::spec(pod).resources.as_ref().and_then(|r| r.limits.as_ref());
    let every = |name: &str| {
        amount(pod_level, name).is_some()
            || super::all_containers(pod)
                .all(|(_, c)| amount(c.resources.as_ref().and_then(|r| r.limits.as_ref()), name).is_some_and(|v| v > 0))
    };
    let of = |name: &str| if every(name) { totals.get(name).copied().unwrap_or(0) } else { 0 };
    LinuxContainerResources {
        cpu_period: CPU_PERIOD_MICROS,
        cpu_quota: quota(of("cpu")),
        cpu_shares: shares(requests.get("cpu").copied().unwrap_or(0)),
        memory_limit_in_bytes: of("memory"),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn classes_and_totals() {
        let pod = |spec: serde_json::Value| -> Pod { serde_json::from_value(json!({"spec": spec})).unwrap() };
        let r = |cpu: &str| json!({"requests": {"cpu": cpu, "memory": "1Mi"}, "limits": {"cpu": cpu, "memory": "1Mi"}});
        for (spec, class) in [
            (json!({"containers": [{"name": "a"}]}), Qos::BestEffort),
            (json!({"containers": [{"name": "a", "resources": r("1")}]}), Qos::Guaranteed),
            (json!({"containers": [{"name": "a", "resources": r("1")}, {"name": "b"}]}), Qos::Burstable),
            (json!({"containers": [{"name": "a", "resources": {"requests": {"cpu": "1"}}}]}), Qos::Burstable),
        ] {
            assert_eq!(qos(&pod(spec)), class);
        }
        let sums = pod_total(
            &pod(json!({
                "initContainers": [{"name": "s", "restartPolicy": "Always", "resources": r("1")}, {"name": "i", "resources": r("3")}],
                "containers": [{"name": "a", "resources": r("500m")}]
            })),
            false,
        );
        assert_eq!(sums["cpu"], 4000);
        assert_eq!((shares(0), shares(1500), quota(5), quota(500)), (2, 1536, 1000, 50_000));
    }
}
