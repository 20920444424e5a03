//! Events in a file, one a line, or on standard output.
//!
//! A thread of its own writes them. A file that would grow beyond its limit is put aside under the time of that moment, and
//! of those the oldest go: the names are upstream's (lumberjack's), so whoever collects them finds them.

use std::borrow::Cow;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use jiff::civil::DateTime;
use tokio::sync::mpsc;

use super::sink::{Overflow, Queued, Sink};

/// Megabytes of a file where none is said, as upstream.
const DEFAULT_MEGABYTES: u64 = 100;
/// Bytes gathered for one write.
const GATHER: usize = 256 << 10;
/// When a file was put aside, in its name.
const ASIDE: &str = "%Y-%m-%dT%H-%M-%S";

/// `--audit-log-*`.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// `-` is standard output.
    pub path: PathBuf,
    /// Days to keep files that were put aside; 0 is for ever.
    pub max_age_days: u64,
    /// How many of them to keep; 0 is all.
    pub max_backups: usize,
    /// Megabytes of a file.
    pub max_megabytes: u64,
    /// Compress files that were put aside.
    pub compress: bool,
    /// Lines for people instead of JSON.
    pub legacy: bool,
}

/// Opens the log; its writer ends with the sink.
pub fn open(options: Options, overflow: Overflow) -> Result<Sink, String> {
    let (sink, queue) = Sink::new("log", overflow);
    let form: fn(&[u8]) -> Cow<'_, [u8]> =
        if options.legacy { |event| super::legacy::line(event).into() } else { |event| event.into() };
    let out: Box<dyn Out> = if options.path.as_os_str() == "-" {
        Box::new(std::io::stdout())
    } else {
        let shown = options.path.display().to_string();
        Box::new(Rotated::open(options).map_err(|e| format!("ensureLogFile: open {shown}: {e}"))?)
    };
    let errors = sink.errors.clone();
    let spawned =
        std::thread::Builder::new().name("audit-log".into()).spawn(move || write_all(out, queue, form, &errors));
    spawned.map_err(|e| format!("audit log's writer: {e}"))?;
    Ok(sink)
}

/// Takes whole lines.
trait Out: Send {
    fn lines(&mut self, lines: &[u8]) -> std::io::Result<()>;
}

impl Out for std::io::Stdout {
    fn lines(&mut self, lines: &[u8]) -> std::io::Result<()> {
        let mut out = self.lock();
        out.write_all(lines)?;
        out.flush()
    }
}

fn write_all(
    mut out: Box<dyn Out>,
    mut queue: mpsc::Receiver<Queued>,
    form: fn(&[u8]) -> Cow<'_, [u8]>,
    errors: &Arc<AtomicU64>,
) {
    let mut gathered = Vec::new();
    let mut waiting = Vec::new();
    let mut failing = false;
    while let Some(first) = queue.blocking_recv() {
        let (mut next, mut events) = (Some(first), 0);
        while let Some(queued) = next {
            match queued {
                Queued::Event(event, _) => {
                    gathered.extend_from_slice(&form(&event));
                    gathered.push(b'\n');
                    events += 1;
                }
                Queued::Flush(done) => waiting.push(done),
            }
            next = if gathered.len() < GATHER { queue.try_recv().ok() } else { None };
        }
        let written = out.lines(&gathered);
        if let Err(error) = &written {
            errors.fetch_add(events, Ordering::Relaxed);
            if !failing {
                tracing::error!(%error, "audit log cannot be written: events are lost");
            }
        }
        failing = written.is_err();
        gathered.clear();
        gathered.shrink_to(GATHER * 2);
        for done in waiting.drain(..) {
            let _ = done.send(());
        }
    }
}

/// A file that is put aside when it has grown.
struct Rotated {
    options: Options,
    file: File,
    size: u64,
}

fn open_log(path: &Path) -> std::io::Result<File> {
    if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
        std::fs::create_dir_all(dir)?;
    }
    File::options().append(true).create(true).mode(0o600).open(path)
}

/// A file's name, before and after where a time is put.
fn name_parts(path: &Path) -> (String, String) {
    let text = |part: Option<&std::ffi::OsStr>| part.map(|p| p.to_string_lossy().into_owned()).unwrap_or_default();
    let ending = path.extension().map(|e| format!(".{}", e.to_string_lossy())).unwrap_or_default();
    (text(path.file_stem()), ending)
}

impl Rotated {
    fn open(options: Options) -> std::io::Result<Self> {
        let file = open_log(&options.path)?;
        let size = file.metadata()?.len();
        Ok(Self { options, file, size })
    }

    fn limit(&self) -> u64 {
        let megabytes = if self.options.max_megabytes == 0 { DEFAULT_MEGABYTES } else { self.options.max_megabytes };
        megabytes.saturating_mul(1 << 20)
    }

    fn rotate(&mut self, now: jiff::Timestamp) -> std::io::Result<()> {
        let path = &self.options.path;
        let (stem, ending) = name_parts(path);
        let millis = now.subsec_millisecond();
        let aside = path.with_file_name(format!("{stem}-{}.{millis:03}{ending}", now.strftime(ASIDE)));
        std::fs::rename(path, &aside)?;
        self.file = open_log(path)?;
        self.size = 0;
        if self.options.compress {
            compress(&aside)?;
        }
        for old in self.outdated(now)? {
            std::fs::remove_file(old)?;
        }
        Ok(())
    }

