//! Replies as bytes: JSON, YAML, protobuf, tables, metadata only; whole, or as a watch.
//!
//! Objects are already encoded, and so are [`lists`] of them. Only tables, metadata, YAML and protobuf look inside.

use std::convert::Infallible;
use std::io::Write;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use meta::{List, Object, Reason, Reply, Request, Status, Value, WatchEvent, WatchStream};
use resources::{Resource, Verbs};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::negotiated::{Format, Negotiated, View, not_acceptable};
use super::{Body, alike, full, lists, table};
use crate::server::ApiServer;

/// Replies above this are compressed for clients that take it, as upstream.
const GZIP_FROM: usize = 128 * 1024;

/// What the encoder must know of the kind asked for.
pub struct Shape {
    resource: Option<(Arc<crate::catalog::Served>, usize)>,
    api_version: String,
    include_object: String,
}

impl Shape {
    pub fn of(server: &ApiServer, request: &Request) -> Result<Self, Status> {
        let found = server.catalog().get(&request.resource).map(|(served, version)| (served.clone(), version));
        let gv =
            meta::GroupVersion { group: request.resource.group.clone(), version: request.resource.version.clone() };
        let include_object = request
            .options
            .other
            .iter()
            .find(|(k, _)| k == "includeObject")
            .map(|(_, v)| v.clone())
            .unwrap_or_default();
        Ok(Self { resource: found, api_version: gv.to_string(), include_object })
    }

    /// Whether the kind asked for can be written in protobuf, as far as is known.
    pub fn has_protobuf(&self) -> bool {
        self.kind().is_none_or(|(resource, version)| {
            let gvk = meta::Gvk::new(&resource.group, &version.name, &resource.kind);
            !resource.custom && meta::schema::builtin().kind(&gvk).is_some()
        })
    }

    /// A view that fits the other of objects and lists, as upstream refuses it.
    fn not_so(&self, view: &str, what: &str, suffix: &str) -> Status {
        let go = match self.kind() {
            Some((resource, _)) if !resource.custom => {
                let package = resource.group.split('.').next().filter(|first| !first.is_empty()).unwrap_or("core");
                format!("*{package}.{}{suffix}", resource.kind)
            }
            _ => format!("*unstructured.Unstructured{suffix}"),
        };
        Status::new(Reason::NotAcceptable, format!("you requested {view}, but the requested object is {what} ({go})"))
    }

    fn kind(&self) -> Option<(&Resource, &resources::ResourceVersion)> {
        let (served, version) = self.resource.as_ref()?;
        Some((&served.resource, &served.resource.versions[*version]))
    }
}

/// A reply again as JSON, in the view the client gets; nothing of a watch.
pub fn as_json(reply: &Reply, shape: &Shape, negotiated: &Negotiated) -> Result<Option<Response<Body>>, Status> {
    let copy = match reply {
        Reply::Object { object, created } => Reply::Object { object: object.clone(), created: *created },
        Reply::List(list) => Reply::List(list.clone()),
        Reply::Value { value, code } => Reply::Value { value: value.clone(), code: *code },
        Reply::Watch(_) => return Ok(None),
    };
    let plain = Negotiated { format: Format::Json, plain: Some(Format::Json), gzip: false, ..negotiated.clone() };
    self::reply(copy, shape, &plain, &CancellationToken::new()).map(Some)
}

pub fn reply(
    reply: Reply,
    shape: &Shape,
    negotiated: &Negotiated,
    ending: &CancellationToken,
) -> Result<Response<Body>, Status> {
    let negotiated = &negotiated.fitting(shape);
    match reply {
        Reply::Object { object, created } => {
            let code = if created { StatusCode::CREATED } else { StatusCode::OK };
            let bytes = match negotiated.view {
                View::Whole if negotiated.format == Format::Json => object.to_json(),
                View::Whole => value_bytes(shape, &object.value().map_err(Status::internal)?, negotiated.format)?,
                View::Metadata => value_bytes(shape, &partial(&object)?, negotiated.format)?,
                View::MetadataList => {
                    return Err(shape.not_so("PartialObjectMetadataList", "not a list", ""));
                }
                View::Table => value_bytes(
                    shape,
                    &tabulate(shape, std::slice::from_ref(&object), &List::default(), true)?,
                    Format::Json,
                )?,
            };
            whole(code, negotiated, bytes)
        }
        Reply::Value { value, code } => {
            let code = StatusCode::from_u16(code).unwrap_or(StatusCode::OK);
            if negotiated.view == View::Table && shape.kind().is_some_and(|(r, _)| r.verbs == Verbs::ReadOnly) {
                let table = tabulate(shape, &objects_of(value)?, &List::default(), true)?;
                return whole(code, negotiated, value_bytes(shape, &table, Format::Json)?);
            }
            // What came of a request is told in whatever form its objects were wanted in.
            let told = (value["kind"] == "Status").then_some(negotiated.format);
            let format = negotiated.plain.or(told).ok_or_else(not_acceptable)?;
            let bytes = value_bytes(shape, &value, format)?;
            ready(code, format, negotiated, bytes)
        }
        Reply::List(list) => list_reply(list, shape, negotiated),
        Reply::Watch(events) => watch_reply(events, shape, negotiated, ending),
    }
}

