//! SPDY/3.1 framing, as old kubectl and client-go speak it for exec, attach and port forwarding.
//!
//! Guarantees: memory is bounded (frame size, streams, header size, a bounded queue a stream); a client that does not
//! read holds up only its own connection. Sending is not limited by windows, because the clients in question never
//! open them; received data is acknowledged for those that do.

use std::collections::HashMap;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use super::channel::{Outgoing, Output};

/// Largest frame taken, in bytes; clients send 32 KiB at most.
const MAX_FRAME: usize = 1 << 20;
/// Largest header block after decompression, in bytes.
const MAX_HEADERS: usize = 16 * 1024;
/// Most streams open at once on a connection.
const MAX_STREAMS: usize = 1024;
/// Received pieces that wait for their consumer, a stream.
const STREAM_BACKLOG: usize = 16;
/// Pieces that wait to be written, a connection.
const WRITE_BACKLOG: usize = 32;
/// Largest data frame sent, in bytes.
const MAX_DATA: usize = 32 * 1024;

const VERSION: u16 = 0x8003;
const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const WINDOW_UPDATE: u16 = 9;
const FIN: u8 = 1;
const REFUSED_STREAM: u32 = 3;

/// The words that both sides' header compression starts from, each preceded by its length in four bytes ...
const WORDS: [&str; 65] = [
    "options",
    "head",
    "post",
    "put",
    "delete",
    "trace",
    "accept",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "accept-ranges",
    "age",
    "allow",
    "authorization",
    "cache-control",
    "connection",
    "content-base",
    "content-encoding",
    "content-language",
    "content-length",
    "content-location",
    "content-md5",
    "content-range",
    "content-type",
    "date",
    "etag",
    "expect",
    "expires",
    "from",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "last-modified",
    "location",
    "max-forwards",
    "pragma",
    "proxy-authenticate",
    "proxy-authorization",
    "range",
    "referer",
    "retry-after",
    "server",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "vary",
    "via",
    "warning",
    "www-authenticate",
    "method",
    "get",
    "status",
    "200 OK",
    "version",
    "HTTP/1.1",
    "url",
    "public",
    "set-cookie",
    "keep-alive",
    "origin",
];
/// ... and the text after them.
const TAIL: [&str; 6] = [
    "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505203 No",
    "n-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403",
    " Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Fe",
    "b Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunke",
    "d,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,text/",
    "javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.",
];

fn dictionary() -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1423);
    for word in WORDS {
        bytes.put_u32(word.len() as u32);
        bytes.extend_from_slice(word.as_bytes());
    }
    TAIL.iter().for_each(|part| bytes.extend_from_slice(part.as_bytes()));
    bytes
}

/// A stream that the client has opened.
pub struct Stream {
    /// Its headers, names in lower case.
    pub headers: HashMap<String, String>,
    /// What the client sends; ends when the client half-closes.
    pub input: mpsc::Receiver<Bytes>,
    /// The way back.
    pub output: Output,
}

/// The client broke the protocol.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// The connection failed.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// What came is no SPDY/3.1.
    #[error("SPDY: {0}")]
    Protocol(&'static str),
}

/// Serves a connection: opened streams arrive at the returned receiver, which ends with the connection. Both halves
/// run as tasks of their own until the client or `Outgoing::Close` ends them.
pub fn serve<S>(connection: S) -> (mpsc::Receiver<Stream>, mpsc::Sender<Outgoing>)
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (read, write) = tokio::io::split(connection);
    let (accepted, streams) = mpsc::channel(STREAM_BACKLOG);
    let (sender, outgoing) = mpsc::channel(WRITE_BACKLOG);
    tokio::spawn(write_frames(write, outgoing));
    let own = sender.clone();
    tokio::spawn(async move {
        let mut reader = Reader { streams: HashMap::new(), accepted, sender: own, inflate: Decompress::new(true) };
        if let Err(error) = reader.run(read).await {
            tracing::debug!(%error, "a streaming connection ended");
        }
    });
    (streams, sender)
}

struct Reader {
    streams: HashMap<u32, mpsc::Sender<Bytes>>,
    accepted: mpsc::Sender<Stream>,
    sender: mpsc::Sender<Outgoing>,
    inflate: Decompress,
}

