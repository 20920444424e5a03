//! All NetworkPolicies, the pods and the namespaces, and what of the table each is responsible for.
//!
//! A policy is one fragment of the table ([`Policy::compile`]), a pod another: the pod's addresses in the sets of the
//! selectors that select it and, on its own node, its way to the chain of its policies. So a pod's change costs a look at
//! each distinct selector, not at the other pods. Traffic to and from the node a pod runs on is never judged, as
//! Kubernetes has it; what comes back to the pod it left from neither.
//!
//! It does not know how objects arrive: [`Policies`] is told of changes and says which fragments to compile again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::Family;
use crate::fragment::Fragment;
use crate::map::{Element, Value, Verdict};
use crate::policy::{Direction, Labels, Namespaces, Pod, PodPeer, Policy, named_set, of_pods, selects};
use crate::service::Protocol;

/// Fragments of policies and pods have these before `namespace/name`; no Service's key has a space.
const POLICY: &str = "policy ";
const POD: &str = "pod ";

/// Whether a fragment's key is a Service's.
pub fn is_service(key: &str) -> bool {
    !key.contains(' ')
}

/// Everything policies are made of.
#[derive(Clone, Debug, Default)]
pub struct Policies {
    pods: BTreeMap<String, Pod>,
    namespaces: BTreeMap<String, Labels>,
    policies: BTreeMap<String, Policy>,
    /// By the names of their sets, with the number of policies that mention them.
    peers: BTreeMap<u64, (PodPeer, usize)>,
    named_ports: BTreeMap<u64, (Protocol, String, usize)>,
    dirty: BTreeSet<String>,
}

impl Policies {
    pub fn is_empty(&self) -> bool {
        self.policies.is_empty()
    }

    pub fn set_pod(&mut self, key: &str, pod: Option<Pod>) {
        if self.pods.get(key) == pod.as_ref() {
            return;
        }
        match pod {
            Some(pod) => self.pods.insert(key.to_string(), pod),
            None => self.pods.remove(key),
        };
        self.dirty.insert(format!("{POD}{key}"));
    }

    pub fn set_namespace(&mut self, name: &str, labels: Option<Labels>) {
        if self.namespaces.get(name) == labels.as_ref() {
            return;
        }
        match labels {
            Some(labels) => self.namespaces.insert(name.to_string(), labels),
            None => self.namespaces.remove(name),
        };
        self.mark_pods(Some(name));
    }

    pub fn set_policy(&mut self, key: &str, policy: Option<Policy>) {
        if self.policies.get(key) == policy.as_ref() {
            return;
        }
        self.dirty.insert(format!("{POLICY}{key}"));
        let old = match &policy {
            Some(policy) => self.policies.insert(key.to_string(), policy.clone()),
            None => self.policies.remove(key),
        };
        let mut elsewhere = false;
        for policy in [&old, &policy].into_iter().flatten() {
            elsewhere |= policy.pod_peers().any(|peer| matches!(peer.namespaces, Namespaces::Matching(_)))
                || policy.named_ports().next().is_some();
            let namespace = policy.namespace.clone();
            self.mark_pods(Some(&namespace));
        }
        for peer in policy.iter().flat_map(Policy::pod_peers) {
            self.peers.entry(peer.set()).or_insert_with(|| (peer.clone(), 0)).1 += 1;
        }
        for (protocol, name) in policy.iter().flat_map(Policy::named_ports) {
            let entry = self.named_ports.entry(named_set(protocol, name));
            entry.or_insert_with(|| (protocol, name.to_string(), 0)).2 += 1;
        }
        for peer in old.iter().flat_map(Policy::pod_peers) {
            if let Some(known) = self.peers.get_mut(&peer.set()) {
                known.1 -= 1;
            }
        }
        for (protocol, name) in old.iter().flat_map(Policy::named_ports) {
            if let Some(known) = self.named_ports.get_mut(&named_set(protocol, name)) {
                known.2 -= 1;
            }
        }
        self.peers.retain(|_, known| known.1 > 0);
        self.named_ports.retain(|_, known| known.2 > 0);
        if elsewhere {
            self.mark_pods(None);
        }
    }

    fn mark_pods(&mut self, namespace: Option<&str>) {
        let wanted = self.pods.iter().filter(|(_, pod)| namespace.is_none_or(|name| pod.namespace == name));
        self.dirty.extend(wanted.map(|(key, _)| format!("{POD}{key}")));
    }

    /// The keys of fragments to compile again; asked once.
    pub fn take_dirty(&mut self) -> BTreeSet<String> {
        std::mem::take(&mut self.dirty)
    }

    /// The keys of all fragments.
    pub fn keys(&self) -> impl Iterator<Item = String> {
        let policies = self.policies.keys().map(|key| format!("{POLICY}{key}"));
        policies.chain(self.pods.keys().map(|key| format!("{POD}{key}")))
    }

    /// The fragment behind a key; `None` when there is nothing for it in the table.
    pub fn compile(&self, key: &str, family: Family) -> Option<Fragment> {
        if let Some(key) = key.strip_prefix(POLICY) {
            return Some(self.policies.get(key)?.compile(key, family));
        }
        let key = key.strip_prefix(POD)?;
        if self.policies.is_empty() {
            return None;
        }
        Some(self.compile_pod(self.pods.get(key)?, family)).filter(|fragment| *fragment != Fragment::default())
    }

    fn compile_pod(&self, pod: &Pod, family: Family) -> Fragment {
        let mut fragment = Fragment::default();
        let namespace = self.namespaces.get(&pod.namespace);
        for address in pod.addresses.iter().filter(|address| Family::of(**address) == family) {
            for (set, (peer, _)) in &self.peers {
                if peer.matches(pod, namespace) {
                    fragment.shared.insert(Element::Peer(*set, *address), Value::There);
                }
            }
            for (set, (protocol, name, _)) in &self.named_ports {
                for (_, _, number) in pod.ports.iter().filter(|(n, p, _)| n == name && p == protocol) {
                    fragment.shared.insert(Element::NamedPort(*set, *address, *number), Value::There);
                }
            }
            for direction in [Direction::In, Direction::Out].into_iter().filter(|_| pod.local) {
                let mut isolating = self
                    .in_namespace(&pod.namespace)
                    .filter(|(_, policy)| policy.isolates(direction) && selects(&policy.pods, &pod.labels))
                    .map(|(key, _)| key)
                    .peekable();
                if isolating.peek().is_none() {
                    continue;
                }
                let (chain, rules) = of_pods(isolating, direction);
                let chain: Arc<str> = chain.into();
                fragment.chains.insert(chain.clone(), rules);
                fragment.shared.insert(direction.leads(*address), Value::Verdict(Verdict::Goto(chain)));
            }
        }
        fragment
    }

    fn in_namespace<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = (&'a String, &'a Policy)> {
        let start = format!("{namespace}/");
        self.policies.range(start.clone()..).take_while(move |(key, _)| key.starts_with(&start))
    }
}
