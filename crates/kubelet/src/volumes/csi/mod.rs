//! Volumes of CSI drivers: staged once on the node, published once to a pod, given back in the opposite order.
//!
//! What is asked of a driver is on disk first ([`record`]), so no memory is relied upon: an agent that starts anew asks
//! again, which drivers must bear, and gives back what it finds without a pod. Calls on one volume follow one another.
//! This room knows no driver in particular, and no pod beyond what drivers are told of it.

pub mod driver;
pub mod node;
pub mod record;
#[cfg(test)]
mod tests;
pub mod wanted;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ::plugins::csi as v1;
use client::{Client, Patch};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{
    PersistentVolume, PersistentVolumeClaim, Pod, Secret, SecretReference, ServiceAccountTokenProjection,
};
use k8s_openapi::api::storage::v1::{CSIDriver, CSIDriverSpec, VolumeAttachment};
use serde_json::json;
use tokio::sync::Mutex as AsyncMutex;

use super::tokens::Tokens;
use super::usage::Usage;
use super::{fs_group, ownership};
use crate::metrics::Metrics;
use crate::spec;
use driver::{Driver, carried};
use record::{Found, Record};
use wanted::Wanted;

/// How often a waiting pod looks whether its volume is attached, and how long before it says so and comes again.
const ATTACH_POLL: Duration = Duration::from_millis(200);
const ATTACH_WAIT: Duration = Duration::from_secs(10);
/// How soon a running pod's volume is published again, for a driver that wants to be told of new tokens, and how soon a
/// claim that has grown is noticed.
const LOOK_AGAIN: SignedDuration = SignedDuration::from_secs(60);
/// Where a staged volume lies, in the directory of its record.
const GLOBAL: &str = "globalmount";
/// The keys under which drivers are told of pods.
const KEY: &str = "csi.storage.k8s.io/";

/// What this process has done with a volume.
#[derive(Default)]
struct Held {
    staged: bool,
    published: HashSet<PathBuf>,
}

/// A volume at its place.
pub struct Published {
    pub path: PathBuf,
    pub renew_at: Option<Timestamp>,
    /// It is in use on this node since now, which the node's status is to say.
    pub taken: bool,
}

/// The node's drivers and their volumes.
pub struct Csi {
    client: Client,
    root: PathBuf,
    node: String,
    metrics: Arc<Metrics>,
    drivers: Mutex<HashMap<String, Arc<Driver>>>,
    /// By unique name.
    held: Mutex<HashMap<String, Arc<AsyncMutex<Held>>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Refuses what the driver does not say it can be.
fn check_lifecycle(wanted: &Wanted, about: Option<&CSIDriverSpec>) -> Result<(), String> {
    let (mode, driver) = (wanted.lifecycle(), &wanted.driver);
    let modes = about.and_then(|a| a.volume_lifecycle_modes.clone()).filter(|m| !m.is_empty());
    let modes = modes.unwrap_or_else(|| vec!["Persistent".into()]);
    if modes.iter().any(|m| m == mode) {
        return Ok(());
    }
    Err(match about {
        None => format!("volume mode \"{mode}\" not supported by driver {driver} (no CSIDriver object)"),
        Some(_) => {
            format!("volume mode \"{mode}\" not supported by driver {driver} (only supports [{}])", modes.join(" "))
        }
    })
}

impl Csi {
    /// Those of the node whose pods live under `root`.
    pub fn new(client: Client, root: PathBuf, node: String, metrics: Arc<Metrics>) -> Csi {
        Csi { client, root, node, metrics, drivers: Mutex::default(), held: Mutex::default() }
    }

    fn driver(&self, name: &str) -> Result<Arc<Driver>, String> {
        let found = lock(&self.drivers).get(name).cloned();
        found.ok_or_else(|| format!("driver name {name} not found in the list of registered CSI drivers"))
    }

    fn held(&self, unique: &str) -> Arc<AsyncMutex<Held>> {
        lock(&self.held).entry(unique.into()).or_default().clone()
    }