impl Reader {
    async fn run(&mut self, mut read: impl AsyncRead + Unpin) -> Result<(), Broken> {
        loop {
            let mut head = [0u8; 8];
            if let Err(e) = read.read_exact(&mut head).await {
                return if e.kind() == std::io::ErrorKind::UnexpectedEof { Ok(()) } else { Err(e.into()) };
            }
            let first = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
            let length = u32::from_be_bytes([0, head[5], head[6], head[7]]) as usize;
            if length > MAX_FRAME {
                return Err(Broken::Protocol("the frame is too large"));
            }
            let mut body = vec![0u8; length];
            read.read_exact(&mut body).await?;
            let flags = head[4];
            if first & 0x8000_0000 == 0 {
                self.data(first, flags, body.into()).await;
                continue;
            }
            if (first >> 16) as u16 != VERSION {
                return Err(Broken::Protocol("only version 3 is spoken"));
            }
            if !self.control(first as u16, flags, body.into()).await? {
                return Ok(());
            }
        }
    }

    async fn send(&self, outgoing: Outgoing) {
        // A writer that is gone has ended the connection; the reader will see that.
        let _ = self.sender.send(outgoing).await;
    }

    async fn data(&mut self, id: u32, flags: u8, data: Bytes) {
        if !data.is_empty() {
            let length = data.len() as u32;
            if let Some(stream) = self.streams.get(&id) {
                // A consumer that is gone needs no more.
                let _ = stream.send(data).await;
            }
            for id in [0, id] {
                let mut update = control(WINDOW_UPDATE, 0, 8);
                update.put_u32(id);
                update.put_u32(length);
                self.send(Outgoing::Raw(update.freeze())).await;
            }
        }
        if flags & FIN != 0 {
            self.streams.remove(&id);
        }
    }

    async fn control(&mut self, kind: u16, flags: u8, mut body: Bytes) -> Result<bool, Broken> {
        match kind {
            SYN_STREAM => {
                if body.len() < 10 {
                    return Err(Broken::Protocol("a short SYN_STREAM"));
                }
                let id = body.get_u32() & 0x7fff_ffff;
                body.advance(6);
                let headers = self.headers(&body)?;
                self.streams.retain(|_, s| !s.is_closed());
                if self.streams.len() >= MAX_STREAMS || self.streams.contains_key(&id) {
                    let mut refused = control(RST_STREAM, 0, 8);
                    refused.put_u32(id);
                    refused.put_u32(REFUSED_STREAM);
                    self.send(Outgoing::Raw(refused.freeze())).await;
                    return Ok(true);
                }
                let (sender, input) = mpsc::channel(STREAM_BACKLOG);
                if flags & FIN == 0 {
                    self.streams.insert(id, sender);
                }
                self.send(Outgoing::Reply(id)).await;
                let output = Output::new(id, self.sender.clone());
                // Nobody accepts any more: the session is ending.
                let _ = self.accepted.send(Stream { headers, input, output }).await;
            }
            RST_STREAM if body.len() >= 4 => {
                self.streams.remove(&(body.get_u32() & 0x7fff_ffff));
            }
            PING if body.len() == 4 => {
                let mut pong = control(PING, 0, 4);
                pong.put(body);
                self.send(Outgoing::Raw(pong.freeze())).await;
            }
            GOAWAY => return Ok(false),
            SYN_REPLY | 8 if body.len() >= 4 => {
                // Not expected, but the compression's state must keep up.
                self.headers(&body[4..])?;
            }
            _ => {}
        }
        Ok(true)
    }

