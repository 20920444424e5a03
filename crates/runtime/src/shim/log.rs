//! Container output in the kubelet's log format: `<RFC3339Nano> <stream> <F|P> <line>`.
//!
//! Guarantees: every byte the container wrote, in order within a stream; a line longer than the limit is split into
//! partial records (P) closed by a full one (F),
//! and what ends without a line end stays partial. A full disk loses output, never stops the container.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Longest record's text in bytes, as other engines split.
const MAX_LINE: usize = 16 * 1024;

/// Which stream a record came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output, or a terminal.
    Stdout = 0,
    /// Standard error.
    Stderr = 1,
}

/// A container's log file and the lines begun but not ended.
pub struct Log {
    path: PathBuf,
    file: Option<File>,
    pending: [Vec<u8>; 2],
}

impl Log {
    /// Opens or creates the file. Without a path output is dropped.
    pub fn open(path: Option<&Path>) -> std::io::Result<Log> {
        let file = path.map(create).transpose()?;
        Ok(Log { path: path.map(Path::to_path_buf).unwrap_or_default(), file, pending: [Vec::new(), Vec::new()] })
    }

    /// After rotation: the old file is let go and a new one made at the same path.
    pub fn reopen(&mut self) -> std::io::Result<()> {
        if self.file.is_some() {
            self.file = Some(create(&self.path)?);
        }
        Ok(())
    }

    /// Takes what a stream has produced.
    pub fn write(&mut self, stream: Stream, data: &[u8]) {
        if self.file.is_none() {
            return;
        }
        let mut out = Vec::with_capacity(data.len() + 64);
        let stamp = timestamp(super::sys::now());
        let pending = &mut self.pending[stream as usize];
        let mut rest = data;
        while !rest.is_empty() {
            let room = MAX_LINE - pending.len();
            let window = &rest[..rest.len().min(room)];
            if let Some(end) = window.iter().position(|&b| b == b'\n') {
                record(&mut out, &stamp, stream, 'F', &[pending, &rest[..end]]);
                pending.clear();
                rest = &rest[end + 1..];
            } else if window.len() == room && rest.get(room) == Some(&b'\n') {
                // Exactly as long as a record may be: full, not partial.
                record(&mut out, &stamp, stream, 'F', &[pending, window]);
                pending.clear();
                rest = &rest[room + 1..];
            } else if window.len() == room {
                record(&mut out, &stamp, stream, 'P', &[pending, window]);
                pending.clear();
                rest = &rest[room..];
            } else {
                pending.extend_from_slice(window);
                rest = &[];
            }
        }
        if pending.is_empty() {
            *pending = Vec::new();
        }
        self.append(&out);
    }

    /// A stream has ended: what it left unfinished becomes a partial line, so that readers add no line end to it.
    pub fn finish(&mut self, stream: Stream) {
        let rest = std::mem::take(&mut self.pending[stream as usize]);
        if !rest.is_empty() {
            let mut out = Vec::new();
            record(&mut out, &timestamp(super::sys::now()), stream, 'P', &[&rest]);
            self.append(&out);
        }
    }

    fn append(&mut self, out: &[u8]) {
        if let Some(file) = &mut self.file {
            // Nobody to tell: a log that cannot be written (full disk) must not disturb the container.
            let _ = file.write_all(out);
        }
    }
}

fn create(path: &Path) -> std::io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    File::options().append(true).create(true).mode(0o640).open(path)
}

fn record(out: &mut Vec<u8>, stamp: &str, stream: Stream, tag: char, parts: &[&[u8]]) {
    let name = if stream == Stream::Stdout { "stdout" } else { "stderr" };
    out.extend_from_slice(stamp.as_bytes());
    out.extend_from_slice(format!(" {name} {tag} ").as_bytes());
    for part in parts {
        out.extend_from_slice(part);
    }
    out.push(b'\n');
}

/// RFC 3339 in UTC with nanoseconds, all nine digits.
pub fn timestamp(nanos: i64) -> String {
    let (seconds, nanos) = (nanos.div_euclid(1_000_000_000), nanos.rem_euclid(1_000_000_000));
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Civil date from a day count, counting years from March so that the leap day comes last.
    let day = days + 719_468;
    let era = day.div_euclid(146_097);
    let of_era = day.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{nanos:09}Z", second / 3600, second / 60 % 60, second % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_are_rfc3339() {
        for (nanos, expect) in [
            (0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_400_000_000_001, "2000-02-29T00:00:00.000000001Z"),
            (1_700_000_000_123_456_789, "2023-11-14T22:13:20.123456789Z"),
            (4_107_542_399_999_999_999, "2100-02-28T23:59:59.999999999Z"),
        ] {
            assert_eq!(timestamp(nanos), expect);
        }
    }

    #[test]
    fn lines_are_framed() {
        let long = "x".repeat(MAX_LINE);
        let cases: &[(&[&str], &[(&str, usize)])] = &[
            (&["a\nb\n"], &[("F", 1), ("F", 1)]),
            (&["a", "b\n"], &[("F", 2)]),
            (&["no newline"], &[("P", 10)]),
            (&[&long, "\n"], &[("P", MAX_LINE), ("F", 0)]),
            (&[&format!("{long}\n")], &[("F", MAX_LINE)]),
            (&[&format!("{long}yy\n")], &[("P", MAX_LINE), ("F", 2)]),
            (&["\n"], &[("F", 0)]),
        ];
        for (input, expect) in cases {
            let dir = std::env::temp_dir().join(format!("runtime-log-{}-{:p}", std::process::id(), input));
            let mut log = Log::open(Some(&dir)).unwrap();
            for part in *input {
                log.write(Stream::Stdout, part.as_bytes());
            }
            log.finish(Stream::Stdout);
            let text = std::fs::read_to_string(&dir).unwrap();
            std::fs::remove_file(&dir).unwrap();
            let got: Vec<(&str, usize)> = text
                .lines()
                .map(|l| {
                    let mut parts = l.splitn(4, ' ');
                    parts.next();
                    assert_eq!(parts.next(), Some("stdout"));
                    (parts.next().unwrap(), parts.next().unwrap().len())
                })
                .collect();
            assert_eq!(&got, expect);
        }
    }
}
