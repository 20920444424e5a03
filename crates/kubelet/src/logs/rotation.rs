//! Log rotation: a running container's log that has grown too large is set aside, and the engine told to open it anew. The
//! newest one set aside stays as it is, for whoever still reads it; older ones are compressed.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flate2::Compression;
use flate2::write::GzEncoder;
use futures::StreamExt;
use jiff::Timestamp;

use crate::agent::Context;
use crate::cri::v1;

/// Compressed logs, and files on their way to become such.
const COMPRESSED: &str = ".gz";
const UNFINISHED: &str = ".tmp";

/// Runs until the agent stops.
pub async fn run(context: Arc<Context>) {
    let wishes = &context.config.container_logs;
    loop {
        tokio::time::sleep(wishes.every).await;
        let one = |(path, id): (PathBuf, String)| {
            let context = &context;
            async move {
                if let Err(error) = rotate(context, &path, &id).await {
                    tracing::warn!(log = %path.display(), "log not rotated: {error:#}");
                }
            }
        };
        futures::stream::iter(large(&context).await).for_each_concurrent(wishes.workers, one).await;
    }
}

/// Logs beyond the size, with the containers that write them.
async fn large(context: &Context) -> Vec<(PathBuf, String)> {
    let (dir, max) = (context.config.log_dir.join("containers"), context.config.container_logs.max_size);
    let found: Vec<(PathBuf, String)> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let log = fs::read_link(entry.path()).ok()?;
            let large = fs::metadata(&log).ok()?.len() > max;
            let name = entry.file_name().to_string_lossy().into_owned();
            let id = name.strip_suffix(".log")?.rsplit_once('-')?.1.to_string();
            large.then_some((log, id))
        })
        .collect();
    if found.is_empty() {
        return found;
    }
    let state = v1::ContainerStateValue { state: v1::ContainerState::ContainerRunning as i32 };
    let filter = v1::ContainerFilter { state: Some(state), ..Default::default() };
    let running = context.engine.list_containers(v1::ListContainersRequest { filter: Some(filter) }).await;
    let running: HashMap<String, ()> =
        running.map(|r| r.containers.into_iter().map(|c| (c.id, ())).collect()).unwrap_or_default();
    found.into_iter().filter(|(_, id)| running.contains_key(id)).collect()
}

/// Rotated files of a log, oldest first.
pub fn rotated(log: &Path) -> Vec<PathBuf> {
    let name = log.file_name().map(|n| format!("{}.", n.to_string_lossy())).unwrap_or_default();
    let mut out: Vec<PathBuf> = log
        .parent()
        .and_then(|d| fs::read_dir(d).ok())
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(&name)))
        .collect();
    out.sort();
    out
}

/// A path with more at its end.
fn with(path: &Path, end: &str) -> PathBuf {
    let mut longer = path.as_os_str().to_owned();
    longer.push(end);
    longer.into()
}

/// Makes room for one more: drops what was left half done and the oldest beyond those to keep, compresses the others.
fn tidy(log: &Path, keep: usize) -> io::Result<()> {
    let ends = |path: &Path, end: &str| path.as_os_str().as_encoded_bytes().ends_with(end.as_bytes());
    let all = rotated(log);
    let (old, useless): (Vec<_>, Vec<_>) =
        all.iter().partition(|p| !ends(p, UNFINISHED) && !all.contains(&with(p, COMPRESSED)));
    let excess = old.len().saturating_sub(keep);
    for path in useless.into_iter().chain(old[..excess].iter().copied()) {
        fs::remove_file(path)?;
    }
    for path in old[excess..].iter().filter(|p| !ends(p, COMPRESSED)) {
        compress(path)?;
    }
    Ok(())
}

/// Replaces a file by its compressed self, which has its name only once it is whole.
fn compress(path: &Path) -> io::Result<()> {
    let unfinished = with(path, UNFINISHED);
    let mut from = fs::File::open(path)?;
    let to = fs::File::create(&unfinished)?;
    to.set_permissions(from.metadata()?.permissions())?;
    let mut encoder = GzEncoder::new(to, Compression::default());
    io::copy(&mut from, &mut encoder)?;
    encoder.finish()?;
    fs::rename(&unfinished, with(path, COMPRESSED))?;
    fs::remove_file(path)
}

async fn rotate(context: &Context, log: &Path, id: &str) -> anyhow::Result<()> {
    // The current file counts, and the one about to be set aside.
    let keep = context.config.container_logs.max_files.saturating_sub(2);
    let path = log.to_path_buf();
    tokio::task::spawn_blocking(move || tidy(&path, keep)).await??;
    let stamp = Timestamp::now().strftime("%Y%m%d-%H%M%S").to_string();
    let aside = PathBuf::from(format!("{}.{stamp}", log.display()));
    fs::rename(log, &aside)?;
    if let Err(status) =
        context.engine.reopen_container_log(v1::ReopenContainerLogRequest { container_id: id.into() }).await
    {
        // The engine still writes to the old file: give it its name back.
        fs::rename(&aside, log)?;
        return Err(status.into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn room_for_one_more() {
        let dir = std::env::temp_dir().join(format!("kubelet-rotation-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let log = dir.join("0.log");
        for name in ["0.log", "0.log.1.gz", "0.log.2", "0.log.2.gz", "0.log.3", "0.log.4", "0.log.3.tmp", "10.log.5"] {
            fs::write(dir.join(name), name).unwrap();
        }
        let check = |keep: usize, expect: &str| {
            tidy(&log, keep).unwrap();
            let mut names: Vec<String> =
                fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            assert_eq!(names.join(" "), expect, "{keep}");
        };
        check(3, "0.log 0.log.2.gz 0.log.3.gz 0.log.4.gz 10.log.5");
        let mut text = String::new();
        flate2::read::GzDecoder::new(fs::File::open(dir.join("0.log.4.gz")).unwrap())
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(text, "0.log.4");
        check(0, "0.log 10.log.5");
        fs::remove_dir_all(dir).unwrap();
    }
}
