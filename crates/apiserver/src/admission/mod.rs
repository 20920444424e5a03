//! Admission: what must be true of a write beyond its own schema.
//!
//! Built-in plugins in upstream's order, each in a file of its own. Mutating ones run first, then, on the prepared and
//! validated object, the validating ones.

mod always_pull_images;
pub(crate) mod amounts;
mod anti_affinity;
mod certificates;
pub mod configuration;
mod default_class;
pub mod default_tolerations;
mod extended_resources;
mod external_ips;
mod limit_ranger;
mod namespace_lifecycle;
mod node_restriction;
mod node_taint;
mod owner_references;
pub mod pod_security;
pub mod pod_topology;
pub mod policy;
pub mod policy_match;
pub mod policy_mutate;
pub mod policy_status;
#[cfg(test)]
mod policy_tests;
pub mod policy_validate;
mod priority;
mod rbac_escalation;
mod resource_quota;
mod runtime_class;
mod service_account;
pub mod service_address;
pub mod service_families;
mod storage_class;
mod storage_protection;
#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use async_trait::async_trait;
use meta::{Status, Value, Verb};

use crate::instruments::{self, Half};
use crate::pipeline::Target;
use crate::server::ApiServer;
use crate::webhook::admission as webhook;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Delete,
    Connect,
}

impl Operation {
    pub fn as_str(self) -> &'static str {
        match self {
            Operation::Create => "CREATE",
            Operation::Update => "UPDATE",
            Operation::Delete => "DELETE",
            Operation::Connect => "CONNECT",
        }
    }
}

/// What a plugin knows of the write.
pub struct Attributes<'a> {
    pub target: Target<'a>,
    pub operation: Operation,
    pub dry_run: bool,
}

impl<'a> Attributes<'a> {
    pub fn new(target: &Target<'a>, operation: Operation) -> Result<Self, Status> {
        Ok(Self { target: *target, operation, dry_run: target.dry_run()? })
    }

    /// The group and plural without a subresource: what most plugins look for.
    pub fn is(&self, group: &str, plural: &str) -> bool {
        self.target.request.subresource.is_empty() && self.target.group() == group && self.target.plural() == plural
    }

    pub fn creates(&self, group: &str, plural: &str) -> bool {
        self.operation == Operation::Create && self.is(group, plural)
    }

    pub fn updates(&self, group: &str, plural: &str) -> bool {
        self.operation == Operation::Update && self.is(group, plural)
    }

    /// A 403 in the words of this write's object.
    pub fn forbid(&self, name: &str, why: impl std::fmt::Display) -> Status {
        Status::forbidden(self.target.group(), self.target.plural(), name, why)
    }
}

/// What a plugin is asked about, besides the object.
#[derive(Clone, Copy)]
pub struct Write<'a> {
    pub server: &'a ApiServer,
    pub a: &'a Attributes<'a>,
    /// The object as it is stored; absent on creates.
    pub old: Option<&'a Value>,
}

