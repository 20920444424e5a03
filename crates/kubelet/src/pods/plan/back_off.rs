//! How long a container that keeps ending waits for its next start.

use jiff::{SignedDuration, Timestamp};

/// The first wait before a restart; as upstream.
pub(super) const FIRST_BACK_OFF: SignedDuration = SignedDuration::from_secs(10);
/// The longest, unless the node is told another.
pub const MAX_BACK_OFF: SignedDuration = SignedDuration::from_secs(300);

/// How long a container that ended shows how, before it shows that it waits. Upstream's kubelet tells the wait with its
/// next look at the pod, seconds after the end.
pub(super) const END_TOLD: SignedDuration = SignedDuration::from_secs(3);

/// The wait a container earned by its last restart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BackOff {
    pub delay: SignedDuration,
    /// When it was earned.
    pub at: Timestamp,
}

impl BackOff {
    /// The wait after one more restart; a container that ran long enough starts over.
    pub fn next(last: Option<BackOff>, finished: Timestamp, now: Timestamp, most: SignedDuration) -> BackOff {
        let delay = match last {
            Some(last) if !last.expired(finished) => (last.delay * 2).min(most),
            _ => FIRST_BACK_OFF.min(most),
        };
        BackOff { delay, at: now }
    }

    fn expired(&self, finished: Timestamp) -> bool {
        finished.duration_since(self.at) > MAX_BACK_OFF * 2
    }

    /// Until when a container that finished then has to wait.
    pub(super) fn until(&self, finished: Timestamp) -> Option<Timestamp> {
        if self.expired(finished) { None } else { finished.checked_add(self.delay).ok() }
    }
}

/// Whether a wait is over. No wait is longer than the longest: one that seems so began before the clock was set back.
pub fn is_over(until: Timestamp, now: Timestamp) -> bool {
    until <= now || until.duration_since(now) > MAX_BACK_OFF
}

/// A duration as Go prints it, in whole seconds.
pub(super) fn go_duration(delay: SignedDuration) -> String {
    let seconds = delay.as_secs();
    match (seconds / 60, seconds % 60) {
        (0, s) => format!("{s}s"),
        (m, s) => format!("{m}m{s}s"),
    }
}
