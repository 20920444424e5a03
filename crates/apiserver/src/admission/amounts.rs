//! Sums of resources, as limits and quotas count them.

use std::collections::BTreeMap;

use meta::Value;
use meta::quantity::Quantity;

/// Amounts by resource name.
pub type Amounts = BTreeMap<String, Quantity>;

/// A `ResourceList`; what is no quantity was refused by validation and counts as nothing.
pub fn of(list: &Value) -> Amounts {
    let read = |(name, amount): (&String, &Value)| Some((name.clone(), Quantity::from_value(amount).ok()?));
    list.as_object().into_iter().flatten().filter_map(read).collect()
}

pub fn add(sum: &mut Amounts, name: &str, amount: &Quantity) {
    let total = sum.entry(name.to_string()).or_insert_with(Quantity::zero);
    *total = total.add(amount);
}

pub fn list<'a>(spec: &'a Value, field: &str) -> &'a [Value] {
    spec[field].as_array().map_or(&[], Vec::as_slice)
}

/// What a pod takes altogether: containers and sidecars side by side, init containers one after the other, pod-level
/// resources in place of both, and the overhead of its runtime.
pub fn of_pod(spec: &Value, field: &str) -> Amounts {
    let mut sum = Amounts::new();
    for container in list(spec, "containers") {
        of(&container["resources"][field]).iter().for_each(|(n, q)| add(&mut sum, n, q));
    }
    let (mut sidecars, mut steps) = (Amounts::new(), Amounts::new());
    for container in list(spec, "initContainers") {
        let own = of(&container["resources"][field]);
        if container["restartPolicy"] == "Always" {
            for (name, amount) in &own {
                add(&mut sum, name, amount);
                add(&mut sidecars, name, amount);
            }
            continue;
        }
        for (name, amount) in own {
            let with = sidecars.get(&name).map_or(amount.clone(), |running| running.add(&amount));
            raise(&mut steps, name, with);
        }
    }
    for (name, amount) in steps {
        raise(&mut sum, name, amount);
    }
    sum.extend(of(&spec["resources"][field]));
    for (name, amount) in of(&spec["overhead"]) {
        if field == "requests" || sum.contains_key(&name) {
            add(&mut sum, &name, &amount);
        }
    }
    sum
}

fn raise(to: &mut Amounts, name: String, amount: Quantity) {
    let most = to.entry(name).or_insert_with(Quantity::zero);
    if amount > *most {
        *most = amount;
    }
}

/// `name=amount` joined by commas.
pub fn print(amounts: &Amounts) -> String {
    amounts.iter().map(|(name, amount)| format!("{name}={amount}")).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn pods() {
        let c = |cpu: &str| json!({"resources": {"requests": {"cpu": cpu}}});
        let sidecar = json!({"restartPolicy": "Always", "resources": {"requests": {"cpu": "1"}}});
        for (spec, expect) in [
            (json!({"containers": [c("1"), c("500m")]}), "cpu=1500m"),
            (json!({"containers": [c("1")], "initContainers": [c("3")]}), "cpu=3"),
            (json!({"containers": [c("1")], "initContainers": [sidecar, c("3")]}), "cpu=4"),
            (json!({"containers": [c("1")], "initContainers": [c("1"), sidecar]}), "cpu=2"),
            (json!({"containers": [c("1")], "resources": {"requests": {"cpu": "5"}}}), "cpu=5"),
            (json!({"containers": [c("1")], "overhead": {"cpu": "250m", "memory": "1Mi"}}), "cpu=1250m,memory=1Mi"),
        ] {
            assert_eq!(print(&of_pod(&spec, "requests")), expect, "{spec}");
        }
    }
}
