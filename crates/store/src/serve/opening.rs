//! How a connection opens: in HTTP/2, or with a plain request for a page; and a mended `:authority`.
//!
//! etcdctl 3.4 puts its endpoint as given, `https://host:port`, where HTTP/2 has a host and a port, in the calls that are
//! about one member (status, hash, defragmentation). etcd does not look at it; the HTTP/2 of this server refuses it. Such a
//! text in a connection's first request is replaced by one of the same length: both sides keep it in their tables of
//! headers, which then stay alike. Nothing here costs a connection more than its first request.

use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

/// What a client of HTTP/2 says first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Length, type, flags and stream of a frame.
const FRAME_HEAD: usize = 9;
const HEADERS: u8 = 1;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
const PRIORITY_BYTES: usize = 5;
/// Frames before the first request are settings; a larger one is not looked into.
const LARGEST_FRAME: usize = 16 << 10;
/// The index of `:authority` in HPACK's static table.
const AUTHORITY: usize = 1;
const READ_BYTES: usize = 4 << 10;

/// Whether a connection speaks HTTP/2, by its first bytes, which are given back with it.
///
/// # Errors
/// Those of the connection, or that it ended before it said anything.
pub async fn open<T: AsyncRead + Unpin>(mut io: T) -> io::Result<(bool, Opened<T>)> {
    let mut held = BytesMut::new();
    while held.len() < PREFACE.len() && PREFACE.starts_with(&held) {
        if io.read_buf(&mut held).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    let modern = held.starts_with(PREFACE);
    let mut opened = Opened { io, held, passed: Bytes::new(), done: !modern };
    if modern {
        opened.passed = opened.held.split_to(PREFACE.len()).freeze();
    } else {
        opened.finish();
    }
    Ok((modern, opened))
}

/// A connection whose first request's `:authority` is mended.
pub struct Opened<T> {
    io: T,
    /// Read, and not a whole frame yet.
    held: BytesMut,
    /// To be read by whoever reads this.
    passed: Bytes,
    /// The first request has passed: everything else is not looked at.
    done: bool,
}

impl<T> Opened<T> {
    fn finish(&mut self) {
        self.done = true;
        self.passed = std::mem::take(&mut self.held).freeze();
    }

    /// Lets whole frames pass, up to the first request.
    fn advance(&mut self) {
        let Some(head) = self.held.get(..FRAME_HEAD) else { return };
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let (kind, flags) = (head[3], head[4]);
        if length > LARGEST_FRAME {
            return self.finish();
        }
        if self.held.len() < FRAME_HEAD + length {
            return;
        }
        if kind != HEADERS {
            self.passed = self.held.split_to(FRAME_HEAD + length).freeze();
            return;
        }
        if flags & PADDED == 0 {
            let skipped = if flags & PRIORITY == 0 { 0 } else { PRIORITY_BYTES };
            if let Some((at, letters)) =
                self.held.get(FRAME_HEAD + skipped..FRAME_HEAD + length).and_then(wrong_authority)
            {
                let at = at.start + FRAME_HEAD + skipped..at.end + FRAME_HEAD + skipped;
                replace(&mut self.held, at, letters, length);
            }
        }
        self.finish();
    }
}

/// Puts a host of `letters` letters where the string at `at` was, in a frame of `length` bytes.
fn replace(frame: &mut BytesMut, at: Range<usize>, letters: usize, length: usize) {
    let rest = frame.split_off(at.end);
    let was = at.len();
    frame.truncate(at.start);
    let before = frame.len();
    match letters {
        0..127 => frame.put_u8(letters as u8),
        _ => {
            frame.put_u8(127);
            let mut more = letters - 127;
            while more >= 128 {
                frame.put_u8((more & 127) as u8 | 128);
                more >>= 7;
            }
            frame.put_u8(more as u8);
        }
    }
    frame.put_bytes(b'x', letters);
    let length = (length + (frame.len() - before) - was).to_be_bytes();
    let end = length.len();
    frame[..3].copy_from_slice(&length[end - 3..]);
    frame.extend_from_slice(&rest);
}

/// An integer of HPACK (RFC 7541, 5.1) whose first byte has a prefix of so many bits.
fn integer(block: &[u8], at: &mut usize, prefix: u32) -> Option<usize> {
    let most = (1usize << prefix) - 1;
    let mut value = usize::from(*block.get(*at)?) & most;
    *at += 1;
    if value < most {
        return Some(value);
    }
    for shift in [0, 7, 14] {
        let byte = *block.get(*at)?;
        *at += 1;
        value += usize::from(byte & 127) << shift;
        if byte < 128 {
            return Some(value);
        }
    }
    None
}

/// A string of HPACK (5.2): whether it is in Huffman's code, and its bytes.
fn string<'a>(block: &'a [u8], at: &mut usize) -> Option<(bool, &'a [u8])> {
    let coded = block.get(*at)? & 128 != 0;
    let length = integer(block, at, 7)?;
    let bytes = block.get(*at..*at + length)?;
    *at += length;
    Some((coded, bytes))
}

