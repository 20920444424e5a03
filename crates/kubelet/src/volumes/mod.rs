//! A pod's volumes on this node: made before its sandbox, kept current while it runs, removed after it.
//!
//! It guarantees that nothing is deleted through a mount, and that what the API names stays within the pod's directory.
//! It does not know containers, only what they will be told to bind.

pub mod atomic;
pub mod certificates;
pub mod csi;
pub mod host_path;
pub mod mounts;
pub mod ownership;
pub mod payload;
pub mod tokens;
pub mod trust;
pub mod usage;

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{
    ConfigMap, PersistentVolume, PersistentVolumeClaim, Pod, PodCertificateProjection, ProjectedVolumeSource, Secret,
    ServiceAccountTokenProjection, Volume,
};

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::agent::Context;
use crate::metrics::families;
use crate::references::Referent;
use crate::spec::{self, downward::Surroundings, resources};
use payload::Defaults;

/// How soon a change of trust reaches pods: bundles are read again, not watched, since any of a signer's may matter.
const TRUST_REFRESH: SignedDuration = SignedDuration::from_secs(30);

/// A volume ready to be bound.
#[derive(Clone, Debug, PartialEq)]
pub struct Ready {
    pub path: PathBuf,
    pub read_only: bool,
    /// An image volume: the engine mounts it by this reference and `path` is empty.
    pub image: Option<String>,
    /// A raw block device.
    pub block: bool,
    /// The claim that it is of.
    pub claim: Option<String>,
    /// A driver's.
    pub driver: bool,
    /// A disk of the node that is a volume.
    pub local: bool,
}

impl Ready {
    fn at(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            read_only: false,
            image: None,
            block: false,
            claim: None,
            driver: false,
            local: false,
        }
    }
}

/// All volumes of a pod, and when their content wants another look.
#[derive(Clone, Debug, Default)]
pub struct Volumes {
    pub ready: HashMap<String, Ready>,
    pub renew_at: Option<Timestamp>,
}

/// Why a volume is not ready.
#[derive(Clone, Debug)]
pub struct Failure {
    pub volume: String,
    pub message: String,
}

fn dir(context: &Context, pod: &Pod, plugin: &str, volume: &str) -> PathBuf {
    context.config.pod_dir(spec::uid(pod)).join("volumes").join(format!("kubernetes.io~{plugin}")).join(volume)
}

fn fs_group(pod: &Pod) -> Option<u32> {
    spec::spec(pod).security_context.as_ref()?.fs_group.and_then(|g| u32::try_from(g).ok())
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// The one user all containers run as, if there is one: tokens are given to it.
fn common_user(pod: &Pod) -> Option<i64> {
    let mut users = spec::all_containers(pod).map(|(_, c)| spec::security::effective(pod, c).run_as_user);
    let first = users.next()??;
    users.all(|u| u == Some(first)).then_some(first)
}

/// The mode and owner of a secret of the pod itself: read by the one user its containers run as, and through the group,
/// which `fsGroup` widens the mode to.
fn private(pod: &Pod, user: Option<i64>) -> (Option<i32>, Option<i64>) {
    let common = common_user(pod);
    let mode = (common.is_some() || fs_group(pod).is_some()).then_some(0o600);
    (mode, user.or(common))
}

/// The page size in bytes of an `emptyDir` of huge pages: its medium's, or the only one the pod asks for.
fn huge_page(pod: &Pod, medium: &str) -> Result<i64, String> {
    let unsupported = || format!("storage medium {medium:?} is not supported by this node");
    let page = |text: &str| crate::quantity::value(&Quantity(text.into()));
    let Some(size) = medium.strip_prefix("HugePages") else { return Err(unsupported()) };
    let asked: BTreeSet<i64> = (spec::all_containers(pod).filter_map(|(_, c)| c.resources.as_ref()?.requests.as_ref()))
        .flat_map(|r| r.keys().filter_map(|name| name.strip_prefix("hugepages-")))
        .map(page)
        .collect();
    let mut sizes = asked.iter().copied();
    match (size.strip_prefix('-'), sizes.next(), sizes.next()) {
        (None, Some(only), None) if size.is_empty() => Ok(only),
        (None, None, _) if size.is_empty() => Err("medium HugePages: no container requests huge pages".into()),
        (None, ..) if size.is_empty() => Err("medium HugePages can be used only if the pod requests one size".into()),
        (Some(wanted), ..) if asked.contains(&page(wanted)) => Ok(page(wanted)),
        (Some(wanted), ..) => {
            Err(format!("medium {medium} can be used only if a container requests hugepages-{wanted}"))
        }
        _ => Err(unsupported()),
    }
}

struct Maker<'a> {
    context: &'a Context,
    pod: &'a Pod,
    around: &'a Surroundings,
    renew_at: Option<Timestamp>,
}

