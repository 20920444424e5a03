//! A pod as the core sees it.
//!
//! What identical pods have in common is one shared [`Spec`]: requests, tolerations, node selection, terms. Pods of one
//! owner thus share one, and the core recognizes them by it. What differs (name, labels, claims, state) is in [`Pod`].

use std::collections::HashSet;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    PodAffinityTerm, Toleration as ApiToleration, TopologySpreadConstraint, WeightedPodAffinityTerm,
};
use meta::Object;

use crate::amounts::{Amounts, of_pod};
use crate::devices::extended::{Classes, Extended};
use crate::node::Taint;
use crate::node_selection::{NodeSelection, Preference};
use crate::plugins::node_declared_features::Features;
use crate::profile::ProfileRef;
use crate::selector::Selector;
use crate::symbol::{Labels, Symbol, SymbolMap};
use crate::verdict::Plugin;
use crate::view::{PodSpecView, PodView};

/// What a taint does to pods that do not tolerate it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    NoSchedule,
    PreferNoSchedule,
    NoExecute,
}

impl Effect {
    pub fn of(text: &str) -> Option<Self> {
        match text {
            "NoSchedule" => Some(Self::NoSchedule),
            "PreferNoSchedule" => Some(Self::PreferNoSchedule),
            "NoExecute" => Some(Self::NoExecute),
            _ => None,
        }
    }
}

/// How a toleration compares the taint's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Comparison {
    Equal(Symbol),
    Exists,
    GreaterThan(i64),
    LessThan(i64),
    /// An operator nobody knows tolerates nothing.
    Never,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Toleration {
    /// `None`: every key.
    key: Option<Symbol>,
    comparison: Comparison,
    /// `None`: every effect.
    effect: Option<Effect>,
}

impl Toleration {
    fn of(api: &ApiToleration) -> Option<Self> {
        let key = api.key.as_deref().filter(|k| !k.is_empty()).map(Symbol::of);
        let value = api.value.as_deref().unwrap_or_default();
        let number = |make: fn(i64) -> Comparison| value.parse().map_or(Comparison::Never, make);
        let comparison = match api.operator.as_deref().unwrap_or_default() {
            "" | "Equal" => Comparison::Equal(Symbol::of(value)),
            "Exists" => Comparison::Exists,
            "Gt" => number(Comparison::GreaterThan),
            "Lt" => number(Comparison::LessThan),
            _ => Comparison::Never,
        };
        let effect = match api.effect.as_deref().unwrap_or_default() {
            "" => None,
            text => Some(Effect::of(text)?),
        };
        Some(Self { key, comparison, effect })
    }

    pub fn tolerates(&self, taint: &Taint) -> bool {
        self.effect.is_none_or(|e| e == taint.effect)
            && self.key.is_none_or(|k| k == taint.key)
            && match self.comparison {
                Comparison::Equal(value) => value == taint.value,
                Comparison::Exists => true,
                Comparison::GreaterThan(than) => taint.number.is_some_and(|n| n > than),
                Comparison::LessThan(than) => taint.number.is_some_and(|n| n < than),
                Comparison::Never => false,
            }
    }
}

/// A port of the host that a pod wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HostPort {
    pub protocol: Symbol,
    /// `None`: every address.
    pub address: Option<Symbol>,
    pub port: i64,
}

impl HostPort {
    pub fn conflicts(&self, other: &Self) -> bool {
        self.port == other.port
            && self.protocol == other.protocol
            && (self.address == other.address || self.address.is_none() || other.address.is_none())
    }
}

/// One of `topologySpreadConstraints`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SpreadConstraint {
    pub topology: Symbol,
    pub max_skew: i64,
    /// `DoNotSchedule`, or else `ScheduleAnyway`.
    pub hard: bool,
    pub selector: Selector,
    pub match_keys: Box<[Symbol]>,
    pub min_domains: i64,
    pub honor_affinity: bool,
    pub honor_taints: bool,
}

