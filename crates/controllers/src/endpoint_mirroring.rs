//! EndpointSlices for Endpoints objects that people make by hand, for Services without a selector.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Endpoints, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use meta::{Object, Status};
use serde_json::{Map, Value, json};

use crate::Context;
use crate::endpoints::{ENDPOINTS_MANAGED_BY, MANAGED_BY, MAX_ADDRESSES, SERVICE_NAME};
use crate::plan::{Action, Note, Plan};
use crate::pods;
use crate::runner::{Controller, own_key};

const MIRROR_CONTROLLER: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP_MIRROR: &str = "endpointslice.kubernetes.io/skip-mirror";

/// The mirror of an Endpoints object somebody made by hand, for a Service without selector.
pub fn plan_mirror(endpoints: &Object, service: &Object, slices: Vec<Arc<Object>>) -> Result<Plan, Status> {
    let resource = client::gvr_of::<EndpointSlice>();
    let body = endpoints.value().map_err(Status::internal)?;
    let mut plan = Plan::nothing();
    let mut wanted: BTreeMap<String, Value> = BTreeMap::new();
    let (mut skipped, mut invalid) = (0, 0);
    for (at, subset) in body["subsets"].as_array().into_iter().flatten().enumerate() {
        let mut lists = [Vec::new(), Vec::new()];
        for (field, ready) in [("addresses", true), ("notReadyAddresses", false)] {
            for address in subset[field].as_array().into_iter().flatten() {
                let ip = address["ip"].as_str().unwrap_or_default();
                if lists.iter().map(Vec::len).sum::<usize>() >= MAX_ADDRESSES {
                    skipped += 1;
                    continue;
                }
                let Ok(parsed) = ip.parse::<IpAddr>() else {
                    (skipped, invalid) = (skipped + 1, invalid + 1);
                    continue;
                };
                let mut endpoint = json!({"addresses": [ip], "conditions": {"ready": ready}});
                for field in ["hostname", "nodeName", "targetRef"] {
                    if let Some(value) = address.get(field) {
                        endpoint[field] = value.clone();
                    }
                }
                lists[usize::from(parsed.is_ipv6())].push(endpoint);
            }
        }
        for (family, list) in ["IPv4", "IPv6"].into_iter().zip(lists).filter(|(_, list)| !list.is_empty()) {
            let mut ports = subset["ports"].as_array().cloned().unwrap_or_default();
            for port in &mut ports {
                if port.get("name").is_none() {
                    port["name"] = "".into();
                }
            }
            let seed = format!("{}/{at}/{family}", endpoints.meta.uid);
            let name = format!("{}{}", pods::name_prefix(&service.meta.name), crate::hash::suffix(&seed));
            let slice = json!({"endpoints": list, "ports": ports, "addressType": family});
            wanted.insert(name, slice);
        }
    }
    if invalid > 0 {
        let said = format!("Skipped {invalid} invalid IP addresses when mirroring to EndpointSlices");
        plan.note(Note::warning(endpoints, "InvalidIPAddress", said));
    }
    if skipped > invalid {
        let said = format!(
            "A max of {MAX_ADDRESSES} addresses can be mirrored to EndpointSlices per Endpoints subset. {skipped} addresses were skipped"
        );
        plan.note(Note::warning(endpoints, "TooManyAddressesToMirror", said));
    }
    for slice in slices {
        let Some(want) = wanted.remove(&*slice.meta.name) else {
            plan.act(Action::delete(&resource, &slice));
            continue;
        };
        let mut body = slice.value().map_err(Status::internal)?;
        if body["endpoints"] != want["endpoints"] || body["ports"] != want["ports"] {
            body["endpoints"] = want["endpoints"].clone();
            body["ports"] = want["ports"].clone();
            plan.act(Action::update(&resource, &slice, body));
        }
    }
    let mut labels: Map<String, Value> =
        endpoints.meta.labels.iter().map(|(k, v)| (k.to_string(), Value::from(&**v))).collect();
    labels.insert(SERVICE_NAME.into(), (&*service.meta.name).into());
    labels.insert(MANAGED_BY.into(), MIRROR_CONTROLLER.into());
    for (name, mut slice) in wanted {
        slice["apiVersion"] = "discovery.k8s.io/v1".into();
        slice["kind"] = "EndpointSlice".into();
        slice["metadata"] = json!({
            "name": name, "namespace": &*endpoints.meta.namespace, "labels": labels,
            "ownerReferences": [crate::owners::controller_ref(endpoints)],
        });
        plan.act(Action::create(&resource, &endpoints.meta.namespace, slice).may_exist());
    }
    Ok(plan)
}

