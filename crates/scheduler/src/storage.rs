//! Claims, volumes, classes and what drivers can attach, as the volume plugins ask about them; and what was decided about
//! them here but is not seen yet.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use client::Change;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, TopologySelectorTerm};
use k8s_openapi::api::storage::v1::{CSINode, CSIStorageCapacity, StorageClass, VolumeAttachment};
use meta::Object;
use meta::quantity::Quantity;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::node_selection::NodeSelection;
use crate::selector::Selector;
use crate::sources::Source;
use crate::symbol::{Labels, Symbol, SymbolMap};
use crate::verdict::Unbindable;
use crate::world::view;

/// Set by whoever completes a binding of claim and volume.
const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// Where a claim's volume is to be made.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";
/// A class with this provisioner only has volumes made by hand.
const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";

/// Labels that say in which zones a volume can be reached: old and new name.
pub const ZONE_LABELS: [(&str, &str); 2] = [
    ("topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone"),
    ("topology.kubernetes.io/region", "failure-domain.beta.kubernetes.io/region"),
];

/// A PersistentVolumeClaim.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Claim {
    pub key: Box<str>,
    pub uid: Box<str>,
    /// The volume, bound or only asked for.
    pub volume: Box<str>,
    pub bound: bool,
    pub class: Box<str>,
    pub modes: Box<[Symbol]>,
    /// At most one pod may use it.
    pub one_pod: bool,
    pub size: i64,
    pub selector: Option<Selector>,
    pub block: bool,
    pub selected_node: Option<Symbol>,
    /// Its volume is gone for good.
    pub lost: bool,
    pub deleting: bool,
    /// The uid of what it was made for.
    pub controller: Option<Box<str>>,
}

/// Label keys (new and old name), and the values a node may have.
pub type Zones = ([Symbol; 2], Box<[Symbol]>);

/// A PersistentVolume.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Volume {
    pub name: Box<str>,
    pub class: Box<str>,
    pub modes: Box<[Symbol]>,
    pub size: i64,
    pub labels: Labels,
    pub block: bool,
    pub affinity: NodeSelection,
    pub zones: Box<[Zones]>,
    /// The claim's key and uid (which may be empty when an administrator wrote it).
    pub claim: Option<(Box<str>, Box<str>)>,
    /// Driver and handle.
    pub csi: Option<(Symbol, Symbol)>,
    /// Whether claims that it was not made for may have it.
    pub available: bool,
    pub deleting: bool,
}

/// A StorageClass.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Class {
    /// Binding waits for the first pod that wants it.
    pub waits: bool,
    pub provisions: bool,
    pub driver: Option<Symbol>,
    /// Where volumes can be made.
    pub topologies: NodeSelection,
}

/// A CSIStorageCapacity: how large a volume of a class may be made for some nodes.
#[derive(Clone, Debug, Default, PartialEq)]
struct Capacity {
    class: Box<str>,
    /// `None`: no node.
    nodes: Option<Selector>,
    /// `None`: nothing is known, so nothing is there.
    most: Option<i64>,
    /// How much room there is for volumes altogether; 0 where that is not told.
    whole: i64,
}

/// What is known of storage.
#[derive(Default)]
pub struct Storage {
    claims: HashMap<Arc<str>, Arc<Claim>>,
    volumes: HashMap<Arc<str>, Arc<Volume>>,
    classes: HashMap<Arc<str>, Arc<Class>>,
    /// Drivers that tell where they have room.
    telling: HashSet<Symbol>,
    capacities: HashMap<Arc<str>, Arc<Capacity>>,
    /// By node: driver and how many volumes it attaches there.
    limits: SymbolMap<Box<[(Symbol, i64)]>>,
    /// Drivers without which a node does not do for their volumes, and what is said of it then.
    required: SymbolMap<&'static str>,
    /// VolumeAttachments by name, and the volumes they attach by node.
    attachments: HashMap<Arc<str>, (Symbol, Box<str>)>,
    attached: SymbolMap<Vec<Box<str>>>,
    /// Volumes given to claims here, not seen yet.
    reserved: HashMap<Box<str>, Box<str>>,
    /// Nodes selected for claims here, not seen yet.
    selected: HashMap<Box<str>, Symbol>,
    /// How many pods on nodes use a claim.
    used: HashMap<Box<str>, u32>,
}

fn typed<T: DeserializeOwned + Send + Sync + 'static>(object: &Arc<Object>) -> Option<Arc<T>> {
    object.typed::<T>().inspect_err(|error| tracing::warn!(kind = %object.kind, key = object.meta.key(), %error, "an object that cannot be read")).ok()
}

