//! A pod's claims on devices: those that have theirs must be usable on the node; for the others the node must have some.
//!
//! Follows upstream's `DynamicResources`: a pod whose claims are not all there waits outside the queue; a claim that is
//! allocated and in nobody's way may be let go when it keeps its only pod from every node.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use k8s_openapi::api::resource::v1::{AllocationResult, ResourceClaim};
use serde_json::Value;

use super::MAX_SCORE;
use crate::devices::allocator::{Asked, Failure, allocate, steps_within};
use crate::devices::binding::{Readiness, readiness, waits};
use crate::devices::extended::Extended;
use crate::devices::{Devices, allocation, can_be_reserved, consumers, is_reserved_for, requests};
use crate::node::Node;
use crate::node_selection::NodeSelection;
use crate::pod::{ClaimName, Pod};
use crate::snapshot::{NodeId, Snapshot};
use crate::symbol::SymbolMap;
use crate::verdict::{Plugin, Reason, Refusal};

/// A claim by key.
type Keyed = (Arc<str>, Arc<ResourceClaim>);

/// What stands in the way wherever the pod would go.
#[derive(Debug, PartialEq)]
pub enum Obstacle {
    /// The pod has to wait.
    Wait(String),
    /// Something is wrong that waiting does not mend.
    Fault(String),
}

/// What filters find out beside their verdicts.
#[derive(Default)]
struct Findings {
    fault: Option<String>,
    /// Allocated claims, by index, that cannot be used on some node.
    unavailable: u64,
    /// How well nodes do by the order of the requests' alternatives.
    ranks: SymbolMap<i64>,
}

/// A pod's claims.
#[derive(Clone)]
pub struct State {
    claims: Vec<Keyed>,
    /// Where the allocated ones can be used, by index.
    reach: Vec<(usize, NodeSelection)>,
    /// Allocated ones whose devices turned out not to do, as bits by index: of use nowhere.
    broken: u64,
    asked: Arc<[Asked]>,
    /// What is asked beside for extended resources; which of it, the node says.
    extended: Option<Arc<Extended>>,
    findings: Arc<Mutex<Findings>>,
    /// How long one node is searched.
    most_steps: usize,
    /// Whether some request has alternatives, of which the first is liked best.
    ranked: bool,
}

/// What is to be written about a claim before its pod is bound.
#[derive(Clone, Debug)]
pub struct Step {
    pub claim: Arc<str>,
    pub uid: Arc<str>,
    /// What it gets, if it has nothing yet.
    pub allocation: Option<Arc<AllocationResult>>,
    /// Its devices have to be made ready before the pod is bound.
    pub waits: bool,
    /// The claim is to be made first; with what the pod's status says of it.
    pub make: Option<Arc<(Value, Value)>>,
}

/// The claims of a pod; an error says why they are not all there.
pub fn claims(devices: &Devices, pod: &Pod) -> Result<Vec<Keyed>, String> {
    let (namespace, name) = meta::object::split_key(&pod.key);
    let mut out = Vec::with_capacity(pod.claims.len());
    for wanted in &*pod.claims {
        let (claim, generated) = match &wanted.claim {
            ClaimName::Given(claim) => (claim, false),
            ClaimName::Generated(Some(Some(claim))) => (claim, true),
            // It turned out that none was needed.
            ClaimName::Generated(Some(None)) => continue,
            ClaimName::Generated(None) => {
                return Err(format!("pod \"{namespace}/{name}\": ResourceClaim not created yet"));
            }
            ClaimName::Unknown => {
                return Err(format!(
                    "pod \"{namespace}/{name}\", spec.resourceClaim {:?}: none of the supported fields are set",
                    wanted.name
                ));
            }
        };
        let key: Arc<str> = format!("{namespace}/{claim}").into();
        let body = devices.claim(&key).cloned();
        let body = body.ok_or_else(|| format!("could not find ResourceClaim \"{key}\": object not found"))?;
        if body.metadata.deletion_timestamp.is_some() {
            return Err(format!("resourceclaim {claim:?} is being deleted"));
        }
        let owners = body.metadata.owner_references.as_deref().unwrap_or_default();
        if generated && !owners.iter().any(|o| o.controller == Some(true) && o.uid == *pod.uid) {
            return Err(format!("ResourceClaim {key} was not created for pod {namespace}/{name} (pod is not owner)"));
        }
        out.push((key, body));
    }
    Ok(out)
}