/// One plugin.
#[async_trait]
pub trait Plugin: Send + Sync {
    /// Whether the write can matter to the plugin at all: a glance that spares most writes most plugins. What it lets
    /// through may still turn out not to matter.
    fn concerns(&self, server: &ApiServer, a: &Attributes<'_>) -> bool;

    async fn mutate(&self, _write: &Write<'_>, _object: &mut Value) -> Result<(), Status> {
        Ok(())
    }

    /// `object` is absent on deletes.
    async fn validate(&self, _write: &Write<'_>, _object: Option<&Value>) -> Result<(), Status> {
        Ok(())
    }
}

pub(crate) static NAMESPACE_LIFECYCLE: namespace_lifecycle::NamespaceLifecycle =
    namespace_lifecycle::NamespaceLifecycle::new();

/// A plugin and upstream's name of it; none where upstream does the same outside admission.
type Listed = (&'static str, &'static dyn Plugin);

/// Those that fill in.
pub(crate) static MUTATING: [Listed; 14] = [
    ("NamespaceLifecycle", &NAMESPACE_LIFECYCLE),
    ("LimitRanger", &limit_ranger::LimitRanger),
    ("ServiceAccount", &service_account::ServiceAccount),
    ("TaintNodesByCondition", &node_taint::TaintNodesByCondition),
    ("AlwaysPullImages", &always_pull_images::AlwaysPullImages),
    ("Priority", &priority::Priority),
    ("DefaultTolerationSeconds", &default_tolerations::DefaultTolerationSeconds),
    ("ExtendedResourceToleration", &extended_resources::ExtendedResourceToleration),
    ("DefaultStorageClass", &storage_class::DefaultStorageClass),
    ("StorageObjectInUseProtection", &storage_protection::StorageProtection),
    ("RuntimeClass", &runtime_class::RuntimeClass),
    ("DefaultIngressClass", &default_class::DefaultIngressClass),
    ("PodTopologyLabels", &pod_topology::PodTopologyLabels),
    ("", &service_address::ServiceAddress),
];

/// Those that judge.
pub(crate) static VALIDATING: [Listed; 16] = [
    ("NamespaceLifecycle", &NAMESPACE_LIFECYCLE),
    ("LimitPodHardAntiAffinityTopology", &anti_affinity::LimitPodHardAntiAffinityTopology),
    ("LimitRanger", &limit_ranger::LimitRanger),
    ("NodeRestriction", &node_restriction::NodeRestriction),
    ("AlwaysPullImages", &always_pull_images::AlwaysPullImages),
    ("PodSecurity", &pod_security::PodSecurity),
    ("Priority", &priority::Priority),
    ("OwnerReferencesPermissionEnforcement", &owner_references::OwnerReferencesPermission),
    ("PersistentVolumeClaimResize", &storage_class::PersistentVolumeClaimResize),
    ("RuntimeClass", &runtime_class::RuntimeClass),
    ("CertificateApproval", &certificates::Certificates),
    ("DenyServiceExternalIPs", &external_ips::DenyServiceExternalIps),
    ("", &rbac_escalation::RbacEscalation),
    ("ValidatingAdmissionPolicy", &policy_validate::ValidatingPolicies),
    ("ValidatingAdmissionWebhook", &webhook::ValidatingWebhooks),
    // Last: nothing refuses what has been charged.
    ("ResourceQuota", &resource_quota::ResourceQuota),
];

/// Plugins that are not asked, by their places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disabled {
    mutating: u32,
    validating: u32,
    policies: bool,
    webhooks: bool,
}

/// Names of plugins that fill in from outside the lists.
const OUTSIDE: [&str; 2] = ["MutatingAdmissionPolicy", "MutatingAdmissionWebhook"];
/// Upstream's plugins that are one here, or part of how every write is checked.
const WITHIN: [&str; 4] =
    ["CertificateSigning", "CertificateSubjectRestriction", "ClusterTrustBundleAttest", "PodTopologyLabels"];

/// Plugins that are asked only where somebody wants them.
const OPTIONAL: [&str; 5] = [
    "AlwaysPullImages",
    "DenyServiceExternalIPs",
    "ExtendedResourceToleration",
    "LimitPodHardAntiAffinityTopology",
    "OwnerReferencesPermissionEnforcement",
];

impl Default for Disabled {
    fn default() -> Self {
        Self::new([], [])
    }
}

impl Disabled {
    /// All plugins there are, by upstream's names.
    pub fn known() -> impl Iterator<Item = &'static str> {
        let listed = MUTATING.iter().chain(&VALIDATING).map(|(name, _)| *name).filter(|name| !name.is_empty());
        listed.chain(OUTSIDE).chain(WITHIN)
    }

    /// What is not asked where some are wanted besides the usual, and others not.
    pub fn new<'n>(wanted: impl IntoIterator<Item = &'n str>, not: impl IntoIterator<Item = &'n str>) -> Self {
        let wanted: Vec<&str> = wanted.into_iter().collect();
        let mut out = Self { mutating: 0, validating: 0, policies: false, webhooks: false };
        for name in OPTIONAL.into_iter().filter(|name| !wanted.contains(name)).chain(not) {
            let places = |list: &[Listed]| {
                list.iter().enumerate().filter(|(_, (n, _))| *n == name).fold(0, |bits, (at, _)| bits | 1 << at)
            };
            out.mutating |= places(&MUTATING);
            out.validating |= places(&VALIDATING);
            out.policies |= name == OUTSIDE[0];
            out.webhooks |= name == OUTSIDE[1];
        }
        out
    }
}

