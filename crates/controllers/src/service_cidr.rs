//! ServiceCIDRs: ready while they stand, and held while addresses of theirs are in use.

use std::net::IpAddr;

use client::Informer;
use ipnet::IpNet;
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use meta::Status;

use crate::conditions::{self, Condition};
use crate::plan::{Action, Plan};
use crate::runner::{Controller, own_key};
use crate::volumes::finalizer;
use crate::{Context, decoded, status_of};

const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";

fn networks(object: &meta::Object) -> Result<Vec<IpNet>, Status> {
    let typed = decoded::<ServiceCIDR>(object)?;
    let listed = typed.spec.as_ref().and_then(|s| s.cidrs.as_deref()).unwrap_or_default();
    Ok(listed.iter().filter_map(|c| c.parse().ok()).collect())
}

/// Whether an address in use would be nobody's if the range went.
fn is_needed(networks: &[IpNet], others: &[IpNet], addresses: impl Iterator<Item = IpAddr>) -> bool {
    addresses.into_iter().any(|ip| networks.iter().any(|n| n.contains(&ip)) && !others.iter().any(|n| n.contains(&ip)))
}

fn unfinished(ranges: &Informer) -> Vec<String> {
    ranges.list_where(None, |o| o.meta.deletion_timestamp.is_some()).iter().map(|o| o.meta.key()).collect()
}

pub fn service_cidrs(cx: &Context) -> Controller {
    let (ranges, addresses) = (cx.informers.get::<ServiceCIDR>(), cx.informers.get::<IPAddress>());
    let resource = client::gvr_of::<ServiceCIDR>();
    let (of, of_addresses, leaving) = (ranges.clone(), addresses.clone(), ranges.clone());
    Controller::new("service-cidr-controller", move |ask| {
        let mut plan = Plan::nothing();
        let Some(object) = of.get(&ask.key) else { return Ok(plan) };
        let known = status_of(&object)?;
        let mut status = if known.is_object() { known.clone() } else { serde_json::json!({}) };
        let mut set = |status_word, reason, message| {
            let condition = Condition { kind: "Ready", status: status_word, reason, message };
            conditions::update(&mut status, condition, ask.now);
        };
        if object.meta.deletion_timestamp.is_none() {
            plan.actions.extend(finalizer(&resource, &object, FINALIZER, true)?);
            set("True", "", "Kubernetes Service CIDR is ready");
        } else {
            let mut others = Vec::new();
            for other in of.list(None).iter().filter(|o| o.meta.uid != object.meta.uid) {
                if other.meta.deletion_timestamp.is_none() {
                    others.extend(networks(other)?);
                }
            }
            let used = of_addresses.list(None);
            let used = used.iter().filter_map(|o| o.meta.name.parse().ok());
            if !is_needed(&networks(&object)?, &others, used) {
                plan.actions.extend(finalizer(&resource, &object, FINALIZER, false)?);
                return Ok(plan);
            }
            set("False", "Terminating", "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR");
        }
        if status != known {
            plan.act(Action::status(&resource, &object, status)?);
        }
        Ok(plan)
    })
    .watch(&ranges, own_key)
    .watch(&addresses, move |change| if change.new.is_none() { unfinished(&leaving) } else { Vec::new() })
    .workers(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_in_use_stay() {
        let nets = |list: &[&str]| list.iter().map(|n| n.parse().unwrap()).collect::<Vec<IpNet>>();
        for (own, others, used, expect) in [
            (&["10.0.0.0/24"][..], &[][..], &["10.0.0.1"][..], true),
            (&["10.0.0.0/24"], &["10.0.0.0/16"], &["10.0.0.1"], false),
            (&["10.0.0.0/24"], &[], &["10.0.1.1"], false),
            (&["10.0.0.0/24", "fd00::/112"], &["10.0.0.0/16"], &["fd00::5"], true),
            (&["10.0.0.0/24"], &[], &[], false),
        ] {
            let used = used.iter().map(|u| u.parse().unwrap());
            assert_eq!(is_needed(&nets(own), &nets(others), used), expect, "{own:?} {others:?}");
        }
    }
}
