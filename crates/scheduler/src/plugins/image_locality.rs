//! Nodes that have the pod's images already are liked, by size, and the more the more nodes have them: so that one node
//! with a rare image does not draw every pod.

use super::MAX_SCORE;
use crate::node::Node;
use crate::pod::Spec;
use crate::snapshot::Snapshot;

/// Bytes below which having an image is worth nothing, and above which (for each container) more is worth no more.
const LEAST: i64 = 23 * 1024 * 1024;
const MOST_EACH: i64 = 1000 * 1024 * 1024;

pub fn score(spec: &Spec, node: &Node, snapshot: &Snapshot) -> i64 {
    if node.images.is_empty() || spec.images.is_empty() {
        return 0;
    }
    let total = snapshot.present().max(1) as f64;
    let worth = |size: i64, nodes: i64| (size as f64 * (nodes as f64 / total)) as i64;
    let sum: i64 = spec.images.iter().filter_map(|i| Some(worth(node.image(*i)?, snapshot.nodes_with_image(*i)))).sum();
    let most = MOST_EACH * spec.containers.max(1);
    MAX_SCORE * (sum.clamp(LEAST, most) - LEAST) / (most - LEAST)
}
