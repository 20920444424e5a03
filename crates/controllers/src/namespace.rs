//! Namespaces: emptying one that is going away, resource by resource as discovery names them, pods first; then letting
//! it go. Also what every namespace has: the `default` ServiceAccount and the CA bundle.

use std::collections::BTreeMap;
use std::time::Duration;

use client::{ApiResource, Change, Client, DeleteOptions, ListOptions, Propagation};
use futures::FutureExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use meta::{List, Object, Status};
use serde_json::json;

use crate::conditions::{self, Condition};
use crate::plan::{Action, Plan};
use crate::runner::{Ask, Controller, own_key};
use crate::{Context, decoded, status_of};

/// After deletions were asked for: most things are gone at once.
const SOON: Duration = Duration::from_millis(100);
/// While pods end or finalizers are waited for.
const LATER: Duration = Duration::from_millis(700);
/// While some API cannot be asked.
const BROKEN: Duration = Duration::from_secs(5);
const FINALIZER: &str = "kubernetes";
const CA_CONFIG_MAP: &str = "kube-root-ca.crt";

/// What is left in a namespace.
#[derive(Default)]
pub struct Left {
    pub resources: Vec<(ApiResource, List)>,
    /// Groups that could not be discovered.
    pub undiscovered: Vec<String>,
    /// Resources that could not be listed.
    pub unlisted: Vec<String>,
}

/// Empties the namespace, or lets it go when it is empty.
pub fn plan(namespace: &Object, left: &Left, now: Timestamp) -> Result<Plan, Status> {
    let resource = client::gvr_of::<Namespace>();
    let mut plan = Plan::nothing();
    let is_pods = |r: &ApiResource| r.resource.group.is_empty() && &*r.resource.resource == "pods";
    let pods_left = left.resources.iter().any(|(r, l)| is_pods(r) && !l.items.is_empty());
    let mut deleting = false;
    let (mut remaining, mut finalizers) = (Vec::new(), BTreeMap::<&str, usize>::new());
    for (api, list) in left.resources.iter().filter(|(_, l)| !l.items.is_empty()) {
        remaining.push(format!(
            "{}.{} has {} resource instances",
            api.resource.resource,
            api.resource.group,
            list.items.len()
        ));
        list.items.iter().flat_map(|o| &o.meta.finalizers).for_each(|f| *finalizers.entry(f).or_default() += 1);
        if pods_left && !is_pods(api) {
            // What pods may still need goes after them.
            continue;
        }
        let staying: Vec<_> = list.items.iter().filter(|o| o.meta.deletion_timestamp.is_none()).collect();
        deleting |= !staying.is_empty();
        if staying.len() > 1 && api.can("deletecollection") {
            let options = DeleteOptions::default().propagation(Propagation::Background);
            plan.act(Action::delete_collection(&api.resource, &namespace.meta.name, options));
        } else {
            let options = || DeleteOptions::default().propagation(Propagation::Background);
            plan.actions.extend(staying.into_iter().map(|o| Action::delete_with(&api.resource, o, options())));
        }
    }
    let known = status_of(namespace)?;
    let mut status = known.clone();
    status["phase"] = "Terminating".into();
    remaining.sort();
    let remaining_said = format!("Some resources are remaining: {}", remaining.join(", "));
    let by_finalizer: Vec<String> = finalizers.iter().map(|(f, n)| format!("{f} in {n} resource instances")).collect();
    let finalizers_said =
        format!("Some content in the namespace has finalizers remaining: {}", by_finalizer.join(", "));
    let discovery_said = format!(
        "Discovery failed for some groups, {} failing: {}",
        left.undiscovered.len(),
        left.undiscovered.join(", ")
    );
    let content_said =
        format!("Failed to delete all resource types, {} remaining: {}", left.unlisted.len(), left.unlisted.join(", "));
    // (type, whether it holds, reason and message when it does, reason and message when not)
    let all = [
        (
            "NamespaceDeletionDiscoveryFailure",
            !left.undiscovered.is_empty(),
            "DiscoveryFailed",
            &*discovery_said,
            "ResourcesDiscovered",
            "All resources successfully discovered",
        ),
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            false,
            "",
            "",
            "ParsedGroupVersions",
            "All legacy kube types successfully parsed",
        ),
        (
            "NamespaceDeletionContentFailure",
            !left.unlisted.is_empty(),
            "ContentDeletionFailed",
            &*content_said,
            "ContentDeleted",
            "All content successfully deleted, may be waiting on finalization",
        ),
        (
            "NamespaceContentRemaining",
            !remaining.is_empty(),
            "SomeResourcesRemain",
            &*remaining_said,
            "ContentRemoved",
            "All content successfully removed",
        ),
        (
            "NamespaceFinalizersRemaining",
            !finalizers.is_empty(),
            "SomeFinalizersRemain",
            &*finalizers_said,
            "ContentHasNoFinalizers",
            "All content-preserving finalizers finished",
        ),
    ];
    for (kind, holds, bad_reason, bad_message, good_reason, good_message) in all {
        let (status_word, reason, message) =
            if holds { ("True", bad_reason, bad_message) } else { ("False", good_reason, good_message) };
        conditions::update(&mut status, Condition { kind, status: status_word, reason, message }, now);
    }
    let broken = !left.undiscovered.is_empty() || !left.unlisted.is_empty();
    if remaining.is_empty() && !broken {
        let mut body = namespace.value().map_err(Status::internal)?;
        if let Some(list) = body["spec"]["finalizers"].as_array_mut() {
            list.retain(|f| f != FINALIZER);
        }
        plan.act(Action::update_subresource(&resource, namespace, "finalize", body));
        return Ok(plan);
    }
    // Not at once: most namespaces are empty before anybody could read of what was left.
    if (!deleting || broken) && status != known {
        plan.act(Action::status(&resource, namespace, status)?);
    }
    plan.again_after(if deleting {
        SOON
    } else if broken {
        BROKEN
    } else {
        LATER
    });
    Ok(plan)
}

