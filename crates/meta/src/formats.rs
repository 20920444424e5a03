//! Formats that selectors and all objects share: DNS names, the keys and values of labels. Each function answers with its
//! complaints.
//!
//! Follows `k8s.io/apimachinery/pkg/util/validation`, whose texts name the regular expression; the checks here are plain
//! loops over bytes that accept the same language.

/// What is wrong, in upstream's words; nothing when all is well.
pub type Complaints = Vec<String>;

/// The expression of a DNS label.
pub const DNS_LABEL: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
/// Characters of a DNS label, and of the name part of a label's key.
pub const MAX_LABEL: usize = 63;
/// Characters of a DNS subdomain.
pub const MAX_SUBDOMAIN: usize = 253;

/// What a text must be, with examples and the expression.
pub fn pattern(what: &str, pattern: &str, examples: &[&str]) -> String {
    let examples: Vec<String> = examples.iter().map(|e| format!("'{e}', ")).collect();
    format!("{what} (e.g. {}regex used for validation is '{pattern}')", examples.join(" or "))
}

/// The complaint about a text of too many characters.
pub fn too_long(max: usize) -> String {
    format!("must be no more than {max} characters")
}

/// The same of what upstream's newer checks count.
fn too_many_bytes(max: usize) -> String {
    format!("must be no more than {max} bytes")
}

/// The complaint about an empty text.
const EMPTY: &str = "must be non-empty";

/// `first rest* last`, where both ends are of `edge` and all of `edge` or `middle`.
pub fn edged(text: &str, edge: fn(u8) -> bool, middle: &[u8]) -> bool {
    let bytes = text.as_bytes();
    let ends = bytes.first().is_some_and(|b| edge(*b)) && bytes.last().is_some_and(|b| edge(*b));
    ends && bytes.iter().all(|b| edge(*b) || middle.contains(b))
}

/// A byte of a DNS label.
pub fn lower_or_digit(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit()
}

/// A byte of a name.
pub fn alphanumeric(b: u8) -> bool {
    b.is_ascii_alphanumeric()
}

/// Complaints about length and shape.
pub fn check(text: &str, max: usize, fits: bool, complaint: impl FnOnce() -> String) -> Complaints {
    let length = (text.len() > max).then(|| too_long(max));
    length.into_iter().chain((!fits).then(complaint)).collect()
}

/// `my-name`
pub fn dns_label(text: &str) -> Complaints {
    let complaint = || {
        pattern(
            "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character",
            DNS_LABEL,
            &["my-name", "123-abc"],
        )
    };
    check(text, MAX_LABEL, edged(text, lower_or_digit, b"-"), complaint)
}

/// `my-name`, without a digit at its beginning.
pub fn dns_1035_label(text: &str) -> Complaints {
    let fits = edged(text, lower_or_digit, b"-") && text.as_bytes()[0].is_ascii_lowercase();
    check(text, MAX_LABEL, fits, || {
        pattern(
            "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character",
            "[a-z]([-a-z0-9]*[a-z0-9])?",
            &["my-name", "abc-123"],
        )
    })
}

/// `example.com`
pub fn dns_subdomain(text: &str) -> Complaints {
    check(text, MAX_SUBDOMAIN, text.split('.').all(|part| edged(part, lower_or_digit, b"-")), || {
        pattern(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character",
            &format!("{DNS_LABEL}(\\.{DNS_LABEL})*"),
            &["example.com"],
        )
    })
}

/// `[prefix/]name`, as keys of labels and annotations.
pub fn qualified_name(text: &str) -> Complaints {
    const NAME: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";
    const WORDS: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";
    let shape = || pattern(WORDS, NAME, &["MyName", "my.name", "123-abc"]);
    let mut parts = text.split('/');
    let (name, prefix) = match (parts.next().unwrap_or_default(), parts.next(), parts.next()) {
        (name, None, _) => (name, None),
        (prefix, Some(name), None) => (name, Some(prefix)),
        _ => {
            return vec![format!(
                "a qualified name {} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')",
                shape()
            )];
        }
    };
    let mut complaints = match prefix {
        None => Vec::new(),
        Some("") => vec![format!("prefix part {EMPTY}")],
        Some(prefix) => dns_subdomain(prefix).into_iter().map(|c| format!("prefix part {c}")).collect(),
    };
    if name.is_empty() {
        complaints.push(format!("name part {EMPTY}"));
    } else if name.len() > MAX_LABEL {
        complaints.push(format!("name part {}", too_many_bytes(MAX_LABEL)));
    }
    if !edged(name, alphanumeric, b"-_.") {
        complaints.push(format!("name part {}", shape()));
    }
    complaints
}

/// A label's value.
pub fn label_value(text: &str) -> Complaints {
    let fits = text.is_empty() || edged(text, alphanumeric, b"-_.");
    let length = (text.len() > MAX_LABEL).then(|| too_many_bytes(MAX_LABEL));
    let shape = || {
        pattern(
            "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character",
            "(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?",
            &["MyValue", "my_value", "12345"],
        )
    };
    length.into_iter().chain((!fits).then(shape)).collect()
}
