//! `Impersonate-User` and its kin: act as another, if allowed to.
//!
//! Follows KEP 5284. Constrained modes are tried first: each needs leave to act as that user, and leave to do this very
//! thing as anybody of that kind. The old way, where acting as another allows all that the other may do, comes last and is
//! as it always was. What is refused is told in the words of the first mode that applied.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::HeaderMap;
use meta::Status;

use super::{Asks, audited, route};
use crate::authn::{self, AUTHENTICATED, MASTERS, UNAUTHENTICATED, User, claims};
use crate::authz::{self, Attributes};
use crate::instruments;
use crate::server::ApiServer;

const EXTRA: &str = "impersonate-extra-";
const GROUP: &str = "authentication.k8s.io";
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
const ASSOCIATED_KEYS: &str = "authentication.kubernetes.io/associated-node-keys";
/// From so many groups or extras on, leave for all of them is looked for first.
const MANY: usize = 4;
const GATE: &str = "ConstrainedImpersonation";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// A service account's pod as the node it runs on.
    AssociatedNode,
    ArbitraryNode,
    ServiceAccount,
    /// Everybody else.
    UserInfo,
    Legacy,
}

const CONSTRAINED: [Mode; 4] = [Mode::AssociatedNode, Mode::ArbitraryNode, Mode::ServiceAccount, Mode::UserInfo];

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Self::AssociatedNode => "associated-node",
            Self::ArbitraryNode => "arbitrary-node",
            Self::ServiceAccount => "serviceaccount",
            Self::UserInfo => "user-info",
            Self::Legacy => "legacy",
        }
    }

    fn verb(self) -> String {
        if self == Self::Legacy { "impersonate".into() } else { format!("impersonate:{}", self.name()) }
    }

    /// Whether it is about this user at all.
    fn applies(self, wanted: &User, requestor: &User) -> bool {
        let name_alone = wanted.uid.is_empty() && wanted.groups.is_empty() && wanted.extra.is_empty();
        let node = node_of(&wanted.name);
        match self {
            Self::AssociatedNode => {
                let own = requestor.extra.get(NODE_NAME).map(Vec::as_slice);
                name_alone
                    && requestor.service_account().is_some()
                    && matches!((node, own), (Some(node), Some([own])) if own == node)
            }
            Self::ArbitraryNode => name_alone && node.is_some(),
            Self::ServiceAccount => name_alone && wanted.service_account().is_some(),
            Self::UserInfo => node.is_none() && wanted.service_account().is_none(),
            Self::Legacy => true,
        }
    }
}

fn node_of(user: &str) -> Option<&str> {
    user.strip_prefix("system:node:").filter(|name| meta::formats::dns_subdomain(name).is_empty())
}

/// Who is asked for, as the headers say it; nobody where they do not.
fn wanted(headers: &HeaderMap) -> Result<Option<User>, Status> {
    let texts = |name: &str| headers.get_all(name).iter().filter_map(|v| v.to_str().ok()).map(String::from);
    let one = |name: &str| texts(name).next().unwrap_or_default();
    let groups: Vec<String> = texts("impersonate-group").collect();
    let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (key, value) in headers {
        let (Some(key), Ok(value)) = (key.as_str().strip_prefix(EXTRA), value.to_str()) else { continue };
        extra.entry(route::decode(key).to_lowercase()).or_default().push(value.into());
    }
    let user = User { name: one("impersonate-user"), uid: one("impersonate-uid"), groups, extra };
    if !user.name.is_empty() {
        return Ok(Some(user));
    }
    if user.groups.is_empty() && user.uid.is_empty() && user.extra.is_empty() {
        return Ok(None);
    }
    Err(Status::bad_request(format!("requested {user:?} without impersonating a user name")))
}

/// One attempt in one mode.
struct Attempt<'a> {
    server: &'a ApiServer,
    requestor: User,
    mode: Mode,
}

