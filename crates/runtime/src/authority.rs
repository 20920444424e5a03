//! Kubelets before v1.30, and other clients in Go, call a server on a unix socket by the socket's path in `:authority`,
//! which no URI may have, so that the HTTP library refuses them. This stands between socket and library and makes such a
//! name one that may be.
//!
//! The new name is as long as the old one, since both ends account the size of headers they have in common. All else
//! passes as it came; a client whose first name is valid is not looked at any more.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tonic::transport::server::{Connected, UdsConnectInfo};

/// What an HTTP/2 client says first, and the head of each frame.
const PREFACE: usize = 24;
const HEAD: usize = 9;
/// Frames of headers larger than this pass as they are.
const MAX_HEADERS: usize = 64 * 1024;
/// One read of the socket, in bytes.
const CHUNK: usize = 16 * 1024;

const HEADERS: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const PRIORITY: u8 = 0x20;
/// `:authority` in the table that both ends know.
const AUTHORITY: usize = 1;

/// How many bits the compressed form of each ASCII character has; none of the others may be in a name. The bits
/// themselves follow: shorter ones first, then by character.
const BITS: [u8; 128] = [
    13, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 6, 10, 10, 12, 13,
    6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 0, 13, 14, 6, 15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6,
    6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 0,
];

/// Each character's bits: how many, which, and the character.
fn codes() -> Vec<(u8, u32, u8)> {
    let (mut out, mut next) = (Vec::with_capacity(BITS.len()), 0u32);
    for length in 1..=15u8 {
        next <<= 1;
        for (character, _) in BITS.iter().enumerate().filter(|(_, bits)| **bits == length) {
            out.push((length, next, character as u8));
            next += 1;
        }
    }
    out
}

fn decompress(data: &[u8]) -> Option<Vec<u8>> {
    let codes = codes();
    let (mut out, mut code, mut length) = (Vec::new(), 0u32, 0u8);
    for bit in data.iter().flat_map(|byte| (0..8).rev().map(move |at| u32::from(byte >> at & 1))) {
        (code, length) = (code << 1 | bit, length + 1);
        if let Some((.., character)) = codes.iter().find(|c| (c.0, c.1) == (length, code)) {
            out.push(*character);
            (code, length) = (0, 0);
        } else if length > 15 {
            return None;
        }
    }
    Some(out)
}

/// A number of a header block, which starts in the low `bits` of the byte at `at`.
fn number(block: &[u8], at: &mut usize, bits: u32) -> Option<usize> {
    let mask = (1usize << bits) - 1;
    let mut value = usize::from(*block.get(*at)?) & mask;
    *at += 1;
    let mut shift = 0;
    while value >= mask {
        let byte = usize::from(*block.get(*at)?);
        *at += 1;
        value = value.checked_add((byte & 0x7f).checked_shl(shift)?)?;
        shift += 7;
        if byte & 0x80 == 0 || shift > 28 {
            break;
        }
    }
    Some(value)
}

/// A text of a header block: where its bytes are, and whether they are compressed.
fn text(block: &[u8], at: &mut usize) -> Option<(std::ops::Range<usize>, bool)> {
    let compressed = block.get(*at)? & 0x80 != 0;
    let length = number(block, at, 7)?;
    let range = *at..at.checked_add(length)?;
    *at = range.end;
    (range.end <= block.len()).then_some((range, compressed))
}

/// What is to be done about a header block.
#[derive(Debug, PartialEq)]
enum Found {
    /// No name is spelled out.
    Nothing,
    /// A name that is valid.
    Valid,
    /// The bytes of a name that is not, and what to put there.
    Replace(std::ops::Range<usize>, Vec<u8>),
}

