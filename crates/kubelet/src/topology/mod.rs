//! Where on the machine a pod's processors, memory and devices lie, so that they are near to each other: upstream's
//! topology, memory and (together with [`crate::processors`]) CPU managers.
//!
//! [`plan`] is pure: givers say where they could ([`hint`]), a policy says what of it goes together ([`merge`]), and each
//! gives accordingly. This room keeps the memory that was given on disk before it is used. Devices are given by their
//! plugins later; they are told where, and refuse what a strict policy does not allow.

pub mod hint;
pub mod machine;
pub mod memory;
pub mod merge;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, ensure};
use k8s_openapi::api::core::v1::{Container, Pod};
use serde::{Deserialize, Serialize};

use self::hint::{Hint, Mask, Placed};
use self::machine::{Amounts, Machine};
use self::memory::Block;
use self::merge::{Nodes, Policy, Rules, merge};
use crate::config::Config;
use crate::config::eviction::Signal;
use crate::metrics::{Metrics, families};
use crate::plugins::devices::Devices;
use crate::pods::status::Verdict;
use crate::processors::core::{self, Cpus, Refused};
use crate::processors::{Processors, present};
use crate::spec::resources::{self, Qos};
use crate::spec::{self, Kind};

/// Under this name lies what a pod has as a whole; no container has it.
const WHOLE: &str = "";
const FILE: &str = "memory_manager_state";
/// More memory nodes make too many combinations.
const MAX_NODES: usize = 8;
/// What a pod is refused with whose resources lie apart.
pub const APART: &str = "Resources cannot be allocated with Topology locality";
pub const APART_REASON: &str = "TopologyAffinityError";

/// How the node is to do it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Wishes {
    pub rules: Rules,
    /// All containers of a pod on the same nodes.
    pub whole_pods: bool,
    /// The most memory nodes the policy is let work with; 0: as upstream.
    pub max_nodes: usize,
    /// Memory is given by node; this much of each is not.
    pub memory: Option<BTreeMap<u32, Amounts>>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct OnDisk {
    policy_name: String,
    entries: memory::Grants,
}

struct Memory {
    /// What pods may have of each node.
    allocatable: BTreeMap<u32, Amounts>,
    file: PathBuf,
    grants: Mutex<memory::Grants>,
}

/// The node's givers.
#[derive(Default)]
pub struct Alignment {
    wishes: Wishes,
    nodes: Nodes,
    memory: Option<Memory>,
    /// Which nodes each container's resources are to be of, by pod uid.
    affinities: Mutex<HashMap<String, BTreeMap<String, Mask>>>,
    /// One pod at a time.
    turn: Mutex<()>,
}

/// What devices there are and which are free, by resource.
pub type DeviceView = BTreeMap<String, (Vec<Placed>, Vec<String>)>;

/// Everything one pod can be given of.
pub struct Givers {
    pub cpus: Option<core::Giving>,
    pub memory: Option<memory::Giving>,
    pub devices: DeviceView,
    /// Devices that init containers had, by resource.
    spare: BTreeMap<String, Vec<String>>,
}

/// What a pod is given.
#[derive(Debug, Default, PartialEq)]
pub struct Given {
    pub cpus: BTreeMap<String, Cpus>,
    pub memory: BTreeMap<String, Vec<Block>>,
    pub affinities: BTreeMap<String, Mask>,
}

/// Why a pod is refused.
#[derive(Debug, PartialEq)]
pub enum Refusal {
    Apart,
    Short(String),
    /// Cores could not be given whole.
    Unaligned(String),
}

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Short(why) => Refusal::Short(why),
            Refused::Unaligned(why) => Refusal::Unaligned(why),
        }
    }
}

/// What a container, or a pod in sum, asks of each giver.
#[derive(Clone, Default)]
struct Asked {
    cpus: usize,
    memory: Amounts,
    devices: BTreeMap<String, usize>,
}

impl Asked {
    fn of(pod: &Pod, container: &Container, devices: &DeviceView) -> Self {
        let limits = container.resources.as_ref().and_then(|r| r.limits.as_ref());
        let counted = limits.into_iter().flatten().filter(|(name, _)| devices.contains_key(*name));
        let counted = counted.map(|(name, q)| (name.clone(), crate::quantity::value(q).max(0) as usize));
        Self {
            cpus: core::wanted(pod, container),
            memory: memory::wanted(pod, container),
            devices: counted.filter(|(_, n)| *n > 0).collect(),
        }
    }