/// The mark a delete leaves is part of that delete, which was admitted as one.
fn is_mark(a: &Attributes<'_>) -> bool {
    a.operation == Operation::Update && matches!(a.target.request.verb, Verb::Delete | Verb::DeleteCollection)
}

pub async fn mutate(
    server: &ApiServer,
    a: &mut Attributes<'_>,
    object: &mut Value,
    old: Option<&Value>,
) -> Result<bool, Status> {
    if is_mark(a) {
        return Ok(false);
    }
    let began = Instant::now();
    let result = async {
        fill_in(server, a, object, old).await?;
        // Most clusters have neither.
        let disabled = server.config().settings.disabled_plugins;
        let policies = !disabled.policies && policy_mutate::any(server);
        let webhooks = !disabled.webhooks && webhook::any_mutating(server);
        if !policies && !webhooks {
            return Ok(false);
        }
        Box::pin(ask_others(server, a, object, old)).await
    };
    let result = result.await;
    instruments::step(Half::Admit, a.operation, result.is_err(), began.elapsed());
    result
}

/// All plugins that fill in, one after the other.
async fn fill_in(
    server: &ApiServer,
    a: &Attributes<'_>,
    object: &mut Value,
    old: Option<&Value>,
) -> Result<(), Status> {
    let write = Write { server, a, old };
    let mut began = Instant::now();
    let disabled = server.config().settings.disabled_plugins.mutating;
    for (at, (_, plugin)) in MUTATING.iter().enumerate().filter(|(at, _)| disabled & (1 << at) == 0) {
        if !plugin.concerns(server, a) {
            instruments::plugin(Half::Admit, at, a.operation, false, Duration::ZERO);
            continue;
        }
        let result = plugin.mutate(&write, object).await;
        let ended = Instant::now();
        instruments::plugin(Half::Admit, at, a.operation, result.is_err(), ended - began);
        began = ended;
        result?;
    }
    Ok(())
}

/// Whether what is written is shown to webhooks or expressions.
pub fn is_shown(server: &ApiServer) -> bool {
    const GROUP: &str = "admissionregistration.k8s.io";
    let asking = ["validatingwebhookconfigurations", "validatingadmissionpolicies"];
    policy_mutate::any(server)
        || webhook::any_mutating(server)
        || asking.iter().any(|plural| server.has_any(GROUP, plural))
}

/// Mutating policies and webhooks, and the plugins once more.
async fn ask_others(
    server: &ApiServer,
    a: &mut Attributes<'_>,
    object: &mut Value,
    old: Option<&Value>,
) -> Result<bool, Status> {
    let (mut policies, mut round) = (policy_mutate::Round::default(), webhook::Round::default());
    let disabled = server.config().settings.disabled_plugins;
    let by_policies = !disabled.policies && policies.run(server, a, object, old).await?;
    if disabled.webhooks {
        return if by_policies { fill_in(server, a, object, old).await.map(|()| true) } else { Ok(false) };
    }
    if !webhook::mutate(server, a, object, old, &mut round).await? && !by_policies {
        return Ok(false);
    }
    // What policies and webhooks changed is new to the plugins, and to webhooks that came before the one that changed it.
    fill_in(server, a, object, old).await?;
    if !disabled.policies {
        policies.again().run(server, a, object, old).await?;
    }
    webhook::mutate(server, a, object, old, &mut round.again()).await?;
    Ok(true)
}

pub async fn validate(
    server: &ApiServer,
    a: &Attributes<'_>,
    object: Option<&Value>,
    old: Option<&Value>,
) -> Result<(), Status> {
    if is_mark(a) {
        return Ok(());
    }
    let write = Write { server, a, old };
    let first = Instant::now();
    let (mut began, mut result) = (first, Ok(()));
    let disabled = server.config().settings.disabled_plugins.validating;
    for (at, (_, plugin)) in VALIDATING.iter().enumerate().filter(|(at, _)| disabled & (1 << at) == 0) {
        if !plugin.concerns(server, a) {
            instruments::plugin(Half::Validate, at, a.operation, false, Duration::ZERO);
            continue;
        }
        result = plugin.validate(&write, object).await;
        let ended = Instant::now();
        instruments::plugin(Half::Validate, at, a.operation, result.is_err(), ended - began);
        began = ended;
        if result.is_err() {
            break;
        }
    }
    instruments::step(Half::Validate, a.operation, result.is_err(), began - first);
    result
}
