//! Devices: who offers them (slices), what kinds there are (classes), and who has them (claims); with what was given away
//! here but is not seen yet.
//!
//! Kept current change by change, like the rest of the snapshot. Which devices a claim gets is worked out by
//! [`allocator`]; nothing here knows of the pod's other needs.

pub mod allocator;
pub mod binding;
mod capacity;
mod constraint;
pub mod extended;
pub mod pool;
mod request;
mod result;
pub mod selector;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use client::Change;
use k8s_openapi::api::resource::v1 as api;
use meta::Object;
use meta::quantity::Quantity;
use serde::de::DeserializeOwned;

use crate::node::Node;
use crate::sources::Source;
use crate::symbol::{Symbol, SymbolMap};
use pool::{Pool, PoolId, Slice, only_node};
use selector::Selectors;

/// Pods that may share a claim (`ResourceClaimReservedForMaxSize`).
const MOST_CONSUMERS: usize = 256;

/// Keeps a claim until what it has is given back.
pub const CLAIM_FINALIZER: &str = "resource.kubernetes.io/delete-protection";

/// A device by driver, pool and name.
pub fn device_id(driver: &str, pool: &str, device: &str) -> Symbol {
    Symbol::of(driver).with(Symbol::of(pool)).with(Symbol::of(device))
}

/// How much of each capacity.
pub type Capacities = BTreeMap<String, Quantity>;

pub fn quantity(from: &k8s_openapi::apimachinery::pkg::api::resource::Quantity) -> Quantity {
    from.0.parse().unwrap_or_else(|_| Quantity::zero())
}

/// What is taken of a device.
#[derive(Clone, Debug, Default)]
pub struct Use {
    /// Times it was given as a whole: more than one only by somebody's mistake.
    whole: u32,
    /// Times a share of it was given, and how much that is together.
    shares: u32,
    pub consumed: Capacities,
}

impl Use {
    pub fn is_whole(&self) -> bool {
        self.whole > 0
    }

    pub fn is_shared(&self) -> bool {
        self.shares > 0
    }
}

/// What there is of a pool.
#[derive(Default)]
struct Published {
    slices: Vec<Arc<Slice>>,
    /// As it is for a node that all of it concerns.
    whole: Option<Arc<Pool>>,
    /// The one node that all of it is for.
    node: Option<Symbol>,
}

/// See the module.
#[derive(Default)]
pub struct Devices {
    /// Whether the API has such things at all.
    pub served: bool,
    claims: HashMap<Arc<str>, Arc<api::ResourceClaim>>,
    classes: HashMap<Arc<str>, Arc<api::DeviceClass>>,
    slices: HashMap<Arc<str>, Arc<Slice>>,
    pools: HashMap<PoolId, Published>,
    /// Pools whose devices are all on one node, by node; and the others.
    local: SymbolMap<Vec<PoolId>>,
    shared: Vec<PoolId>,
    used: SymbolMap<Use>,
    /// Allocations decided here, not seen yet, by the claim's key.
    pending: HashMap<Arc<str>, Arc<api::AllocationResult>>,
    pub selectors: Selectors,
    /// Taints laid on devices from outside, by the rule's name: ordered, so that the same is found each time.
    rules: BTreeMap<Arc<str>, Arc<api::DeviceTaintRule>>,
}

fn typed<T: DeserializeOwned + Send + Sync + 'static>(object: Option<&Arc<Object>>) -> Option<Arc<T>> {
    let object = object?;
    object.typed::<T>().inspect_err(|error| tracing::warn!(kind = %object.kind, key = object.meta.key(), %error, "an object that cannot be read")).ok()
}

/// What a claim was given, if it was.
pub fn allocation(claim: &api::ResourceClaim) -> Option<&api::AllocationResult> {
    claim.status.as_ref()?.allocation.as_ref()
}

/// Who may use a claim.
pub fn consumers(claim: &api::ResourceClaim) -> &[api::ResourceClaimConsumerReference] {
    claim.status.as_ref().and_then(|s| s.reserved_for.as_deref()).unwrap_or_default()
}