fn symbols(texts: Option<&[String]>) -> Box<[Symbol]> {
    texts.into_iter().flatten().map(|t| Symbol::of(t)).collect()
}

fn size(quantity: Option<&k8s_openapi::apimachinery::pkg::api::resource::Quantity>) -> i64 {
    quantity.and_then(|q| q.0.parse::<Quantity>().ok()).map_or(0, |q| q.value())
}

fn claim_of(object: &Arc<Object>) -> Option<Claim> {
    let claim = typed::<PersistentVolumeClaim>(object)?;
    let spec = claim.spec.as_ref();
    let annotation = |name: &str| claim.metadata.annotations.as_ref().and_then(|a| a.get(name)).map(String::as_str);
    let modes = spec.and_then(|s| s.access_modes.as_deref());
    let volume = spec.and_then(|s| s.volume_name.as_deref()).unwrap_or_default();
    let requests = spec.and_then(|s| s.resources.as_ref()).and_then(|r| r.requests.as_ref());
    let class = annotation(CLASS_ANNOTATION).or_else(|| spec.and_then(|s| s.storage_class_name.as_deref()));
    Some(Claim {
        key: object.meta.key().into(),
        uid: object.meta.uid.clone(),
        volume: volume.into(),
        bound: !volume.is_empty() && annotation(BIND_COMPLETED).is_some(),
        class: class.unwrap_or_default().into(),
        modes: symbols(modes),
        one_pod: modes.is_some_and(|m| m.iter().any(|m| m == "ReadWriteOncePod")),
        size: size(requests.and_then(|r| r.get("storage"))),
        selector: spec.and_then(|s| s.selector.as_ref()).map(|s| Selector::compile(Some(s))),
        block: spec.and_then(|s| s.volume_mode.as_deref()) == Some("Block"),
        selected_node: annotation(SELECTED_NODE).filter(|n| !n.is_empty()).map(Symbol::of),
        lost: claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Lost"),
        deleting: object.meta.deletion_timestamp.is_some(),
        controller: object.meta.controller().map(|owner| owner.uid.as_str().into()),
    })
}

/// Whether a claim has its volume.
pub fn is_bound(object: &Arc<Object>) -> bool {
    claim_of(object).is_some_and(|c| c.bound)
}

fn volume_of(object: &Arc<Object>) -> Option<Volume> {
    let volume = typed::<PersistentVolume>(object)?;
    let spec = volume.spec.as_ref()?;
    let required = spec.node_affinity.as_ref().and_then(|a| a.required.as_ref());
    let zones = ZONE_LABELS.iter().filter_map(|(new, old)| {
        let value = object.meta.label(new).or_else(|| object.meta.label(old))?;
        // Several zones are written with two underscores between them.
        Some(([Symbol::of(new), Symbol::of(old)], value.split("__").map(|v| Symbol::of(v.trim())).collect()))
    });
    let class =
        volume.metadata.annotations.as_ref().and_then(|a| a.get(CLASS_ANNOTATION)).or(spec.storage_class_name.as_ref());
    let phase = volume.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default();
    let text = |t: &Option<String>| t.clone().unwrap_or_default();
    Some(Volume {
        name: object.meta.name.clone(),
        class: class.map(String::as_str).unwrap_or_default().into(),
        modes: symbols(spec.access_modes.as_deref()),
        size: size(spec.capacity.as_ref().and_then(|c| c.get("storage"))),
        labels: Labels::new(object.meta.labels.iter().map(|(k, v)| (&**k, &**v))),
        block: spec.volume_mode.as_deref() == Some("Block"),
        affinity: NodeSelection::new(&Default::default(), required),
        zones: zones.collect(),
        claim: spec
            .claim_ref
            .as_ref()
            .map(|r| (format!("{}/{}", text(&r.namespace), text(&r.name)).into(), text(&r.uid).into())),
        csi: spec.csi.as_ref().map(|c| (Symbol::of(&c.driver), Symbol::of(&c.volume_handle))),
        // One that nobody has looked at yet is left to who does, as upstream leaves it.
        available: phase == "Available",
        deleting: object.meta.deletion_timestamp.is_some(),
    })
}

fn class_of(object: &Arc<Object>) -> Option<Class> {
    let class = typed::<StorageClass>(object)?;
    let terms: Option<&[TopologySelectorTerm]> = class.allowed_topologies.as_deref().filter(|t| !t.is_empty());
    Some(Class {
        waits: class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"),
        provisions: class.provisioner != NO_PROVISIONER,
        driver: Some(Symbol::of(&class.provisioner)),
        topologies: terms.map_or_else(NodeSelection::default, NodeSelection::of_topologies),
    })
}

