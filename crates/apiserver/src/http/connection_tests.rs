//! Many requests on one connection: slow ones, large ones both ways, ones given up, and the end of it all.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::{PrivateKeyDer, ServerName};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::http::full;

/// More than what TLS, HTTP/2's windows and the socket hold together.
const LARGE: usize = 5_000_000;

struct Server {
    /// Requests for `/slow` are answered as permits are given.
    permits: Arc<Semaphore>,
    /// Requests under way.
    open: Arc<()>,
    cancel: CancellationToken,
    serving: tokio::task::JoinHandle<()>,
}

async fn answer(request: Request<Incoming>, permits: Arc<Semaphore>, open: Arc<()>) -> Response<Body> {
    let _open = open;
    let (head, body) = request.into_parts();
    let said = body.collect().await.map(|said| said.to_bytes()).unwrap_or_default();
    Response::new(match head.uri.path() {
        "/slow" => {
            permits.acquire().await.expect("open").forget();
            full("slow")
        }
        "/large" => full(vec![b'x'; LARGE]),
        "/count" => full(said.len().to_string()),
        path => full(path.to_string()),
    })
}

/// A server and a client on one connection.
async fn connected() -> (Server, SendRequest<Full<Bytes>>) {
    let certified = rcgen::generate_simple_self_signed(vec!["localhost".into()]).expect("a certificate");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der()).expect("a key");
    let mut ours = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key)
        .expect("a configuration");
    ours.alpn_protocols = vec![b"h2".to_vec()];
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certified.cert.der().clone()).expect("a root");
    let mut theirs = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    theirs.alpn_protocols = vec![b"h2".to_vec()];

    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let (permits, open, cancel) = (Arc::new(Semaphore::new(0)), Arc::new(()), CancellationToken::new());
    let shared = (permits.clone(), open.clone(), cancel.clone());
    let serving = tokio::spawn(async move {
        let (permits, open, cancel) = shared;
        let (stream, _) = listener.accept().await.expect("a connection");
        stream.set_nodelay(true).expect("an option");
        let stream = tokio_rustls::TlsAcceptor::from(Arc::new(ours)).accept(stream).await.expect("a handshake");
        let service = hyper::service::service_fn(move |request| {
            let answer = answer(request, permits.clone(), open.clone());
            Box::pin(async move { Ok::<_, Infallible>(answer.await) })
        });
        serve(stream, service, cancel).await;
    });
    let stream = TcpStream::connect(address).await.expect("a connection");
    stream.set_nodelay(true).expect("an option");
    let name = ServerName::try_from("localhost").expect("a name");
    let stream = tokio_rustls::TlsConnector::from(Arc::new(theirs)).connect(name, stream).await.expect("a handshake");
    let (client, driver) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("HTTP/2");
    tokio::spawn(driver);
    (Server { permits, open, cancel, serving }, client)
}

async fn ask(mut client: SendRequest<Full<Bytes>>, path: &str, body: impl Into<Bytes>) -> hyper::Result<Bytes> {
    let request = Request::post(format!("https://localhost{path}")).body(Full::new(body.into())).expect("a request");
    Ok(client.send_request(request).await?.into_body().collect().await?.to_bytes())
}

#[tokio::test]
async fn the_quick_pass_the_slow() {
    let (server, client) = connected().await;
    let slow: Vec<_> = (0..3).map(|_| tokio::spawn(ask(client.clone(), "/slow", ""))).collect();
    for n in 0..50 {
        let asked = (0..20).map(|of| ask(client.clone(), if of % 2 == 0 { "/even" } else { "/odd" }, vec![0; n]));
        let said = futures::future::try_join_all(asked).await.expect("answers");
        assert!(said.iter().enumerate().all(|(of, said)| said == ["/even", "/odd"][of % 2]), "{said:?}");
    }
    server.permits.add_permits(3);
    for slow in slow {
        assert_eq!(slow.await.expect("no panic").expect("an answer"), "slow");
    }
}

#[tokio::test]
async fn large_bodies_both_ways_at_once() {
    let (_server, client) = connected().await;
    let (out, back, small) = tokio::join!(
        ask(client.clone(), "/count", vec![0; LARGE]),
        ask(client.clone(), "/large", ""),
        ask(client.clone(), "/small", ""),
    );
    assert_eq!(out.expect("an answer"), LARGE.to_string());
    assert_eq!(back.expect("an answer").len(), LARGE);
    assert_eq!(small.expect("an answer"), "/small");
}

#[tokio::test]
async fn what_is_given_up_ends() {
    let (server, client) = connected().await;
    let idle = Arc::strong_count(&server.open);
    let given_up = tokio::spawn(ask(client.clone(), "/slow", ""));
    while Arc::strong_count(&server.open) == idle {
        tokio::task::yield_now().await;
    }
    given_up.abort();
    while Arc::strong_count(&server.open) > idle {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(ask(client, "/after", "").await.expect("an answer"), "/after");
}

#[tokio::test]
async fn what_was_asked_is_answered_before_the_end() {
    let (server, client) = connected().await;
    let idle = Arc::strong_count(&server.open);
    let slow = tokio::spawn(ask(client.clone(), "/slow", ""));
    while Arc::strong_count(&server.open) == idle {
        tokio::task::yield_now().await;
    }
    server.cancel.cancel();
    server.permits.add_permits(1);
    assert_eq!(slow.await.expect("no panic").expect("an answer"), "slow");
    server.serving.await.expect("no panic");
    assert!(ask(client, "/late", "").await.is_err());
}
