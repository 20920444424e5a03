//! How much of a device's capacities a request takes: what it asks, rounded to what the device gives.

use k8s_openapi::api::resource::v1 as api;
use meta::quantity::{Format, Quantity};

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

/// What the steps of a range are counted in.
#[derive(Clone, Copy)]
enum Unit {
    Whole,
    /// Where one of its ends, or its step, is no whole number.
    Milli,
}

impl Unit {
    fn of(range: &api::CapacityRequestPolicyRange) -> Self {
        let whole = [Some(&range.min), range.max.as_ref(), range.step.as_ref()];
        if whole.into_iter().flatten().all(|q| quantity(q).is_whole()) { Self::Whole } else { Self::Milli }
    }

    fn count(self, quantity: &Quantity) -> i64 {
        match self {
            Self::Whole => quantity.value(),
            Self::Milli => quantity.milli_value(),
        }
    }

    fn amount(self, count: i64, format: Format) -> Quantity {
        match self {
            Self::Whole => Quantity::new(count, format),
            Self::Milli => Quantity::from_milli(count, format),
        }
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
        let unit = Unit::of(range);
        let Some(step) = range.step.as_ref().map(|s| unit.count(&quantity(s))).filter(|s| *s > 0) else {
            return asked.clone();
        };
        let above = unit.count(asked).saturating_sub(unit.count(&least));
        let steps = above / step + i64::from(above % step != 0);
        return least.add(&unit.amount(steps.saturating_mul(step), asked.format()));
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
        let unit = Unit::of(range);
        let step = range.step.as_ref().map(|s| unit.count(&quantity(s))).filter(|s| *s > 0);
        let above = unit.count(amount).saturating_sub(unit.count(&quantity(&range.min)));
        return range.max.as_ref().is_some_and(|m| amount.cmp(&quantity(m)).is_gt())
            || step.is_some_and(|step| above % step != 0);
    }
    policy.valid_values.as_ref().is_some_and(|values| !values.iter().any(|v| quantity(v).cmp(amount).is_eq()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn amounts_are_rounded_to_steps() {
        for (min, max, step, asked, expect) in [
            ("1", "10", "2", "2", Some("3")),
            ("1", "10", "2", "0", Some("1")),
            ("1", "10", "2", "10", None),
            ("1Gi", "4Gi", "1Gi", "1500Mi", Some("2Gi")),
            ("100m", "1", "100m", "250m", Some("300m")),
            ("0.5", "2", "0.25", "0.6", Some("0.75")),
            ("0.5", "2", "0.25", "2.1", None),
        ] {
            let capacity: api::DeviceCapacity = serde_json::from_value(json!({
                "value": "100Gi", "requestPolicy": {"default": min, "validRange": {"min": min, "max": max, "step": step}},
            }))
            .unwrap();
            let asked: Quantity = asked.parse().unwrap();
            let taken = taken(Some(&asked), &capacity);
            let given = (!breaks_policy(&taken, capacity.request_policy.as_ref())).then_some(taken);
            assert_eq!(given, expect.map(|e| e.parse().unwrap()), "{asked} of {min} to {max} by {step}");
        }
    }
}
