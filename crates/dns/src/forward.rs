//! Questions about other names, asked of other servers.
//!
//! One socket a question, so that each has a port nobody can guess; over TCP when the answer does not fit. A server that
//! does not answer in time, or says that it cannot, is passed over for the next.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use crate::metrics::Metrics;
use crate::upstreams::Servers;

/// For one server; clients wait about five seconds for us in all.
const SERVER_TIMEOUT: Duration = Duration::from_secs(2);
const PACKET_BYTES: usize = 4096;

/// The first answer of the servers, in turn; when none has one, what the last one says instead.
pub async fn ask(servers: &Servers, name: &Name, kind: RecordType, metrics: &Metrics) -> io::Result<Message> {
    let mut last = Err(io::Error::other("no server to ask"));
    for server in servers.in_turn() {
        let began = Instant::now();
        let said = tokio::time::timeout(SERVER_TIMEOUT, ask_one(server, name, kind)).await;
        let code = said.as_ref().ok().and_then(|said| said.as_ref().ok()).map(|said| said.metadata.response_code);
        metrics.asked(server, code, began.elapsed());
        last = match said {
            Ok(Ok(message)) if knows(&message) => {
                servers.answered(server);
                return Ok(message);
            }
            Ok(said) => said,
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, format!("{server} did not answer"))),
        };
    }
    last
}

/// Whether a server has something to say about the name, and be it that there is none.
fn knows(message: &Message) -> bool {
    matches!(message.metadata.response_code, ResponseCode::NoError | ResponseCode::NXDomain)
}

async fn ask_one(server: SocketAddr, name: &Name, kind: RecordType) -> io::Result<Message> {
    let unspecified: std::net::IpAddr =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((unspecified, 0)).await?;
    socket.connect(server).await?;
    let mut request = Message::new(rand::random(), MessageType::Query, OpCode::Query);
    request.metadata.recursion_desired = true;
    request.add_query(Query::query(name.clone(), kind));
    let mut edns = Edns::new();
    edns.set_max_payload(1232).set_version(0);
    request.set_edns(edns);
    let packet = request.to_vec().map_err(io::Error::other)?;
    socket.send(&packet).await?;
    let mut buffer = vec![0; PACKET_BYTES];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // Not ours, or not whole: somebody may be guessing. The right one may still come.
        let Ok(message) = Message::from_vec(&buffer[..length]) else { continue };
        if !answers(&request, &message) {
            continue;
        }
        return if message.metadata.truncation { ask_over_tcp(server, &request, &packet).await } else { Ok(message) };
    }
}

async fn ask_over_tcp(server: SocketAddr, request: &Message, packet: &[u8]) -> io::Result<Message> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(packet.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), packet].concat()).await?;
    let length = stream.read_u16().await?;
    let mut buffer = vec![0; usize::from(length)];
    stream.read_exact(&mut buffer).await?;
    let message = Message::from_vec(&buffer).map_err(io::Error::other)?;
    if answers(request, &message) {
        Ok(message)
    } else {
        Err(io::Error::other(format!("{server} answered another question")))
    }
}

fn answers(request: &Message, message: &Message) -> bool {
    message.metadata.id == request.metadata.id
        && message.metadata.message_type == MessageType::Response
        && message.queries == request.queries
}
