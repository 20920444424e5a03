//! The static half of the kind table: every built-in resource of v1.37, a row a line or two.
//!
//! A row tells versions that are served by default from those that are not; [`Enablement`] has the last word.
//!
//! What can be derived from a row's few words (list kind, singular, prefix, schema name, subresource bodies) is derived.
//! Groups stand in the order discovery lists them. Behaviour and columns live with the kinds ([`crate::kinds`]).

use std::sync::Arc;

use meta::Gvk;
use meta::schema::{Node, Schema, Shape, Struct, TypeId, Types};

use crate::enablement::Enablement;
use crate::kinds::Kind;
use crate::kinds::*;
use crate::{
    Cell, Column, Resource, ResourceVersion, Selectable, SelectableValue, Strategy, Subresource, SubresourceKind, Verbs,
};

use SelectableValue::{At, AtOr, Either, Path, PathOr};

/// Events are forgotten after an hour, as upstream's `--event-ttl` has it.
const EVENT_TTL_SECONDS: u64 = 3600;

/// A subresource, in the row's words.
#[derive(Clone, Copy)]
enum Sub {
    Status,
    /// `autoscaling/v1 Scale` over `spec.replicas`, `status.replicas` and `spec.selector`.
    Scale,
    /// The same kind, under this name, with get, patch and update.
    Part(&'static str),
    /// The same kind, update only.
    Finalize,
    /// Name, and group, version and kind of the body.
    Action(&'static str, &'static str, &'static str, &'static str),
    /// Name, kind of the options, verbs.
    Connect(&'static str, &'static str, &'static [&'static str]),
}

const GET_PATCH_UPDATE: &[&str] = &["get", "patch", "update"];
const CREATE: &[&str] = &["create"];
const CREATE_GET: &[&str] = &["create", "get"];
const PROXIED: &[&str] = &["create", "delete", "get", "patch", "update"];

impl Sub {
    fn build(self, group: &str, version: &str, kind: &str) -> Subresource {
        let own = Gvk::new(group, version, kind);
        let (name, kind, body, verbs) = match self {
            Self::Status => ("status", SubresourceKind::Status, own, GET_PATCH_UPDATE),
            Self::Scale => {
                let kind = SubresourceKind::Scale {
                    spec_replicas: "spec.replicas".into(),
                    status_replicas: "status.replicas".into(),
                    selector: Some("spec.selector".into()),
                };
                ("scale", kind, Gvk::new("autoscaling", "v1", "Scale"), GET_PATCH_UPDATE)
            }
            Self::Part(name) => (name, SubresourceKind::Part, own, GET_PATCH_UPDATE),
            Self::Finalize => ("finalize", SubresourceKind::Part, own, &["update"][..]),
            Self::Action(name, g, v, k) => (name, SubresourceKind::Action, Gvk::new(g, v, k), CREATE),
            Self::Connect(name, k, verbs) => (name, SubresourceKind::Connect, Gvk::new("", "v1", k), verbs),
        };
        Subresource { name: name.into(), kind, body, verbs }
    }
}

/// One row, before it becomes a [`Resource`].
#[derive(Clone, Copy)]
struct Row {
    group: &'static str,
    kind: &'static str,
    plural: &'static str,
    namespaced: bool,
    /// Served by default, in order of preference.
    versions: &'static [&'static str],
    /// Served on demand, after those.
    off: &'static [&'static str],
    /// The feature gate without which the kind is not there.
    gate: Option<&'static str>,
    short: &'static [&'static str],
    categories: &'static [&'static str],
    verbs: Verbs,
    delete_returns_object: bool,
    /// Below `/registry/`, when it is not the plural.
    prefix: Option<&'static str>,
    subs: &'static [Sub],
    selectable: &'static [(&'static str, SelectableValue)],
    deprecation: Option<&'static str>,
    ttl_seconds: u64,
    strategy: fn() -> Arc<dyn Strategy>,
    columns: &'static str,
}

fn strategy<K: Kind>() -> Arc<dyn Strategy> {
    Arc::new(K::NEW)
}

/// A namespaced row at `v1`.
const fn row(group: &'static str, kind: &'static str, plural: &'static str) -> Row {
    Row {
        group,
        kind,
        plural,
        namespaced: true,
        versions: &["v1"],
        off: &[],
        gate: None,
        short: &[],
        categories: &[],
        verbs: Verbs::All,
        delete_returns_object: false,
        prefix: None,
        subs: &[],
        selectable: &[],
        deprecation: None,
        ttl_seconds: 0,
        strategy: strategy::<Plain>,
        columns: Plain::COLUMNS,
    }
}