/// Where a block of headers has an `:authority` with a scheme in it, length included, and how many letters that has.
fn wrong_authority(block: &[u8]) -> Option<(Range<usize>, usize)> {
    let mut at = 0;
    loop {
        let prefix = match *block.get(at)? {
            // From a table, name and value.
            128.. => {
                integer(block, &mut at, 7)?;
                continue;
            }
            64.. => 6,
            // The table's size.
            32.. => {
                integer(block, &mut at, 5)?;
                continue;
            }
            _ => 4,
        };
        let name = integer(block, &mut at, prefix)?;
        if name == 0 {
            string(block, &mut at)?;
        }
        let begin = at;
        let (coded, value) = string(block, &mut at)?;
        if name == AUTHORITY {
            let (letters, scheme) = if coded { huffman(value)? } else { (value.len(), has_scheme(value)) };
            return scheme.then_some((begin..at, letters));
        }
    }
}

fn has_scheme(text: &[u8]) -> bool {
    text.windows(3).any(|three| three == b"://")
}

/// How many letters a text in HPACK's Huffman code (appendix B) has, and whether `://` is among them; `None` where one of them
/// has a code of more than 8 bits, as none of a URL has.
fn huffman(coded: &[u8]) -> Option<(usize, bool)> {
    /// The codes of `:` and `/`, and their lengths.
    const COLON: (u8, usize) = (0x5c, 7);
    const SLASH: (u8, usize) = (0x18, 6);
    let bits = coded.len() * 8;
    let byte = |at: usize| coded.get(at).copied().unwrap_or(0xff);
    let (mut at, mut letters, mut scheme) = (0, 0, false);
    let mut last = [(0, 0); 2];
    while at < bits {
        let (index, shift) = (at / 8, at % 8);
        let next = (u16::from(byte(index)) << 8 | u16::from(byte(index + 1))) << shift >> 8;
        let next = next as u8;
        // The code is canonical: shorter codes are the smaller numbers.
        let length = match next {
            0..0x50 => 5,
            0x50..0xb8 => 6,
            0xb8..0xf8 => 7,
            0xf8..0xfe => 8,
            // The end is filled with ones, fewer than eight.
            _ if bits - at < 8 => break,
            _ => return None,
        };
        if at + length > bits {
            break;
        }
        let letter = (next >> (8 - length), length);
        scheme |= last == [COLON, SLASH] && letter == SLASH;
        last = [last[1], letter];
        (at, letters) = (at + length, letters + 1);
    }
    Some((letters, scheme))
}