    fn join(&mut self, other: &Self, how: fn(u64, u64) -> u64) {
        self.cpus = how(self.cpus as u64, other.cpus as u64) as usize;
        for (kind, size) in &other.memory {
            let mine = self.memory.entry(kind.clone()).or_default();
            *mine = how(*mine, *size);
        }
        for (resource, count) in &other.devices {
            let mine = self.devices.entry(resource.clone()).or_default();
            *mine = how(*mine as u64, *count as u64) as usize;
        }
    }

    /// Of a guaranteed pod that asks as a whole.
    fn whole(pod: &Pod, devices: &DeviceView) -> Option<Self> {
        let whole = resources::pod_level(pod).filter(|_| resources::qos(pod) == Qos::Guaranteed)?;
        let milli = crate::quantity::amount(whole.requests.as_ref().or(whole.limits.as_ref()), "cpu");
        Some(Self {
            cpus: core::whole(milli.unwrap_or(0)),
            memory: memory::asked(Some(whole)),
            ..Self::in_sum(pod, devices)
        })
    }

    /// Of a pod by its containers: main containers with sidecars, or an init container with the sidecars before it.
    fn in_sum(pod: &Pod, devices: &DeviceView) -> Self {
        let add = |a: u64, b: u64| a + b;
        let (mut sum, mut sidecars, mut peak) = (Self::default(), Self::default(), Self::default());
        for (kind, container) in spec::all_containers(pod) {
            let asked = Self::of(pod, container, devices);
            match kind {
                Kind::Ephemeral => {}
                Kind::Main => sum.join(&asked, add),
                Kind::Sidecar => {
                    sidecars.join(&asked, add);
                    sum.join(&asked, add);
                }
                Kind::Init => {
                    let mut at_once = asked;
                    at_once.join(&sidecars, add);
                    peak.join(&at_once, u64::max);
                }
            }
        }
        sum.join(&peak, u64::max);
        sum
    }
}

impl Givers {
    pub fn new(cpus: Option<core::Giving>, memory: Option<memory::Giving>, devices: DeviceView) -> Self {
        Self { cpus, memory, devices, spare: BTreeMap::new() }
    }

    fn offers(&self, nodes: &[u32], asked: &Asked) -> Vec<Vec<Hint>> {
        let anywhere = || vec![Hint::ANYWHERE];
        let mut out = Vec::new();
        out.push(match &self.cpus {
            Some(cpus) if asked.cpus > 0 => cpus.hints(nodes, asked.cpus),
            _ => anywhere(),
        });
        let memory = self.memory.as_ref().filter(|_| !asked.memory.is_empty()).map(|m| m.hints(&asked.memory));
        // Memory that is nowhere to be had is said when it is to be given.
        out.push(memory.filter(|hints| !hints.is_empty()).unwrap_or_else(anywhere));
        for (resource, count) in &asked.devices {
            let Some((all, free)) = self.devices.get(resource) else { continue };
            let spare = self.spare.get(resource).map_or(&[][..], Vec::as_slice);
            let hints = hint::of_devices(nodes, all, free, spare, *count);
            out.push(hints.unwrap_or_else(anywhere));
        }
        out
    }

    fn give(&mut self, kind: Kind, name: &str, asked: &Asked, hint: Hint) -> Result<Cpus, Refusal> {
        if let Some(memory) = self.memory.as_mut().filter(|_| !asked.memory.is_empty()) {
            memory.give(kind, name, &asked.memory, hint).map_err(Refusal::Short)?;
        }
        for (resource, count) in &asked.devices {
            self.set_aside(kind, resource, *count, hint.affinity);
        }
        match &mut self.cpus {
            Some(cpus) if asked.cpus > 0 => Ok(cpus.give(kind, asked.cpus, hint.affinity)?),
            _ => Ok(Cpus::new()),
        }
    }

    /// Devices are chosen by their plugin later; so many near the affinity are not offered to the pod's other containers.
    fn set_aside(&mut self, kind: Kind, resource: &str, count: usize, affinity: Option<Mask>) {
        let Some((all, free)) = self.devices.get_mut(resource) else { return };
        let spare = self.spare.entry(resource.into()).or_default();
        let place = |id: &String| all.iter().find(|(other, _)| other == id).and_then(|(_, mask)| *mask);
        let near = |id: &String| match (place(id), affinity) {
            (Some(own), Some(wanted)) => own.and(wanted).count() > 0,
            _ => true,
        };
        free.sort_by_key(|id| (!spare.contains(id), !near(id)));
        let taken: Vec<String> = free.drain(..count.min(free.len())).collect();
        spare.retain(|id| !taken.contains(id));
        if kind == Kind::Init {
            free.extend(taken.iter().cloned());
            spare.extend(taken);
        }
    }
}

