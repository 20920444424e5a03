//! Paths and operations of served kinds.

use serde_json::{Map, Value, json};

use super::definitions::Definitions;
use super::{Kind, Part, Source, Version, gvk_value, object, versions};
use crate::schema::{Scalar, Shape, View, builtin};
use crate::{GroupVersion, Gvk};

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";

/// What `log` takes as its query.
const LOG_OPTIONS: &str = "io.k8s.api.core.v1.PodLogOptions";

const TYPES: &[&str] = &["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];
const WATCH_TYPES: &[&str] = &["application/json;stream=watch", "application/vnd.kubernetes.protobuf;stream=watch"];
const PATCHES: &[&str] = &[
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];
/// Custom kinds have no merge keys; clients choose the patch they apply by what is told here.
const CUSTOM_PATCHES: &[&str] =
    &["application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml"];

/// Query parameters: name and type.
type Parameters = &'static [(&'static str, &'static str)];

const LIST: Parameters = &[
    ("allowWatchBookmarks", "boolean"),
    ("continue", "string"),
    ("fieldSelector", "string"),
    ("labelSelector", "string"),
    ("limit", "integer"),
    ("resourceVersion", "string"),
    ("resourceVersionMatch", "string"),
    ("sendInitialEvents", "boolean"),
    ("timeoutSeconds", "integer"),
    ("watch", "boolean"),
];
const WRITE: Parameters = &[("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string")];
const PATCH: Parameters =
    &[("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string"), ("force", "boolean")];
const DELETE: Parameters = &[
    ("dryRun", "string"),
    ("gracePeriodSeconds", "integer"),
    ("ignoreStoreReadErrorWithClusterBreakingPotential", "boolean"),
    ("orphanDependents", "boolean"),
    ("propagationPolicy", "string"),
];
const DELETE_COLLECTION: Parameters = &[
    ("continue", "string"),
    ("dryRun", "string"),
    ("fieldSelector", "string"),
    ("gracePeriodSeconds", "integer"),
    ("ignoreStoreReadErrorWithClusterBreakingPotential", "boolean"),
    ("labelSelector", "string"),
    ("limit", "integer"),
    ("orphanDependents", "boolean"),
    ("propagationPolicy", "string"),
    ("resourceVersion", "string"),
    ("resourceVersionMatch", "string"),
    ("sendInitialEvents", "boolean"),
    ("timeoutSeconds", "integer"),
];

/// The methods that connect, and how operation ids call them.
const CONNECT: &[(&str, &str)] = &[
    ("get", "Get"),
    ("post", "Post"),
    ("put", "Put"),
    ("delete", "Delete"),
    ("options", "Options"),
    ("head", "Head"),
    ("patch", "Patch"),
];

/// What tells who issues tokens: path, operation, tag, media type.
const IDENTITY: &[(&str, &str, &str, &str)] = &[
    (
        "/.well-known/openid-configuration/",
        "getServiceAccountIssuerOpenIDConfiguration",
        "WellKnown",
        "application/json",
    ),
    ("/openid/v1/jwks/", "getServiceAccountIssuerOpenIDKeyset", "openid", "application/jwk-set+json"),
];

pub(super) fn paths(version: Version, kinds: &[Kind<'_>], definitions: &mut Definitions<'_>) -> Value {
    let mut writer = Writer { version, definitions, paths: Map::new() };
    for kind in kinds {
        writer.kind(kind);
    }
    let versions = versions(kinds);
    versions.iter().for_each(|gv| writer.resources(gv));
    if version == Version::V2 {
        writer.discovery(&versions, |_| true);
    }
    writer.paths.into()
}

/// The path that tells something other than a version's resources, if there is such a path.
pub(super) fn lookup(path: &str, versions: &[GroupVersion], definitions: &mut Definitions<'_>) -> Value {
    let mut writer = Writer { version: Version::V3, definitions, paths: Map::new() };
    writer.discovery(versions, |known| known == path);
    writer.paths.into()
}

/// What such a path answers with.
enum Told {
    /// A kind of metadata.
    Meta(&'static str),
    Version,
    Text(&'static str),
}

struct Writer<'w, 'd> {
    version: Version,
    definitions: &'w mut Definitions<'d>,
    paths: Map<String, Value>,
}

/// What differs between operations.
struct Operation<'o> {
    method: &'o str,
    action: &'o str,
    id: String,
    gvk: &'o Gvk,
    /// Under which clients group it: the group-version of the path.
    tag: String,
    parameters: Parameters,
    /// The body's schema and media types.
    body: Option<(Value, &'o [&'o str])>,
    answer: Value,
    /// Beyond 200.
    codes: &'o [&'o str],
    produces: Vec<&'o str>,
}

impl<'o> Operation<'o> {
    fn new(method: &'o str, action: &'o str, id: String, gvk: &'o Gvk, answer: &Value) -> Self {
        let (answer, produces, tag) = (answer.clone(), TYPES.to_vec(), tag(gvk));
        Self { method, action, id, gvk, tag, parameters: &[], body: None, answer, codes: &[], produces }
    }

    fn query(self, parameters: Parameters) -> Self {
        Self { parameters, ..self }
    }

    fn body(self, schema: &Value, types: &'o [&'o str]) -> Self {
        Self { body: Some((schema.clone(), types)), ..self }
    }

    fn codes(self, codes: &'o [&'o str]) -> Self {
        Self { codes, ..self }
    }

    /// Answers a list, or a watch of it.
    fn list(self) -> Self {
        Self { parameters: LIST, produces: TYPES.iter().chain(WATCH_TYPES).copied().collect(), ..self }
    }

    fn read(id: String, gvk: &'o Gvk, answer: &Value) -> Self {
        Self::new("get", "get", id, gvk, answer)
    }

    fn create(id: String, gvk: &'o Gvk, object: &Value) -> Self {
        Self::new("post", "post", id, gvk, object).query(WRITE).body(object, &["*/*"]).codes(&["201", "202"])
    }

    fn replace(id: String, gvk: &'o Gvk, object: &Value) -> Self {
        Self::new("put", "put", id, gvk, object).query(WRITE).body(object, &["*/*"]).codes(&["201"])
    }

    fn patch(id: String, gvk: &'o Gvk, (patch, types): (&Value, &'o [&'o str]), object: &Value) -> Self {
        Self::new("patch", "patch", id, gvk, object).query(PATCH).body(patch, types).codes(&["201"])
    }
}