/// A cluster-scoped row at `v1`.
const fn cluster(group: &'static str, kind: &'static str, plural: &'static str) -> Row {
    Row { namespaced: false, ..row(group, kind, plural) }
}

impl Row {
    const fn is<K: Kind>(self) -> Self {
        Self { strategy: strategy::<K>, columns: K::COLUMNS, ..self }
    }
    const fn versions(self, versions: &'static [&'static str], off: &'static [&'static str]) -> Self {
        Self { versions, off, ..self }
    }
    const fn off(self, off: &'static [&'static str]) -> Self {
        Self { off, ..self }
    }
    const fn behind(self, gate: &'static str) -> Self {
        Self { gate: Some(gate), ..self }
    }
    const fn short(self, short: &'static [&'static str]) -> Self {
        Self { short, ..self }
    }
    const fn all(self) -> Self {
        Self { categories: &["all"], ..self }
    }
    const fn extension(self) -> Self {
        Self { categories: &["api-extensions"], ..self }
    }
    const fn at(self, prefix: &'static str) -> Self {
        Self { prefix: Some(prefix), ..self }
    }
    const fn subs(self, subs: &'static [Sub]) -> Self {
        Self { subs, ..self }
    }
    const fn status(self) -> Self {
        self.subs(&[Sub::Status])
    }
    const fn selects(self, selectable: &'static [(&'static str, SelectableValue)]) -> Self {
        Self { selectable, ..self }
    }
    const fn deprecated(self, text: &'static str) -> Self {
        Self { deprecation: Some(text), ..self }
    }
    const fn verbs(self, verbs: Verbs) -> Self {
        Self { verbs, ..self }
    }
    const fn returned(self) -> Self {
        Self { delete_returns_object: true, ..self }
    }
    const fn review(self) -> Self {
        self.verbs(Verbs::CreateOnly)
    }
}

const ADMISSION: &str = "admissionregistration.k8s.io";
const AUTHN: &str = "authentication.k8s.io";
const AUTHZ: &str = "authorization.k8s.io";
const CERTIFICATES: &str = "certificates.k8s.io";
const FLOW: &str = "flowcontrol.apiserver.k8s.io";
const NETWORKING: &str = "networking.k8s.io";
const RBAC: &str = "rbac.authorization.k8s.io";
const RESOURCE: &str = "resource.k8s.io";
const SCHEDULING: &str = "scheduling.k8s.io";
const STORAGE: &str = "storage.k8s.io";

/// Earlier versions of devices' kinds.
const DEVICES_OFF: &[&str] = &["v1beta2", "v1beta1"];

/// Upstream takes this field in selectors, and finds nothing there.
const NOTHING: SelectableValue = At("-");