/// What each of a node's drivers attaches at most; one that does not say has no end.
fn limits_of(object: &Arc<Object>) -> Option<Box<[(Symbol, i64)]>> {
    let node = typed::<CSINode>(object)?;
    let limit = |d: &k8s_openapi::api::storage::v1::CSINodeDriver| {
        let count = d.allocatable.as_ref().and_then(|a| a.count);
        (Symbol::of(&d.name), count.map_or(i64::MAX, i64::from))
    };
    Some(node.spec.drivers.iter().map(limit).collect())
}

/// The node and the volume of a VolumeAttachment.
fn attachment_of(object: &Arc<Object>) -> Option<(Symbol, Box<str>)> {
    let attachment = typed::<VolumeAttachment>(object)?;
    let volume = attachment.spec.source.persistent_volume_name.as_deref()?;
    Some((Symbol::of(&attachment.spec.node_name), volume.into()))
}

fn capacity_of(object: &Arc<Object>) -> Option<Capacity> {
    let told = typed::<CSIStorageCapacity>(object)?;
    let most = told.maximum_volume_size.as_ref().or(told.capacity.as_ref());
    Some(Capacity {
        class: told.storage_class_name.as_str().into(),
        nodes: told.node_topology.as_ref().map(|s| Selector::compile(Some(s))),
        most: most.map(|q| size(Some(q))),
        whole: size(told.capacity.as_ref()),
    })
}

/// What of a CSIDriver matters here.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct DriverView {
    storage_capacity: Option<bool>,
    prevent_pod_scheduling_if_missing: Option<bool>,
}

#[derive(Deserialize)]
struct DriverOf {
    #[serde(default)]
    spec: DriverView,
}

/// Drivers told apart where they are missing; a cluster has a handful.
const MAX_DRIVERS: usize = 256;

/// What is said of a node without a driver. The text is kept for good, so there is an end to how many there are.
fn missing_driver(name: &str) -> &'static str {
    static TEXTS: Mutex<BTreeMap<String, &'static str>> = Mutex::new(BTreeMap::new());
    let mut texts = TEXTS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(text) = texts.get(name) {
        return text;
    }
    if texts.len() >= MAX_DRIVERS {
        return "CSI driver is not installed on the node";
    }
    let text = Box::leak(format!("{name} CSI driver is not installed on the node").into_boxed_str());
    texts.insert(name.into(), text);
    text
}

/// Puts or removes; whether that changed anything.
fn set<T: PartialEq>(map: &mut HashMap<Arc<str>, Arc<T>>, key: &Arc<str>, value: Option<T>) -> bool {
    match value {
        Some(value) if map.get(key).is_some_and(|known| **known == value) => false,
        Some(value) => {
            map.insert(key.clone(), Arc::new(value));
            true
        }
        None => map.remove(key).is_some(),
    }
}

impl Storage {
    /// Takes one change; whether it may matter.
    pub fn take(&mut self, source: Source, change: &Change) -> bool {
        let (key, object) = (&change.key, change.new.as_ref());
        match source {
            Source::Claims => {
                let claim = object.and_then(claim_of);
                if claim.as_ref().is_none_or(|c| c.selected_node.is_some() || c.bound) {
                    self.selected.remove(&**key);
                }
                set(&mut self.claims, key, claim)
            }
            Source::Volumes => {
                let volume = object.and_then(volume_of);
                if volume.as_ref().is_none_or(|v| v.claim.is_some()) {
                    self.reserved.remove(&**key);
                }
                set(&mut self.volumes, key, volume)
            }
            Source::Classes => set(&mut self.classes, key, object.and_then(class_of)),
            Source::CsiDrivers => {
                let driver = Symbol::of(key);
                let view = object.and_then(|o| view::<DriverOf>(o)).map(|d| d.spec).unwrap_or_default();
                let required = view.prevent_pod_scheduling_if_missing == Some(true);
                let told = match view.storage_capacity {
                    Some(true) => self.telling.insert(driver),
                    _ => self.telling.remove(&driver),
                };
                let had = self.required.remove(&driver).is_some();
                if required {
                    self.required.insert(driver, missing_driver(key));
                }
                told || had != required
            }
            Source::Attachments => {
                let new = object.and_then(attachment_of);
                if self.attachments.get(key) == new.as_ref() {
                    return false;
                }
                if let Some((node, volume)) = self.attachments.remove(key)
                    && let Some(volumes) = self.attached.get_mut(&node)
                {
                    volumes.retain(|v| *v != volume);
                    if volumes.is_empty() {
                        self.attached.remove(&node);
                    }
                }
                if let Some((node, volume)) = new {
                    self.attached.entry(node).or_default().push(volume.clone());
                    self.attachments.insert(key.clone(), (node, volume));
                }
                true
            }
            Source::Capacities => set(&mut self.capacities, key, object.and_then(capacity_of)),
            _ => {
                let node = Symbol::of(key);
                match object.and_then(limits_of) {
                    Some(limits) => self.limits.insert(node, limits.clone()).is_none_or(|old| old != limits),
                    None => self.limits.remove(&node).is_some(),
                }
            }
        }
    }

