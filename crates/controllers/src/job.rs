//! Jobs: pods that run to completion, counted exactly once.
//!
//! Each pod carries a finalizer until its end is counted: a finished pod is first noted in the status as uncounted, then
//! loses its finalizer, and only when that is seen does it move into the numbers. So neither a crash of ours nor
//! a deleted pod loses or doubles a count. The core below is pure; how long to wait before replacing a failed pod is computed from the
//! pods themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use client::time::rfc3339;
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobSpec};
use meta::{Object, Status};
use serde_json::{Value, json};

use crate::indexes::Indexes;
use crate::plan::{Action, Note, Plan};
use crate::pod_failure::{Verdict, finished_at, judge};
use crate::pods::{self, PodView};
use crate::replicas::{create_pod, delete_pod, pods_resource};
use crate::{conditions, status_of};

pub const FINALIZER: &str = "batch.kubernetes.io/job-tracking";
const INDEX: &str = "batch.kubernetes.io/job-completion-index";
const INDEX_FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
const INDEX_IGNORED: &str = "batch.kubernetes.io/job-index-ignored-failure-count";
/// Pods created, or finished ones noted, by one plan.
const BURST: usize = 500;
/// Delay before a failed pod is replaced: doubles with each failure since the last success.
const FIRST_DELAY: i64 = 10;
const MOST_DELAY: i64 = 600;

/// Whether the pod's end is not counted yet.
pub fn has_finalizer(pod: &PodView) -> bool {
    pod.object.meta.finalizers.iter().any(|f| &**f == FINALIZER)
}

fn index_of(pod: &PodView) -> Option<i64> {
    pod.facts.annotation(INDEX)?.parse().ok()
}

/// Takes our finalizer off a pod.
pub fn strip(pod: &PodView) -> Action {
    let rest: Vec<&str> = pod.object.meta.finalizers.iter().map(|f| &**f).filter(|f| *f != FINALIZER).collect();
    let metadata = json!({"uid": &*pod.object.meta.uid, "finalizers": rest});
    Action::patch(&pods_resource(), &pod.object, "", client::Patch::Merge(json!({"metadata": metadata})))
}

/// One Job being planned.
struct Work<'a> {
    object: &'a Object,
    spec: &'a JobSpec,
    pods: &'a [PodView],
    now: Timestamp,
    status: Value,
    plan: Plan,
    /// Uids noted in the status and not yet in its numbers.
    uncounted: [BTreeSet<String>; 2],
    done: Indexes,
    failed_indexes: Indexes,
}

const SUCCEEDED: usize = 0;
const FAILED: usize = 1;

fn number(status: &Value, field: &str) -> i64 {
    status[field].as_i64().unwrap_or(0)
}

/// What one Job wants done now.
pub fn plan(
    object: &Object,
    spec: &JobSpec,
    pods: &[PodView],
    taken: &dyn Fn(&str) -> bool,
    now: Timestamp,
) -> Result<Plan, Status> {
    let known = status_of(object)?;
    let ended = ["Complete", "Failed"].iter().any(|c| conditions::is_true(&known, c));
    if ended || object.meta.deletion_timestamp.is_some() {
        let actions = pods.iter().filter(|p| has_finalizer(p)).map(strip).collect();
        return Ok(Plan { actions, ..Plan::nothing() });
    }
    let completions = i64::from(spec.completions.unwrap_or(0));
    let uids = |field: &str| -> BTreeSet<String> {
        known["uncountedTerminatedPods"][field]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .map(Into::into)
            .collect()
    };
    let indexes = |field: &str| Indexes::parse(known[field].as_str().unwrap_or_default(), completions);
    let mut work = Work {
        object,
        spec,
        pods,
        now,
        plan: Plan { stop_at_failure: true, ..Plan::nothing() },
        uncounted: [uids("succeeded"), uids("failed")],
        done: indexes("completedIndexes"),
        failed_indexes: indexes("failedIndexes"),
        status: if known.is_object() { known.clone() } else { json!({}) },
    };
    work.decide(&known, taken)?;
    Ok(work.plan)
}