#[rustfmt::skip]
static ROWS: &[Row] = &[
    row("", "Binding", "bindings").review(),
    cluster("", "ComponentStatus", "componentstatuses").short(&["cs"]).verbs(Verbs::ReadOnly).is::<core::ComponentStatus>()
        .deprecated("v1 ComponentStatus is deprecated in v1.19+"),
    row("", "ConfigMap", "configmaps").short(&["cm"]).is::<core::ConfigMap>(),
    row("", "Endpoints", "endpoints").short(&["ep"]).at("services/endpoints").is::<core::Endpoints>()
        .deprecated("v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice"),
    Row { ttl_seconds: EVENT_TTL_SECONDS, ..row("", "Event", "events") }.short(&["ev"]).is::<events::CoreEvent>()
        // The stored form of both groups' rows; the other row lists the same fields in the same order.
        .selects(&[("involvedObject.kind", Path), ("involvedObject.namespace", Path), ("involvedObject.name", Path),
            ("involvedObject.uid", Path), ("involvedObject.apiVersion", Path), ("involvedObject.resourceVersion", Path),
            ("involvedObject.fieldPath", Path), ("reason", Path), ("reportingComponent", Path), ("type", Path),
            ("source", Either("source.component", "reportingComponent"))]),
    row("", "LimitRange", "limitranges").short(&["limits"]).is::<policy::LimitRange>(),
    cluster("", "Namespace", "namespaces").short(&["ns"]).verbs(Verbs::NoDeleteCollection).subs(&[Sub::Finalize, Sub::Status])
        .is::<core::Namespace>().selects(&[("status.phase", Path)]),
    cluster("", "Node", "nodes").short(&["no"]).at("minions").is::<node::Node>()
        .subs(&[Sub::Connect("proxy", "NodeProxyOptions", PROXIED), Sub::Status])
        .selects(&[("spec.unschedulable", PathOr("false"))]),
    row("", "PersistentVolumeClaim", "persistentvolumeclaims").returned().short(&["pvc"]).status().is::<volume::PersistentVolumeClaim>(),
    cluster("", "PersistentVolume", "persistentvolumes").returned().short(&["pv"]).status().is::<volume::PersistentVolume>(),
    row("", "Pod", "pods").returned().short(&["po"]).all().is::<pod::Pod>()
        .subs(&[Sub::Connect("attach", "PodAttachOptions", CREATE_GET), Sub::Action("binding", "", "v1", "Binding"),
            Sub::Part("ephemeralcontainers"), Sub::Action("eviction", "policy", "v1", "Eviction"),
            Sub::Connect("exec", "PodExecOptions", CREATE_GET), Sub::Connect("log", "Pod", &["get"]),
            Sub::Connect("portforward", "PodPortForwardOptions", CREATE_GET), Sub::Connect("proxy", "PodProxyOptions", PROXIED),
            Sub::Part("resize"), Sub::Status])
        .selects(&[("spec.nodeName", Path), ("spec.host", At("spec.nodeName")), ("spec.restartPolicy", Path),
            ("spec.schedulerName", Path), ("spec.serviceAccountName", Path), ("spec.hostNetwork", PathOr("false")),
            ("status.phase", Path), ("status.podIP", Path), ("status.podIPs", NOTHING), ("status.nominatedNodeName", Path)]),
    row("", "PodTemplate", "podtemplates").returned().is::<apps::PodTemplate>(),
    row("", "ReplicationController", "replicationcontrollers").short(&["rc"]).all().at("controllers")
        .subs(&[Sub::Scale, Sub::Status]).is::<apps::ReplicationController>().selects(&[("status.replicas", PathOr("0"))]),
    row("", "ResourceQuota", "resourcequotas").returned().short(&["quota"]).status().is::<policy::ResourceQuota>(),
    row("", "Secret", "secrets").is::<core::Secret>().selects(&[("type", Path)]),
    row("", "ServiceAccount", "serviceaccounts").returned().short(&["sa"]).is::<core::ServiceAccount>()
        .subs(&[Sub::Action("token", AUTHN, "v1", "TokenRequest")]),
    row("", "Service", "services").returned().short(&["svc"]).all().at("services/specs").is::<service::Service>()
        .subs(&[Sub::Connect("proxy", "ServiceProxyOptions", PROXIED), Sub::Status])
        .selects(&[("spec.clusterIP", Path), ("spec.type", Path)]),

    cluster("apiregistration.k8s.io", "APIService", "apiservices").extension().status()
        .at("apiregistration.k8s.io/apiservices").is::<extensions::ApiService>(),

    row("apps", "ControllerRevision", "controllerrevisions").is::<apps::ControllerRevision>(),
    row("apps", "DaemonSet", "daemonsets").short(&["ds"]).all().status().is::<daemon_set::DaemonSet>(),
    row("apps", "Deployment", "deployments").short(&["deploy"]).all().subs(&[Sub::Scale, Sub::Status]).is::<apps::Deployment>(),
    row("apps", "ReplicaSet", "replicasets").short(&["rs"]).all().subs(&[Sub::Scale, Sub::Status]).is::<apps::ReplicaSet>()
        .selects(&[("status.replicas", PathOr("0"))]),
    row("apps", "StatefulSet", "statefulsets").short(&["sts"]).all().subs(&[Sub::Scale, Sub::Status]).is::<stateful_set::StatefulSet>(),

    Row { ttl_seconds: EVENT_TTL_SECONDS, ..row("events.k8s.io", "Event", "events") }.short(&["ev"]).is::<events::Event>()
        .selects(&[("regarding.kind", At("involvedObject.kind")), ("regarding.namespace", At("involvedObject.namespace")),
            ("regarding.name", At("involvedObject.name")), ("regarding.uid", At("involvedObject.uid")),
            ("regarding.apiVersion", At("involvedObject.apiVersion")),
            ("regarding.resourceVersion", At("involvedObject.resourceVersion")),
            ("regarding.fieldPath", At("involvedObject.fieldPath")), ("reason", Path),
            ("reportingController", At("reportingComponent")), ("type", Path)]),

    cluster(AUTHN, "SelfSubjectReview", "selfsubjectreviews").review(),
    cluster(AUTHN, "TokenReview", "tokenreviews").review(),

    row(AUTHZ, "LocalSubjectAccessReview", "localsubjectaccessreviews").review(),
    cluster(AUTHZ, "SelfSubjectAccessReview", "selfsubjectaccessreviews").review(),
    cluster(AUTHZ, "SelfSubjectRulesReview", "selfsubjectrulesreviews").review(),
    cluster(AUTHZ, "SubjectAccessReview", "subjectaccessreviews").review(),

    row("autoscaling", "HorizontalPodAutoscaler", "horizontalpodautoscalers").versions(&["v2", "v1"], &[])
        .short(&["hpa"]).all().status().is::<autoscaling::HorizontalPodAutoscaler>(),

    row("batch", "CronJob", "cronjobs").short(&["cj"]).all().status().is::<batch::CronJob>(),
    row("batch", "Job", "jobs").all().status().is::<batch::Job>().selects(&[("status.successful", AtOr("status.succeeded", "0"))]),

    cluster(CERTIFICATES, "CertificateSigningRequest", "certificatesigningrequests").short(&["csr"])
        .subs(&[Sub::Part("approval"), Sub::Status]).is::<certificates::CertificateSigningRequest>()
        .selects(&[("spec.signerName", Path)]),
    cluster(CERTIFICATES, "ClusterTrustBundle", "clustertrustbundles").off(&["v1beta1"]).behind("ClusterTrustBundle").is::<certificates::ClusterTrustBundle>()
        .selects(&[("spec.signerName", Path)]),
    row(CERTIFICATES, "PodCertificateRequest", "podcertificaterequests").off(&["v1beta1"]).behind("PodCertificateRequest").status()
        .is::<pod_certificate::PodCertificateRequest>()
        .selects(&[("spec.signerName", Path), ("spec.podName", Path), ("spec.nodeName", Path)]),

    row(NETWORKING, "Ingress", "ingresses").short(&["ing"]).status().at("ingress").is::<networking::Ingress>(),
    cluster(NETWORKING, "IngressClass", "ingressclasses").is::<networking::IngressClass>(),
    cluster(NETWORKING, "IPAddress", "ipaddresses").short(&["ip"]).is::<networking::IpAddress>()
        .selects(&[("spec.parentRef.name", Path), ("spec.parentRef.namespace", Path), ("spec.parentRef.resource", Path)]),
    row(NETWORKING, "NetworkPolicy", "networkpolicies").short(&["netpol"]).is::<networking::NetworkPolicy>(),
    cluster(NETWORKING, "ServiceCIDR", "servicecidrs").status().is::<networking::ServiceCidr>(),

    row("policy", "PodDisruptionBudget", "poddisruptionbudgets").short(&["pdb"]).status().is::<policy::PodDisruptionBudget>(),

    cluster(RBAC, "ClusterRoleBinding", "clusterrolebindings").is::<rbac::ClusterRoleBinding>(),
    cluster(RBAC, "ClusterRole", "clusterroles").is::<rbac::ClusterRole>(),
    row(RBAC, "RoleBinding", "rolebindings").is::<rbac::RoleBinding>(),
    row(RBAC, "Role", "roles").is::<rbac::Role>(),

    cluster(STORAGE, "CSIDriver", "csidrivers").returned().is::<storage::CsiDriver>(),
    cluster(STORAGE, "CSINode", "csinodes").returned().is::<storage::CsiNode>(),
    row(STORAGE, "CSIStorageCapacity", "csistoragecapacities").is::<storage::CsiStorageCapacity>(),
    cluster(STORAGE, "StorageClass", "storageclasses").returned().short(&["sc"]).is::<storage::StorageClass>(),
    cluster(STORAGE, "VolumeAttachment", "volumeattachments").returned().status().is::<storage::VolumeAttachment>(),
    cluster(STORAGE, "VolumeAttributesClass", "volumeattributesclasses").returned().short(&["vac"]).is::<storage::VolumeAttributesClass>(),

    cluster(ADMISSION, "MutatingAdmissionPolicy", "mutatingadmissionpolicies").off(&["v1beta1", "v1alpha1"]).behind("MutatingAdmissionPolicy")
        .extension().is::<admission::MutatingPolicy>(),
    cluster(ADMISSION, "MutatingAdmissionPolicyBinding", "mutatingadmissionpolicybindings").off(&["v1beta1", "v1alpha1"]).behind("MutatingAdmissionPolicy")
        .extension().is::<admission::PolicyBinding>(),
    cluster(ADMISSION, "MutatingWebhookConfiguration", "mutatingwebhookconfigurations").extension().is::<admission::Webhooks>(),
    cluster(ADMISSION, "ValidatingAdmissionPolicy", "validatingadmissionpolicies").extension().status()
        .is::<admission::ValidatingPolicy>(),
    cluster(ADMISSION, "ValidatingAdmissionPolicyBinding", "validatingadmissionpolicybindings").extension()
        .is::<admission::PolicyBinding>(),
    cluster(ADMISSION, "ValidatingWebhookConfiguration", "validatingwebhookconfigurations").extension().is::<admission::Webhooks>(),

    cluster("apiextensions.k8s.io", "CustomResourceDefinition", "customresourcedefinitions").short(&["crd", "crds"]).extension()
        .status().at("apiextensions.k8s.io/customresourcedefinitions").is::<extensions::CustomResourceDefinition>(),

    row(SCHEDULING, "CompositePodGroup", "compositepodgroups").versions(&[], &["v1alpha3"]).behind("CompositePodGroup").status(),
    row(SCHEDULING, "PodGroup", "podgroups").versions(&[], &["v1beta1", "v1alpha3"]).behind("GenericWorkload").status(),
    cluster(SCHEDULING, "PriorityClass", "priorityclasses").short(&["pc"]).is::<scheduling::PriorityClass>(),
    row(SCHEDULING, "Workload", "workloads").versions(&[], &["v1beta1", "v1alpha3"]).behind("GenericWorkload"),

    row("coordination.k8s.io", "Lease", "leases").is::<scheduling::Lease>(),
    row("coordination.k8s.io", "LeaseCandidate", "leasecandidates").versions(&[], &["v1beta1", "v1alpha2"])
        .behind("CoordinatedLeaderElection").is::<scheduling::LeaseCandidate>(),

    row("lifecycle.k8s.io", "Eviction", "evictions").versions(&[], &["v1alpha1"]).behind("EvictionRequestAPI").status(),
    row("lifecycle.k8s.io", "EvictionRequest", "evictionrequests").versions(&[], &["v1alpha1"]).behind("EvictionRequestAPI").status(),

    cluster("node.k8s.io", "RuntimeClass", "runtimeclasses").is::<node::RuntimeClass>(),

    row("discovery.k8s.io", "EndpointSlice", "endpointslices").is::<discovery::EndpointSlice>(),

    cluster(FLOW, "FlowSchema", "flowschemas").status().is::<flowcontrol::FlowSchema>(),
    cluster(FLOW, "PriorityLevelConfiguration", "prioritylevelconfigurations").status().is::<flowcontrol::PriorityLevel>(),

    cluster(RESOURCE, "DeviceClass", "deviceclasses").off(DEVICES_OFF).returned().is::<resource::DeviceClass>(),
    cluster(RESOURCE, "DeviceTaintRule", "devicetaintrules").off(&["v1beta2", "v1alpha3"]).behind("DRADeviceTaintRules")
        .returned().status().is::<resource::DeviceTaintRule>(),
    row(RESOURCE, "ResourceClaim", "resourceclaims").off(DEVICES_OFF).returned().status().is::<resource::ResourceClaim>(),
    row(RESOURCE, "ResourceClaimTemplate", "resourceclaimtemplates").off(DEVICES_OFF).returned()
        .is::<resource::ResourceClaimTemplate>(),
    cluster(RESOURCE, "ResourcePoolStatusRequest", "resourcepoolstatusrequests").versions(&[], &["v1alpha3"])
        .behind("DRAResourcePoolStatus").status(),
    cluster(RESOURCE, "ResourceSlice", "resourceslices").off(DEVICES_OFF).returned().is::<resource::ResourceSlice>()
        .selects(&[("spec.nodeName", Path), ("spec.driver", Path)]),

    // Computed from what kubelets say; the plurals are upstream's, though other kinds have them too.
    cluster("metrics.k8s.io", "NodeMetrics", "nodes").versions(&["v1beta1"], &[]).verbs(Verbs::ReadOnly),
    row("metrics.k8s.io", "PodMetrics", "pods").versions(&["v1beta1"], &[]).verbs(Verbs::ReadOnly),

    cluster("internal.apiserver.k8s.io", "StorageVersion", "storageversions").versions(&[], &["v1alpha1"]).status()
        .is::<extensions::StorageVersion>(),

    cluster("storagemigration.k8s.io", "StorageVersionMigration", "storageversionmigrations").off(&["v1beta1"])
        .behind("StorageVersionMigrator").status(),
];

