//! What calls of Kubernetes' own functions and of extensions cost at most.

use crate::ast::{Expr, Kind, Literal};
use crate::types::Type;

use super::{AUTHORIZATION, Coster, Estimate, FORMAT_REGEX, REGEX, Range, TRAVERSAL};

impl Coster<'_> {
    /// Kubernetes' own functions and those of extensions.
    pub(super) fn library(
        &mut self,
        function: &str,
        id: &str,
        target: Option<&Expr>,
        args: &[Expr],
    ) -> Option<Estimate> {
        let fixed = |n| Some(Estimate { cost: Range::fixed(n), size: None });
        match function {
            "check" => fixed(AUTHORIZATION),
            "serviceAccount"
            | "path"
            | "group"
            | "resource"
            | "subresource"
            | "namespace"
            | "name"
            | "allowed"
            | "reason"
            | "error"
            | "errored"
            | "masked"
            | "prefixLength"
            | "family"
            | "isUnspecified"
            | "isLoopback"
            | "isLinkLocalMulticast"
            | "isLinkLocalUnicast"
            | "isGlobalUnicast"
            | "format.named"
            | "sign"
            | "asInteger"
            | "isInteger"
            | "asApproximateFloat"
            | "isGreaterThan"
            | "isLessThan"
            | "compareTo"
            | "add"
            | "sub"
            | "major"
            | "minor"
            | "patch"
            | "getScheme"
            | "getHostname"
            | "getHost"
            | "getPort"
            | "getEscapedPath"
            | "getQuery" => fixed(1),
            "fieldSelector" | "labelSelector" if args.len() == 1 => {
                let length = self.known(&args[0]);
                let cost = Range::fixed(10).plus(length.scaled(TRAVERSAL)).plus(length.scaled(0.5).scaled(50.0));
                Some(Estimate { cost, size: None })
            }
            "isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf" | "includes" => {
                let target = target?;
                let size = self.known(target);
                let cost = match self.ty(target).clone() {
                    Type::List(item) => {
                        let mut each = Range::fixed(1);
                        if matches!(*item, Type::String | Type::Bytes) {
                            each = each.plus(self.item_size(target).scaled(TRAVERSAL));
                        }
                        size.times(each)
                    }
                    _ if function == "includes" => size,
                    _ => size.scaled(TRAVERSAL),
                };
                Some(Estimate { cost, size: None })
            }
            "url" | "jsonpatch.escapeKey" if args.len() == 1 => {
                let size = self.known(&args[0]);
                Some(Estimate { cost: size.scaled(TRAVERSAL), size: Some(size) })
            }
            "lowerAscii" | "upperAscii" | "substring" | "trim" => {
                let size = self.known(target?);
                Some(Estimate { cost: size.scaled(TRAVERSAL), size: Some(size) })
            }
            "replace" if args.len() >= 2 => {
                let size = self.known(target?);
                let result = replaced(size, self.known(&args[0]), self.known(&args[1]));
                Some(Estimate { cost: size.scaled(2.0 * TRAVERSAL), size: Some(result) })
            }
            "split" => {
                let size = self.known(target?);
                let max = match args.get(1).map(|a| &a.kind) {
                    Some(Kind::Literal(Literal::Int(n))) => *n as u64,
                    _ => size.max,
                };
                Some(Estimate { cost: size.scaled(2.0 * TRAVERSAL), size: Some(Range { min: 0, max }) })
            }
            "join" => {
                let target = target?;
                let count = self.known(target);
                let mut size = match self.ty(target) {
                    Type::List(_) => count.times(self.item_size(target)),
                    _ => Range::default(),
                };
                if let Some(separator) = args.first() {
                    let gaps = Range { min: count.min.saturating_sub(1), max: count.max.saturating_sub(1) };
                    size = size.plus(self.known(separator).times(gaps));
                }
                Some(Estimate { cost: size.scaled(TRAVERSAL), size: Some(size) })
            }
            "find" | "findAll" if !args.is_empty() => {
                let size = self.known(target?);
                let text = size.plus(Range::fixed(1)).scaled(TRAVERSAL);
                let cost = text.times(self.known(&args[0]).scaled(REGEX));
                Some(Estimate { cost, size: Some(Range { min: 0, max: size.max }) })
            }
            "ip" if id == "cidr_ip" => fixed(1),
            "cidr" | "isIP" | "isCIDR" | "ip" | "quantity" | "isQuantity" | "semver" | "isSemver"
                if !args.is_empty() =>
            {
                Some(Estimate { cost: self.known(&args[0]).scaled(TRAVERSAL), size: None })
            }
            "ip.isCanonical" if !args.is_empty() => {
                Some(Estimate { cost: self.known(&args[0]).scaled(2.0 * TRAVERSAL), size: None })
            }
            "containsIP" | "containsCIDR" if !args.is_empty() => {
                let address = Range { min: 4, max: 16 };
                let mut cost = address.plus(address).scaled(TRAVERSAL);
                if function == "containsCIDR" {
                    cost = cost.plus(address.scaled(TRAVERSAL)).plus(Range::fixed(1));
                }
                if matches!(id, "cidr_contains_ip_string" | "cidr_contains_cidr_string") {
                    cost = cost.plus(self.known(&args[0]).scaled(TRAVERSAL));
                }
                Some(Estimate { cost, size: None })
            }
            "validate" if !args.is_empty() => {
                let cost = self.known(&args[0]).scaled(TRAVERSAL).scaled(FORMAT_REGEX * REGEX);
                Some(Estimate { cost, size: None })
            }
            "_==_" => {
                let [left, right] = args else { return None };
                let (Type::Opaque(a, _), Type::Opaque(b, _)) = (self.ty(left).clone(), self.ty(right).clone()) else {
                    return None;
                };
                match (&*a, a == b) {
                    ("optional_type", _) | (_, false) => None,
                    ("kubernetes.NamedFormat", _) => {
                        Some(Estimate { cost: Range { min: 1, max: 64 }.scaled(TRAVERSAL), size: None })
                    }
                    ("kubernetes.URL", _) => {
                        let max = self.size(right).map_or(1, |s| s.max);
                        Some(Estimate { cost: Range { min: 1, max }.scaled(TRAVERSAL), size: None })
                    }
                    _ => fixed(1),
                }
            }
            _ => None,
        }
    }
}

/// The length of a text with parts of it replaced.
fn replaced(size: Range, part: Range, with: Range) -> Range {
    let ceil = |a: u64, b: u64| (a as f64 / b as f64).ceil() as u64;
    let (mut count, mut kept) = (Range::default(), Range::default());
    if part.min == 0 {
        count.max = size.max.saturating_add(1);
        kept.max = size.max;
    } else if with.max <= part.min {
        kept.max = size.max;
    } else {
        count.max = ceil(size.max, part.min);
    }
    if part.max == 0 {
        count.min = size.min.saturating_add(1);
        kept.min = size.min;
    } else if part.max <= with.min {
        kept.min = size.min;
    } else {
        count.min = ceil(size.min, part.max);
    }
    count.times(with).plus(kept)
}
