//! One connection: gRPC on HTTP/2.
//!
//! Writes are worked on in the connection's own task, all at once: those that one sync has made durable are answered with one
//! wake-up and one write to the socket. Everything else - reads, which may be large, and streams - has a task of its own and
//! goes through the generated services. Guarantees: a client that does not read holds one answer a stream, and a silent
//! connection is probed. Knows nothing of what is asked but the paths of the two writes.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll, ready};

use bytes::{BufMut, Bytes, BytesMut};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http_body::{Body, Frame};
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::codegen::{BoxFuture, Service, http};
use tonic::{Code, Response, Status};

use super::calls::Call;
use super::{Served, limits};
use crate::etcdserverpb::cluster_server::ClusterServer;
use crate::etcdserverpb::kv_server::{Kv, KvServer};
use crate::etcdserverpb::lease_server::LeaseServer;
use crate::etcdserverpb::maintenance_server::MaintenanceServer;
use crate::etcdserverpb::watch_server::WatchServer;

/// What a message is preceded by: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// The generated services.
#[derive(Clone)]
pub struct Services {
    served: Arc<Served>,
    largest: usize,
    kv: KvServer<Arc<Served>>,
    watch: WatchServer<Arc<Served>>,
    lease: LeaseServer<Arc<Served>>,
    maintenance: MaintenanceServer<Arc<Served>>,
    cluster: ClusterServer<Arc<Served>>,
}

impl Services {
    pub fn new(served: Arc<Served>) -> Self {
        let largest = served.store.options().max_request_bytes + limits::MESSAGE_OVERHEAD_BYTES;
        Services {
            largest,
            kv: KvServer::new(served.clone()).max_decoding_message_size(largest),
            watch: WatchServer::new(served.clone()).max_decoding_message_size(largest),
            lease: LeaseServer::new(served.clone()).max_decoding_message_size(largest),
            maintenance: MaintenanceServer::new(served.clone()).max_decoding_message_size(largest),
            cluster: ClusterServer::new(served.clone()).max_decoding_message_size(largest),
            served,
        }
    }

    pub fn served(&self) -> &Arc<Served> {
        &self.served
    }

    /// Hands a request to the service it names.
    fn call(&mut self, request: http::Request<Incoming>) -> BoxFuture<http::Response<tonic::body::Body>, Infallible> {
        match request.uri().path().split('/').nth(1) {
            Some("etcdserverpb.KV") => self.kv.call(request),
            Some("etcdserverpb.Watch") => self.watch.call(request),
            Some("etcdserverpb.Lease") => self.lease.call(request),
            Some("etcdserverpb.Maintenance") => self.maintenance.call(request),
            Some("etcdserverpb.Cluster") if request.uri().path().ends_with("/MemberList") => self.cluster.call(request),
            _ => {
                let path = request.uri().path();
                let why = match path.split('/').nth(1) {
                    Some("etcdserverpb.Auth") => {
                        "there are no users and roles: client certificates decide who is served"
                    }
                    Some("etcdserverpb.Cluster") => "the store has one member, and takes and loses none",
                    Some("v3lockpb.Lock" | "v3electionpb.Election") => "locks and elections are the clients' business",
                    _ => "unknown method",
                };
                let refused = Status::unimplemented(format!("etcdserver: {why}: {path}"));
                Box::pin(std::future::ready(Ok(refused.into_http())))
            }
        }
    }
}