fn content_type(format: Format) -> HeaderValue {
    HeaderValue::from_static(match format {
        Format::Json => "application/json",
        Format::Yaml => "application/yaml",
        Format::Protobuf => "application/vnd.kubernetes.protobuf",
    })
}

fn respond(code: StatusCode, format: Format, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, content_type(format));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

fn whole(code: StatusCode, negotiated: &Negotiated, bytes: Bytes) -> Result<Response<Body>, Status> {
    let format = if negotiated.view == View::Table { Format::Json } else { negotiated.format };
    ready(code, format, negotiated, bytes)
}

/// JSON as Go indents it: two spaces, a line break at the end.
fn indent(json: &[u8]) -> Bytes {
    let Ok(value) = serde_json::from_slice::<Value>(json) else { return Bytes::copy_from_slice(json) };
    match serde_json::to_vec_pretty(&value) {
        Ok(mut bytes) => {
            bytes.push(b'\n');
            bytes.into()
        }
        Err(_) => Bytes::copy_from_slice(json),
    }
}

/// A body that is ready, compressed when that pays.
fn ready(code: StatusCode, format: Format, negotiated: &Negotiated, bytes: Bytes) -> Result<Response<Body>, Status> {
    let bytes = if negotiated.pretty && format == Format::Json { indent(&bytes) } else { bytes };
    if negotiated.gzip && bytes.len() > GZIP_FROM {
        return compressed(code, format, bytes.len(), std::iter::once(bytes));
    }
    Ok(respond(code, format, full(bytes)))
}

/// Pieces, of so many bytes, as one compressed body.
fn compressed(
    code: StatusCode,
    format: Format,
    length: usize,
    mut pieces: impl Iterator<Item = Bytes>,
) -> Result<Response<Body>, Status> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::with_capacity(length / 4), flate2::Compression::fast());
    pieces.try_for_each(|piece| encoder.write_all(&piece)).map_err(Status::internal)?;
    let mut response = respond(code, format, full(encoder.finish().map_err(Status::internal)?));
    response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    Ok(response)
}

/// A body in pieces, of so many bytes: made as it is sent when it is long, compressed when that pays.
fn in_pieces(
    format: Format,
    negotiated: &Negotiated,
    length: usize,
    pieces: impl Iterator<Item = Bytes> + Send + 'static,
) -> Result<Response<Body>, Status> {
    if length <= lists::PIECE || negotiated.pretty && format == Format::Json {
        return ready(StatusCode::OK, format, negotiated, pieces.collect::<Vec<_>>().concat().into());
    }
    if negotiated.gzip && length > GZIP_FROM {
        return compressed(StatusCode::OK, format, length, pieces);
    }
    let frames = futures::stream::iter(pieces.map(|piece| Ok::<_, Infallible>(Frame::data(piece))));
    Ok(respond(StatusCode::OK, format, StreamBody::new(frames).boxed_unsync()))
}

fn value_bytes(shape: &Shape, value: &Value, format: Format) -> Result<Bytes, Status> {
    match format {
        Format::Json => serde_json::to_vec(value).map(Bytes::from).map_err(Status::internal),
        Format::Yaml => serde_saphyr::to_string(value).map(Bytes::from).map_err(Status::internal),
        Format::Protobuf => {
            if shape.kind().is_some_and(|(r, _)| r.custom) {
                return Err(Status::new(Reason::NotAcceptable, "custom resources have no protobuf form"));
            }
            protobuf(value).map(Bytes::from)
        }
    }
}

/// A tree in protobuf, by the kind it says it is.
fn protobuf(value: &Value) -> Result<Vec<u8>, Status> {
    let text = |field: &str| value[field].as_str().unwrap_or_default();
    let gv = meta::GroupVersion::parse(text("apiVersion")).unwrap_or_else(|| meta::GroupVersion::new("", "v1"));
    let gvk = meta::Gvk::new(&gv.group, &gv.version, text("kind"));
    let view = meta::schema::builtin().kind(&gvk);
    let view = view.ok_or_else(|| Status::new(Reason::NotAcceptable, format!("{gvk} has no protobuf form")))?;
    meta::protobuf::encode(view, value).map_err(Status::internal)
}