/// What a pod is given that asks for resources as a whole: processors of which its containers have some for themselves and
/// share the rest, and memory that is all of theirs.
fn plan_whole(pod: &Pod, asked: &Asked, hint: Hint, mut givers: Givers) -> Result<Given, Refusal> {
    let mut given = Given::default();
    let pool = givers.give(Kind::Main, WHOLE, &Asked { devices: BTreeMap::new(), ..asked.clone() }, hint)?;
    let mut among = givers.cpus.as_ref().map(|cpus| cpus.among(&pool));
    let mut sharing = Vec::new();
    let mut shared = pool.clone();
    for (kind, container) in spec::all_containers(pod).filter(|(kind, _)| *kind != Kind::Ephemeral) {
        let own = Asked::of(pod, container, &givers.devices);
        let name = || container.name.clone();
        for (resource, count) in &own.devices {
            givers.set_aside(kind, resource, *count, hint.affinity);
        }
        given.affinities.extend(hint.affinity.map(|mask| (name(), mask)));
        match among.as_mut().filter(|_| !pool.is_empty() && own.cpus > 0) {
            Some(among) => {
                let cpus = among.give(kind, own.cpus, hint.affinity)?;
                if kind != Kind::Init {
                    shared.retain(|cpu| !cpus.contains(cpu));
                }
                given.cpus.insert(name(), cpus);
            }
            None => sharing.push(name()),
        }
    }
    if !pool.is_empty() {
        if shared.is_empty() && !sharing.is_empty() {
            return Err(Refusal::Short(format!("no cpus of the pod are left for {}", sharing.join(", "))));
        }
        given.cpus.extend(sharing.into_iter().map(|name| (name, shared.clone())));
    }
    given.memory = givers.memory.map(|m| m.given).unwrap_or_default();
    Ok(given)
}

/// What a pod is given, by rules.
pub fn plan(pod: &Pod, nodes: &Nodes, wishes: &Wishes, mut givers: Givers) -> Result<Given, Refusal> {
    let numbers = nodes.numbers();
    let mut given = Given::default();
    let judged = |givers: &Givers, asked: &Asked| -> Result<Hint, Refusal> {
        match merge(nodes, wishes.rules, &givers.offers(&numbers, asked)) {
            (hint, true) => Ok(hint),
            (_, false) => Err(Refusal::Apart),
        }
    };
    let whole_pods = wishes.whole_pods && wishes.rules.policy != Policy::None;
    if whole_pods && let Some(asked) = Asked::whole(pod, &givers.devices) {
        let hint = judged(&givers, &asked)?;
        return plan_whole(pod, &asked, hint, givers);
    }
    let whole = match whole_pods {
        true => Some(judged(&givers, &Asked::in_sum(pod, &givers.devices))?),
        false => None,
    };
    for (kind, container) in spec::all_containers(pod).filter(|(kind, _)| *kind != Kind::Ephemeral) {
        let asked = Asked::of(pod, container, &givers.devices);
        let hint = match whole {
            Some(hint) => hint,
            None if wishes.rules.policy == Policy::None => Hint::NOWHERE,
            None => judged(&givers, &asked)?,
        };
        let cpus = givers.give(kind, &container.name, &asked, hint)?;
        if !cpus.is_empty() {
            given.cpus.insert(container.name.clone(), cpus);
        }
        if let Some(mask) = hint.affinity {
            given.affinities.insert(container.name.clone(), mask);
        }
    }
    given.memory = givers.memory.map(|m| m.given).unwrap_or_default();
    Ok(given)
}