    /// Decompresses a name/value block.
    fn headers(&mut self, compressed: &[u8]) -> Result<HashMap<String, String>, Broken> {
        let mut plain = vec![0u8; MAX_HEADERS];
        let (start_in, start_out) = (self.inflate.total_in(), self.inflate.total_out());
        let mut dictionary_given = false;
        loop {
            let read = (self.inflate.total_in() - start_in) as usize;
            let written = (self.inflate.total_out() - start_out) as usize;
            let status = self.inflate.decompress(&compressed[read..], &mut plain[written..], FlushDecompress::Sync);
            match status {
                Err(e) if e.needs_dictionary().is_some() && !dictionary_given => {
                    dictionary_given = true;
                    self.inflate.set_dictionary(&dictionary()).map_err(|_| Broken::Protocol("a wrong dictionary"))?;
                }
                Err(_) => return Err(Broken::Protocol("headers cannot be decompressed")),
                Ok(Status::Ok) if (self.inflate.total_in() - start_in) as usize == compressed.len() => break,
                Ok(Status::Ok) if (self.inflate.total_out() - start_out) as usize == plain.len() => {
                    return Err(Broken::Protocol("headers are too large"));
                }
                Ok(Status::Ok) => {}
                Ok(_) => break,
            }
        }
        plain.truncate((self.inflate.total_out() - start_out) as usize);
        parse_headers(&plain).ok_or(Broken::Protocol("malformed headers"))
    }
}

fn parse_headers(mut plain: &[u8]) -> Option<HashMap<String, String>> {
    fn text(plain: &mut &[u8]) -> Option<String> {
        if plain.len() < 4 {
            return None;
        }
        let length = plain.get_u32() as usize;
        let (text, rest) = plain.split_at_checked(length)?;
        *plain = rest;
        Some(String::from_utf8_lossy(text).into_owned())
    }
    if plain.len() < 4 {
        return None;
    }
    let count = plain.get_u32();
    let mut headers = HashMap::new();
    for _ in 0..count {
        let (name, value) = (text(&mut plain)?, text(&mut plain)?);
        headers.insert(name.to_lowercase(), value);
    }
    Some(headers)
}

/// The head of a control frame.
fn control(kind: u16, flags: u8, length: usize) -> BytesMut {
    let mut frame = BytesMut::with_capacity(8 + length);
    frame.put_u16(VERSION);
    frame.put_u16(kind);
    frame.put_u32((u32::from(flags) << 24) | length as u32);
    frame
}

fn data_frame(id: u32, flags: u8, data: &[u8]) -> BytesMut {
    let mut frame = BytesMut::with_capacity(8 + data.len());
    frame.put_u32(id);
    frame.put_u32((u32::from(flags) << 24) | data.len() as u32);
    frame.put_slice(data);
    frame
}

/// Compresses an empty name/value block: all that a reply needs to say.
fn empty_headers(deflate: &mut Compress) -> std::io::Result<Vec<u8>> {
    let mut out = Vec::with_capacity(256);
    deflate.compress_vec(&0u32.to_be_bytes(), &mut out, FlushCompress::Sync).map_err(std::io::Error::other)?;
    Ok(out)
}

async fn write_frames(mut write: impl AsyncWrite + Unpin, mut outgoing: mpsc::Receiver<Outgoing>) {
    let mut deflate = Compress::new(Compression::fast(), true);
    if deflate.set_dictionary(&dictionary()).is_err() {
        return;
    }
    while let Some(next) = outgoing.recv().await {
        let written = match next {
            Outgoing::Data(id, data) => {
                let mut done = Ok(());
                for piece in data.chunks(MAX_DATA) {
                    done = write.write_all(&data_frame(id, 0, piece)).await;
                    if done.is_err() {
                        break;
                    }
                }
                done
            }
            Outgoing::Finish(id) => write.write_all(&data_frame(id, FIN, &[])).await,
            Outgoing::Reply(id) => match empty_headers(&mut deflate) {
                Ok(block) => {
                    let mut frame = control(SYN_REPLY, 0, 4 + block.len());
                    frame.put_u32(id);
                    frame.put_slice(&block);
                    write.write_all(&frame).await
                }
                Err(e) => Err(e),
            },
            Outgoing::Raw(frame) => write.write_all(&frame).await,
            Outgoing::Close => {
                let mut frame = control(GOAWAY, 0, 8);
                frame.put_u64(0);
                // Whether it still gets there does not matter: the end is the message.
                let _ = write.write_all(&frame).await;
                break;
            }
        };
        let flushed = match written {
            Ok(()) if outgoing.is_empty() => write.flush().await,
            other => other,
        };
        if flushed.is_err() {
            break;
        }
    }
    let _ = write.shutdown().await;
}

