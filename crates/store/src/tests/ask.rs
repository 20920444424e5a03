//! The questions of the tests, short: the plainest request of each kind, to be filled in with `..`.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Endpoint;

use crate::etcd::wire::Connection;
use crate::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use crate::etcdserverpb::request_op::Request;
use crate::etcdserverpb::watch_request::RequestUnion;
use crate::etcdserverpb::{self as pb};

/// A connection to one server.
pub fn client(endpoint: &str) -> Connection {
    Connection::new(vec![Endpoint::from_shared(endpoint.to_owned()).unwrap()])
}

pub fn get(key: impl Into<Bytes>) -> pb::RangeRequest {
    pb::RangeRequest { key: key.into(), ..Default::default() }
}

/// A read of all keys with a prefix; of all keys at all when it is empty.
pub fn get_all(prefix: impl Into<Bytes>) -> pb::RangeRequest {
    let (key, range_end) = all(prefix);
    pb::RangeRequest { key, range_end, ..Default::default() }
}

pub fn put(key: impl Into<Bytes>, value: impl Into<Bytes>) -> pb::PutRequest {
    pb::PutRequest { key: key.into(), value: value.into(), ..Default::default() }
}

pub fn delete(key: impl Into<Bytes>) -> pb::DeleteRangeRequest {
    pb::DeleteRangeRequest { key: key.into(), ..Default::default() }
}

pub fn delete_all(prefix: impl Into<Bytes>) -> pb::DeleteRangeRequest {
    let (key, range_end) = all(prefix);
    pb::DeleteRangeRequest { key, range_end, ..Default::default() }
}

pub fn watch(key: impl Into<Bytes>) -> pb::WatchCreateRequest {
    pb::WatchCreateRequest { key: key.into(), ..Default::default() }
}

pub fn watch_all(prefix: impl Into<Bytes>) -> pb::WatchCreateRequest {
    let (key, range_end) = all(prefix);
    pb::WatchCreateRequest { key, range_end, ..Default::default() }
}

fn all(prefix: impl Into<Bytes>) -> (Bytes, Bytes) {
    let prefix = prefix.into();
    let mut end = prefix.to_vec();
    match end.last_mut() {
        Some(last) => *last += 1,
        None => return (Bytes::from_static(b"\0"), Bytes::from_static(b"\0")),
    }
    (prefix, end.into())
}

pub fn compare(key: &'static str, result: CompareResult, target: TargetUnion) -> pb::Compare {
    let kind = match &target {
        TargetUnion::Version(_) => CompareTarget::Version,
        TargetUnion::CreateRevision(_) => CompareTarget::Create,
        TargetUnion::ModRevision(_) => CompareTarget::Mod,
        TargetUnion::Value(_) => CompareTarget::Value,
        TargetUnion::Lease(_) => CompareTarget::Lease,
    };
    pb::Compare {
        key: key.into(),
        result: result.into(),
        target: kind.into(),
        target_union: Some(target),
        ..Default::default()
    }
}

/// The same comparison of every key with a prefix.
pub fn of_all(compare: pb::Compare) -> pb::Compare {
    pb::Compare { range_end: all(compare.key.clone()).1, ..compare }
}

macro_rules! operations {
    ($($request:ident: $message:ident),*) => {
        $(impl From<pb::$message> for pb::RequestOp {
            fn from(request: pb::$message) -> Self {
                pb::RequestOp { request: Some(Request::$request(request)) }
            }
        })*
    };
}

operations![
    RequestRange: RangeRequest, RequestPut: PutRequest, RequestDeleteRange: DeleteRangeRequest, RequestTxn: TxnRequest
];

/// A transaction without comparisons.
pub fn txn(success: impl IntoIterator<Item = pb::RequestOp>) -> pb::TxnRequest {
    pb::TxnRequest { success: success.into_iter().collect(), ..Default::default() }
}

pub fn creating(create: pb::WatchCreateRequest) -> RequestUnion {
    RequestUnion::CreateRequest(create)
}

pub fn cancelling(watch_id: i64) -> RequestUnion {
    RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id })
}

pub fn progress() -> RequestUnion {
    RequestUnion::ProgressRequest(pb::WatchProgressRequest {})
}

/// A watch stream, both ways.
pub struct Watches {
    questions: mpsc::Sender<pb::WatchRequest>,
    pub answers: Streaming<pb::WatchResponse>,
}

impl Watches {
    /// Opens a stream with a first watch on it.
    pub async fn open(client: &Connection, first: pb::WatchCreateRequest) -> Self {
        let (questions, asked) = mpsc::channel(128);
        let create = pb::WatchRequest { request_union: Some(creating(first)) };
        questions.send(create).await.unwrap();
        Watches { questions, answers: client.stream(ReceiverStream::new(asked)).await.unwrap() }
    }

    /// The same, once the watch is there.
    pub async fn created(client: &Connection, first: pb::WatchCreateRequest) -> Self {
        let mut watches = Self::open(client, first).await;
        assert!(watches.next().await.created);
        watches
    }

    async fn ask(&self, question: RequestUnion) {
        self.questions.send(pb::WatchRequest { request_union: Some(question) }).await.unwrap();
    }

    pub async fn add(&self, create: pb::WatchCreateRequest) {
        self.ask(creating(create)).await;
    }

    pub async fn cancel(&self, watch_id: i64) {
        self.ask(cancelling(watch_id)).await;
    }

    pub async fn request_progress(&self) {
        self.ask(progress()).await;
    }

    pub fn split(self) -> (mpsc::Sender<pb::WatchRequest>, Streaming<pb::WatchResponse>) {
        (self.questions, self.answers)
    }

    pub async fn next(&mut self) -> pb::WatchResponse {
        tokio::time::timeout(Duration::from_secs(10), self.answers.message()).await.unwrap().unwrap().unwrap()
    }
}