impl<T: AsyncRead + Unpin> AsyncRead for Opened<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            if !self.passed.is_empty() {
                let taken = self.passed.len().min(into.remaining());
                into.put_slice(&self.passed[..taken]);
                self.passed.advance(taken);
                return Poll::Ready(Ok(()));
            }
            if self.done {
                return Pin::new(&mut self.io).poll_read(cx, into);
            }
            self.advance();
            if !self.passed.is_empty() {
                continue;
            }
            let mut bytes = [0; READ_BYTES];
            let mut read = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut self.io).poll_read(cx, &mut read))?;
            if read.filled().is_empty() {
                self.finish();
            }
            self.held.extend_from_slice(read.filled());
        }
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Opened<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Letters in Huffman's code, those of the URLs below.
    fn code(text: &str) -> Vec<u8> {
        let (mut bits, mut out) = (String::new(), Vec::new());
        for letter in text.chars() {
            bits += match letter {
                '0' => "00000",
                '1' => "00001",
                '2' => "00010",
                '7' => "011101",
                '3' => "011001",
                '9' => "011111",
                '.' => "010111",
                '/' => "011000",
                ':' => "1011100",
                'h' => "100111",
                'p' => "101011",
                's' => "01000",
                't' => "01001",
                _ => unreachable!("{letter}"),
            };
        }
        while bits.len() % 8 != 0 {
            bits.push('1');
        }
        for eight in bits.as_bytes().chunks(8) {
            out.push(eight.iter().fold(0, |byte, bit| byte << 1 | (bit - b'0')));
        }
        out
    }

    #[test]
    fn codes_are_counted() {
        for (text, expect) in [
            ("", (0, false)),
            ("127.0.0.1:2379", (14, false)),
            ("http://127.0.0.1:2379", (21, true)),
            ("https://127.0.0.1:2379", (22, true)),
            ("1:/2", (4, false)),
            ("s://", (4, true)),
        ] {
            assert_eq!(huffman(&code(text)), Some(expect), "{text}");
        }
        assert_eq!(huffman(&[0xff, 0xff]), None);
    }

    /// A frame of headers: POST, then what is given.
    fn frame(flags: u8, fields: &[u8]) -> Vec<u8> {
        let block = [&[0x83][..], fields].concat();
        let mut frame = vec![0, 0, block.len() as u8, HEADERS, flags | 4, 0, 0, 0, 1];
        frame.extend(block);
        frame
    }

    fn literal(first: &[u8], coded: bool, value: &[u8]) -> Vec<u8> {
        [first, &[value.len() as u8 | if coded { 128 } else { 0 }], value].concat()
    }

    #[tokio::test]
    async fn what_passes() {
        const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
        let path = literal(&[0x44], false, b"/etcdserverpb.KV/Range");
        let good = literal(&[0x41], true, &code("127.0.0.1:2379"));
        let mended = [path.clone(), literal(&[0x41], false, &[b'x'; 21])].concat();
        let wrong = |coded: bool| {
            let url = "http://127.0.0.1:2379";
            let value = if coded { code(url) } else { url.into() };
            [path.clone(), literal(&[0x41], coded, &value)].concat()
        };
        let priority = |fields: &[u8]| {
            let mut framed = frame(PRIORITY, fields);
            framed.splice(FRAME_HEAD..FRAME_HEAD, [0, 0, 0, 0, 15]);
            framed[2] += PRIORITY_BYTES as u8;
            framed
        };
        for (what, said, expect) in [
            ("as it should be", frame(0, &good), frame(0, &good)),
            ("coded", frame(0, &wrong(true)), frame(0, &mended)),
            ("plain", frame(0, &wrong(false)), frame(0, &mended)),
            ("with a priority", priority(&wrong(true)), priority(&mended)),
            ("padded is left alone", frame(PADDED, &wrong(true)), frame(PADDED, &wrong(true))),
            (
                "cut off",
                vec![0, 0, 40, HEADERS, 4, 0, 0, 0, 1, 0x41, 0xbf, 1],
                vec![0, 0, 40, HEADERS, 4, 0, 0, 0, 1, 0x41, 0xbf, 1],
            ),
            (
                "a string longer than its block",
                frame(0, &[0x41, 0xff, 0xff, 0xff, 0xff]),
                frame(0, &[0x41, 0xff, 0xff, 0xff, 0xff]),
            ),
        ] {
            let all = |request: &[u8]| [PREFACE, SETTINGS, request, b"rest"].concat();
            // However it is cut into pieces.
            for piece in [1, 7, 1000] {
                let mut mock = in_pieces(&all(&said), piece);
                let (modern, mut opened) = open(&mut mock).await.unwrap();
                assert!(modern, "{what}");
                let mut got = Vec::new();
                opened.read_to_end(&mut got).await.unwrap();
                assert_eq!(got, all(&expect), "{what}, {piece} bytes at a time");
            }
        }
        let mut plain: &[u8] = b"GET /health HTTP/1.1\r\n\r\n";
        let (modern, mut opened) = open(&mut plain).await.unwrap();
        let mut got = Vec::new();
        opened.read_to_end(&mut got).await.unwrap();
        assert_eq!((modern, &*got), (false, &b"GET /health HTTP/1.1\r\n\r\n"[..]));
        assert!(open(&mut &b"PRI"[..]).await.is_err());
    }

    /// Gives a text in pieces of so many bytes.
    fn in_pieces(text: &[u8], piece: usize) -> Pieces {
        Pieces(text.chunks(piece).map(Bytes::copy_from_slice).rev().collect())
    }

    struct Pieces(Vec<Bytes>);

    impl AsyncRead for Pieces {
        fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            if let Some(mut piece) = self.0.pop() {
                let taken = piece.split_to(piece.len().min(into.remaining()));
                into.put_slice(&taken);
                if !piece.is_empty() {
                    self.0.push(piece);
                }
            }
            Poll::Ready(Ok(()))
        }
    }
}