fn look(block: &[u8]) -> Option<Found> {
    let mut at = 0;
    while at < block.len() {
        let first = block[at];
        let bits = match first {
            0x80.. => 7,
            0x40.. => 6,
            0x20.. => 5,
            _ => 4,
        };
        let name = number(block, &mut at, bits)?;
        if matches!(bits, 7 | 5) {
            continue;
        }
        if name == 0 {
            text(block, &mut at)?;
        }
        let start = at;
        let (value, compressed) = text(block, &mut at)?;
        if name != AUTHORITY {
            continue;
        }
        let value = if compressed { decompress(&block[value])? } else { block[value].to_vec() };
        if http::uri::Authority::try_from(value.as_slice()).is_ok() {
            return Some(Found::Valid);
        }
        let allowed = |byte: &u8| if byte.is_ascii_alphanumeric() || b"-._".contains(byte) { *byte } else { b'-' };
        let value: Vec<u8> = value.iter().map(allowed).collect();
        let mut with = Vec::with_capacity(value.len() + 3);
        match value.len() {
            short @ 0..127 => with.push(short as u8),
            long => {
                with.push(127);
                let mut rest = long - 127;
                while rest >= 128 {
                    with.push(rest as u8 & 0x7f | 0x80);
                    rest >>= 7;
                }
                with.push(rest as u8);
            }
        }
        with.extend_from_slice(&value);
        return Some(Found::Replace(start..at, with));
    }
    Some(Found::Nothing)
}

/// The bytes of one client, looked through as they come.
#[derive(Debug)]
struct Filter {
    /// What is not a whole head or frame of headers yet.
    held: BytesMut,
    /// How much passes unseen.
    pass: usize,
    /// Everything passes.
    off: bool,
}

impl Filter {
    fn new() -> Filter {
        Filter { held: BytesMut::new(), pass: PREFACE, off: false }
    }

    /// Takes what has come; what may go on is put to `out`.
    fn take(&mut self, data: &[u8], out: &mut BytesMut) {
        self.held.extend_from_slice(data);
        while !self.held.is_empty() {
            if self.off {
                out.extend_from_slice(&self.held.split());
                return;
            }
            if self.pass > 0 {
                let now = self.pass.min(self.held.len());
                out.extend_from_slice(&self.held.split_to(now));
                self.pass -= now;
                continue;
            }
            if self.held.len() < HEAD {
                return;
            }
            let length = usize::from(self.held[0]) << 16 | usize::from(self.held[1]) << 8 | usize::from(self.held[2]);
            let (kind, flags) = (self.held[3], self.held[4]);
            if kind != HEADERS || flags & END_HEADERS == 0 || length > MAX_HEADERS {
                self.pass = HEAD + length;
                continue;
            }
            if self.held.len() < HEAD + length {
                return;
            }
            let frame = self.held.split_to(HEAD + length);
            self.headers(&frame, flags, out);
        }
    }

    fn headers(&mut self, frame: &[u8], flags: u8, out: &mut BytesMut) {
        let padding = if flags & PADDED != 0 { frame.get(HEAD).map_or(0, |p| usize::from(*p)) } else { 0 };
        let before = HEAD + usize::from(flags & PADDED != 0) + if flags & PRIORITY != 0 { 5 } else { 0 };
        let end = frame.len().saturating_sub(padding);
        let found = frame.get(before..end).and_then(look).unwrap_or(Found::Nothing);
        let Found::Replace(range, with) = found else {
            self.off = found == Found::Valid;
            out.extend_from_slice(frame);
            return;
        };
        let length = frame.len() - HEAD - range.len() + with.len();
        out.put_uint(length as u64, 3);
        out.extend_from_slice(&frame[3..before + range.start]);
        out.extend_from_slice(&with);
        out.extend_from_slice(&frame[before + range.end..]);
    }
}

/// A client's connection, looked through.
pub struct Tolerant {
    stream: UnixStream,
    filter: Filter,
    ready: BytesMut,
}

impl Tolerant {
    /// Of a connection that was just accepted.
    pub fn new(stream: UnixStream) -> Tolerant {
        Tolerant { stream, filter: Filter::new(), ready: BytesMut::new() }
    }
}