pub fn is_reserved_for(claim: &api::ResourceClaim, uid: &str) -> bool {
    consumers(claim).iter().any(|c| c.uid == uid)
}

pub fn can_be_reserved(claim: &api::ResourceClaim) -> bool {
    consumers(claim).len() < MOST_CONSUMERS
}

/// What a claim asks for.
pub fn wanted(claim: &api::ResourceClaim) -> Option<&api::DeviceClaim> {
    claim.spec.as_ref()?.devices.as_ref()
}

pub fn requests(claim: &api::ResourceClaim) -> &[api::DeviceRequest] {
    wanted(claim).and_then(|d| d.requests.as_deref()).unwrap_or_default()
}

impl Devices {
    /// Takes one change; whether it may matter to a pod that waits.
    pub fn take(&mut self, source: Source, change: &Change) -> bool {
        let (key, object) = (&change.key, change.new.as_ref());
        match source {
            Source::DeviceClaims => self.set_claim(key, typed(object)),
            Source::DeviceClasses => match typed(object) {
                Some(class) => {
                    self.classes.insert(key.clone(), class);
                    true
                }
                None => {
                    self.classes.remove(key);
                    false
                }
            },
            Source::DeviceTaintRules => match typed(object) {
                Some(rule) => self.rules.insert(key.clone(), rule).is_some(),
                None => self.rules.remove(key).is_some(),
            },
            _ => self.set_slice(key, typed(object).map(|slice| Arc::new(Slice::of(key.clone(), slice)))),
        }
    }

    fn set_claim(&mut self, key: &Arc<str>, claim: Option<Arc<api::ResourceClaim>>) -> bool {
        let old = match &claim {
            Some(claim) => self.claims.insert(key.clone(), claim.clone()),
            None => self.claims.remove(key),
        };
        let (before, after) = (old.as_deref().and_then(allocation), claim.as_deref().and_then(allocation));
        let gone = claim.as_ref().is_none_or(|c| old.as_ref().is_some_and(|o| o.metadata.uid != c.metadata.uid));
        if after.is_some() || gone {
            self.forget(key);
        }
        if let Some(before) = before {
            self.count(before, false);
        }
        if let Some(after) = after {
            self.count(after, true);
        }
        claim.is_some() && old.as_ref().is_none_or(|o| o.status != claim.as_ref().and_then(|c| c.status.clone()))
            || before.is_some() && after.is_none()
    }

    fn set_slice(&mut self, key: &Arc<str>, slice: Option<Arc<Slice>>) -> bool {
        let old = match &slice {
            Some(slice) => self.slices.insert(key.clone(), slice.clone()),
            None => self.slices.remove(key),
        };
        let (from, to) = (old.map(|s| s.pool), slice.as_ref().map(|s| s.pool));
        if let Some(published) = from.and_then(|id| self.pools.get_mut(&id)) {
            published.slices.retain(|s| s.name != *key);
        }
        if let Some(slice) = &slice {
            self.pools.entry(slice.pool).or_default().slices.push(slice.clone());
        }
        for id in from.into_iter().chain(to.filter(|id| Some(*id) != from)) {
            self.regroup(id);
        }
        slice.is_some()
    }

    /// Works out a pool anew from its slices.
    fn regroup(&mut self, id: PoolId) {
        let Some(published) = self.pools.get_mut(&id) else { return };
        let was = published.node;
        let mut now = None;
        if published.slices.is_empty() {
            self.pools.remove(&id);
        } else {
            published.whole = Pool::gather(&published.slices, |_| true).map(Arc::new);
            published.node = only_node(&published.slices);
            now = Some(published.node);
        }
        match was {
            Some(node) => {
                if let Some(there) = self.local.get_mut(&node) {
                    there.retain(|p| *p != id);
                    if there.is_empty() {
                        self.local.remove(&node);
                    }
                }
            }
            None => self.shared.retain(|p| *p != id),
        }
        match now {
            Some(Some(node)) => self.local.entry(node).or_default().push(id),
            Some(None) => self.shared.push(id),
            None => {}
        }
    }