impl Attempt<'_> {
    fn constrained(&self) -> bool {
        self.mode != Mode::Legacy
    }

    fn ask(&self, group: &str, resource: &str, sub: &str, namespace: &str, name: &str) -> Result<(), Status> {
        let verb = self.mode.verb();
        let version = if group.is_empty() { "" } else { "v1" };
        let attributes = Attributes {
            verb: &verb,
            group,
            version,
            resource,
            subresource: sub,
            namespace,
            name,
            ..Default::default()
        };
        authz::require(self.server, &self.requestor, &attributes)
    }

    fn forbid(&self, resource: &str, name: &str, why: &str) -> Status {
        let why = format!(
            "User {:?} cannot {} resource {resource:?} in API group {GROUP:?} at the cluster scope: {why}",
            self.requestor.name,
            self.mode.verb()
        );
        Status::forbidden(GROUP, resource, name, why)
    }

    /// The user as whom the request goes on.
    fn user(&self, wanted: &User, asked: &Attributes<'_>) -> Result<User, Status> {
        if self.constrained() {
            let verb = format!("impersonate-on:{}:{}", self.mode.name(), asked.verb);
            authz::require(self.server, &self.requestor, &Attributes { verb: &verb, ..*asked })?;
        }
        let mut user = wanted.clone();
        self.name(wanted, &mut user)?;
        if !wanted.uid.is_empty() {
            self.ask(GROUP, "uids", "", "", &wanted.uid)?;
        }
        self.groups(&wanted.groups)?;
        self.extra(&wanted.extra)?;
        if user.name == authn::ANONYMOUS {
            join(&mut user.groups, UNAUTHENTICATED);
        } else if !user.in_group(UNAUTHENTICATED) {
            join(&mut user.groups, AUTHENTICATED);
        }
        Ok(user)
    }

    fn name(&self, wanted: &User, user: &mut User) -> Result<(), Status> {
        let group = if self.constrained() { GROUP } else { "" };
        if self.constrained()
            && let Some(node) = node_of(&wanted.name)
        {
            // All nodes have the same groups.
            user.groups = vec!["system:nodes".into()];
            let node = if self.mode == Mode::AssociatedNode { "*" } else { node };
            return self.ask(group, "nodes", "", "", node);
        }
        let Some((namespace, name)) = wanted.service_account() else {
            return self.ask(group, "users", "", "", &wanted.name);
        };
        if wanted.groups.is_empty() {
            user.groups = vec!["system:serviceaccounts".into(), format!("system:serviceaccounts:{namespace}")];
        }
        self.ask(group, "serviceaccounts", "", namespace, name)
    }

    fn groups(&self, groups: &[String]) -> Result<(), Status> {
        let group = if self.constrained() { GROUP } else { "" };
        if self.constrained() {
            if groups.iter().any(String::is_empty) {
                return Err(self.forbid("groups", "", "impersonating the empty string group is not allowed"));
            }
            if groups.iter().any(|g| g == MASTERS) {
                let why = "impersonating the system:masters group is not allowed";
                return Err(self.forbid("groups", MASTERS, why));
            }
            if groups.len() >= MANY && self.ask(group, "groups", "", "", "*").is_ok() {
                return Ok(());
            }
        }
        groups.iter().try_for_each(|name| self.ask(group, "groups", "", "", name))
    }

    fn extra(&self, extra: &BTreeMap<String, Vec<String>>) -> Result<(), Status> {
        if self.constrained() {
            if let Some(why) = extra.iter().find_map(|(key, values)| not_extra(key, values)) {
                return Err(self.forbid("userextras", "", &why));
            }
            let values: usize = extra.values().map(Vec::len).sum();
            if values.max(extra.len()) >= MANY && self.ask(GROUP, "userextras", "*", "", "*").is_ok() {
                return Ok(());
            }
        }
        let all = extra.iter().flat_map(|(key, values)| values.iter().map(move |value| (key, value)));
        all.into_iter().try_for_each(|(key, value)| self.ask(GROUP, "userextras", key, "", value))
    }
}

fn join(groups: &mut Vec<String>, group: &str) {
    if !groups.iter().any(|g| g == group) {
        groups.push(group.into());
    }
}

/// Why a key or its values are none that may be taken on in a constrained mode.
fn not_extra(key: &str, values: &[String]) -> Option<String> {
    if key.is_empty() {
        return Some("impersonating the empty string key in extra is not allowed".into());
    }
    if let Some((said, why)) = claims::not_domain_prefixed(key).into_iter().next() {
        return Some(format!(
            "impersonating an invalid key in extra is not allowed: extra.key: Invalid value: {said:?}: {why}"
        ));
    }
    let empty = values.is_empty() || values.iter().any(String::is_empty);
    empty.then(|| "impersonating the empty string value in extra is not allowed".into())
}

