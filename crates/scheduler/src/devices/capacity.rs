//! How much of a device's capacities a request takes: what it asks, rounded to what the device gives.

use k8s_openapi::api::resource::v1 as api;
use meta::quantity::Quantity;

use super::{Capacities, quantity};

/// What a request asks of capacities.
pub struct Wanted(Capacities);

impl Wanted {
    pub fn of(from: Option<&api::CapacityRequirements>) -> Self {
        let asked = from.and_then(|c| c.requests.as_ref()).into_iter().flatten();
        Self(asked.map(|(name, amount)| (name.clone(), quantity(amount))).collect())
    }

    /// What it takes of a device.
    pub fn of_device(&self, device: &api::Device) -> Capacities {
        device.capacity.iter().flatten().map(|(name, c)| (name.clone(), taken(self.0.get(name), c))).collect()
    }

    /// Whether the device has as much beside what is taken already.
    pub fn fits(&self, device: &api::Device, already: &[&Capacities]) -> bool {
        let has = |name: &String| device.capacity.as_ref().is_some_and(|c| c.contains_key(name));
        self.0.keys().all(has)
            && device.capacity.iter().flatten().all(|(name, capacity)| {
                let mut sum = taken(self.0.get(name), capacity);
                if breaks_policy(&sum, capacity.request_policy.as_ref()) {
                    return false;
                }
                for amount in already.iter().filter_map(|a| a.get(name)) {
                    sum = sum.add(amount);
                }
                sum.cmp(&quantity(&capacity.value)).is_le()
            })
    }
}

/// The smallest amount that the device gives and that is enough.
fn taken(asked: Option<&Quantity>, capacity: &api::DeviceCapacity) -> Quantity {
    let policy = capacity.request_policy.as_ref();
    let Some(asked) = asked else {
        return quantity(policy.and_then(|p| p.default.as_ref()).unwrap_or(&capacity.value));
    };
    if let Some(range) = policy.and_then(|p| p.valid_range.as_ref()) {
        let least = quantity(&range.min);
        if asked.cmp(&least).is_lt() {
            return least;
        }
        let Some(step) = range.step.as_ref().map(|s| quantity(s).value()).filter(|s| *s > 0) else {
            return asked.clone();
        };
        let above = asked.value().saturating_sub(least.value());
        let steps = above / step + i64::from(above % step != 0);
        return least.add(&Quantity::new(steps.saturating_mul(step), asked.format()));
    }
    if let Some(values) = policy.and_then(|p| p.valid_values.as_ref()) {
        let enough = values.iter().map(quantity).find(|v| v.cmp(asked).is_ge());
        return enough.unwrap_or_else(|| asked.clone());
    }
    asked.clone()
}

fn breaks_policy(amount: &Quantity, policy: Option<&api::CapacityRequestPolicy>) -> bool {
    let Some(policy) = policy else { return false };
    if policy.default.as_ref().is_some_and(|d| quantity(d).cmp(amount).is_eq()) {
        return false;
    }
    if let Some(range) = &policy.valid_range {
        let step = range.step.as_ref().map(|s| quantity(s).value()).filter(|s| *s > 0);
        return range.max.as_ref().is_some_and(|m| amount.cmp(&quantity(m)).is_gt())
            || step.is_some_and(|step| amount.value().saturating_sub(quantity(&range.min).value()) % step != 0);
    }
    policy.valid_values.as_ref().is_some_and(|values| !values.iter().any(|v| quantity(v).cmp(amount).is_eq()))
}
