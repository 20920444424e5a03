//! flowcontrol.apiserver.k8s.io: flow schemas and priority levels.

use meta::Value;

use crate::cells::{age, name, or_none};
use crate::strategy::Strategy;
use crate::tree::Tree;

kinds! {
    FlowSchema: "Name|PriorityLevel|MatchingPrecedence|DistinguisherMethod|Age|MissingPL";
    PriorityLevel: "Name|Type|NominalConcurrencyShares|Queues|HandSize|QueueLengthLimit|Age";
}

impl Strategy for FlowSchema {
    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        vec![
            name(object),
            object.text("spec.priorityLevelConfiguration.name").into(),
            object.int("spec.matchingPrecedence").into(),
            or_none(object.text("spec.distinguisherMethod.type")),
            age(object, now),
            object.find("status.conditions", "type", "Dangling").map_or("?", |c| c.text("status")).into(),
        ]
    }
}

impl Strategy for PriorityLevel {
    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        let limited = object.at("spec.limited");
        let queuing = limited.at("limitResponse.queuing");
        let count = |from: &Value, field: &str| if from.is_null() { "<none>".into() } else { from.int(field).into() };
        vec![
            name(object),
            object.text("spec.type").into(),
            count(limited, "nominalConcurrencyShares"),
            count(queuing, "queues"),
            count(queuing, "handSize"),
            count(queuing, "queueLengthLimit"),
            age(object, now),
        ]
    }
}