    /// Files put aside that are too old or too many.
    fn outdated(&self, now: jiff::Timestamp) -> std::io::Result<Vec<PathBuf>> {
        let path = &self.options.path;
        let (stem, ending) = name_parts(path);
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut aside: Vec<(jiff::Timestamp, PathBuf)> = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let plain = name.strip_suffix(".gz").unwrap_or(&name);
            let time = plain.strip_prefix(&*stem).and_then(|n| n.strip_prefix('-')?.strip_suffix(&*ending));
            let Some((time, millis)) = time.and_then(|t| t.rsplit_once('.')) else { continue };
            let (Ok(time), Ok(millis)) = (DateTime::strptime(ASIDE, time), millis.parse::<u64>()) else { continue };
            let Ok(time) = time.to_zoned(jiff::tz::TimeZone::UTC) else { continue };
            aside.push((time.timestamp() + Duration::from_millis(millis.min(999)), entry.path()));
        }
        aside.sort();
        aside.reverse();
        let Options { max_age_days, max_backups, .. } = self.options;
        let oldest = jiff::SignedDuration::from_hours(24 * i64::try_from(max_age_days).unwrap_or(i64::MAX / 24));
        let goes = |at: usize, time: jiff::Timestamp| {
            (max_backups > 0 && at >= max_backups) || (max_age_days > 0 && now.duration_since(time) > oldest)
        };
        Ok(aside
            .into_iter()
            .enumerate()
            .filter(|(at, (time, _))| goes(*at, *time))
            .map(|(_, (_, path))| path)
            .collect())
    }

    fn lines_at(&mut self, lines: &[u8], now: jiff::Timestamp) -> std::io::Result<()> {
        let mut rest = Bytes::copy_from_slice(lines);
        while !rest.is_empty() {
            let left = usize::try_from(self.limit().saturating_sub(self.size)).unwrap_or(usize::MAX);
            // As many whole lines as there is room for; a line alone in its file may be larger than that.
            let fits = if rest.len() <= left {
                rest.len()
            } else {
                rest[..left].iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1)
            };
            let fits = match fits {
                0 if self.size > 0 => {
                    self.rotate(now)?;
                    continue;
                }
                0 => rest.iter().position(|b| *b == b'\n').map_or(rest.len(), |at| at + 1),
                fits => fits,
            };
            self.file.write_all(&rest.split_to(fits))?;
            self.size += fits as u64;
        }
        Ok(())
    }
}

impl Out for Rotated {
    fn lines(&mut self, lines: &[u8]) -> std::io::Result<()> {
        self.lines_at(lines, jiff::Timestamp::now())
    }
}

fn compress(path: &Path) -> std::io::Result<()> {
    let mut name = path.as_os_str().to_os_string();
    name.push(".gz");
    let out = File::options().write(true).create_new(true).mode(0o600).open(&name)?;
    let mut encoder = flate2::write::GzEncoder::new(out, flate2::Compression::default());
    std::io::copy(&mut File::open(path)?, &mut encoder)?;
    encoder.finish()?;
    std::fs::remove_file(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn files_are_put_aside_and_the_oldest_go() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let options =
            Options { path: path.clone(), max_backups: 2, max_megabytes: 1, compress: true, ..Options::default() };
        let mut log = Rotated::open(options).unwrap();
        let mut line = vec![b'x'; 700 << 10];
        line.push(b'\n');
        let at = |second: i64| jiff::Timestamp::from_second(1_700_000_000 + second).unwrap();
        for second in 0..5 {
            log.lines_at(&line, at(second)).unwrap();
        }
        assert_eq!(
            names(dir.path()),
            ["audit-2023-11-14T22-13-23.000.log.gz", "audit-2023-11-14T22-13-24.000.log.gz", "audit.log"]
        );
        let mut whole = Vec::new();
        let first = File::open(dir.path().join("audit-2023-11-14T22-13-23.000.log.gz")).unwrap();
        std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(first), &mut whole).unwrap();
        assert_eq!(whole, line);
        // What is there is gone on with, and days count too.
        drop(log);
        let options = Options { path, max_age_days: 1, max_megabytes: 1, ..Options::default() };
        let mut log = Rotated::open(options).unwrap();
        log.lines_at(&line, at(200_000)).unwrap();
        assert_eq!(names(dir.path()), ["audit-2023-11-17T05-46-40.000.log", "audit.log"]);
    }

    #[test]
    fn a_write_is_cut_between_lines() {
        let dir = tempfile::tempdir().unwrap();
        let options = Options { path: dir.path().join("a"), max_megabytes: 1, ..Options::default() };
        let mut log = Rotated::open(options).unwrap();
        let mut line = vec![b'x'; 400 << 10];
        line.push(b'\n');
        let mut huge = vec![b'y'; 2 << 20];
        huge.push(b'\n');
        let now = jiff::Timestamp::from_second(1_700_000_000).unwrap();
        log.lines_at(&[&line[..], &line, &line].concat(), now).unwrap();
        assert_eq!(std::fs::metadata(dir.path().join("a")).unwrap().len(), line.len() as u64);
        log.lines_at(&huge, now + Duration::from_secs(1)).unwrap();
        assert_eq!(std::fs::metadata(dir.path().join("a")).unwrap().len(), huge.len() as u64);
        assert_eq!(names(dir.path()).len(), 3);
    }

    #[tokio::test]
    async fn what_was_put_is_written_after_a_flush() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/audit.log");
        let sink = open(Options { path: path.clone(), ..Options::default() }, Overflow::Block).unwrap();
        sink.put(Bytes::from_static(b"{}")).await;
        sink.put(Bytes::from_static(b"[]")).await;
        sink.flush().await;
        assert_eq!(std::fs::read_to_string(path).unwrap(), "{}\n[]\n");
    }
}
