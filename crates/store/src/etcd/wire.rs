//! Calls to etcd: which request goes to which method, over one connection to all members.
//!
//! A call goes to a member that is connected; one that is away is connected to again in the background. Nothing is tried
//! again here, and no answer is interpreted.

use futures::Stream;
use prost::Message;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{IntoRequest, Request, Status, Streaming};

use super::{MAX_ANSWER_BYTES, MAX_WATCH_BYTES};
use crate::etcdserverpb as pb;

/// A request that knows its method.
pub trait Call: Message + 'static {
    /// What comes back: once, or again and again where the method is a stream.
    type Answer: Message + Default + 'static;
    /// The path of the method.
    const METHOD: &'static str;
}

macro_rules! calls {
    ($($request:ident -> $answer:ident: $method:literal),* $(,)?) => {
        $(impl Call for pb::$request {
            type Answer = pb::$answer;
            const METHOD: &'static str = concat!("/etcdserverpb.", $method);
        })*
    };
}

calls![
    RangeRequest -> RangeResponse: "KV/Range",
    TxnRequest -> TxnResponse: "KV/Txn",
    PutRequest -> PutResponse: "KV/Put",
    CompactionRequest -> CompactionResponse: "KV/Compact",
    LeaseGrantRequest -> LeaseGrantResponse: "Lease/LeaseGrant",
    LeaseRevokeRequest -> LeaseRevokeResponse: "Lease/LeaseRevoke",
    LeaseTimeToLiveRequest -> LeaseTimeToLiveResponse: "Lease/LeaseTimeToLive",
    LeaseKeepAliveRequest -> LeaseKeepAliveResponse: "Lease/LeaseKeepAlive",
    WatchRequest -> WatchResponse: "Watch/Watch",
    StatusRequest -> StatusResponse: "Maintenance/Status",
];

// What only the tests ask.
#[cfg(test)]
calls![
    DeleteRangeRequest -> DeleteRangeResponse: "KV/DeleteRange",
    LeaseLeasesRequest -> LeaseLeasesResponse: "Lease/LeaseLeases",
];

/// A connection to some members. Cheap to clone.
#[derive(Clone)]
pub struct Connection {
    channel: Channel,
}

impl Connection {
    /// Connects in the background; calls wait for the first member.
    pub fn new(endpoints: Vec<Endpoint>) -> Self {
        Connection { channel: Channel::balance_list(endpoints.into_iter()) }
    }

    async fn ready(&self, largest: usize) -> Result<Grpc<Channel>, Status> {
        let mut grpc = Grpc::new(self.channel.clone()).max_decoding_message_size(largest);
        grpc.ready().await.map_err(|e| Status::from_error(Box::new(e)))?;
        Ok(grpc)
    }

    /// One question, one answer.
    pub async fn call<C: Call>(&self, request: C) -> Result<C::Answer, Status> {
        let mut grpc = self.ready(MAX_ANSWER_BYTES).await?;
        let method = PathAndQuery::from_static(C::METHOD);
        let codec = tonic_prost::ProstCodec::default();
        Ok(grpc.unary(led(request), method, codec).await?.into_inner())
    }

    /// Questions and answers, until either side ends.
    pub async fn stream<C: Call>(
        &self,
        requests: impl Stream<Item = C> + Send + 'static,
    ) -> Result<Streaming<C::Answer>, Status> {
        let mut grpc = self.ready(MAX_WATCH_BYTES).await?;
        let method = PathAndQuery::from_static(C::METHOD);
        let codec = tonic_prost::ProstCodec::default();
        Ok(grpc.streaming(led(requests), method, codec).await?.into_inner())
    }
}

/// A request for members that have a leader: one that lost it refuses instead of waiting, and ends its streams.
fn led<T>(request: impl IntoRequest<T>) -> Request<T> {
    let mut request = request.into_request();
    request.metadata_mut().insert("hasleader", AsciiMetadataValue::from_static("true"));
    request
}
