//! `/openapi/v2` and `/openapi/v3`: documents made of the catalog, on demand, kept until the catalog changes.
//!
//! Each v3 document is found under a hash of its content, so that clients may keep it for good. Documents are kept
//! compressed: with their sentences they are megabytes, and most clients take them compressed anyway.

mod descriptions;

use std::cell::LazyCell;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use http::request::Parts;
use http::{HeaderValue, Response, StatusCode, header};
use meta::openapi::{Kind, Part, Source};
use meta::{GroupVersion, Gvk, Status, Value};
use resources::{Resource, ResourceVersion, SubresourceKind};
use serde_json::json;

use crate::aggregation::{Remote, Services, documents};
use crate::catalog::Catalog;
use crate::discovery::verbs;
use crate::http::{Body, full};
use descriptions::Descriptions;

/// What v2 in protobuf is called in answers. Clients ask for it with an `@` in the name, which no parser of media types
/// takes; this spelling is upstream's way out.
const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// A document, compressed, and the hash of its content.
#[derive(Clone)]
struct Document {
    gzip: Bytes,
    hash: String,
}

/// Sentences, generated when the first document of an answer needs them and dropped after the answer.
type Sentences = LazyCell<Descriptions>;

impl Document {
    fn new(bytes: &[u8]) -> Result<Self, Status> {
        let digest = ring::digest::digest(&ring::digest::SHA512, bytes);
        let hash = digest.as_ref().iter().map(|b| format!("{b:02X}")).collect();
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).map_err(Status::internal)?;
        Ok(Self { gzip: encoder.finish().map_err(Status::internal)?.into(), hash })
    }

    fn json(value: &Value) -> Result<Self, Status> {
        Self::new(&serde_json::to_vec(value).map_err(Status::internal)?)
    }

    fn plain(&self) -> Result<Bytes, Status> {
        let mut out = Vec::new();
        GzDecoder::new(&self.gzip[..]).read_to_end(&mut out).map_err(Status::internal)?;
        Ok(out.into())
    }
}

#[derive(Default)]
struct Made {
    /// Of the catalog, and of the extension servers.
    generation: (u64, u64),
    v3: BTreeMap<String, Document>,
    v2: Option<Document>,
    v2_protobuf: Option<Document>,
}

/// Documents made so far.
#[derive(Default)]
pub struct OpenApi {
    made: Mutex<Made>,
}

/// `api/v1` or `apis/apps/v1`.
fn path_of(gv: &GroupVersion) -> String {
    if gv.group.is_empty() { format!("api/{}", gv.version) } else { format!("apis/{}/{}", gv.group, gv.version) }
}

/// Versions whose v3 document is made here: our own, and those of extension servers that publish only v2.
fn versions(catalog: &Catalog, services: &Services) -> Vec<GroupVersion> {
    let converted = |r: &&&Arc<Remote>| r.documents.openapi_v3.is_none() && r.documents.openapi_v2.is_some();
    let mut out: Vec<GroupVersion> = services.remotes().iter().filter(converted).map(|r| r.gv.clone()).collect();
    for served in catalog.kinds() {
        for version in served.resource.versions.iter().filter(|v| v.served) {
            let gv = served.resource.group_version(&version.name);
            if !out.contains(&gv) && services.remote(&gv.group, &gv.version).is_none() {
                out.push(gv);
            }
        }
    }
    out
}

/// Our own versions, in order.
fn own_versions(catalog: &Catalog) -> Vec<GroupVersion> {
    let served = catalog.kinds().iter().map(|served| &served.resource);
    let mut out: Vec<GroupVersion> =
        served.flat_map(|r| r.versions.iter().filter(|v| v.served).map(|v| r.group_version(&v.name))).collect();
    out.sort();
    out.dedup();
    out
}

/// Those whose types are built in: each document of one of them names all, where a type is every version's.
fn built_in_versions(catalog: &Catalog) -> Vec<GroupVersion> {
    let built_in = |gv: &GroupVersion| {
        let of = |served: &Arc<crate::catalog::Served>| served.resource.group == gv.group && !served.resource.custom;
        &*gv.group != crate::metrics_api::GROUP && catalog.kinds().iter().any(of)
    };
    own_versions(catalog).into_iter().filter(built_in).collect()
}