/// How a client opens a stream, its compression begun or gone on with.
#[cfg(test)]
fn syn_stream(deflate: &mut Compress, id: u32, headers: &[(&str, &str)]) -> BytesMut {
    let mut plain = BytesMut::new();
    plain.put_u32(headers.len() as u32);
    for (name, value) in headers {
        for text in [name, value] {
            plain.put_u32(text.len() as u32);
            plain.put_slice(text.as_bytes());
        }
    }
    let mut block = Vec::with_capacity(1024);
    deflate.compress_vec(&plain, &mut block, FlushCompress::Sync).unwrap();
    let mut frame = control(SYN_STREAM, 0, 10 + block.len());
    frame.put_u32(id);
    frame.put_slice(&[0; 6]);
    frame.put_slice(&block);
    frame
}

/// The first frame of a connection.
#[cfg(test)]
pub(super) fn opening(id: u32, headers: &[(&str, &str)]) -> Vec<u8> {
    let mut deflate = Compress::new(Compression::default(), true);
    deflate.set_dictionary(&dictionary()).unwrap();
    syn_stream(&mut deflate, id, headers).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dictionary_is_the_one_of_the_protocol() {
        let bytes = dictionary();
        assert_eq!(bytes.len(), 1423);
        // Adler-32, which a client's stream names as the dictionary it needs.
        let (a, b) = bytes.iter().fold((1u32, 0u32), |(a, b), &byte| {
            let a = (a + u32::from(byte)) % 65521;
            (a, (b + a) % 65521)
        });
        assert_eq!((b << 16) | a, 0xe3c6_a7c2);
    }

    #[tokio::test]
    async fn streams_open_carry_and_close() {
        let (client, server) = tokio::io::duplex(1 << 20);
        let (mut streams, sender) = serve(server);
        let (mut from_server, mut to_server) = tokio::io::split(client);
        let mut deflate = Compress::new(Compression::default(), true);
        deflate.set_dictionary(&dictionary()).unwrap();
        for (id, kind) in [(1, "error"), (3, "stdin")] {
            to_server.write_all(&syn_stream(&mut deflate, id, &[("streamType", kind)])).await.unwrap();
        }
        to_server.write_all(&data_frame(3, 0, b"hello")).await.unwrap();
        to_server.write_all(&data_frame(3, FIN, b" world")).await.unwrap();
        let error = streams.recv().await.unwrap();
        assert_eq!(error.headers["streamtype"], "error");
        let mut stdin = streams.recv().await.unwrap();
        assert_eq!(stdin.headers["streamtype"], "stdin");
        let mut got = Vec::new();
        while let Some(data) = stdin.input.recv().await {
            got.extend_from_slice(&data);
        }
        assert_eq!(got, b"hello world");
        error.output.write(Bytes::from_static(b"bye")).await.unwrap();
        error.output.finish().await;
        sender.send(Outgoing::Close).await.unwrap();
        let mut all = Vec::new();
        from_server.read_to_end(&mut all).await.unwrap();
        let mut kinds = Vec::new();
        let mut rest = &all[..];
        while rest.len() >= 8 {
            let first = u32::from_be_bytes(rest[..4].try_into().unwrap());
            let length = u32::from_be_bytes([0, rest[5], rest[6], rest[7]]) as usize;
            kinds.push(if first & 0x8000_0000 == 0 { (0, first) } else { (first as u16, 0) });
            rest = &rest[8 + length..];
        }
        kinds.retain(|k| k.0 != WINDOW_UPDATE);
        assert_eq!(kinds, [(SYN_REPLY, 0), (SYN_REPLY, 0), (0, 1), (0, 1), (GOAWAY, 0)]);
    }

    #[tokio::test]
    async fn nonsense_ends_the_connection() {
        for nonsense in
            [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0x80, 3, 0, 1, 0, 0, 0, 1, 0], &[0x80, 2, 0, 1, 0, 0, 0, 0], &[0xff; 64]]
        {
            let (mut client, server) = tokio::io::duplex(1024);
            let (mut streams, _sender) = serve(server);
            client.write_all(nonsense).await.unwrap();
            client.shutdown().await.unwrap();
            assert!(streams.recv().await.is_none());
        }
    }
}
