//! What an applied configuration says: its set of fields, whether it can be told apart item by item, and what it makes
//! of a live object.
//!
//! Merging never removes; [`super::prune`] then takes away what the applier applied before and applies no more.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::fields::{self, Fields};
use super::place::{Form, Identity, Place, field_element};

/// The fields a configuration applies: leaves, items of lists and keys of maps.
pub fn applied(place: Place<'_>, config: &Value) -> Fields {
    let mut out = Fields::new();
    let Value::Object(map) = config else { return out };
    for (name, value) in map {
        if let Some(node) = applied_node(place.child(name), value, !place.declares(name)) {
            out.insert(field_element(name), node);
        }
    }
    out
}

/// `item`: an item of a list or key of a map, applied by its presence alone.
fn applied_node(place: Place<'_>, value: &Value, item: bool) -> Option<Value> {
    match (place.form(value), value) {
        (Form::Object, Value::Object(map)) => fields::node(applied(place, value), item || map.is_empty()),
        (Form::List(identity), Value::Array(items)) => {
            let elements = items.iter().filter_map(|item| {
                let element = place.element(identity, item).ok()?;
                Some((element, applied_node(place.item(), item, true)?))
            });
            fields::node(elements.collect(), item)
        }
        _ => Some(fields::leaf()),
    }
}

/// Brings a set up to date with a schema that has changed since: what is owned as a whole now has no owners inside.
pub fn reconcile(place: Place<'_>, set: &mut Fields) {
    for (element, node) in set.iter_mut().filter(|(element, _)| *element != fields::SELF) {
        let Value::Object(below) = node else { continue };
        if below.is_empty() {
            continue;
        }
        let place = place.element_place(element);
        if place.is_atomic() {
            below.clear();
        } else {
            reconcile(place, below);
        }
    }
}

/// What is wrong with a configuration's lists, in upstream's words, each with its path.
pub fn check(place: Place<'_>, config: &Value, at: &str, errors: &mut Vec<String>) {
    match (place.form(config), config) {
        (Form::Object, Value::Object(map)) => {
            for (name, value) in map {
                if place.refuses(name) {
                    errors.push(format!("{at}.{name}: field not declared in schema"));
                    continue;
                }
                if value.is_object() || value.is_array() {
                    check(place.child(name), value, &format!("{at}.{name}"), errors);
                }
            }
        }
        (Form::List(identity), Value::Array(items)) => {
            let mut seen = HashSet::with_capacity(items.len());
            for (index, item) in items.iter().enumerate() {
                match place.element(identity, item) {
                    Err(why) => {
                        errors.push(format!("{at}: element {index}: {why}"));
                        return;
                    }
                    Ok(element) => {
                        let shown = fields::element_text(&element);
                        if item.is_object() {
                            check(place.item(), item, &format!("{at}{shown}"), errors);
                        }
                        if !seen.insert(element) {
                            errors.push(format!("{at}: duplicate entries for key {shown}"));
                        }
                    }
                }
            }
        }
        _ => {}
    }
}

/// Lays a configuration over a live object.
pub fn merge(place: Place<'_>, live: &mut Value, config: &Value) {
    match (place.form(live), &mut *live, place.form(config), config) {
        (Form::Object, Value::Object(live), Form::Object, Value::Object(config)) => {
            for (name, value) in config {
                match live.get_mut(name) {
                    Some(live) => merge(place.child(name), live, value),
                    None => {
                        live.insert(name.clone(), value.clone());
                    }
                }
            }
        }
        (Form::List(identity), Value::Array(items), Form::List(_), Value::Array(config)) => {
            let merged = merge_list(place, identity, std::mem::take(items), config);
            *items = merged;
        }
        // A null where the schema allows one: it empties nothing that is shared.
        (Form::Object | Form::List(_), _, _, Value::Null) => {}
        _ => *live = config.clone(),
    }
}

/// Items the configuration names come in its order, the live object's others between them where they were.
fn merge_list(place: Place<'_>, identity: Identity<'_>, live: Vec<Value>, config: &[Value]) -> Vec<Value> {
    let element = |item: &Value| place.element(identity, item).ok();
    let wanted: Vec<(String, &Value)> = config.iter().filter_map(|item| Some((element(item)?, item))).collect();
    let named: HashSet<&str> = wanted.iter().map(|(element, _)| element.as_str()).collect();
    // Live items by element; of several with one element only the first is merged, and stands for all.
    let mut order: Vec<(Option<String>, Option<Value>)> = Vec::with_capacity(live.len());
    let mut places: HashMap<String, usize> = HashMap::with_capacity(live.len());
    for item in live {
        let element = element(&item).filter(|e| named.contains(e.as_str()));
        if let Some(element) = &element {
            if places.contains_key(element) {
                continue;
            }
            places.insert(element.clone(), order.len());
        }
        order.push((element, Some(item)));
    }
    let mut shared = wanted.iter().map(|(e, _)| e.as_str()).filter(|e| places.contains_key(*e));
    let mut next_shared = shared.next();
    let mut out = Vec::with_capacity(order.len() + wanted.len());
    let take = |order: &mut Vec<(Option<String>, Option<Value>)>, (element, item): &(String, &Value)| match places
        .get(element)
        .and_then(|at| order[*at].1.take())
    {
        Some(mut live) => {
            merge(place.item(), &mut live, item);
            live
        }
        None => Value::clone(item),
    };
    let (mut l, mut r) = (0, 0);
    while l < order.len() || r < wanted.len() {
        if l < order.len() && r < wanted.len() {
            match &order[l].0 {
                Some(element) if *element == wanted[r].0 => {
                    out.push(take(&mut order, &wanted[r]));
                    (l, r) = (l + 1, r + 1);
                    next_shared = shared.next();
                    continue;
                }
                // Shared, but not the one due: its turn comes with the configuration's item.
                Some(element) if next_shared.is_some_and(|next| next != element) => {
                    l += 1;
                    continue;
                }
                _ => {}
            }
        }
        if l < order.len() && order[l].0.is_none() {
            out.extend(order[l].1.take());
            l += 1;
            continue;
        }
        if r < wanted.len() {
            out.push(take(&mut order, &wanted[r]));
            if next_shared == Some(wanted[r].0.as_str()) {
                next_shared = shared.next();
            }
            r += 1;
            continue;
        }
        l += 1;
    }
    out
}
