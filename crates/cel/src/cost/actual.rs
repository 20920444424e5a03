//! What calls did cost, as they run.

use crate::value::Value;

use super::{AUTHORIZATION, FORMAT_REGEX, REGEX, TRAVERSAL, compares_contents};

fn scaled(size: u64, factor: f64) -> u64 {
    (size as f64 * factor).ceil() as u64
}

fn walk(value: &Value<'_>) -> u64 {
    match value {
        Value::String(text) => (text.len() as f64 * TRAVERSAL) as u64,
        Value::Bytes(bytes) => (bytes.len() as f64 * TRAVERSAL) as u64,
        Value::List(list) => {
            (0..list.len()).filter_map(|i| list.get(i)).map(|item| item.map_or(1, |item| walk(&item))).sum()
        }
        Value::Map(map) => map.entries().iter().flatten().map(|(k, v)| walk(k) + walk(v)).sum(),
        _ => 1,
    }
}

/// What one call did cost.
pub fn of_call(function: &str, id: &str, args: &[Value<'_>], result: &Value<'_>) -> u64 {
    let size = |at: usize| args.get(at).map_or(1, Value::size);
    let pattern =
        |text: u64, pattern: u64| scaled(text.saturating_add(1), TRAVERSAL).saturating_mul(scaled(pattern, REGEX));
    match function {
        "check" => return AUTHORIZATION,
        "fieldSelector" | "labelSelector" => {
            let length = size(1);
            return 10 + scaled(length, TRAVERSAL) + scaled(scaled(length, 0.5), 50.0);
        }
        "isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf" | "includes" => {
            return args.first().map_or(0, walk);
        }
        "url"
        | "lowerAscii"
        | "upperAscii"
        | "substring"
        | "trim"
        | "jsonpatch.escapeKey"
        | "cidr"
        | "isIP"
        | "isCIDR"
        | "quantity"
        | "isQuantity"
        | "semver"
        | "isSemver" => return scaled(size(0), TRAVERSAL),
        "ip" if id != "cidr_ip" => return scaled(size(0), TRAVERSAL),
        "replace" | "split" | "ip.isCanonical" => return scaled(size(0), 2.0 * TRAVERSAL),
        "join" => return scaled(result.size(), 2.0 * TRAVERSAL),
        "find" | "findAll" => return pattern(size(0), size(1)),
        "containsIP" | "containsCIDR" => {
            let mut cost = scaled(size(0) * 2, TRAVERSAL);
            if function == "containsCIDR" {
                cost += scaled(size(0), TRAVERSAL) + 1;
            }
            if matches!(id, "cidr_contains_ip_string" | "cidr_contains_cidr_string") {
                cost += scaled(size(1), TRAVERSAL);
            }
            return cost;
        }
        "validate" => return pattern(size(1), FORMAT_REGEX as u64),
        "_==_" if matches!(args.first(), Some(Value::Opaque(_))) => return 1,
        _ => {}
    }
    match id {
        "starts_with_string" | "ends_with_string" => scaled(size(1), TRAVERSAL),
        "string_to_bytes" | "bytes_to_string" | "strings_quote" | "string_format" => scaled(size(0), TRAVERSAL),
        "in_list" => size(1),
        id if compares_contents(id) => scaled(size(0).min(size(1)), TRAVERSAL),
        "add_string" | "add_bytes" => scaled(size(0) + size(1), TRAVERSAL),
        "matches_string" | "matches" => pattern(size(0), size(1)),
        "contains_string" => scaled(size(0), TRAVERSAL).saturating_mul(scaled(size(1), TRAVERSAL)),
        _ => 1,
    }
}
