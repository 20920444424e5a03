//! Amounts of resources as the integers this agent reckons in: thousandths for `cpu`, whole units for the rest, both
//! rounded up as upstream rounds.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// Exact; nothing for what does not parse (the API server has validated it).
fn exact(quantity: &Quantity) -> Option<meta::quantity::Quantity> {
    quantity.0.parse().ok()
}

/// Thousandths of a quantity.
pub fn milli(quantity: &Quantity) -> i64 {
    exact(quantity).map_or(0, |q| q.milli_value())
}

/// Whole units.
pub fn value(quantity: &Quantity) -> i64 {
    exact(quantity).map_or(0, |q| q.value())
}

/// One resource of a list, in thousandths for `cpu` and in units otherwise.
pub fn amount(list: Option<&BTreeMap<String, Quantity>>, resource: &str) -> Option<i64> {
    let quantity = list?.get(resource)?;
    Some(if resource == "cpu" { milli(quantity) } else { value(quantity) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities() {
        for (text, thousandths, units) in [
            ("1", 1000, 1),
            ("100m", 100, 1),
            ("1.5", 1500, 2),
            ("64Mi", 67_108_864_000, 67_108_864),
            ("1e3", 1_000_000, 1000),
            ("nonsense", 0, 0),
        ] {
            let quantity = Quantity(text.into());
            assert_eq!((milli(&quantity), value(&quantity)), (thousandths, units), "{text}");
        }
    }
}
