//! Streaming a log file: from where the options say, on as it grows and is rotated, until the container has ended.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::{Options, Printer, tail_start};

/// Read at once, and sent on at once.
const CHUNK: usize = 64 << 10;
/// How often a log that is followed is looked at for more.
const POLL: Duration = Duration::from_millis(100);
/// A record longer than this is passed on in pieces.
const MAX_RECORD: usize = 1 << 20;

/// One open log.
struct Reader {
    path: PathBuf,
    file: File,
    inode: u64,
    rest: Vec<u8>,
}

impl Reader {
    fn open(path: &Path, options: &Options) -> io::Result<Self> {
        let mut file = File::open(path)?;
        let from = match options.tail_lines {
            Some(lines) => tail_start(&mut file, lines)?,
            None => 0,
        };
        file.seek(SeekFrom::Start(from))?;
        let inode = file.metadata()?.ino();
        Ok(Self { path: path.into(), file, inode, rest: Vec::new() })
    }

    /// What the next chunk shows; `None` at the end for now.
    fn next(&mut self, printer: &mut Printer) -> io::Result<Option<Vec<u8>>> {
        let mut block = vec![0; CHUNK];
        let count = self.file.read(&mut block)?;
        if count == 0 {
            return Ok(None);
        }
        self.rest.extend_from_slice(&block[..count]);
        let mut out = Vec::new();
        let mut from = 0;
        while let Some(end) = self.rest[from..].iter().position(|b| *b == b'\n') {
            printer.print(&self.rest[from..from + end], &mut out);
            from += end + 1;
        }
        self.rest.drain(..from);
        if self.rest.len() > MAX_RECORD {
            self.rest.clear();
        }
        Ok(Some(out))
    }

    /// Goes on in a fresh file when the log was rotated; true if so.
    fn reopened(&mut self) -> bool {
        match File::open(&self.path).and_then(|f| f.metadata().map(|m| (f, m.ino()))) {
            Ok((file, inode)) if inode != self.inode => {
                (self.file, self.inode) = (file, inode);
                self.rest.clear();
                true
            }
            _ => false,
        }
    }
}

/// Streams a log into a channel; `alive` says whether its container may write more.
pub async fn stream<F, Fut>(path: PathBuf, options: Options, send: mpsc::Sender<Bytes>, alive: F) -> io::Result<()>
where
    F: Fn() -> Fut,
    Fut: Future<Output = bool>,
{
    let mut reader = Reader::open(&path, &options)?;
    let mut printer = Printer::new(options.clone());
    let mut last_look = false;
    loop {
        // Local files: a read is a copy from the page cache.
        match reader.next(&mut printer)? {
            Some(out) => {
                if !out.is_empty() && send.send(out.into()).await.is_err() {
                    return Ok(());
                }
                if printer.full() {
                    return Ok(());
                }
            }
            None if !options.follow || last_look => return Ok(()),
            None if reader.reopened() => {}
            None => {
                // What was written just before the end is still read.
                last_look = !alive().await;
                if !last_look {
                    tokio::select! {
                        () = send.closed() => return Ok(()),
                        () = tokio::time::sleep(POLL) => {}
                    }
                }
            }
        }
    }
}
