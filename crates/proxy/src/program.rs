//! The table: the fixed part for this node, and all Services' fragments folded together.
//!
//! What several fragments share is counted, so that it goes with the last of them. Two Services that claim the same
//! address and port (external IPs can) do not mix: the first by name has it, and the next when that one goes. A
//! [`Delta`] notes what an update touches, so that the cost of a change does not grow with the table.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;

use crate::fragment::{Behind, Fragment, compile, is_common};
use crate::nft::{Map, base};
use crate::policies::is_service;
use crate::service::{Front, Protocol};
use crate::{Config, Family, Locality};

/// Chains nothing leads to that are kept, for the next Service with as many endpoints: then a change is one of elements
/// only. Beyond it all of them go.
const MAX_IDLE_CHAINS: usize = 512;

/// What the program needs to know of its node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeView {
    pub name: String,
    /// Empty when the node has none.
    pub zone: String,
    pub addresses: Vec<IpAddr>,
    /// The pod ranges a source in them is taken for a pod's, when that is how pods are told.
    pub pod_networks: Vec<IpNet>,
    /// The ranges of cluster IPs, as far as they are known.
    pub service_networks: Vec<IpNet>,
}

impl NodeView {
    /// From the Node object, where there is one, and the configuration.
    pub fn new(node: Option<&core::Node>, config: &Config) -> NodeView {
        let labels = node.and_then(|node| node.metadata.labels.as_ref());
        let zone = labels.and_then(|labels| labels.get("topology.kubernetes.io/zone")).cloned().unwrap_or_default();
        let mut addresses = config.node_addresses.clone();
        if addresses.is_empty() {
            let all = node.iter().filter_map(|node| node.status.as_ref()).flat_map(|s| s.addresses.iter().flatten());
            let usable = all.filter(|a| matches!(a.type_.as_str(), "InternalIP" | "ExternalIP"));
            addresses = usable.filter_map(|a| a.address.parse().ok()).collect();
        }
        let own = || node.iter().filter_map(|node| node.spec.as_ref()).flat_map(|spec| spec.pod_cidrs.iter().flatten());
        let pod_networks = match config.locality {
            Locality::ClusterCidr => config.cluster_cidrs.clone(),
            Locality::NodeCidr => own().filter_map(|range| range.parse().ok()).collect(),
            Locality::Interface(_) => Vec::new(),
        };
        let name = config.node_name.clone();
        let mut view = NodeView { name, zone, addresses, pod_networks, service_networks: Vec::new() };
        view.keep_addresses(&config.node_port_addresses);
        view
    }

    /// The addresses of the machine's links, if node ports are to answer on those in certain ranges.
    pub fn on_links(mut self, links: impl IntoIterator<Item = IpAddr>, config: &Config) -> NodeView {
        if !config.node_port_addresses.is_empty() {
            self.addresses.extend(links);
            self.keep_addresses(&config.node_port_addresses);
        }
        self
    }

    /// With the ranges cluster IPs are given out of: every ServiceCIDR there is.
    pub fn with_service_networks<'a>(mut self, ranges: impl IntoIterator<Item = &'a ServiceCIDR>) -> NodeView {
        let specs = ranges.into_iter().filter_map(|range| range.spec.as_ref());
        let texts = specs.flat_map(|spec| spec.cidrs.iter().flatten());
        self.service_networks = texts.filter_map(|text| text.parse().ok()).collect();
        self.service_networks.sort();
        self
    }

    fn keep_addresses(&mut self, ranges: &[IpNet]) {
        self.addresses.retain(|address| ranges.is_empty() || ranges.iter().any(|range| range.contains(address)));
        self.addresses.sort();
        self.addresses.dedup();
    }
}

/// What has been touched since the table was last written, with what was there then.
#[derive(Clone, Debug, Default)]
pub struct Delta {
    pub(crate) elements: BTreeMap<(Map, Arc<str>), Option<Arc<str>>>,
    pub(crate) chains: BTreeMap<Arc<str>, Option<Arc<[String]>>>,
    pub(crate) sets: BTreeMap<Arc<str>, Option<Arc<str>>>,
    /// Fronts of protocols whose connections outlive their endpoints (UDP, SCTP).
    pub connectionless: bool,
}

