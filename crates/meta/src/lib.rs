//! Ground: what every room says about Kubernetes objects.
//!
//! Names (group, version, kind, resource), the stored [`Object`] that is encoded once and shared, selectors, the
//! API's [`Status`] errors, the [`Request`]/[`Reply`] pair both transports speak, the schema engine and the patches.
//! It does no IO, reads no clock except through its callers, and knows no particular kind.

#![forbid(unsafe_code)]

pub mod alike;
pub mod apply;
pub mod decode;
pub mod formats;
pub mod labels;
mod managed;
pub mod names;
pub mod object;
pub mod openapi;
pub mod patch;
pub mod protobuf;
pub mod quantity;
pub mod request;
pub mod schema;
pub mod selector;
pub mod status;
pub mod time;
mod tree;
pub mod yaml;

pub use labels::Labels;
pub use names::{GroupKind, GroupVersion, Gvk, Gvr};
pub use object::{Meta, Object, OwnerReference};
pub use request::{EventKind, List, Options, Reply, Request, RequestBody, Verb, WatchEvent, WatchStream};
pub use selector::{FieldSelector, LabelSelector};
pub use status::{Cause, FieldError, FieldErrorKind, FieldPath, Reason, Status};
pub use tree::Tree;

/// The JSON tree used on write paths. Reads never build one.
pub use serde_json::Value;
