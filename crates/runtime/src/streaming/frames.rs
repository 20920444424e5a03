//! What clients' bytes reach first in a stream, as functions of bytes that must neither panic, hang nor grow: whole
//! connections of either protocol, fed from the beginning to the end of the input.

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;

use super::websocket::Coding;
use super::{spdy, websocket};

/// Bytes under way in either direction.
const PIPE: usize = 64 << 10;

thread_local! {
    static RUNTIME: Option<tokio::runtime::Runtime> = tokio::runtime::Builder::new_current_thread().build().ok();
}

fn run(work: impl Future<Output = ()>) {
    RUNTIME.with(|runtime| {
        if let Some(runtime) = runtime {
            runtime.block_on(work);
        }
    });
}

/// Writes all there is to write, and reads whatever is answered until that ends.
async fn converse(client: DuplexStream, data: &[u8]) {
    let (mut answers, mut bytes) = tokio::io::split(client);
    let write = async {
        // A server that ends a connection reads no more of it.
        let _ = bytes.write_all(data).await;
        let _ = bytes.shutdown().await;
    };
    let read = async {
        let mut sink = [0u8; 4096];
        while answers.read(&mut sink).await.is_ok_and(|n| n > 0) {}
    };
    tokio::join!(write, read);
}

async fn drain(mut input: mpsc::Receiver<Bytes>) {
    while input.recv().await.is_some() {}
}

/// A connection of SPDY/3.1 from its first frame on.
pub fn spdy(data: &[u8]) {
    run(async {
        let (client, server) = tokio::io::duplex(PIPE);
        let (mut streams, sender) = spdy::serve(server);
        drop(sender);
        let accept = async {
            while let Some(stream) = streams.recv().await {
                tokio::spawn(drain(stream.input));
            }
        };
        tokio::join!(accept, converse(client, data));
    });
}

/// A WebSocket connection from its first frame on; the first byte of the input chooses how channels are written.
pub fn websocket(data: &[u8]) {
    let Some((first, data)) = data.split_first() else { return };
    let coding = Coding { base64: first & 1 != 0, close_signal: first & 2 != 0, plain: first & 4 != 0 };
    run(async {
        let (client, server) = tokio::io::duplex(PIPE);
        let (inputs, sender, mut alive) = websocket::serve(server, coding, &[0, 4]);
        drop(sender);
        inputs.into_values().for_each(|input| drop(tokio::spawn(drain(input))));
        tokio::join!(alive.recv(), converse(client, data));
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Inputs in an ordinary run.
    const INPUTS: u64 = 500;

    /// Client frames with the mask of zeroes: any bytes are their own masked form.
    fn masked(head: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![head];
        match payload.len() {
            short @ 0..126 => frame.push(0x80 | short as u8),
            long => {
                frame.push(0x80 | 126);
                frame.extend((long as u16).to_be_bytes());
            }
        }
        frame.extend([0; 4]);
        frame.extend(payload);
        frame
    }

    fn next(dice: &mut u64) -> usize {
        *dice ^= *dice << 13;
        *dice ^= *dice >> 7;
        *dice ^= *dice << 17;
        (*dice >> 11) as usize
    }

    /// One of the seeds, with bytes changed, dropped, repeated or taken from another.
    fn mutated(seeds: &[Vec<u8>], number: u64) -> Vec<u8> {
        let dice = &mut number.wrapping_mul(0x9E37_79B9_7F4A_7C15).max(1);
        let mut data = seeds[next(dice) % seeds.len()].clone();
        for _ in 0..1 + next(dice) % 8 {
            let at = next(dice) % (data.len() + 1);
            match next(dice) % 5 {
                0 if at < data.len() => data[at] = next(dice) as u8,
                1 if at < data.len() => data[at] ^= 1 << (next(dice) % 8),
                2 => data.truncate(at),
                3 => {
                    let end = (at + next(dice) % 64).min(data.len());
                    let again = data[at..end].to_vec();
                    data.extend(again);
                }
                _ => {
                    let other = &seeds[next(dice) % seeds.len()];
                    let from = next(dice) % (other.len() + 1);
                    data.truncate(at);
                    data.extend(&other[from..]);
                }
            }
        }
        data
    }

    fn feed(name: &str, run: fn(&[u8]), seeds: &[Vec<u8>]) {
        let count = std::env::var("NAUPLIUS_FUZZ").ok().and_then(|n| n.parse().ok()).unwrap_or(INPUTS);
        seeds.iter().for_each(|seed| run(seed));
        for number in 1..=count {
            let data = mutated(seeds, number);
            let ended = std::panic::catch_unwind(|| run(&data));
            assert!(ended.is_ok(), "{name}: input {number}: {data:02x?}");
        }
        println!("{name}: {count} inputs");
    }

    #[test]
    fn any_spdy_connection_ends() {
        let (mut whole, mut ping) =
            (spdy::opening(1, &[("streamtype", "data"), ("port", "80")]), spdy::opening(1, &[]));
        whole.extend([0, 0, 0, 1, 0, 0, 0, 2, b'h', b'i', 0, 0, 0, 1, 1, 0, 0, 0]);
        ping.extend([0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 9, 0x80, 3, 0, 3, 0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 5]);
        ping.extend([
            0x80, 3, 0, 9, 0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 1, 0, 0x80, 3, 0, 7, 0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 0,
        ]);
        feed("spdy", spdy, &[whole, ping]);
    }

    #[test]
    fn any_websocket_connection_ends() {
        let with = |coding: u8, frames: &[Vec<u8>]| [vec![coding], frames.concat()].concat();
        let seeds = [
            with(0, &[masked(0x82, b"\0hello"), masked(0x89, b"ping"), masked(0x88, b"\x03\xe8")]),
            with(1, &[masked(0x81, b"0aGVsbG8="), masked(0x81, b"4e30="), masked(0x8a, b"")]),
            with(2, &[masked(0x02, b"\0he"), masked(0x80, b"llo"), masked(0x82, b"\xff\0")]),
            with(4, &[masked(0x82, &[7; 300]), masked(0x82, b"")]),
        ];
        feed("websocket", websocket, &seeds);
    }
}
