//! What kinds do beyond their schema: one file per group or large kind, strategy, columns and rules together.
//!
//! A [`Kind`] is a strategy with its columns. Cells are made in the order of the columns' notation
//! ([`crate::builtin::columns`]).

use meta::Value;

use crate::strategy::Strategy;

/// A built-in kind's behaviour and its table's columns.
pub trait Kind: Strategy + Sized {
    const NEW: Self;
    const COLUMNS: &'static str;
}

/// Declares kinds: a name and its columns each.
macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident: $columns:literal;)*) => { $(
        $(#[$doc])*
        pub struct $name;

        impl $crate::kinds::Kind for $name {
            const NEW: Self = Self;
            const COLUMNS: &'static str = $columns;
        }
    )* };
}

pub mod admission;
pub mod apps;
pub mod autoscaling;
pub mod batch;
pub mod certificates;
pub mod core;
pub mod daemon_set;
pub mod discovery;
pub mod events;
pub mod extensions;
pub mod flowcontrol;
pub mod job_policies;
pub mod networking;
pub mod node;
pub mod pod;
pub mod pod_certificate;
pub mod pod_columns;
pub mod policy;
pub mod rbac;
pub mod resource;
pub mod scheduling;
pub mod service;
pub mod stateful_set;
pub mod storage;
pub mod volume;

kinds! {
    /// A kind whose schema says it all, printed by name and time.
    Plain: "Name|Created At";
}

impl Strategy for Plain {
    fn table_row(&self, object: &Value, _now: &str) -> Vec<Value> {
        vec![object["metadata"]["name"].clone(), object["metadata"]["creationTimestamp"].clone()]
    }
}
