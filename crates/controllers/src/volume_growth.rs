//! Claims that ask for more than they have: handed to the driver that can grow their volume.

use client::{Change, Patch};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use meta::quantity::Quantity;
use serde_json::json;

use crate::plan::{Action, Note, Plan};
use crate::runner::{Controller, own_key};
use crate::{Context, decoded};

const RESIZER: &str = "volume.kubernetes.io/storage-resizer";

type Amount = k8s_openapi::apimachinery::pkg::api::resource::Quantity;

fn size(amount: Option<&Amount>) -> Option<Quantity> {
    amount?.0.parse().ok()
}

fn is_short(claim: &PersistentVolumeClaim) -> bool {
    let wanted = claim.spec.as_ref().and_then(|s| s.resources.as_ref()?.requests.as_ref()?.get("storage"));
    let has = claim.status.as_ref().and_then(|s| s.capacity.as_ref()?.get("storage"));
    size(wanted).zip(size(has)).is_some_and(|(wanted, has)| wanted > has)
}

pub fn expander(cx: &Context) -> Controller {
    let (claims, volumes) = (cx.informers.get::<PersistentVolumeClaim>(), cx.informers.get::<PersistentVolume>());
    let (of, of_volumes) = (claims.clone(), volumes.clone());
    Controller::new("persistentvolume-expander-controller", move |ask| {
        let mut plan = Plan::nothing();
        let Some(object) = of.get(&ask.key).filter(|o| o.meta.deletion_timestamp.is_none()) else { return Ok(plan) };
        let claim = decoded::<PersistentVolumeClaim>(&object)?;
        let bound = claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound");
        if !bound || !is_short(&claim) {
            return Ok(plan);
        }
        let volume = claim.spec.as_ref().and_then(|s| s.volume_name.as_deref()).and_then(|v| of_volumes.get(v));
        let Some(volume) = volume.map(|v| decoded::<PersistentVolume>(&v)).transpose()? else { return Ok(plan) };
        let Some(driver) = volume.spec.as_ref().and_then(|s| s.csi.as_ref()).map(|c| c.driver.clone()) else {
            let said = "Ignoring the PVC: didn't find a plugin capable of expanding the volume; waiting for an external controller to process this PVC.";
            plan.note(Note::warning(&object, "ExternalExpanding", said));
            return Ok(plan);
        };
        if claim.metadata.annotations.as_ref().and_then(|a| a.get(RESIZER)) != Some(&driver) {
            let patch = json!({"metadata": {"annotations": {RESIZER: driver}}});
            let resource = client::gvr_of::<PersistentVolumeClaim>();
            plan.act(Action::patch(&resource, &object, "", Patch::Merge(patch)));
            plan.note(Note::normal(&object, "ExternalExpanding", "waiting for an external controller to expand this PVC"));
        }
        Ok(plan)
    })
    .watch(&claims, |change: &Change| match &change.new {
        Some(new) if new.typed::<PersistentVolumeClaim>().is_ok_and(|c| is_short(&c)) => own_key(change),
        _ => Vec::new(),
    })
    .read(&volumes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_claims() {
        for (wanted, has, expect) in
            [("2Gi", "1Gi", true), ("1Gi", "1Gi", false), ("1Gi", "1.5Gi", false), ("1025Mi", "1Gi", true)]
        {
            let claim: PersistentVolumeClaim = serde_json::from_value(json!({
                "spec": {"resources": {"requests": {"storage": wanted}}}, "status": {"capacity": {"storage": has}},
            }))
            .unwrap();
            assert_eq!(is_short(&claim), expect, "{wanted} {has}");
        }
    }
}