impl Memory {
    fn new(
        config: &Config,
        machine: &Machine,
        reserved: &BTreeMap<u32, Amounts>,
        capacity: u64,
    ) -> anyhow::Result<Self> {
        let of = |kind: &str| {
            let quantity = config
                .reserved
                .get(kind)
                .map(|q| crate::quantity::value(&k8s_openapi::apimachinery::pkg::api::resource::Quantity(q.clone())));
            let evicting = if kind == "memory" { config.eviction.kept(Signal::Memory, capacity) } else { 0 };
            quantity.unwrap_or(0).max(0) as u64 + evicting
        };
        let mut sums = Amounts::from([("memory".to_string(), 0)]);
        for (node, amounts) in reserved {
            ensure!(
                machine.memory.contains_key(node),
                "the reserved memory configuration references a non-existing NUMA node {node}"
            );
            for (kind, size) in amounts {
                *sums.entry(kind.clone()).or_default() += size;
            }
        }
        for (kind, sum) in &sums {
            ensure!(
                *sum == of(kind),
                "the total amount \"{sum}\" of type \"{kind}\" is not equal to the value \"{}\" determined by Node Allocatable feature",
                of(kind)
            );
        }
        ensure!(sums["memory"] > 0, "[memorymanager] you should specify the system reserved memory");
        let mut allocatable = machine.memory.clone();
        for (node, amounts) in reserved {
            for (kind, size) in amounts {
                if let Some(of) = allocatable.get_mut(node).and_then(|n| n.get_mut(kind)) {
                    *of = of.saturating_sub(*size);
                }
            }
        }
        let file = config.root_dir.join(FILE);
        let memory = Self { allocatable, file, grants: Mutex::default() };
        let grants = memory
            .load()
            .with_context(|| format!("{} cannot be used; drain the node and remove it", memory.file.display()))?;
        *memory.grants.lock().unwrap_or_else(PoisonError::into_inner) = grants;
        Ok(memory)
    }