impl Maker<'_> {
    fn renew(&mut self, at: Timestamp) {
        self.renew_at = Some(self.renew_at.map_or(at, |r| r.min(at)));
    }

    async fn referenced<T>(&self, kind: Referent, name: &str, optional: bool) -> Result<Option<Arc<T>>, String>
    where
        T: serde::de::DeserializeOwned + Send + Sync + 'static,
    {
        let found = self
            .context
            .references
            .get(kind, spec::namespace(self.pod), name, spec::uid(self.pod))
            .await
            .map_err(text)?;
        match found {
            Some(object) => object.typed::<T>().map(Some).map_err(text),
            None if optional => Ok(None),
            None => Err(format!("{} \"{name}\" not found", kind.word())),
        }
    }

    /// Writes a payload volume.
    fn write(&self, plugin: &str, name: &str, payload: &atomic::Payload) -> Result<Ready, String> {
        let dir = dir(self.context, self.pod, plugin, name);
        if !dir.exists() {
            fs::create_dir_all(&dir).map_err(text)?;
            fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).map_err(text)?;
            if let Some(group) = fs_group(self.pod) {
                ownership::give_group(&dir, group, true).map_err(text)?;
            }
        }
        atomic::write(&dir, payload, fs_group(self.pod)).map_err(text)?;
        Ok(Ready { read_only: true, ..Ready::at(dir) })
    }

    async fn token(
        &mut self,
        source: &ServiceAccountTokenProjection,
        defaults: Defaults,
        payload: &mut atomic::Payload,
    ) -> Result<(), String> {
        let token = self.context.tokens.get(&self.context.client, self.pod, source).await?;
        self.renew(token.renew_at);
        let (mode, user) = private(self.pod, source.user);
        payload::single(&source.path, token.text.into_bytes(), mode, user, defaults, payload);
        Ok(())
    }

    async fn certificate(
        &mut self,
        place: (&str, usize),
        source: &PodCertificateProjection,
        defaults: Defaults,
        payload: &mut atomic::Payload,
    ) -> Result<(), String> {
        let Context { client, config, certificates, .. } = self.context;
        let found = certificates.get(client, &config.node_name, self.pod, place, source).await?;
        self.renew(found.renew_at);
        let (mode, user) = private(self.pod, source.user);
        for (path, text) in [
            (&source.credential_bundle_path, format!("{}{}", found.key, found.chain)),
            (&source.key_path, found.key.clone()),
            (&source.certificate_chain_path, found.chain.clone()),
        ] {
            if let Some(path) = path.as_deref().filter(|p| !p.is_empty()) {
                payload::single(path, text.into_bytes(), mode, user, defaults, payload);
            }
        }
        Ok(())
    }

    async fn projected(&mut self, name: &str, source: &ProjectedVolumeSource) -> Result<atomic::Payload, String> {
        let defaults = Defaults::new(source.default_mode, source.default_user);
        let mut payload = atomic::Payload::new();
        for (at, part) in source.sources.iter().flatten().enumerate() {
            if let Some(p) = &part.config_map {
                let optional = p.optional == Some(true);
                if let Some(map) = self.referenced::<ConfigMap>(Referent::ConfigMap, &p.name, optional).await? {
                    payload::config_map(&map, p.items.as_ref(), optional, defaults, &mut payload)?;
                }
            } else if let Some(p) = &part.secret {
                let optional = p.optional == Some(true);
                if let Some(secret) = self.referenced::<Secret>(Referent::Secret, &p.name, optional).await? {
                    payload::secret(&secret, p.items.as_ref(), optional, defaults, &mut payload)?;
                }
            } else if let Some(p) = &part.downward_api {
                payload::downward_api(self.pod, p.items.as_ref(), defaults, self.around, &mut payload)?;
            } else if let Some(p) = &part.service_account_token {
                self.token(p, defaults, &mut payload).await?;
            } else if let Some(p) = &part.cluster_trust_bundle {
                let text = trust::content(&self.context.client, p).await?;
                self.renew(Timestamp::now() + TRUST_REFRESH);
                payload::single(&p.path, text.into_bytes(), None, p.user, defaults, &mut payload);
            } else if let Some(p) = &part.pod_certificate {
                self.certificate((name, at), p, defaults, &mut payload).await?;
            }
        }
        Ok(payload)
    }

    fn empty_dir(
        &self,
        volume: &Volume,
        source: &k8s_openapi::api::core::v1::EmptyDirVolumeSource,
    ) -> Result<Ready, String> {
        let dir = dir(self.context, self.pod, "empty-dir", &volume.name);
        let fresh = !dir.exists();
        fs::create_dir_all(&dir).map_err(text)?;
        let (mut remount, mut usual) = (false, 0o777);
        match source.medium.as_deref().unwrap_or_default() {
            "" => {}
            "Memory" => {
                // As the kernel makes such a file system: nobody removes what is another's.
                usual = 0o1777;
                remount = !mounts::below(&dir).contains(&dir);
                let limit = source.size_limit.as_ref().map(crate::quantity::value).filter(|v| *v > 0);
                let pod_limit = Some(resources::pod_cgroup(self.pod).memory_limit_in_bytes).filter(|v| *v > 0);
                let size = match (limit, pod_limit) {
                    (Some(a), Some(b)) => Some(a.min(b)),
                    (a, b) => a.or(b),
                };
                mounts::tmpfs(&dir, size.map(|s| s as u64)).map_err(text)?;
            }
            medium => {
                let page = huge_page(self.pod, medium)?;
                remount = !mounts::below(&dir).contains(&dir);
                mounts::huge_pages(&dir, page as u64).map_err(text)?;
            }
        }
        if fresh || remount {
            let mode = source.mode.map_or(usual, |m| m as u32 & 0o7777);
            fs::set_permissions(&dir, fs::Permissions::from_mode(mode)).map_err(text)?;
            if let Some(group) = fs_group(self.pod) {
                ownership::give_group(&dir, group, false).map_err(text)?;
            }
        }
        Ok(Ready::at(dir))
    }

    /// A driver's volume, of a claim or of the pod alone.
    async fn csi(&mut self, wanted: &csi::wanted::Wanted) -> Result<Ready, String> {
        let published = self.context.csi.publish(&self.context.tokens, self.pod, wanted).await?;
        if let Some(at) = published.renew_at {
            self.renew(at);
        }
        if published.taken {
            self.context.node_changed.notify_one();
        }
        Ok(Ready { read_only: wanted.read_only, block: wanted.block, driver: true, ..Ready::at(published.path) })
    }

    async fn claim(&mut self, claim: &str, read_only: bool) -> Result<Ready, String> {
        let ready = self.claimed(claim, read_only).await?;
        Ok(Ready { claim: Some(claim.into()), ..ready })
    }

    async fn claimed(&mut self, claim: &str, read_only: bool) -> Result<Ready, String> {
        let namespace = spec::namespace(self.pod);
        let api = self.context.client.api::<PersistentVolumeClaim>().namespaced(namespace);
        let claim = api.get(claim).await.map_err(text)?;
        let claim_name = claim.metadata.name.as_deref().unwrap_or_default();
        let bound = claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound");
        let name = claim.spec.as_ref().and_then(|s| s.volume_name.as_deref()).filter(|n| !n.is_empty() && bound);
        let name = name.ok_or_else(|| format!("PVC {namespace}/{claim_name} is not bound"))?;
        let volume = self.context.client.api::<PersistentVolume>().get(name).await.map_err(text)?;
        let volume_spec = volume.spec.clone().unwrap_or_default();
        let owner = volume_spec.claim_ref.as_ref().and_then(|r| r.uid.as_deref());
        if owner.is_some_and(|uid| Some(uid) != claim.metadata.uid.as_deref()) {
            return Err(format!("PersistentVolume {name} is bound to another claim"));
        }
        if let Some(wanted) = csi::wanted::Wanted::persistent(&volume, read_only) {
            let ready = self.csi(&wanted).await?;
            if self.context.csi.grow(self.pod, &wanted, &volume, &claim).await? {
                let node = &self.context.config.node_name;
                let message = format!("MountVolume.NodeExpandVolume succeeded for volume {name:?} {node}");
                let events = &self.context.events;
                for about in [events.about_pod(self.pod), events.about_claim(&claim)] {
                    events.normal(&about, "FileSystemResizeSuccessful", &message);
                }
            }
            return Ok(ready);
        }
        let block = volume_spec.volume_mode.as_deref() == Some("Block");
        let path = if let Some(source) = &volume_spec.host_path {
            host_path::prepare(Path::new(&source.path), source.type_.as_deref().unwrap_or_default())?;
            PathBuf::from(&source.path)
        } else if let Some(source) = &volume_spec.local {
            let path = PathBuf::from(&source.path);
            let found = fs::metadata(&path)
                .map_err(|e| format!("path {:?} does not exist or cannot be read: {e}", source.path))?;
            if let Some(group) = fs_group(self.pod).filter(|_| found.is_dir() && !read_only)
                && !(ownership::lazily(self.pod) && ownership::root_matches(&path, group))
            {
                ownership::give_group(&path, group, false).map_err(text)?;
            }
            path
        } else {
            return Err(format!(
                "PersistentVolume {name}: only hostPath, local and csi volumes are supported by this node"
            ));
        };
        Ok(Ready { read_only, block, local: volume_spec.local.is_some(), ..Ready::at(path) })
    }

    async fn make(&mut self, volume: &Volume) -> Result<Ready, String> {
        let name = &volume.name;
        if let Some(source) = &volume.empty_dir {
            return self.empty_dir(volume, source);
        }
        if let Some(source) = &volume.host_path {
            host_path::prepare(Path::new(&source.path), source.type_.as_deref().unwrap_or_default())?;
            return Ok(Ready::at(&source.path));
        }
        if let Some(source) = &volume.config_map {
            let optional = source.optional == Some(true);
            let mut payload = atomic::Payload::new();
            if let Some(map) = self.referenced::<ConfigMap>(Referent::ConfigMap, &source.name, optional).await? {
                payload::config_map(
                    &map,
                    source.items.as_ref(),
                    optional,
                    Defaults::new(source.default_mode, source.default_user),
                    &mut payload,
                )?;
            }
            return self.write("configmap", name, &payload);
        }
        if let Some(source) = &volume.secret {
            let optional = source.optional == Some(true);
            let mut payload = atomic::Payload::new();
            let secret = source.secret_name.as_deref().unwrap_or_default();
            if let Some(secret) = self.referenced::<Secret>(Referent::Secret, secret, optional).await? {
                payload::secret(
                    &secret,
                    source.items.as_ref(),
                    optional,
                    Defaults::new(source.default_mode, source.default_user),
                    &mut payload,
                )?;
            }
            return self.write("secret", name, &payload);
        }
        if let Some(source) = &volume.downward_api {
            let mut payload = atomic::Payload::new();
            payload::downward_api(
                self.pod,
                source.items.as_ref(),
                Defaults::new(source.default_mode, source.default_user),
                self.around,
                &mut payload,
            )?;
            return self.write("downward-api", name, &payload);
        }
        if let Some(source) = &volume.projected {
            let payload = self.projected(name, source).await?;
            return self.write("projected", name, &payload);
        }
        if let Some(source) = &volume.persistent_volume_claim {
            return self.claim(&source.claim_name, source.read_only == Some(true)).await;
        }
        if volume.ephemeral.is_some() {
            return self.claim(&format!("{}-{name}", spec::name(self.pod)), false).await;
        }
        if let Some(source) = &volume.image {
            let reference = source.reference.clone().unwrap_or_default();
            let image = self
                .context
                .images
                .ensure_volume(self.context, self.pod, &reference, source.pull_policy.as_deref())
                .await?;
            return Ok(Ready { image: Some(image), read_only: true, ..Ready::at("") });
        }
        if let Some(source) = &volume.csi {
            return self.csi(&csi::wanted::Wanted::inline(self.pod, volume, source)).await;
        }
        Err("no volume plugin matched".into())
    }
}