impl SpreadConstraint {
    pub fn of(api: &TopologySpreadConstraint) -> Self {
        Self {
            topology: Symbol::of(&api.topology_key),
            max_skew: i64::from(api.max_skew),
            hard: api.when_unsatisfiable != "ScheduleAnyway",
            selector: Selector::compile(api.label_selector.as_ref()),
            match_keys: symbols(api.match_label_keys.as_deref()),
            min_domains: i64::from(api.min_domains.unwrap_or(1)),
            honor_affinity: api.node_affinity_policy.as_deref() != Some("Ignore"),
            honor_taints: api.node_taints_policy.as_deref() == Some("Honor"),
        }
    }
}

/// A term of pod affinity or anti-affinity.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Term {
    pub topology: Symbol,
    pub selector: Selector,
    pub match_keys: Box<[Symbol]>,
    pub mismatch_keys: Box<[Symbol]>,
    pub namespaces: Box<[Symbol]>,
    pub namespace_selector: Option<Selector>,
}

impl Term {
    fn of(api: &PodAffinityTerm) -> Self {
        Self {
            topology: Symbol::of(&api.topology_key),
            selector: Selector::compile(api.label_selector.as_ref()),
            match_keys: symbols(api.match_label_keys.as_deref()),
            mismatch_keys: symbols(api.mismatch_label_keys.as_deref()),
            namespaces: symbols(api.namespaces.as_deref()),
            namespace_selector: api.namespace_selector.as_ref().map(|s| Selector::compile(Some(s))),
        }
    }

    /// Whether the term, seen from the pod that has it, picks another pod.
    pub fn picks(&self, owner: &Pod, other: &Pod, namespaces: &SymbolMap<Labels>) -> bool {
        let within = if self.namespaces.is_empty() && self.namespace_selector.is_none() {
            owner.namespace == other.namespace
        } else {
            self.namespaces.contains(&other.namespace)
                || self.namespace_selector.as_ref().is_some_and(|s| {
                    s.is_everything() || namespaces.get(&other.namespace).is_some_and(|labels| s.matches(labels))
                })
        };
        // A key the owner does not have asks nothing.
        let same = |key: &Symbol, wanted: bool| {
            owner.labels.get(*key).is_none_or(|value| (other.labels.get(*key) == Some(value)) == wanted)
        };
        within
            && self.selector.matches(&other.labels)
            && self.match_keys.iter().all(|k| same(k, true))
            && self.mismatch_keys.iter().all(|k| same(k, false))
    }

    fn all(api: Option<&[PodAffinityTerm]>) -> Box<[Self]> {
        api.into_iter().flatten().map(Self::of).collect()
    }

    fn weighted(api: Option<&[WeightedPodAffinityTerm]>) -> Box<[(i64, Self)]> {
        api.into_iter().flatten().map(|w| (i64::from(w.weight), Self::of(&w.pod_affinity_term))).collect()
    }
}

/// Pod affinity and anti-affinity.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct PodTerms {
    pub affinity: Box<[Term]>,
    pub anti: Box<[Term]>,
    pub preferred: Box<[(i64, Term)]>,
    pub preferred_anti: Box<[(i64, Term)]>,
}

impl PodTerms {
    /// Whether what a term picks depends on the labels of the pod that has it.
    pub fn asks_for_labels(&self) -> bool {
        let preferred = self.preferred.iter().chain(&self.preferred_anti).map(|w| &w.1);
        let mut all = self.affinity.iter().chain(&self.anti).chain(preferred);
        all.any(|t| !t.match_keys.is_empty() || !t.mismatch_keys.is_empty())
    }
}

