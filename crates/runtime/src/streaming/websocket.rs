//! WebSocket framing and the channel protocols over it: one byte of channel number before the data, binary or base64.
//!
//! Guarantees: message size and queues are bounded; client frames must be masked; pings are answered.

use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use super::channel::Outgoing;

/// Largest message taken, in bytes.
const MAX_MESSAGE: usize = 1 << 20;
/// Largest message sent, in bytes.
const MAX_DATA: usize = 32 * 1024;
/// Received pieces that wait for their consumer, a channel.
const CHANNEL_BACKLOG: usize = 16;
/// Pieces that wait to be written, a connection.
const WRITE_BACKLOG: usize = 32;
/// The channel on which version 5 says that another one ends.
const CLOSE_CHANNEL: u8 = 255;

const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// The value that proves a server understood the client's key.
pub fn accept_key(key: &str) -> String {
    let text = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    STANDARD.encode(ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes()))
}

/// How channels are written on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Coding {
    /// Text messages with base64 data.
    pub base64: bool,
    /// Channel 255 ends others.
    pub close_signal: bool,
    /// No channel number at all: the connection is one stream of bytes.
    pub plain: bool,
}

/// Serves a connection whose client may write to the given channels. Ends with the client, or with `Outgoing::Close`.
pub fn serve<S>(
    connection: S,
    coding: Coding,
    readable: &[u8],
) -> (HashMap<u8, mpsc::Receiver<Bytes>>, mpsc::Sender<Outgoing>, mpsc::Receiver<std::convert::Infallible>)
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (read, write) = tokio::io::split(connection);
    let (sender, outgoing) = mpsc::channel(WRITE_BACKLOG);
    let (life, alive) = mpsc::channel(1);
    let (mut inputs, mut senders) = (HashMap::new(), HashMap::new());
    for &channel in readable {
        let (input, receiver) = mpsc::channel(CHANNEL_BACKLOG);
        senders.insert(channel, input);
        inputs.insert(channel, receiver);
    }
    tokio::spawn(write_messages(write, outgoing, coding));
    let own = sender.clone();
    tokio::spawn(async move {
        if let Err(error) = read_messages(read, coding, senders, own).await {
            tracing::debug!(%error, "a streaming connection ended");
        }
        drop(life);
    });
    (inputs, sender, alive)
}

async fn read_messages(
    mut read: impl AsyncRead + Unpin,
    coding: Coding,
    mut channels: HashMap<u8, mpsc::Sender<Bytes>>,
    replies: mpsc::Sender<Outgoing>,
) -> std::io::Result<()> {
    let bad = |what: &'static str| std::io::Error::new(std::io::ErrorKind::InvalidData, what);
    let mut message = BytesMut::new();
    loop {
        let mut head = [0u8; 2];
        read.read_exact(&mut head).await?;
        let (last, kind) = (head[0] & 0x80 != 0, head[0] & 0x0f);
        if head[1] & 0x80 == 0 {
            return Err(bad("a frame without mask"));
        }
        let length = match head[1] & 0x7f {
            126 => read.read_u16().await? as usize,
            127 => usize::try_from(read.read_u64().await?).map_err(|_| bad("the message is too large"))?,
            short => short as usize,
        };
        if message.len().saturating_add(length) > MAX_MESSAGE {
            return Err(bad("the message is too large"));
        }
        let mut mask = [0u8; 4];
        read.read_exact(&mut mask).await?;
        let mut payload = vec![0u8; length];
        read.read_exact(&mut payload).await?;
        payload.iter_mut().enumerate().for_each(|(at, byte)| *byte ^= mask[at % 4]);
        match kind {
            CLOSE => return Ok(()),
            PING => {
                // A writer that is gone has ended the connection.
                let _ = replies.send(Outgoing::Raw(frame(PONG, &[&payload]).freeze())).await;
                continue;
            }
            PONG => continue,
            0..=2 => message.extend_from_slice(&payload),
            _ => return Err(bad("an unknown frame")),
        }
        if last {
            deliver(message.split().freeze(), coding, &mut channels).await.map_err(bad)?;
        }
    }
}