/// A tree that is an object, or a list of some.
fn objects_of(mut value: Value) -> Result<Vec<Arc<Object>>, Status> {
    let items = match value["items"].take() {
        Value::Array(items) => items,
        _ => vec![value],
    };
    items.iter().map(|item| Object::from_value(item).map(Arc::new).map_err(Status::internal)).collect()
}

/// `PartialObjectMetadata` of an object.
fn partial(object: &Object) -> Result<Value, Status> {
    let body = object.value().map_err(Status::internal)?;
    Ok(json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": body["metadata"]}))
}

fn list_metadata(list: &List) -> Value {
    let mut metadata = json!({"resourceVersion": list.resource_version.to_string()});
    if let Some(token) = &list.continue_token {
        metadata["continue"] = token.as_str().into();
    }
    if let Some(remaining) = list.remaining_item_count {
        metadata["remainingItemCount"] = remaining.into();
    }
    metadata
}

fn tabulate(shape: &Shape, items: &[Arc<Object>], list: &List, with_columns: bool) -> Result<Value, Status> {
    let (resource, version) = shape.kind().ok_or_else(Status::unknown_path)?;
    let include = &*shape.include_object;
    if !matches!(include, "" | "None" | "Metadata" | "Object") {
        let why = "must be 'Metadata', 'Object', 'None', or empty";
        let error = meta::FieldError::invalid(&meta::FieldPath::new("includeObject"), include, why);
        return Err(Status::bad_request(format!("Unable to convert to Table as requested: {error}")));
    }
    let rows =
        items.iter().map(|object| table::row(resource, version, object, include)).collect::<Result<Vec<_>, _>>()?;
    let mut out = json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": {}, "columnDefinitions": null, "rows": rows});
    if with_columns {
        out["columnDefinitions"] = table::columns(resource, version);
    }
    if list.resource_version > 0 {
        out["metadata"] = list_metadata(list);
    } else if let [one] = items {
        out["metadata"] = json!({"resourceVersion": one.resource_version.to_string()});
    }
    Ok(out)
}

fn list_reply(list: List, shape: &Shape, negotiated: &Negotiated) -> Result<Response<Body>, Status> {
    let list_kind = shape.kind().map_or("List", |(r, _)| &*r.list_kind);
    // Built-in kinds' items do not say what they are; unstructured ones do.
    let custom = shape.kind().is_none_or(|(r, _)| r.custom);
    match (negotiated.view, negotiated.format) {
        (View::Table, _) => {
            let value = tabulate(shape, &list.items, &list, true)?;
            whole(StatusCode::OK, negotiated, value_bytes(shape, &value, Format::Json)?)
        }
        (View::Metadata, _) => Err(shape.not_so("PartialObjectMetadata", "a list", "List")),
        (View::MetadataList, format) => {
            let items = list.items.iter().map(|object| partial(object)).collect::<Result<Vec<_>, _>>()?;
            let value = json!({"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": list_metadata(&list), "items": items});
            whole(StatusCode::OK, negotiated, value_bytes(shape, &value, format)?)
        }
        (View::Whole, Format::Json) => {
            let head = json!({"kind": list_kind, "apiVersion": shape.api_version, "metadata": list_metadata(&list)})
                .to_string();
            let pieces = lists::Pieces::new(&head, list.items, !custom);
            in_pieces(Format::Json, negotiated, pieces.about(), pieces)
        }
        (View::Whole, Format::Protobuf) => {
            let view = shape.kind().filter(|(r, _)| !r.custom).and_then(|(r, version)| {
                meta::schema::builtin().kind(&meta::Gvk::new(&r.group, &version.name, &r.kind))
            });
            let view =
                view.ok_or_else(|| Status::new(Reason::NotAcceptable, "custom resources have no protobuf form"))?;
            let items = list.items.iter().map(|object| object.value().map_err(Status::internal));
            let kind = (&*shape.api_version, list_kind);
            let pieces = meta::protobuf::encode_list(view, kind, &list_metadata(&list), items, lists::PIECE)?;
            let length: usize = pieces.iter().map(Vec::len).sum();
            in_pieces(Format::Protobuf, negotiated, length, pieces.into_iter().map(Bytes::from))
        }
        (View::Whole, Format::Yaml) => {
            let mut items =
                list.items.iter().map(|o| o.value().map_err(Status::internal)).collect::<Result<Vec<_>, _>>()?;
            if !custom {
                for item in items.iter_mut().filter_map(Value::as_object_mut) {
                    item.remove("kind");
                    item.remove("apiVersion");
                }
            }
            let value = json!({"kind": list_kind, "apiVersion": shape.api_version, "metadata": list_metadata(&list), "items": items});
            whole(StatusCode::OK, negotiated, value_bytes(shape, &value, Format::Yaml)?)
        }
    }
}

/// A watch: frames as the changes come.
fn watch_reply(
    events: WatchStream,
    shape: &Shape,
    negotiated: &Negotiated,
    ending: &CancellationToken,
) -> Result<Response<Body>, Status> {
    let (format, view) = (negotiated.format, negotiated.view);
    if format == Format::Yaml {
        return Err(Status::new(Reason::NotAcceptable, "a watch is not served as YAML"));
    }
    let shape = Shape {
        resource: shape.resource.clone(),
        api_version: shape.api_version.clone(),
        include_object: shape.include_object.clone(),
    };
    let mut first_table = true;
    let watched = shape.kind().map(|(resource, version)| {
        crate::instruments::watched(&resource.group, &version.name, &resource.plural, &resource.kind)
    });
    let frames = events.map(move |batch| {
        let mut out = Vec::with_capacity(1024 * batch.len());
        for event in batch {
            let before = out.len();
            if let Err(status) = write_event(&event, &shape, format, view, &mut first_table, &mut out) {
                tracing::warn!(%status, "watch event cannot be encoded");
            }
            if let Some(watched) = &watched {
                watched.sent(out.len() - before);
            }
        }
        Ok::<_, Infallible>(Frame::data(Bytes::from(out)))
    });
    let frames = frames.take_until(ending.clone().cancelled_owned());
    let mut response = respond(StatusCode::OK, format, StreamBody::new(frames).boxed_unsync());
    if format == Format::Protobuf {
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/vnd.kubernetes.protobuf;stream=watch"));
    }
    Ok(response)
}

fn write_event(
    event: &WatchEvent,
    shape: &Shape,
    format: Format,
    view: View,
    first_table: &mut bool,
    out: &mut Vec<u8>,
) -> Result<(), Status> {
    let (kind, value) = match event {
        WatchEvent::Object { kind, object } if view == View::Whole && format == Format::Json => {
            begin_event(kind.as_str(), out);
            object.write_json(out);
            out.extend_from_slice(b"}\n");
            return Ok(());
        }
        WatchEvent::Object { kind, object } if view != View::Table => {
            let bytes = alike::once(object, (format, view), || match view {
                View::Whole => event_bytes(&object.value().map_err(Status::internal)?, format),
                _ => event_bytes(&partial(object)?, format),
            })?;
            write_framed(kind.as_str(), &bytes, format, out);
            return Ok(());
        }
        WatchEvent::Object { kind, object } => (
            kind.as_str(),
            tabulate(shape, std::slice::from_ref(object), &List::default(), std::mem::take(first_table))?,
        ),
        WatchEvent::Bookmark { resource_version, initial_events_end } => {
            let mut metadata = json!({"resourceVersion": resource_version.to_string()});
            if *initial_events_end {
                metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
            }
            let value = match view {
                View::Metadata | View::MetadataList => {
                    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata})
                }
                View::Table => {
                    let object =
                        json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata});
                    json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": {"resourceVersion": resource_version.to_string()}, "columnDefinitions": null, "rows": [{"cells": [], "object": object}]})
                }
                View::Whole => {
                    let kind = shape.kind().map_or("", |(r, _)| &*r.kind);
                    json!({"kind": kind, "apiVersion": shape.api_version, "metadata": metadata})
                }
            };
            ("BOOKMARK", value)
        }
        WatchEvent::Error(status) => ("ERROR", status.to_value()),
    };
    write_framed(kind, &event_bytes(&value, format)?, format, out);
    Ok(())
}

/// What an event says of its object.
fn event_bytes(value: &Value, format: Format) -> Result<Bytes, Status> {
    match format {
        Format::Protobuf => protobuf(value).map(Bytes::from),
        _ => serde_json::to_vec(value).map(Bytes::from).map_err(Status::internal),
    }
}

fn begin_event(kind: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"type\":\"");
    out.extend_from_slice(kind.as_bytes());
    out.extend_from_slice(b"\",\"object\":");
}

fn write_framed(kind: &str, object: &[u8], format: Format, out: &mut Vec<u8>) {
    match format {
        Format::Protobuf => out.extend_from_slice(&meta::protobuf::watch_frame(kind, object)),
        _ => {
            begin_event(kind, out);
            out.extend_from_slice(object);
            out.extend_from_slice(b"}\n");
        }
    }
}