async fn gather(client: &Client, namespace: &str) -> Result<Left, Status> {
    let found = client.discover().await?;
    let mut left = Left { undiscovered: found.failed, ..Left::default() };
    for api in found.resources {
        if !api.namespaced || !api.preferred || !api.can("list") || !api.can("delete") {
            continue;
        }
        match client.dynamic(api.resource.clone()).namespaced(namespace).list(&ListOptions::default()).await {
            Ok(list) => left.resources.push((api, list)),
            // Served a moment ago, not any more: a CRD that went away.
            Err(status) if status.is_not_found() => {}
            Err(status) => left.unlisted.push(status.message),
        }
    }
    Ok(left)
}

pub fn namespaces(cx: &Context) -> Controller {
    let namespaces = cx.informers.get::<Namespace>();
    let (of, client) = (namespaces.clone(), cx.client.clone());
    let reconcile = move |ask: Ask| {
        let (of, client) = (of.clone(), client.clone());
        async move {
            let Some(object) = of.get(&ask.key) else { return Ok(Plan::nothing()) };
            let typed = decoded::<Namespace>(&object)?;
            let held = typed
                .spec
                .as_ref()
                .and_then(|s| s.finalizers.as_ref())
                .is_some_and(|f| f.iter().any(|f| f == FINALIZER));
            if object.meta.deletion_timestamp.is_none() || !held {
                return Ok(Plan::nothing());
            }
            let left = gather(&client, &object.meta.name).await?;
            plan(&object, &left, ask.now)
        }
        .boxed()
    };
    Controller::with_io("namespace-controller", reconcile)
        .watch(&namespaces, own_key)
        .workers(cx.options.concurrency * 2)
}

/// A dependent's namespace, when it has the name the controller keeps.
fn namespace_of(name: &'static str) -> impl Fn(&Change) -> Vec<String> + Send + Sync + 'static {
    move |change| {
        change.object().filter(|o| &*o.meta.name == name).map(|o| o.meta.namespace.to_string()).into_iter().collect()
    }
}

pub fn service_accounts(cx: &Context) -> Controller {
    let (namespaces, accounts) = (cx.informers.get::<Namespace>(), cx.informers.get::<ServiceAccount>());
    let (of, of_accounts) = (namespaces.clone(), accounts.clone());
    Controller::new("serviceaccount-controller", move |ask| {
        let mut plan = Plan::nothing();
        let active = of.get(&ask.key).is_some_and(|n| n.meta.deletion_timestamp.is_none());
        if active && of_accounts.get(&format!("{}/default", ask.key)).is_none() {
            let body = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": &*ask.key}});
            plan.act(Action::create(&client::gvr_of::<ServiceAccount>(), &ask.key, body).may_exist());
        }
        Ok(plan)
    })
    .watch(&namespaces, own_key)
    .watch(&accounts, namespace_of("default"))
}

pub fn root_ca(cx: &Context) -> Controller {
    let namespaces = cx.informers.get::<Namespace>();
    let resource = client::gvr_of::<ConfigMap>();
    let fields = format!("metadata.name={CA_CONFIG_MAP}");
    let maps = cx.informers.get_gvr(resource.clone(), "", None, Some(&fields));
    let (of, of_maps, bundle) = (namespaces.clone(), maps.clone(), cx.options.root_ca.clone());
    Controller::new("root-ca-certificate-publisher-controller", move |ask| {
        let mut plan = Plan::nothing();
        let active = of.get(&ask.key).is_some_and(|n| n.meta.deletion_timestamp.is_none());
        let Some(bundle) = bundle.as_ref().filter(|_| active) else { return Ok(plan) };
        let data = json!({"ca.crt": bundle});
        match of_maps.get(&format!("{}/{CA_CONFIG_MAP}", ask.key)) {
            None => {
                let about = "The certificate authority that signs the API server's certificate for its in-cluster addresses.";
                let body = json!({
                    "apiVersion": "v1", "kind": "ConfigMap", "data": data,
                    "metadata": {"name": CA_CONFIG_MAP, "namespace": &*ask.key, "annotations": {"kubernetes.io/description": about}},
                });
                plan.act(Action::create(&resource, &ask.key, body).may_exist());
            }
            Some(map) => {
                let mut body = map.value().map_err(Status::internal)?;
                if body["data"] != data {
                    body["data"] = data;
                    plan.act(Action::update(&resource, &map, body));
                }
            }
        }
        Ok(plan)
    })
    .watch(&namespaces, own_key)
    .watch(&maps, namespace_of(CA_CONFIG_MAP))
}
