//! Finds devices for claims on one node: every request of every claim, or nothing.
//!
//! A search in a fixed order that goes back when it is stuck; the first solution is taken. Follows
//! `k8s.io/dynamic-resource-allocation/structured`, with its rules for administrators, alternatives, partitions (counters)
//! and shares (capacities). It changes nothing; that steps are bounded bounds its time.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::resource::v1 as api;
use meta::quantity::Quantity;

use super::constraint::Constraint;
use super::pool::{Counters, Device, Pool, PoolId, Slice};
use super::request::{self, Request};
use super::{Capacities, Devices, result, wanted};
use crate::node::Node;
use crate::symbol::SymbolMap;

/// Devices one claim can have (`AllocationResultsMaxSize`).
const MOST_RESULTS: usize = 32;
/// Devices tried for one pod on one node that count as a second of the time a node may be searched: steps rather than a
/// clock, so that the same search ends the same way everywhere. It is some milliseconds.
const STEPS_A_SECOND: f64 = 10_000.0;

/// How many steps a search may take within a time; `None`: as many as it takes.
pub fn steps_within(time: Option<std::time::Duration>) -> usize {
    time.map_or(usize::MAX, |t| (t.as_secs_f64() * STEPS_A_SECOND).ceil() as usize)
}

/// A claim that is to be allocated.
pub struct Asked {
    pub key: Arc<str>,
    pub body: Arc<api::ResourceClaim>,
    /// Each with its alternatives.
    pub(super) requests: Vec<Vec<Request>>,
}

impl Asked {
    /// An error is a fault of the claim or its classes.
    pub fn of(devices: &Devices, key: &Arc<str>, body: &Arc<api::ResourceClaim>) -> Result<Self, String> {
        let requests = request::read_all(devices, body, key)?;
        let asked = Self { key: key.clone(), body: body.clone(), requests };
        if let Some(at) = asked.constraints().iter().position(|c| Constraint::of(c).is_none()) {
            return Err(format!("claim {key}, constraint #{at}: empty constraint (unsupported constraint type?)"));
        }
        Ok(asked)
    }

    fn constraints(&self) -> &[api::DeviceConstraint] {
        wanted(&self.body).and_then(|d| d.constraints.as_deref()).unwrap_or_default()
    }
}

/// Why a node has no devices for the claims.
#[derive(Clone, Debug, PartialEq)]
pub enum Failure {
    /// There are none, or others have them.
    None,
    /// There are none, and some pool is not as it should be.
    InvalidPools,
    /// The search took too long.
    TimedOut,
    /// Something is wrong with the claim, a class or a device.
    Fault(String),
}

/// A device chosen for a request.
pub(super) struct Pick<'s> {
    pub request: &'s Request,
    pub slice: &'s Slice,
    pub device: &'s Device,
    /// What a share takes of it; `None`: all of it.
    pub share: Option<Capacities>,
    counted: bool,
}

/// The devices for these claims on a node, claim by claim, if they are found in so many steps.
pub fn allocate(
    devices: &Devices,
    asked: &[Asked],
    node: &Node,
    most_steps: usize,
) -> Result<Vec<api::AllocationResult>, Failure> {
    let pools = devices.pools_for(node);
    let mut search = Search {
        devices,
        node,
        asked,
        pools: &pools,
        constraints: asked.iter().map(|a| a.constraints().iter().filter_map(Constraint::of).collect()).collect(),
        picks: asked.iter().map(|_| Vec::new()).collect(),
        taking: SymbolMap::default(),
        sharing: SymbolMap::default(),
        counted: HashMap::new(),
        left: HashMap::new(),
        all: HashMap::new(),
        steps: 0,
        most_steps,
    };
    match search.prepare().and_then(|()| search.proceed(Place::default(), Location::default())) {
        Ok(true) => {}
        Ok(false) | Err(Stop::TooMany) if search.pools.iter().any(|p| p.invalid) => return Err(Failure::InvalidPools),
        Ok(false) | Err(Stop::TooMany) => return Err(Failure::None),
        Err(Stop::Steps) => return Err(Failure::TimedOut),
        Err(Stop::Fault(why)) => return Err(Failure::Fault(why)),
    }
    let results = asked.iter().zip(&search.picks).map(|(a, picks)| result::of(&a.body, picks, &node.name));
    results.collect::<Result<_, _>>().map_err(Failure::Fault)
}