/// A volume that bears on where a pod may go.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Volume {
    /// The claim's name.
    Claim(Box<str>),
    /// An ephemeral volume's name: its claim is `pod-volume`.
    Ephemeral(Box<str>),
    /// An inline volume of a CSI driver.
    Inline(Symbol),
    /// A disk named in the pod itself: who it is, and whether sharing it to read is fine and meant.
    Disk { identity: Symbol, sharable: bool },
}

/// A claim on devices, as a pod names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodClaim {
    /// The pod's own name for it.
    pub name: Box<str>,
    pub claim: ClaimName,
}

/// The name of a ResourceClaim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClaimName {
    Given(Box<str>),
    /// Made from a template: not yet, or (perhaps without need of a claim) already.
    Generated(Option<Option<Box<str>>>),
    Unknown,
}

/// What identical pods share.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Spec {
    pub requests: Amounts,
    /// With assumed amounts for what asks for none: (CPU, memory).
    pub assumed: (i64, i64),
    pub tolerations: Box<[Toleration]>,
    pub selection: NodeSelection,
    pub preferences: Box<[Preference]>,
    pub ports: Box<[HostPort]>,
    pub images: Box<[Symbol]>,
    pub containers: i64,
    pub spread: Box<[SpreadConstraint]>,
    pub terms: Option<Box<PodTerms>>,
    pub priority: i32,
    /// `preemptionPolicy` is not `Never`.
    pub preempts: bool,
    /// Whether it is one of a group that is placed together.
    pub grouped: bool,
    /// What it needs that not every node has.
    pub features: Features,
    /// Extended resources that are asked as devices where a node has none.
    pub delegated: Box<[Symbol]>,
    pub profile: ProfileRef,
}

fn symbols(texts: Option<&[String]>) -> Box<[Symbol]> {
    texts.into_iter().flatten().map(|t| Symbol::of(t)).collect()
}

/// An image's name with its tag, as nodes report it.
pub fn normalized_image(name: &str) -> Symbol {
    let after_slash = name.rsplit('/').next().unwrap_or(name);
    if after_slash.contains(':') || name.contains('@') {
        Symbol::of(name)
    } else {
        Symbol::of(&format!("{name}:latest"))
    }
}

fn host_ports(spec: &PodSpecView) -> Box<[HostPort]> {
    let containers =
        spec.containers.iter().chain(spec.init_containers.iter().filter(|c| &*c.restart_policy == "Always"));
    let ports = containers.flat_map(|c| &c.ports).filter_map(|p| {
        let port = if p.host_port == 0 && spec.host_network { p.container_port } else { p.host_port };
        let protocol = if p.protocol.is_empty() { "TCP" } else { &p.protocol };
        let address = Some(&*p.host_ip).filter(|ip| !matches!(*ip, "" | "0.0.0.0")).map(Symbol::of);
        (port > 0).then(|| HostPort { protocol: Symbol::of(protocol), address, port })
    });
    ports.collect()
}

fn volumes(spec: &PodSpecView) -> Arc<[Volume]> {
    let disk = |kind: &str, name: String, sharable| Volume::Disk {
        identity: Symbol::of(&format!("{kind}\n{name}")),
        sharable,
    };
    let of = |v: &crate::view::VolumeView| {
        if let Some(claim) = &v.persistent_volume_claim {
            return vec![Volume::Claim(claim.claim_name.clone())];
        }
        if v.ephemeral.is_some() {
            return vec![Volume::Ephemeral(v.name.clone())];
        }
        if let Some(csi) = &v.csi {
            return vec![Volume::Inline(Symbol::of(&csi.driver))];
        }
        if let Some(d) = &v.gce_persistent_disk {
            return vec![disk("gce", d.pd_name.to_string(), d.read_only)];
        }
        if let Some(d) = &v.aws_elastic_block_store {
            return vec![disk("ebs", d.volume_id.to_string(), false)];
        }
        if let Some(d) = &v.iscsi {
            return vec![disk("iscsi", d.iqn.to_string(), d.read_only)];
        }
        // Two images are one where any of their monitors is.
        let Some(d) = &v.rbd else { return Vec::new() };
        let by = |monitor: &_| disk("rbd", format!("{monitor}\n{}\n{}", d.pool, d.image), d.read_only);
        d.monitors.iter().map(by).collect()
    };
    spec.volumes.iter().flat_map(of).collect()
}

