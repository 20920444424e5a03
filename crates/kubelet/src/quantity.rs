//! Kubernetes quantities as integers: thousandths or units, rounded up as upstream rounds.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// Thousandths, rounded up; `None` for what is not a quantity.
pub fn milli_of(text: &str) -> Option<i128> {
    let text = text.trim();
    let split = text.find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '+' | '-'))).unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let (negative, number) = match number.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, number.strip_prefix('+').unwrap_or(number)),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.len() > 18 || whole.len() > 24 {
        return None;
    }
    let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
    // The value is digits * numerator / denominator, in thousandths.
    let (mut numerator, mut denominator): (i128, i128) = (1000, 10i128.checked_pow(fraction.len() as u32)?);
    match suffix {
        "" => {}
        "n" => denominator = denominator.checked_mul(1_000_000_000)?,
        "u" => denominator = denominator.checked_mul(1_000_000)?,
        "m" => denominator = denominator.checked_mul(1000)?,
        "k" => numerator *= 1000,
        "M" => numerator *= 1_000_000,
        "G" => numerator *= 1_000_000_000,
        "T" => numerator *= 1_000_000_000_000,
        "P" => numerator *= 1_000_000_000_000_000,
        "E" => numerator *= 1_000_000_000_000_000_000,
        "Ki" => numerator <<= 10,
        "Mi" => numerator <<= 20,
        "Gi" => numerator <<= 30,
        "Ti" => numerator <<= 40,
        "Pi" => numerator <<= 50,
        "Ei" => numerator <<= 60,
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            let power = 10i128.checked_pow(exponent.unsigned_abs())?;
            if exponent >= 0 {
                numerator = numerator.checked_mul(power)?;
            } else {
                denominator = denominator.checked_mul(power)?;
            }
        }
    }
    let product = digits.checked_mul(numerator)?;
    let up = product / denominator + i128::from(product % denominator != 0);
    Some(if negative { -(product / denominator) } else { up })
}

/// Thousandths of a quantity; 0 for one that does not parse (the API server has validated it).
pub fn milli(quantity: &Quantity) -> i64 {
    milli_of(&quantity.0).map_or(0, |v| v.clamp(i64::MIN.into(), i64::MAX.into()) as i64)
}

/// Whole units, rounded up.
pub fn value(quantity: &Quantity) -> i64 {
    milli_of(&quantity.0).map_or(0, |v| (v.div_euclid(1000) + i128::from(v.rem_euclid(1000) != 0)).clamp(i64::MIN.into(), i64::MAX.into()) as i64)
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
        for (text, expect) in [
            ("1", Some(1000)),
            ("100m", Some(100)),
            ("0.1", Some(100)),
            ("1.5", Some(1500)),
            ("1u", Some(1)),
            ("64Mi", Some(64 * 1024 * 1024 * 1000)),
            ("1e3", Some(1_000_000)),
            ("1E", Some(1_000_000_000_000_000_000_000)),
            ("-1", Some(-1000)),
            ("", None),
            ("x", None),
        ] {
            assert_eq!(milli_of(text), expect, "{text}");
        }
        assert_eq!(value(&Quantity("1500m".into())), 2);
    }
}
