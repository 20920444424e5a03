//! Follows NetworkPolicies and, from the first one on, Pods and Namespaces.
//!
//! A cluster without policies pays for one quiet watch. Until the first lists of pods and namespaces are in, the table
//! stays as it is: half of the pods in a set would shut the other half off.

use client::{Client, News, Reflector, Scope, gvr_of};
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::networking::v1::NetworkPolicy;

use crate::objects::read;
use crate::policies::Policies;
use crate::policy::{Pod, Policy};

/// What is followed, and what is known by it.
pub struct Watch {
    node: String,
    client: Client,
    policies: Reflector,
    complete: bool,
    pods: Option<Pods>,
    known: Policies,
}

struct Pods {
    pods: Reflector,
    namespaces: Reflector,
    complete: (bool, bool),
}

impl Watch {
    pub fn start(client: &Client, node: &str) -> Watch {
        Watch {
            node: node.to_string(),
            client: client.clone(),
            policies: Reflector::start(client, Scope::all(gvr_of::<NetworkPolicy>())),
            complete: false,
            pods: None,
            known: Policies::default(),
        }
    }

    /// When the first lists are in.
    pub async fn ready(&mut self) {
        while !self.complete || !self.is_whole() {
            self.changed().await;
        }
    }

    /// When there is something new, which has been taken in then.
    pub async fn changed(&mut self) {
        let taken = match &mut self.pods {
            None => Taken::Policies(self.policies.next().await),
            Some(Pods { pods, namespaces, .. }) => tokio::select! {
                news = self.policies.next() => Taken::Policies(news),
                news = pods.next() => Taken::Pods(news),
                news = namespaces.next() => Taken::Namespaces(news),
            },
        };
        match taken {
            Taken::Policies(Some(news)) => self.take_policies(news),
            Taken::Pods(Some(news)) => self.take_pods(news),
            Taken::Namespaces(Some(news)) => self.take_namespaces(news),
            // They have ended, and with them this process's part.
            _ => std::future::pending().await,
        }
        self.absorb();
    }

    /// Takes in everything that waits.
    pub fn absorb(&mut self) {
        while let Some(news) = self.policies.try_next() {
            self.take_policies(news);
        }
        if self.pods.is_none() && !self.known.is_empty() {
            self.pods = Some(Pods {
                pods: Reflector::start(&self.client, Scope::all(gvr_of::<core::Pod>())),
                namespaces: Reflector::start(&self.client, Scope::all(gvr_of::<core::Namespace>())),
                complete: (false, false),
            });
        }
        while let Some(news) = self.pods.as_mut().and_then(|pods| pods.pods.try_next()) {
            self.take_pods(news);
        }
        while let Some(news) = self.pods.as_mut().and_then(|pods| pods.namespaces.try_next()) {
            self.take_namespaces(news);
        }
    }

    fn is_whole(&self) -> bool {
        match &self.pods {
            None => self.known.is_empty(),
            Some(pods) => pods.complete == (true, true),
        }
    }

    /// What is known, once it is whole.
    pub fn known(&mut self) -> Option<&mut Policies> {
        self.is_whole().then_some(&mut self.known)
    }

    fn take_policies(&mut self, news: Vec<News>) {
        for one in news {
            match one {
                News::Put(object) => {
                    let policy = read::<NetworkPolicy>(&object);
                    self.known.set_policy(&object.meta.key(), policy.map(|policy| Policy::read(&policy)));
                }
                News::Gone(key) => self.known.set_policy(&key, None),
                News::Complete => self.complete = true,
            }
        }
    }

    fn take_pods(&mut self, news: Vec<News>) {
        for one in news {
            match one {
                News::Put(object) => {
                    let pod = read::<core::Pod>(&object);
                    self.known.set_pod(&object.meta.key(), pod.and_then(|pod| Pod::read(&pod, &self.node)));
                }
                News::Gone(key) => self.known.set_pod(&key, None),
                News::Complete => _ = self.pods.as_mut().map(|pods| pods.complete.0 = true),
            }
        }
    }

    fn take_namespaces(&mut self, news: Vec<News>) {
        for one in news {
            match one {
                News::Put(object) => {
                    let labels = object.meta.labels.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
                    self.known.set_namespace(&object.meta.name, Some(labels));
                }
                News::Gone(key) => self.known.set_namespace(&key, None),
                News::Complete => _ = self.pods.as_mut().map(|pods| pods.complete.1 = true),
            }
        }
    }
}

enum Taken {
    Policies(Option<Vec<News>>),
    Pods(Option<Vec<News>>),
    Namespaces(Option<Vec<News>>),
}