/// Versions served on demand that are deprecated: since which minor version, and from which on they are gone.
const GOING: &[(&str, &str, u32, u32)] = &[
    (ADMISSION, "v1alpha1", 35, 38),
    (ADMISSION, "v1beta1", 37, 40),
    (CERTIFICATES, "v1beta1", 37, 40),
    ("coordination.k8s.io", "v1alpha2", 35, 38),
    ("coordination.k8s.io", "v1beta1", 36, 39),
    (RESOURCE, "v1beta1", 35, 38),
    (RESOURCE, "v1beta2", 36, 39),
    ("storagemigration.k8s.io", "v1beta1", 37, 40),
];

/// The warning each request for a deprecated version gets.
fn going(group: &str, version: &str, kind: &str) -> Option<Arc<str>> {
    let (.., since, until) = GOING.iter().find(|(g, v, ..)| *g == group && *v == version)?;
    Some(format!("{group}/{version} {kind} is deprecated in v1.{since}+, unavailable in v1.{until}+").into())
}

/// The OpenAPI name of a built-in kind.
fn schema_name(group: &str, version: &str, kind: &str) -> String {
    match group {
        "" => format!("io.k8s.api.core.{version}.{kind}"),
        "apiextensions.k8s.io" => format!("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.{version}.{kind}"),
        "internal.apiserver.k8s.io" => format!("io.k8s.api.apiserverinternal.{version}.{kind}"),
        "apiregistration.k8s.io" => format!("io.k8s.kube-aggregator.pkg.apis.apiregistration.{version}.{kind}"),
        _ => format!("io.k8s.api.{}.{version}.{kind}", group.split('.').next().unwrap_or(group)),
    }
}

