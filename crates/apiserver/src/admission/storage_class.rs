//! DefaultStorageClass and PersistentVolumeClaimResize: which class a claim gets, and whether that lets it grow.

use async_trait::async_trait;
use meta::quantity::Quantity;
use meta::{Status, Value};

use super::default_class::default_class;
use super::{Attributes, Operation, Plugin, Write};
use crate::server::ApiServer;

pub struct DefaultStorageClass;
pub struct PersistentVolumeClaimResize;

const GROUP: &str = "storage.k8s.io";
const DEFAULT: [&str; 2] =
    ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];
const BETA_CLASS: &str = "volume.beta.kubernetes.io/storage-class";

#[async_trait]
impl Plugin for DefaultStorageClass {
    fn concerns(&self, _server: &ApiServer, a: &Attributes<'_>) -> bool {
        a.creates("", "persistentvolumeclaims")
    }

    async fn mutate(&self, write: &Write<'_>, claim: &mut Value) -> Result<(), Status> {
        let Write { server, .. } = *write;
        let chosen =
            !claim["spec"]["storageClassName"].is_null() || !claim["metadata"]["annotations"][BETA_CLASS].is_null();
        if chosen || !claim["spec"].is_object() {
            return Ok(());
        }
        if let Some(class) = default_class(server, GROUP, "storageclasses", &DEFAULT)? {
            claim["spec"]["storageClassName"] = class;
        }
        Ok(())
    }
}

#[async_trait]
impl Plugin for PersistentVolumeClaimResize {
    fn concerns(&self, _server: &ApiServer, a: &Attributes<'_>) -> bool {
        a.is("", "persistentvolumeclaims") && a.operation == Operation::Update
    }

    async fn validate(&self, write: &Write<'_>, object: Option<&Value>) -> Result<(), Status> {
        let Write { server, a, old } = *write;
        let (Some(claim), Some(old)) = (object, old) else { return Ok(()) };
        let size = |claim: &Value| {
            Quantity::from_value(&claim["spec"]["resources"]["requests"]["storage"])
                .unwrap_or_else(|_| Quantity::zero())
        };
        if size(claim) <= size(old) {
            return Ok(());
        }
        let name = claim["metadata"]["name"].as_str().unwrap_or_default();
        if old["status"]["phase"] != "Bound" {
            return Err(a.forbid(name, "Only bound persistent volume claims can be expanded"));
        }
        let class = claim["metadata"]["annotations"][BETA_CLASS]
            .as_str()
            .or(claim["spec"]["storageClassName"].as_str())
            .unwrap_or_default();
        let class = server
            .lookup(GROUP, "storageclasses", "", class)
            .map(|class| class.value())
            .transpose()
            .map_err(Status::internal)?;
        if class.is_some_and(|class| class["allowVolumeExpansion"] == true) {
            return Ok(());
        }
        Err(a.forbid(name, "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize"))
    }
}
