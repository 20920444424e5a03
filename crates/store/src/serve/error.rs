//! Refusals with the codes and the words etcd's clients know them by: they compare the text.

use tonic::{Code, Status};

use crate::StoreError;

macro_rules! refusals {
    ($($(#[$doc:meta])* $name:ident = $code:ident $text:literal;)*) => {
        $($(#[$doc])* pub fn $name() -> Status {
            Status::new(Code::$code, concat!("etcdserver: ", $text))
        })*
    };
}

refusals! {
    /// A request without a key.
    empty_key = InvalidArgument "key is not provided";
    /// A put that keeps the value or the lease of a key that does not exist.
    key_not_found = InvalidArgument "key not found";
    /// A put that keeps the value and brings one.
    value_provided = InvalidArgument "value is provided";
    /// A put that keeps the lease and brings one.
    lease_provided = InvalidArgument "lease is provided";
    /// Too many compares or operations.
    too_many_operations = InvalidArgument "too many operations in txn request";
    /// One key written twice in a transaction.
    duplicate_key = InvalidArgument "duplicate key given in txn request";
    /// An order that does not exist.
    invalid_sort = InvalidArgument "invalid sort option";
    /// A revision that was compacted.
    compacted = OutOfRange "mvcc: required revision has been compacted";
    /// A revision that has not happened.
    future_revision = OutOfRange "mvcc: required revision is a future revision";
    /// No room.
    no_space = ResourceExhausted "mvcc: database space exceeded";
    /// No such lease.
    lease_not_found = NotFound "requested lease not found";
    /// A lease of that name exists.
    lease_exists = FailedPrecondition "lease already exists";
    /// A lease longer than leases are.
    lease_too_long = OutOfRange "too large lease TTL";
    /// More bytes than a request may have.
    too_large = InvalidArgument "request is too large";
    /// More of something than the server holds at once.
    too_many_requests = ResourceExhausted "too many requests";
    /// A lone member has nobody to hand its lead to.
    bad_transferee = FailedPrecondition "bad leader transferee";
    /// The server goes down.
    stopped = Unavailable "server stopped";
}

/// An error of the store as etcd would say it; what etcd has no words for keeps its own.
pub fn status(error: StoreError) -> Status {
    match error {
        StoreError::Compacted { .. } => compacted(),
        StoreError::FutureRevision { .. } => future_revision(),
        StoreError::TooLarge { .. } => too_large(),
        StoreError::Full(_) => no_space(),
        StoreError::LeaseNotFound(_) => lease_not_found(),
        StoreError::Invalid(what) => Status::invalid_argument(format!("etcdserver: {what}")),
        StoreError::Corrupt(what) => Status::data_loss(format!("etcdserver: corrupt store: {what}")),
        StoreError::Closed => stopped(),
        StoreError::Unavailable(what) | StoreError::Io(what) => Status::unavailable(format!("etcdserver: {what}")),
    }
}
