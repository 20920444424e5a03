//! What kinds do beyond their schema: one file per group or large kind, strategy, columns and rules together.
//!
//! A [`Kind`] is a strategy with its columns. Cells are made in the order of the columns' notation
//! ([`crate::builtin::columns`]).

use meta::Value;

use crate::strategy::Strategy;

/// A built-in kind's behaviour and its table's columns.
pub trait Kind: Strategy + Sized {
    const NEW: Self;
    const COLUMNS: &'static str;
}

/// A kind whose schema says it all, printed by name and time.
pub struct Plain;

impl Kind for Plain {
    const NEW: Self = Self;
    const COLUMNS: &'static str = "Name|Created At";
}

impl Strategy for Plain {
    fn table_row(&self, object: &Value, _now: &str) -> Vec<Value> {
        vec![object["metadata"]["name"].clone(), object["metadata"]["creationTimestamp"].clone()]
    }
}

pub mod core {
    pub use super::{Plain as ComponentStatus, Plain as ConfigMap, Plain as Endpoints, Plain as Namespace, Plain as Secret, Plain as ServiceAccount};
}

pub mod events {
    pub use super::{Plain as CoreEvent, Plain as Event};
}

pub mod policy {
    pub use super::{Plain as LimitRange, Plain as ResourceQuota, Plain as PodDisruptionBudget};
}

pub mod node {
    pub use super::{Plain as Node, Plain as RuntimeClass};
}

pub mod storage {
    pub use super::{Plain as PersistentVolumeClaim, Plain as PersistentVolume, Plain as CsiDriver, Plain as CsiNode, Plain as CsiStorageCapacity, Plain as StorageClass, Plain as VolumeAttachment, Plain as VolumeAttributesClass};
}

pub mod pod {
    pub use super::Plain as Pod;
}

pub mod apps {
    pub use super::{Plain as PodTemplate, Plain as ReplicationController, Plain as ControllerRevision, Plain as DaemonSet, Plain as Deployment, Plain as ReplicaSet, Plain as StatefulSet};
}

pub mod service {
    pub use super::Plain as Service;
}

pub mod extensions {
    pub use super::{Plain as ApiService, Plain as CustomResourceDefinition};
}

pub mod autoscaling {
    pub use super::Plain as HorizontalPodAutoscaler;
}

pub mod batch {
    pub use super::{Plain as CronJob, Plain as Job};
}

pub mod certificates {
    pub use super::{Plain as CertificateSigningRequest, Plain as ClusterTrustBundle};
}

pub mod networking {
    pub use super::{Plain as Ingress, Plain as IngressClass, Plain as IpAddress, Plain as NetworkPolicy, Plain as ServiceCidr};
}

pub mod rbac {
    pub use super::{Plain as RoleBinding, Plain as ClusterRole, Plain as Role};
}

pub mod admission {
    pub use super::{Plain as MutatingPolicy, Plain as ValidatingPolicy, Plain as PolicyBinding, Plain as Webhooks};
}

pub mod scheduling {
    pub use super::{Plain as PriorityClass, Plain as Lease};
}

pub mod discovery {
    pub use super::Plain as EndpointSlice;
}

pub mod flowcontrol {
    pub use super::{Plain as FlowSchema, Plain as PriorityLevel};
}

pub mod resource {
    pub use super::{Plain as NameAge, Plain as ResourceClaim, Plain as ResourceSlice};
}
