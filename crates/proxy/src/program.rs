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

use crate::fragment::{Behind, Fragment, is_common};
use crate::map::{Element, Value, Verdict};
use crate::nft::base;
use crate::policies::is_service;
use crate::service::{Front, Protocol};
use crate::world::World;
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
        if let Some(bind) = config.bind_address {
            addresses.retain(|address| address.is_ipv4() != bind.is_ipv4());
            addresses.push(bind);
        }
        if !config.node_port_addresses.is_empty() && !config.node_ports_on_primary {
            addresses.retain(|address| config.is_for_node_ports(address));
        }
        let own = || node.iter().filter_map(|node| node.spec.as_ref()).flat_map(|spec| spec.pod_cidrs.iter().flatten());
        let pod_networks = match config.locality {
            Locality::ClusterCidr => config.cluster_cidrs.clone(),
            Locality::NodeCidr => own().filter_map(|range| range.parse().ok()).collect(),
            Locality::Interface(_) => Vec::new(),
        };
        let name = config.node_name.clone();
        let mut view = NodeView { name, zone, addresses, pod_networks, service_networks: Vec::new() };
        view.order_addresses();
        view
    }

    /// The addresses of the machine's links, if node ports are to answer on those in certain ranges. Not on loopback: from
    /// there no packet gets to a pod.
    pub fn on_links(mut self, links: impl IntoIterator<Item = IpAddr>, config: &Config) -> NodeView {
        let wanted = |address: &IpAddr| !address.is_loopback() && config.is_for_node_ports(address);
        self.addresses.extend(links.into_iter().filter(wanted));
        self.order_addresses();
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

    fn order_addresses(&mut self) {
        self.addresses.sort();
        self.addresses.dedup();
    }
}

/// What has been touched since the table was last written, with what was there then.
#[derive(Clone, Debug, Default)]
pub struct Delta {
    /// Before, and now.
    pub(crate) elements: BTreeMap<Element, (Option<Value>, Option<Value>)>,
    pub(crate) chains: BTreeMap<Arc<str>, Option<Arc<[String]>>>,
    pub(crate) sets: BTreeMap<Arc<str>, Option<Arc<str>>>,
    /// The protocols of its fronts whose connections outlive their endpoints (UDP, SCTP).
    pub connectionless: Vec<Protocol>,
}

impl Delta {
    pub(crate) fn gone(&mut self, element: Element, value: Value) {
        self.elements.entry(element).or_insert((Some(value), None)).1 = None;
    }

    pub(crate) fn came(&mut self, element: Element, value: Value) {
        self.elements.entry(element).or_default().1 = Some(value);
    }
}

/// The whole table of one family.
#[derive(Clone, Debug)]
pub struct Ruleset {
    pub family: Family,
    /// The fixed part: maps, base chains, this node's addresses.
    pub(crate) base: Arc<[String]>,
    pub(crate) fragments: BTreeMap<Arc<str>, Arc<Fragment>>,
    /// Whose each front is: the first by name of those that have it.
    owners: HashMap<Front, Arc<str>>,
    /// The others, of the few fronts that have any.
    waiting: BTreeMap<Front, BTreeSet<Arc<str>>>,
    /// Elements that fragments may have in common. Those of fronts follow from whoever has the front.
    shared: BTreeMap<Element, (Value, u32)>,
    /// Of these the many that every Service has: how many Services have a cluster IP, mostly one.
    cluster_ips: HashMap<IpAddr, u32>,
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
    let mut world = World::new(&node.name);
    services.into_iter().for_each(|service| world.set_service(service));
    slices.into_iter().for_each(|slice| world.set_slice(slice));
    let mut ruleset = Ruleset::new(family, node, config);
    for key in world.keys() {
        ruleset.update(key.clone(), world.compile(key, family, node, config, None), &mut Delta::default());
    }
    ruleset
}

