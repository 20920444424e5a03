//! Paths and operations of served kinds.

use serde_json::{Map, Value, json};

use super::definitions::Definitions;
use super::{Kind, Part, Version, gvk_value, object};
use crate::Gvk;
use crate::schema::{Scalar, Shape, View};

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";

const TYPES: &[&str] = &["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];
const WATCH_TYPES: &[&str] = &["application/json;stream=watch", "application/vnd.kubernetes.protobuf;stream=watch"];
const PATCHES: &[&str] = &[
    "application/apply-patch+yaml",
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
];

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

pub(super) fn paths(version: Version, kinds: &[Kind<'_>], definitions: &mut Definitions<'_>) -> Value {
    let mut writer = Writer { version, definitions, paths: Map::new() };
    for kind in kinds {
        writer.kind(kind);
    }
    writer.paths.into()
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
    parameters: Parameters,
    /// The body's schema and media types.
    body: Option<(Value, &'o [&'o str])>,
    answer: Value,
    /// Beyond 200.
    codes: &'o [&'o str],
    watch: bool,
}

impl Writer<'_, '_> {
    fn kind(&mut self, kind: &Kind<'_>) {
        let gvk = &kind.gvk;
        let root = if gvk.group.is_empty() {
            format!("/api/{}", gvk.version)
        } else {
            format!("/apis/{}/{}", gvk.group, gvk.version)
        };
        let scope = if kind.namespaced { "Namespaced" } else { "" };
        let collection = if kind.namespaced {
            format!("{root}/namespaces/{{namespace}}/{}", kind.plural)
        } else {
            format!("{root}/{}", kind.plural)
        };
        let has = |verb: &str| kind.verbs.contains(&verb);
        let id = |verb: &str, more: &str| format!("{verb}{}{scope}{}{more}", camel(gvk), gvk.kind);
        let object = self.definitions.kind(kind);
        let status = self.definitions.named(&format!("{META}.Status"));

        let mut operations = Vec::new();
        if has("list") {
            let list = self.definitions.list(kind);
            if kind.namespaced {
                let id = format!("list{}{}ForAllNamespaces", camel(gvk), gvk.kind);
                let all = Operation {
                    method: "get",
                    action: "list",
                    id,
                    gvk,
                    parameters: LIST,
                    body: None,
                    answer: list.clone(),
                    codes: &[],
                    watch: true,
                };
                self.path(&format!("{root}/{}", kind.plural), gvk, &[], vec![all]);
            }
            operations.push(Operation {
                method: "get",
                action: "list",
                id: id("list", ""),
                gvk,
                parameters: LIST,
                body: None,
                answer: list,
                codes: &[],
                watch: true,
            });
        }
        if has("create") {
            let body = Some((object.clone(), &["*/*"][..]));
            operations.push(Operation {
                method: "post",
                action: "post",
                id: id("create", ""),
                gvk,
                parameters: WRITE,
                body,
                answer: object.clone(),
                codes: &["201", "202"],
                watch: false,
            });
        }
        if has("deletecollection") {
            let body = Some((self.definitions.named(&format!("{META}.DeleteOptions")), &["*/*"][..]));
            let id = format!("delete{}Collection{scope}{}", camel(gvk), gvk.kind);
            operations.push(Operation {
                method: "delete",
                action: "deletecollection",
                id,
                gvk,
                parameters: DELETE_COLLECTION,
                body,
                answer: status.clone(),
                codes: &[],
                watch: false,
            });
        }
        self.path(&collection, gvk, &[], operations);

        let mut operations = Vec::new();
        if has("get") {
            operations.push(Operation {
                method: "get",
                action: "get",
                id: id("read", ""),
                gvk,
                parameters: &[],
                body: None,
                answer: object.clone(),
                codes: &[],
                watch: false,
            });
        }
        if has("update") {
            let body = Some((object.clone(), &["*/*"][..]));
            operations.push(Operation {
                method: "put",
                action: "put",
                id: id("replace", ""),
                gvk,
                parameters: WRITE,
                body,
                answer: object.clone(),
                codes: &["201"],
                watch: false,
            });
        }
        if has("patch") {
            let body = Some((self.definitions.named(&format!("{META}.Patch")), PATCHES));
            operations.push(Operation {
                method: "patch",
                action: "patch",
                id: id("patch", ""),
                gvk,
                parameters: PATCH,
                body,
                answer: object.clone(),
                codes: &["201"],
                watch: false,
            });
        }
        if has("delete") {
            let body = Some((self.definitions.named(&format!("{META}.DeleteOptions")), &["*/*"][..]));
            operations.push(Operation {
                method: "delete",
                action: "delete",
                id: id("delete", ""),
                gvk,
                parameters: DELETE,
                body,
                answer: status,
                codes: &["202"],
                watch: false,
            });
        }
        let item = format!("{collection}/{{name}}");
        self.path(&item, gvk, &[], operations);
        for part in &kind.subresources {
            self.part(kind, part, &format!("{item}/{}", part.name), &object, scope);
        }
    }