/// The claim that was made for a pod's extended resources in an earlier attempt.
fn made_before(devices: &Devices, pod: &Pod) -> Option<Keyed> {
    let (namespace, _) = meta::object::split_key(&pod.key);
    let key: Arc<str> = meta::object::object_key(namespace, pod.extended.as_ref()?.made.as_deref()?).into();
    let claim = devices.claim(&key).filter(|c| c.metadata.deletion_timestamp.is_none())?.clone();
    allocation(&claim).is_some().then_some((key, claim))
}

/// A name for the claim of a pod's extended resources.
fn claim_name(pod: &str) -> String {
    /// Letters and digits that spell nothing.
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let letter = |_| char::from(LETTERS[rand::random_range(0..LETTERS.len())]);
    format!("{pod}-extended-resources-{}", (0..5).map(letter).collect::<String>())
}

/// Whether every class a claim names is there.
fn check_classes(devices: &Devices, claim: &ResourceClaim) -> Result<(), Obstacle> {
    for request in requests(claim) {
        let exact = request.exactly.iter().map(|r| (request.name.clone(), &r.device_class_name));
        let alternatives = request.first_available.iter().flatten();
        let alternatives = alternatives.map(|r| (format!("{}/{}", request.name, r.name), &r.device_class_name));
        for (name, class) in exact.chain(alternatives) {
            if class.is_empty() {
                return Err(Obstacle::Fault(format!("request {name}: unsupported request type")));
            }
            if devices.class(class).is_none() {
                return Err(Obstacle::Wait(format!("request {name}: device class {class} does not exist")));
            }
        }
    }
    Ok(())
}

/// Alternatives one request may have (`FirstAvailableDeviceRequestMaxSize`).
const MOST_ALTERNATIVES: i64 = 8;

fn has_alternatives(claim: &ResourceClaim) -> bool {
    requests(claim).iter().any(|r| r.first_available.as_ref().is_some_and(|a| !a.is_empty()))
}

impl State {
    pub fn prepare(devices: &Devices, pod: &Pod) -> Result<Self, Obstacle> {
        if !devices.served {
            let why =
                "the pod claims devices (spec.resourceClaims), and the API server does not serve resource.k8s.io/v1";
            return Err(Obstacle::Wait(why.into()));
        }
        let mut claims = claims(devices, pod).map_err(Obstacle::Wait)?;
        let made = made_before(devices, pod);
        let extended = pod.extended.clone().filter(|_| made.is_none());
        claims.extend(made);
        let (mut reach, mut asked, mut broken) = (Vec::new(), Vec::new(), 0);
        for (at, (key, claim)) in claims.iter().enumerate() {
            match allocation(claim) {
                Some(_) if !can_be_reserved(claim) && !is_reserved_for(claim, &pod.uid) => {
                    return Err(Obstacle::Wait("resourceclaim in use".into()));
                }
                Some(_) if matches!(readiness(claim), Readiness::Failed(_)) => {
                    broken |= 1u64.checked_shl(at as u32).unwrap_or(0);
                }
                Some(allocated) => {
                    let selector = allocated.node_selector.as_ref();
                    reach.extend(selector.map(|s| (at, NodeSelection::new(&BTreeMap::new(), Some(s)))));
                }
                None if devices.is_pending(key) => {
                    let why = format!("resource claim {key} is in the process of being allocated");
                    return Err(Obstacle::Wait(why));
                }
                None => {
                    check_classes(devices, claim)?;
                    asked.push(Asked::of(devices, key, claim).map_err(Obstacle::Fault)?);
                }
            }
        }
        let most_steps = steps_within(pod.spec.profile.devices_filter_within);
        let ranked = pod.spec.profile.weights.dynamic_resources != 0 && claims.iter().any(|(_, c)| has_alternatives(c));
        Ok(Self { claims, reach, broken, asked: asked.into(), extended, findings: Arc::default(), most_steps, ranked })
    }