/// Stands in for a kind the facts do not know: an object that keeps whatever it is given.
fn unknown() -> Schema {
    let root = Node::from(Shape::Struct(Struct { preserve_unknown: true, ..Struct::default() }));
    Schema { types: Arc::new(Types { nodes: vec![root], ..Types::default() }), root: TypeId(0) }
}

/// Reads the columns' notation: names apart by `|`, a trailing `*` for wide output only, a trailing `#` for an integer, a trailing
/// `?` for a boolean.
pub fn columns(notation: &str) -> Arc<[Column]> {
    let column = |text: &str| {
        let (text, priority) = text.strip_suffix('*').map_or((text, 0), |t| (t, 1));
        let (name, kind) = match (text.strip_suffix('#'), text.strip_suffix('?')) {
            (Some(name), _) => (name, "integer"),
            (_, Some(name)) => (name, "boolean"),
            _ => (text, "string"),
        };
        let (kind, format, description) = match name {
            "Name" => (kind, "name", "The object's name, unique for its kind in its namespace."),
            "Created At" => ("date", "", "When the object was created."),
            "Age" => (kind, "", "Time since the object was created."),
            _ => (kind, "", ""),
        };
        Column {
            name: name.into(),
            kind: kind.into(),
            format: format.into(),
            description: description.into(),
            priority,
            cell: Cell::Built,
        }
    };
    notation.split('|').map(column).collect()
}

