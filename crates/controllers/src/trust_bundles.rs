//! The API server's authority as a ClusterTrustBundle, for those who mount bundles instead of ConfigMaps.

use k8s_openapi::api::certificates::v1::ClusterTrustBundle;
use serde_json::json;

use crate::Context;
use crate::plan::{Action, Plan};
use crate::runner::Controller;

const SIGNER: &str = "kubernetes.io/kube-apiserver-serving";
/// What the names of the signer's bundles begin with.
const PREFIX: &str = "kubernetes.io:kube-apiserver-serving:";

pub fn publisher(cx: &Context) -> Controller {
    let resource = client::gvr_of::<ClusterTrustBundle>();
    let bundles = cx.informers.get_gvr(resource.clone(), "", None, Some(&format!("spec.signerName={SIGNER}")));
    let (of, root_ca) = (bundles.clone(), cx.options.root_ca.clone());
    Controller::new("kube-apiserver-serving-clustertrustbundle-publisher-controller", move |_| {
        let mut plan = Plan::nothing();
        let Some(bundle) = &root_ca else { return Ok(plan) };
        let digest = ring::digest::digest(&ring::digest::SHA256, bundle.as_bytes());
        let hash: String = digest.as_ref().iter().take(8).map(|b| format!("{b:02x}")).collect();
        let name = format!("{PREFIX}{hash}");
        if of.get(&name).is_none() {
            let body = json!({
                "apiVersion": "certificates.k8s.io/v1", "kind": "ClusterTrustBundle", "metadata": {"name": name},
                "spec": {"signerName": SIGNER, "trustBundle": bundle},
            });
            plan.act(Action::create(&resource, "", body).may_exist());
        }
        // Those of other authorities go only when ours is there.
        plan.stop_at_failure = true;
        let others = of.list_where(None, |o| *o.meta.name != *name && o.meta.name.starts_with(PREFIX));
        plan.actions.extend(others.iter().map(|o| Action::delete(&resource, o)));
        Ok(plan)
    })
    .watch(&bundles, |_| vec![String::new()])
    .every(std::time::Duration::from_secs(3600), "")
    .workers(1)
}
