//! From the informers into the snapshot and the queue.
//!
//! Each resource followed is a [`Source`]; its changes come as keys with the newest object. Nothing is kept here but the
//! keys seen, so that a subscriber that fell behind can tell what is gone.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use client::{Batch, Change, Client, Informer, Informers};
use futures::StreamExt;
use futures::stream::{BoxStream, SelectAll};
use k8s_openapi::api::apps::v1::{ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{
    Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, ReplicationController, Service,
};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::resource::v1::{DeviceClass, DeviceTaintRule, ResourceClaim, ResourceSlice};
use k8s_openapi::api::scheduling::v1beta1::PodGroup;
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, CSIStorageCapacity, StorageClass, VolumeAttachment};

/// How a server's list of its resources names taint rules.
const RULES: &[u8] = b"\"devicetaintrules\"";

/// A resource the scheduler follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    Pods,
    Nodes,
    Namespaces,
    Services,
    ReplicaSets,
    ReplicationControllers,
    StatefulSets,
    Claims,
    Volumes,
    Classes,
    CsiNodes,
    CsiDrivers,
    Capacities,
    Attachments,
    Budgets,
    DeviceClaims,
    DeviceClasses,
    DeviceSlices,
    DeviceTaintRules,
    PodGroups,
}

impl Source {
    pub const ALL: [Self; 20] = [
        Self::Pods,
        Self::Nodes,
        Self::Namespaces,
        Self::Services,
        Self::ReplicaSets,
        Self::ReplicationControllers,
        Self::StatefulSets,
        Self::Claims,
        Self::Volumes,
        Self::Classes,
        Self::CsiNodes,
        Self::CsiDrivers,
        Self::Capacities,
        Self::Attachments,
        Self::Budgets,
        Self::DeviceClaims,
        Self::DeviceClasses,
        Self::DeviceSlices,
        Self::DeviceTaintRules,
        Self::PodGroups,
    ];

    /// As upstream calls it where it tells of changes; pods on nodes have a name of their own.
    pub fn resource(self) -> &'static str {
        match self {
            Self::Pods => "UnscheduledPod",
            Self::Nodes => "Node",
            Self::Namespaces => "Namespace",
            Self::Services => "Service",
            Self::ReplicaSets => "apps/ReplicaSet",
            Self::ReplicationControllers => "ReplicationController",
            Self::StatefulSets => "apps/StatefulSet",
            Self::Claims => "PersistentVolumeClaim",
            Self::Volumes => "PersistentVolume",
            Self::Classes => "storage.k8s.io/StorageClass",
            Self::CsiNodes => "storage.k8s.io/CSINode",
            Self::CsiDrivers => "storage.k8s.io/CSIDriver",
            Self::Capacities => "storage.k8s.io/CSIStorageCapacity",
            Self::Attachments => "storage.k8s.io/VolumeAttachment",
            Self::Budgets => "policy/PodDisruptionBudget",
            Self::DeviceClaims => "resource.k8s.io/ResourceClaim",
            Self::DeviceClasses => "resource.k8s.io/DeviceClass",
            Self::DeviceSlices => "resource.k8s.io/ResourceSlice",
            Self::DeviceTaintRules => "resource.k8s.io/DeviceTaintRule",
            Self::PodGroups => "scheduling.k8s.io/PodGroup",
        }
    }
}

/// What not every API server has.
#[derive(Clone, Copy, Debug, Default)]
pub struct Served {
    /// `resource.k8s.io/v1`
    pub devices: bool,
    /// Its taint rules, which older servers have elsewhere.
    pub device_taint_rules: bool,
    /// `scheduling.k8s.io/v1beta1`
    pub groups: bool,
}

