//! Reporting a pod's status: one patch at a time, always the newest, only what changed.
//!
//! The patch is a strategic merge with the pod's uid, so that it can neither hit a namesake nor undo conditions that
//! others own. What a pod passes through on its way up or down is told only if it lasts, and rationed over all pods: when
//! a hundred come at once, telling how far each is must not keep them from getting there.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use client::{Client, Patch};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodStatus};
use serde_json::{Map, Value, json};
use tokio::sync::{Mutex, watch};
use tokio_util::task::AbortOnDropHandle;

use crate::metrics::{Metrics, families};
use crate::spec;

/// Between attempts while the API server does not answer.
const RETRY: [Duration; 4] =
    [Duration::from_millis(100), Duration::from_millis(500), Duration::from_secs(1), Duration::from_secs(3)];

/// How long a passing status may wait for what comes after it.
const PASSING: Duration = Duration::from_millis(150);
/// Passing statuses of all pods that may be told at once, and the time between two in the long run.
const AT_ONCE: u32 = 10;
const APART: Duration = Duration::from_millis(100);

/// Whose turn it is to tell a passing status.
pub struct Turns(Mutex<tokio::time::Instant>);

impl Default for Turns {
    fn default() -> Self {
        Self(Mutex::new(tokio::time::Instant::now()))
    }
}

impl Turns {
    /// Waits for a turn and takes it; who gives up waiting takes none.
    async fn take(&self) {
        // The time at which all turns will be there again.
        let mut full = self.0.lock().await;
        let due = *full - APART * (AT_ONCE - 1);
        tokio::time::sleep_until(due).await;
        *full = (*full).max(tokio::time::Instant::now()) + APART;
    }
}

/// How much a status matters by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weight {
    /// Others act on it.
    Lasting,
    /// A step on the way to another.
    Passing,
}

/// The weight of the status of a pod that is not asked to end: until anything of it ran or went wrong, it passes.
pub fn weight(status: &PodStatus) -> Weight {
    let all = [&status.init_container_statuses, &status.container_statuses, &status.ephemeral_container_statuses];
    let begins = |c: &ContainerStatus| {
        let waiting = c.state.as_ref().and_then(|s| s.waiting.as_ref());
        let reason = waiting.and_then(|w| w.reason.as_deref());
        matches!(reason, Some("ContainerCreating" | "PodInitializing"))
            && c.last_state.as_ref().is_none_or(|l| l.terminated.is_none())
    };
    let passes = status.phase.as_deref() == Some("Pending") && status.reason.is_none();
    if passes && all.into_iter().flatten().flatten().all(begins) { Weight::Passing } else { Weight::Lasting }
}

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

/// Waits until there is something that others should know by now.
async fn lasts(next: &mut watch::Receiver<Option<(Arc<PodStatus>, Weight)>>, turns: &Turns) {
    let told = async {
        tokio::time::sleep(PASSING).await;
        turns.take().await;
    };
    let lasting = async {
        // Without a sender, what was last wanted is still to be told.
        let _ = next.wait_for(|wanted| wanted.as_ref().is_none_or(|(_, weight)| *weight == Weight::Lasting)).await;
    };
    tokio::select! {
        biased;
        () = lasting => {}
        () = told => {}
    }
}

/// Reports one pod.
pub struct Reporter {
    /// The pod's version as of the last write; what is older says nothing about it.
    written: Arc<AtomicU64>,
    wanted: watch::Sender<Option<(Arc<PodStatus>, Weight)>>,
    sent: watch::Receiver<Option<Arc<PodStatus>>>,
    _task: AbortOnDropHandle<()>,
}

impl Reporter {
    /// `before` is what the API has.
    pub fn start(client: Client, metrics: Arc<Metrics>, turns: Arc<Turns>, pod: &Pod, before: PodStatus) -> Self {
        let (wanted, mut next) = watch::channel::<Option<(Arc<PodStatus>, Weight)>>(None);
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
                lasts(&mut next, &turns).await;
                let (mut attempt, began) = (0, Instant::now());
                loop {
                    let Some((status, _)) = next.borrow_and_update().clone() else { break };
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
    pub fn report(&self, status: PodStatus, weight: Weight) {
        self.wanted.send_if_modified(|last| match last {
            // What was said as a step and turns out to last is not said again, but sooner.
            Some((said, was)) if **said == status => {
                let sooner = *was == Weight::Passing && weight == Weight::Lasting;
                if sooner {
                    *was = weight;
                }
                sooner
            }
            _ => {
                *last = Some((Arc::new(status), weight));
                true
            }
        });
    }

    /// Whether somebody else changed what was reported, as this version of the pod, newer than the report, shows.
    pub fn is_overwritten(&self, pod: &Pod) -> bool {
        let Some((said, _)) = self.wanted.borrow().clone() else { return false };
        self.sent.borrow().as_ref().is_some_and(|sent| Arc::ptr_eq(sent, &said))
            && version(pod) > self.written.load(Ordering::Acquire)
            && is_overwritten(pod.status.as_ref().unwrap_or(&PodStatus::default()), &said)
    }

    /// Waits until the last status is written.
    pub async fn flush(&mut self) {
        let Some((wanted, _)) = self.wanted.borrow().clone() else { return };
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
    fn what_passes_is_told_apart() {
        let creating = json!({"name": "c", "ready": false, "restartCount": 0, "image": "i", "imageID": "",
            "state": {"waiting": {"reason": "ContainerCreating"}}, "lastState": {}});
        let with = |key: &str, value: Value| {
            let mut status = creating.clone();
            status[key] = value;
            json!({"phase": "Pending", "containerStatuses": [creating.clone(), status]})
        };
        for (status, expect) in [
            (json!({"phase": "Pending", "containerStatuses": [creating]}), Weight::Passing),
            (json!({"phase": "Pending", "reason": "Evicted"}), Weight::Lasting),
            (json!({"phase": "Running"}), Weight::Lasting),
            (with("state", json!({"waiting": {"reason": "ErrImagePull"}})), Weight::Lasting),
            (with("state", json!({"running": {}})), Weight::Lasting),
            (with("lastState", json!({"terminated": {"exitCode": 1}})), Weight::Lasting),
        ] {
            let parsed: PodStatus = serde_json::from_value(status.clone()).unwrap();
            assert_eq!(weight(&parsed), expect, "{status}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn passing_statuses_take_turns() {
        let turns = Turns::default();
        let began = tokio::time::Instant::now();
        for _ in 0..AT_ONCE {
            turns.take().await;
        }
        assert_eq!(began.elapsed(), Duration::ZERO);
        for _ in 0..3 {
            // Nobody who gives up takes a turn.
            let _ = tokio::time::timeout(APART / 2, turns.take()).await;
            turns.take().await;
        }
        assert_eq!(began.elapsed(), APART * 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_step_gives_way_to_what_lasts() {
        let status = |phase: &str| Arc::new(PodStatus { phase: Some(phase.into()), ..Default::default() });
        let (send, mut next) = watch::channel(None);
        let turns = Turns::default();
        let began = tokio::time::Instant::now();
        send.send_replace(Some((status("Pending"), Weight::Passing)));
        lasts(&mut next, &turns).await;
        assert_eq!(began.elapsed(), PASSING);
        send.send_replace(Some((status("Pending"), Weight::Passing)));
        let (_, ()) = tokio::join!(
            async {
                tokio::time::sleep(PASSING / 3).await;
                send.send_replace(Some((status("Running"), Weight::Lasting)))
            },
            lasts(&mut next, &turns)
        );
        assert_eq!(began.elapsed(), PASSING + PASSING / 3);
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