/// The user as whom a request goes on: the one it came from, or the one its headers name.
pub fn apply<B>(
    server: &ApiServer,
    user: Arc<User>,
    request: &http::Request<B>,
    told: &audited::Slot,
) -> Result<Arc<User>, Status> {
    let Some(wanted) = wanted(request.headers())? else { return Ok(user) };
    let asks = Asks::of(request);
    let constrained = server.config().enabled.gates.is_open(GATE);
    let modes = CONSTRAINED.into_iter().filter(|_| constrained).chain([Mode::Legacy]);
    let mut refused = None;
    for mode in modes.filter(|mode| mode.applies(&wanted, &user)) {
        let mut requestor = User::clone(&user);
        if mode == Mode::AssociatedNode {
            // Leave for this is leave for every node a pod of the account runs on: what tells them apart says nothing.
            let keys = requestor.extra.keys().cloned().collect();
            requestor.extra = BTreeMap::from([(ASSOCIATED_KEYS.to_string(), keys)]);
        }
        match (Attempt { server, requestor, mode }).user(&wanted, &asks.attributes()) {
            Ok(acting) => {
                instruments::impersonated(mode.name(), true);
                if let Some(trail) = told.trail() {
                    trail.impersonating(&acting, (mode != Mode::Legacy).then(|| mode.verb()));
                }
                return Ok(Arc::new(acting));
            }
            Err(status) => refused = refused.or(Some(status)),
        }
    }
    instruments::impersonated("", false);
    Err(refused.unwrap_or_else(|| Status::internal("all impersonation modes failed")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str, groups: &[&str], extra: &[(&str, &str)]) -> User {
        let extra = extra.iter().map(|(k, v)| (k.to_string(), vec![v.to_string()])).collect();
        User { extra, ..User::new(name, groups) }
    }

    #[test]
    fn modes_are_about_their_own_users() {
        let plain = user("jane", &[], &[]);
        let pod = user("system:serviceaccount:n:agent", &[], &[(NODE_NAME, "a")]);
        let modes = |wanted: &User, requestor: &User| {
            let all = CONSTRAINED.into_iter().chain([Mode::Legacy]);
            all.filter(|mode| mode.applies(wanted, requestor)).map(Mode::name).collect::<Vec<_>>().join(" ")
        };
        for (wanted, requestor, expect) in [
            (user("joe", &["g"], &[]), &plain, "user-info legacy"),
            (user("system:node:a", &[], &[]), &plain, "arbitrary-node legacy"),
            (user("system:node:a", &["g"], &[]), &plain, "legacy"),
            (user("system:node:a", &[], &[]), &pod, "associated-node arbitrary-node legacy"),
            (user("system:node:b", &[], &[]), &pod, "arbitrary-node legacy"),
            (user("system:serviceaccount:n:b", &[], &[]), &plain, "serviceaccount legacy"),
            (user("system:serviceaccount:n:b", &[], &[("a.io/b", "c")]), &plain, "legacy"),
        ] {
            assert_eq!(modes(&wanted, requestor), expect, "{wanted:?}");
        }
    }

    #[test]
    fn headers_name_the_wanted_user() {
        let mut headers = HeaderMap::new();
        assert_eq!(wanted(&headers).unwrap(), None);
        headers.insert("impersonate-uid", "1".parse().unwrap());
        assert!(wanted(&headers).unwrap_err().message.contains("without impersonating a user name"));
        headers.insert("impersonate-user", "jane".parse().unwrap());
        headers.append("impersonate-group", "a".parse().unwrap());
        headers.append("impersonate-group", "b".parse().unwrap());
        headers.insert("impersonate-extra-example.com%2fkey", "v".parse().unwrap());
        let found = wanted(&headers).unwrap().unwrap();
        assert_eq!(found, User { uid: "1".into(), ..user("jane", &["a", "b"], &[("example.com/key", "v")]) });
    }

    #[test]
    fn extras_that_may_not_be_taken_on() {
        let values = |values: &[&str]| values.iter().map(ToString::to_string).collect::<Vec<_>>();
        for (key, held, expect) in [
            ("example.com/a", values(&["v"]), None),
            ("", values(&["v"]), Some("empty string key")),
            ("scopes", values(&["v"]), Some("must be a domain-prefixed path")),
            ("example.com/a", values(&[""]), Some("empty string value")),
        ] {
            let found = not_extra(key, &held);
            assert_eq!(found.is_some(), expect.is_some(), "{key}");
            assert!(expect.is_none_or(|part| found.is_some_and(|said| said.contains(part))), "{key}");
        }
    }
}