fn claims(view: &PodView) -> Arc<[PodClaim]> {
    let of = |c: &crate::view::PodClaimView| {
        let generated = || view.status.resource_claim_statuses.iter().find(|s| s.name == c.name);
        let claim = match (&c.resource_claim_name, &c.resource_claim_template_name) {
            (Some(name), _) => ClaimName::Given(name.clone()),
            (None, Some(_)) => ClaimName::Generated(generated().map(|s| s.resource_claim_name.clone())),
            (None, None) => ClaimName::Unknown,
        };
        PodClaim { name: c.name.clone(), claim }
    };
    view.spec.resource_claims.iter().map(of).collect()
}

impl Spec {
    pub fn of(view: &PodView, delegated: Box<[Symbol]>, profile: ProfileRef) -> Self {
        let spec = &view.spec;
        let assumed = of_pod(spec, &view.status, true);
        let affinity = spec.affinity.as_ref();
        let node = affinity.and_then(|a| a.node_affinity.as_ref());
        let (near, far) =
            (affinity.and_then(|a| a.pod_affinity.as_ref()), affinity.and_then(|a| a.pod_anti_affinity.as_ref()));
        let terms = (near.is_some() || far.is_some()).then(|| {
            Box::new(PodTerms {
                affinity: Term::all(
                    near.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_deref()),
                ),
                preferred: Term::weighted(
                    near.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_deref()),
                ),
                anti: Term::all(far.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_deref())),
                preferred_anti: Term::weighted(
                    far.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_deref()),
                ),
            })
        });
        let containers = || spec.init_containers.iter().chain(&spec.containers);
        let volume_images = spec.volumes.iter().filter_map(|v| v.image.as_ref()).map(|i| &i.reference);
        let images: Box<[Symbol]> =
            containers().map(|c| &c.image).chain(volume_images).map(|i| normalized_image(i)).collect();
        Self {
            grouped: spec.scheduling_group.is_some(),
            features: Features::needed(spec),
            delegated,
            requests: of_pod(spec, &view.status, false),
            assumed: (assumed.cpu, assumed.memory),
            tolerations: spec.tolerations.iter().filter_map(Toleration::of).collect(),
            selection: NodeSelection::new(
                &spec.node_selector,
                node.and_then(|n| n.required_during_scheduling_ignored_during_execution.as_ref()),
            ),
            preferences: Preference::all(
                node.and_then(|n| n.preferred_during_scheduling_ignored_during_execution.as_deref()),
            ),
            ports: host_ports(spec),
            containers: images.len() as i64,
            images,
            spread: spec.topology_spread_constraints.iter().map(SpreadConstraint::of).collect(),
            terms,
            priority: spec.priority,
            preempts: &*spec.preemption_policy != "Never",
            profile,
        }
    }
}

/// Shares equal specs, and knows each pod's profile.
#[derive(Default)]
pub struct Specs {
    profiles: Vec<ProfileRef>,
    /// Device classes that stand for extended resources.
    pub classes: Classes,
    known: HashSet<Arc<Spec>>,
    sweep_at: usize,
}

impl Specs {
    pub fn with_profiles(profiles: Vec<ProfileRef>) -> Self {
        Self { profiles, ..Self::default() }
    }

    /// The profile of a scheduler's name, if it is one of ours.
    pub fn profile(&self, scheduler_name: &str) -> Option<&ProfileRef> {
        self.profiles.iter().find(|p| *p.scheduler_name == *scheduler_name)
    }

