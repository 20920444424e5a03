//! Static pods: manifests in a directory, run without the API server and mirrored to it.
//!
//! A static pod's uid is the hash of its manifest, so that a changed file is another pod. The API knows it only through
//! its mirror, which the agent creates and replaces; deleting a mirror does not end the pod.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use client::DeleteOptions;
use k8s_openapi::api::core::v1::Pod;

use crate::agent::Context;
use crate::pods;
use crate::spec::{self, names};

/// How often the directory is read; upstream watches it too and falls back to twenty seconds.
const EVERY: Duration = Duration::from_secs(2);
/// Bytes of a manifest.
const MAX_MANIFEST: u64 = 1 << 20;

/// The static pods that run, by uid.
#[derive(Default)]
pub struct Statics {
    running: Mutex<HashMap<String, Arc<Pod>>>,
}

impl Statics {
    fn running(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<Pod>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn is_static(&self, uid: &str) -> bool {
        self.running().contains_key(uid)
    }

    /// The API shows a mirror: a new one is told how its pod is, one whose pod no longer runs here is removed.
    pub fn mirror_seen(&self, context: &Arc<Context>, mirror: &Arc<Pod>) {
        let hash =
            mirror.metadata.annotations.as_ref().and_then(|a| a.get(names::CONFIG_MIRROR)).cloned().unwrap_or_default();
        if self.is_static(&hash) {
            if mirror.status.as_ref().is_none_or(|s| s.start_time.is_none()) {
                // A new mirror knows nothing yet.
                context.workers.resend(&hash);
            }
            return;
        }
        let (context, mirror) = (context.clone(), mirror.clone());
        tokio::spawn(async move {
            let options = DeleteOptions::uid(spec::uid(&mirror)).grace(0);
            let api = context.client.api::<Pod>().namespaced(spec::namespace(&mirror));
            if let Err(error) = api.delete(spec::name(&mirror), &options).await
                && !error.is_not_found()
            {
                tracing::warn!(pod = %spec::described(&mirror), "stale mirror pod not deleted: {error}");
            }
        });
    }
}

/// FNV-1a over 128 bits, in hex: stable over restarts, which is all a static pod's uid needs.
fn fingerprint(parts: &[&[u8]]) -> String {
    let mut hash: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    for byte in parts.iter().flat_map(|p| p.iter()) {
        hash = (hash ^ u128::from(*byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b);
    }
    format!("{hash:032x}")
}

/// A manifest as a pod of this node.
fn parse(text: &str, node: &str) -> anyhow::Result<Pod> {
    let (value, _) = meta::yaml::read(text.as_bytes()).map_err(anyhow::Error::msg)?;
    let mut pod: Pod = serde_json::from_value(value)?;
    let name = pod
        .metadata
        .name
        .clone()
        .filter(|n| !n.is_empty())
        .ok_or_else(|| anyhow::anyhow!("metadata.name is missing"))?;
    anyhow::ensure!(pod.spec.as_ref().is_some_and(|s| !s.containers.is_empty()), "spec.containers is empty");
    let uid = fingerprint(&[node.as_bytes(), text.as_bytes()]);
    pod.metadata.name = Some(format!("{name}-{node}"));
    pod.metadata.namespace.get_or_insert_with(|| "default".into());
    pod.metadata.uid = Some(uid.clone());
    let annotations = pod.metadata.annotations.get_or_insert_default();
    annotations.insert(names::CONFIG_HASH.into(), uid);
    annotations.insert(names::CONFIG_SOURCE.into(), "file".into());
    if let Some(spec) = pod.spec.as_mut() {
        spec.node_name = Some(node.into());
        spec.restart_policy.get_or_insert_with(|| "Always".into());
        spec.termination_grace_period_seconds.get_or_insert(30);
        spec.dns_policy.get_or_insert_with(|| "ClusterFirst".into());
        // Whatever taints the node: it is this node's own.
        spec.tolerations.get_or_insert_default().push(k8s_openapi::api::core::v1::Toleration {
            operator: Some("Exists".into()),
            effect: Some("NoExecute".into()),
            ..Default::default()
        });
        for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
            container.termination_message_path.get_or_insert_with(|| "/dev/termination-log".into());
            container.termination_message_policy.get_or_insert_with(|| "File".into());
        }
    }
    Ok(pod)
}

/// The pods of a directory's manifests, or of one.
fn read(place: &Path, node: &str, complaints: &mut HashMap<String, String>) -> HashMap<String, Arc<Pod>> {
    let mut out = HashMap::new();
    let paths = match std::fs::read_dir(place) {
        Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
        Err(_) => vec![place.to_path_buf()],
    };
    for path in paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with('.') || path.metadata().map_or(true, |m| !m.is_file() || m.len() > MAX_MANIFEST) {
            continue;
        }
        let parsed = std::fs::read_to_string(&path).map_err(anyhow::Error::from).and_then(|text| parse(&text, node));
        match parsed {
            Ok(pod) => {
                complaints.remove(&name);
                out.insert(spec::uid(&pod).to_string(), Arc::new(pod));
            }
            Err(error) => {
                // Said once, not every time the directory is read.
                let error = format!("{error:#}");
                if complaints.get(&name) != Some(&error) {
                    tracing::error!(file = name, "static pod manifest refused: {error}");
                    complaints.insert(name, error);
                }
            }
        }
    }
    out
}

