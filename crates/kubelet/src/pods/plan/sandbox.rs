//! The first step of all: a sandbox for what is to run, and the end of those that cannot be used.

use super::restart::restarts;
use super::{Planner, Step, is_over};
use crate::pods::observed::State;
use crate::spec::{self, Kind};

impl Planner<'_> {
    /// Whether anything would run in a new sandbox.
    fn worth_a_sandbox(&self) -> bool {
        if spec::restart_policy(self.pod) == "Never" && !self.seen.containers.is_empty() {
            // What ran and is gone with its sandbox does not run again.
            return spec::spec(self.pod).containers.iter().any(|c| c.restart_policy.is_some());
        }
        spec::spec(self.pod).containers.iter().any(|c| match self.seen.latest(&c.name) {
            Some(last) if last.state == State::Exited => restarts(self.pod, Kind::Main, c, last.exit_code),
            _ => true,
        })
    }

    pub(super) fn sandbox(&mut self) {
        for old in &self.seen.sandboxes {
            if old.ready || self.seen.containers.iter().any(|c| c.sandbox_id == old.id && c.state == State::Running) {
                self.out.steps.push(Step::StopSandbox { id: old.id.clone() });
            }
        }
        if !self.worth_a_sandbox() {
            self.out.finished = true;
            return;
        }
        if let Some(failed) = &self.memory.sandbox_failed
            && !is_over(failed.retry_at, self.now)
        {
            return self.wake(failed.retry_at);
        }
        let attempt = self.seen.sandboxes.iter().map(|s| s.attempt + 1).max().unwrap_or(0);
        self.out.steps.push(Step::CreateSandbox { attempt });
    }
}
