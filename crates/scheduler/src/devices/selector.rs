//! Selectors of devices: CEL expressions over one `device`.
//!
//! Compiled once and kept by their text; what one says of a device is kept with the device. Follows
//! `k8s.io/dynamic-resource-allocation/cel`.

#![allow(clippy::arc_with_non_send_sync, reason = "values of CEL share by Arc, and those made here stay here")]

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use cel::device::{DEVICE, compile};
use cel::value::{Key, Mapping, Text, Value};
use cel::{Opaque, Program};
use k8s_openapi::api::resource::v1 as api;

use super::pool::{Device, Verdict};
use super::quantity;

/// What one expression may cost on one device (`CELSelectorExpressionMaxCost`).
const MOST_COST: u64 = 1_000_000;
/// Compiled expressions kept, each some kilobytes. When there are more, all begin anew.
const KEPT: usize = 1024;
/// An expression, compiled, or why it cannot be.
pub struct Selector {
    id: u64,
    program: Result<Program, String>,
}

#[derive(Default)]
struct Kept {
    by_text: HashMap<Arc<str>, Arc<Selector>>,
    next: u64,
}

/// The compiled expressions.
#[derive(Default)]
pub struct Selectors(Mutex<Kept>);

impl Selectors {
    pub fn get(&self, text: &str) -> Arc<Selector> {
        let make = |id| Arc::new(Selector { id, program: compile(text) });
        let Ok(mut kept) = self.0.lock() else { return make(u64::MAX) };
        if let Some(known) = kept.by_text.get(text) {
            return known.clone();
        }
        if kept.by_text.len() >= KEPT {
            kept.by_text.clear();
        }
        kept.next += 1;
        let made = make(kept.next);
        kept.by_text.insert(text.into(), made.clone());
        made
    }
}

impl Selector {
    /// Why it is none.
    pub fn wrong(&self) -> Option<&str> {
        self.program.as_ref().err().map(String::as_str)
    }

    /// Whether it picks a device of a driver.
    pub fn picks(&self, driver: &str, device: &Device) -> Verdict {
        let Ok(program) = &self.program else { return Ok(false) };
        device.verdict(self.id, || {
            let variables = [("device", value_of(driver, &device.body)?)];
            match program.eval(&&variables[..], MOST_COST).0 {
                Ok(Value::Bool(picks)) => Ok(picks),
                Ok(other) => Err(format!("CEL result of type {} could not be converted to bool", other.type_name())),
                Err(why) => Err(why.to_string()),
            }
        })
    }
}

fn text<'a>(of: &str) -> Value<'a> {
    Value::String(Text::Made(of.into()))
}

fn version<'a>(of: &str) -> Result<Value<'a>, String> {
    Opaque::semver(of).map(Value::Opaque).map_err(|why| format!("parse semantic version: {why}"))
}

fn attribute<'a>(of: &api::DeviceAttribute) -> Result<Value<'a>, String> {
    Ok(if let Some(values) = &of.ints {
        Value::list(values.iter().map(|v| Value::Int(*v)).collect())
    } else if let Some(values) = &of.bools {
        Value::list(values.iter().map(|v| Value::Bool(*v)).collect())
    } else if let Some(values) = &of.strings {
        Value::list(values.iter().map(|v| text(v)).collect())
    } else if let Some(values) = &of.versions {
        Value::list(values.iter().map(|v| version(v)).collect::<Result<_, _>>()?)
    } else if let Some(value) = of.int {
        Value::Int(value)
    } else if let Some(value) = of.bool {
        Value::Bool(value)
    } else if let Some(value) = &of.string {
        text(value)
    } else if let Some(value) = &of.version {
        version(value)?
    } else {
        return Err("unsupported attribute value".into());
    })
}

type Entries<'a> = BTreeMap<Key, (Value<'a>, Value<'a>)>;

/// Puts entries into maps by domain; names without a domain are in the driver's.
fn by_domain<'a>(driver: &str, entries: impl Iterator<Item = (&'a str, Value<'static>)>) -> Value<'static> {
    let mut domains: BTreeMap<&str, Entries<'static>> = BTreeMap::new();
    for (name, value) in entries {
        let (domain, id) = name.split_once('/').unwrap_or(("", name));
        domains.entry(domain).or_default().insert(Key::String(id.into()), (text(id), value));
    }
    let mut all: Entries<'static> = BTreeMap::new();
    for (domain, entries) in domains {
        let domain = if domain.is_empty() { driver } else { domain };
        match all.get_mut(&Key::String(domain.into())) {
            Some((_, Value::Map(Mapping::Made(there)))) => Rc::make_mut(there).extend(entries),
            _ => {
                let made = Value::Map(Mapping::Made(Rc::new(entries)));
                all.insert(Key::String(domain.into()), (text(domain), made));
            }
        }
    }
    Value::Map(Mapping::Open(Rc::new(all)))
}

/// The variable `device`.
fn value_of(driver: &str, device: &api::Device) -> Result<Value<'static>, String> {
    let mut attributes = Vec::new();
    for (name, of) in device.attributes.iter().flatten() {
        attributes.push((name.as_str(), attribute(of).map_err(|why| format!("attribute {name}: {why}"))?));
    }
    let capacity = device.capacity.iter().flatten();
    let capacity = capacity.map(|(name, of)| (name.as_str(), Value::Opaque(Opaque::Quantity(quantity(&of.value)))));
    let fields: BTreeMap<Arc<str>, Value<'static>> = [
        ("driver".into(), text(driver)),
        ("allowMultipleAllocations".into(), Value::Bool(device.allow_multiple_allocations == Some(true))),
        ("attributes".into(), by_domain(driver, attributes.into_iter())),
        ("capacity".into(), by_domain(driver, capacity)),
    ]
    .into();
    Ok(Value::Object(cel::value::Object::Made(DEVICE.into(), Rc::new(fields))))
}