/// Serves a connection until it ends, or, once the server stops, until what is under way has ended.
pub async fn serve(io: impl AsyncRead + AsyncWrite + Unpin, services: Services) -> Result<(), h2::Error> {
    let handshake = h2::server::Builder::new()
        .initial_window_size(limits::STREAM_WINDOW_BYTES)
        .initial_connection_window_size(limits::CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(limits::MAX_STREAMS)
        .max_header_list_size(limits::MAX_HEADER_BYTES)
        .handshake(io);
    let Ok(connection) = tokio::time::timeout(limits::HANDSHAKE_TIMEOUT, handshake).await else { return Ok(()) };
    let mut connection = connection?;
    let served = services.served.clone();
    let mut stopped = pin!(served.stopped());
    let mut stopping = false;
    let mut probing = pin!(probe(connection.ping_pong()));
    let mut writes = FuturesUnordered::new();
    loop {
        tokio::select! {
            biased;
            // All that are done are answered before the connection is looked at, which sends the answers.
            Some(()) = writes.next(), if !writes.is_empty() => {}
            accepted = connection.accept() => match accepted {
                Some(request) => {
                    let (request, respond) = request?;
                    match request.uri().path() {
                        "/etcdserverpb.KV/Put" | "/etcdserverpb.KV/Txn" => {
                            writes.push(write(request, respond, services.served.clone(), services.largest));
                        }
                        _ => _ = tokio::spawn(one(request, respond, services.clone())),
                    }
                }
                None => return Ok(()),
            },
            () = &mut stopped, if !stopping => {
                stopping = true;
                connection.graceful_shutdown();
            }
            () = &mut probing => return Ok(()),
        }
    }
}

/// Asks the other end for a sign of life from time to time; ends when none comes.
async fn probe(ping: Option<h2::PingPong>) {
    let Some(mut ping) = ping else { return std::future::pending().await };
    loop {
        tokio::time::sleep(limits::PROBE_INTERVAL).await;
        match tokio::time::timeout(limits::PROBE_TIMEOUT, ping.ping(h2::Ping::opaque())).await {
            Ok(Ok(_)) => {}
            _ => return,
        }
    }
}

/// A put or a transaction. An answer that cannot be sent has nobody waiting for it.
async fn write(request: http::Request<RecvStream>, respond: SendResponse<Bytes>, served: Arc<Served>, largest: usize) {
    let mut call = Call::start(&served.calls, request.uri().path());
    let put = request.uri().path().ends_with("/Put");
    _ = match message(request.into_body(), largest).await {
        Err(status) => refuse(respond, status, &mut call),
        Ok(message) if put => answer(respond, with(message, |request| served.put(request)).await, &mut call),
        Ok(message) => answer(respond, with(message, |request| served.txn(request)).await, &mut call),
    };
}

async fn with<Q: Message + Default, A, F: Future<Output = Result<Response<A>, Status>>>(
    message: Bytes,
    work: impl FnOnce(tonic::Request<Q>) -> F,
) -> Result<A, Status> {
    let request = Q::decode(message).map_err(|error| Status::internal(error.to_string()))?;
    Ok(work(tonic::Request::new(request)).await?.into_inner())
}

/// The one message of a request.
async fn message(mut body: RecvStream, largest: usize) -> Result<Bytes, Status> {
    let broken = |error: h2::Error| Status::cancelled(error.to_string());
    let mut all = Bytes::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk.map_err(broken)?;
        body.flow_control().release_capacity(chunk.len()).map_err(broken)?;
        if all.is_empty() {
            all = chunk;
        } else {
            let mut longer = BytesMut::from(all);
            longer.extend_from_slice(&chunk);
            all = longer.freeze();
        }
        if let Some(&[compressed, a, b, c, d]) = all.first_chunk::<PREFIX>() {
            let length = u32::from_be_bytes([a, b, c, d]) as usize;
            if compressed != 0 {
                return Err(Status::unimplemented("compressed messages are not supported"));
            }
            if length > largest {
                return Err(Status::out_of_range(format!(
                    "Error, decoded message length too large: found {length} bytes, the limit is: {largest} bytes"
                )));
            }
            if all.len() > PREFIX + length {
                return Err(Status::internal("more than one message"));
            }
        }
    }
    match all.first_chunk::<PREFIX>() {
        Some(&[_, a, b, c, d]) if u32::from_be_bytes([a, b, c, d]) as usize == all.len() - PREFIX => {
            Ok(all.split_off(PREFIX))
        }
        _ => Err(Status::internal("the message ends early")),
    }
}

fn head() -> http::Response<()> {
    let mut head = http::Response::new(());
    let kind = http::HeaderValue::from_static("application/grpc");
    head.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    head
}

/// The trailers of an answer that is no refusal.
static WELL: LazyLock<http::HeaderMap> = LazyLock::new(|| {
    let status = http::HeaderName::from_static("grpc-status");
    [(status, http::HeaderValue::from_static("0"))].into_iter().collect()
});

