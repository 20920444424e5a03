//! The step before the main containers: init containers one after the other, sidecars from their turn on.

use super::restart::restarts;
use super::{Planner, Step, Why};
use crate::pods::observed::State;
use crate::spec::{self, Kind};

impl Planner<'_> {
    /// Sees to init containers; true when main containers may run.
    pub(super) fn init(&mut self, sandbox: &str) -> bool {
        let inits: Vec<_> = spec::init_containers(self.pod).collect();
        if inits.is_empty() {
            return true;
        }
        let seen = self.seen;
        let round = self.round;
        let here = |name: &str| {
            seen.containers.iter().find(|c| {
                c.name == name
                    && c.sandbox_id == sandbox
                    && c.state != State::Created
                    && round.is_none_or(|since| c.created_at > since)
            })
        };
        // Records of finished init containers may have been collected: what started later proves them done.
        let main_began = spec::spec(self.pod).containers.iter().any(|c| here(&c.name).is_some());
        let furthest = inits.iter().rposition(|(_, c)| here(&c.name).is_some());
        for (at, (kind, container)) in inits.iter().enumerate() {
            let current = here(&container.name);
            let last = seen.latest(&container.name);
            let passed = main_began || furthest.is_some_and(|f| f > at);
            match (kind, current) {
                (Kind::Sidecar, Some(c)) if matches!(c.state, State::Running | State::Unknown) => {
                    let kept = self.keep(container, c);
                    if !main_began && (!kept || !self.has_started(container, c)) {
                        return false;
                    }
                }
                (Kind::Sidecar, _) => {
                    self.start(*kind, container, last);
                    if !main_began {
                        return false;
                    }
                }
                (_, _) if passed && current.is_none() => {}
                (_, None) => {
                    self.start(*kind, container, last);
                    return false;
                }
                (_, Some(c)) => match c.state {
                    State::Running if main_began => {
                        self.out.steps.push(Step::Kill {
                            id: c.id.clone(),
                            name: c.name.clone(),
                            why: Why::Superseded,
                        });
                    }
                    State::Running | State::Created => return false,
                    State::Unknown => {
                        self.out.steps.push(Step::Kill { id: c.id.clone(), name: c.name.clone(), why: Why::Unknown });
                        return false;
                    }
                    State::Exited if c.exit_code == 0 || passed => {}
                    State::Exited if restarts(self.pod, *kind, container, c.exit_code) => {
                        self.start(*kind, container, Some(c));
                        return false;
                    }
                    State::Exited => {
                        self.out.finished = true;
                        return false;
                    }
                },
            }
        }
        true
    }
}
