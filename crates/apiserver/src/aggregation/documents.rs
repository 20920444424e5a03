//! What extension servers publish of themselves: discovery and OpenAPI, fetched, kept, and put beside our own.
//!
//! Newer servers publish aggregated discovery and OpenAPI v3; of older ones, legacy discovery is turned into the
//! aggregated form, and OpenAPI v2 into v3 as far as that goes. Only what belongs to the APIService's own version is taken.

use std::collections::BTreeSet;
use std::time::Duration;

use http::{StatusCode, header};
use meta::{GroupVersion, Value};
use serde_json::{Map, json};

use super::{Remote, proxy};
use crate::server::ApiServer;

/// How long one document may take to come.
const DOCUMENT_WITHIN: Duration = Duration::from_secs(10);
const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
const DEFINITIONS: &str = "#/definitions/";
const SCHEMAS: &str = "#/components/schemas/";

/// See the module.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Documents {
    /// The resources of the version, as aggregated discovery lists them.
    pub resources: Vec<Value>,
    /// The server did not answer when it was last asked.
    pub is_stale: bool,
    /// Where the server serves its own OpenAPI v3 document.
    pub openapi_v3: Option<String>,
    /// Its OpenAPI v2 document, cut down to this version.
    pub openapi_v2: Option<Value>,
    etag: Option<String>,
}

impl Documents {
    /// The same, when nobody answers any more.
    pub fn stale(&self) -> Self {
        Self { is_stale: true, ..self.clone() }
    }

    /// The version's entry of aggregated discovery.
    pub fn discovery(&self, version: &str) -> Value {
        let freshness = if self.is_stale { "Stale" } else { "Current" };
        json!({"version": version, "resources": self.resources, "freshness": freshness})
    }
}

/// Fetches everything; what cannot be had stays as it was.
pub(super) async fn fetch(server: &ApiServer, remote: &Remote) -> std::sync::Arc<Documents> {
    let mut new = (*remote.documents).clone();
    new.is_stale = false;
    let (discovery, v3, v2) =
        tokio::join!(discovery(server, remote), openapi_v3(server, remote), openapi_v2(server, remote));
    let said = |what: &str, why: String| tracing::debug!(api = %remote.gv, why, "fetching {what}");
    match discovery {
        Ok(resources) => new.resources = resources,
        Err(why) => {
            new.is_stale = true;
            said("discovery", why);
        }
    }
    match v3 {
        Ok(url) => new.openapi_v3 = url,
        Err(why) => said("OpenAPI v3", why),
    }
    match v2 {
        Ok(Some((document, etag))) => (new.openapi_v2, new.etag) = (document, etag),
        Ok(None) => {}
        Err(why) => said("OpenAPI v2", why),
    }
    std::sync::Arc::new(new)
}

async fn get(
    server: &ApiServer,
    remote: &Remote,
    path: &str,
    headers: &[(header::HeaderName, &str)],
) -> Result<proxy::Fetched, String> {
    let tls = remote.tls.as_ref().map_err(Clone::clone)?;
    let fetched = proxy::fetch(server, &remote.backend, tls, path, headers);
    tokio::time::timeout(DOCUMENT_WITHIN, fetched).await.map_err(|_| format!("{path}: no answer in time"))?
}

fn tree(fetched: &proxy::Fetched) -> Result<Value, String> {
    if fetched.code != StatusCode::OK {
        return Err(format!("{}: {}", fetched.url, fetched.code));
    }
    serde_json::from_slice(&fetched.body).map_err(|e| format!("{}: {e}", fetched.url))
}

async fn discovery(server: &ApiServer, remote: &Remote) -> Result<Vec<Value>, String> {
    let (group, version) = (&*remote.gv.group, &*remote.gv.version);
    let answer = get(server, remote, "/apis", &[(header::ACCEPT, AGGREGATED)]).await?;
    let kind = answer.headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    if answer.code == StatusCode::OK
        && kind.contains("g=apidiscovery.k8s.io")
        && kind.contains("v=v2;") | kind.ends_with("v=v2")
    {
        let list = tree(&answer)?;
        let groups = list["items"].as_array().into_iter().flatten();
        let versions =
            groups.filter(|g| g["metadata"]["name"] == group).flat_map(|g| g["versions"].as_array()).flatten();
        let found = versions.filter(|v| v["version"] == version).flat_map(|v| v["resources"].as_array()).flatten();
        return Ok(found.cloned().collect());
    }
    let path = format!("/apis/{group}/{version}");
    let list = tree(&get(server, remote, &path, &[(header::ACCEPT, "application/json")]).await?)?;
    Ok(from_legacy(&remote.gv, &list))
}