/// The whole table of one family.
#[derive(Clone, Debug)]
pub struct Ruleset {
    pub family: Family,
    /// The fixed part: maps, base chains, this node's addresses.
    pub(crate) base: Arc<[String]>,
    pub(crate) fragments: BTreeMap<Arc<str>, Arc<Fragment>>,
    /// In the order of their names; mostly one.
    owners: HashMap<Front, Vec<Arc<str>>>,
    pub(crate) elements: BTreeMap<(Map, Arc<str>), (Arc<str>, u32)>,
    pub(crate) chains: BTreeMap<Arc<str>, (Arc<[String]>, u32)>,
    pub(crate) sets: BTreeMap<Arc<str>, (Arc<str>, u32)>,
    idle_chains: usize,
    services: usize,
    /// Services whose local traffic policy finds nobody here: internal, external.
    without_local: [usize; 2],
    /// The health check port of Services that have one, and their count of endpoints here.
    health: BTreeMap<Arc<str>, (u16, usize)>,
}

/// The table for these Services. The pure whole; the shell gets to the same result step by step with
/// [`Ruleset::update`], up to the order of endpoints.
pub fn program<'a>(
    services: impl IntoIterator<Item = &'a core::Service>,
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
    family: Family,
    node: &NodeView,
    config: &Config,
) -> Ruleset {
    let mut by_service: HashMap<String, Vec<&EndpointSlice>> = HashMap::new();
    for slice in slices {
        if let Some(key) = service_of(slice) {
            by_service.entry(key).or_default().push(slice);
        }
    }
    let mut ruleset = Ruleset::new(family, node, config);
    let mut delta = Delta::default();
    for service in services {
        let metadata = &service.metadata;
        let key = format!("{}/{}", metadata.namespace.as_deref().unwrap_or(""), metadata.name.as_deref().unwrap_or(""));
        let slices = by_service.get(&key).map(Vec::as_slice).unwrap_or_default();
        let fragment = compile(&key, service, slices.iter().copied(), family, node, config, None);
        ruleset.update(&key, fragment, &mut delta);
    }
    ruleset
}

/// `namespace/name` of the Service a slice belongs to.
pub fn service_of(slice: &EndpointSlice) -> Option<String> {
    let name = slice.metadata.labels.as_ref()?.get("kubernetes.io/service-name")?;
    Some(format!("{}/{name}", slice.metadata.namespace.as_deref().unwrap_or("")))
}

impl Ruleset {
    /// The table without any Service.
    pub fn new(family: Family, node: &NodeView, config: &Config) -> Ruleset {
        Ruleset {
            family,
            base: base(family, node, config).into(),
            fragments: BTreeMap::new(),
            owners: HashMap::new(),
            elements: BTreeMap::new(),
            chains: BTreeMap::new(),
            sets: BTreeMap::new(),
            idle_chains: 0,
            services: 0,
            without_local: [0; 2],
            health: BTreeMap::new(),
        }
    }

    /// How many Services there are in the table.
    pub fn services(&self) -> usize {
        self.services
    }

    /// How many Services' local traffic policy, internal and external, finds no endpoint here though there are some.
    pub fn without_local(&self) -> [usize; 2] {
        self.without_local
    }

    /// Services with a health check port: key, port, endpoints on this node.
    pub fn health(&self) -> impl Iterator<Item = (&str, u16, usize)> {
        self.health.iter().map(|(key, (port, count))| (&**key, *port, *count))
    }

    pub fn fragment(&self, key: &str) -> Option<&Arc<Fragment>> {
        self.fragments.get(key)
    }

    pub fn fragments(&self) -> impl Iterator<Item = (&str, &Fragment)> {
        self.fragments.iter().map(|(key, fragment)| (&**key, &**fragment))
    }

    /// The endpoints a front leads to, of whichever Service has it.
    pub fn behind(&self, front: &Front) -> Option<&Behind> {
        let owner = self.owners.get(front)?.first()?;
        self.fragments.get(owner)?.fronts.get(front)
    }

