//! Who decides, one after another: the first who is sure counts.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use super::abac::Policies;
use super::configuration::Configuration;
use super::webhook::Webhook;
use super::{Attributes, Decision};
use crate::authn::{MASTERS, User};
use crate::server::ApiServer;

/// One who may decide.
pub enum Authorizer {
    Node,
    Rbac,
    Abac(Policies),
    AlwaysAllow,
    AlwaysDeny,
    Webhook(Box<Webhook>),
}

impl Authorizer {
    /// As configurations name its type.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Node => "Node",
            Self::Rbac => "RBAC",
            Self::Abac(_) => "ABAC",
            Self::AlwaysAllow => "AlwaysAllow",
            Self::AlwaysDeny => "AlwaysDeny",
            Self::Webhook(_) => "Webhook",
        }
    }
}

/// An authorizer under its name, and how often it was the one.
pub struct Member {
    pub name: String,
    pub authorizer: Authorizer,
    allowed: AtomicU64,
    denied: AtomicU64,
}

impl Member {
    pub fn new(name: impl Into<String>, authorizer: Authorizer) -> Self {
        Self { name: name.into(), authorizer, allowed: AtomicU64::new(0), denied: AtomicU64::new(0) }
    }

    /// Labels and counts of its decisions.
    pub fn counts(&self) -> [(String, u64); 2] {
        let labels =
            |decision| format!("decision=\"{decision}\",name=\"{}\",type=\"{}\"", self.name, self.authorizer.kind());
        [("allowed", &self.allowed), ("denied", &self.denied)]
            .map(|(decision, count)| (labels(decision), count.load(Ordering::Relaxed)))
    }

    fn count(&self, decision: &Decision) {
        match decision {
            Decision::Allow(_) => self.allowed.fetch_add(1, Ordering::Relaxed),
            Decision::Deny(_) => self.denied.fetch_add(1, Ordering::Relaxed),
            Decision::NoOpinion(_) => return,
        };
    }
}

/// Members in order.
pub struct Chain(pub Vec<Member>);

impl Default for Chain {
    fn default() -> Self {
        Self(vec![Member::new("node", Authorizer::Node), Member::new("rbac", Authorizer::Rbac)])
    }
}

impl Chain {
    /// Whether another server may have to be asked.
    pub fn asks_others(&self) -> bool {
        self.0.iter().any(|member| matches!(member.authorizer, Authorizer::Webhook(_)))
    }

    /// What the members come to, each asked by `ask`.
    fn walk(mut said: impl Iterator<Item = Decision>) -> Decision {
        let mut reasons = Vec::new();
        let decided = said.find_map(|decision| match decision {
            Decision::NoOpinion(reason) => {
                reasons.extend((!reason.is_empty()).then_some(reason));
                None
            }
            decided => Some(decided),
        });
        decided.unwrap_or_else(|| Decision::NoOpinion(reasons.join("\n")))
    }

    fn local(&self, server: &ApiServer, user: &User, a: &Attributes<'_>, member: &Member) -> Option<Decision> {
        Some(match &member.authorizer {
            Authorizer::Node => server.node_authorizer().decide(server, user, a),
            Authorizer::Rbac => server.rbac().decide(server, user, a),
            Authorizer::Abac(policies) => policies.decide(user, a),
            Authorizer::AlwaysAllow => Decision::Allow(String::new()),
            Authorizer::AlwaysDeny => Decision::NoOpinion("Everything is forbidden.".into()),
            Authorizer::Webhook(_) => return None,
        })
    }

    /// Decides where nothing may be waited for: a webhook that has to be asked holds up this thread.
    pub fn decide(&self, server: &ApiServer, user: &User, a: &Attributes<'_>) -> Decision {
        Self::walk(self.0.iter().map(|member| {
            let decision = match &member.authorizer {
                Authorizer::Webhook(webhook) => {
                    tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(webhook.decide(user, a)))
                }
                _ => self.local(server, user, a, member).unwrap_or_else(|| Decision::NoOpinion(String::new())),
            };
            member.count(&decision);
            decision
        }))
    }

    /// The same where waiting is no harm.
    pub async fn ask(&self, server: &ApiServer, user: &User, a: &Attributes<'_>) -> Decision {
        let mut said = Vec::with_capacity(self.0.len());
        for member in &self.0 {
            let decision = match &member.authorizer {
                Authorizer::Webhook(webhook) => webhook.decide(user, a).await,
                _ => self.local(server, user, a, member).unwrap_or_else(|| Decision::NoOpinion(String::new())),
            };
            member.count(&decision);
            let sure = !matches!(decision, Decision::NoOpinion(_));
            said.push(decision);
            if sure {
                break;
            }
        }
        Self::walk(said.into_iter())
    }
}

/// The chain, which may be configured anew.
#[derive(Default)]
pub struct Authorization(RwLock<Arc<Chain>>);

impl Authorization {
    pub fn new(chain: Chain) -> Self {
        Self(RwLock::new(Arc::new(chain)))
    }

    pub fn chain(&self) -> Arc<Chain> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes up a changed document, which may change webhooks alone; else everything stays as it was.
    pub async fn reconfigure(&self, document: &[u8], local_types: &BTreeSet<String>) -> Result<(), String> {
        let opened = async {
            let parsed = Configuration::parse(document)?;
            if parsed.local_types() != *local_types {
                let said = parsed.local_types();
                return Err(format!("authorizers besides Webhook must stay {local_types:?}, not {said:?}"));
            }
            parsed.open().await
        };
        let opened = opened.await;
        crate::instruments::reloaded("authorization", opened.is_ok());
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(opened?);
        Ok(())
    }
}

/// Masters may do everything, whoever decides for others.
pub fn is_master(user: &User) -> bool {
    user.in_group(MASTERS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_who_is_sure_counts() {
        let no = |reason: &str| Decision::NoOpinion(reason.into());
        let (yes, never) = (Decision::Allow("y".into()), Decision::Deny("n".into()));
        for (said, expect) in [
            (vec![], no("")),
            (vec![no("a"), no(""), no("b")], no("a\nb")),
            (vec![no("a"), yes.clone(), never.clone()], yes.clone()),
            (vec![never.clone(), yes], never),
        ] {
            assert_eq!(Chain::walk(said.clone().into_iter()), expect, "{said:?}");
        }
    }
}
