//! What both transports speak: one request, one reply.
//!
//! The HTTP server makes a [`Request`] of a URL and writes a [`Reply`] as bytes; the in-process transport hands over the
//! same request and takes the same reply, objects shared by pointer. Authentication, authorization and admission stand
//! behind the request in both cases.

use std::sync::Arc;

use bytes::Bytes;
use futures_core::stream::BoxStream;
use serde_json::Value;

use crate::{Gvr, Object, Status};

/// The API verbs that authorization knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verb {
    Get,
    List,
    Watch,
    Create,
    Update,
    Patch,
    Delete,
    DeleteCollection,
}

impl Verb {
    pub fn as_str(self) -> &'static str {
        match self {
            Verb::Get => "get",
            Verb::List => "list",
            Verb::Watch => "watch",
            Verb::Create => "create",
            Verb::Update => "update",
            Verb::Patch => "patch",
            Verb::Delete => "delete",
            Verb::DeleteCollection => "deletecollection",
        }
    }

    pub fn is_write(self) -> bool {
        !matches!(self, Verb::Get | Verb::List | Verb::Watch)
    }
}

/// Query parameters (and, for deletes, the `DeleteOptions` of the body), unparsed where parsing can fail.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Options {
    pub label_selector: Option<String>,
    pub field_selector: Option<String>,
    pub limit: Option<u64>,
    pub continue_token: Option<String>,
    pub resource_version: Option<String>,
    pub resource_version_match: Option<String>,
    pub allow_watch_bookmarks: bool,
    pub send_initial_events: Option<bool>,
    pub timeout_seconds: Option<u64>,
    /// `All` when set.
    pub dry_run: Vec<String>,
    pub field_manager: Option<String>,
    pub field_validation: Option<String>,
    pub force: Option<bool>,
    /// Everything else in the query, for connect subresources (`container`, `command`, `follow`, …), in order.
    pub other: Vec<(String, String)>,
}

/// A request's body.
#[derive(Clone, Debug, Default)]
pub enum RequestBody {
    #[default]
    None,
    /// Undecoded bytes with their media type.
    Bytes { content_type: String, bytes: Bytes },
    /// A tree, from in-process callers: same meaning as JSON bytes; for patches, the patch document.
    Value { content_type: &'static str, value: Value },
}

/// One API request on a resource.
#[derive(Clone, Debug)]
pub struct Request {
    pub verb: Verb,
    pub resource: Gvr,
    /// Empty for cluster-scoped resources and for lists over all namespaces.
    pub namespace: String,
    /// Empty for collections.
    pub name: String,
    /// Empty for the resource itself.
    pub subresource: String,
    pub options: Options,
    pub body: RequestBody,
}

impl Request {
    pub fn new(verb: Verb, resource: Gvr, namespace: &str, name: &str) -> Self {
        Self {
            verb,
            resource,
            namespace: namespace.into(),
            name: name.into(),
            subresource: String::new(),
            options: Options::default(),
            body: RequestBody::None,
        }
    }

    pub fn subresource(mut self, subresource: &str) -> Self {
        self.subresource = subresource.into();
        self
    }

    pub fn json(mut self, value: Value) -> Self {
        self.body = RequestBody::Value { content_type: "application/json", value };
        self
    }

    /// The URL's path, without query.
    pub fn path(&self) -> String {
        let mut path = self.resource.base_path();
        if !self.namespace.is_empty() && (&*self.resource.resource != "namespaces" || !self.resource.group.is_empty()) {
            path.push_str("/namespaces/");
            path.push_str(&self.namespace);
        }
        for part in [&*self.resource.resource, &self.name, &self.subresource] {
            if !part.is_empty() {
                path.push('/');
                path.push_str(part);
            }
        }
        path
    }
}

/// What a watch event says of its object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    Added,
    Modified,
    Deleted,
}

impl EventKind {
    pub fn as_str(self) -> &'static str {
        match self {
            EventKind::Added => "ADDED",
            EventKind::Modified => "MODIFIED",
            EventKind::Deleted => "DELETED",
        }
    }
}

/// One item of a watch.
#[derive(Clone, Debug)]
pub enum WatchEvent {
    Object {
        kind: EventKind,
        object: Arc<Object>,
    },
    /// Nothing up to this version is missing; `initial_events_end` closes the first, listing part of a streaming list.
    Bookmark {
        resource_version: u64,
        initial_events_end: bool,
    },
    /// The watch ends with this.
    Error(Status),
}

/// Events in order, in the batches they became known in.
pub type WatchStream = BoxStream<'static, Vec<WatchEvent>>;

/// A list at one version of the world.
#[derive(Clone, Debug, Default)]
pub struct List {
    pub resource_version: u64,
    pub items: Vec<Arc<Object>>,
    pub continue_token: Option<String>,
    pub remaining_item_count: Option<u64>,
}

/// What a request came to.
pub enum Reply {
    Object {
        object: Arc<Object>,
        created: bool,
    },
    List(List),
    Watch(WatchStream),
    /// A success `Status`, as deletes answer, or an object that is not stored (a review, a scale, a binding's answer).
    Value {
        value: Value,
        code: u16,
    },
}