/// Paths beside the versions that have v3 documents too.
fn told(catalog: &Catalog) -> Vec<String> {
    let mut out =
        [".well-known/openid-configuration", "api", "apis", "openid/v1/jwks", "version"].map(String::from).to_vec();
    let mut groups: Vec<Arc<str>> = own_versions(catalog).into_iter().map(|gv| gv.group).collect();
    groups.dedup();
    out.extend(groups.iter().filter(|group| !group.is_empty()).map(|group| format!("apis/{group}")));
    out
}

fn kind_of<'a>(resource: &'a Resource, version: &'a ResourceVersion) -> Kind<'a> {
    let null = &Value::Null;
    let own = Gvk::new(&resource.group, &version.name, &resource.kind);
    let part = |sub: &'a resources::Subresource| {
        let body = resource.body(sub, &version.name);
        let schema = if body == own { None } else { meta::schema::builtin().kind(&body) };
        Part { name: &sub.name, verbs: sub.verbs, body, schema, connect: sub.kind == SubresourceKind::Connect }
    };
    Kind {
        gvk: own.clone(),
        list_kind: &resource.list_kind,
        plural: &resource.plural,
        namespaced: resource.namespaced,
        schema: if resource.custom {
            Source::Custom(version.published.as_deref().unwrap_or(null))
        } else {
            Source::Builtin(version.schema.root())
        },
        verbs: verbs(resource),
        subresources: resource.subresources.iter().map(part).collect(),
        delete_returns_object: resource.delete_returns_object,
        selectable: version.selectable.iter().map(|field| &*field.name).collect(),
    }
}

fn kinds<'a>(catalog: &'a Catalog, only: Option<&GroupVersion>) -> Vec<Kind<'a>> {
    let mut out = Vec::new();
    for served in catalog.kinds() {
        for version in served.resource.versions.iter().filter(|v| v.served) {
            if only.is_none_or(|gv| *gv == served.resource.group_version(&version.name)) {
                out.push(kind_of(&served.resource, version));
            }
        }
    }
    out
}

/// A document says which server it is of.
fn versioned(mut document: Value) -> Value {
    document["info"]["version"] = crate::http::GIT_VERSION.into();
    document
}

fn respond(document: &Document, content_type: &'static str, parts: &Parts) -> Result<Response<Body>, Status> {
    let etag = format!("\"{}\"", document.hash);
    let fresh = parts.headers.get(header::IF_NONE_MATCH).is_some_and(|v| v.as_bytes() == etag.as_bytes());
    let takes = |v: &HeaderValue| {
        v.to_str().is_ok_and(|v| v.split(',').any(|e| e.trim().starts_with("gzip") && !e.contains("q=0")))
    };
    let compressed = !fresh && parts.headers.get_all(header::ACCEPT_ENCODING).iter().any(takes);
    let body = match (fresh, compressed) {
        (true, _) => Bytes::new(),
        (false, true) => document.gzip.clone(),
        (false, false) => document.plain()?,
    };
    let mut response = Response::new(full(body));
    if fresh {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    }
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::VARY, HeaderValue::from_static("Accept, Accept-Encoding"));
    if compressed {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    if let Ok(etag) = HeaderValue::from_str(&etag) {
        headers.insert(header::ETAG, etag);
    }
    let immutable = parts.uri.query().is_some_and(|q| q.contains("hash="));
    headers.insert(
        header::CACHE_CONTROL,
        HeaderValue::from_static(if immutable { "public, immutable" } else { "no-cache, private" }),
    );
    Ok(response)
}

impl OpenApi {
    fn with<T>(&self, catalog: &Catalog, services: &Services, make: impl FnOnce(&mut Made) -> T) -> T {
        let mut made = self.made.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let generation = (catalog.generation, services.generation);
        if made.generation != generation {
            *made = Made { generation, ..Made::default() };
        }
        make(&mut made)
    }