    fn load(&self) -> anyhow::Result<memory::Grants> {
        let bytes = match std::fs::read(&self.file) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(memory::Grants::new()),
            Err(error) => return Err(error.into()),
        };
        let entries = serde_json::from_slice::<OnDisk>(&bytes)?.entries;
        let known =
            |b: &Block| b.nodes.iter().all(|n| self.allocatable.get(n).is_some_and(|a| a.contains_key(&b.kind)));
        ensure!(
            entries.values().flat_map(BTreeMap::values).flatten().all(known),
            "it gives away memory that this machine does not have"
        );
        Ok(entries)
    }

    fn change(&self, change: impl FnOnce(&mut memory::Grants)) -> anyhow::Result<()> {
        let mut grants = self.grants.lock().unwrap_or_else(PoisonError::into_inner);
        let mut changed = grants.clone();
        change(&mut changed);
        if changed == *grants {
            return Ok(());
        }
        let partial = self.file.with_extension("part");
        std::fs::write(
            &partial,
            serde_json::to_vec(&OnDisk { policy_name: "Static".into(), entries: changed.clone() })?,
        )?;
        std::fs::rename(&partial, &self.file).with_context(|| format!("writing {}", self.file.display()))?;
        *grants = changed;
        Ok(())
    }

    fn read<T>(&self, look: impl FnOnce(&memory::Grants) -> T) -> T {
        look(&self.grants.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Alignment {
    /// By the configuration, with what an earlier agent gave away.
    pub fn new(config: &Config, capacity: u64) -> anyhow::Result<Self> {
        let wishes = config.alignment.clone();
        let machine = Machine::look(Path::new("/sys/devices/system/node"), &present(), capacity);
        let most = if wishes.max_nodes > 0 { wishes.max_nodes } else { MAX_NODES };
        ensure!(
            wishes.rules.policy == Policy::None || machine.memory.len() <= most,
            "unsupported on machines with more than {most} NUMA Nodes"
        );
        let memory = match &wishes.memory {
            Some(reserved) => Some(Memory::new(config, &machine, reserved, capacity)?),
            None => {
                // Should memory be given by node again some day, nothing old counts.
                let _ = std::fs::remove_file(config.root_dir.join(FILE));
                None
            }
        };
        Ok(Self { wishes, nodes: machine.distances, memory, ..Self::default() })
    }

    fn affinities<T>(&self, look: impl FnOnce(&mut HashMap<String, BTreeMap<String, Mask>>) -> T) -> T {
        look(&mut self.affinities.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Gives a pod its processors and memory and says where its devices are to be, or why it cannot be had.
    pub fn admit(
        &self,
        metrics: &Metrics,
        processors: &Processors,
        devices: &Devices,
        pod: &Pod,
    ) -> Result<(), Verdict> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let uid = spec::uid(pod);
        if processors.has_exclusive(uid) || self.memory.as_ref().is_some_and(|m| m.read(|g| g.contains_key(uid))) {
            return Ok(());
        }
        let aligned = self.wishes.rules.policy != Policy::None;
        if aligned {
            metrics.count(&families::TOPOLOGY_REQUESTS, &[]);
        }
        let memory = self.memory.as_ref().map(|m| m.read(|grants| memory::Giving::new(&m.allocatable, grants)));
        let view = if aligned { devices.view() } else { DeviceView::new() };
        let whole = Asked::whole(pod, &view).filter(|_| aligned && self.wishes.whole_pods).unwrap_or_default();
        let wants = |(_, c): (_, &Container)| core::wanted(pod, c) > 0;
        let pins = processors.giving().is_some() && (whole.cpus > 0 || spec::all_containers(pod).any(wants));
        let wants = |(_, c): (_, &Container)| !memory::wanted(pod, c).is_empty();
        let remembers = memory.is_some() && (!whole.memory.is_empty() || spec::all_containers(pod).any(wants));
        let began = std::time::Instant::now();
        let given = plan(pod, &self.nodes, &self.wishes, Givers::new(processors.giving(), memory, view));
        if aligned {
            metrics.observe(&families::TOPOLOGY_DURATION, &[], began.elapsed().as_secs_f64() * 1e3);
        }
        if remembers {
            metrics.count(&families::MEMORY_PINNING_REQUESTS, &[]);
        }
        if pins {
            metrics.count(&families::CPU_PINNING_REQUESTS, &[]);
        }
        let short = |why: String| Verdict {
            reason: "UnexpectedAdmissionError".into(),
            message: format!("Allocate failed due to {why}, which is unexpected"),
            disruption: false,
        };
        let given = given.map_err(|refusal| {
            if pins {
                metrics.count(&families::CPU_PINNING_ERRORS, &[]);
            }
            if remembers {
                metrics.count(&families::MEMORY_PINNING_ERRORS, &[]);
            }
            match refusal {
                Refusal::Apart => {
                    metrics.count(&families::TOPOLOGY_ERRORS, &[]);
                    Verdict { reason: APART_REASON.into(), message: APART.into(), disruption: false }
                }
                Refusal::Short(why) => short(why),
                Refusal::Unaligned(message) => {
                    Verdict { reason: "SMTAlignmentError".into(), message, disruption: false }
                }
            }
        })?;
        processors.put(uid, given.cpus).map_err(|e| short(format!("{e:#}")))?;
        if let Some(memory) = self.memory.as_ref().filter(|_| !given.memory.is_empty()) {
            let put = memory.change(|grants| {
                grants.insert(uid.into(), given.memory);
            });
            put.map_err(|e| short(format!("{e:#}")))?;
        }
        if !given.affinities.is_empty() {
            self.affinities(|all| all.insert(uid.into(), given.affinities));
        }
        Ok(())
    }

    /// Where a container's devices are to be, and whether nowhere else will do.
    pub fn devices_at(&self, uid: &str, container: &str) -> Option<(Mask, bool)> {
        let mask = self.affinities(|all| all.get(uid).and_then(|of| of.get(container)).copied())?;
        Some((mask, self.wishes.rules.policy.is_strict()))
    }

    /// The nodes a container's memory comes from, in the kernel's words; empty: any.
    pub fn memory_nodes(&self, uid: &str, container: &str) -> String {
        let of = |name: &str| self.memory_of(uid, name).into_iter().flat_map(|b| b.nodes).collect::<Cpus>();
        let own = of(container);
        let nodes = if own.is_empty() { of(WHOLE) } else { own };
        core::printed(&nodes)
    }

    /// What a container has of which nodes.
    pub fn memory_of(&self, uid: &str, container: &str) -> Vec<Block> {
        let of = |grants: &memory::Grants| grants.get(uid).and_then(|g| g.get(container)).cloned();
        self.memory.as_ref().and_then(|m| m.read(of)).unwrap_or_default()
    }

    /// What pods may have of each node.
    pub fn allocatable(&self) -> Vec<Block> {
        let nodes = self.memory.iter().flat_map(|m| &m.allocatable);
        nodes
            .flat_map(|(node, amounts)| amounts.iter().map(|(kind, size)| (*node, kind.clone(), *size)))
            .filter(|(_, _, size)| *size > 0)
            .map(|(node, kind, size)| Block { nodes: vec![node], kind, size })
            .collect()
    }

    /// A pod is over.
    pub fn release(&self, uid: &str) {
        self.affinities(|all| all.remove(uid));
        self.keep(|known| known != uid);
    }

    /// Takes back what pods had that are no more.
    pub fn keep(&self, wanted: impl Fn(&str) -> bool) {
        let Some(memory) = &self.memory else { return };
        if let Err(error) = memory.change(|grants| grants.retain(|uid, _| wanted(uid))) {
            tracing::warn!("grants of memory not written: {error:#}");
        }
    }
}

#[cfg(test)]
mod tests;