impl Ruleset {
    /// The table without any Service.
    pub fn new(family: Family, node: &NodeView, config: &Config) -> Ruleset {
        Ruleset {
            family,
            base: base(family, node, config).into(),
            fragments: BTreeMap::new(),
            owners: HashMap::new(),
            waiting: BTreeMap::new(),
            shared: BTreeMap::new(),
            cluster_ips: HashMap::new(),
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

    /// The Service that has a front.
    pub fn owner(&self, front: &Front) -> Option<&str> {
        self.owners.get(front).map(|key| &**key)
    }

    /// The endpoints a front leads to, of whichever Service has it.
    pub fn behind(&self, front: &Front) -> Option<&Behind> {
        self.fragments.get(self.owners.get(front)?)?.fronts.get(front)
    }

    /// Every element there is; of one fragment, what leads somewhere comes after what it leads to.
    pub fn elements(&self) -> impl Iterator<Item = (Element, Value)> + '_ {
        let shared = self.shared.iter().rev().map(|(element, (value, _))| (*element, value.clone()));
        let cluster_ips = self.cluster_ips.keys().map(|ip| (Element::ClusterIp(*ip), Value::There));
        shared.chain(cluster_ips).chain(self.fragments.iter().flat_map(move |(key, fragment)| {
            let own = fragment.fronts.iter().filter(move |(front, _)| self.owners.get(front) == Some(key));
            own.flat_map(|(front, behind)| behind.elements(*front))
        }))
    }

    /// Gives back the room that growing took beyond what is there.
    pub fn pack(&mut self) {
        self.fragments = std::mem::take(&mut self.fragments).into_iter().collect();
        self.shared = std::mem::take(&mut self.shared).into_iter().collect();
    }

    /// Replaces one Service's fragment, noting in `delta` what that touches.
    pub fn update(&mut self, key: impl Into<Arc<str>>, fragment: Option<Fragment>, delta: &mut Delta) {
        let key = key.into();
        let old = self.fragments.get(&key).cloned();
        if old.as_deref() == fragment.as_ref() {
            return;
        }
        let new = fragment.map(|fragment| Arc::new(self.sharing(fragment)));
        let fronts: BTreeSet<Front> =
            old.iter().chain(&new).flat_map(|fragment| fragment.fronts.keys()).copied().collect();
        // Taken off with the old owners in place, put on with the new ones.
        for front in &fronts {
            for (element, value) in self.behind(front).iter().flat_map(|behind| behind.elements(*front)) {
                delta.gone(element, value);
            }
            let protocol = front.protocol();
            if protocol != Protocol::Tcp && !delta.connectionless.contains(&protocol) {
                delta.connectionless.push(protocol);
            }
        }
        if let Some(old) = &old {
            for element in old.shared.keys() {
                self.drop_shared(element, delta);
            }
            for ip in old.cluster_ips() {
                let Some(count) = self.cluster_ips.get_mut(&ip) else { continue };
                *count -= 1;
                if *count == 0 {
                    self.cluster_ips.remove(&ip);
                    delta.gone(Element::ClusterIp(ip), Value::There);
                }
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
            self.claim(*front, &key, new.as_ref().is_some_and(|new| new.fronts.contains_key(front)));
            for (element, value) in self.behind(front).iter().flat_map(|behind| behind.elements(*front)) {
                delta.came(element, value);
            }
        }
        if let Some(new) = &new {
            for (element, value) in new.shared.iter() {
                let (before, count) = self.shared.get(element).cloned().unzip();
                self.shared.insert(*element, (value.clone(), count.unwrap_or(0) + 1));
                delta.elements.entry(*element).or_insert((before, None)).1 = Some(value.clone());
            }
            for ip in new.cluster_ips() {
                let count = self.cluster_ips.entry(ip).or_default();
                *count += 1;
                if *count == 1 {
                    delta.came(Element::ClusterIp(ip), Value::There);
                }
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

    fn drop_shared(&mut self, element: &Element, delta: &mut Delta) {
        let Some((value, count)) = self.shared.get_mut(element) else { return };
        *count -= 1;
        let left = (*count > 0).then(|| value.clone());
        delta.elements.entry(*element).or_insert_with(|| (Some(value.clone()), None)).1 = left;
        if *count == 0 {
            self.shared.remove(element);
        }
    }

    /// A Service has a front from now on, or has it no more.
    fn claim(&mut self, front: Front, key: &Arc<str>, has: bool) {
        let mut all = self.waiting.remove(&front).unwrap_or_default();
        all.extend(self.owners.remove(&front));
        if has {
            all.insert(key.clone());
        } else {
            all.remove(key);
        }
        if let Some(first) = all.pop_first() {
            self.owners.insert(front, first);
        }
        if !all.is_empty() {
            self.waiting.insert(front, all);
        }
    }

    /// The same with the text of chains that are there already.
    fn sharing(&self, mut fragment: Fragment) -> Fragment {
        let known = |name: &str| self.chains.get_key_value(name).map(|(name, (rules, _))| (name, rules));
        for (name, rules) in fragment.chains.iter_mut() {
            if let Some((same, text)) = known(name).filter(|(_, text)| *text == rules) {
                (*name, *rules) = (same.clone(), text.clone());
            }
        }
        let chains: Vec<Arc<str>> = fragment.chains.keys().cloned().collect();
        for (_, behind) in fragment.fronts.iter_mut() {
            if let Verdict::Goto(chain) = &mut behind.verdict
                && let Some(same) = chains.iter().find(|name| *name == chain)
            {
                *chain = same.clone();
            }
        }
        fragment
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
