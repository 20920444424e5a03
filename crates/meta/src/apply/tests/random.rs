//! Laws that hold for whatever is written: checked on random writes, the same ones every time.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::*;

/// A xorshift generator: the same writes on every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }

    fn coin(&mut self) -> bool {
        self.roll(2) == 0
    }

    fn text(&mut self) -> Value {
        ["x", "y"][self.roll(2) as usize].into()
    }

    /// A pod with some of a few fields of all list and map types.
    fn pod(&mut self) -> Value {
        let mut spec = json!({});
        let mut containers = Vec::new();
        for name in ["a", "b", "c"] {
            if !self.coin() {
                continue;
            }
            let mut container = json!({"name": name, "image": self.text()});
            if self.coin() {
                let (first, last) = [(80, 80), (81, 81), (80, 81)][self.roll(3) as usize];
                container["ports"] = (first..=last)
                    .map(|port| json!({"containerPort": port, "protocol": "TCP", "name": self.text()}))
                    .collect();
            }
            if self.coin() {
                container["args"] = json!([self.text()]);
            }
            if self.coin() {
                container["resources"] = json!({"limits": {"cpu": self.text()}});
            }
            let at = self.roll(containers.len() as u64 + 1) as usize;
            containers.insert(at, container);
        }
        // Lists are never empty: an empty list shared item by item is owned by no one, and so stays.
        if !containers.is_empty() {
            spec["containers"] = containers.into();
        }
        if self.coin() {
            spec["nodeSelector"] = json!({"k": self.text()});
        }
        if self.coin() {
            spec["securityContext"] =
                json!({"runAsUser": self.roll(2), "sysctls": [{"name": "s", "value": self.text()}]});
        }
        let labels: serde_json::Map<String, Value> =
            ["l", "m"].into_iter().filter(|_| self.coin()).map(|l| (l.to_string(), "1".into())).collect();
        // Something is always owned: an object without entries is not tracked.
        let mut metadata = json!({"name": "p", "namespace": "d", "annotations": {"k": "v"}});
        if self.coin() {
            metadata["labels"] = labels.into();
        }
        if self.coin() {
            metadata["finalizers"] =
                [json!(["f/1"]), json!(["f/2"]), json!(["f/2", "f/1"])][self.roll(3) as usize].clone();
        }
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    }
}

fn members(fields: &Fields) -> BTreeSet<String> {
    fields::paths(fields).into_iter().collect()
}

/// Every entry owns something, and only what there is.
fn check_owners(root: View<'_>, object: &Value) {
    // Everything in the object, structs too.
    let whole = match compare::whole(Place::root(root), object) {
        Value::Object(all) => members(&all),
        other => panic!("not an object: {other}"),
    };
    for entry in entries_of(object).into_iter().flatten() {
        let owned = entries::fields_of(entry).map(members).unwrap_or_default();
        assert!(!owned.is_empty(), "an empty entry: {entry}");
        let stale: Vec<_> = owned.difference(&whole).collect();
        assert!(stale.is_empty(), "stale {stale:?} in {object:#}");
    }
}

#[test]
fn updates_own_what_there_is_and_undo_themselves() {
    let root = kind("", "v1", "Pod");
    let mut dice = Dice(42);
    for round in 0..60 {
        let mut object = dice.pod();
        track_update(root, None, &mut object, &by("m0"));
        for step in 0..6 {
            let manager = format!("m{}", dice.roll(3));
            let subresource = if dice.roll(4) == 0 { "status" } else { "" };
            let new = dice.pod();
            let before = object.clone();
            object = updated(root, &before, Writer { subresource, ..later(&manager) }, |b| {
                b["spec"] = new["spec"].clone();
                for field in ["labels", "finalizers"] {
                    match new["metadata"].get(field) {
                        Some(value) => b["metadata"][field] = value.clone(),
                        None => drop(metadata(b).unwrap().remove(field)),
                    }
                }
            });
            check_owners(root, &object);
            // What is there and was not, or is otherwise, is the writer's now.
            let gained = compare::compare(root, Some(&before), &object).gained;
            let entries = entries_of(&object).cloned().unwrap_or_default();
            let own = entries::find(&entries, &Writer { subresource, ..later(&manager) }, Operation::Update, "v1");
            let own = own.and_then(|at| entries::fields_of(&entries[at])).map(members).unwrap_or_default();
            let missing: Vec<_> = members(&gained).difference(&own).cloned().collect();
            assert!(missing.is_empty(), "round {round} step {step}: {missing:?}");
            let others = entries.iter().filter(|e| entries::text(e, "manager") != manager);
            for other in others {
                let theirs = entries::fields_of(other).map(members).unwrap_or_default();
                assert!(theirs.is_disjoint(&members(&gained)), "round {round} step {step}");
            }
        }
    }
}

#[test]
fn applies_repeat_without_effect_and_withdraw() {
    let root = kind("", "v1", "Pod");
    let mut dice = Dice(7);
    let nothing = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {}});
    let withdrawn = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "d"}});
    for round in 0..60 {
        let mut object = apply(root, &nothing, &dice.pod(), false, &by("A")).unwrap();
        for step in 0..5 {
            let manager = ["A", "B", "C"][dice.roll(3) as usize];
            let config = dice.pod();
            let forced = apply(root, &object, &config, true, &by(manager)).unwrap();
            check_owners(root, &forced);
            // Everything applied is there as it was applied.
            let mut again = forced.clone();
            config::merge(Place::root(root), &mut again, &config);
            assert_eq!(again, forced, "round {round} step {step}");
            // Applying again is no conflict and no change.
            assert_eq!(
                apply(root, &forced, &config, false, &later(manager)),
                Ok(forced.clone()),
                "round {round} step {step}"
            );
            // Without force, it either conflicts or does the very same.
            match apply(root, &object, &config, false, &by(manager)) {
                Ok(done) => assert_eq!(done, forced),
                Err(Conflicts::Fields(conflicts)) => assert!(!conflicts.is_empty()),
                Err(other) => panic!("{other:?}"),
            }
            object = forced;
        }
        for manager in ["A", "B", "C"] {
            object = apply(root, &object, &withdrawn, true, &by(manager)).unwrap();
        }
        assert_eq!(object, withdrawn, "round {round}");
    }
}