    pub fn filter(&self, snapshot: &Snapshot, node: &Node) -> Result<(), Refusal> {
        let refuse = |reason| Err(Refusal::unresolvable(Plugin::DynamicResources, reason));
        let note = |note: &dyn Fn(&mut Findings)| {
            if let Ok(mut findings) = self.findings.lock() {
                note(&mut findings);
            }
        };
        let away = self.reach.iter().filter(|(_, reach)| !reach.matches(node));
        let away = away.fold(self.broken, |bits, (at, _)| bits | 1u64.checked_shl(*at as u32).unwrap_or(0));
        let missing = self.missing(node);
        if !self.asked.is_empty() || missing != 0 {
            // What is wrong with a claim, or with what the node has, is told before that another claim is elsewhere.
            match self.allocate(snapshot, node, missing) {
                Ok(found) if self.ranked && away == 0 => {
                    let rank = self.rank(&found);
                    note(&|f| *f.ranks.entry(node.symbol).or_default() = rank);
                }
                Ok(_) => {}
                Err(Failure::None) => return refuse(Reason::NoDevices),
                Err(Failure::InvalidPools) => return refuse(Reason::InvalidPools),
                Err(Failure::TimedOut) => return refuse(Reason::DevicesTimedOut),
                Err(Failure::Fault(why)) => {
                    note(&|f| f.fault = Some(why.clone()));
                    return refuse(Reason::NoDevices);
                }
            }
        }
        if away != 0 {
            note(&|f| f.unavailable |= away);
            return refuse(Reason::ClaimElsewhere);
        }
        Ok(())
    }

    /// Which extended resources the node has no number of.
    fn missing(&self, node: &Node) -> u32 {
        self.extended.as_ref().map_or(0, |e| e.missing(node))
    }

    /// Devices for all claims, last for the one for extended resources if something is missing.
    fn allocate(&self, snapshot: &Snapshot, node: &Node, missing: u32) -> Result<Vec<AllocationResult>, Failure> {
        let Some(extended) = self.extended.as_ref().filter(|_| missing != 0) else {
            return allocate(&snapshot.devices, &self.asked, node, self.most_steps);
        };
        let devices = &snapshot.devices;
        let asked = self.asked.iter().map(|a| Asked::of(devices, &a.key, &a.body));
        let special = Asked::of(devices, &"<extended-resources>".into(), &extended.claim(missing));
        let asked = asked.chain([special]).collect::<Result<Vec<_>, _>>().map_err(Failure::Fault)?;
        allocate(devices, &asked, node, self.most_steps)
    }

    /// The sum over requests of how early the alternative stands that they get.
    fn rank(&self, found: &[AllocationResult]) -> i64 {
        let given = |key: &Arc<str>| self.asked.iter().position(|a| a.key == *key).and_then(|at| found.get(at));
        let mut sum = 0;
        for (key, claim) in &self.claims {
            let Some(allocated) = given(key).or_else(|| allocation(claim)) else { continue };
            let results = allocated.devices.iter().flat_map(|d| d.results.iter().flatten());
            let got: Vec<&str> = results.map(|r| r.request.as_str()).collect();
            for request in requests(claim) {
                let alternatives = request.first_available.iter().flatten();
                let place =
                    alternatives.map(|a| format!("{}/{}", request.name, a.name)).position(|n| got.contains(&&*n));
                sum += place.map_or(0, |at| MOST_ALTERNATIVES - at as i64);
            }
        }
        sum
    }

