//! A patch made of two objects turns the one into the other: checked on random pods, the same ones every time.

use serde_json::json;

use super::super::*;
use super::named;

/// A xorshift generator.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }

    fn some<const N: usize>(&mut self, of: [&'static str; N]) -> Vec<&'static str> {
        let mut out: Vec<&str> = Vec::new();
        for name in of {
            if self.roll(3) > 0 {
                let at = self.roll(out.len() as u64 + 1) as usize;
                out.insert(at, name);
            }
        }
        out
    }

    fn pod(&mut self) -> Value {
        let mut containers = Vec::new();
        for name in self.some(["a", "b", "c", "d"]) {
            let mut container = json!({"name": name, "image": self.roll(3).to_string()});
            for at in self.some(["/x", "/y"]) {
                let mounts = container.as_object_mut().map(|c| c.entry("volumeMounts").or_insert_with(|| json!([])));
                if let Some(Value::Array(mounts)) = mounts {
                    mounts.push(json!({"mountPath": at, "name": self.roll(2).to_string()}));
                }
            }
            if self.roll(2) == 0 {
                container["args"] = json!(self.some(["1", "2"]));
            }
            containers.push(container);
        }
        let mut pod = json!({"metadata": {}, "spec": {"containers": containers}});
        let finalizers = self.some(["f/1", "f/2", "f/3"]);
        if !finalizers.is_empty() {
            pod["metadata"]["finalizers"] = json!(finalizers);
        }
        for label in self.some(["l", "m"]) {
            pod["metadata"]["labels"][label] = self.roll(2).to_string().into();
        }
        for volume in self.some(["v", "w"]) {
            let source = ["emptyDir", "hostPath"][self.roll(2) as usize];
            let volumes = pod["spec"].as_object_mut().map(|s| s.entry("volumes").or_insert_with(|| json!([])));
            if let Some(Value::Array(volumes)) = volumes {
                volumes.push(json!({"name": volume, source: {"x": self.roll(2)}}));
            }
        }
        pod
    }
}

/// What a client like kubectl sends to make `new` of `old`.
fn difference(view: Option<View<'_>>, old: &Map<String, Value>, new: &Map<String, Value>) -> Map<String, Value> {
    let mut out = Map::new();
    for (name, was) in old {
        let view = view.and_then(|v| v.child(name));
        match (was, new.get(name)) {
            (_, None) => drop(out.insert(name.clone(), Value::Null)),
            (was, Some(is)) if was == is => {}
            (Value::Object(was), Some(Value::Object(is))) => {
                out.insert(name.clone(), difference(view, was, is).into());
            }
            (Value::Array(was), Some(Value::Array(is))) => match list_merge(view) {
                Some(merge) => lists(merge, name, was, is, &mut out),
                None => drop(out.insert(name.clone(), is.clone().into())),
            },
            (_, Some(is)) => drop(out.insert(name.clone(), is.clone())),
        }
    }
    out.extend(new.iter().filter(|(name, _)| !old.contains_key(*name)).map(|(n, v)| (n.clone(), v.clone())));
    out
}

fn lists(merge: Merge<'_>, name: &str, old: &[Value], new: &[Value], out: &mut Map<String, Value>) {
    let key = merge.key;
    let with = |list: &[Value], item: &Value| list.iter().find(|o| identity(o, key) == identity(item, key)).cloned();
    out.insert(
        format!("{ELEMENT_ORDER}{name}"),
        new.iter().map(|i| if key.is_empty() { i.clone() } else { bare(i, key) }).collect(),
    );
    if key.is_empty() {
        let gone: Vec<Value> = old.iter().filter(|o| !new.contains(o)).cloned().collect();
        let come: Vec<Value> = new.iter().filter(|n| !old.contains(n)).cloned().collect();
        out.insert(format!("{DELETE_FROM}{name}"), gone.into());
        out.insert(name.into(), come.into());
        return;
    }
    let mut changes = Vec::new();
    for item in new {
        match (with(old, item), item) {
            (None, item) => changes.push(item.clone()),
            (Some(was), is) if was == *is => {}
            (Some(Value::Object(was)), Value::Object(is)) => {
                let mut change = difference(merge.item, &was, is);
                change.insert(key.into(), is[key].clone());
                if name == "volumes" {
                    change.insert(RETAIN_KEYS.into(), is.keys().cloned().collect());
                }
                changes.push(change.into());
            }
            _ => {}
        }
    }
    changes.extend(old.iter().filter(|o| with(new, o).is_none()).map(|o| json!({key: o[key], DIRECTIVE: "delete"})));
    out.insert(name.into(), changes.into());
}

#[test]
fn a_difference_applied_is_the_new_object() {
    let root = named("core.v1.Pod");
    let mut dice = Dice(11);
    for round in 0..200 {
        let (old, new) = (dice.pod(), dice.pod());
        let (Value::Object(was), Value::Object(is)) = (&old, &new) else { continue };
        let patch = Value::Object(difference(Some(root), was, is));
        assert_eq!(strategic(root, old.clone(), &patch), Ok(new.clone()), "round {round}: {old} with {patch}");
        // Once more, nothing changes: all that was to go is gone.
        assert_eq!(strategic(root, new.clone(), &patch), Ok(new), "round {round} again");
    }
}