    /// Counts an allocation's devices as taken, or as free again. Those of administrators never count.
    fn count(&mut self, allocation: &api::AllocationResult, taken: bool) {
        let results = allocation.devices.as_ref().and_then(|d| d.results.as_deref()).unwrap_or_default();
        for result in results.iter().filter(|r| r.admin_access != Some(true)) {
            let id = device_id(&result.driver, &result.pool, &result.device);
            let used = self.used.entry(id).or_default();
            let step = |n: u32| if taken { n + 1 } else { n.saturating_sub(1) };
            if result.share_id.is_none() {
                used.whole = step(used.whole);
            } else {
                used.shares = step(used.shares);
                for (name, amount) in result.consumed_capacity.iter().flatten() {
                    let amount = quantity(amount);
                    let sum = used.consumed.entry(name.clone()).or_insert_with(Quantity::zero);
                    *sum = if taken { sum.add(&amount) } else { sum.sub(&amount) };
                }
            }
            if used.whole == 0 && used.shares == 0 {
                self.used.remove(&id);
            }
        }
    }

    pub fn claim(&self, key: &str) -> Option<&Arc<api::ResourceClaim>> {
        self.claims.get(key)
    }

    pub fn class(&self, name: &str) -> Option<&Arc<api::DeviceClass>> {
        self.classes.get(name)
    }

    pub fn used(&self, device: Symbol) -> Option<&Use> {
        self.used.get(&device)
    }

    /// Whether a claim was given something here that is not seen yet.
    pub fn is_pending(&self, claim: &str) -> bool {
        self.pending.contains_key(claim)
    }

    /// Notes that a claim gets what was decided here.
    pub fn decide(&mut self, claim: &Arc<str>, allocation: Arc<api::AllocationResult>) {
        self.forget(claim);
        self.count(&allocation, true);
        self.pending.insert(claim.clone(), allocation);
    }

    /// Takes that back.
    pub fn forget(&mut self, claim: &str) {
        if let Some(allocation) = self.pending.remove(claim) {
            self.count(&allocation, false);
        }
    }

    /// The taints of a device: its own, and those of the rules that pick it.
    pub fn taints<'a>(
        &'a self,
        slice: &'a Slice,
        device: &'a api::Device,
    ) -> impl Iterator<Item = &'a api::DeviceTaint> + 'a {
        let picks = |rule: &&Arc<api::DeviceTaintRule>| {
            let is = |wanted: &Option<String>, name: &str| wanted.as_deref().is_none_or(|w| w == name);
            // Without a selector a rule picks nothing; what it does not name may be anything.
            rule.spec.device_selector.as_ref().is_some_and(|s| {
                is(&s.driver, &slice.driver) && is(&s.pool, &slice.pool_name) && is(&s.device, &device.name)
            })
        };
        device.taints.iter().flatten().chain(self.rules.values().filter(picks).map(|rule| &rule.spec.taint))
    }

    /// The pools that have devices for a node: those first whose devices need not be made ready, ordered so that the same is found each time.
    pub fn pools_for(&self, node: &Node) -> Vec<Arc<Pool>> {
        let whole = |published: &Published| published.whole.clone();
        let local = self.local.get(&node.symbol).into_iter().flatten().filter_map(|id| whole(self.pools.get(id)?));
        let shared = self.shared.iter().filter_map(|id| {
            let published = self.pools.get(id)?;
            if published.slices.iter().all(|s| s.concerns(node)) {
                return whole(published);
            }
            Pool::gather(&published.slices, |s| s.concerns(node)).map(Arc::new)
        });
        let mut pools: Vec<_> = local.chain(shared).collect();
        pools.sort_by(|a, b| (a.waits, &a.driver, &a.name).cmp(&(b.waits, &b.driver, &b.name)));
        pools
    }
}
