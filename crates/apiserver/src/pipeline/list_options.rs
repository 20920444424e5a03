//! What a list or watch may ask for together: upstream's `ValidateListOptions`, in its words.

use meta::{FieldError, FieldPath, Options, Status};

/// Refuses options that contradict each other.
pub fn check(options: &Options, watch: bool) -> Result<(), Status> {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let (version, matching) = (text(&options.resource_version), text(&options.resource_version_match));
    let field = FieldPath::new("resourceVersionMatch");
    let mut errors = Vec::new();
    let mut forbid = |field: &FieldPath, why: &str| errors.push(FieldError::forbidden(field, why));
    if watch && options.send_initial_events.is_some() && matching != "NotOlderThan" {
        forbid(&field, "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan");
    }
    if !matching.is_empty() {
        if watch && options.send_initial_events.is_none() {
            forbid(&field, "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided");
        }
        if !watch && version.is_empty() {
            forbid(&field, "resourceVersionMatch is forbidden unless resourceVersion is provided");
        }
        if !text(&options.continue_token).is_empty() {
            forbid(&field, "resourceVersionMatch is forbidden when continue is provided");
        }
        if matching == "Exact" && version == "0" && !watch {
            forbid(&field, "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"");
        }
    }
    if !watch && options.send_initial_events.is_some() {
        forbid(&FieldPath::new("sendInitialEvents"), "sendInitialEvents is forbidden for list");
    }
    let supported: &[&str] = if watch { &["NotOlderThan"] } else { &["Exact", "NotOlderThan", ""] };
    if !matching.is_empty() && !supported.contains(&&*matching) {
        errors.push(FieldError::not_supported_of(&field, &*matching, supported));
    }
    if errors.is_empty() { Ok(()) } else { Err(Status::invalid("meta.k8s.io", "ListOptions", "", &errors)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contradictions_are_refused() {
        let check = |version: &str, matching: &str, initial: Option<bool>, watch: bool, complaint: &str| {
            let options = Options {
                resource_version: Some(version.into()),
                resource_version_match: Some(matching.into()),
                send_initial_events: initial,
                ..Options::default()
            };
            let said = check(&options, watch).err().map_or(String::new(), |status| status.message);
            assert!(
                said.ends_with(complaint) && said.is_empty() == complaint.is_empty(),
                "{said:?}, not {complaint:?}"
            );
        };
        check("", "", None, false, "");
        check("5", "Exact", None, false, "");
        check("5", "NotOlderThan", Some(true), true, "");
        check("", "Exact", None, false, "resourceVersionMatch is forbidden unless resourceVersion is provided");
        check("0", "Exact", None, false, "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"");
        check(
            "1",
            "Odd",
            None,
            false,
            "Unsupported value: \"Odd\": supported values: \"Exact\", \"NotOlderThan\", \"\"",
        );
        check("", "", Some(true), false, "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for list");
        check("", "", Some(true), true, "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan");
        let alone = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
        check("1", "NotOlderThan", None, true, alone);
    }
}