/// Why the search cannot go on as it does.
enum Stop {
    /// The claim would have more devices than it can: alternatives with fewer may do.
    TooMany,
    Steps,
    Fault(String),
}

/// What is to be found next.
#[derive(Clone, Copy, Default)]
struct Place {
    claim: usize,
    request: usize,
    alternative: Option<usize>,
    /// The how manieth device of the request.
    device: usize,
}

/// Where in the pools to go on looking, so that no set of devices is tried in two orders.
#[derive(Clone, Copy, Default, PartialEq, PartialOrd)]
struct Location {
    pool: usize,
    slice: usize,
    device: usize,
}

type Found<'s> = (&'s Pool, &'s Slice, &'s Device);

struct Search<'s> {
    devices: &'s Devices,
    node: &'s Node,
    asked: &'s [Asked],
    pools: &'s [Arc<Pool>],
    constraints: Vec<Vec<Constraint<'s>>>,
    picks: Vec<Vec<Pick<'s>>>,
    /// Devices picked whole, and the claims they were picked for.
    taking: SymbolMap<Vec<usize>>,
    /// Shares picked: how many, and how much together.
    sharing: SymbolMap<(usize, Capacities)>,
    /// Counters that what is picked takes.
    counted: HashMap<PoolId, Counters>,
    /// Counters that were left when the search began.
    left: HashMap<PoolId, Counters>,
    /// What requests for all devices are for, by claim, request and alternative.
    all: HashMap<(usize, usize, usize), Vec<Found<'s>>>,
    steps: usize,
    most_steps: usize,
}

impl<'s> Search<'s> {
    /// Finds what requests for all devices are for, and refuses claims that can only be met by more devices than one can have.
    fn prepare(&mut self) -> Result<(), Stop> {
        let asked = self.asked;
        for (of, claim) in asked.iter().enumerate() {
            let mut least = 0usize;
            for (at, alternatives) in claim.requests.iter().enumerate() {
                let mut fewest = usize::MAX;
                for (chosen, request) in alternatives.iter().enumerate() {
                    let mut count = request.count;
                    if request.all {
                        let found = self.all_devices(request, &claim.key)?;
                        count = found.len();
                        self.all.insert((of, at, chosen), found);
                    }
                    fewest = fewest.min(count);
                }
                least = least.saturating_add(if alternatives.is_empty() { 0 } else { fewest });
            }
            if least > MOST_RESULTS {
                let why = format!("number of requested devices {least} exceeds the claim limit of {MOST_RESULTS}");
                return Err(Stop::Fault(format!("claim {}: {why}", claim.key)));
            }
        }
        Ok(())
    }

    fn proceed(&mut self, at: Place, from: Location) -> Result<bool, Stop> {
        let asked = self.asked;
        let Some(claim) = asked.get(at.claim) else { return Ok(true) };
        let Some(alternatives) = claim.requests.get(at.request) else {
            let next = Place { claim: at.claim + 1, ..Place::default() };
            return match self.proceed(next, Location::default()) {
                Err(Stop::TooMany) => Ok(false),
                other => other,
            };
        };
        let Some(chosen) = at.alternative else { return self.one_of(at, alternatives.len()) };
        let request = &alternatives[chosen];
        let all = self.all.get(&(at.claim, at.request, chosen)).filter(|_| request.all);
        let count = all.map_or(request.count, Vec::len);
        if request.all && count == 0 {
            return Ok(false);
        }
        if at.device >= count {
            let next = Place { claim: at.claim, request: at.request + 1, ..Place::default() };
            return self.proceed(next, Location::default());
        }
        if self.picks[at.claim].len() + count - at.device > MOST_RESULTS {
            return Err(Stop::TooMany);
        }
        let next = Place { device: at.device + 1, ..at };
        if let Some(found) = all.and_then(|a| a.get(at.device)).copied() {
            let picked = self.pick(at.claim, request, found, true)?;
            return Ok(picked && self.go_on(at.claim, next, Location::default())?);
        }
        self.look(at.claim, request, next, from)
    }

    /// The first alternative with which all the rest works out too.
    fn one_of(&mut self, at: Place, alternatives: usize) -> Result<bool, Stop> {
        let mut only_too_many = true;
        for chosen in 0..alternatives {
            match self.proceed(Place { alternative: Some(chosen), ..at }, Location::default()) {
                Err(Stop::TooMany) => continue,
                Ok(false) => only_too_many = false,
                done => return done,
            }
        }
        if only_too_many { Err(Stop::TooMany) } else { Ok(false) }
    }