/// Makes, or brings up to date, every volume of the pod. The first failure is returned with what is ready so far.
pub async fn prepare(context: &Context, pod: &Pod, around: &Surroundings) -> (Volumes, Option<Failure>) {
    let mut maker = Maker { context, pod, around, renew_at: None };
    let mut out = Volumes::default();
    let mut failure = None;
    for volume in spec::spec(pod).volumes.iter().flatten() {
        let began = Instant::now();
        let made = maker.make(volume).await;
        let status = if made.is_ok() { "success" } else { "fail-unknown" };
        context.metrics.since(&families::STORAGE, &["false", "volume_mount", status, &plugin(volume)], began);
        match made {
            Ok(ready) => {
                out.ready.insert(volume.name.clone(), ready);
            }
            Err(message) => {
                failure = Some(Failure { volume: volume.name.clone(), message });
                break;
            }
        }
    }
    out.renew_at = maker.renew_at;
    (out, failure)
}

/// The kind of a volume, as monitoring knows it.
pub fn plugin(volume: &Volume) -> String {
    let kinds = [
        ("configmap", volume.config_map.is_some()),
        ("secret", volume.secret.is_some()),
        ("downward-api", volume.downward_api.is_some()),
        ("projected", volume.projected.is_some()),
        ("empty-dir", volume.empty_dir.is_some()),
        ("host-path", volume.host_path.is_some()),
        ("image", volume.image.is_some()),
    ];
    if let Some(csi) = &volume.csi {
        return format!("kubernetes.io/csi:{}", csi.driver);
    }
    let kind = kinds.iter().find(|(_, is)| *is).map_or("persistent-claim", |(kind, _)| *kind);
    format!("kubernetes.io/{kind}")
}

