//! Why a configuration could not be applied, as the API says it.

use super::entries;
use super::fields::{self, Fields};
use crate::status::{Cause, Reason, Status};

use serde_json::Value;

/// Why a configuration was not applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Conflicts {
    /// Others own fields it would change.
    Fields(Vec<Conflict>),
    /// The configuration itself is wrong.
    Invalid(String),
}

/// One field that another manager owns.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Conflict {
    /// The manager as messages show it: `"kubectl" using v1`.
    pub manager: String,
    /// `.spec.replicas`.
    pub path: String,
}

/// The conflicts with one entry over these fields.
pub fn with_entry(entry: &Value, contested: &Fields) -> Vec<Conflict> {
    let mut manager = format!("{:?}", entries::text(entry, "manager"));
    let subresource = entries::text(entry, "subresource");
    if !subresource.is_empty() {
        manager.push_str(&format!(" with subresource {subresource:?}"));
    }
    if entries::is_update(entry) {
        manager.push_str(&format!(" using {}", entries::text(entry, "apiVersion")));
    }
    fields::paths(contested).into_iter().map(|path| Conflict { manager: manager.clone(), path }).collect()
}

impl Conflicts {
    /// The API's answer. Upstream names no object in it, only the fields.
    pub fn status(&self, _group: &str, _plural: &str, _name: &str) -> Status {
        match self {
            // Upstream gives it neither a reason nor a code of its own.
            Self::Invalid(message) => Status::new(Reason::Unknown, message.clone()),
            Self::Fields(conflicts) => {
                let causes = conflicts.iter().map(|c| Cause {
                    reason: "FieldManagerConflict".into(),
                    message: format!("conflict with {}", c.manager),
                    field: c.path.clone(),
                });
                Status::new(Reason::Conflict, message(conflicts)).with_causes(causes.collect())
            }
        }
    }
}

fn message(conflicts: &[Conflict]) -> String {
    if let [only] = conflicts {
        return format!("Apply failed with 1 conflict: conflict with {}: {}", only.manager, only.path);
    }
    let mut lines: Vec<String> = Vec::with_capacity(conflicts.len() + 1);
    let mut last = "";
    for conflict in conflicts {
        if conflict.manager != last {
            lines.push(format!("conflicts with {}:", conflict.manager));
            last = &conflict.manager;
        }
        lines.push(format!("- {}", conflict.path));
    }
    format!("Apply failed with {} conflicts: {}", conflicts.len(), lines.join("\n"))
}
