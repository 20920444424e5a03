//! The parts of API objects the scheduler reads, decoded straight from an object's bytes.
//!
//! Only what is named here is parsed; all else is skipped, which makes this several times cheaper than the whole typed
//! object. Rare parts keep their `k8s-openapi` type. Nothing here outlives the conversion into the snapshot's own form.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Affinity, Toleration, TopologySpreadConstraint};
use serde::{Deserialize, Deserializer};

pub type Quantities = BTreeMap<Box<str>, Box<str>>;

/// Go clients write `null` for what is empty.
fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(d: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(d)?.unwrap_or_default())
}

macro_rules! view {
    ($(#[$about:meta])* $name:ident { $($(#[$field_about:meta])* $field:ident: $type:ty),* $(,)? }) => {
        $(#[$about])*
        #[derive(Debug, Default, Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        pub struct $name {
            $(#[serde(deserialize_with = "or_default")] $(#[$field_about])* pub $field: $type,)*
        }
    };
}

view!(/// `v1.Pod`, without its metadata.
    PodView { spec: PodSpecView, status: PodStatusView, });

view!(PodSpecView {
    node_name: Box<str>,
    scheduler_name: Box<str>,
    priority: i32,
    preemption_policy: Box<str>,
    scheduling_gates: Vec<NamedView>,
    containers: Vec<ContainerView>,
    init_containers: Vec<ContainerView>,
    overhead: Quantities,
    resources: ResourcesView,
    host_network: bool,
    host_users: Option<bool>,
    node_selector: BTreeMap<Box<str>, Box<str>>,
    affinity: Option<Affinity>,
    tolerations: Vec<Toleration>,
    topology_spread_constraints: Vec<TopologySpreadConstraint>,
    volumes: Vec<VolumeView>,
    resource_claims: Vec<PodClaimView>,
    scheduling_group: Option<GroupOfView>,
});

view!(NamedView { name: Box<str>, });

view!(ContainerView {
    name: Box<str>,
    image: Box<str>,
    restart_policy: Box<str>,
    restart_policy_rules: Vec<RuleView>,
    resources: ResourcesView,
    ports: Vec<PortView>,
});

view!(RuleView { action: Box<str>, });

view!(ResourcesView { requests: Quantities, limits: Quantities });

view!(PortView { container_port: i64, host_port: i64, protocol: Box<str>, #[serde(rename = "hostIP")] host_ip: Box<str>, });

view!(VolumeView {
    name: Box<str>,
    persistent_volume_claim: Option<ClaimView>,
    ephemeral: Option<IgnoredView>,
    csi: Option<CsiView>,
    gce_persistent_disk: Option<DiskView>,
    aws_elastic_block_store: Option<DiskView>,
    iscsi: Option<DiskView>,
    rbd: Option<DiskView>,
    image: Option<ImageVolumeView>,
});

view!(ClaimView { claim_name: Box<str>, });
view!(GroupOfView { pod_group_name: Option<Box<str>>, });
view!(PodClaimView {
    name: Box<str>,
    resource_claim_name: Option<Box<str>>,
    resource_claim_template_name: Option<Box<str>>,
});
view!(PodClaimStatusView { name: Box<str>, resource_claim_name: Option<Box<str>>, });
view!(ExtendedStatusView { resource_claim_name: Box<str>, });
view!(IgnoredView {});
view!(CsiView { driver: Box<str>, });
view!(ImageVolumeView { reference: Box<str>, });
view!(DiskView {
    pd_name: Box<str>,
    #[serde(rename = "volumeID")]
    volume_id: Box<str>,
    iqn: Box<str>,
    image: Box<str>,
    pool: Box<str>,
    monitors: Vec<Box<str>>,
    read_only: bool,
});

view!(PodStatusView {
    phase: Box<str>,
    nominated_node_name: Box<str>,
    start_time: Box<str>,
    conditions: Vec<ConditionView>,
    container_statuses: Vec<ContainerStatusView>,
    resource_claim_statuses: Vec<PodClaimStatusView>,
    extended_resource_claim_status: Option<ExtendedStatusView>,
    init_container_statuses: Vec<ContainerStatusView>,
});

view!(ConditionView {
    r#type: Box<str>,
    status: Box<str>,
    reason: Box<str>,
    message: Box<str>,
});

view!(ContainerStatusView { name: Box<str>, resources: ResourcesView, });

view!(/// `v1.Node`, without its metadata.
    NodeView { spec: NodeSpecView, status: NodeStatusView, });

view!(NodeSpecView { unschedulable: bool, taints: Vec<TaintView>, });
view!(TaintView { key: Box<str>, value: Box<str>, effect: Box<str>, });
view!(NodeStatusView { allocatable: Quantities, images: Vec<ImageView>, declared_features: Vec<Box<str>>, });
view!(ImageView { names: Vec<Box<str>>, size_bytes: i64, });