    /// Tries one device after the other.
    fn look(&mut self, claim: usize, request: &'s Request, next: Place, from: Location) -> Result<bool, Stop> {
        for pool in from.pool..self.pools.len() {
            let here: &'s Pool = &self.pools[pool];
            if here.incomplete || here.invalid {
                continue;
            }
            let first_slice = if pool == from.pool { from.slice } else { 0 };
            for slice in first_slice..here.slices.len() {
                let of: &'s Slice = &here.slices[slice];
                let first = if (pool, slice) == (from.pool, from.slice) { from.device } else { 0 };
                for device in first..of.devices.len() {
                    let found = (here, of, &of.devices[device]);
                    let location = Location { pool, slice, device: device + 1 };
                    if !self.is_taken(claim, request, found.2)
                        && self.selects(&self.asked[claim].key, request, found)?
                        && self.pick(claim, request, found, false)?
                        && self.go_on(claim, next, location)?
                    {
                        return Ok(true);
                    }
                }
            }
        }
        Ok(false)
    }

    /// Goes on after a pick; takes it back when that leads nowhere.
    fn go_on(&mut self, claim: usize, next: Place, from: Location) -> Result<bool, Stop> {
        let done = self.proceed(next, from);
        if !matches!(done, Ok(true)) {
            self.take_back(claim);
        }
        done
    }