fn patches(kind: &Kind<'_>) -> &'static [&'static str] {
    match kind.schema {
        Source::Custom(_) => CUSTOM_PATCHES,
        _ => PATCHES,
    }
}

impl Writer<'_, '_> {
    /// What a version has.
    fn resources(&mut self, gv: &GroupVersion) {
        let gvk = Gvk::new(&gv.group, &gv.version, "");
        let path = format!("{}/", root(&gv.group, &gv.version));
        let answer = self.definitions.named(&format!("{META}.APIResourceList"));
        self.lookup(&path, &format!("get{}APIResources", camel(&gvk)), &tag(&gvk), &answer, TYPES, TYPES);
    }

    /// Which groups and versions there are, and who answers; of this, what is wanted by path.
    fn discovery(&mut self, versions: &[GroupVersion], wanted: impl Fn(&str) -> bool) {
        let mut all: Vec<(String, String, String, Told)> = vec![
            ("/api/".into(), "getCoreAPIVersions".into(), "core".into(), Told::Meta("APIVersions")),
            ("/apis/".into(), "getAPIVersions".into(), "apis".into(), Told::Meta("APIGroupList")),
            ("/version/".into(), "getCodeVersion".into(), "version".into(), Told::Version),
        ];
        let mut groups: Vec<&str> = versions.iter().map(|gv| &*gv.group).filter(|group| !group.is_empty()).collect();
        groups.dedup();
        for group in groups {
            let id = format!("get{}APIGroup", capital(&words(group)));
            all.push((format!("/apis/{group}/"), id, words(group), Told::Meta("APIGroup")));
        }
        for (path, id, tag, ty) in IDENTITY {
            all.push((path.to_string(), id.to_string(), tag.to_string(), Told::Text(ty)));
        }
        for (path, id, tag, told) in all.iter().filter(|(path, ..)| wanted(path)) {
            match told {
                Told::Meta(name) => {
                    let answer = self.definitions.named(&format!("{META}.{name}"));
                    self.lookup(path, id, tag, &answer, TYPES, TYPES);
                }
                Told::Version => {
                    let (answer, json) = (self.definitions.version(), &["application/json"]);
                    self.lookup(path, id, tag, &answer, json, json);
                }
                Told::Text(ty) => self.lookup(path, id, tag, &json!({"type": "string"}), &[], &[ty]),
            }
        }
    }

    /// A path that only tells something.
    fn lookup(&mut self, path: &str, id: &str, tag: &str, answer: &Value, takes: &[&str], gives: &[&str]) {
        let mut get = object([("operationId", id.into()), ("tags", json!([tag]))]);
        let ok = self.response("OK", answer, gives);
        get.insert("responses".into(), json!({"200": ok, "401": {"description": "Unauthorized"}}));
        if self.version == Version::V2 {
            if !takes.is_empty() {
                get.insert("consumes".into(), takes.into());
            }
            get.insert("produces".into(), gives.into());
            get.insert("schemes".into(), json!(["https"]));
        }
        self.paths.insert(path.into(), json!({"get": get}));
    }

    fn response(&self, description: &str, answer: &Value, types: &[&str]) -> Value {
        match self.version {
            Version::V2 => json!({"description": description, "schema": answer}),
            Version::V3 => {
                let one = |ty: &&str| ((*ty).to_string(), json!({"schema": answer}));
                json!({"description": description, "content": types.iter().map(one).collect::<Map<_, _>>()})
            }
        }
    }

    fn kind(&mut self, kind: &Kind<'_>) {
        let gvk = &kind.gvk;
        let root = root(&gvk.group, &gvk.version);
        let (scope, below) = if kind.namespaced { ("Namespaced", "/namespaces/{namespace}") } else { ("", "") };
        let has = |verb: &str| kind.verbs.contains(&verb);
        let id = |verb: &str, more: &str| format!("{verb}{}{scope}{}{more}", camel(gvk), gvk.kind);
        let everywhere = |verb: &str, more: &str| format!("{verb}{}{}{more}ForAllNamespaces", camel(gvk), gvk.kind);
        let collection = format!("{root}{below}/{}", kind.plural);
        let item = format!("{collection}/{{name}}");
        let object = self.definitions.kind(kind);
        let status = self.definitions.named(&format!("{META}.Status"));

        let mut operations = Vec::new();
        if has("list") {
            let list = self.definitions.list(kind);
            if kind.namespaced {
                let all = Operation::new("get", "list", everywhere("list", ""), gvk, &list).list();
                self.path(&format!("{root}/{}", kind.plural), gvk, &[], vec![all]);
            }
            operations.push(Operation::new("get", "list", id("list", ""), gvk, &list).list());
        }
        if has("create") {
            operations.push(Operation::create(id("create", ""), gvk, &object));
        }
        if has("deletecollection") {
            let options = self.definitions.named(&format!("{META}.DeleteOptions"));
            let id = format!("delete{}Collection{scope}{}", camel(gvk), gvk.kind);
            let delete = Operation::new("delete", "deletecollection", id, gvk, &status);
            operations.push(delete.query(DELETE_COLLECTION).body(&options, &["*/*"]));
        }
        self.path(&collection, gvk, &[], operations);

        let mut operations = Vec::new();
        if has("get") {
            operations.push(Operation::read(id("read", ""), gvk, &object));
        }
        if has("update") {
            operations.push(Operation::replace(id("replace", ""), gvk, &object));
        }
        if has("patch") {
            let patch = self.definitions.named(&format!("{META}.Patch"));
            operations.push(Operation::patch(id("patch", ""), gvk, (&patch, patches(kind)), &object));
        }
        if has("delete") {
            let options = self.definitions.named(&format!("{META}.DeleteOptions"));
            let answer = if kind.delete_returns_object { &object } else { &status };
            let delete = Operation::new("delete", "delete", id("delete", ""), gvk, answer);
            operations.push(delete.query(DELETE).body(&options, &["*/*"]).codes(&["202"]));
        }
        self.path(&item, gvk, &[], operations);
        for part in &kind.subresources {
            self.part(kind, part, &format!("{item}/{}", part.name), &object, scope);
        }
        // Only built-in kinds tell of the paths that watched before lists could be watched.
        if has("watch") && matches!(kind.schema, Source::Builtin(_)) {
            let event = self.definitions.named(&format!("{META}.WatchEvent"));
            let watch = |path: &str| path.replacen(&root, &format!("{root}/watch"), 1);
            if kind.namespaced {
                let all = Operation::new("get", "watchlist", everywhere("watch", "List"), gvk, &event).list();
                self.path(&watch(&format!("{root}/{}", kind.plural)), gvk, &[], vec![all]);
            }
            let list = Operation::new("get", "watchlist", id("watch", "List"), gvk, &event).list();
            self.path(&watch(&collection), gvk, &[], vec![list]);
            let one = Operation::new("get", "watch", id("watch", ""), gvk, &event).list();
            self.path(&watch(&item), gvk, &[], vec![one]);
        }
    }

    fn part(&mut self, kind: &Kind<'_>, part: &Part<'_>, path: &str, object: &Value, scope: &str) {
        let gvk = &kind.gvk;
        let name = capital(part.name);
        let id = |verb: &str| format!("{verb}{}{scope}{}{name}", camel(gvk), gvk.kind);
        let text = json!({"type": "string"});
        if part.name == "log" {
            let options = builtin().named(LOG_OPTIONS);
            let query = options.map(connect_parameters).unwrap_or_default();
            let mut read = Operation::read(id("read"), gvk, &text);
            read.produces.insert(0, "text/plain");
            self.path(path, gvk, &query, vec![read]);
            return;
        }
        if part.connect {
            let query: Vec<(String, &str)> = part.schema.map(connect_parameters).unwrap_or_default();
            let methods = || CONNECT.iter().filter(|(m, _)| part.name == "proxy" || matches!(*m, "get" | "post"));
            let operations = |more: &str| {
                let of = |(method, word): &(&'static str, &str)| {
                    let id = format!("connect{}{word}{scope}{}{name}{more}", camel(gvk), gvk.kind);
                    Operation { produces: vec!["*/*"], ..Operation::new(method, "connect", id, &part.body, &text) }
                };
                methods().map(of).collect()
            };
            self.path(path, &part.body, &query, operations(""));
            if part.name == "proxy" {
                self.path(&format!("{path}/{{path}}"), &part.body, &query, operations("WithPath"));
            }
            return;
        }
        let body = match part.schema {
            Some(view) => self.definitions.schema(view, ""),
            None => object.clone(),
        };
        let mut operations = Vec::new();
        for verb in part.verbs {
            operations.push(match *verb {
                "get" => Operation::read(id("read"), &part.body, &body),
                "create" => Operation::create(id("create"), &part.body, &body),
                "update" => Operation::replace(id("replace"), &part.body, &body),
                "patch" => {
                    let patch = self.definitions.named(&format!("{META}.Patch"));
                    Operation::patch(id("patch"), &part.body, (&patch, patches(kind)), &body)
                }
                _ => continue,
            });
        }
        operations.iter_mut().for_each(|operation| operation.tag = tag(gvk));
        self.path(path, &part.body, &[], operations);
    }

    fn path(&mut self, path: &str, of: &Gvk, query: &[(String, &str)], operations: Vec<Operation<'_>>) {
        if operations.is_empty() {
            return;
        }
        let mut item = Map::new();
        let mut parameters = Vec::new();
        if path.contains("{name}") {
            parameters.push(self.parameter("name", "path", "string", Some(format!("name of the {}", of.kind))));
        }
        if path.contains("{namespace}") {
            parameters.push(self.parameter("namespace", "path", "string", None));
        }
        if path.ends_with("{path}") {
            parameters.push(self.parameter("path", "path", "string", None));
        }
        if operations.iter().all(|o| o.action != "connect") {
            parameters.push(self.parameter("pretty", "query", "string", None));
        }
        parameters.extend(query.iter().map(|(name, ty)| self.parameter(name, "query", ty, None)));
        item.insert("parameters".into(), parameters.into());
        for operation in operations {
            item.insert(operation.method.into(), self.operation(&operation));
        }
        self.paths.insert(path.into(), item.into());
    }

    fn parameter(&self, name: &str, place: &str, ty: &str, description: Option<String>) -> Value {
        let mut parameter = object([("name", name.into()), ("in", place.into())]);
        if place == "path" {
            parameter.insert("required".into(), true.into());
        }
        if let Some(text) = description {
            parameter.insert("description".into(), text.into());
        }
        match self.version {
            Version::V2 => {
                parameter.insert("type".into(), ty.into());
                parameter.insert("uniqueItems".into(), true.into());
            }
            Version::V3 => drop(parameter.insert("schema".into(), json!({"type": ty, "uniqueItems": true}))),
        }
        parameter.into()
    }

    fn operation(&self, operation: &Operation<'_>) -> Value {
        let gvk = operation.gvk;
        let mut parameters: Vec<Value> =
            operation.parameters.iter().map(|(name, ty)| self.parameter(name, "query", ty, None)).collect();
        let mut out = object([
            ("operationId", operation.id.clone().into()),
            ("tags", json!([operation.tag])),
            ("x-kubernetes-action", operation.action.into()),
            ("x-kubernetes-group-version-kind", gvk_value(gvk)),
        ]);
        let produces = &operation.produces;
        let described = |code: &str| match code {
            "201" => "Created",
            "202" => "Accepted",
            _ => "OK",
        };
        let mut responses = Map::new();
        for code in ["200"].iter().chain(operation.codes) {
            responses.insert((*code).into(), self.response(described(code), &operation.answer, produces));
        }
        responses.insert("401".into(), json!({"description": "Unauthorized"}));
        out.insert("responses".into(), responses.into());
        if let Some((schema, types)) = &operation.body {
            let required = operation.method != "delete";
            match self.version {
                Version::V2 => {
                    let mut body = json!({"in": "body", "name": "body", "schema": schema});
                    if required {
                        body["required"] = true.into();
                    }
                    parameters.push(body);
                    out.insert("consumes".into(), (*types).into());
                }
                Version::V3 => {
                    let content: Map<String, Value> =
                        types.iter().map(|ty| ((*ty).to_string(), json!({"schema": schema}))).collect();
                    let mut body = object([("content", content.into())]);
                    if required {
                        body.insert("required".into(), true.into());
                    }
                    out.insert("requestBody".into(), body.into());
                }
            }
        } else if self.version == Version::V2 {
            out.insert("consumes".into(), json!(["*/*"]));
        }
        if self.version == Version::V2 {
            out.insert("produces".into(), produces.clone().into());
            out.insert("schemes".into(), json!(["https"]));
        }
        if !parameters.is_empty() {
            out.insert("parameters".into(), parameters.into());
        }
        out.into()
    }
}

/// The query parameters of a stream: the scalar fields of its options.
fn connect_parameters(view: View<'_>) -> Vec<(String, &'static str)> {
    let Shape::Struct(s) = view.shape() else { return Vec::new() };
    let fields = s.fields.iter().filter(|f| !matches!(&*f.name, "apiVersion" | "kind"));
    fields
        // No query parameter is made of a time.
        .filter(|field| !matches!(view.of(field).shape(), Shape::Scalar(Scalar::Time)))
        .map(|field| {
            let inner = view.of(field);
            let leaf = inner.item().unwrap_or(inner);
            let ty = match leaf.shape() {
                Shape::Scalar(Scalar::Boolean) => "boolean",
                Shape::Scalar(Scalar::Int32 | Scalar::Int64) => "integer",
                _ => "string",
            };
            (field.name.to_string(), ty)
        })
        .collect()
}

fn capital(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

/// `/apis/GROUP/VERSION`, and the core group's `/api/v1`.
fn root(group: &str, version: &str) -> String {
    if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") }
}

/// `rbac.authorization.k8s.io` → `RbacAuthorizationV1`, the core group → `CoreV1`.
fn camel(gvk: &Gvk) -> String {
    format!("{}{}", capital(&words(&gvk.group)), capital(&gvk.version))
}

/// `rbacAuthorization_v1`.
fn tag(gvk: &Gvk) -> String {
    format!("{}_{}", words(&gvk.group), gvk.version)
}

/// `rbacAuthorization`.
fn words(group: &str) -> String {
    let group = if group.is_empty() { "core" } else { group.strip_suffix(".k8s.io").unwrap_or(group) };
    let mut words = group.split('.');
    let first = words.next().unwrap_or_default().to_string();
    std::iter::once(first).chain(words.map(capital)).collect()
}
