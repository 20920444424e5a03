//! What can go wrong with state, by what the caller can do about it.

use thiserror::Error;

use crate::{LeaseId, Revision};

/// An error of the store.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum StoreError {
    /// The revision is older than the kept history: read anew.
    #[error("the required revision has been compacted (history starts at {compacted}, now at {current})")]
    Compacted {
        /// The oldest revision that can be read.
        compacted: Revision,
        /// The newest revision, or 0 when not known.
        current: Revision,
    },
    /// The revision has not happened yet.
    #[error("the required revision {requested} is a future revision (now at {current})")]
    FutureRevision {
        /// What was asked for.
        requested: Revision,
        /// The newest revision, or 0 when not known.
        current: Revision,
    },
    /// The request is larger than the store takes.
    #[error("request is too large: {size} bytes, the limit is {limit}")]
    TooLarge {
        /// The keys and values of the request, in bytes.
        size: usize,
        /// The limit, in bytes.
        limit: usize,
    },
    /// No room: the database limit or the disk. Deletes may still work.
    #[error("no space left in the store: {0}")]
    Full(String),
    /// The request makes no sense: an empty key, a key written twice, too many operations.
    #[error("invalid request: {0}")]
    Invalid(String),
    /// There is no such lease, or it has ended.
    #[error("lease {0} not found")]
    LeaseNotFound(LeaseId),
    /// What is on disk is not what was written. Names the file and the offset.
    #[error("the store is corrupt: {0}")]
    Corrupt(String),
    /// The store cannot answer now; whether a write happened is unknown.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
    /// The operating system refused.
    #[error("{0}")]
    Io(String),
}

impl StoreError {
    /// An operating system error, with what was being done and to what.
    pub(crate) fn io(doing: impl std::fmt::Display, error: &std::io::Error) -> Self {
        StoreError::Io(format!("{doing}: {error}"))
    }
}
