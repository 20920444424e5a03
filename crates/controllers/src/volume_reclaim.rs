//! Volumes whose claim is gone: what their policy makes of them. Pure.

use jiff::Timestamp;
use meta::Status;
use serde_json::Value;

use crate::plan::{Action, Note, Plan};
use crate::volumes::{PROVISIONED_BY, Volume, volumes_resource};

/// By whom a volume of an old driver is looked after now.
const MIGRATED_TO: &str = "pv.kubernetes.io/migrated-to";

/// What becomes of a volume whose claim is gone, where that is not its provisioner's business: there is nothing here that
/// could empty or delete it, and it says so. `users`: pods that still have it.
pub fn plan(volume: &Volume, known: Value, users: &[String], now: Timestamp) -> Result<Plan, Status> {
    let mut plan = Plan::nothing();
    let annotation = |name: &str| volume.typed.metadata.annotations.as_ref()?.get(name).filter(|a| !a.is_empty());
    if annotation(MIGRATED_TO).is_some() {
        return Ok(plan);
    }
    let policy = volume.typed.spec.as_ref().and_then(|s| s.persistent_volume_reclaim_policy.as_deref());
    let (reason, said) = match policy.unwrap_or("Retain") {
        "Retain" => return Ok(plan),
        "Recycle" if !users.is_empty() => {
            let said = format!("Volume is used by pods: {}", users.join(","));
            plan.note(Note::normal(&volume.object, "VolumeFailedRecycle", said));
            return Ok(plan);
        }
        "Recycle" => ("VolumeFailedRecycle", "No recycler plugin found for the volume!".to_string()),
        "Delete" if annotation(PROVISIONED_BY).is_some() => return Ok(plan),
        "Delete" => {
            let name = &volume.object.meta.name;
            let why = "no deletable volume plugin matched";
            ("VolumeFailedDelete", format!("error getting deleter volume plugin for volume {name:?}: {why}"))
        }
        _ => ("VolumeUnknownReclaimPolicy", "Volume has unrecognized PersistentVolumeReclaimPolicy".to_string()),
    };
    let mut status = known;
    status["phase"] = "Failed".into();
    status["message"] = said.as_str().into();
    status["lastPhaseTransitionTime"] = client::time::rfc3339(now).into();
    let told = Note::warning(&volume.object, reason, said);
    plan.act(Action::status(&volumes_resource(), &volume.object, status)?.done(told));
    Ok(plan)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use meta::Object;
    use serde_json::json;

    use super::*;

    #[test]
    fn what_cannot_be_done_is_told() {
        let check = |policy: &str, annotations: Value, users: &[&str], expect: &[&str]| {
            let body = json!({"kind": "PersistentVolume", "apiVersion": "v1",
                "metadata": {"name": "pv", "uid": "u", "annotations": annotations},
                "spec": {"persistentVolumeReclaimPolicy": policy}, "status": {"phase": "Released"}});
            let object = Arc::new(Object::from_value(&body).unwrap());
            let volume = Volume { typed: object.typed().unwrap(), object };
            let users: Vec<String> = users.iter().map(ToString::to_string).collect();
            let plan = plan(&volume, body["status"].clone(), &users, Timestamp::UNIX_EPOCH).unwrap();
            let told = plan.actions.iter().flat_map(|a| &a.done).chain(&plan.notes);
            let told: Vec<String> = told.map(|n| format!("{} {}", n.reason, n.message)).collect();
            assert_eq!(told, expect, "{policy} {annotations}");
        };
        check("Retain", json!({}), &[], &[]);
        check("Delete", json!({PROVISIONED_BY: "csi.example.com"}), &[], &[]);
        check("Delete", json!({MIGRATED_TO: "csi.example.com"}), &[], &[]);
        let nobody = "error getting deleter volume plugin for volume \"pv\": no deletable volume plugin matched";
        check("Delete", json!({}), &[], &[&format!("VolumeFailedDelete {nobody}")]);
        check("Recycle", json!({}), &["n/a", "n/b"], &["VolumeFailedRecycle Volume is used by pods: n/a,n/b"]);
        check("Recycle", json!({}), &[], &["VolumeFailedRecycle No recycler plugin found for the volume!"]);
    }
}