fn answer<A: Message>(
    mut respond: SendResponse<Bytes>,
    answer: Result<A, Status>,
    call: &mut Call,
) -> Result<(), h2::Error> {
    let answer = match answer {
        Ok(answer) => answer,
        Err(status) => return refuse(respond, status, call),
    };
    call.ends(Code::Ok);
    let length = answer.encoded_len();
    let mut message = BytesMut::with_capacity(PREFIX + length);
    message.put_u8(0);
    // Far below 4 GiB.
    message.put_u32(length as u32);
    answer.encode_raw(&mut message);
    let mut stream = respond.send_response(head(), false)?;
    stream.send_data(message.freeze(), false)?;
    stream.send_trailers(WELL.clone())
}

fn refuse(mut respond: SendResponse<Bytes>, status: Status, call: &mut Call) -> Result<(), h2::Error> {
    call.ends(status.code());
    respond.send_response(status.into_http(), true).map(|_| ())
}

/// A request that has its own task.
async fn one(request: http::Request<RecvStream>, mut respond: SendResponse<Bytes>, mut services: Services) {
    let mut counted = Call::start(&services.served.calls, request.uri().path());
    let call = services.call(request.map(Incoming));
    let response = tokio::select! {
        Ok(response) = call => response,
        // Nobody waits any more.
        _ = poll_fn(|cx| respond.poll_reset(cx)) => return,
        else => return,
    };
    // What goes wrong here is that the client or the connection has gone.
    if let Err(error) = send(respond, response, &mut counted).await {
        tracing::debug!(%error, "an answer of the etcd API was not taken");
    }
}

/// How a call ends, by its last headers.
fn code(headers: &http::HeaderMap) -> Code {
    headers.get("grpc-status").map_or(Code::Unknown, |code| Code::from_bytes(code.as_bytes()))
}

async fn send(
    mut respond: SendResponse<Bytes>,
    response: http::Response<tonic::body::Body>,
    call: &mut Call,
) -> Result<(), h2::Error> {
    let (head, mut body) = response.into_parts();
    let head = http::Response::from_parts(head, ());
    if body.is_end_stream() {
        call.ends(code(head.headers()));
        return respond.send_response(head, true).map(|_| ());
    }
    let mut stream = respond.send_response(head, false)?;
    loop {
        let frame = tokio::select! {
            frame = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)) => frame,
            reset = poll_fn(|cx| stream.poll_reset(cx)) => return reset.map(|_| ()),
        };
        let frame = match frame {
            Some(Ok(frame)) => frame,
            Some(Err(status)) => {
                call.ends(status.code());
                return stream.send_trailers(status.into_http::<()>().into_parts().0.headers);
            }
            None => return stream.send_data(Bytes::new(), true),
        };
        match frame.into_data() {
            Ok(data) => send_data(&mut stream, data).await?,
            Err(frame) => {
                if let Ok(trailers) = frame.into_trailers() {
                    call.ends(code(&trailers));
                    return stream.send_trailers(trailers);
                }
            }
        }
    }
}

/// Sends as the client takes it.
async fn send_data(stream: &mut SendStream<Bytes>, mut data: Bytes) -> Result<(), h2::Error> {
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        match poll_fn(|cx| stream.poll_capacity(cx)).await {
            Some(capacity) => {
                let some = capacity?.min(data.len());
                stream.send_data(data.split_to(some), false)?;
            }
            // The stream is closed; sending says why.
            None => return stream.send_data(data, false),
        }
    }
    Ok(())
}

/// A request's body as the generated services take it.
struct Incoming(RecvStream);

impl Body for Incoming {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        if let Some(data) = ready!(self.0.poll_data(cx)) {
            let data = data.and_then(|data| {
                self.0.flow_control().release_capacity(data.len())?;
                Ok(Frame::data(data))
            });
            return Poll::Ready(Some(data));
        }
        let trailers = ready!(self.0.poll_trailers(cx));
        Poll::Ready(trailers.map(|trailers| trailers.map(Frame::trailers)).transpose())
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }
}