impl Served {
    /// Asks the server. One that does not answer has nothing.
    pub async fn of(client: &Client) -> Self {
        let has = async |path: &str| client.get_path(path).await.is_ok();
        let resources = client.get_path("/apis/resource.k8s.io/v1").await.ok();
        let rules = |list: &[u8]| list.windows(RULES.len()).any(|w| w == RULES);
        Self {
            devices: resources.is_some(),
            device_taint_rules: resources.as_deref().is_some_and(rules),
            groups: has("/apis/scheduling.k8s.io/v1beta1").await,
        }
    }
}

/// All of them, with their informers.
pub struct Sources {
    informers: Vec<(Source, Arc<Informer>)>,
    changes: SelectAll<BoxStream<'static, (Source, Batch)>>,
    seen: HashMap<Source, HashSet<Arc<str>>>,
}

impl Sources {
    pub fn new(informers: &Informers, served: Served) -> Self {
        use Source::*;
        let mut followed = vec![
            (Pods, informers.get::<Pod>()),
            (Nodes, informers.get::<Node>()),
            (Namespaces, informers.get::<Namespace>()),
            (Services, informers.get::<Service>()),
            (ReplicaSets, informers.get::<ReplicaSet>()),
            (ReplicationControllers, informers.get::<ReplicationController>()),
            (StatefulSets, informers.get::<StatefulSet>()),
            (Claims, informers.get::<PersistentVolumeClaim>()),
            (Volumes, informers.get::<PersistentVolume>()),
            (Classes, informers.get::<StorageClass>()),
            (CsiNodes, informers.get::<CSINode>()),
            (CsiDrivers, informers.get::<CSIDriver>()),
            (Capacities, informers.get::<CSIStorageCapacity>()),
            (Attachments, informers.get::<VolumeAttachment>()),
            (Budgets, informers.get::<PodDisruptionBudget>()),
        ];
        if served.devices {
            followed.extend([
                (DeviceClaims, informers.get::<ResourceClaim>()),
                (DeviceClasses, informers.get::<DeviceClass>()),
                (DeviceSlices, informers.get::<ResourceSlice>()),
            ]);
        }
        if served.device_taint_rules {
            followed.push((DeviceTaintRules, informers.get::<DeviceTaintRule>()));
        }
        if served.groups {
            followed.push((PodGroups, informers.get::<PodGroup>()));
        }
        Self { informers: followed, changes: SelectAll::new(), seen: HashMap::new() }
    }

    /// Waits until everything has been listed, and begins to listen.
    pub async fn listen(&mut self) {
        for (source, informer) in &self.informers {
            informer.synced().await;
            let source = *source;
            let changes = futures::stream::unfold(informer.subscribe(), move |mut subscription| async move {
                let batch = subscription.next().await?;
                Some(((source, batch), subscription))
            });
            self.changes.push(changes.boxed());
        }
    }

    /// Waits for changes; `None` once there will be no more.
    pub async fn next(&mut self) -> Option<(Source, Vec<Change>)> {
        let (source, batch) = self.changes.next().await?;
        let seen = self.seen.entry(source).or_default();
        let changes = match batch {
            Batch::Changes(mut changes) => {
                // Who came first is served first; changes come by key.
                changes.sort_by_key(|c| c.new.as_ref().map_or(0, |o| o.resource_version));
                changes
            }
            Batch::Resync => {
                let informer = self.informers.iter().find(|i| i.0 == source).map(|i| &i.1);
                let now = informer.map(|i| i.list(None)).unwrap_or_default();
                let mut gone = std::mem::take(seen);
                let mut changes = Vec::with_capacity(now.len());
                for object in now {
                    let key: Arc<str> = object.meta.key().into();
                    gone.remove(&key);
                    changes.push(Change { key, old: None, new: Some(object) });
                }
                changes.extend(gone.into_iter().map(|key| Change { key, old: None, new: None }));
                changes
            }
        };
        for change in &changes {
            match change.new {
                Some(_) => seen.insert(change.key.clone()),
                None => seen.remove(&change.key),
            };
        }
        Some((source, changes))
    }
}
