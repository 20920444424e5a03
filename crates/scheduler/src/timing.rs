//! What one attempt to place a pod takes, by extension point; of every tenth attempt also by plugin, as upstream samples it.
//!
//! The core reads the clock at its seams and nothing else of it: no decision depends on what is noted here. Where nobody
//! asks ([`Timing::default`]), no clock is read. Plugins whose verdict on a node is remembered run only for nodes that changed, and
//! only those runs are seen here; those that score all nodes at once are seen once.

use std::time::{Duration, Instant};

use crate::verdict::{Plugin, Plugins, Refusal};

/// An extension point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Point {
    PreFilter,
    Filter,
    PostFilter,
    Score,
    Reserve,
    Unreserve,
    PreBind,
    Bind,
}

impl Point {
    pub const ALL: [Self; 8] = [
        Self::PreFilter,
        Self::Filter,
        Self::PostFilter,
        Self::Score,
        Self::Reserve,
        Self::Unreserve,
        Self::PreBind,
        Self::Bind,
    ];

    /// As upstream calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::PreFilter => "PreFilter",
            Self::Filter => "Filter",
            Self::PostFilter => "PostFilter",
            Self::Score => "Score",
            Self::Reserve => "Reserve",
            Self::Unreserve => "Unreserve",
            Self::PreBind => "PreBind",
            Self::Bind => "Bind",
        }
    }
}

/// Of so many attempts one is looked at plugin by plugin.
const SAMPLED: u32 = 10;
/// Nodes looked at plugin by plugin in such an attempt: enough to know, few enough not to be felt.
const NODES: u32 = 16;

/// How a plugin's run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ended {
    Success,
    Unschedulable,
    Unresolvable,
    Error,
}

impl Ended {
    pub const ALL: [Self; 4] = [Self::Success, Self::Unschedulable, Self::Unresolvable, Self::Error];

    /// As upstream's codes are called.
    pub fn name(self) -> &'static str {
        match self {
            Self::Success => "Success",
            Self::Unschedulable => "Unschedulable",
            Self::Unresolvable => "UnschedulableAndUnresolvable",
            Self::Error => "Error",
        }
    }

    pub fn of<E>(result: &Result<(), E>, otherwise: Self) -> Self {
        if result.is_ok() { Self::Success } else { otherwise }
    }
}

/// One run of a plugin.
pub type Run = (&'static str, Point, Ended, Duration);

/// See the module.
#[derive(Debug, Default)]
pub struct Timing {
    /// Whether somebody asks.
    pub on: bool,
    attempts: u32,
    last: Option<Instant>,
    points: Vec<(Point, Ended, Duration)>,
    /// Whether this attempt is looked at plugin by plugin, and at how many more nodes.
    close: bool,
    nodes: u32,
    plugins: Vec<Run>,
    /// Plugins that had something to filter by, and to score by.
    pub filtered: Plugins,
    pub scored: Vec<&'static str>,
}

impl Timing {
    /// One that is asked.
    pub fn watching() -> Self {
        Self { on: true, ..Self::default() }
    }

    /// An attempt begins.
    pub fn begin(&mut self) {
        if !self.on {
            return;
        }
        self.points.clear();
        self.plugins.clear();
        (self.filtered, self.nodes) = (Plugins::default(), NODES);
        self.scored.clear();
        self.close = self.attempts.is_multiple_of(SAMPLED);
        self.attempts = self.attempts.wrapping_add(1);
        self.last = Some(Instant::now());
    }

    /// What was done since the last call, or the beginning, was this.
    pub fn lap(&mut self, point: Point, ended: Ended) {
        if let Some(last) = self.last.filter(|_| self.on) {
            let now = Instant::now();
            self.points.push((point, ended, now - last));
            self.last = Some(now);
        }
    }

    /// Whether one more node is looked at plugin by plugin.
    pub fn looks_at_node(&mut self) -> bool {
        let looks = self.on && self.close && self.nodes > 0;
        self.nodes -= u32::from(looks);
        looks
    }

    /// Whether plugins that look at all nodes at once are watched.
    pub fn is_close(&self) -> bool {
        self.on && self.close
    }

    /// Notes a run that began then.
    pub fn ran(&mut self, plugin: &'static str, point: Point, ended: Ended, since: Instant) {
        self.plugins.push((plugin, point, ended, since.elapsed()));
    }

    /// Runs what a plugin does once a pod.
    pub fn once<T>(&mut self, plugin: &'static str, point: Point, work: impl FnOnce() -> T) -> T {
        if !self.is_close() {
            return work();
        }
        let since = Instant::now();
        let out = work();
        self.ran(plugin, point, Ended::Success, since);
        out
    }

    /// What was noted of the attempt.
    pub fn points(&self) -> &[(Point, Ended, Duration)] {
        &self.points
    }

    pub fn plugins(&self) -> &[Run] {
        &self.plugins
    }
}

/// Who runs the plugins that look at one node.
pub trait Watch {
    fn filter(&mut self, plugin: Plugin, work: impl FnOnce() -> Result<(), Refusal>) -> Result<(), Refusal>;
    fn score(&mut self, plugin: &'static str, work: impl FnOnce() -> i64) -> i64;
}

/// Nobody looks.
pub struct Unwatched;

impl Watch for Unwatched {
    #[inline]
    fn filter(&mut self, _: Plugin, work: impl FnOnce() -> Result<(), Refusal>) -> Result<(), Refusal> {
        work()
    }

    #[inline]
    fn score(&mut self, _: &'static str, work: impl FnOnce() -> i64) -> i64 {
        work()
    }
}

impl Watch for Timing {
    fn filter(&mut self, plugin: Plugin, work: impl FnOnce() -> Result<(), Refusal>) -> Result<(), Refusal> {
        let since = Instant::now();
        let out = work();
        let ended = match &out {
            Ok(()) => Ended::Success,
            Err(refusal) if refusal.resolvable => Ended::Unschedulable,
            Err(_) => Ended::Unresolvable,
        };
        self.ran(plugin.name(), Point::Filter, ended, since);
        out
    }

    fn score(&mut self, plugin: &'static str, work: impl FnOnce() -> i64) -> i64 {
        let since = Instant::now();
        let out = work();
        self.ran(plugin, Point::Score, Ended::Success, since);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tenth_attempt_is_looked_at_closely() {
        let mut timing = Timing::watching();
        let mut close = 0;
        for _ in 0..100 {
            timing.begin();
            while timing.looks_at_node() {
                let _ = timing.filter(Plugin::NodePorts, || Ok(()));
            }
            timing.lap(Point::Filter, Ended::Success);
            close += usize::from(!timing.plugins().is_empty());
            assert!(timing.plugins().len() <= NODES as usize && timing.points().len() == 1);
        }
        assert_eq!(close, 10);
        let mut off = Timing::default();
        off.begin();
        off.lap(Point::Filter, Ended::Success);
        assert!(!off.looks_at_node() && off.points().is_empty());
    }
}
