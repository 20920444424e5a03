//! Label and field selectors: parsing as upstream parses, matching without allocation.
//!
//! Follows `k8s.io/apimachinery/pkg/labels` and `pkg/fields`.

mod parse;

use serde_json::Value;

use crate::labels::Labels;

/// How one requirement compares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
    GreaterThan(i64),
    LessThan(i64),
}

/// `key operator values`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    pub key: Box<str>,
    pub operator: Operator,
    pub values: Vec<Box<str>>,
}

/// All requirements must hold; none at all matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {
    pub requirements: Vec<Requirement>,
    /// `LabelSelector: null` in an API object selects nothing.
    nothing: bool,
}

impl Requirement {
    fn matches(&self, value: Option<&str>) -> bool {
        let within = |v: &str| self.values.iter().any(|x| &**x == v);
        match &self.operator {
            Operator::In => value.is_some_and(within),
            Operator::NotIn => !value.is_some_and(within),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::GreaterThan(n) => value.and_then(|v| v.parse::<i64>().ok()).is_some_and(|v| v > *n),
            Operator::LessThan(n) => value.and_then(|v| v.parse::<i64>().ok()).is_some_and(|v| v < *n),
        }
    }
}

impl LabelSelector {
    pub fn everything() -> Self {
        Self::default()
    }

    pub fn nothing() -> Self {
        Self { requirements: Vec::new(), nothing: true }
    }

    pub fn is_everything(&self) -> bool {
        !self.nothing && self.requirements.is_empty()
    }

    /// `key=value` pairs, as `spec.selector` of a Service has them.
    pub fn from_map<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let one = |(k, v): (&str, &str)| Requirement { key: k.into(), operator: Operator::In, values: vec![v.into()] };
        Self { requirements: pairs.into_iter().map(one).collect(), nothing: false }
    }

    /// A `metav1.LabelSelector` object (`matchLabels`, `matchExpressions`); null selects nothing, `{}` everything.
    pub fn from_value(selector: &Value) -> Result<Self, String> {
        let Some(map) = selector.as_object() else { return Ok(Self::nothing()) };
        let mut out = Self::default();
        for (key, value) in map.get("matchLabels").and_then(Value::as_object).into_iter().flatten() {
            let value = value.as_str().ok_or_else(|| format!("matchLabels[{key}] is not a string"))?;
            out.requirements.push(Requirement {
                key: key.as_str().into(),
                operator: Operator::In,
                values: vec![value.into()],
            });
        }
        for expression in map.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
            let key = expression["key"].as_str().unwrap_or_default();
            let values: Vec<Box<str>> = expression["values"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .map(Into::into)
                .collect();
            let operator = match expression["operator"].as_str().unwrap_or_default() {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => return Err(format!("\"{other}\" is not a valid label selector operator")),
            };
            if matches!(operator, Operator::In | Operator::NotIn) == values.is_empty() {
                return Err(format!("values of {key} do not fit its operator"));
            }
            out.requirements.push(Requirement { key: key.into(), operator, values });
        }
        Ok(out)
    }

    pub fn matches(&self, labels: &Labels) -> bool {
        self.matches_by(|key| labels.get(key))
    }

    /// As [`LabelSelector::matches`], for labels of any shape.
    pub fn matches_by<'a>(&self, get: impl Fn(&str) -> Option<&'a str>) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.matches(get(&r.key)))
    }

    /// Parses `a=b,c!=d,e in (f,g),h notin (i),j,!k,l>1,m<2`.
    pub fn parse(text: &str) -> Result<Self, String> {
        Ok(Self { requirements: parse::requirements(text)?, nothing: false })
    }
}

impl std::fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (i, r) in self.requirements.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            let joined = r.values.join(",");
            match &r.operator {
                Operator::In if r.values.len() == 1 => write!(f, "{}={joined}", r.key)?,
                Operator::NotIn if r.values.len() == 1 => write!(f, "{}!={joined}", r.key)?,
                Operator::In => write!(f, "{} in ({joined})", r.key)?,
                Operator::NotIn => write!(f, "{} notin ({joined})", r.key)?,
                Operator::Exists => f.write_str(&r.key)?,
                Operator::DoesNotExist => write!(f, "!{}", r.key)?,
                Operator::GreaterThan(n) => write!(f, "{}>{n}", r.key)?,
                Operator::LessThan(n) => write!(f, "{}<{n}", r.key)?,
            }
        }
        Ok(())
    }
}