    /// Adds to the totals of nodes that passed: the earlier the alternatives that the requests get, the better.
    pub fn score(&self, snapshot: &Snapshot, nodes: &[NodeId], totals: &mut [i64], weight: i64) {
        let Some(findings) = self.findings.lock().ok().filter(|_| self.ranked) else { return };
        let rank = |id: &NodeId| findings.ranks.get(&snapshot.node(*id).symbol).copied().unwrap_or(0);
        let most = nodes.iter().map(rank).max().unwrap_or(0).max(1);
        totals.iter_mut().zip(nodes).for_each(|(total, id)| *total += weight * (rank(id) * MAX_SCORE / most));
    }

    /// What was found wrong while nodes were asked.
    pub fn fault(&self) -> Option<String> {
        self.findings.lock().ok()?.fault.clone()
    }

    /// What is to be written when the pod goes to a node that was found to do.
    pub fn steps(&self, snapshot: &Snapshot, pod: &Pod, node: &Node) -> Result<Vec<Step>, Failure> {
        let missing = self.missing(node);
        let nothing = self.asked.is_empty() && missing == 0;
        let mut found = if nothing { Vec::new() } else { self.allocate(snapshot, node, missing)? };
        let special = self.extended.as_ref().filter(|_| missing != 0).and_then(|e| Some((e, found.pop()?)));
        let mut found = self.asked.iter().map(|a| &a.key).zip(found.into_iter().map(Arc::new)).collect::<Vec<_>>();
        let step = |(key, claim): &Keyed| {
            let given = found.iter().position(|f| *f.0 == *key).map(|at| found.remove(at).1);
            let waits = match &given {
                Some(fresh) => waits(fresh),
                None => readiness(claim) == Readiness::Pending,
            };
            (given.is_some() || waits || !is_reserved_for(claim, &pod.uid)).then(|| Step {
                claim: key.clone(),
                uid: claim.metadata.uid.as_deref().unwrap_or_default().into(),
                allocation: given,
                waits,
                make: None,
            })
        };
        let mut steps: Vec<Step> = self.claims.iter().filter_map(step).collect();
        if let Some((extended, allocation)) = special {
            let (namespace, name) = meta::object::split_key(&pod.key);
            let claim = claim_name(name);
            let bodies = extended.bodies(missing, (namespace, name), &pod.uid, &claim);
            steps.push(Step {
                claim: meta::object::object_key(namespace, &claim).into(),
                uid: "".into(),
                waits: waits(&allocation),
                allocation: Some(Arc::new(allocation)),
                make: Some(Arc::new(bodies)),
            });
        }
        Ok(steps)
    }

    /// An allocated claim that keeps the pod from nodes and that nobody else uses.
    pub fn to_let_go(&self, pod: &Pod) -> Option<&Keyed> {
        let unavailable = self.findings.lock().ok()?.unavailable;
        let free = |claim: &ResourceClaim| match consumers(claim) {
            [] => true,
            [one] => one.uid == *pod.uid,
            _ => false,
        };
        let mut away = self.claims.iter().enumerate().filter(|(at, _)| unavailable >> at & 1 == 1);
        away.find(|(_, (_, claim))| free(claim)).map(|c| c.1)
    }
}

/// Notes what was decided, so that nobody else counts on the same.
pub fn reserve(devices: &mut Devices, steps: &[Step]) {
    for step in steps {
        if let Some(allocation) = &step.allocation {
            devices.decide(&step.claim, allocation.clone());
        }
    }
}

/// Takes that back.
pub fn release(devices: &mut Devices, steps: &[Step]) {
    for step in steps.iter().filter(|s| s.allocation.is_some()) {
        devices.forget(&step.claim);
    }
}