/// The mirror to create.
fn mirror(pod: &Pod, node_uid: &str, node: &str) -> Pod {
    let mut out = pod.clone();
    let hash = spec::uid(pod).to_string();
    out.metadata.uid = None;
    out.metadata.annotations.get_or_insert_default().insert(names::CONFIG_MIRROR.into(), hash);
    out.metadata.owner_references = Some(vec![k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference {
        api_version: "v1".into(),
        kind: "Node".into(),
        name: node.into(),
        uid: node_uid.into(),
        controller: Some(true),
        block_owner_deletion: None,
    }]);
    out
}

/// Follows the directory until the agent stops.
pub async fn run(context: Arc<Context>) {
    let Some(dir) = context.config.static_pod_path.clone() else { return std::future::pending().await };
    let node = context.config.node_name.clone();
    let mut complaints = HashMap::new();
    context.learn_engine().await;
    loop {
        let wanted = read(&dir, &node, &mut complaints);
        let have = context.statics.running().clone();
        for uid in have.keys().filter(|uid| !wanted.contains_key(*uid)) {
            context.statics.running().remove(uid);
            pods::end_static(&context, uid);
        }
        for (uid, pod) in wanted.iter().filter(|(uid, _)| !have.contains_key(*uid)) {
            context.statics.running().insert(uid.clone(), pod.clone());
            pods::begin_static(&context, pod.clone());
        }
        if let Some(node_uid) = context.node().and_then(|n| n.metadata.uid.clone()) {
            for pod in wanted.values() {
                ensure_mirror(&context, pod, &node_uid).await;
            }
        }
        tokio::time::sleep(EVERY).await;
    }
}

async fn ensure_mirror(context: &Context, pod: &Pod, node_uid: &str) {
    let key = format!("{}/{}", spec::namespace(pod), spec::name(pod));
    let api = context.client.api::<Pod>().namespaced(spec::namespace(pod));
    let shown = context.pods.get(&key).and_then(|o| o.typed::<Pod>().ok());
    let hash = shown.as_ref().and_then(|m| m.metadata.annotations.as_ref()?.get(names::CONFIG_MIRROR).cloned());
    match (&shown, hash) {
        (Some(m), Some(hash)) if hash == spec::uid(pod) && m.metadata.deletion_timestamp.is_none() => {}
        (Some(m), _) => {
            let options = DeleteOptions::uid(spec::uid(m)).grace(0);
            if let Err(error) = api.delete(spec::name(m), &options).await {
                tracing::debug!(pod = %spec::described(m), "old mirror pod not deleted: {error}");
            }
        }
        (None, _) => {
            let wanted = mirror(pod, node_uid, &context.config.node_name);
            if let Err(error) = api.create(&wanted).await
                && !error.is_already_exists()
            {
                tracing::debug!(pod = %spec::described(pod), "mirror pod not created: {error}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: &str =
        "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {containers: [{name: c, image: i}]}\n";

    #[test]
    fn manifests_become_pods_of_this_node() {
        let pod = parse(MANIFEST, "n1").unwrap();
        assert_eq!((spec::name(&pod), spec::namespace(&pod)), ("web-n1", "default"));
        assert_eq!(spec::spec(&pod).node_name.as_deref(), Some("n1"));
        assert_eq!(spec::uid(&pod), spec::uid(&parse(MANIFEST, "n1").unwrap()));
        // Another manifest, or the same one elsewhere, is another pod.
        assert_ne!(spec::uid(&pod), spec::uid(&parse(MANIFEST, "n2").unwrap()));
        let shown = mirror(&pod, "node-uid", "n1");
        assert_eq!(shown.metadata.uid, None);
        assert_eq!(shown.metadata.annotations.unwrap()[names::CONFIG_MIRROR], spec::uid(&pod));
        for bad in ["", "kind: Pod", "metadata: {name: a}\nspec: {containers: []}"] {
            assert!(parse(bad, "n1").is_err(), "{bad:?}");
        }
    }
}
