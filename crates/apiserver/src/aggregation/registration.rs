//! The APIServices of what this server serves itself: built-in groups and custom kinds.
//!
//! A built-in version's APIService is written when it is missing; a custom version's follows its definitions and goes with
//! the last of them. APIServices that someone else wrote (without our label, or for another server) are left alone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use meta::{GroupVersion, Gvr, Request, Status, Value, Verb};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{GROUP, PLURAL, Priority};
use crate::bootstrap::loopback;
use crate::server::ApiServer;

/// Says that an APIService is ours, and whether it is only made at start or kept.
const MANAGED: &str = "kube-aggregator.kubernetes.io/automanaged";
const ONCE: &str = "onstart";
const KEPT: &str = "true";
/// What is missing is looked for again after this long, in case someone deleted it.
const AGAIN: Duration = Duration::from_secs(30);

/// Upstream's order of built-in groups.
const GROUPS: &[(&str, i64)] = &[
    ("", 18_000),
    ("apps", 17_800),
    ("events.k8s.io", 17_750),
    ("authentication.k8s.io", 17_700),
    ("authorization.k8s.io", 17_600),
    ("autoscaling", 17_500),
    ("batch", 17_400),
    ("certificates.k8s.io", 17_300),
    ("networking.k8s.io", 17_200),
    ("policy", 17_100),
    ("rbac.authorization.k8s.io", 17_000),
    ("storage.k8s.io", 16_800),
    ("apiextensions.k8s.io", 16_700),
    ("admissionregistration.k8s.io", 16_700),
    ("scheduling.k8s.io", 16_600),
    ("coordination.k8s.io", 16_500),
    ("node.k8s.io", 16_300),
    ("discovery.k8s.io", 16_200),
    ("flowcontrol.apiserver.k8s.io", 16_100),
    ("internal.apiserver.k8s.io", 16_000),
    ("resource.k8s.io", 15_900),
    ("storagemigration.k8s.io", 15_800),
];
/// Groups upstream has not named yet come behind those it has.
const OTHER_GROUP: i64 = 15_700;
const CUSTOM: Priority = Priority { group: 1000, version: 100 };

/// The priority a version has unless its APIService says otherwise.
pub fn priority(gv: &GroupVersion, custom: bool) -> Priority {
    if custom {
        return CUSTOM;
    }
    let group = GROUPS.iter().find(|(name, _)| *name == &*gv.group).map_or(OTHER_GROUP, |(_, priority)| *priority);
    let version = match (&*gv.group, &*gv.version) {
        ("", _) => 1,
        ("autoscaling", "v2") => 30,
        ("flowcontrol.apiserver.k8s.io", "v1") => 21,
        (_, version) if version.contains("alpha") => 1,
        (_, version) if version.contains("beta") => 9,
        _ => 15,
    };
    Priority { group, version }
}

fn wanted(server: &ApiServer) -> BTreeMap<String, Value> {
    let mut out = BTreeMap::new();
    for served in server.catalog().kinds() {
        let resource = &served.resource;
        // Upstream's aggregator serves its own group without an APIService for it.
        if &*resource.group == GROUP {
            continue;
        }
        for version in resource.versions.iter().filter(|v| v.served) {
            let gv = resource.group_version(&version.name);
            let name = format!("{}.{}", gv.version, gv.group);
            let priority = priority(&gv, resource.custom);
            let managed = if resource.custom { KEPT } else { ONCE };
            let body = json!({
                "kind": "APIService", "apiVersion": "apiregistration.k8s.io/v1",
                "metadata": {"name": name, "labels": {MANAGED: managed}},
                "spec": {
                    "group": &*gv.group, "version": &*gv.version,
                    "groupPriorityMinimum": priority.group, "versionPriority": priority.version,
                },
            });
            // A built-in version is not handed to a custom kind that happens to share it.
            out.entry(name).or_insert(body);
        }
    }
    for body in out.values_mut() {
        // The core group's name is empty, and JSON leaves that out.
        if body["spec"]["group"] == ""
            && let Some(spec) = body["spec"].as_object_mut()
        {
            spec.remove("group");
        }
    }
    out
}

fn resource() -> Gvr {
    Gvr::new(GROUP, "v1", PLURAL)
}

/// Writes what is missing, corrects what is kept, removes what is served no more.
pub(crate) async fn sync(server: &Arc<ApiServer>) -> Result<(), Status> {
    let caller = loopback();
    let wanted = wanted(server);
    let mut there = BTreeMap::new();
    for object in server.lookup_all(GROUP, PLURAL, "") {
        there.insert(object.meta.name.to_string(), object);
    }
    for (name, body) in &wanted {
        let Some(found) = there.get(name) else {
            let request = Request::new(Verb::Create, resource(), "", "").json(body.clone());
            match server.serve(&caller, request).await {
                Err(status) if !status.is_already_exists() => return Err(status),
                _ => continue,
            }
        };
        if found.meta.label(MANAGED) != Some(KEPT) {
            continue;
        }
        let mut current = found.value().map_err(Status::internal)?;
        if current["spec"] != body["spec"] {
            current["spec"] = body["spec"].clone();
            let request = Request::new(Verb::Update, resource(), "", name).json(current);
            match server.serve(&caller, request).await {
                Err(status) if !status.is_not_found() && !status.is_conflict() => return Err(status),
                _ => {}
            }
        }
    }
    for (name, found) in &there {
        if found.meta.label(MANAGED) == Some(KEPT) && !wanted.contains_key(name) {
            match server.serve(&caller, Request::new(Verb::Delete, resource(), "", name)).await {
                Err(status) if !status.is_not_found() => return Err(status),
                _ => {}
            }
        }
    }
    Ok(())
}

/// Follows the catalog until `cancel`.
pub async fn run(server: Arc<ApiServer>, cancel: CancellationToken) {
    let mut catalog = server.catalog_changes();
    loop {
        catalog.mark_unchanged();
        if let Err(status) = sync(&server).await {
            tracing::warn!(%status, "registering APIServices");
        }
        tokio::select! {
            () = cancel.cancelled() => return,
            changed = catalog.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(AGAIN) => {}
        }
    }
}
