//! Follows NetworkPolicies and, from the first one on, Pods and Namespaces.
//!
//! A cluster without policies pays for one quiet watch. Until the first lists of pods and namespaces are in, the table
//! stays as it is: half of the pods in a set would shut the other half off.

use std::collections::BTreeSet;
use std::sync::Arc;

use client::{Batch, Informer, Informers, Subscription};
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::networking::v1::NetworkPolicy;

use crate::objects::parse;
use crate::policies::Policies;
use crate::policy::{Labels, Pod, Policy};

/// What is followed, and what is known by it.
pub struct Watch {
    node: String,
    informers: Arc<Informers>,
    policies: Arc<Informer>,
    policy_changes: Subscription,
    pods: Option<Pods>,
    known: Policies,
}

struct Pods {
    pods: Arc<Informer>,
    pod_changes: Subscription,
    namespaces: Arc<Informer>,
    namespace_changes: Subscription,
    complete: bool,
}

impl Watch {
    pub fn start(informers: &Arc<Informers>, node: &str) -> Watch {
        let policies = informers.get::<NetworkPolicy>();
        Watch {
            node: node.to_string(),
            informers: informers.clone(),
            policy_changes: policies.subscribe(),
            policies,
            pods: None,
            known: Policies::default(),
        }
    }

    /// When the first lists are in.
    pub async fn ready(&mut self) {
        self.policies.synced().await;
        self.absorb();
        if let Some(pods) = &self.pods {
            tokio::join!(pods.pods.synced(), pods.namespaces.synced());
            self.absorb();
        }
    }

    /// When there is something new, which has been taken in then.
    pub async fn changed(&mut self) {
        let taken = match &mut self.pods {
            None => Taken::Policies(self.policy_changes.next().await),
            Some(Pods { pods, pod_changes, namespaces, namespace_changes, complete }) => tokio::select! {
                batch = self.policy_changes.next() => Taken::Policies(batch),
                batch = pod_changes.next() => Taken::Pods(batch),
                batch = namespace_changes.next() => Taken::Namespaces(batch),
                () = async { tokio::join!(pods.synced(), namespaces.synced()); }, if !*complete => Taken::Complete,
            },
        };
        match taken {
            Taken::Policies(Some(batch)) => self.take_policies(&batch),
            Taken::Pods(Some(batch)) => self.take_pods(&batch),
            Taken::Namespaces(Some(batch)) => self.take_namespaces(&batch),
            Taken::Complete => {}
            // The informers have ended, and with them this process's part.
            _ => std::future::pending().await,
        }
        self.absorb();
    }

    /// Takes in everything that waits.
    pub fn absorb(&mut self) {
        while let Some(batch) = self.policy_changes.try_next() {
            self.take_policies(&batch);
        }
        if self.pods.is_none() && !self.known.is_empty() {
            let (pods, namespaces) = (self.informers.get::<core::Pod>(), self.informers.get::<core::Namespace>());
            self.pods = Some(Pods {
                pod_changes: pods.subscribe(),
                namespace_changes: namespaces.subscribe(),
                pods,
                namespaces,
                complete: false,
            });
        }
        while let Some(batch) = self.pods.as_mut().and_then(|pods| pods.pod_changes.try_next()) {
            self.take_pods(&batch);
        }
        while let Some(batch) = self.pods.as_mut().and_then(|pods| pods.namespace_changes.try_next()) {
            self.take_namespaces(&batch);
        }
        if let Some(pods) = &mut self.pods {
            pods.complete |= pods.pods.has_synced() && pods.namespaces.has_synced();
        }
    }

    /// What is known, once it is whole.
    pub fn known(&mut self) -> Option<&mut Policies> {
        (self.known.is_empty() && self.pods.is_none() || self.pods.as_ref().is_some_and(|pods| pods.complete))
            .then_some(&mut self.known)
    }

    fn take_policies(&mut self, batch: &Batch) {
        for key in touched(batch, &self.policies, || self.known.policy_keys().cloned().collect()) {
            let object = self.policies.get(&key).and_then(|object| object.typed::<NetworkPolicy>().ok());
            self.known.set_policy(&key, object.map(|policy| Policy::read(&policy)));
        }
    }

    fn take_pods(&mut self, batch: &Batch) {
        let Some(source) = self.pods.as_ref().map(|pods| pods.pods.clone()) else { return };
        for key in touched(batch, &source, || self.known.pod_keys().cloned().collect()) {
            let object = source.get(&key).and_then(|object| parse::<core::Pod>(&object).ok());
            self.known.set_pod(&key, object.and_then(|pod| Pod::read(&pod, &self.node)));
        }
    }

    fn take_namespaces(&mut self, batch: &Batch) {
        let Some(source) = self.pods.as_ref().map(|pods| pods.namespaces.clone()) else { return };
        for key in touched(batch, &source, || self.known.namespace_names().cloned().collect()) {
            let labels = source.get(&key).map(|object| -> Labels {
                object.meta.labels.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
            });
            self.known.set_namespace(&key, labels);
        }
    }
}

enum Taken {
    Policies(Option<Batch>),
    Pods(Option<Batch>),
    Namespaces(Option<Batch>),
    Complete,
}

/// The keys a batch is about; after a resync all there are and all that were known.
fn touched(batch: &Batch, source: &Informer, known: impl Fn() -> Vec<String>) -> BTreeSet<String> {
    match batch {
        Batch::Changes(changes) => changes.iter().map(|change| change.key.to_string()).collect(),
        Batch::Resync => known().into_iter().chain(source.list(None).iter().map(|object| object.meta.key())).collect(),
    }
}