/// The resources of a legacy `APIResourceList` in the aggregated form.
fn from_legacy(gv: &GroupVersion, list: &Value) -> Vec<Value> {
    let listed = || list["resources"].as_array().into_iter().flatten();
    let name = |r: &Value| r["name"].as_str().unwrap_or_default().to_string();
    let kind = |r: &Value| {
        let or = |field: &str, own: &str| r[field].as_str().filter(|t| !t.is_empty()).unwrap_or(own).to_string();
        json!({"group": or("group", &gv.group), "version": or("version", &gv.version), "kind": r["kind"]})
    };
    let mut out: Vec<Value> = Vec::new();
    for resource in listed().filter(|r| !name(r).contains('/')) {
        let mut entry = json!({
            "resource": resource["name"], "responseKind": kind(resource),
            "scope": if resource["namespaced"] == true { "Namespaced" } else { "Cluster" },
            "singularResource": resource["singularName"].as_str().unwrap_or_default(), "verbs": resource["verbs"],
        });
        for field in ["shortNames", "categories"] {
            if resource[field].is_array() {
                entry[field] = resource[field].clone();
            }
        }
        out.push(entry);
    }
    for resource in listed() {
        let full = name(resource);
        let Some((parent, sub)) = full.split_once('/') else { continue };
        let Some(entry) = out.iter_mut().find(|e| e["resource"] == parent) else { continue };
        let sub = json!({"subresource": sub, "responseKind": kind(resource), "verbs": resource["verbs"]});
        match entry["subresources"].as_array_mut() {
            Some(list) => list.push(sub),
            None => entry["subresources"] = json!([sub]),
        }
    }
    out
}

async fn openapi_v3(server: &ApiServer, remote: &Remote) -> Result<Option<String>, String> {
    let answer = get(server, remote, "/openapi/v3", &[(header::ACCEPT, "application/json")]).await?;
    if answer.code == StatusCode::NOT_FOUND {
        return Ok(None);
    }
    let key = format!("apis/{}/{}", remote.gv.group, remote.gv.version);
    Ok(tree(&answer)?["paths"][key]["serverRelativeURL"].as_str().map(String::from))
}

type Changed = (Option<Value>, Option<String>);

/// The v2 document, or nothing when it is the one we have.
async fn openapi_v2(server: &ApiServer, remote: &Remote) -> Result<Option<Changed>, String> {
    let mut headers = vec![(header::ACCEPT, "application/json")];
    headers.extend(remote.documents.etag.as_deref().map(|etag| (header::IF_NONE_MATCH, etag)));
    let answer = get(server, remote, "/openapi/v2", &headers).await?;
    match answer.code {
        StatusCode::NOT_MODIFIED => Ok(None),
        StatusCode::NOT_FOUND => Ok(Some((None, None))),
        _ => {
            let etag = answer.headers.get(header::ETAG).and_then(|v| v.to_str().ok()).map(String::from);
            Ok(Some((Some(cut(&remote.gv, &tree(&answer)?)), etag)))
        }
    }
}

/// Every definition a tree refers to.
fn references(tree: &Value, found: &mut BTreeSet<String>) {
    match tree {
        Value::Object(map) => {
            if let Some(name) = map.get("$ref").and_then(Value::as_str).and_then(|r| r.strip_prefix(DEFINITIONS)) {
                found.insert(name.to_string());
            }
            map.values().for_each(|value| references(value, found));
        }
        Value::Array(list) => list.iter().for_each(|value| references(value, found)),
        _ => {}
    }
}

/// A v2 document cut down to one version's paths and the definitions they need.
fn cut(gv: &GroupVersion, document: &Value) -> Value {
    let own = format!("/apis/{}/{}/", gv.group, gv.version);
    let ours = |path: &str| path.starts_with(&own) || *path == own[..own.len() - 1];
    let paths: Map<String, Value> = document["paths"]
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(path, _)| ours(path))
        .map(|(p, v)| (p.clone(), v.clone()))
        .collect();
    let paths = Value::Object(paths);
    let (mut definitions, mut wanted) = (Map::new(), BTreeSet::new());
    references(&paths, &mut wanted);
    // Shared parameters are written out where they are used, so that nothing else is needed.
    while let Some(name) = wanted.pop_first() {
        if definitions.contains_key(&name) {
            continue;
        }
        let Some(definition) = document["definitions"].get(&name) else { continue };
        references(definition, &mut wanted);
        definitions.insert(name, definition.clone());
    }
    let mut out = json!({"paths": paths, "definitions": definitions});
    inline_parameters(&mut out["paths"], &document["parameters"]);
    out
}