/// What was recorded of the driver's volume at a place of the pod's.
fn record_of(pod_dir: &Path, place: &Path) -> Option<csi::record::Record> {
    csi::record::of_pod(pod_dir).into_iter().find(|found| found.target() == place).map(|found| found.record)
}

/// Gives drivers' volumes back, before what the agent made itself is removed.
pub async fn give_back(context: &Context, uid: &str) -> Result<(), String> {
    let dir = context.config.pod_dir(uid);
    // Bound from the drivers' mounts, and holding them.
    mounts::unmount_below(&dir.join("volume-subpaths")).map_err(text)?;
    if context.csi.unpublish(&dir).await? {
        context.node_changed.notify_one();
    }
    Ok(())
}

/// Removes a pod's volumes and everything else in its directory.
pub fn remove(pod_dir: &Path) -> io::Result<()> {
    mounts::unmount_below(pod_dir)?;
    match fs::remove_dir_all(pod_dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Releases what a finished pod's volumes hold (mounts, memory), but keeps its termination messages and hosts file.
pub fn release(pod_dir: &Path) -> io::Result<()> {
    mounts::unmount_below(pod_dir)?;
    for part in ["volumes", "volume-subpaths"] {
        match fs::remove_dir_all(pod_dir.join(part)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn huge_pages_have_one_size() {
        let pod = |requests: serde_json::Value| -> Pod {
            let container = json!({"name": "c", "resources": {"requests": requests}});
            serde_json::from_value(json!({"metadata": {}, "spec": {"containers": [container]}})).unwrap()
        };
        let both = json!({"hugepages-2Mi": "4Mi", "hugepages-1Gi": "1Gi"});
        for (requests, medium, size) in [
            (json!({"hugepages-2Mi": "4Mi"}), "HugePages", Some(2 << 20)),
            (both.clone(), "HugePages-1Gi", Some(1 << 30)),
            (both, "HugePages", None),
            (json!({"hugepages-2Mi": "4Mi"}), "HugePages-1Gi", None),
            (json!({"memory": "4Mi"}), "HugePages", None),
            (json!({}), "Disk", None),
        ] {
            assert_eq!(huge_page(&pod(requests.clone()), medium).ok(), size, "{requests} {medium}");
        }
    }

    #[test]
    fn tokens_belong_to_whom_the_pod_runs_as() {
        let user = json!({"runAsUser": 1000});
        let group = json!({"fsGroup": 10});
        let both = json!({"runAsUser": 1000, "fsGroup": 10});
        for (context, said, expect) in [
            (json!({}), None, (None, None)),
            (json!({}), Some(7), (None, Some(7))),
            (user.clone(), None, (Some(0o600), Some(1000))),
            (user, Some(7), (Some(0o600), Some(7))),
            (group, None, (Some(0o600), None)),
            (both, None, (Some(0o600), Some(1000))),
        ] {
            let pod = json!({"metadata": {}, "spec": {"securityContext": context, "containers": [{"name": "c"}]}});
            assert_eq!(private(&serde_json::from_value(pod.clone()).unwrap(), said), expect, "{pod} {said:?}");
        }
    }
}
