//! Processors for one container alone (`cpuManagerPolicy: static`): guaranteed pods' containers that ask for whole ones
//! get them, everyone else shares the rest.
//!
//! What is given is on disk before it is used, so an agent that starts anew gives nothing twice. [`core`] decides; this
//! room reads the machine, keeps the grants, and moves running containers when the shared part changes.

pub mod core;
pub mod take;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use self::core::{Cpus, Giving, Place, Topology, parse, printed};
use self::take::Options;
use crate::agent::Context;
use crate::config::Config;
use crate::cri::v1;
use crate::spec::names;
use crate::topology::machine::Machine;
use crate::topology::merge::Policy;

/// How often containers are looked at although nothing changed; as upstream.
const EVERY: Duration = Duration::from_secs(10);
const FILE: &str = "cpu_manager_state";

/// What is given away, by pod uid and container name.
type Grants = BTreeMap<String, BTreeMap<String, Cpus>>;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct OnDisk {
    policy_name: String,
    default_cpu_set: String,
    entries: BTreeMap<String, BTreeMap<String, String>>,
}

struct Static {
    topology: Topology,
    /// The node's own: given to nobody.
    reserved: Cpus,
    options: Options,
    file: PathBuf,
    grants: Mutex<Grants>,
    changed: Notify,
}

/// The node's processors; nothing is given away unless the policy is static.
#[derive(Default)]
pub struct Processors(Option<Static>);

/// Where the kernel tells of processors, and of the memory near to them.
const BASE: &str = "/sys/devices/system/cpu";
const NODES: &str = "/sys/devices/system/node";

/// Every processor that is on.
pub fn present() -> Cpus {
    let online = std::fs::read_to_string(Path::new(BASE).join("online")).unwrap_or_default();
    parse(&online).unwrap_or_default()
}

/// Where every one of them sits.
fn look() -> Topology {
    let base = Path::new(BASE);
    let number = |cpu: u32, file: &str| {
        let path = base.join(format!("cpu{cpu}/topology/{file}"));
        std::fs::read_to_string(path).ok().and_then(|t| t.trim().parse::<u32>().ok())
    };
    let all = present();
    let machine = Machine::look(Path::new(NODES), &all, 0);
    // A machine that does not say is one socket of cores without siblings.
    let place = |c: u32| Place {
        socket: number(c, "physical_package_id").unwrap_or(0),
        core: number(c, "core_id").unwrap_or(c),
        node: machine.node_of(c),
        cache: last_cache(&base.join(format!("cpu{c}/cache"))).unwrap_or(0),
    };
    Topology(all.into_iter().map(|c| (c, place(c))).collect())
}

/// The number of a processor's cache of the highest level.
fn last_cache(dir: &Path) -> Option<u32> {
    let number = |path: std::path::PathBuf| std::fs::read_to_string(path).ok()?.trim().parse::<u32>().ok();
    let caches = std::fs::read_dir(dir).ok()?.flatten().map(|e| e.path());
    caches.filter_map(|path| Some((number(path.join("level"))?, number(path.join("id"))?))).max().map(|(_, id)| id)
}

impl Static {
    /// What all containers without processors of their own run on.
    fn shared(&self, grants: &Grants) -> Cpus {
        let all = self.rest(grants);
        if self.options.strict { all.difference(&self.reserved).copied().collect() } else { all }
    }

    /// What nobody was given.
    fn rest(&self, grants: &Grants) -> Cpus {
        let given: Cpus = grants.values().flat_map(BTreeMap::values).flatten().copied().collect();
        self.topology.all().difference(&given).copied().collect()
    }

    fn save(&self, grants: &Grants) -> anyhow::Result<()> {
        let entries =
            grants.iter().map(|(uid, of)| (uid.clone(), of.iter().map(|(n, c)| (n.clone(), printed(c))).collect()));
        let on_disk = OnDisk {
            policy_name: "static".into(),
            default_cpu_set: printed(&self.shared(grants)),
            entries: entries.collect(),
        };
        let partial = self.file.with_extension("part");
        std::fs::write(&partial, serde_json::to_vec(&on_disk)?)?;
        std::fs::rename(&partial, &self.file).with_context(|| format!("writing {}", self.file.display()))
    }

