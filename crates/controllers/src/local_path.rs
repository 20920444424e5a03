//! Volumes that are directories of this machine: made when a claim's pod has its node, emptied when the claim goes.
//!
//! For clusters whose nodes share this machine's file system. Where the nodes' disks are elsewhere it must stay off (it
//! has no directory then), and another provisioner does this work.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use client::{Change, Gvr};
use futures::FutureExt;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use meta::{Object, Status};
use serde_json::{Value, json};

use crate::plan::{Action, Note, Plan};
use crate::runner::{Ask, Controller};
use crate::volumes::PROVISIONED_BY;
use crate::{Context, decoded, status_of};

pub const PROVISIONER: &str = "nauplius.dev/local-path";
const CLASS: &str = "local-path";
const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";
const FOR_PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";
const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// The key that stands for the class itself: no claim and no volume is called so.
const THE_CLASS: &str = "//class";

fn volumes() -> Gvr {
    client::gvr_of::<PersistentVolume>()
}

/// Pods run as any user.
fn make(dir: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::create_dir_all(dir)?;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o777))
}

fn remove(dir: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

async fn blocking(work: impl FnOnce() -> std::io::Result<()> + Send + 'static) -> Result<(), Status> {
    tokio::task::spawn_blocking(work).await.map_err(Status::internal)?.map_err(Status::internal)
}

/// The volume for a claim; `hostname` is its node's.
fn volume(claim: &Object, typed: &PersistentVolumeClaim, class: &StorageClass, dir: &Path, hostname: &str) -> Value {
    let name = format!("pvc-{}", claim.meta.uid);
    let spec = typed.spec.clone().unwrap_or_default();
    let size = spec.resources.as_ref().and_then(|r| r.requests.as_ref()?.get("storage").cloned());
    let mut reference = json!(client::reference(claim));
    reference["resourceVersion"] = claim.resource_version.to_string().into();
    let term = json!({"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [hostname]}]});
    json!({
        "apiVersion": "v1", "kind": "PersistentVolume",
        "metadata": {"name": name, "annotations": {PROVISIONED_BY: PROVISIONER}},
        "spec": {
            "capacity": {"storage": size}, "accessModes": spec.access_modes, "volumeMode": "Filesystem",
            "storageClassName": class.metadata.name, "claimRef": reference, "mountOptions": class.mount_options,
            "persistentVolumeReclaimPolicy": class.reclaim_policy.as_deref().unwrap_or("Delete"),
            "local": {"path": dir}, "nodeAffinity": {"required": {"nodeSelectorTerms": [term]}},
        },
    })
}

struct Provisioner {
    base: PathBuf,
    claims: Arc<client::Informer>,
    volumes: Arc<client::Informer>,
    classes: Arc<client::Informer>,
    nodes: Arc<client::Informer>,
}

impl Provisioner {
    fn class(&self) -> Plan {
        let mut plan = Plan::nothing();
        if self.classes.get(CLASS).is_none() {
            let body = json!({
                "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
                "metadata": {"name": CLASS, "annotations": {DEFAULT_CLASS: "true"}},
                "provisioner": PROVISIONER, "reclaimPolicy": "Delete", "volumeBindingMode": "WaitForFirstConsumer",
            });
            plan.act(Action::create(&client::gvr_of::<StorageClass>(), "", body).may_exist());
        }
        plan
    }

    async fn provision(&self, object: &Arc<Object>) -> Result<Plan, Status> {
        let mut plan = Plan::nothing();
        let claim = decoded::<PersistentVolumeClaim>(object)?;
        let spec = claim.spec.clone().unwrap_or_default();
        let annotation = |name: &str| claim.metadata.annotations.as_ref().and_then(|a| a.get(name)).cloned();
        let bound = spec.volume_name.as_deref().is_some_and(|v| !v.is_empty());
        if object.meta.deletion_timestamp.is_some()
            || bound
            || annotation(FOR_PROVISIONER).as_deref() != Some(PROVISIONER)
        {
            return Ok(plan);
        }
        let class = spec.storage_class_name.as_deref().and_then(|c| self.classes.get(c));
        let Some(class) = class.map(|c| decoded::<StorageClass>(&c)).transpose()? else { return Ok(plan) };
        let name = format!("pvc-{}", object.meta.uid);
        let Some(node) = annotation(SELECTED_NODE).filter(|_| self.volumes.get(&name).is_none()) else {
            return Ok(plan);
        };
        let refused = match () {
            () if spec.volume_mode.as_deref() == Some("Block") => Some("block volumes are not supported"),
            () if spec.selector.is_some() => Some("claims with a selector are not supported"),
            () if spec.data_source.is_some() || spec.data_source_ref.is_some() => {
                Some("data sources are not supported")
            }
            () => None,
        };
        if let Some(why) = refused {
            let said = format!("failed to provision volume with StorageClass {CLASS:?}: {why}");
            plan.note(Note::warning(object, "ProvisioningFailed", said));
            return Ok(plan);
        }
        let Some(node) = self.nodes.get(&node) else {
            plan.note(Note::warning(object, "ProvisioningFailed", format!("node {node:?} not found")));
            return Ok(plan);
        };
        let hostname = node.meta.label("kubernetes.io/hostname").unwrap_or(&node.meta.name).to_string();
        let dir = self.base.join(format!("{name}_{}_{}", object.meta.namespace, object.meta.name));
        let made = dir.clone();
        blocking(move || make(&made)).await?;
        let body = volume(object, &claim, &class, &dir, &hostname);
        let done = Note::normal(object, "ProvisioningSucceeded", format!("Successfully provisioned volume {name}"));
        plan.act(Action::create(&volumes(), "", body).may_exist().done(done));
        Ok(plan)
    }

    async fn reclaim(&self, object: &Arc<Object>) -> Result<Plan, Status> {
        let mut plan = Plan::nothing();
        let typed = decoded::<PersistentVolume>(object)?;
        let ours = typed.metadata.annotations.as_ref().and_then(|a| a.get(PROVISIONED_BY));
        let spec = typed.spec.clone().unwrap_or_default();
        let released = status_of(object)?["phase"] == "Released";
        let delete = spec.persistent_volume_reclaim_policy.as_deref() == Some("Delete");
        if ours.map(String::as_str) != Some(PROVISIONER) || !released || !delete {
            return Ok(plan);
        }
        // Only what lies in our own directory: the object's path is anybody's word who may write volumes.
        let dir = spec.local.map(|l| PathBuf::from(l.path));
        let plain = |d: &PathBuf| d.parent() == Some(&self.base) && d.file_name().is_some();
        if let Some(dir) = dir.filter(plain) {
            blocking(move || remove(&dir)).await?;
        }
        if object.meta.deletion_timestamp.is_none() {
            plan.act(Action::delete(&volumes(), object));
        }
        Ok(plan)
    }
}

pub fn provisioner(cx: &Context) -> Controller {
    let (claims, all_volumes) = (cx.informers.get::<PersistentVolumeClaim>(), cx.informers.get::<PersistentVolume>());
    let (classes, nodes) = (cx.informers.get::<StorageClass>(), cx.informers.get::<Node>());
    let own = cx.options.local_path.clone().map(|base| {
        Arc::new(Provisioner {
            base,
            claims: claims.clone(),
            volumes: all_volumes.clone(),
            classes: classes.clone(),
            nodes: nodes.clone(),
        })
    });
    let reconcile = move |ask: Ask| {
        let own = own.clone();
        async move {
            let Some(own) = own else { return Ok(Plan::nothing()) };
            if &*ask.key == THE_CLASS {
                return Ok(own.class());
            }
            // A volume's key has no slash; a claim's has one.
            let found = if ask.key.contains('/') { own.claims.get(&ask.key) } else { own.volumes.get(&ask.key) };
            match found {
                Some(object) if ask.key.contains('/') => own.provision(&object).await,
                Some(object) => own.reclaim(&object).await,
                None => Ok(Plan::nothing()),
            }
        }
        .boxed()
    };
    let own_key = |change: &Change| change.new.iter().map(|_| change.key.to_string()).collect();
    Controller::with_io("local-path-provisioner-controller", reconcile)
        .watch(&claims, own_key)
        .watch(&all_volumes, own_key)
        .watch(&classes, |_| vec![THE_CLASS.to_string()])
        .read(&nodes)
        .every(std::time::Duration::from_secs(600), THE_CLASS)
        .workers(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_are_pinned_and_bound() {
        let claim = Object::from_value(&json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {"name": "c", "namespace": "n", "uid": "u", "resourceVersion": "7"},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}, "storageClassName": CLASS},
        }))
        .unwrap();
        let class = StorageClass { provisioner: PROVISIONER.into(), ..StorageClass::default() };
        let typed = claim.typed::<PersistentVolumeClaim>().unwrap();
        let made = volume(&claim, &typed, &class, Path::new("/d/x"), "node-1");
        assert_eq!(made["metadata"]["name"], "pvc-u");
        assert_eq!(made["spec"]["claimRef"]["uid"], "u");
        assert_eq!(made["spec"]["capacity"]["storage"], "1Gi");
        assert_eq!(made["spec"]["persistentVolumeReclaimPolicy"], "Delete");
        let term = &made["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"][0]["matchExpressions"][0];
        assert_eq!(term["values"], json!(["node-1"]));
    }
}
