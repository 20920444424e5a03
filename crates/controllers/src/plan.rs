//! What a reconcile wants done, as data.
//!
//! Plans are made by pure functions and carried out by the executor, which makes no choices: each [`Action`] carries
//! its own preconditions, so that a plan made from an old world fails instead of doing harm.

use std::fmt;
use std::time::Duration;

use client::{DeleteOptions, EventType, Patch};
use k8s_openapi::api::core::v1::ObjectReference;
use meta::{Gvr, Object};
use serde_json::Value;

/// An event to record.
#[derive(Clone, Debug, PartialEq)]
pub struct Note {
    pub about: ObjectReference,
    pub kind: EventType,
    pub reason: &'static str,
    /// `{}` stands for the written object's name, or for the error's message.
    pub message: String,
}

impl Note {
    pub fn normal(about: &Object, reason: &'static str, message: impl Into<String>) -> Self {
        Self { about: client::reference(about), kind: EventType::Normal, reason, message: message.into() }
    }

    pub fn warning(about: &Object, reason: &'static str, message: impl Into<String>) -> Self {
        Self { kind: EventType::Warning, ..Self::normal(about, reason, message) }
    }
}

/// One write.
#[derive(Clone, Debug, PartialEq)]
pub enum What {
    Create {
        body: Value,
    },
    /// `PUT` of a whole object; its `resourceVersion` is the precondition.
    Update {
        name: String,
        subresource: &'static str,
        body: Value,
    },
    Patch {
        name: String,
        subresource: &'static str,
        patch: Patch,
    },
    Delete {
        name: String,
        options: DeleteOptions,
    },
    DeleteCollection {
        options: DeleteOptions,
    },
    /// Independent writes in growing groups at once (1, 2, 4, …), given up after a group with a failure.
    SlowStart(Vec<Action>),
}

impl What {
    /// What it does, in the API's word.
    pub fn verb(&self) -> &'static str {
        match self {
            Self::Create { .. } => "create",
            Self::Update { .. } => "update",
            Self::Patch { .. } => "patch",
            Self::Delete { .. } | Self::DeleteCollection { .. } | Self::SlowStart(_) => "delete",
        }
    }
}

/// One write with its place, and what to tell when it went well or did not.
#[derive(Clone, Debug, PartialEq)]
pub struct Action {
    pub resource: Gvr,
    pub namespace: String,
    pub what: What,
    pub done: Option<Note>,
    pub failed: Option<Note>,
    /// The object to create may exist already, and that is as good.
    pub may_exist: bool,
    /// A cluster that does not allow it does without.
    pub may_be_forbidden: bool,
}

impl Action {
    fn new(resource: &Gvr, namespace: &str, what: What) -> Self {
        Self {
            resource: resource.clone(),
            namespace: namespace.into(),
            what,
            done: None,
            failed: None,
            may_exist: false,
            may_be_forbidden: false,
        }
    }

    pub fn create(resource: &Gvr, namespace: &str, body: Value) -> Self {
        Self::new(resource, namespace, What::Create { body })
    }

    /// Replaces an object; the body must come from [`Object::value`] so that it carries its `resourceVersion`.
    pub fn update(resource: &Gvr, of: &Object, body: Value) -> Self {
        Self::update_subresource(resource, of, "", body)
    }

    pub fn update_subresource(resource: &Gvr, of: &Object, subresource: &'static str, body: Value) -> Self {
        Self::new(resource, &of.meta.namespace, What::Update { name: of.meta.name.to_string(), subresource, body })
    }

    /// Replaces an object's status.
    pub fn status(resource: &Gvr, of: &Object, status: Value) -> Result<Self, meta::Status> {
        let mut body = of.value().map_err(meta::Status::internal)?;
        body["status"] = status;
        Ok(Self::update_subresource(resource, of, "status", body))
    }

    pub fn patch(resource: &Gvr, of: &Object, subresource: &'static str, patch: Patch) -> Self {
        Self::new(resource, &of.meta.namespace, What::Patch { name: of.meta.name.to_string(), subresource, patch })
    }

    /// Deletes this very object: its uid is the precondition.
    pub fn delete(resource: &Gvr, of: &Object) -> Self {
        Self::delete_with(resource, of, DeleteOptions::default())
    }

    pub fn delete_with(resource: &Gvr, of: &Object, options: DeleteOptions) -> Self {
        let options = DeleteOptions { uid: Some(of.meta.uid.to_string()), ..options };
        Self::new(resource, &of.meta.namespace, What::Delete { name: of.meta.name.to_string(), options })
    }

    pub fn delete_collection(resource: &Gvr, namespace: &str, options: DeleteOptions) -> Self {
        Self::new(resource, namespace, What::DeleteCollection { options })
    }

    pub fn slow_start(actions: Vec<Action>) -> Self {
        Self::new(&Gvr::new("", "", ""), "", What::SlowStart(actions))
    }

    pub fn done(mut self, note: Note) -> Self {
        self.done = Some(note);
        self
    }

    pub fn failed(mut self, note: Note) -> Self {
        self.failed = Some(note);
        self
    }

    pub fn may_exist(mut self) -> Self {
        self.may_exist = true;
        self
    }

    /// Only where the cluster allows it.
    pub fn where_allowed(mut self) -> Self {
        self.may_be_forbidden = true;
        self
    }
}

/// One line for transcripts and logs.
impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let resource = &self.resource.resource;
        let with = |sub: &str| if sub.is_empty() { String::new() } else { format!("/{sub}") };
        let key = |name: &str| meta::object::object_key(&self.namespace, name);
        match &self.what {
            What::Create { body } => {
                let metadata = &body["metadata"];
                let name = metadata["name"].as_str().or(metadata["generateName"].as_str()).unwrap_or_default();
                write!(f, "create {resource} {}", key(name))
            }
            What::Update { name, subresource, .. } => write!(f, "update {resource}{} {}", with(subresource), key(name)),
            What::Patch { name, subresource, .. } => write!(f, "patch {resource}{} {}", with(subresource), key(name)),
            What::Delete { name, .. } => write!(f, "delete {resource} {}", key(name)),
            What::DeleteCollection { .. } => write!(f, "delete all {resource} {}", self.namespace),
            What::SlowStart(actions) => {
                let lines: Vec<String> = actions.iter().map(ToString::to_string).collect();
                write!(f, "{}", lines.join("; "))
            }
        }
    }
}

/// All that one reconcile wants.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// In order. A failure does not stop the next unless `stop_at_failure`.
    pub actions: Vec<Action>,
    pub notes: Vec<Note>,
    /// Look again after this time, whatever happens until then.
    pub again: Option<Duration>,
    pub stop_at_failure: bool,
}

impl Plan {
    pub fn nothing() -> Self {
        Self::default()
    }

    pub fn act(&mut self, action: Action) -> &mut Self {
        self.actions.push(action);
        self
    }

    pub fn note(&mut self, note: Note) -> &mut Self {
        self.notes.push(note);
        self
    }

    /// Looks again at the soonest of all times asked for.
    pub fn again_after(&mut self, delay: Duration) -> &mut Self {
        self.again = Some(self.again.map_or(delay, |d| d.min(delay)));
        self
    }
}