impl Work<'_> {
    fn indexed(&self) -> bool {
        self.spec.completion_mode.as_deref() == Some("Indexed")
    }

    fn per_index(&self) -> Option<i64> {
        self.spec.backoff_limit_per_index.map(i64::from).filter(|_| self.indexed())
    }

    /// Whether only pods that have really ended are replaced, not those on their way out.
    fn waits_for_end(&self) -> bool {
        self.spec.pod_replacement_policy.as_deref() == Some("Failed") || self.spec.pod_failure_policy.is_some()
    }

    fn is_lost(&self, pod: &PodView) -> bool {
        pod.is_failed() || (pod.is_terminating() && !pod.is_succeeded() && !self.waits_for_end())
    }

    fn set_condition(&mut self, kind: &str, state: &str, reason: &str, message: &str) {
        let now = rfc3339(self.now);
        let mut condition = json!({"type": kind, "status": state, "lastProbeTime": now, "lastTransitionTime": now});
        for (field, text) in [("reason", reason), ("message", message)] {
            if !text.is_empty() {
                condition[field] = text.into();
            }
        }
        conditions::replace(&mut self.status, condition);
    }

    /// Moves what has lost its finalizer into the numbers, and notes what has finished since. Answers a reason to fail
    /// the Job that the policy found.
    fn count_finished(&mut self) -> Option<String> {
        let with: BTreeSet<&str> = self.pods.iter().filter(|p| has_finalizer(p)).map(|p| &*p.object.meta.uid).collect();
        for (at, field) in [(SUCCEEDED, "succeeded"), (FAILED, "failed")] {
            let before = self.uncounted[at].len();
            self.uncounted[at].retain(|uid| with.contains(uid.as_str()));
            let counted = (before - self.uncounted[at].len()) as i64;
            let total = number(&self.status, field) + counted;
            conditions::count(&mut self.status, field, total);
        }
        let mut fail = None;
        let indexed = self.indexed();
        let bound = i64::from(self.spec.completions.unwrap_or(0));
        for pod in self.pods.iter().filter(|p| has_finalizer(p)).take(BURST) {
            let uid = pod.object.meta.uid.to_string();
            if pod.is_succeeded() {
                match (indexed, index_of(pod)) {
                    // Indexes are a set: noting one twice does no harm, so they need no uncounted list.
                    (true, Some(index)) if index < bound => {
                        self.done.insert(index);
                    }
                    (true, _) => {}
                    (false, _) => {
                        self.uncounted[SUCCEEDED].insert(uid);
                    }
                }
            } else if self.is_lost(pod) {
                match judge(self.spec, pod) {
                    Verdict::Ignore => continue,
                    Verdict::FailJob(why) => {
                        fail.get_or_insert(why);
                    }
                    Verdict::FailIndex => {
                        if let Some(index) = index_of(pod) {
                            self.failed_indexes.insert(index);
                        }
                    }
                    Verdict::Count => {
                        if let (Some(limit), Some(index)) = (self.per_index(), index_of(pod))
                            && failures_before(pod) >= limit
                        {
                            self.failed_indexes.insert(index);
                        }
                    }
                }
                self.uncounted[FAILED].insert(uid);
            }
        }
        fail
    }

    fn succeeded(&self) -> i64 {
        if self.indexed() {
            self.done.len()
        } else {
            number(&self.status, "succeeded") + self.uncounted[SUCCEEDED].len() as i64
        }
    }

    fn failed(&self) -> i64 {
        number(&self.status, "failed") + self.uncounted[FAILED].len() as i64
    }

    /// Why the Job fails, if it does: (reason, message).
    fn reason_to_fail(&mut self, by_policy: Option<String>) -> Option<(&'static str, String)> {
        if let Some(why) = by_policy {
            return Some(("PodFailurePolicy", why));
        }
        let limit = i64::from(self.spec.backoff_limit.unwrap_or(6));
        let restarts: i64 = match self.spec.template.spec.as_ref().and_then(|s| s.restart_policy.as_deref()) {
            Some("OnFailure") => self.pods.iter().filter(|p| p.is_active()).map(|p| p.facts.total_restarts).sum(),
            _ => 0,
        };
        if self.failed() > limit || (restarts > 0 && restarts >= limit) {
            return Some(("BackoffLimitExceeded", "Job has reached the specified backoff limit".into()));
        }
        let suspended = self.spec.suspend == Some(true);
        if let (Some(seconds), false) = (self.spec.active_deadline_seconds, suspended) {
            let started =
                client::time::parse(self.status["startTime"].as_str().unwrap_or_default()).unwrap_or(self.now);
            let left = seconds - pods::seconds_between(started, self.now);
            if left <= 0 {
                return Some(("DeadlineExceeded", "Job was active longer than specified deadline".into()));
            }
            self.plan.again_after(Duration::from_secs(left.unsigned_abs()));
        }
        self.per_index()?;
        if self.spec.max_failed_indexes.is_some_and(|most| self.failed_indexes.len() > i64::from(most)) {
            return Some((
                "MaxFailedIndexesExceeded",
                "Job has exceeded the specified maximal number of failed indexes".into(),
            ));
        }
        let all = i64::from(self.spec.completions.unwrap_or(0));
        let over = !self.failed_indexes.is_empty() && self.done.len() + self.failed_indexes.len() >= all;
        over.then(|| ("FailedIndexes", "Job has failed indexes".into()))
    }

    fn meets_success_policy(&self) -> Option<usize> {
        let rules = &self.spec.success_policy.as_ref().filter(|_| self.indexed())?.rules;
        rules.iter().position(|rule| {
            let bound = i64::from(self.spec.completions.unwrap_or(0));
            let listed = rule.succeeded_indexes.as_deref().map(|text| Indexes::parse(text, bound));
            let matching = self.done.iter().filter(|i| listed.as_ref().is_none_or(|l| l.has(*i))).count() as i64;
            match (rule.succeeded_count, &listed) {
                (Some(count), _) => matching >= i64::from(count),
                (None, Some(listed)) => matching >= listed.len(),
                (None, None) => false,
            }
        })
    }

    fn decide(&mut self, known: &Value, taken: &dyn Fn(&str) -> bool) -> Result<(), Status> {
        let suspended = self.spec.suspend == Some(true);
        if self.status.get("startTime").is_none() && !suspended {
            self.status["startTime"] = rfc3339(self.now).into();
        }
        let by_policy = self.count_finished();
        let active: Vec<&PodView> = self.pods.iter().filter(|p| p.is_active()).collect();
        let terminating = self.pods.iter().filter(|p| p.is_terminating() && !p.is_finished()).count() as i64;
        let complete = match self.spec.completions {
            None => self.succeeded() > 0 && active.is_empty(),
            Some(completions) => self.succeeded() >= i64::from(completions),
        };
        // The end is declared in two steps: first why, then, when no pod runs any more, that.
        let target = |status: &Value, kind: &str| {
            let c = conditions::get(status, kind).filter(|c| c["status"] == "True")?;
            Some((
                c["reason"].as_str().unwrap_or_default().to_string(),
                c["message"].as_str().unwrap_or_default().to_string(),
            ))
        };
        let mut success = target(known, "SuccessCriteriaMet");
        let mut failure = target(known, "FailureTarget").filter(|_| success.is_none());
        if success.is_none() && failure.is_none() {
            // What ends it badly goes before what ends it early and well.
            if let Some((reason, message)) = self.reason_to_fail(by_policy) {
                failure = Some((reason.into(), message));
            } else if let Some(rule) = self.meets_success_policy() {
                success = Some(("SuccessPolicy".into(), format!("Matched rules at index {rule}")));
            } else if complete {
                success = Some(("CompletionsReached".into(), "Reached expected number of succeeded pods".into()));
            }
            if let Some((reason, message)) = &success {
                self.set_condition("SuccessCriteriaMet", "True", &reason.clone(), &message.clone());
            } else if let Some((reason, message)) = &failure {
                self.set_condition("FailureTarget", "True", &reason.clone(), &message.clone());
            }
        }
        let mut pods_done = Vec::new();
        let mut gone: BTreeSet<&str> = BTreeSet::new();
        if success.is_some() || failure.is_some() {
            pods_done.extend(active.iter().map(|p| delete_pod(self.object, p)));
            gone.extend(active.iter().map(|p| &*p.object.meta.uid));
        } else if suspended {
            pods_done.extend(active.iter().map(|p| delete_pod(self.object, p)));
            gone.extend(active.iter().map(|p| &*p.object.meta.uid));
            if conditions::get(&self.status, "Suspended").is_none_or(|c| c["status"] != "True") {
                self.set_condition("Suspended", "True", "JobSuspended", "Job suspended");
                self.plan.note(Note::normal(self.object, "Suspended", "Job suspended"));
            }
            if let Some(map) = self.status.as_object_mut() {
                map.remove("startTime");
            }
        } else {
            if conditions::is_true(&self.status, "Suspended") {
                self.set_condition("Suspended", "False", "JobResumed", "Job resumed");
                self.status["startTime"] = rfc3339(self.now).into();
                self.plan.note(Note::normal(self.object, "Resumed", "Job resumed"));
            }
            pods_done = self.manage(&active, terminating, taken, &mut gone)?;
        }
        let finishing = gone.is_empty() && active.is_empty() && terminating == 0;
        self.write(known, &active, terminating, success, failure, finishing, pods_done)
    }

    #[allow(clippy::too_many_arguments)]
    fn write(
        &mut self,
        known: &Value,
        active: &[&PodView],
        terminating: i64,
        success: Option<(String, String)>,
        failure: Option<(String, String)>,
        nothing_runs: bool,
        pod_actions: Vec<Action>,
    ) -> Result<(), Status> {
        let indexed = self.indexed();
        let status = &mut self.status;
        conditions::count(status, "active", active.len() as i64);
        status["ready"] = active.iter().filter(|p| p.is_ready()).count().into();
        status["terminating"] = terminating.into();
        if indexed {
            conditions::count(status, "succeeded", self.done.len());
            for (field, set) in [("completedIndexes", &self.done), ("failedIndexes", &self.failed_indexes)] {
                if !set.is_empty() {
                    status[field] = set.to_string().into();
                }
            }
        }
        let mut uncounted = json!({});
        for (at, field) in [(SUCCEEDED, "succeeded"), (FAILED, "failed")] {
            if !self.uncounted[at].is_empty() {
                uncounted[field] = json!(self.uncounted[at]);
            }
        }
        let all_counted = uncounted == json!({});
        status["uncountedTerminatedPods"] = uncounted;
        let mut note = None;
        let is_ending = success.is_some() || failure.is_some();
        if nothing_runs && all_counted {
            if let Some((reason, message)) = success {
                self.set_condition("Complete", "True", &reason, &message);
                self.status["completionTime"] = rfc3339(self.now).into();
                if self.spec.completions.is_some_and(|c| number(&self.status, "succeeded") > i64::from(c)) {
                    let said = "Too many succeeded pods running after completion count reached";
                    self.plan.note(Note::warning(self.object, "TooManySucceededPods", said));
                }
                note = Some(Note::normal(self.object, "Completed", "Job completed"));
            } else if let Some((reason, message)) = failure {
                self.set_condition("Failed", "True", &reason, &message);
                note = Some(Note { reason: known_reason(&reason), ..Note::warning(self.object, "", message) });
            }
        }
        if self.status != *known {
            let mut write = Action::status(&client::gvr_of::<Job>(), self.object, self.status.clone())?;
            write.done = note;
            self.plan.act(write);
        }
        // Only what the status (written just now, or before) accounts for may lose its finalizer.
        let held = if is_ending { BTreeSet::new() } else { self.remembering() };
        for pod in self.pods.iter().filter(|p| has_finalizer(p) && !held.contains(&*p.object.meta.uid)) {
            let uid = &*pod.object.meta.uid;
            let noted = self.uncounted.iter().any(|u| u.contains(uid));
            let indexed_success = indexed && pod.is_succeeded();
            let ignored = self.is_lost(pod) && judge(self.spec, pod) == Verdict::Ignore;
            if noted || indexed_success || ignored {
                self.plan.act(strip(pod));
            }
        }
        // Last, so that a refused pod does not keep the counts from being written.
        self.plan.actions.extend(pod_actions);
        Ok(())
    }

    /// Uids of failed pods that stay until they are replaced: they alone know how often their index failed.
    fn remembering(&self) -> BTreeSet<String> {
        let mut last: BTreeMap<i64, &PodView> = BTreeMap::new();
        for pod in self.pods.iter().filter(|p| self.per_index().is_some() && has_finalizer(p)) {
            let Some(index) = index_of(pod).filter(|i| !self.done.has(*i) && !self.failed_indexes.has(*i)) else {
                continue;
            };
            match last.get(&index) {
                Some(other) if failures_before(other) > failures_before(pod) => {}
                _ => drop(last.insert(index, pod)),
            }
        }
        last.into_values().filter(|p| self.is_lost(p)).map(|p| p.object.meta.uid.to_string()).collect()
    }

    /// Failures of an index so far, for the pod that comes next: those that count, and those the policy ignores.
    fn failures_of(&self, of_index: &[&PodView]) -> (i64, i64) {
        let lost = of_index.iter().filter(|p| self.is_lost(p));
        let each = lost.map(|p| match judge(self.spec, p) {
            Verdict::Ignore => (failures_before(p), ignored_before(p) + 1),
            _ => (failures_before(p) + 1, ignored_before(p)),
        });
        each.max_by_key(|(counted, ignored)| counted + ignored).unwrap_or((0, 0))
    }

    /// Brings the number of running pods to what it should be.
    fn manage<'p>(
        &mut self,
        active: &[&'p PodView],
        terminating: i64,
        taken: &dyn Fn(&str) -> bool,
        gone: &mut BTreeSet<&'p str>,
    ) -> Result<Vec<Action>, Status> {
        let parallelism = i64::from(self.spec.parallelism.unwrap_or(1));
        let have = active.len() as i64;
        let want = match self.spec.completions {
            None if self.succeeded() > 0 => have.min(parallelism),
            None => parallelism,
            Some(completions) => {
                (i64::from(completions) - self.succeeded() - self.failed_indexes.len()).clamp(0, parallelism)
            }
        };
        let mut surplus: Vec<&PodView> = Vec::new();
        if self.indexed() {
            // One pod an index, and none for an index that is settled.
            let mut seen = BTreeSet::new();
            for pod in active {
                let index = index_of(pod).filter(|i| *i < i64::from(self.spec.completions.unwrap_or(0)));
                let fine = index.is_some_and(|i| !self.done.has(i) && !self.failed_indexes.has(i) && seen.insert(i));
                if !fine {
                    surplus.push(pod);
                }
            }
        }
        let too_many = usize::try_from(have - want).unwrap_or(0);
        if surplus.len() < too_many {
            let mut others: Vec<&PodView> =
                active.iter().copied().filter(|p| !surplus.iter().any(|s| s.name() == p.name())).collect();
            others.sort_by(|a, b| pods::deletion_order(a, b, &BTreeMap::new(), self.now));
            surplus.extend(others.into_iter().take(too_many - surplus.len()));
        }
        if !surplus.is_empty() {
            gone.extend(
                active
                    .iter()
                    .map(|p| &*p.object.meta.uid)
                    .filter(|uid| surplus.iter().any(|s| &*s.object.meta.uid == *uid)),
            );
            return Ok(surplus.into_iter().take(BURST).map(|p| delete_pod(self.object, p)).collect());
        }
        let blocked = if self.waits_for_end() { terminating } else { 0 };
        let missing = usize::try_from(want - have - blocked).unwrap_or(0).min(BURST);
        if missing == 0 {
            return Ok(Vec::new());
        }
        if self.per_index().is_none()
            && let Some(wait) = self.delay(self.pods.iter())
        {
            self.plan.again_after(wait);
            return Ok(Vec::new());
        }
        self.create(active, missing, taken).map(|creations| vec![Action::slow_start(creations)])
    }

    /// How long to wait yet before a pod is replaced, after the failures since the last success.
    fn delay<'p>(&self, of: impl Iterator<Item = &'p PodView>) -> Option<Duration> {
        let (mut failures, mut last_success) = (Vec::new(), Timestamp::MIN);
        for pod in of {
            if pod.is_succeeded() {
                last_success = last_success.max(finished_at(pod).unwrap_or(Timestamp::MIN));
            } else if pod.is_failed() && judge(self.spec, pod) != Verdict::Ignore {
                failures.push(finished_at(pod).unwrap_or_else(|| pod.created()));
            }
        }
        failures.retain(|at| *at > last_success);
        let last = *failures.iter().max()?;
        let doublings = u32::try_from(failures.len() - 1).unwrap_or(u32::MAX).min(10);
        let delay = (FIRST_DELAY << doublings).min(MOST_DELAY);
        let left = delay - pods::seconds_between(last, self.now);
        (left > 0).then(|| Duration::from_secs(left.unsigned_abs()))
    }

    fn create(
        &mut self,
        active: &[&PodView],
        missing: usize,
        taken: &dyn Fn(&str) -> bool,
    ) -> Result<Vec<Action>, Status> {
        let uid = &self.object.meta.uid;
        let uids: Vec<&str> = self.pods.iter().map(|p| &*p.object.meta.uid).collect();
        let mut bodies = Vec::new();
        if !self.indexed() {
            let prefix = pods::name_prefix(&self.object.meta.name);
            for name in pods::fresh_names(&prefix, uid, uids.iter().copied(), taken, missing) {
                bodies.push(pods::from_template(&self.spec.template, self.object, &name, &prefix)?);
            }
        } else {
            let mut running: BTreeSet<i64> = active.iter().filter_map(|p| index_of(p)).collect();
            if self.waits_for_end() {
                running.extend(self.pods.iter().filter(|p| !p.is_finished()).filter_map(index_of));
            }
            let all = i64::from(self.spec.completions.unwrap_or(0));
            let open = (0..all).filter(|i| !running.contains(i) && !self.done.has(*i) && !self.failed_indexes.has(*i));
            let open: Vec<i64> = open.collect();
            for index in open {
                if bodies.len() >= missing {
                    break;
                }
                let of_index: Vec<&PodView> = self.pods.iter().filter(|p| index_of(p) == Some(index)).collect();
                if self.per_index().is_some()
                    && let Some(wait) = self.delay(of_index.iter().copied())
                {
                    self.plan.again_after(wait);
                    continue;
                }
                let prefix = pods::name_prefix(&format!("{}-{index}", self.object.meta.name));
                let names = pods::fresh_names(&prefix, uid, uids.iter().copied(), taken, 1);
                let name = names.first().map(String::as_str).unwrap_or_default();
                let mut body = pods::from_template(&self.spec.template, self.object, name, &prefix)?;
                let failures = self.per_index().map(|_| self.failures_of(&of_index));
                add_index(&mut body, &self.object.meta.name, index, failures);
                bodies.push(body);
            }
        }
        for body in &mut bodies {
            let finalizers = body["metadata"].get("finalizers").and_then(Value::as_array).cloned().unwrap_or_default();
            body["metadata"]["finalizers"] = finalizers.into_iter().chain([FINALIZER.into()]).collect();
        }
        Ok(bodies.into_iter().map(|body| create_pod(self.object, body)).collect())
    }
}