    fn part(&mut self, kind: &Kind<'_>, part: &Part<'_>, path: &str, object: &Value, scope: &str) {
        let gvk = &kind.gvk;
        let name = capital(part.name);
        let id = |verb: &str| format!("{verb}{}{scope}{}{name}", camel(gvk), gvk.kind);
        if part.connect {
            let own: Vec<(String, &str)> = part.schema.map(connect_parameters).unwrap_or_default();
            let methods = CONNECT.iter().filter(|(method, _)| match part.name {
                "log" => *method == "get",
                "proxy" => true,
                _ => matches!(*method, "get" | "post"),
            });
            let operations = methods
                .map(|(method, word)| Operation {
                    method,
                    action: "connect",
                    id: format!("connect{}{word}{scope}{}{name}", camel(gvk), gvk.kind),
                    gvk: &part.body,
                    parameters: &[],
                    body: None,
                    answer: json!({"type": "string"}),
                    codes: &[],
                    watch: false,
                })
                .collect();
            self.path(path, &part.body, &own, operations);
            return;
        }
        let body = match part.schema {
            Some(view) => self.definitions.schema(view, ""),
            None => object.clone(),
        };
        let mut operations = Vec::new();
        for verb in part.verbs {
            let whole = Some((body.clone(), &["*/*"][..]));
            let answer = body.clone();
            operations.push(match *verb {
                "get" => Operation {
                    method: "get",
                    action: "get",
                    id: id("read"),
                    gvk: &part.body,
                    parameters: &[],
                    body: None,
                    answer,
                    codes: &[],
                    watch: false,
                },
                "create" => Operation {
                    method: "post",
                    action: "post",
                    id: id("create"),
                    gvk: &part.body,
                    parameters: WRITE,
                    body: whole,
                    answer,
                    codes: &["201", "202"],
                    watch: false,
                },
                "update" => Operation {
                    method: "put",
                    action: "put",
                    id: id("replace"),
                    gvk: &part.body,
                    parameters: WRITE,
                    body: whole,
                    answer,
                    codes: &["201"],
                    watch: false,
                },
                "patch" => {
                    let body = Some((self.definitions.named(&format!("{META}.Patch")), PATCHES));
                    Operation {
                        method: "patch",
                        action: "patch",
                        id: id("patch"),
                        gvk: &part.body,
                        parameters: PATCH,
                        body,
                        answer,
                        codes: &["201"],
                        watch: false,
                    }
                }
                _ => continue,
            });
        }
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
        parameters.push(self.parameter("pretty", "query", "string", None));
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
            ("tags", json!([tag(gvk)])),
            ("x-kubernetes-action", operation.action.into()),
            ("x-kubernetes-group-version-kind", gvk_value(gvk)),
        ]);
        let produces: Vec<&str> = match operation.action {
            "connect" => vec!["*/*"],
            _ if operation.watch => TYPES.iter().chain(WATCH_TYPES).copied().collect(),
            _ => TYPES.to_vec(),
        };
        let described = |code: &str| match code {
            "201" => "Created",
            "202" => "Accepted",
            _ => "OK",
        };
        let mut responses = Map::new();
        for code in ["200"].iter().chain(operation.codes) {
            let mut response = object([("description", described(code).into())]);
            match self.version {
                Version::V2 => drop(response.insert("schema".into(), operation.answer.clone())),
                Version::V3 => {
                    let content: Map<String, Value> =
                        produces.iter().map(|ty| ((*ty).to_string(), json!({"schema": operation.answer}))).collect();
                    response.insert("content".into(), content.into());
                }
            }
            responses.insert((*code).into(), response.into());
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
            out.insert("produces".into(), produces.into());
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

/// `rbac.authorization.k8s.io` → `RbacAuthorization`, the core group → `Core`, with the version behind.
fn camel(gvk: &Gvk) -> String {
    let group: String = group_words(gvk).map(capital).collect();
    format!("{group}{}", capital(&gvk.version))
}

/// `rbacAuthorization_v1`.
fn tag(gvk: &Gvk) -> String {
    let mut words = group_words(gvk);
    let first = words.next().unwrap_or_default().to_string();
    let group: String = std::iter::once(first).chain(words.map(capital)).collect();
    format!("{group}_{}", gvk.version)
}

fn group_words(gvk: &Gvk) -> impl Iterator<Item = &str> {
    let group = if gvk.group.is_empty() { "core" } else { gvk.group.strip_suffix(".k8s.io").unwrap_or(&gvk.group) };
    group.split('.')
}