impl Row {
    fn build(&self, types: &Arc<Types>, enabled: &Enablement) -> Resource {
        let arcs = |texts: &[&str]| texts.iter().map(|t| Arc::from(*t)).collect();
        let columns = columns(self.columns);
        let names = || self.versions.iter().chain(self.off);
        let stored_version = names().next().copied().unwrap_or_default();
        let version = |name: &&str| ResourceVersion {
            name: (*name).into(),
            served: enabled.serves(self.group, name, self.plural, self.gate, self.versions.contains(name)),
            deprecation: self.deprecation.map(Into::into).or_else(|| going(self.group, name, self.kind)),
            schema: match types.names.get(schema_name(self.group, name, self.kind).as_str()) {
                Some(root) => Schema { types: types.clone(), root: *root },
                None => unknown(),
            },
            columns: columns.clone(),
            published: None,
            selectable: Arc::default(),
        };
        let stored = matches!(self.verbs, Verbs::All | Verbs::NoDeleteCollection);
        Resource {
            group: self.group.into(),
            kind: self.kind.into(),
            list_kind: format!("{}List", self.kind).into(),
            plural: self.plural.into(),
            singular: self.kind.to_lowercase().into(),
            short_names: arcs(self.short),
            categories: arcs(self.categories),
            namespaced: self.namespaced,
            versions: names().map(version).collect(),
            storage: 0,
            prefix: if stored { format!("/registry/{}", self.prefix.unwrap_or(self.plural)).into() } else { "".into() },
            verbs: self.verbs,
            subresources: self.subs.iter().map(|s| s.build(self.group, stored_version, self.kind)).collect(),
            selectable: self
                .selectable
                .iter()
                .map(|(name, value)| Selectable { name: (*name).into(), value: value.clone() })
                .collect(),
            strategy: (self.strategy)(),
            custom: false,
            delete_returns_object: self.delete_returns_object,
            ttl_seconds: self.ttl_seconds,
        }
    }
}

