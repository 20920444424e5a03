//! Reporting a pod's status: one patch at a time, always the newest, only what changed.
//!
//! The patch is a strategic merge with the pod's uid, so that it can neither hit a namesake nor undo conditions that
//! others own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use client::{Client, Patch};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use serde_json::{Map, Value, json};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use crate::metrics::{Metrics, families};
use crate::spec;

/// Between attempts while the API server does not answer.
const RETRY: [Duration; 4] =
    [Duration::from_millis(100), Duration::from_millis(500), Duration::from_secs(1), Duration::from_secs(3)];

/// Merge keys of the lists that are merged and not replaced.
const MERGED: [(&str, &str); 3] = [("conditions", "type"), ("podIPs", "ip"), ("hostIPs", "ip")];

/// The difference, as a strategic merge patch; `None` when there is none.
pub fn difference(before: &PodStatus, after: &PodStatus, uid: &str) -> Option<Value> {
    let tree = |s: &PodStatus| {
        serde_json::to_value(s)
            .ok()
            .and_then(|v| if let Value::Object(m) = v { Some(m) } else { None })
            .unwrap_or_default()
    };
    let (before, after) = (tree(before), tree(after));
    let mut changed = Map::new();
    for (key, value) in &after {
        if before.get(key) == Some(value) {
            continue;
        }
        let mut value = value.clone();
        if let Some((_, merge_key)) = MERGED.iter().find(|(name, _)| name == key) {
            let old = before.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
            let new = value.as_array().cloned().unwrap_or_default();
            let mut items: Vec<Value> = new.iter().filter(|item| !old.contains(item)).cloned().collect();
            // Items are merged, too: what one said before and says no more has to be taken back.
            for item in &mut items {
                let was = old.iter().find(|o| o[*merge_key] == item[*merge_key]);
                for key in was.and_then(Value::as_object).into_iter().flat_map(Map::keys) {
                    if item.get(key).is_none() {
                        item[key.as_str()] = Value::Null;
                    }
                }
            }
            if *merge_key == "ip" {
                let gone = old.iter().filter(|o| !new.iter().any(|n| n["ip"] == o["ip"]));
                items.extend(gone.map(|o| json!({"$patch": "delete", "ip": o["ip"]})));
            }
            if key == "conditions" {
                // The agent's own conditions that come and go; all others it only ever changes.
                let own = ["PodResizePending", "PodResizeInProgress"];
                let gone = old
                    .iter()
                    .filter(|o| own.iter().any(|t| o["type"] == **t) && !new.iter().any(|n| n["type"] == o["type"]));
                items.extend(gone.map(|o| json!({"$patch": "delete", "type": o["type"]})));
            }
            if items.is_empty() {
                continue;
            }
            value = Value::Array(items);
        }
        changed.insert(key.clone(), value);
    }
    // Only what this agent writes can be taken back.
    for key in ["message", "reason", "podIP", "initContainerStatuses", "ephemeralContainerStatuses"] {
        if before.contains_key(key) && !after.contains_key(key) {
            changed.insert(key.into(), Value::Null);
        }
    }
    (!changed.is_empty()).then(|| json!({"metadata": {"uid": uid}, "status": changed}))
}

/// Whether the API says something else than this agent does where only the agent should: a node that was thought lost has
/// its pods marked as not ready, for one, and is back.
fn is_overwritten(there: &PodStatus, said: &PodStatus) -> bool {
    let wrong = |patch: Value| ["phase", "conditions"].iter().any(|field| patch["status"].get(field).is_some());
    difference(there, said, "").is_some_and(wrong)
}

/// Versions of one cluster's objects are numbers that only grow.
fn version(pod: &Pod) -> u64 {
    pod.metadata.resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(0)
}

/// Reports one pod.
pub struct Reporter {
    /// The pod's version as of the last write; what is older says nothing about it.
    written: Arc<AtomicU64>,
    wanted: watch::Sender<Option<Arc<PodStatus>>>,
    sent: watch::Receiver<Option<Arc<PodStatus>>>,
    _task: AbortOnDropHandle<()>,
}