    fn v3(
        &self,
        catalog: &Catalog,
        services: &Services,
        gv: &GroupVersion,
        sentences: &Sentences,
    ) -> Result<Document, Status> {
        self.with(catalog, services, |made| {
            if let Some(document) = made.v3.get(&path_of(gv)) {
                return Ok(document.clone());
            }
            let document = match services.remote(&gv.group, &gv.version) {
                Some(remote) => {
                    let published = remote.documents.openapi_v2.as_ref().ok_or_else(Status::unknown_path)?;
                    Document::json(&documents::to_v3(published))?
                }
                None => {
                    let (kinds, others) = (kinds(catalog, Some(gv)), built_in_versions(catalog));
                    Document::json(&versioned(meta::openapi::v3(&kinds, &others, &**sentences)))?
                }
            };
            made.v3.insert(path_of(gv), document.clone());
            Ok(document)
        })
    }

    fn v3_of_path(
        &self,
        catalog: &Catalog,
        services: &Services,
        path: &str,
        sentences: &Sentences,
    ) -> Result<Document, Status> {
        self.with(catalog, services, |made| {
            if let Some(document) = made.v3.get(path) {
                return Ok(document.clone());
            }
            let document =
                Document::json(&versioned(meta::openapi::v3_of_path(path, &own_versions(catalog), &**sentences)))?;
            made.v3.insert(path.to_string(), document.clone());
            Ok(document)
        })
    }

    /// Serves the paths below `/openapi`.
    pub fn serve(
        &self,
        catalog: &Arc<Catalog>,
        services: &Services,
        segments: &[&str],
        parts: &Parts,
    ) -> Result<Response<Body>, Status> {
        let accept = parts.headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let sentences = Sentences::new(Descriptions::generate);
        match segments {
            ["v3"] => {
                let mut paths = serde_json::Map::new();
                for remote in services.remotes() {
                    if let Some(url) = &remote.documents.openapi_v3 {
                        paths.insert(path_of(&remote.gv), json!({"serverRelativeURL": url}));
                    }
                }
                for gv in versions(catalog, services) {
                    let (path, document) = (path_of(&gv), self.v3(catalog, services, &gv, &sentences)?);
                    let url = format!("/openapi/v3/{path}?hash={}", document.hash);
                    paths.insert(path, json!({"serverRelativeURL": url}));
                }
                for path in told(catalog) {
                    let document = self.v3_of_path(catalog, services, &path, &sentences)?;
                    let url = format!("/openapi/v3/{path}?hash={}", document.hash);
                    paths.insert(path, json!({"serverRelativeURL": url}));
                }
                respond(&Document::json(&json!({"paths": paths}))?, "application/json", parts)
            }
            ["v3", rest @ ..] => {
                let wanted = rest.join("/");
                if told(catalog).contains(&wanted) {
                    let document = self.v3_of_path(catalog, services, &wanted, &sentences)?;
                    return respond(&document, "application/json", parts);
                }
                let gv = versions(catalog, services).into_iter().find(|gv| path_of(gv) == wanted);
                let gv = gv.ok_or_else(Status::unknown_path)?;
                respond(&self.v3(catalog, services, &gv, &sentences)?, "application/json", parts)
            }
            ["v2"] => {
                let protobuf = accept.contains("proto-openapi.spec.v2");
                let document = self.with(catalog, services, |made| {
                    let slot = if protobuf { &mut made.v2_protobuf } else { &mut made.v2 };
                    if let Some(document) = slot {
                        return Ok(document.clone());
                    }
                    let mut value = versioned(meta::openapi::v2(&kinds(catalog, None), &*sentences));
                    for published in services.remotes().iter().filter_map(|r| r.documents.openapi_v2.as_ref()) {
                        documents::merge_v2(&mut value, published);
                    }
                    let document = if protobuf {
                        Document::new(&meta::openapi::gnostic(&value))?
                    } else {
                        Document::json(&value)?
                    };
                    *slot = Some(document.clone());
                    Ok::<_, Status>(document)
                })?;
                respond(&document, if protobuf { V2_PROTOBUF } else { "application/json" }, parts)
            }
            _ => Err(Status::unknown_path()),
        }
    }
}

#[cfg(test)]
mod tests;