/// `field=value` and `field!=value`, all of which must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    /// (field, value, whether equal)
    pub terms: Vec<(Box<str>, Box<str>, bool)>,
}

impl FieldSelector {
    pub fn is_everything(&self) -> bool {
        self.terms.is_empty()
    }

    /// Parses `a=b,c!=d`; `\,` `\=` and `\\` are escapes.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut out = Self::default();
        for term in split_unescaped(text) {
            if term.is_empty() {
                continue;
            }
            let found = ["!=", "==", "="].iter().find_map(|sign| {
                let at = find_unescaped(term, sign)?;
                Some((&term[..at], &term[at + sign.len()..], *sign != "!="))
            });
            let (field, value, equal) =
                found.ok_or_else(|| format!("invalid selector: '{text}'; can't understand '{term}'"))?;
            let value = unescape(value).map_err(|why| format!("invalid field selector: {why}"))?;
            out.terms.push((field.into(), value.into(), equal));
        }
        Ok(out)
    }

    pub fn matches_by<'a>(&self, get: impl Fn(&str) -> &'a str) -> bool {
        self.terms.iter().all(|(field, value, equal)| (get(field) == &**value) == *equal)
    }

    /// The value a field must equal, when the selector pins it.
    pub fn exact(&self, field: &str) -> Option<&str> {
        self.terms.iter().find(|t| &*t.0 == field && t.2).map(|t| &*t.1)
    }
}

fn find_unescaped(text: &str, sign: &str) -> Option<usize> {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if text[at..].starts_with(sign) => return Some(at),
            _ => {}
        }
    }
    None
}

fn split_unescaped(text: &str) -> Vec<&str> {
    let (mut parts, mut rest) = (Vec::new(), text);
    while let Some(at) = find_unescaped(rest, ",") {
        parts.push(&rest[..at]);
        rest = &rest[at + 1..];
    }
    parts.push(rest);
    parts
}

fn unescape(text: &str) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(c @ ('\\' | ',' | '=')) => out.push(c),
                other => {
                    let sequence: String = ['\\'].into_iter().chain(other).collect();
                    return Err(format!("invalid escape sequence: {sequence}"));
                }
            },
            ',' | '=' => return Err(format!("unescaped character in value: {}", c as u32)),
            c => out.push(c),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_selectors() {
        let labels: Labels =
            [("app", "web"), ("tier", "front"), ("n", "5")].map(|(k, v)| (k.into(), v.into())).into_iter().collect();
        for (text, expect) in [
            ("", true),
            ("app=web", true),
            ("app==web,tier!=back", true),
            ("app in (web, db),!gone", true),
            ("app notin (web)", false),
            ("missing notin (x)", true),
            ("app", true),
            ("gone", false),
            ("n>4", true),
            ("n<5", false),
        ] {
            assert_eq!(LabelSelector::parse(text).unwrap().matches(&labels), expect, "{text}");
        }
        for text in ["a b", "app in web", "app in (", "=x", "a=b c", ",", "-a=b"] {
            assert!(LabelSelector::parse(text).is_err(), "{text}");
        }
        assert!(!LabelSelector::from_value(&Value::Null).unwrap().matches(&labels));
    }

    #[test]
    fn field_selectors() {
        let get = |f: &str| if f == "spec.nodeName" { "a,b" } else { "" };
        assert!(FieldSelector::parse("spec.nodeName=a\\,b,x!=y").unwrap().matches_by(get));
        assert!(!FieldSelector::parse("spec.nodeName!=a\\,b").unwrap().matches_by(get));
        for (text, expect) in [
            ("nonsense", "invalid selector: 'nonsense'; can't understand 'nonsense'"),
            ("a=b=c", "invalid field selector: unescaped character in value: 61"),
            ("a=b\\", "invalid field selector: invalid escape sequence: \\"),
            ("a=b\\x", "invalid field selector: invalid escape sequence: \\x"),
        ] {
            assert_eq!(FieldSelector::parse(text), Err(expect.to_string()), "{text}");
        }
    }
}