/// Whether the endpoints controller writes it, which sees to the slices too.
fn is_planned(endpoints: &Object) -> bool {
    endpoints.meta.label(ENDPOINTS_MANAGED_BY).is_some()
}

pub fn endpoint_slice_mirroring(cx: &Context) -> Controller {
    let (services, endpoints) = (cx.informers.get::<Service>(), cx.informers.get::<Endpoints>());
    let slices = cx.informers.get::<EndpointSlice>();
    let ours = |o: &Object| o.meta.label(MANAGED_BY) == Some(MIRROR_CONTROLLER);
    let mirror_of = move |o: &Object| {
        Some(meta::object::object_key(&o.meta.namespace, o.meta.label(SERVICE_NAME).filter(|_| ours(o))?))
    };
    slices.add_index("mirror", move |o| mirror_of(o).into_iter().collect());
    let (of, of_endpoints, of_slices) = (services.clone(), endpoints.clone(), slices.clone());
    Controller::new("endpointslice-mirroring-controller", move |ask| {
        let held = of_slices.by_index("mirror", &ask.key);
        let mirrored = of_endpoints.get(&ask.key).zip(of.get(&ask.key)).filter(|(endpoints, service)| {
            let skipped = endpoints.meta.label(SKIP_MIRROR) == Some("true") || is_planned(endpoints);
            let selecting = service
                .typed::<Service>()
                .is_ok_and(|s| s.spec.as_ref().is_some_and(|s| s.selector.as_ref().is_some_and(|m| !m.is_empty())));
            !skipped && !selecting
        });
        if let Some((endpoints, service)) = mirrored {
            return plan_mirror(&endpoints, &service, held);
        }
        let resource = client::gvr_of::<EndpointSlice>();
        let gone = held.iter().map(|s| Action::delete(&resource, s));
        Ok(Plan { actions: gone.collect(), ..Plan::nothing() })
    })
    .watch(&services, own_key)
    .watch(&endpoints, |c| match [&c.old, &c.new].into_iter().flatten().all(|o| is_planned(o)) {
        true => Vec::new(),
        false => own_key(c),
    })
    .watch(&slices, move |c| [&c.old, &c.new].into_iter().flatten().filter_map(|o| mirror_of(o)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_told() {
        let object = |kind: &str, extra: Value| {
            let mut body =
                json!({"kind": kind, "apiVersion": "v1", "metadata": {"name": "s", "namespace": "n", "uid": "u"}});
            body["subsets"] = extra;
            Object::from_value(&body).unwrap()
        };
        let addresses =
            |n: usize| (0..n).map(|i| json!({"ip": format!("10.0.{}.{}", i / 250, i % 250 + 1)})).collect::<Vec<_>>();
        let service = object("Service", Value::Null);
        for (ready, unready, mirrored, told) in [
            (addresses(3), vec![json!({"ip": "fd00::1"})], &[3, 1][..], &[][..]),
            (vec![json!({"ip": "x"}), json!({"ip": "10.0.0.1"})], vec![], &[1], &[("InvalidIPAddress", "Skipped 1 ")]),
            (addresses(999), addresses(5), &[1000], &[("TooManyAddressesToMirror", "A max of 1000 ")]),
        ] {
            let endpoints = object("Endpoints", json!([{"addresses": ready, "notReadyAddresses": unready}]));
            let plan = plan_mirror(&endpoints, &service, Vec::new()).unwrap();
            let mut sizes: Vec<usize> = plan
                .actions
                .iter()
                .map(|a| match &a.what {
                    crate::plan::What::Create { body } => body["endpoints"].as_array().unwrap().len(),
                    other => panic!("{other:?}"),
                })
                .collect();
            sizes.sort_by(|a, b| b.cmp(a));
            assert_eq!(sizes, mirrored);
            assert_eq!(plan.notes.len(), told.len());
            for (note, (reason, start)) in plan.notes.iter().zip(told) {
                assert!(note.reason == *reason && note.message.starts_with(start), "{note:?}");
            }
        }
    }
}