    pub fn claim(&self, key: &str) -> Option<&Arc<Claim>> {
        self.claims.get(key)
    }

    pub fn volume(&self, name: &str) -> Option<&Arc<Volume>> {
        self.volumes.get(name)
    }

    pub fn volumes(&self) -> impl Iterator<Item = &Arc<Volume>> {
        self.volumes.values()
    }

    pub fn class(&self, name: &str) -> Option<&Arc<Class>> {
        self.classes.get(name)
    }

    /// What drivers can attach to a node, where they say so.
    pub fn limits(&self, node: Symbol) -> Option<&[(Symbol, i64)]> {
        self.limits.get(&node).map(|l| &**l)
    }

    /// What a driver can attach to a node.
    pub fn limit(&self, node: Symbol, driver: Symbol) -> Option<i64> {
        self.limits.get(&node)?.iter().find(|l| l.0 == driver).map(|l| l.1)
    }

    /// What is said of a node that must have a driver and has not.
    pub fn missing(&self, node: Symbol, driver: Symbol) -> Option<&'static str> {
        let said = self.required.get(&driver).copied()?;
        self.limit(node, driver).is_none().then_some(said)
    }

    /// Volumes attached to a node, whoever uses them.
    pub fn attached(&self, node: Symbol) -> impl Iterator<Item = &Arc<Volume>> {
        self.attached.get(&node).into_iter().flatten().filter_map(|name| self.volume(name))
    }

    /// Whether a driver can make a claim's volume where a node reaches it, as far as it tells: an error when not, and how much
    /// room there is, where that is told.
    pub fn room_for(&self, claim: &Claim, class: &Class, node: &Labels) -> Result<Option<i64>, u8> {
        let will_do = |c: &Capacity| {
            c.class == claim.class
                && c.most.is_some_and(|most| most >= claim.size)
                && c.nodes.as_ref().is_some_and(|nodes| nodes.matches(node))
        };
        if class.driver.is_none_or(|driver| !self.telling.contains(&driver)) {
            return Ok(None);
        }
        let fitting = self.capacities.values().filter(|c| will_do(c));
        fitting.map(|c| c.whole).max().map(Some).ok_or(Unbindable::SPACE)
    }

    /// The node where a claim's volume is to be made.
    pub fn selected_node(&self, claim: &Claim) -> Option<Symbol> {
        self.selected.get(&claim.key).copied().or(claim.selected_node)
    }

    /// Whether a volume was given to another claim here.
    pub fn is_reserved(&self, volume: &str, claim: &str) -> bool {
        self.reserved.get(volume).is_some_and(|c| **c != *claim)
    }

    pub fn reserve(&mut self, volume: &str, claim: &str) {
        self.reserved.insert(volume.into(), claim.into());
    }

    pub fn select(&mut self, claim: &str, node: Symbol) {
        self.selected.insert(claim.into(), node);
    }

    /// Takes back what was decided about a volume and a claim.
    pub fn release(&mut self, volume: Option<&str>, claim: &str) {
        match volume {
            Some(volume) => drop(self.reserved.remove(volume)),
            None => drop(self.selected.remove(claim)),
        }
    }

    /// A pod that uses a claim came to a node (1) or left (-1).
    pub fn note_use(&mut self, claim: String, by: i32) {
        let claim = claim.into_boxed_str();
        let used = self.used.get(&claim).copied().unwrap_or(0).saturating_add_signed(by);
        if used == 0 {
            self.used.remove(&claim);
        } else {
            self.used.insert(claim, used);
        }
    }

    /// How many pods on nodes use a claim.
    pub fn users(&self, claim: &str) -> u32 {
        self.used.get(claim).copied().unwrap_or(0)
    }
}