    /// Replaces one Service's fragment, noting in `delta` what that touches.
    pub fn update(&mut self, key: &str, fragment: Option<Fragment>, delta: &mut Delta) {
        let old = self.fragments.get(key).cloned();
        if old.as_deref() == fragment.as_ref() {
            return;
        }
        let new = fragment.map(Arc::new);
        let key: Arc<str> = key.into();
        let fronts: BTreeSet<Front> =
            old.iter().chain(&new).flat_map(|fragment| fragment.fronts.keys()).copied().collect();
        // Taken off with the old owners in place, put on with the new ones.
        for front in &fronts {
            if let Some(behind) = self.behind(front).map(|behind| behind.elements.clone()) {
                for element in behind.keys() {
                    self.drop_element(element.clone(), delta);
                }
            }
            delta.connectionless |= front.protocol() != Protocol::Tcp;
        }
        if let Some(old) = &old {
            for element in old.shared.keys() {
                self.drop_element(element.clone(), delta);
            }
            for name in old.chains.keys() {
                self.drop_chain(name, delta);
            }
            for name in old.sets.keys() {
                drop_counted(&mut self.sets, name, &mut delta.sets);
            }
        }
        match &new {
            Some(new) => self.fragments.insert(key.clone(), new.clone()),
            None => self.fragments.remove(&key),
        };
        for front in &fronts {
            let owners = self.owners.entry(*front).or_insert_with(|| Vec::with_capacity(1));
            match (owners.binary_search(&key), new.as_ref().is_some_and(|new| new.fronts.contains_key(front))) {
                (Err(at), true) => owners.insert(at, key.clone()),
                (Ok(at), false) => _ = owners.remove(at),
                _ => {}
            }
            if owners.is_empty() {
                self.owners.remove(front);
            }
            if let Some(behind) = self.behind(front).map(|behind| behind.elements.clone()) {
                for (element, value) in behind.iter() {
                    self.add_element(element.clone(), value.clone(), delta);
                }
            }
        }
        if let Some(new) = &new {
            for (element, value) in new.shared.iter() {
                self.add_element(element.clone(), value.clone(), delta);
            }
            for (name, rules) in new.chains.iter() {
                self.idle_chains -= usize::from(self.chains.get(name).is_some_and(|(_, count)| *count == 0));
                add_counted(&mut self.chains, name, rules, &mut delta.chains);
            }
            for (name, declaration) in new.sets.iter() {
                add_counted(&mut self.sets, name, declaration, &mut delta.sets);
            }
        }
        if self.idle_chains > MAX_IDLE_CHAINS {
            self.idle_chains = 0;
            self.chains.retain(|name, (rules, count)| {
                if *count == 0 {
                    delta.chains.entry(name.clone()).or_insert_with(|| Some(rules.clone()));
                }
                *count > 0
            });
        }
        if is_service(&key) {
            self.services = self.services + usize::from(new.is_some()) - usize::from(old.is_some());
            let missing = |fragment: &Option<Arc<Fragment>>, policy: usize| {
                usize::from(fragment.as_ref().is_some_and(|fragment| fragment.without_local[policy]))
            };
            for (policy, count) in self.without_local.iter_mut().enumerate() {
                *count = *count + missing(&new, policy) - missing(&old, policy);
            }
            match new.as_ref().and_then(|new| new.health) {
                Some(health) => self.health.insert(key, health),
                None => self.health.remove(&key),
            };
        }
    }

    /// Chains that say all in their name stay, unused, for the next who needs them.
    fn drop_chain(&mut self, name: &Arc<str>, delta: &mut Delta) {
        match self.chains.get_mut(name) {
            Some((_, count)) if *count == 1 && is_common(name) => {
                *count = 0;
                self.idle_chains += 1;
            }
            _ => drop_counted(&mut self.chains, name, &mut delta.chains),
        }
    }

    fn drop_element(&mut self, element: (Map, Arc<str>), delta: &mut Delta) {
        drop_counted(&mut self.elements, &element, &mut delta.elements);
    }

    fn add_element(&mut self, element: (Map, Arc<str>), value: Arc<str>, delta: &mut Delta) {
        add_counted(&mut self.elements, &element, &value, &mut delta.elements);
    }
}

type Counted<K, V> = BTreeMap<K, (V, u32)>;

fn drop_counted<K: Ord + Clone, V: Clone>(live: &mut Counted<K, V>, key: &K, before: &mut BTreeMap<K, Option<V>>) {
    let Some((value, count)) = live.get_mut(key) else { return };
    before.entry(key.clone()).or_insert_with(|| Some(value.clone()));
    *count -= 1;
    if *count == 0 {
        live.remove(key);
    }
}

fn add_counted<K: Ord + Clone, V: Clone>(
    live: &mut Counted<K, V>,
    key: &K,
    value: &V,
    before: &mut BTreeMap<K, Option<V>>,
) {
    before.entry(key.clone()).or_insert_with(|| live.get(key).map(|(value, _)| value.clone()));
    let entry = live.entry(key.clone()).or_insert_with(|| (value.clone(), 0));
    entry.0 = value.clone();
    entry.1 += 1;
}
