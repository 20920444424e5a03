//! Claims, volumes and classes as the volume plugins ask about them.

use client::Change;

use crate::sources::Source;

/// What is known of storage.
#[derive(Default)]
pub struct Storage {}

impl Storage {
    /// Takes one change; whether it may matter.
    pub fn take(&mut self, _source: Source, _change: &Change) -> bool {
        true
    }
}