fn inline_parameters(tree: &mut Value, shared: &Value) {
    match tree {
        Value::Object(map) => {
            let name = map.get("$ref").and_then(Value::as_str).and_then(|r| r.strip_prefix("#/parameters/"));
            if let Some(parameter) = name.and_then(|name| shared.get(name)) {
                *tree = parameter.clone();
                return;
            }
            map.values_mut().for_each(|value| inline_parameters(value, shared));
        }
        Value::Array(list) => list.iter_mut().for_each(|value| inline_parameters(value, shared)),
        _ => {}
    }
}

/// Points references elsewhere.
fn redirect(tree: &mut Value, to: &dyn Fn(&str) -> Option<String>) {
    match tree {
        Value::Object(map) => {
            for (key, value) in map.iter_mut() {
                match value.as_str().filter(|_| key == "$ref").and_then(|r| to(r.strip_prefix(DEFINITIONS)?)) {
                    Some(new) => *value = new.into(),
                    None => redirect(value, to),
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|value| redirect(value, to)),
        _ => {}
    }
}

/// Adds a cut v2 document to ours. Definitions of one name that differ are kept apart under another name.
pub fn merge_v2(into: &mut Value, document: &Value) {
    let mut renamed = Map::new();
    let theirs = || document["definitions"].as_object().into_iter().flatten();
    for (name, definition) in theirs() {
        if into["definitions"].get(name).is_none_or(|ours| ours == definition) {
            continue;
        }
        let free = (2..).map(|n| format!("{name}_v{n}")).find(|n| into["definitions"].get(n).is_none());
        renamed.insert(name.clone(), free.unwrap_or_default().into());
    }
    let to = |name: &str| Some(format!("{DEFINITIONS}{}", renamed.get(name)?.as_str()?));
    for (name, definition) in theirs() {
        let mut definition = definition.clone();
        redirect(&mut definition, &to);
        let name = renamed.get(name).and_then(Value::as_str).unwrap_or(name);
        if let Some(map) = into["definitions"].as_object_mut() {
            map.entry(name).or_insert(definition);
        }
    }
    let mut paths = document["paths"].clone();
    redirect(&mut paths, &to);
    if let (Some(into), Value::Object(paths)) = (into["paths"].as_object_mut(), paths) {
        for (path, item) in paths {
            into.entry(path).or_insert(item);
        }
    }
}

const METHODS: [&str; 7] = ["get", "put", "post", "delete", "options", "head", "patch"];

/// A cut v2 document as v3. What v3 says more precisely is lost on v2's side already.
pub fn to_v3(document: &Value) -> Value {
    let mut document = document.clone();
    redirect(&mut document, &|name| Some(format!("{SCHEMAS}{name}")));
    let mut paths = Map::new();
    for (path, item) in document["paths"].as_object().into_iter().flatten() {
        let mut out = Map::new();
        for (key, value) in item.as_object().into_iter().flatten() {
            let converted = match key.as_str() {
                "parameters" => Value::Array(value.as_array().into_iter().flatten().map(parameter).collect()),
                method if METHODS.contains(&method) => operation(value),
                _ => value.clone(),
            };
            out.insert(key.clone(), converted);
        }
        paths.insert(path.clone(), out.into());
    }
    json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": "unversioned"},
        "paths": paths,
        "components": {"schemas": document["definitions"]},
    })
}

fn parameter(v2: &Value) -> Value {
    let mut out = Map::new();
    let mut schema = Map::new();
    for (key, value) in v2.as_object().into_iter().flatten() {
        let into = match key.as_str() {
            "type" | "format" | "items" | "default" | "enum" | "minimum" | "maximum" | "pattern" | "uniqueItems" => {
                &mut schema
            }
            "collectionFormat" => continue,
            _ => &mut out,
        };
        into.insert(key.clone(), value.clone());
    }
    if !schema.is_empty() {
        out.insert("schema".into(), schema.into());
    }
    out.into()
}