async fn deliver(
    message: Bytes,
    coding: Coding,
    channels: &mut HashMap<u8, mpsc::Sender<Bytes>>,
) -> Result<(), &'static str> {
    if coding.plain {
        if let Some(only) = channels.get(&0) {
            // A consumer that is gone needs no more.
            let _ = only.send(message).await;
        }
        return Ok(());
    }
    if message.is_empty() {
        return Ok(());
    }
    let (channel, data) = if coding.base64 {
        let data = STANDARD.decode(&message[1..]).map_err(|_| "data that is not base64")?;
        (message[0].wrapping_sub(b'0'), Bytes::from(data))
    } else {
        (message[0], message.slice(1..))
    };
    if channel == CLOSE_CHANNEL && coding.close_signal {
        if let Some(ended) = data.first() {
            channels.remove(ended);
        }
        return Ok(());
    }
    match channels.get(&channel) {
        Some(sender) if !data.is_empty() => drop(sender.send(data).await),
        // Upstream ignores what nobody reads.
        _ => {}
    }
    Ok(())
}

fn frame(kind: u8, parts: &[&[u8]]) -> BytesMut {
    let length: usize = parts.iter().map(|p| p.len()).sum();
    let mut frame = BytesMut::with_capacity(10 + length);
    frame.put_u8(0x80 | kind);
    match length {
        0..=125 => frame.put_u8(length as u8),
        126..=0xffff => {
            frame.put_u8(126);
            frame.put_u16(length as u16);
        }
        _ => {
            frame.put_u8(127);
            frame.put_u64(length as u64);
        }
    }
    parts.iter().for_each(|p| frame.put_slice(p));
    frame
}

fn data_frame(coding: Coding, channel: u32, data: &[u8]) -> BytesMut {
    if coding.plain {
        return frame(BINARY, &[data]);
    }
    // Channel numbers come from our own small tables.
    let number = channel as u8;
    if coding.base64 {
        frame(TEXT, &[&[b'0'.wrapping_add(number)], STANDARD.encode(data).as_bytes()])
    } else {
        frame(BINARY, &[&[number], data])
    }
}

async fn write_messages(mut write: impl AsyncWrite + Unpin, mut outgoing: mpsc::Receiver<Outgoing>, coding: Coding) {
    while let Some(next) = outgoing.recv().await {
        let written = match next {
            Outgoing::Data(channel, data) if data.is_empty() => {
                write.write_all(&data_frame(coding, channel, &[])).await
            }
            Outgoing::Data(channel, data) => {
                let mut done = Ok(());
                for piece in data.chunks(MAX_DATA) {
                    done = write.write_all(&data_frame(coding, channel, piece)).await;
                    if done.is_err() {
                        break;
                    }
                }
                done
            }
            // Only the connection as a whole can end.
            Outgoing::Finish(_) | Outgoing::Reply(_) => Ok(()),
            Outgoing::Raw(frame) => write.write_all(&frame).await,
            Outgoing::Close => {
                // 1000: a normal end. Whether it still gets there does not matter.
                let _ = write.write_all(&frame(CLOSE, &[&1000u16.to_be_bytes()])).await;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_answered() {
        // The example of RFC 6455.
        assert_eq!(accept_key("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    fn masked(kind: u8, data: &[u8]) -> Vec<u8> {
        let mut out = vec![0x80 | kind, 0x80 | data.len() as u8, 1, 2, 3, 4];
        out.extend(data.iter().enumerate().map(|(at, b)| b ^ [1, 2, 3, 4][at % 4]));
        out
    }

    #[tokio::test]
    async fn channels_are_told_apart() {
        for (base64, stdin) in [(false, &b"\x00hello"[..]), (true, b"0aGVsbG8=")] {
            let coding = Coding { base64, close_signal: true, plain: false };
            let (mut client, server) = tokio::io::duplex(1 << 16);
            let (mut inputs, sender, mut alive) = serve(server, coding, &[0, 4]);
            client.write_all(&masked(BINARY, stdin)).await.unwrap();
            let mut input = inputs.remove(&0).unwrap();
            assert_eq!(&input.recv().await.unwrap()[..], b"hello");
            if !base64 {
                client.write_all(&masked(BINARY, &[255, 0])).await.unwrap();
                assert!(input.recv().await.is_none());
            }
            sender.send(Outgoing::Data(1, Bytes::from_static(b"out"))).await.unwrap();
            let expect: &[u8] = if base64 { b"\x81\x051b3V0" } else { b"\x82\x04\x01out" };
            let mut got = vec![0; expect.len()];
            client.read_exact(&mut got).await.unwrap();
            assert_eq!(got, expect);
            client.write_all(&masked(PING, b"p")).await.unwrap();
            let mut pong = [0; 3];
            client.read_exact(&mut pong).await.unwrap();
            assert_eq!(&pong, b"\x8a\x01p");
            client.write_all(&masked(CLOSE, b"")).await.unwrap();
            assert!(alive.recv().await.is_none());
        }
    }
}
