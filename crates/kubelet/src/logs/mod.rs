//! Container logs as the engine writes them: `time stream tag text`, a tag of `P` meaning that the line goes on.

pub mod follow;
pub mod rotation;

use jiff::Timestamp;

/// Which of a container's streams a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// One record of a log file.
#[derive(Clone, Debug, PartialEq)]
pub struct Record<'a> {
    pub at: Timestamp,
    pub time: &'a [u8],
    pub stream: Stream,
    /// The line goes on in the next record of its stream.
    pub partial: bool,
    pub text: &'a [u8],
}

/// Parses one line of a log file, without its line end.
pub fn parse(line: &[u8]) -> Option<Record<'_>> {
    let mut parts = line.splitn(4, |b| *b == b' ');
    let (time, stream, tag, text) = (parts.next()?, parts.next()?, parts.next()?, parts.next().unwrap_or_default());
    let stream = match stream {
        b"stdout" => Stream::Stdout,
        b"stderr" => Stream::Stderr,
        _ => return None,
    };
    let at = std::str::from_utf8(time).ok()?.parse().ok()?;
    // Further tags may follow after colons.
    let partial = tag.split(|b| *b == b':').next() == Some(b"P");
    Some(Record { at, time, stream, partial, text })
}

/// What part of a log is wanted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Options {
    pub follow: bool,
    pub timestamps: bool,
    pub tail_lines: Option<u64>,
    pub since: Option<Timestamp>,
    pub limit_bytes: Option<u64>,
    /// Only this stream.
    pub stream: Option<Stream>,
}

/// Writes records out as a reader wants them.
#[derive(Default)]
pub struct Printer {
    options: Options,
    written: u64,
    /// Whether the last record ended its line: a time stamp stands only at the beginning of one.
    inside: bool,
}

impl Printer {
    pub fn new(options: Options) -> Self {
        Self { options, written: 0, inside: false }
    }

    /// Whether the limit is reached.
    pub fn full(&self) -> bool {
        self.options.limit_bytes.is_some_and(|l| self.written >= l)
    }

    /// Appends what is to be seen of one raw line.
    pub fn print(&mut self, line: &[u8], out: &mut Vec<u8>) {
        let Some(record) = parse(line) else { return };
        if self.options.since.is_some_and(|s| record.at < s) || self.options.stream.is_some_and(|s| s != record.stream)
        {
            return;
        }
        let start = out.len();
        if self.options.timestamps && !self.inside {
            out.extend_from_slice(record.time);
            out.push(b' ');
        }
        out.extend_from_slice(record.text);
        if !record.partial {
            out.push(b'\n');
        }
        self.inside = record.partial;
        if let Some(limit) = self.options.limit_bytes {
            let left = limit.saturating_sub(self.written) as usize;
            out.truncate(start + left.min(out.len() - start));
        }
        self.written += (out.len() - start) as u64;
    }
}

/// Where the last `count` lines begin in a log: partial records belong to the line they begin.
pub fn tail_start(file: &mut (impl std::io::Read + std::io::Seek), count: u64) -> std::io::Result<u64> {
    use std::io::SeekFrom;
    const BLOCK: u64 = 64 << 10;
    let end = file.seek(SeekFrom::End(0))?;
    if count == 0 {
        return Ok(end);
    }
    // Line ends seen, from the back: line number `n` from the end begins behind the end of line `n + 1`.
    let (mut at, mut lines, mut behind) = (end, 0u64, Vec::new());
    while at > 0 {
        let from = at.saturating_sub(BLOCK);
        let mut block = vec![0; (at - from) as usize];
        file.seek(SeekFrom::Start(from))?;
        file.read_exact(&mut block)?;
        let kept = block.len();
        block.extend_from_slice(&behind);
        for position in (0..kept).rev() {
            if block[position] != b'\n' || from + position as u64 + 1 == end {
                continue;
            }
            // The record behind this line end counts unless it continues an unfinished one, which shows on the record
            // before it: that is looked at when the scan gets there.
            let before = block[..position].iter().rposition(|b| *b == b'\n').map_or(0, |p| p + 1);
            let whole_before = before > 0 || from == 0;
            let continued = whole_before && parse(&block[before..position]).is_some_and(|r| r.partial);
            if !continued {
                lines += 1;
                if lines == count {
                    return Ok(from + position as u64 + 1);
                }
            }
        }
        behind = block[..kept.min(8 << 10)].to_vec();
        at = from;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "2026-01-01T00:00:00.1Z stdout F one\n2026-01-01T00:00:01Z stderr P tw\n2026-01-01T00:00:01.5Z stderr F o\n2026-01-01T00:00:02Z stdout F three\n";

    fn print(options: Options, from: u64) -> String {
        let mut printer = Printer::new(options);
        let mut out = Vec::new();
        LOG[from as usize..].lines().for_each(|l| printer.print(l.as_bytes(), &mut out));
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn printing() {
        assert_eq!(print(Options::default(), 0), "one\ntwo\nthree\n");
        assert_eq!(print(Options { limit_bytes: Some(5), ..Default::default() }, 0), "one\nt");
        assert_eq!(
            print(Options { since: Some("2026-01-01T00:00:02Z".parse().unwrap()), ..Default::default() }, 0),
            "three\n"
        );
        assert_eq!(print(Options { stream: Some(Stream::Stderr), ..Default::default() }, 0), "two\n");
        let stamped = print(Options { timestamps: true, ..Default::default() }, 0);
        assert!(stamped.contains("2026-01-01T00:00:01Z two\n"), "{stamped}");
    }

    #[test]
    fn tails() {
        let mut file = std::io::Cursor::new(LOG.as_bytes());
        for (count, expect) in
            [(0, ""), (1, "three\n"), (2, "two\nthree\n"), (3, "one\ntwo\nthree\n"), (9, "one\ntwo\nthree\n")]
        {
            let from = tail_start(&mut file, count).unwrap();
            assert_eq!(print(Options::default(), from), expect, "{count}");
        }
    }
}
