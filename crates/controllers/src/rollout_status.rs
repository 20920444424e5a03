//! What a Deployment's status says: counts, availability, and whether the rollout gets on. Pure.

use std::time::Duration;

use client::time::rfc3339;
use serde_json::{Value, json};

use crate::conditions::{self, Condition};
use crate::rollout::{Rollout, Set};

impl Rollout<'_> {
    pub fn deadline(&self) -> Option<i64> {
        self.spec.progress_deadline_seconds.filter(|s| *s != i32::MAX).map(i64::from)
    }

    pub fn is_complete(&self, status: &Value) -> bool {
        let is = |field: &str| status[field].as_i64().unwrap_or(0) == self.want;
        is("updatedReplicas")
            && is("replicas")
            && is("availableReplicas")
            && status["observedGeneration"].as_i64().unwrap_or(0) >= self.object.meta.generation
    }

    /// A condition with both of a Deployment's times; the transition time stays when the status does.
    pub fn progressing(&mut self, status: &str, reason: &str, message: &str) {
        let current = conditions::get(&self.status, "Progressing");
        let now = Value::from(rfc3339(self.now));
        let since = match current {
            Some(c) if c["status"] == status => c["lastTransitionTime"].clone(),
            _ => now.clone(),
        };
        let condition = json!({
            "type": "Progressing", "status": status, "lastUpdateTime": now, "lastTransitionTime": since,
            "reason": reason, "message": message,
        });
        conditions::replace(&mut self.status, condition);
    }

    pub fn progressing_reason(&self) -> &str {
        conditions::get(&self.status, "Progressing").and_then(|c| c["reason"].as_str()).unwrap_or_default()
    }

    /// A pause stops the progress deadline's clock.
    pub fn note_pause(&mut self) {
        if self.deadline().is_none() || self.progressing_reason() == "ProgressDeadlineExceeded" {
            return;
        }
        let known = self.progressing_reason() == "DeploymentPaused";
        match self.spec.paused == Some(true) {
            true if !known => self.progressing("Unknown", "DeploymentPaused", "Deployment is paused"),
            false if known => self.progressing("Unknown", "DeploymentResumed", "Deployment is resumed"),
            _ => {}
        }
    }

    pub fn count(&mut self, known: &Value) {
        let sum = |of: fn(&Set) -> i64| self.all().map(of).sum::<i64>();
        let (replicas, ready, available) = (sum(|s| s.actual), sum(|s| s.ready), sum(|s| s.available));
        let (terminating, wanted) = (sum(|s| s.terminating), sum(|s| s.replicas));
        let updated = self.new.as_ref().map_or(0, |s| s.actual);
        if !self.status.is_object() {
            self.status = json!({});
        }
        let status = &mut self.status;
        status["observedGeneration"] = self.object.meta.generation.into();
        let counts = [
            ("replicas", replicas),
            ("updatedReplicas", updated),
            ("readyReplicas", ready),
            ("availableReplicas", available),
            ("unavailableReplicas", (wanted - available).max(0)),
        ];
        for (field, number) in counts {
            conditions::count(status, field, number);
        }
        status["terminatingReplicas"] = terminating.into();
        let (state, reason, message) = if available >= self.want - self.unavailable {
            ("True", "MinimumReplicasAvailable", "Deployment has minimum availability.")
        } else {
            ("False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
        };
        let before = conditions::get(status, "Available").cloned();
        conditions::set(status, Condition { kind: "Available", status: state, reason, message }, self.now);
        if conditions::get(status, "Available") != before.as_ref() {
            let now = rfc3339(self.now);
            let list = status["conditions"].as_array_mut().into_iter().flatten();
            list.filter(|c| c["type"] == "Available").for_each(|c| c["lastUpdateTime"] = now.as_str().into());
        }
        let failure = self.new.iter().chain(&self.old).find_map(|s| {
            let list = s.typed.status.as_ref()?.conditions.as_ref()?;
            list.iter().find(|c| c.type_.as_deref() == Some("ReplicaFailure")).cloned()
        });
        match failure {
            None => conditions::remove(&mut self.status, "ReplicaFailure"),
            Some(failure) => {
                let since = failure.last_transition_time.as_ref().map(|t| rfc3339(t.0));
                let condition = json!({
                    "type": "ReplicaFailure", "status": failure.status, "reason": failure.reason,
                    "message": failure.message, "lastTransitionTime": since, "lastUpdateTime": since,
                });
                let same = conditions::get(known, "ReplicaFailure")
                    .is_some_and(|c| c["status"] == condition["status"] && c["reason"] == condition["reason"]);
                if !same {
                    conditions::replace(&mut self.status, condition);
                }
            }
        }
    }

    pub fn judge_progress(&mut self, known: &Value) {
        let Some(deadline) = self.deadline() else {
            conditions::remove(&mut self.status, "Progressing");
            return;
        };
        let number = |status: &Value, field: &str| status[field].as_i64().unwrap_or(0);
        let all_updated = number(&self.status, "replicas") == number(&self.status, "updatedReplicas");
        if all_updated && self.progressing_reason() == "NewReplicaSetAvailable" {
            return;
        }
        let what = match &self.new {
            Some(new) => format!("ReplicaSet \"{}\"", new.name()),
            None => format!("Deployment \"{}\"", self.object.meta.name),
        };
        let old = |status: &Value| number(status, "replicas") - number(status, "updatedReplicas");
        let more = |field: &str| number(&self.status, field) > number(known, field);
        let progressed = more("updatedReplicas")
            || more("readyReplicas")
            || more("availableReplicas")
            || old(&self.status) < old(known);
        if self.is_complete(&self.status) {
            self.progressing("True", "NewReplicaSetAvailable", &format!("{what} has successfully progressed."));
        } else if progressed {
            self.progressing("True", "ReplicaSetUpdated", &format!("{what} is progressing."));
        } else if let Some(since) =
            conditions::get(&self.status, "Progressing").and_then(|c| conditions::time(c, "lastUpdateTime"))
        {
            match self.progressing_reason() {
                "NewReplicaSetAvailable" | "ProgressDeadlineExceeded" => {}
                _ => {
                    let left = deadline - crate::pods::seconds_between(since, self.now);
                    if left < 0 {
                        self.progressing(
                            "False",
                            "ProgressDeadlineExceeded",
                            &format!("{what} has timed out progressing."),
                        );
                    } else {
                        self.plan.again_after(Duration::from_secs(left.unsigned_abs() + 1));
                    }
                }
            }
        }
    }
}
