//! apps, and the core kinds that are workloads: deployments, replica sets, stateful sets, daemon sets, revisions.

use meta::Value;

use crate::cells::{age, containers, labels, name, or_none, selector};
use crate::strategy::Strategy;
use crate::tree::Tree;

kinds! {
    Deployment: "Name|Ready|Up-to-date|Available|Age|Containers*|Images*|Selector*";
    ReplicaSet: "Name|Desired#|Current#|Ready#|Age|Containers*|Images*|Selector*";
    ReplicationController: "Name|Desired#|Current#|Ready#|Age|Containers*|Images*|Selector*";
    StatefulSet: "Name|Ready|Age|Containers*|Images*";
    DaemonSet: "Name|Desired#|Current#|Ready#|Up-to-date#|Available#|Node Selector|Age|Containers*|Images*|Selector*";
    ControllerRevision: "Name|Controller|Revision|Age";
    PodTemplate: "Name|Containers|Images|Pod Labels";
}

const CONTAINERS: &str = "spec.template.spec.containers";

fn ready(object: &Value) -> Value {
    format!("{}/{}", object.int("status.readyReplicas"), object.int("spec.replicas")).into()
}

impl Strategy for Deployment {
    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        let [names, images] = containers(object.list(CONTAINERS));
        vec![
            name(object),
            ready(object),
            object.int("status.updatedReplicas").into(),
            object.int("status.availableReplicas").into(),
            age(object, now),
            names,
            images,
            selector(object.at("spec.selector")),
        ]
    }
}

fn replicas_row(object: &Value, selector: Value, now: &str) -> Vec<Value> {
    let [names, images] = containers(object.list(CONTAINERS));
    let count = |path| Value::from(object.int(path));
    let counts = ["spec.replicas", "status.replicas", "status.readyReplicas"].map(count);
    [name(object)].into_iter().chain(counts).chain([age(object, now), names, images, selector]).collect()
}

impl Strategy for ReplicaSet {
    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        replicas_row(object, selector(object.at("spec.selector")), now)
    }
}

impl Strategy for ReplicationController {
    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        replicas_row(object, labels(object.map("spec.selector")), now)
    }
}

impl Strategy for StatefulSet {
    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        let [names, images] = containers(object.list(CONTAINERS));
        vec![name(object), ready(object), age(object, now), names, images]
    }
}

impl Strategy for DaemonSet {
    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        let [names, images] = containers(object.list(CONTAINERS));
        let counts = ["desiredNumberScheduled", "currentNumberScheduled", "numberReady", "updatedNumberScheduled", "numberAvailable"]
            .map(|field| Value::from(object["status"].int(field)));
        let node_selector = labels(object.map("spec.template.spec.nodeSelector"));
        let rest = [node_selector, age(object, now), names, images, selector(object.at("spec.selector"))];
        [name(object)].into_iter().chain(counts).chain(rest).collect()
    }
}

impl Strategy for ControllerRevision {
    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        let owner = object.list("metadata.ownerReferences").iter().find(|o| o.flag("controller")).map_or(String::new(), |owner| {
            let group = owner.text("apiVersion").split_once('/').map_or("", |(group, _)| group);
            let kind = owner.text("kind").to_lowercase();
            let dot = if group.is_empty() { "" } else { "." };
            format!("{kind}{dot}{group}/{}", owner.text("name"))
        });
        vec![name(object), or_none(&owner), object.int("revision").into(), age(object, now)]
    }
}

impl Strategy for PodTemplate {
    fn table_row(&self, object: &Value, _now: &str) -> Vec<Value> {
        let [names, images] = containers(object.list("template.spec.containers"));
        vec![name(object), names, images, labels(object.map("template.metadata.labels"))]
    }
}
