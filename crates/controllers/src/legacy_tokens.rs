//! Token Secrets made for service accounts unasked, as was done once: those nobody has used for a year are invalidated, and
//! a year later deleted. Pure.
//!
//! When tokens were used is noted on their Secrets by the API server; nothing is judged before it has done so for a year.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use client::{DeleteOptions, Patch};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Secret, ServiceAccount};
use meta::{Object, Status};
use serde_json::json;

use crate::plan::{Action, Plan};
use crate::pod_facts::{self, facts};
use crate::runner::Controller;
use crate::tokens::{ACCOUNT_TOKEN, account_of};
use crate::{Context, decoded};

const PERIOD: Duration = Duration::from_secs(24 * 3600);
/// Where the API server says since when it notes uses.
const TRACKING: &str = "kube-apiserver-legacy-service-account-token-tracking";
const LAST_USED: &str = "kubernetes.io/legacy-token-last-used";
const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";

/// A day as the labels write it; they compare as text.
fn day(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d").to_string()
}

/// What is known beside the Secrets.
pub struct World<'a> {
    /// The day since when uses are noted.
    pub since: &'a str,
    /// Keys of Secrets pods have.
    pub mounted: &'a BTreeSet<String>,
    /// The account by key.
    pub account: &'a dyn Fn(&str) -> Option<Arc<Object>>,
    /// Seconds a token may lie unused, and lie invalid.
    pub clean_up: i64,
}

pub fn plan(secrets: &[Arc<Object>], world: &World<'_>, now: Timestamp) -> Result<Plan, Status> {
    let mut plan = Plan::nothing();
    let Ok(then) = Timestamp::from_second(now.as_second() - world.clean_up) else { return Ok(plan) };
    let then_day = day(then);
    if world.since.is_empty() || world.since > then_day.as_str() {
        return Ok(plan);
    }
    let resource = client::gvr_of::<Secret>();
    for secret in secrets.iter().filter(|s| s.meta.deletion_timestamp.is_none()) {
        let is_young = client::time::parse(&secret.meta.creation_timestamp).is_none_or(|at| at >= then);
        let is_used = secret.meta.label(LAST_USED).is_some_and(|at| at >= then_day.as_str());
        if is_young || is_used || world.mounted.contains(&secret.meta.key()) {
            continue;
        }
        // Only what its account lists was made unasked.
        let Some(account) = account_of(secret).and_then(|key| (world.account)(&key)) else { continue };
        let listed = decoded::<ServiceAccount>(&account)?;
        if !listed.secrets.iter().flatten().any(|s| s.name.as_deref() == Some(&*secret.meta.name)) {
            continue;
        }
        match secret.meta.label(INVALID_SINCE) {
            None => {
                let metadata = json!({
                    "resourceVersion": secret.resource_version.to_string(), "labels": {INVALID_SINCE: day(now)},
                });
                plan.act(Action::patch(&resource, secret, "", Patch::Merge(json!({"metadata": metadata}))));
            }
            Some(since) if since >= then_day.as_str() => {}
            Some(_) => {
                let options = DeleteOptions {
                    resource_version: Some(secret.resource_version.to_string()),
                    ..DeleteOptions::default()
                };
                plan.act(Action::delete_with(&resource, secret, options));
            }
        }
    }
    Ok(plan)
}

/// Keys of the Secrets a pod has as volumes.
fn secrets_of(object: &Arc<Object>) -> Vec<String> {
    let Some(pod) = facts(object) else { return Vec::new() };
    let volumes = pod.shape.volumes.iter().flatten();
    let names = volumes.filter_map(|v| v.secret.as_ref()?.secret_name.as_ref());
    names.map(|name| meta::object::object_key(&object.meta.namespace, name)).collect()
}