fn told(pod: &PodView, annotation: &str) -> i64 {
    pod.facts.annotation(annotation).and_then(|a| a.parse().ok()).unwrap_or(0)
}

/// Failures of a pod's index that counted before it.
fn failures_before(pod: &PodView) -> i64 {
    told(pod, INDEX_FAILURES)
}

fn ignored_before(pod: &PodView) -> i64 {
    told(pod, INDEX_IGNORED)
}

fn add_index(body: &mut Value, job: &str, index: i64, failures: Option<(i64, i64)>) {
    let text = Value::from(index.to_string());
    body["metadata"]["annotations"][INDEX] = text.clone();
    body["metadata"]["labels"][INDEX] = text;
    if let Some((counted, ignored)) = failures {
        body["metadata"]["annotations"][INDEX_FAILURES] = counted.to_string().into();
        if ignored > 0 {
            body["metadata"]["annotations"][INDEX_IGNORED] = ignored.to_string().into();
        }
    }
    body["spec"]["hostname"] = format!("{job}-{index}").into();
    let path = format!("metadata.labels['{INDEX}']");
    let variable =
        json!({"name": "JOB_COMPLETION_INDEX", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}});
    for field in ["containers", "initContainers"] {
        for container in body["spec"].get_mut(field).and_then(Value::as_array_mut).into_iter().flatten() {
            let env = container.get("env").and_then(Value::as_array).cloned().unwrap_or_default();
            if !env.iter().any(|e| e["name"] == "JOB_COMPLETION_INDEX") {
                container["env"] = env.into_iter().chain([variable.clone()]).collect();
            }
        }
    }
}

/// Event reasons are static; these are all there are.
fn known_reason(reason: &str) -> &'static str {
    ["PodFailurePolicy", "BackoffLimitExceeded", "DeadlineExceeded", "MaxFailedIndexesExceeded", "FailedIndexes"]
        .into_iter()
        .find(|r| *r == reason)
        .unwrap_or("JobFailed")
}
