//! `--audit-log-format legacy`: an event as one line for people, as upstream's log had it before it had JSON.
//!
//! Only what fits a line is told. What cannot be read as an event is told as it came.

use serde_json::Value;

/// The line of an event, without its end.
pub fn line(event: &[u8]) -> Vec<u8> {
    let Ok(event) = serde_json::from_slice::<Value>(event) else { return event.to_vec() };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
    let or = |value: String, other: &str| if value.is_empty() { other.to_string() } else { value };
    let list = |values: &Value| -> String {
        let names = values.as_array().into_iter().flatten().filter_map(Value::as_str);
        names.map(|name| format!("{name:?}")).collect::<Vec<_>>().join(",")
    };
    let (user, acting) = (&event["user"], &event["impersonatedUser"]);
    let groups = if text(&user["username"]).is_empty() { String::new() } else { list(&user["groups"]) };
    let (acting_as, acting_groups) = match acting {
        Value::Null => ("<self>".to_string(), String::new()),
        acting => (text(&acting["username"]), list(&acting["groups"])),
    };
    let code = event["responseStatus"]["code"].as_u64();
    let response = if event["responseStatus"].is_null() { "<deferred>".into() } else { code.unwrap_or(0).to_string() };
    format!(
        "{} AUDIT: id={:?} stage={:?} ip={:?} method={:?} user={:?} groups={:?} as={:?} asgroups={:?} user-agent={:?} namespace={:?} uri={:?} response=\"{response}\"",
        text(&event["requestReceivedTimestamp"]),
        text(&event["auditID"]),
        text(&event["stage"]),
        or(text(&event["sourceIPs"][0]), "<unknown>"),
        text(&event["verb"]),
        or(text(&user["username"]), "<none>"),
        or(groups, "<none>"),
        acting_as,
        or(acting_groups, "<lookup>"),
        text(&event["userAgent"]),
        or(text(&event["objectRef"]["namespace"]), "<none>"),
        text(&event["requestURI"]),
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_upstreams() {
        let whole = serde_json::json!({
            "requestReceivedTimestamp": "2026-01-02T03:04:05.000006Z", "auditID": "i", "stage": "ResponseComplete", "verb": "get",
            "sourceIPs": ["10.0.0.1", "10.0.0.2"], "user": {"username": "ann", "groups": ["a", "b"]}, "userAgent": "k/1",
            "impersonatedUser": {"username": "bob"}, "objectRef": {"namespace": "n"}, "requestURI": "/x", "responseStatus": {"code": 200},
        });
        for (event, expect) in [
            (
                whole.to_string(),
                r#"2026-01-02T03:04:05.000006Z AUDIT: id="i" stage="ResponseComplete" ip="10.0.0.1" method="get" user="ann" groups="\"a\",\"b\"" as="bob" asgroups="<lookup>" user-agent="k/1" namespace="n" uri="/x" response="200""#,
            ),
            (
                r#"{"stage": "RequestReceived"}"#.into(),
                r#" AUDIT: id="" stage="RequestReceived" ip="<unknown>" method="" user="<none>" groups="<none>" as="<self>" asgroups="<lookup>" user-agent="" namespace="<none>" uri="" response="<deferred>""#,
            ),
            ("no event".into(), "no event"),
        ] {
            assert_eq!(String::from_utf8(line(event.as_bytes())).unwrap(), expect);
        }
    }
}