    /// A pod's spec, shared. Other schedulers' pods count under the default profile: nobody asks it for them.
    pub fn of(&mut self, view: &PodView, delegated: Box<[Symbol]>) -> Arc<Spec> {
        let profile = self.profile(&view.spec.scheduler_name).cloned().unwrap_or_default();
        self.share(Spec::of(view, delegated, profile))
    }

    pub fn share(&mut self, spec: Spec) -> Arc<Spec> {
        if let Some(known) = self.known.get(&spec) {
            return known.clone();
        }
        if self.known.len() >= self.sweep_at {
            self.known.retain(|s| Arc::strong_count(s) > 1);
            // The sweep's cost is spread over as many additions.
            self.sweep_at = (self.known.len() * 2).max(1024);
        }
        let spec = Arc::new(spec);
        self.known.insert(spec.clone());
        spec
    }
}

/// A pod.
#[derive(Clone, Debug, PartialEq)]
pub struct Pod {
    /// `namespace/name`.
    pub key: Arc<str>,
    pub namespace: Symbol,
    pub uid: Arc<str>,
    pub labels: Labels,
    pub spec: Arc<Spec>,
    pub volumes: Arc<[Volume]>,
    pub claims: Arc<[PodClaim]>,
    /// What it asks of extended resources that device classes stand for.
    pub extended: Option<Arc<Extended>>,
    /// The key of the PodGroup it is one of.
    pub group: Option<Arc<str>>,
    /// The controller's kind and name, by which default spreading finds its selector.
    pub controller: Option<(Symbol, Symbol)>,
    pub deleting: bool,
    /// `status.startTime`, RFC 3339, which orders as text does; empty when it has not started.
    pub started: Box<str>,
    /// `status.nominatedNodeName`
    pub nominated: Option<Symbol>,
}

impl Pod {
    pub fn new(object: &Object, view: &PodView, specs: &mut Specs) -> Self {
        let meta = &object.meta;
        let nominated = &view.status.nominated_node_name;
        let extended = Extended::of(view, &specs.classes);
        let delegated = extended.as_ref().map(Extended::resources).unwrap_or_default();
        let spec = specs.of(view, delegated);
        let grouped = view.spec.scheduling_group.as_ref().filter(|_| spec.profile.has(Plugin::GangScheduling));
        Self {
            key: meta.key().into(),
            namespace: Symbol::of(&meta.namespace),
            uid: (&*meta.uid).into(),
            labels: Labels::new(meta.labels.iter().map(|(k, v)| (&**k, &**v))),
            spec,
            volumes: volumes(&view.spec),
            claims: claims(view),
            extended: extended.map(Arc::new),
            group: grouped
                .and_then(|g| g.pod_group_name.as_ref())
                .map(|name| meta::object::object_key(&meta.namespace, name).into()),
            controller: meta.controller().map(|o| (Symbol::of(&o.kind), Symbol::of(&o.name))),
            deleting: meta.deletion_timestamp.is_some(),
            started: view.status.start_time.clone(),
            nominated: (!nominated.is_empty()).then(|| Symbol::of(nominated)),
        }
    }

    /// Whether devices have a say in where it goes.
    pub fn wants_devices(&self) -> bool {
        !self.claims.is_empty() || self.extended.is_some()
    }

    /// Orders by when pods started; who has not yet comes last.
    pub fn begun(&self) -> (bool, &str) {
        (self.started.is_empty(), &self.started)
    }

    pub fn priority(&self) -> i32 {
        self.spec.priority
    }

    /// The key of the claim behind a volume.
    pub fn claim(&self, volume: &Volume) -> Option<String> {
        let (namespace, name) = meta::object::split_key(&self.key);
        match volume {
            Volume::Claim(claim) => Some(format!("{namespace}/{claim}")),
            Volume::Ephemeral(volume) => Some(format!("{namespace}/{name}-{volume}")),
            Volume::Inline(_) | Volume::Disk { .. } => None,
        }
    }
}