pub fn cleaner(cx: &Context) -> Controller {
    let fields = format!("type={ACCOUNT_TOKEN}");
    let secrets = cx.informers.get_gvr(client::gvr_of::<Secret>(), "", None, Some(&fields));
    let (accounts, pods) = (cx.informers.get::<ServiceAccount>(), pod_facts::informer(&cx.informers));
    let fields = format!("metadata.name={TRACKING}");
    let tracking = cx.informers.get_gvr(client::gvr_of::<ConfigMap>(), "kube-system", None, Some(&fields));
    let (of, of_accounts, of_pods, of_tracking) = (secrets.clone(), accounts.clone(), pods.clone(), tracking.clone());
    let clean_up = i64::try_from(cx.options.legacy_token_clean_up.as_secs()).unwrap_or(i64::MAX / 2);
    Controller::new("legacy-serviceaccount-token-cleaner-controller", move |ask| {
        let Some(map) = of_tracking.get(&format!("kube-system/{TRACKING}")) else { return Ok(Plan::nothing()) };
        let map = decoded::<ConfigMap>(&map)?;
        let since = map.data.as_ref().and_then(|d| d.get("since")).map_or("", String::as_str);
        let mounted = of_pods.list(None).iter().flat_map(secrets_of).collect();
        let account = |key: &str| of_accounts.get(key);
        plan(&of.list(None), &World { since, mounted: &mounted, account: &account, clean_up }, ask.now)
    })
    .every(PERIOD, "")
    .read(&secrets)
    .read(&accounts)
    .read(&pods)
    .read(&tracking)
    .workers(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const YEAR: i64 = 365 * 24 * 3600;

    #[test]
    fn unused_tokens_go_in_two_steps() {
        let object = |kind: &str, extra: serde_json::Value| {
            let mut body = json!({"kind": kind, "apiVersion": "v1", "metadata": {"name": "s", "namespace": "n", "uid": "u", "resourceVersion": "3"}});
            meta_into(&mut body, extra);
            Arc::new(Object::from_value(&body).unwrap())
        };
        fn meta_into(body: &mut serde_json::Value, extra: serde_json::Value) {
            for (field, value) in extra.as_object().unwrap() {
                match body[field].as_object_mut() {
                    Some(into) => into.extend(value.as_object().unwrap().clone()),
                    None => body[field] = value.clone(),
                }
            }
        }
        let now: Timestamp = "2026-06-01T00:00:00Z".parse().unwrap();
        let secret = |created: &str, labels: serde_json::Value| {
            let metadata = json!({"creationTimestamp": created, "labels": labels, "annotations": {"kubernetes.io/service-account.name": "a"}});
            object("Secret", json!({"metadata": metadata, "type": ACCOUNT_TOKEN}))
        };
        let account = |listed: bool| {
            let secrets = if listed { json!([{"name": "s"}]) } else { json!([]) };
            object("ServiceAccount", json!({"secrets": secrets}))
        };
        let old = "2020-01-01T00:00:00Z";
        for (what, secret, since, mounted, listed, expect) in [
            ("unused", secret(old, json!({})), "2025-01-01", false, true, "patch secrets n/s"),
            ("not noted for long", secret(old, json!({})), "2025-07-01", false, true, ""),
            ("young", secret("2026-01-01T00:00:00Z", json!({})), "2025-01-01", false, true, ""),
            ("used", secret(old, json!({LAST_USED: "2025-12-01"})), "2025-01-01", false, true, ""),
            (
                "used long ago",
                secret(old, json!({LAST_USED: "2025-03-01"})),
                "2025-01-01",
                false,
                true,
                "patch secrets n/s",
            ),
            ("in a pod", secret(old, json!({})), "2025-01-01", true, true, ""),
            ("asked for", secret(old, json!({})), "2025-01-01", false, false, ""),
            ("invalid", secret(old, json!({INVALID_SINCE: "2026-01-01"})), "2025-01-01", false, true, ""),
            (
                "long invalid",
                secret(old, json!({INVALID_SINCE: "2025-05-01"})),
                "2025-01-01",
                false,
                true,
                "delete secrets n/s",
            ),
        ] {
            let mounted = if mounted { BTreeSet::from(["n/s".to_string()]) } else { BTreeSet::new() };
            let of = |_: &str| Some(account(listed));
            let plan = plan(&[secret], &World { since, mounted: &mounted, account: &of, clean_up: YEAR }, now).unwrap();
            let said: Vec<String> = plan.actions.iter().map(ToString::to_string).collect();
            assert_eq!(said.join(" "), expect, "{what}");
        }
    }
}
