//! Keys on the wire are bytes; in the store they are text.
//!
//! UTF-8 keys are stored as they are. A byte that is no part of UTF-8 is stored as a character of a private area near the
//! end of Unicode, so that every key comes back as it was sent. Order is that of the bytes among keys of ASCII with stray
//! bytes, and among keys of UTF-8; only where both stand at one place does the stray byte come last. Knows no messages.

use std::borrow::Cow;

use bytes::Bytes;

use crate::{Key, prefix_end};

/// Stray byte `b` is stored as the character `STRAY + b`. The area's own characters are stored byte by byte.
const STRAY: u32 = 0x10_FE00;

/// The first byte of every character of the area in UTF-8.
const STRAY_LEAD: u8 = 0xF4;

fn is_stray(c: char) -> bool {
    (STRAY..STRAY + 0x100).contains(&u32::from(c))
}

fn stray(byte: u8) -> char {
    // The area holds no surrogates and ends below the last character.
    char::from_u32(STRAY + u32::from(byte)).unwrap_or(char::MAX)
}

/// The text a key is stored under.
pub fn to_text(key: &[u8]) -> Cow<'_, str> {
    if let Ok(text) = std::str::from_utf8(key)
        && (!key.contains(&STRAY_LEAD) || !text.contains(is_stray))
    {
        return Cow::Borrowed(text);
    }
    let mut text = String::with_capacity(4 * key.len());
    for chunk in key.utf8_chunks() {
        for c in chunk.valid().chars() {
            if is_stray(c) {
                text.extend(c.encode_utf8(&mut [0; 4]).bytes().map(stray));
            } else {
                text.push(c);
            }
        }
        text.extend(chunk.invalid().iter().copied().map(stray));
    }
    Cow::Owned(text)
}

/// The bytes a stored key stands for.
pub fn to_bytes(text: &str) -> Bytes {
    if !text.as_bytes().contains(&STRAY_LEAD) {
        return Bytes::copy_from_slice(text.as_bytes());
    }
    let mut key = Vec::with_capacity(text.len());
    for c in text.chars() {
        if is_stray(c) {
            // Below 256 by the check.
            key.push((u32::from(c) - STRAY) as u8);
        } else {
            key.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
        }
    }
    key.into()
}

/// The least text at or above some bytes: a bound of a range. The end of a prefix of non-ASCII text often is no text.
fn bound(bytes: &[u8]) -> String {
    let Err(error) = std::str::from_utf8(bytes) else { return to_text(bytes).into_owned() };
    let (valid, rest) = bytes.split_at(error.valid_up_to());
    if !matches!(rest.first(), Some(0xC2..=0xF4)) {
        return to_text(bytes).into_owned();
    }
    let valid = to_text(valid).into_owned();
    // UTF-8 sorts as the characters do: find the first one at or above the rest.
    let (mut low, mut high) = (0x80, u32::from(char::MAX) + 1);
    while low < high {
        let middle = low + (high - low) / 2;
        let c = char::from_u32(middle).unwrap_or('\u{E000}');
        if c.encode_utf8(&mut [0; 4]).as_bytes() < rest { low = middle + 1 } else { high = middle }
    }
    match char::from_u32(low) {
        Some(c) => format!("{valid}{c}"),
        None if low <= 0xDFFF => format!("{valid}\u{E000}"),
        None => prefix_end(&valid),
    }
}

/// The keys a request is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// The first key.
    pub start: String,
    /// The first key that is not in it; empty: there is none. None: the span is the one key `start`.
    pub end: Option<String>,
}

impl Span {
    /// From a request's `key` and `range_end`.
    pub fn of(key: &[u8], range_end: &[u8]) -> Self {
        match range_end {
            [] => Span { start: to_text(key).into_owned(), end: None },
            // The least key there is, "\0", stands for "from the first" as well as for "to the last".
            [0] => Span { start: bound(if key == [0] { b"" } else { key }), end: Some(String::new()) },
            end => Span { start: bound(if key == [0] { b"" } else { key }), end: Some(bound(end)) },
        }
    }

    /// Whether no key can be in it.
    pub fn is_empty(&self) -> bool {
        self.end.as_ref().is_some_and(|end| !end.is_empty() && *end <= self.start)
    }

    /// Whether a stored key is in it.
    pub fn contains(&self, key: &str) -> bool {
        match &self.end {
            None => *self.start == *key,
            Some(end) => *self.start <= *key && (end.is_empty() || *key < **end),
        }
    }

    /// The one key it is about.
    pub fn single(&self) -> Option<&str> {
        self.end.is_none().then_some(&self.start)
    }

    /// Its ends, as the store's ranges take them.
    pub fn bounds(&self) -> (&str, Cow<'_, str>) {
        match &self.end {
            Some(end) => (&self.start, Cow::Borrowed(end)),
            None => (&self.start, Cow::Owned(format!("{}\0", self.start))),
        }
    }
}

/// A key to write.
pub fn stored(key: &[u8]) -> Key {
    Key::from(&*to_text(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_comes_back() {
        let keys: [&[u8]; 9] = [
            b"/registry/pods/default/web-0",
            b"",
            b"\0",
            "grüße/日本/🦀".as_bytes(),
            b"\x80\xff",
            b"/p/\xc3(",
            b"/perf/\xfe\x91\x02\x00",
            "\u{10FE80}".as_bytes(),
            b"a\xf4\x8f\xb9\x80\xf4",
        ];
        for key in keys {
            assert_eq!(&*to_bytes(&to_text(key)), key, "{}", key.escape_ascii());
        }
    }

    #[test]
    fn order_is_that_of_the_bytes() {
        let text: [&[u8]; 5] = [b"/a", b"/a\0", "/é".as_bytes(), "/日".as_bytes(), "/🦀".as_bytes()];
        let stray: [&[u8]; 5] = [b"/a", b"/a\x7f", b"/a\x80", b"/a\xc3\x28", b"/a\xff"];
        for keys in [text, stray] {
            assert!(keys.windows(2).all(|pair| pair[0] < pair[1] && to_text(pair[0]) < to_text(pair[1])));
        }
    }

    #[test]
    fn spans_hold_what_their_bytes_hold() {
        let after = |prefix: &str| {
            let mut end = prefix.as_bytes().to_vec();
            *end.last_mut().unwrap() += 1;
            end
        };
        for (prefix, inside, outside) in [
            ("/registry/pods/", "/registry/pods/x", "/registry/pods0"),
            ("é", "éa", "ê"),
            // Its last byte is the greatest of its kind: the end of the prefix is no text.
            ("\u{BF}", "\u{BF}a", "\u{C0}"),
            ("\u{7FF}", "\u{7FF}x", "\u{800}"),
        ] {
            let span = Span::of(prefix.as_bytes(), &after(prefix));
            assert!(span.contains(prefix) && span.contains(inside) && !span.contains(outside), "{prefix}: {span:?}");
        }
        let perf = Span::of(b"/perf/", b"/perf0");
        assert!(perf.contains(&to_text(b"/perf/\xfe\x91")) && !perf.contains(&to_text(b"/perf0")));
        let all = Span::of(b"\0", b"\0");
        assert!(all.contains("") && all.contains("\u{10FFFF}"));
        assert!(Span::of(b"b", b"a").is_empty() && !Span::of(b"b", b"\0").is_empty());
        assert!(Span::of(b"a", b"").contains("a") && !Span::of(b"a", b"").contains("aa"));
    }
}
