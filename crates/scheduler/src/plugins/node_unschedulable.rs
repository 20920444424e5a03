//! Cordoned nodes take only pods that tolerate the taint of being so.

use std::sync::LazyLock;

use crate::node::{Node, Taint};
use crate::pod::{Effect, Spec};
use crate::symbol::Symbol;
use crate::verdict::{Plugin, Reason, Refusal};

static TAINT: LazyLock<Taint> = LazyLock::new(|| Taint {
    key: Symbol::of("node.kubernetes.io/unschedulable"),
    value: Symbol::of(""),
    number: None,
    effect: Effect::NoSchedule,
});

pub fn filter(spec: &Spec, node: &Node) -> Result<(), Refusal> {
    if node.unschedulable && !spec.tolerations.iter().any(|t| t.tolerates(&TAINT)) {
        return Err(Refusal::unresolvable(Plugin::NodeUnschedulable, Reason::Unschedulable));
    }
    Ok(())
}
