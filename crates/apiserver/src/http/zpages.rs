//! `/statusz` and `/flagz`: what this process is and how it was told to be, for people, and for programs that ask by kind.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use http::Response;
use meta::{Reason, Status, Value};
use serde_json::json;

use super::Body;
use super::paths::{GIT_VERSION, GO_VERSION, json_response, with_type};
use crate::clock;
use crate::server::ApiServer;

const COMPONENT: &str = "kube-apiserver";
/// The group of both kinds, and the versions of it that are told.
const GROUP: &str = "config.k8s.io";
const VERSIONS: [&str; 2] = ["v1beta1", "v1alpha1"];
const WARNING: &str = "Warning: This endpoint is not meant to be machine parseable, has no formatting compatibility guarantees and is for debugging purposes only.";
/// Most of what is told of one flag, bytes.
const MAX_VALUE: usize = 16 << 10;

/// What the client takes: text, or a version of the kind.
enum Wanted {
    Text,
    Kind(&'static str),
}

fn wanted(accept: &str, kind: &str) -> Result<Wanted, Status> {
    let clauses = accept.split(',').map(str::trim).filter(|clause| !clause.is_empty());
    let mut any = false;
    for clause in clauses {
        any = true;
        let mut parts = clause.split(';').map(str::trim);
        match parts.next().unwrap_or_default() {
            "*/*" | "text/*" | "text/plain" => return Ok(Wanted::Text),
            "application/json" => {
                let said: BTreeMap<&str, &str> = parts.filter_map(|part| part.split_once('=')).collect();
                let is = |key: &str, value: &str| said.get(key).is_some_and(|v| *v == value);
                let version = VERSIONS.into_iter().find(|version| is("v", version));
                if let Some(version) = version.filter(|_| is("g", GROUP) && is("as", kind)) {
                    return Ok(Wanted::Kind(version));
                }
            }
            _ => {}
        }
    }
    if any {
        let message = "only the following media types are accepted: text/plain, application/json";
        return Err(Status::new(Reason::NotAcceptable, message));
    }
    Ok(Wanted::Text)
}

fn structured(kind: &str, version: &str, fields: Value) -> Response<Body> {
    let mut value = json!({"kind": kind, "apiVersion": format!("{GROUP}/{version}"), "metadata": {"name": COMPONENT}});
    if let (Some(value), Value::Object(fields)) = (value.as_object_mut(), fields) {
        value.extend(fields);
    }
    json_response(&value)
}

fn up(time: Duration) -> String {
    let seconds = time.as_secs();
    format!("{} hr {:02} min {:02} sec", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// `/statusz`; `paths` are those of the server that are no APIs.
pub fn statusz(server: &ApiServer, accept: &str, paths: &[&str]) -> Result<Response<Body>, Status> {
    let (version, time) = (GIT_VERSION.trim_start_matches('v'), server.uptime());
    let emulated = version.rsplit_once('.').map_or(version, |(minor, _)| minor);
    let started = clock::before(time);
    Ok(match wanted(accept, "Statusz")? {
        Wanted::Kind(v) => structured(
            "Statusz",
            v,
            json!({"startTime": started, "uptimeSeconds": time.as_secs(), "goVersion": GO_VERSION, "binaryVersion": version,
                "emulationVersion": emulated, "paths": paths}),
        ),
        Wanted::Text => with_type(
            format!(
                "\n{COMPONENT} statusz\n{WARNING}\n\nStarted: {started}\nUp: {}\nGo version: {GO_VERSION}\nBinary version: {version}\nEmulation version: {emulated}\nPaths: {}\n",
                up(time),
                paths.join(" ")
            ),
            "text/plain; charset=utf-8",
        ),
    })
}

/// `/flagz`.
pub fn flagz(server: &ApiServer, accept: &str) -> Result<Response<Body>, Status> {
    let flags = &server.config().flags;
    Ok(match wanted(accept, "Flagz")? {
        Wanted::Kind(v) => structured("Flagz", v, json!({"flags": flags})),
        Wanted::Text => {
            let mut text = format!("\n{COMPONENT} flagz\n{WARNING}\n\n");
            for (name, value) in flags {
                let shown = value.get(..MAX_VALUE).unwrap_or(value);
                // Writing to a String does not fail.
                let _ = writeln!(text, "{name}={shown}");
            }
            with_type(text, "text/plain; charset=utf-8")
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_ask_by_kind_and_people_get_text() {
        let check = |accept: &str, expect: &str| {
            let said = match wanted(accept, "Statusz") {
                Ok(Wanted::Text) => "text".to_string(),
                Ok(Wanted::Kind(version)) => version.to_string(),
                Err(status) => status.code.to_string(),
            };
            assert_eq!(said, expect, "{accept:?}");
        };
        check("", "text");
        check("*/*", "text");
        check("text/plain;charset=utf-8", "text");
        check("application/json", "406");
        check("application/json;v=v1beta1;g=config.k8s.io;as=Statusz", "v1beta1");
        check("application/json;v=v9;g=config.k8s.io;as=Statusz", "406");
        check("application/json;v=v1beta1;g=config.k8s.io;as=Flagz, */*", "text");
    }

    #[test]
    fn times_are_for_people() {
        assert_eq!(up(Duration::from_secs(3 * 3600 + 65)), "3 hr 01 min 05 sec");
    }
}