    fn load(&self) -> anyhow::Result<Grants> {
        let bytes = match std::fs::read(&self.file) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Grants::new()),
            Err(error) => return Err(error.into()),
        };
        let on_disk: OnDisk = serde_json::from_slice(&bytes)?;
        let set = |text: &String| parse(text).with_context(|| format!("\"{text}\" is no set of processors"));
        let of = |of: &BTreeMap<String, String>| {
            of.iter().map(|(name, text)| Ok((name.clone(), set(text)?))).collect::<anyhow::Result<BTreeMap<_, _>>>()
        };
        let grants =
            on_disk.entries.iter().map(|(uid, c)| Ok((uid.clone(), of(c)?))).collect::<anyhow::Result<Grants>>()?;
        let all = self.topology.all();
        let known = grants.values().flat_map(BTreeMap::values).all(|c| c.is_subset(&all));
        ensure!(known, "it gives away processors that this machine does not have");
        Ok(grants)
    }

    fn with<T>(&self, change: impl FnOnce(&mut Grants) -> T) -> T {
        change(&mut self.grants.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Processors {
    /// By the configuration, with what an earlier agent gave away.
    pub fn new(config: &Config) -> anyhow::Result<Processors> {
        let file = config.root_dir.join(FILE);
        if !config.exclusive_processors {
            // Should the policy be static again some day, nothing old counts.
            let _ = std::fs::remove_file(&file);
            return Ok(Processors(None));
        }
        let topology = look();
        let reserved = match &config.reserved_processors {
            Some(reserved) => reserved.clone(),
            None => {
                let milli = config.reserved.get("cpu").map_or(0, |q| {
                    crate::quantity::milli(&k8s_openapi::apimachinery::pkg::api::resource::Quantity(q.clone()))
                });
                let count = usize::try_from(milli.max(0)).unwrap_or(0).div_ceil(1000);
                topology.take(&topology.all(), count, &config.processor_options).unwrap_or_default()
            }
        };
        ensure!(
            !reserved.is_empty(),
            "[cpumanager] unable to determine reserved CPU resources for static policy: the static policy requires \
             systemreserved.cpu + kubereserved.cpu to be greater than zero"
        );
        ensure!(reserved.is_subset(&topology.all()), "reservedSystemCPUs: {} are not all here", printed(&reserved));
        let options = config.processor_options;
        if options.by_socket {
            ensure!(
                config.alignment.rules.policy != Policy::SingleNode,
                "Topology manager single-numa-node policy is incompatible with CPUManager align-by-socket policy option"
            );
            ensure!(
                topology.distinct(|p| p.socket) <= topology.distinct(|p| p.node),
                "Align by socket is not compatible with hardware where number of sockets are more than number of NUMA"
            );
        }
        let policy = Static { topology, reserved, options, file, grants: Mutex::default(), changed: Notify::new() };
        let grants = policy
            .load()
            .with_context(|| format!("{} cannot be used; drain the node and remove it", policy.file.display()))?;
        policy.with(|g| *g = grants);
        Ok(Processors(Some(policy)))
    }

    /// What can be given to the next pod; none where nothing is given away.
    pub fn giving(&self) -> Option<Giving> {
        let policy = self.0.as_ref()?;
        // A core of which the node has a thread is not given whole.
        let reserved = match policy.options.whole_cores {
            true => policy.topology.siblings(&policy.reserved),
            false => policy.reserved.clone(),
        };
        let free = policy.with(|grants| policy.rest(grants).difference(&reserved).copied().collect());
        Some(Giving::new(policy.topology.clone(), free, policy.options))
    }

    /// Gives a pod's containers what was found for them.
    pub fn put(&self, uid: &str, given: BTreeMap<String, Cpus>) -> anyhow::Result<()> {
        let Some(policy) = self.0.as_ref().filter(|_| !given.is_empty()) else { return Ok(()) };
        policy.with(|grants| {
            grants.insert(uid.into(), given);
            let saved = policy.save(grants);
            if saved.is_err() {
                grants.remove(uid);
            }
            policy.changed.notify_one();
            saved
        })
    }

    /// Where a container runs, in the kernel's words; empty: anywhere.
    pub fn of(&self, uid: &str, container: &str) -> String {
        let Some(policy) = &self.0 else { return String::new() };
        policy.with(|grants| match grants.get(uid).and_then(|g| g.get(container)) {
            Some(own) => printed(own),
            None => printed(&policy.shared(grants)),
        })
    }

    /// What a container has for itself.
    pub fn exclusive(&self, uid: &str, container: &str) -> Cpus {
        let own = |policy: &Static| policy.with(|g| g.get(uid).and_then(|c| c.get(container)).cloned());
        self.0.as_ref().and_then(own).unwrap_or_default()
    }

    /// Whether a pod has some for itself.
    pub fn has_exclusive(&self, uid: &str) -> bool {
        self.0.as_ref().is_some_and(|policy| policy.with(|g| g.contains_key(uid)))
    }

    /// What may be given to one container alone; all, where none is.
    pub fn allocatable(&self, all: u64) -> Cpus {
        match &self.0 {
            Some(policy) => policy.topology.all().difference(&policy.reserved).copied().collect(),
            None => (0..u32::try_from(all).unwrap_or(0)).collect(),
        }
    }

    /// How many all share, and how many containers have for themselves; none where nothing is given away.
    pub fn counts(&self) -> Option<(usize, usize)> {
        let policy = self.0.as_ref()?;
        let (shared, rest) = policy.with(|grants| (policy.shared(grants).len(), policy.rest(grants).len()));
        Some((shared, policy.topology.0.len() - rest))
    }

    /// Takes back what a pod had.
    pub fn release(&self, uid: &str) {
        self.keep(|known| known != uid);
    }

    fn keep(&self, wanted: impl Fn(&str) -> bool) {
        let Some(policy) = &self.0 else { return };
        policy.with(|grants| {
            let before = grants.len();
            grants.retain(|uid, _| wanted(uid));
            if grants.len() == before {
                return;
            }
            if let Err(error) = policy.save(grants) {
                tracing::warn!("grants of processors not written: {error:#}");
            }
            policy.changed.notify_one();
        });
    }
}

/// Keeps running containers where they belong, until the agent stops.
pub async fn run(context: Arc<Context>) {
    let Some(policy) = &context.processors.0 else { return std::future::pending().await };
    context.pods_seen.cancelled().await;
    context.processors.keep(|uid| context.workers.knows(uid));
    let mut placed: HashMap<String, String> = HashMap::new();
    loop {
        if let Err(status) = place(&context, &mut placed).await {
            tracing::debug!("containers not moved to their processors: {status}");
        }
        tokio::select! {
            () = policy.changed.notified() => {}
            () = tokio::time::sleep(EVERY) => {}
        }
    }
}

/// Moves what runs elsewhere than it belongs, as far as this agent remembers.
async fn place(context: &Context, placed: &mut HashMap<String, String>) -> Result<(), tonic::Status> {
    let running = v1::ContainerStateValue { state: v1::ContainerState::ContainerRunning.into() };
    let filter = v1::ContainerFilter { state: Some(running), ..Default::default() };
    let list = context.engine.list_containers(v1::ListContainersRequest { filter: Some(filter) }).await?.containers;
    placed.retain(|id, _| list.iter().any(|c| c.id == *id));
    for container in list {
        let label = |key: &str| container.labels.get(key).map(String::as_str).unwrap_or_default();
        if label(names::POD_UID).is_empty() {
            continue;
        }
        let cpus = context.processors.of(label(names::POD_UID), label(names::CONTAINER_NAME));
        if placed.get(&container.id) == Some(&cpus) {
            continue;
        }
        let numbers = v1::LinuxContainerResources { cpuset_cpus: cpus.clone(), ..Default::default() };
        let request = v1::UpdateContainerResourcesRequest {
            container_id: container.id.clone(),
            linux: Some(numbers),
            ..Default::default()
        };
        match context.engine.update_container_resources(request).await {
            Ok(_) => {
                placed.insert(container.id, cpus);
            }
            // It may have ended meanwhile; if not, it is looked at again.
            Err(status) => tracing::debug!(container = container.id, "not moved to its processors: {status}"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grants_outlive_the_agent() {
        let root = tempfile::tempdir().unwrap();
        let mut config = Config::new("n", root.path().to_path_buf(), String::new());
        let policy = |config: &Config| Processors::new(config).map(|p| p.0.map(|s| s.with(|g| g.clone())));
        config.exclusive_processors = true;
        assert!(policy(&config).is_err(), "nothing is reserved");
        config.reserved_processors = Some([0].into());
        let processors = Processors(Some(Static {
            topology: Topology((0..3).map(|c| (c, Place { core: c, ..Place::default() })).collect()),
            reserved: [0].into(),
            options: Options::default(),
            file: root.path().join(FILE),
            grants: Mutex::default(),
            changed: Notify::new(),
        }));
        let give = |uid: &str, count: usize| {
            let given = processors.giving().unwrap().give(crate::spec::Kind::Main, count, None)?;
            processors.put(uid, [("c".to_string(), given)].into()).map_err(|e| core::Refused::Short(e.to_string()))
        };
        give("a", 1).unwrap();
        assert_eq!((processors.of("a", "c"), processors.of("b", "c")), ("1".to_string(), "0,2".to_string()));
        let refused = give("b", 2).unwrap_err();
        let why = "not enough cpus available to satisfy request: requested=2, available=1";
        assert_eq!(refused, core::Refused::Short(why.into()));
        let kept = processors.0.as_ref().unwrap().load().unwrap();
        assert_eq!(kept["a"]["c"], [1].into());
        processors.release("a");
        assert_eq!(processors.of("b", "c"), "0-2");
        assert!(processors.0.as_ref().unwrap().load().unwrap().is_empty());
        std::fs::write(root.path().join(FILE), "damaged").unwrap();
        assert!(policy(&config).is_err());
        config.exclusive_processors = false;
        assert_eq!(policy(&config).unwrap(), None);
    }
}