impl Reporter {
    /// `before` is what the API has.
    pub fn start(client: Client, metrics: Arc<Metrics>, pod: &Pod, before: PodStatus) -> Self {
        let (wanted, mut next) = watch::channel::<Option<Arc<PodStatus>>>(None);
        let (done, sent) = watch::channel::<Option<Arc<PodStatus>>>(None);
        let written = Arc::new(AtomicU64::new(version(pod)));
        let latest = written.clone();
        let (namespace, name, uid) =
            (spec::namespace(pod).to_string(), spec::name(pod).to_string(), spec::uid(pod).to_string());
        // The API knows a static pod only by its mirror, which has another uid and may come later.
        let is_static = pod
            .metadata
            .annotations
            .as_ref()
            .and_then(|a| a.get(spec::names::CONFIG_SOURCE))
            .is_some_and(|s| s == "file");
        let task = tokio::spawn(async move {
            let mut before = Arc::new(before);
            while next.changed().await.is_ok() {
                let (mut attempt, began) = (0, Instant::now());
                loop {
                    let Some(status) = next.borrow_and_update().clone() else { break };
                    if let Some(mut patch) = difference(&before, &status, &uid) {
                        if is_static {
                            patch["metadata"] = json!({});
                        }
                        let api = client.dynamic(client::Gvr::new("", "v1", "pods")).namespaced(&namespace);
                        match api.patch_subresource(&name, "status", Patch::Strategic(patch)).await {
                            Ok(object) => {
                                latest.store(object.resource_version, Ordering::Release);
                                metrics.since(&families::POD_STATUS_SYNC, &[], began);
                            }
                            // Gone, or another pod of the same name: nobody is left to tell.
                            Err(error) if error.is_conflict() || (error.is_not_found() && !is_static) => {}
                            Err(error) => {
                                tracing::debug!(pod = %name, "status not written: {error}");
                                let pause = RETRY[attempt.min(RETRY.len() - 1)];
                                attempt += 1;
                                // A newer status need not wait for the old one's turn.
                                let _ = tokio::time::timeout(pause, next.changed()).await;
                                if attempt % 16 == 0 {
                                    tracing::warn!(pod = %name, attempt, "pod status cannot be written: {error}");
                                }
                                continue;
                            }
                        }
                    }
                    before = status.clone();
                    done.send_replace(Some(status));
                    break;
                }
            }
        });
        Self { written, wanted, sent, _task: AbortOnDropHandle::new(task) }
    }

    /// Reports this next, instead of whatever was waiting.
    pub fn report(&self, status: PodStatus) {
        self.wanted.send_if_modified(|last| {
            if last.as_deref() == Some(&status) {
                return false;
            }
            *last = Some(Arc::new(status));
            true
        });
    }

    /// Whether somebody else changed what was reported, as this version of the pod, newer than the report, shows.
    pub fn is_overwritten(&self, pod: &Pod) -> bool {
        let Some(said) = self.wanted.borrow().clone() else { return false };
        self.sent.borrow().as_ref().is_some_and(|sent| Arc::ptr_eq(sent, &said))
            && version(pod) > self.written.load(Ordering::Acquire)
            && is_overwritten(pod.status.as_ref().unwrap_or(&PodStatus::default()), &said)
    }

    /// Waits until the last status is written.
    pub async fn flush(&mut self) {
        let Some(wanted) = self.wanted.borrow().clone() else { return };
        // The task ends only with this reporter.
        let _ = self.sent.wait_for(|sent| sent.as_ref().is_some_and(|s| Arc::ptr_eq(s, &wanted))).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_change_is_noticed() {
        let status = |ready: &str, theirs: &str| -> PodStatus {
            let conditions = json!([{"type": "Ready", "status": ready}, {"type": "Theirs", "status": theirs}]);
            serde_json::from_value(json!({"phase": "Running", "conditions": conditions})).unwrap()
        };
        let said =
            serde_json::from_value(json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}));
        let said: PodStatus = said.unwrap();
        for (there, expect) in
            [(status("True", "False"), false), (status("False", "True"), true), (PodStatus::default(), true)]
        {
            assert_eq!(is_overwritten(&there, &said), expect, "{there:?}");
        }
    }

    #[test]
    fn only_what_changed_is_sent() {
        let status = |v: Value| -> PodStatus { serde_json::from_value(v).unwrap() };
        let ready = |s: &str| json!({"type": "Ready", "status": s});
        let a = status(
            json!({"phase": "Pending", "reason": "x", "podIPs": [{"ip": "1"}], "conditions": [ready("False"), {"type": "Other", "status": "True"}]}),
        );
        let b = status(json!({"phase": "Running", "podIPs": [{"ip": "2"}], "conditions": [ready("True")]}));
        assert_eq!(difference(&a, &a, "u"), None);
        let unready = json!({"type": "Ready", "status": "False", "reason": "ContainersNotReady", "message": "m"});
        assert_eq!(
            difference(&status(json!({"conditions": [unready]})), &status(json!({"conditions": [ready("True")]})), "u")
                .unwrap()["status"],
            json!({"conditions": [{"type": "Ready", "status": "True", "reason": null, "message": null}]})
        );
        assert_eq!(
            difference(&a, &b, "u").unwrap(),
            json!({"metadata": {"uid": "u"}, "status": {
                "phase": "Running", "reason": null, "podIPs": [{"ip": "2"}, {"$patch": "delete", "ip": "1"}], "conditions": [ready("True")]}})
        );
    }
}
