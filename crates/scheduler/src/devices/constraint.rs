//! What the devices of one claim must have in common, or must not.

use std::collections::BTreeSet;

use k8s_openapi::api::resource::v1 as api;

/// The values of an attribute, each with its type.
type Values = BTreeSet<(u8, String)>;

/// A constraint, and the devices it was asked about so far.
pub struct Constraint<'a> {
    attribute: &'a str,
    distinct: bool,
    /// Empty: every request.
    requests: &'a [String],
    /// What remained common after each device; or each device's values.
    seen: Vec<Values>,
}

fn values(of: &api::DeviceAttribute) -> Values {
    let ints = of.ints.iter().flatten().chain(&of.int).map(|v| (0, v.to_string()));
    let bools = of.bools.iter().flatten().chain(&of.bool).map(|v| (1, v.to_string()));
    let strings = of.strings.iter().flatten().chain(&of.string).map(|v| (2, v.clone()));
    let versions = of.versions.iter().flatten().chain(&of.version).map(|v| (3, v.clone()));
    ints.chain(bools).chain(strings).chain(versions).collect()
}

fn lookup<'d>(device: &'d api::Device, driver: &str, name: &str) -> Option<&'d api::DeviceAttribute> {
    let attributes = device.attributes.as_ref()?;
    let short = || name.split_once('/').filter(|(domain, _)| *domain == driver).and_then(|(_, id)| attributes.get(id));
    attributes.get(name).or_else(short)
}

impl<'a> Constraint<'a> {
    pub fn of(from: &'a api::DeviceConstraint) -> Option<Self> {
        let (attribute, distinct) = match (&from.match_attribute, &from.distinct_attribute) {
            (Some(name), _) => (name, false),
            (None, Some(name)) => (name, true),
            (None, None) => return None,
        };
        let requests = from.requests.as_deref().unwrap_or_default();
        Some(Self { attribute, distinct, requests, seen: Vec::new() })
    }

    /// `name` may be that of an alternative, of a request with the name `parent`.
    fn concerns(&self, parent: &str, name: &str) -> bool {
        self.requests.is_empty() || self.requests.iter().any(|r| r == parent || r == name)
    }

    /// Whether a device may be added; if so, it is.
    pub fn add(&mut self, parent: &str, name: &str, driver: &str, device: &api::Device) -> bool {
        if !self.concerns(parent, name) {
            return true;
        }
        let found = lookup(device, driver, self.attribute).map(values).filter(|v| !v.is_empty());
        let Some(found) = found else { return false };
        let next = if self.distinct {
            if self.seen.iter().any(|s| !s.is_disjoint(&found)) {
                return false;
            }
            found
        } else {
            match self.seen.last() {
                None => found,
                Some(common) => common.intersection(&found).cloned().collect(),
            }
        };
        if next.is_empty() {
            return false;
        }
        self.seen.push(next);
        true
    }

    /// Takes back the last device that was added for a request.
    pub fn remove(&mut self, parent: &str, name: &str) {
        if self.concerns(parent, name) {
            self.seen.pop();
        }
    }
}