impl AsyncRead for Tolerant {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            if !this.ready.is_empty() {
                let now = this.ready.len().min(to.remaining());
                to.put_slice(&this.ready[..now]);
                this.ready.advance(now);
                return Poll::Ready(Ok(()));
            }
            if this.filter.off {
                return Pin::new(&mut this.stream).poll_read(cx, to);
            }
            let mut chunk = [0u8; CHUNK];
            let mut read = ReadBuf::new(&mut chunk);
            ready!(Pin::new(&mut this.stream).poll_read(cx, &mut read))?;
            if read.filled().is_empty() {
                // The end; half a frame is of no use to anybody.
                return Poll::Ready(Ok(()));
            }
            this.filter.take(read.filled(), &mut this.ready);
        }
    }
}

impl AsyncWrite for Tolerant {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Connected for Tolerant {
    type ConnectInfo = UdsConnectInfo;

    fn connect_info(&self) -> UdsConnectInfo {
        self.stream.connect_info()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compress(text: &str) -> Vec<u8> {
        let codes = codes();
        let mut bits: Vec<u32> = Vec::new();
        for byte in text.bytes() {
            let (length, code, _) = codes.iter().find(|c| c.2 == byte).unwrap();
            bits.extend((0..*length).rev().map(|at| code >> at & 1));
        }
        bits.resize(bits.len().div_ceil(8) * 8, 1);
        bits.chunks(8).map(|byte| byte.iter().fold(0, |all, bit| all << 1 | *bit as u8)).collect()
    }

    #[test]
    fn texts_are_compressed_as_the_standard_shows() {
        // RFC 7541, C.4.1.
        let example = [0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff];
        assert_eq!(compress("www.example.com"), example);
        assert_eq!(decompress(&example).unwrap(), b"www.example.com");
    }

    /// `:method: POST`, an authority, `te: trailers` by a new name.
    fn headers(authority: &[u8], compressed: bool) -> Vec<u8> {
        let mut block = vec![0x83, 0x41, authority.len() as u8 | if compressed { 0x80 } else { 0 }];
        block.extend_from_slice(authority);
        block.extend_from_slice(b"\x40\x02te\x08trailers");
        let mut frame = vec![0, 0, block.len() as u8, HEADERS, END_HEADERS, 0, 0, 0, 1];
        frame.extend(block);
        frame
    }

    #[test]
    fn names_become_valid_and_keep_their_length() {
        let (path, name) = ("/run/x%2Fcri.sock", b"-run-x-2Fcri.sock");
        let data = [0, 0, 3, 0, 1, 0, 0, 0, 1, 7, 8, 9];
        let preface = [b'p'; PREFACE];
        for (frame, expected, off) in [
            (headers(&compress(path), true), headers(name, false), false),
            (headers(path.as_bytes(), false), headers(name, false), false),
            (headers(b"localhost", false), headers(b"localhost", false), true),
            (headers(&compress("localhost"), true), headers(&compress("localhost"), true), true),
        ] {
            let whole = [&preface[..], &data, &frame, &data, &frame].concat();
            let expected = [&preface[..], &data, &expected, &data, &expected].concat();
            // However it is cut.
            for size in [1, 7, whole.len()] {
                let (mut filter, mut out) = (Filter::new(), BytesMut::new());
                whole.chunks(size).for_each(|piece| filter.take(piece, &mut out));
                assert_eq!((&out[..], filter.off), (&expected[..], off));
            }
        }
    }

    #[test]
    fn nonsense_passes_as_it_came() {
        for block in [
            &[0x41u8, 0xff][..],
            &[0x41, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
            &[0x41, 0x84, 0xff, 0xff, 0xff, 0xff],
        ] {
            let mut whole = vec![b'p'; PREFACE];
            whole.extend([0, 0, block.len() as u8, HEADERS, END_HEADERS, 0, 0, 0, 1]);
            whole.extend_from_slice(block);
            let (mut filter, mut out) = (Filter::new(), BytesMut::new());
            filter.take(&whole, &mut out);
            assert_eq!(&out[..], &whole[..]);
        }
    }
}