    fn all_devices(&mut self, request: &'s Request, claim: &str) -> Result<Vec<Found<'s>>, Stop> {
        let mut out = Vec::new();
        for pool in self.pools {
            let wrong = match (pool.incomplete, pool.invalid) {
                (true, _) => "being updated",
                (_, true) => "invalid",
                _ => "",
            };
            if !wrong.is_empty() {
                return Err(Stop::Fault(format!(
                    "claim {claim}, request {}: asks for all devices, but resource pool {} is currently {wrong}",
                    request.short_name(),
                    pool.path()
                )));
            }
            for slice in &pool.slices {
                for device in &slice.devices {
                    let found: Found<'s> = (pool, slice, device);
                    if self.selects(claim, request, found)? && self.has_capacity(request, device) {
                        out.push(found);
                    }
                }
            }
        }
        Ok(out)
    }

    /// Whether the request could have the device if nobody else had it. Expressions come first: what is wrong with them is told
    /// wherever the device may be used.
    fn selects(&mut self, claim: &str, request: &Request, (_, slice, device): Found<'s>) -> Result<bool, Stop> {
        self.steps += 1;
        if self.steps > self.most_steps {
            return Err(Stop::Steps);
        }
        for (at, selector) in request.selectors.iter().enumerate() {
            let picks = selector.picks(&slice.driver, device).map_err(|why| {
                let (whose, at) = match at.checked_sub(request.of_class) {
                    None => (format!("class {}", request.class_name()), at),
                    Some(at) => (format!("claim {claim}"), at),
                };
                Stop::Fault(format!("{whose}: selector #{at}: CEL runtime error: {why}"))
            })?;
            if !picks {
                return Ok(false);
            }
        }
        Ok(slice.reach_of(device).matches(self.node))
    }

    /// Whether somebody has the device whom the request must not share it with.
    fn is_taken(&self, claim: usize, request: &Request, device: &Device) -> bool {
        let taking = self.taking.get(&device.id).map_or(&[][..], Vec::as_slice);
        match request.admin {
            true => !device.can_be_shared() && taking.contains(&claim),
            false => !taking.is_empty() || self.devices.used(device.id).is_some_and(|u| u.is_whole()),
        }
    }

    fn has_capacity(&self, request: &Request, device: &Device) -> bool {
        let used = self.devices.used(device.id).map(|u| &u.consumed);
        let already: Vec<&Capacities> = used.into_iter().chain(self.sharing.get(&device.id).map(|s| &s.1)).collect();
        request.wanted.fits(&device.body, &already)
    }

    /// Takes a device for a request, if nothing stands in the way. With `must`, that a constraint does is a fault.
    fn pick(&mut self, claim: usize, request: &'s Request, found: Found<'s>, must: bool) -> Result<bool, Stop> {
        let (pool, slice, device) = found;
        if self.is_taken(claim, request, device) || request.is_kept_off(self.devices.taints(slice, &device.body)) {
            return Ok(false);
        }
        let used = self.devices.used(device.id);
        let is_shared = used.is_some_and(|u| u.is_shared()) || self.sharing.contains_key(&device.id);
        let counts = !(device.counters.is_empty() || device.can_be_shared() && is_shared);
        if counts && !self.counters_suffice(pool, device) {
            return Ok(false);
        }
        let mut added = 0;
        for constraint in &mut self.constraints[claim] {
            if !constraint.add(&request.parent, &request.name, &slice.driver, &device.body) {
                break;
            }
            added += 1;
        }
        let allowed = added == self.constraints[claim].len();
        if !allowed && must {
            let path = format!("{}/{}/{}", slice.driver, slice.pool_name, device.body.name);
            return Err(Stop::Fault(format!(
                "claim {}, request {}: cannot add device {path} because a claim constraint would not be satisfied",
                self.asked[claim].key,
                request.short_name()
            )));
        }
        if !allowed || !self.has_capacity(request, device) {
            self.constraints[claim][..added].iter_mut().for_each(|c| c.remove(&request.parent, &request.name));
            return Ok(false);
        }
        if counts {
            self.count(slice.pool, device, true);
        }
        let share = device.can_be_shared().then(|| request.wanted.of_device(&device.body));
        match &share {
            None => self.taking.entry(device.id).or_default().push(claim),
            Some(share) => {
                let (shares, sum) = self.sharing.entry(device.id).or_default();
                *shares += 1;
                for (name, amount) in share {
                    let all = sum.entry(name.clone()).or_insert_with(Quantity::zero);
                    *all = all.add(amount);
                }
            }
        }
        self.picks[claim].push(Pick { request, slice, device, share, counted: counts });
        Ok(true)
    }

    /// Takes back the last pick of a claim.
    fn take_back(&mut self, claim: usize) {
        let Some(pick) = self.picks[claim].pop() else { return };
        let id = pick.device.id;
        match &pick.share {
            None => {
                if let Some(claims) = self.taking.get_mut(&id) {
                    claims.pop();
                }
            }
            Some(share) => {
                if let Some((shares, sum)) = self.sharing.get_mut(&id) {
                    *shares -= 1;
                    for (name, amount) in share {
                        if let Some(all) = sum.get_mut(name) {
                            *all = all.sub(amount);
                        }
                    }
                    if *shares == 0 {
                        self.sharing.remove(&id);
                    }
                }
            }
        }
        let (parent, name) = (&pick.request.parent, &pick.request.name);
        self.constraints[claim].iter_mut().for_each(|c| c.remove(parent, name));
        if pick.counted {
            self.count(pick.slice.pool, pick.device, false);
        }
    }

    fn count(&mut self, pool: PoolId, device: &Device, taken: bool) {
        let sets = self.counted.entry(pool).or_default();
        for (set, counters) in &device.counters {
            let sums = sets.entry(set.clone()).or_default();
            for (name, amount) in counters {
                let sum = sums.entry(name.clone()).or_insert_with(Quantity::zero);
                *sum = if taken { sum.add(amount) } else { sum.sub(amount) };
            }
        }
    }

    /// Whether a device's counters are left, and no counter of its pool is overdrawn.
    fn counters_suffice(&mut self, pool: &Pool, device: &Device) -> bool {
        let devices = self.devices;
        let left = self.left.entry(pool.id).or_insert_with(|| counters_left(devices, pool));
        let taken = self.counted.get(&pool.id);
        left.iter().all(|(set, counters)| {
            counters.iter().all(|(name, left)| {
                let taken = taken.and_then(|t| t.get(set)?.get(name));
                let wanted = device.counters.get(set).and_then(|s| s.get(name));
                let sum = taken.into_iter().chain(wanted).fold(Quantity::zero(), |sum, amount| sum.add(amount));
                sum.cmp(left).is_le()
            })
        })
    }
}

/// What devices given away leave of a pool's counters.
fn counters_left(devices: &Devices, pool: &Pool) -> Counters {
    let mut left: BTreeMap<_, _> = pool.counters.clone();
    let used = |d: &&Device| devices.used(d.id).is_some_and(|u| u.is_whole() || u.is_shared());
    for device in pool.devices().filter(used) {
        for (set, counters) in &device.counters {
            for (name, amount) in counters {
                if let Some(there) = left.get_mut(set).and_then(|s| s.get_mut(name)) {
                    *there = there.sub(amount);
                }
            }
        }
    }
    left
}