/// Every built-in resource that is served in any version, its schemas taken from `types`.
pub fn table(types: &Arc<Types>, enabled: &Enablement) -> Vec<Resource> {
    ROWS.iter().map(|row| row.build(types, enabled)).filter(|r| r.versions.iter().any(|v| v.served)).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn rows() -> Vec<Resource> {
        table(&Arc::new(Types::default()), &Enablement::default())
    }

    #[test]
    fn names_prefixes_and_selectors_are_upstreams() {
        let rows = rows();
        let mut seen = HashSet::new();
        for row in &rows {
            assert!(seen.insert((row.group.clone(), row.plural.clone())), "{} twice", row.plural);
        }
        let check = |group: &str, plural: &str, key: &str| {
            let row = rows.iter().find(|r| &*r.group == group && &*r.plural == plural).unwrap();
            assert_eq!(row.key("ns", "x"), key, "{plural}");
        };
        check("", "pods", "/registry/pods/ns/x");
        check("", "services", "/registry/services/specs/ns/x");
        check("", "endpoints", "/registry/services/endpoints/ns/x");
        check("", "nodes", "/registry/minions/x");
        check("", "replicationcontrollers", "/registry/controllers/ns/x");
        check("apps", "deployments", "/registry/deployments/ns/x");
        check("networking.k8s.io", "ingresses", "/registry/ingress/ns/x");
        check("events.k8s.io", "events", "/registry/events/ns/x");
        check(
            "apiextensions.k8s.io",
            "customresourcedefinitions",
            "/registry/apiextensions.k8s.io/customresourcedefinitions/x",
        );
        check("apiregistration.k8s.io", "apiservices", "/registry/apiregistration.k8s.io/apiservices/x");
    }

    /// Everything, whatever its default.
    fn all() -> Vec<Resource> {
        let gates = crate::gates::known().filter(|g| !g.locked).map(|g| (g.name.to_string(), true));
        let gates = crate::gates::Gates::new(gates).unwrap();
        let types = meta::schema::builtin();
        table(types, &Enablement::new(["api/all=true"], gates).unwrap())
    }

    #[test]
    fn rows_off_by_default_are_served_on_demand() {
        let served = |rows: Vec<Resource>| -> Vec<String> {
            let of = |r: &Resource| {
                let named = |v: &ResourceVersion| format!("{}/{}/{}", r.group, v.name, r.plural);
                r.versions.iter().filter(|v| v.served).map(named).collect::<Vec<_>>()
            };
            rows.iter().flat_map(of).collect()
        };
        let usual = served(table(meta::schema::builtin(), &Enablement::default()));
        let on_demand: Vec<String> = served(all()).into_iter().filter(|name| !usual.contains(name)).collect();
        assert_eq!(ROWS.iter().map(|row| row.off.len()).sum::<usize>(), on_demand.len());
        assert!(on_demand.contains(&"scheduling.k8s.io/v1beta1/podgroups".into()));
        assert!(usual.iter().all(|name| !name.contains("alpha")));
    }

    #[test]
    fn the_two_events_rows_share_fields_in_order() {
        let rows = rows();
        let of = |group: &str| rows.iter().find(|r| &*r.group == group && &*r.plural == "events").unwrap();
        let body = serde_json::json!({"involvedObject": {"kind": "Pod", "name": "a"}, "reason": "r", "type": "Normal",
            "reportingComponent": "kubelet", "source": {}});
        let core = of("").select_fields(&body);
        let events = of("events.k8s.io").select_fields(&body);
        assert_eq!(core[..events.len()], events[..]);
        assert_eq!(&*core[core.len() - 1], "kubelet");
    }

    #[test]
    fn every_row_has_its_schema() {
        // The metrics kinds are computed and read only: no proto of `kubernetes/api` has them.
        for row in all().iter().filter(|row| &*row.group != "metrics.k8s.io") {
            for version in &row.versions {
                let Shape::Struct(root) = version.schema.root().shape() else { panic!("{} is no struct", row.kind) };
                assert!(!root.preserve_unknown && !root.fields.is_empty(), "{} {}: no facts", row.kind, version.name);
            }
        }
    }

    #[test]
    fn every_row_has_a_cell_for_each_column() {
        for row in rows() {
            let cells = row.strategy.table_row(&serde_json::json!({"metadata": {"name": "x"}}), "2026-01-01T00:00:00Z");
            assert_eq!(cells.len(), row.versions[0].columns.len(), "{}", row.kind);
        }
    }

    /// A small deterministic source of choices.
    struct Dice(u64);

    impl Dice {
        fn roll(&mut self, sides: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (self.0 >> 33) % sides
        }
    }

    /// A value of the right shape or, now and then, of another.
    fn invent(view: meta::schema::View<'_>, depth: u32, dice: &mut Dice) -> meta::Value {
        use serde_json::json;
        const SCALARS: usize = 12;
        let scalars: [meta::Value; SCALARS] = [
            json!(null),
            json!(""),
            json!("a"),
            json!("Always"),
            json!("é/:*=="),
            json!(-1),
            json!(0),
            json!(65536),
            json!(true),
            json!(false),
            json!([]),
            json!({}),
        ];
        let scalar = |dice: &mut Dice| scalars[dice.roll(SCALARS as u64) as usize].clone();
        if depth == 0 || dice.roll(12) == 0 {
            return scalar(dice);
        }
        match view.shape() {
            Shape::Struct(of) => {
                let mut fields = serde_json::Map::new();
                for f in of.fields.iter() {
                    if dice.roll(4) != 0 {
                        fields.insert(f.name.to_string(), invent(view.of(f), depth - 1, dice));
                    }
                }
                meta::Value::Object(fields)
            }
            Shape::Map { .. } => {
                json!({"a": view.child("a").map_or(json!("b"), |v| invent(v, depth - 1, dice)), "": "x"})
            }
            Shape::List { .. } => {
                (0..dice.roll(3)).filter_map(|_| Some(invent(view.item()?, depth - 1, dice))).collect()
            }
            _ => scalar(dice),
        }
    }

    #[test]
    fn no_strategy_falls_over_what_clients_send() {
        let mut dice = Dice(1);
        for row in all() {
            let root = row.storage_version().schema.root();
            for subresource in ["", "status", "approval", "finalize", "resize", "ephemeralcontainers"] {
                for _ in 0..20 {
                    let cx = crate::Context { subresource, ..crate::Context::SOMEBODY };
                    let (mut object, old) = (invent(root, 9, &mut dice), invent(root, 9, &mut dice));
                    if !object.is_object() || !old.is_object() {
                        continue;
                    }
                    let strategy = &row.strategy;
                    strategy.default(&mut object);
                    strategy.prepare_update(&cx, &mut object, &old);
                    strategy.validate_update(&cx, &object, &old);
                    crate::metadata::validate(&object, row.namespaced);
                    crate::metadata::validate_update(&object, &old);
                    strategy.prepare_create(&cx, &mut object);
                    strategy.validate_create(&cx, &object);
                    strategy.prepare_delete(&mut object);
                    strategy.warnings(&object);
                    strategy.deletion(&object, Some(-1));
                    strategy.held(&object);
                    assert_eq!(strategy.table_row(&object, cx.now).len(), row.versions[0].columns.len());
                    for (from, to) in
                        [("v1", "v2"), ("v2", "v1"), ("v1", "events.k8s.io/v1"), ("events.k8s.io/v1", "v1")]
                    {
                        assert!(strategy.convert(&mut object, from, to).is_ok());
                    }
                    row.select_fields(&object);
                }
            }
        }
    }

    #[test]
    fn defaults_are_filled_in_once() {
        let mut dice = Dice(2);
        for row in all() {
            for _ in 0..20 {
                let mut object = invent(row.storage_version().schema.root(), 9, &mut dice);
                if object.is_object() {
                    row.strategy.default(&mut object);
                    let once = object.clone();
                    row.strategy.default(&mut object);
                    assert_eq!(object, once, "{}", row.kind);
                }
            }
        }
    }

    #[test]
    fn columns_are_read_from_their_notation() {
        let read = columns("Name|Ready#|Node*");
        assert_eq!((&*read[0].format, &*read[1].kind, read[2].priority), ("name", "integer", 1));
    }
}