    /// Forgets volumes nothing is known of and nobody is busy with.
    fn tidy(&self) {
        lock(&self.held).retain(|_, held| {
            Arc::strong_count(held) > 1 || held.try_lock().is_ok_and(|h| h.staged || !h.published.is_empty())
        });
    }

    /// A driver has come: what it says of the node is told to the API, and what it staged for nobody it takes back.
    pub async fn register(&self, name: &str, endpoint: &str, versions: &[String]) -> Result<(), String> {
        if !versions.iter().any(|v| v.trim_start_matches('v').starts_with("1.")) {
            return Err(format!("CSI driver {name}: none of the versions {versions:?} is supported"));
        }
        let driver = Arc::new(Driver::meet(name, endpoint, self.metrics.clone()).await?);
        node::add(&self.client, &self.node, &driver).await.map_err(|e| e.to_string())?;
        lock(&self.drivers).insert(name.into(), driver.clone());
        for found in record::staged(&self.root, name) {
            let held = self.held(&wanted::unique_name(name, &found.record.volume_handle));
            if let Err(why) = self.unstage_unused(&driver, &found.record, &mut *held.lock().await).await {
                tracing::warn!(driver = name, volume = %found.record.name, "unused volume not unstaged: {why}");
            }
        }
        self.tidy();
        Ok(())
    }

    /// A driver's socket is gone. Its volumes stay as they are until it comes back.
    pub async fn unregister(&self, name: &str, endpoint: &str) {
        {
            let mut drivers = lock(&self.drivers);
            if drivers.get(name).is_none_or(|d| d.endpoint != endpoint) {
                return;
            }
            drivers.remove(name);
        }
        if let Err(status) = node::remove(&self.client, &self.node, name).await {
            tracing::warn!(driver = name, "driver not removed from CSINode: {status}");
        }
    }

    /// What must stay attached to this node, as its status says it.
    pub fn in_use(&self) -> Vec<String> {
        let attached = record::of_all(&self.root).into_iter().filter(|f| !f.record.attachment.is_empty());
        let names: BTreeSet<String> =
            attached.map(|f| wanted::unique_name(&f.record.driver_name, &f.record.volume_handle)).collect();
        names.into_iter().collect()
    }

    async fn secret(&self, reference: Option<&SecretReference>) -> Result<HashMap<String, String>, String> {
        let Some(SecretReference { name: Some(name), namespace }) = reference else { return Ok(HashMap::new()) };
        let namespace = namespace.as_deref().unwrap_or_default();
        let secret = self.client.api::<Secret>().namespaced(namespace).get(name).await;
        let secret = secret.map_err(|e| format!("failed to get secret {namespace}/{name}: {e}"))?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(secret.data.iter().flatten().map(|(k, v)| (k.clone(), text(&v.0))).collect())
    }

    /// The attachment's name and what the driver's controller left for the node, once the volume is attached. Nothing
    /// for drivers and volumes that are not.
    async fn attached(
        &self,
        wanted: &Wanted,
        about: Option<&CSIDriverSpec>,
    ) -> Result<(String, BTreeMap<String, String>), String> {
        if wanted.ephemeral || about.and_then(|a| a.attach_required) == Some(false) {
            return Ok(Default::default());
        }
        let name = wanted.attachment(&self.node);
        let api = self.client.api::<VolumeAttachment>();
        let deadline = tokio::time::Instant::now() + ATTACH_WAIT;
        loop {
            let found = match api.get_opt(&name).await {
                // A node may not see an attachment that is not there.
                Err(status) if status.code == 403 => None,
                other => other.map_err(|e| e.to_string())?,
            };
            let status = found.and_then(|a| a.status.clone());
            if let Some(status) = status {
                if status.attached {
                    return Ok((name, status.attachment_metadata.unwrap_or_default()));
                }
                if let Some(message) = status.attach_error.and_then(|e| e.message) {
                    return Err(message);
                }
            }
            if tokio::time::Instant::now() > deadline {
                let Wanted { driver, handle, .. } = wanted;
                return Err(format!(
                    "timed out waiting for external-attacher of {driver} CSI driver to attach volume {handle}"
                ));
            }
            tokio::time::sleep(ATTACH_POLL).await;
        }
    }

