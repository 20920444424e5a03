//! Names shared with upstream: labels and annotations on sandboxes and containers, and the layout of log and pod
//! directories. Log shippers, `crictl` and an adopting agent all read these.

use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, Pod};

use super::{name, namespace, uid};

pub const POD_NAME: &str = "io.kubernetes.pod.name";
pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
pub const POD_UID: &str = "io.kubernetes.pod.uid";
pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";

pub const CONTAINER_HASH: &str = "io.kubernetes.container.hash";
pub const RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
pub const MESSAGE_PATH: &str = "io.kubernetes.container.terminationMessagePath";
pub const MESSAGE_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
pub const POD_GRACE: &str = "io.kubernetes.pod.terminationGracePeriod";
pub const POD_DELETION_GRACE: &str = "io.kubernetes.pod.deletionGracePeriod";
pub const PRE_STOP: &str = "io.kubernetes.container.preStopHandler";
pub const CONTAINER_PORTS: &str = "io.kubernetes.container.ports";

/// Annotations the agent puts on static pods and their mirrors.
pub const CONFIG_SOURCE: &str = "kubernetes.io/config.source";
pub const CONFIG_HASH: &str = "kubernetes.io/config.hash";
pub const CONFIG_SEEN: &str = "kubernetes.io/config.seen";
pub const CONFIG_MIRROR: &str = "kubernetes.io/config.mirror";

/// FNV-1a of the container's name and image, in hex: what makes a running container differ from its specification.
pub fn container_hash(container: &Container) -> String {
    let mut hash: u32 = 0x811c_9dc5;
    for byte in container.name.bytes().chain([0]).chain(container.image.as_deref().unwrap_or_default().bytes()) {
        hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    }
    format!("{hash:x}")
}

/// `<log dir>/pods/<namespace>_<name>_<uid>`.
pub fn pod_log_dir(pod_logs: &Path, pod: &Pod) -> PathBuf {
    pod_logs.join(format!("{}_{}_{}", namespace(pod), name(pod), uid(pod)))
}

/// A container's log below its pod's log directory.
pub fn container_log(container: &str, restart_count: u32) -> String {
    format!("{container}/{restart_count}.log")
}

/// `<log dir>/containers/<pod>_<namespace>_<container>-<id>.log`: a link to the log, as cluster-wide shippers expect.
pub fn container_log_link(log_dir: &Path, pod: &str, namespace: &str, container: &str, id: &str) -> PathBuf {
    let file = format!("{pod}_{namespace}_{container}-{id}.log");
    log_dir.join("containers").join(file)
}
