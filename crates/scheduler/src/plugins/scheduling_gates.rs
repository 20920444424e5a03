//! Pods with scheduling gates wait outside the queue.

use crate::view::PodView;

/// Whether the pod must wait for its gates to be removed.
pub fn holds(pod: &PodView) -> bool {
    !pod.spec.scheduling_gates.is_empty()
}