    /// What a driver is told beside the volume's attributes, and the secrets it gets, by what its object asks for.
    async fn told(
        &self,
        tokens: &Tokens,
        pod: &Pod,
        wanted: &Wanted,
        about: Option<&CSIDriverSpec>,
    ) -> Result<(HashMap<String, String>, HashMap<String, String>), String> {
        let (mut told, mut secrets) = (carried(&wanted.attributes), self.secret(wanted.publish_secret.as_ref()).await?);
        let Some(about) = about else { return Ok((told, secrets)) };
        if about.pod_info_on_mount == Some(true) {
            let account = spec::spec(pod).service_account_name.as_deref().unwrap_or_default();
            let ephemeral = wanted.ephemeral.to_string();
            for (key, value) in [
                ("pod.name", spec::name(pod)),
                ("pod.namespace", spec::namespace(pod)),
                ("pod.uid", spec::uid(pod)),
                ("serviceAccount.name", account),
                ("ephemeral", &ephemeral),
            ] {
                told.insert(format!("{KEY}{key}"), value.into());
            }
        }
        let mut all = serde_json::Map::new();
        for request in about.token_requests.iter().flatten() {
            let projection = ServiceAccountTokenProjection {
                audience: Some(request.audience.clone()).filter(|a| !a.is_empty()),
                expiration_seconds: request.expiration_seconds,
                ..Default::default()
            };
            let token = tokens.get(&self.client, pod, &projection).await?;
            let (text, until) = (token.text, token.expires_at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
            all.insert(request.audience.clone(), json!({"token": text, "expirationTimestamp": until}));
        }
        if !all.is_empty() {
            let to = if about.service_account_token_in_secrets == Some(true) { &mut secrets } else { &mut told };
            to.insert(format!("{KEY}serviceAccount.tokens"), serde_json::Value::Object(all).to_string());
        }
        Ok((told, secrets))
    }

    /// Brings a volume to its pod, or, where it is already, tells the driver anew if it wants that.
    pub async fn publish(&self, tokens: &Tokens, pod: &Pod, wanted: &Wanted) -> Result<Published, String> {
        let driver = self.driver(&wanted.driver)?;
        let object = self.client.api::<CSIDriver>().get_opt(&wanted.driver).await.map_err(|e| e.to_string())?;
        let about = object.as_ref().map(|o| &o.spec);
        check_lifecycle(wanted, about)?;
        let again = about.and_then(|a| a.requires_republish) == Some(true);
        let dir = record::dir(&self.root.join("pods").join(spec::uid(pod)), &wanted.name);
        let target = record::target(&dir, wanted.block);
        let look_again = again || driver.abilities.expand && !wanted.ephemeral;
        let renew_at = look_again.then(|| Timestamp::now() + LOOK_AGAIN);
        let published = Published { path: target.clone(), renew_at, taken: false };
        let unique = wanted.unique_name();
        let held = self.held(&unique);
        let known = held.lock().await.published.contains(&target);
        if known && !again {
            return Ok(published);
        }
        let (attachment, context) = self.attached(wanted, about).await?;
        let (told, secrets) = self.told(tokens, pod, wanted, about).await?;
        let group = fs_group(pod).filter(|_| !wanted.block);
        let delegated = group.filter(|_| driver.abilities.mount_group);
        let request = v1::NodePublishVolumeRequest {
            volume_id: wanted.handle.clone(),
            publish_context: carried(&context),
            staging_target_path: self.staging_path(&driver, wanted),
            target_path: target.to_string_lossy().into_owned(),
            volume_capability: Some(wanted.capability(&driver.abilities, delegated)),
            readonly: wanted.read_only,
            secrets,
            volume_context: told,
        };
        let mut held = held.lock().await;
        let taken = !known && !attachment.is_empty();
        let record = self.record(wanted, attachment);
        record::write(&dir, &record).map_err(|e| e.to_string())?;
        if !request.staging_target_path.is_empty() && !held.staged {
            self.stage(&driver, wanted, &record, &request).await?;
            held.staged = true;
        }
        driver.publish(request).await?;
        let takes = wanted.takes_group(about.and_then(|a| a.fs_group_policy.as_deref()));
        if let Some(group) = group.filter(|_| delegated.is_none() && takes && !known) {
            give(pod, target.clone(), group).await?;
        }
        held.published.insert(target);
        Ok(Published { taken, ..published })
    }

    fn record(&self, wanted: &Wanted, attachment: String) -> Record {
        Record {
            name: wanted.name.clone(),
            volume_handle: wanted.handle.clone(),
            driver_name: wanted.driver.clone(),
            node_name: self.node.clone(),
            attachment,
            volume_lifecycle_mode: wanted.lifecycle().into(),
            block: wanted.block,
        }
    }

    /// Where the volume is staged; empty for one that is not.
    fn staging_path(&self, driver: &Driver, wanted: &Wanted) -> String {
        if !driver.abilities.stage || wanted.ephemeral {
            return String::new();
        }
        let dir = wanted::staging(&self.root, &wanted.driver, &wanted.handle);
        dir.join(GLOBAL).to_string_lossy().into_owned()
    }

    async fn stage(
        &self,
        driver: &Driver,
        wanted: &Wanted,
        record: &Record,
        publish: &v1::NodePublishVolumeRequest,
    ) -> Result<(), String> {
        let dir = wanted::staging(&self.root, &wanted.driver, &wanted.handle);
        let secrets = self.secret(wanted.stage_secret.as_ref()).await?;
        record::write(&dir, record).map_err(|e| e.to_string())?;
        std::fs::create_dir_all(dir.join(GLOBAL)).map_err(|e| e.to_string())?;
        driver
            .stage(v1::NodeStageVolumeRequest {
                volume_id: wanted.handle.clone(),
                publish_context: publish.publish_context.clone(),
                staging_target_path: publish.staging_target_path.clone(),
                volume_capability: publish.volume_capability.clone(),
                secrets,
                volume_context: carried(&wanted.attributes),
            })
            .await
    }

    /// Has a published volume's file system follow its volume's size, and tells the claim. Whether it grew.
    pub async fn grow(
        &self,
        pod: &Pod,
        wanted: &Wanted,
        volume: &PersistentVolume,
        claim: &PersistentVolumeClaim,
    ) -> Result<bool, String> {
        let driver = self.driver(&wanted.driver)?;
        let Some(size) = wanted::growth(volume, claim).filter(|_| driver.abilities.expand && !wanted.read_only) else {
            return Ok(false);
        };
        let dir = record::dir(&self.root.join("pods").join(spec::uid(pod)), &wanted.name);
        let held = self.held(&wanted.unique_name());
        let _held = held.lock().await;
        let request = v1::NodeExpandVolumeRequest {
            volume_id: wanted.handle.clone(),
            volume_path: record::target(&dir, wanted.block).to_string_lossy().into_owned(),
            capacity_range: Some(v1::CapacityRange { required_bytes: size, limit_bytes: 0 }),
            staging_target_path: self.staging_path(&driver, wanted),
            volume_capability: Some(wanted.capability(&driver.abilities, None)),
            secrets: self.secret(wanted.expand_secret.as_ref()).await?,
        };
        let expanded = driver.expand(request).await;
        let grew = expanded.is_ok();
        let status = match expanded {
            Ok(_) => {
                let capacity = volume.spec.as_ref().and_then(|s| s.capacity.as_ref()?.get("storage"));
                let conditions: Vec<_> = (claim.status.iter().flat_map(|s| s.conditions.iter().flatten()))
                    .filter(|c| !c.type_.contains("Resiz"))
                    .collect();
                json!({"capacity": {"storage": capacity}, "allocatedResourceStatuses": {"storage": null}, "conditions": conditions})
            }
            Err(refused) if refused.for_good => {
                tracing::warn!(volume = %wanted.name, "volume not expanded: {}", refused.message);
                json!({"allocatedResourceStatuses": {"storage": "NodeResizeInfeasible"}})
            }
            Err(refused) => return Err(format!("NodeExpandVolume failed: {}", refused.message)),
        };
        let api = self.client.api::<PersistentVolumeClaim>().namespaced(spec::namespace(pod));
        let name = claim.metadata.name.as_deref().unwrap_or_default();
        api.patch_status(name, Patch::Merge(json!({"status": status}))).await.map(|_| grew).map_err(|e| e.to_string())
    }

    /// How full a published volume is; none when its driver does not count.
    pub async fn usage(&self, record: &Record, target: &Path) -> Result<Option<Usage>, String> {
        let driver = self.driver(&record.driver_name)?;
        if !driver.abilities.stats {
            return Ok(None);
        }
        driver.usage(&record.volume_handle, &target.to_string_lossy()).await.map(Some)
    }

    /// Gives back all of a pod's volumes, and says whether any was attached. What cannot be given back stays recorded, and
    /// is an error.
    pub async fn unpublish(&self, pod_dir: &Path) -> Result<bool, String> {
        let mut attached = false;
        for found in record::of_pod(pod_dir) {
            attached |= !found.record.attachment.is_empty();
            self.unpublish_one(&found).await.map_err(|e| format!("volume {}: {e}", found.record.name))?;
        }
        self.tidy();
        Ok(attached)
    }

    async fn unpublish_one(&self, found: &Found) -> Result<(), String> {
        let driver = self.driver(&found.record.driver_name)?;
        let held = self.held(&wanted::unique_name(&driver.name, &found.record.volume_handle));
        let mut held = held.lock().await;
        let target = found.target();
        driver
            .unpublish(v1::NodeUnpublishVolumeRequest {
                volume_id: found.record.volume_handle.clone(),
                target_path: target.to_string_lossy().into_owned(),
            })
            .await?;
        held.published.remove(&target);
        record::remove(&found.dir, &target).map_err(|e| e.to_string())?;
        self.unstage_unused(&driver, &found.record, &mut held).await
    }

    /// Unstages a volume that no pod here has any more.
    async fn unstage_unused(&self, driver: &Driver, record: &Record, held: &mut Held) -> Result<(), String> {
        let dir = wanted::staging(&self.root, &driver.name, &record.volume_handle);
        let same =
            |other: &Record| other.driver_name == record.driver_name && other.volume_handle == record.volume_handle;
        if !dir.exists() || record::of_all(&self.root).iter().any(|f| same(&f.record)) {
            return Ok(());
        }
        let staging = dir.join(GLOBAL);
        driver
            .unstage(v1::NodeUnstageVolumeRequest {
                volume_id: record.volume_handle.clone(),
                staging_target_path: staging.to_string_lossy().into_owned(),
            })
            .await?;
        held.staged = false;
        record::remove(&dir, &staging).map_err(|e| e.to_string())
    }
}

/// Gives a volume's files to the pod's group, unless the pod says that its root tells enough.
async fn give(pod: &Pod, target: PathBuf, group: u32) -> Result<(), String> {
    let lazily = ownership::lazily(pod);
    let work = move || match lazily && ownership::root_matches(&target, group) {
        true => Ok(()),
        false => ownership::give_group(&target, group, false),
    };
    let done = tokio::task::spawn_blocking(work).await.map_err(|e| e.to_string())?;
    done.map_err(|e| format!("applyFSGroup failed: {e}"))
}