fn operation(v2: &Value) -> Value {
    let mut out = Map::new();
    let types = |field: &str| -> Vec<String> {
        let said: Vec<String> =
            v2[field].as_array().into_iter().flatten().filter_map(|t| t.as_str().map(String::from)).collect();
        if said.is_empty() { vec!["application/json".into()] } else { said }
    };
    let content = |types: Vec<String>, schema: &Value| -> Value {
        Value::Object(types.into_iter().map(|t| (t, json!({"schema": schema}))).collect())
    };
    for (key, value) in v2.as_object().into_iter().flatten() {
        match key.as_str() {
            "consumes" | "produces" | "schemes" => {}
            "parameters" => {
                let (body, rest): (Vec<&Value>, Vec<&Value>) =
                    value.as_array().into_iter().flatten().partition(|p| p["in"] == "body");
                if let Some(body) = body.first() {
                    let mut request = json!({"content": content(types("consumes"), &body["schema"])});
                    if body["required"] == true {
                        request["required"] = true.into();
                    }
                    out.insert("requestBody".into(), request);
                }
                if !rest.is_empty() {
                    out.insert(key.clone(), rest.into_iter().map(parameter).collect());
                }
            }
            "responses" => {
                let responses = value.as_object().into_iter().flatten().map(|(code, response)| {
                    let mut shown = json!({"description": response["description"].as_str().unwrap_or_default()});
                    if !response["schema"].is_null() {
                        shown["content"] = content(types("produces"), &response["schema"]);
                    }
                    (code.clone(), shown)
                });
                out.insert(key.clone(), Value::Object(responses.collect()));
            }
            _ => drop(out.insert(key.clone(), value.clone())),
        }
    }
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gv() -> GroupVersion {
        GroupVersion::new("g.example", "v1")
    }

    #[test]
    fn legacy_lists_gain_the_aggregated_form() {
        let list = json!({"resources": [
            {"name": "as", "singularName": "a", "namespaced": true, "kind": "A", "verbs": ["get"], "shortNames": ["x"]},
            {"name": "as/scale", "singularName": "", "namespaced": true, "group": "autoscaling", "version": "v1", "kind": "Scale", "verbs": ["get"]},
            {"name": "bs", "namespaced": false, "kind": "B", "verbs": ["list"]},
        ]});
        let expect = json!([
            {"resource": "as", "responseKind": {"group": "g.example", "version": "v1", "kind": "A"}, "scope": "Namespaced", "singularResource": "a",
             "verbs": ["get"], "shortNames": ["x"],
             "subresources": [{"subresource": "scale", "responseKind": {"group": "autoscaling", "version": "v1", "kind": "Scale"}, "verbs": ["get"]}]},
            {"resource": "bs", "responseKind": {"group": "g.example", "version": "v1", "kind": "B"}, "scope": "Cluster", "singularResource": "", "verbs": ["list"]},
        ]);
        assert_eq!(Value::from(from_legacy(&gv(), &list)), expect);
    }

    #[test]
    fn documents_are_cut_merged_and_converted() {
        let document = json!({
            "parameters": {"p": {"name": "pretty", "in": "query", "type": "string"}},
            "paths": {
                "/apis/g.example/v1/as": {
                    "parameters": [{"$ref": "#/parameters/p"}],
                    "post": {"consumes": ["*/*"], "parameters": [{"name": "body", "in": "body", "required": true, "schema": {"$ref": "#/definitions/A"}}],
                             "responses": {"200": {"description": "OK", "schema": {"$ref": "#/definitions/A"}}}}},
                "/apis/other/v1/bs": {"get": {"responses": {"200": {"schema": {"$ref": "#/definitions/B"}}}}},
            },
            "definitions": {"A": {"properties": {"m": {"$ref": "#/definitions/Meta"}}}, "B": {}, "Meta": {"type": "object"}},
        });
        let cut = cut(&gv(), &document);
        assert_eq!(cut["definitions"].as_object().unwrap().keys().collect::<Vec<_>>(), ["A", "Meta"]);
        let mut ours = json!({"paths": {}, "definitions": {"Meta": {"type": "string"}}});
        merge_v2(&mut ours, &cut);
        assert_eq!(ours["definitions"]["A"]["properties"]["m"]["$ref"], "#/definitions/Meta_v2");
        assert_eq!(ours["definitions"]["Meta"]["type"], "string");
        assert_eq!(ours["paths"]["/apis/g.example/v1/as"]["parameters"][0]["name"], "pretty");
        let v3 = to_v3(&cut);
        let post = &v3["paths"]["/apis/g.example/v1/as"]["post"];
        assert_eq!(
            post["requestBody"],
            json!({"required": true, "content": {"*/*": {"schema": {"$ref": "#/components/schemas/A"}}}})
        );
        assert_eq!(post["responses"]["200"]["content"]["application/json"]["schema"]["$ref"], "#/components/schemas/A");
        assert_eq!(
            v3["paths"]["/apis/g.example/v1/as"]["parameters"][0],
            json!({"name": "pretty", "in": "query", "schema": {"type": "string"}})
        );
    }
}
