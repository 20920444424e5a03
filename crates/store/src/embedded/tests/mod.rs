//! The embedded store alone: restarts, damage, faults, kills, limits.

mod crash;
mod decoders;
mod disk;
mod faults;
mod format;
mod history;
mod kill;
mod life;

use std::collections::BTreeMap;
use std::path::Path;

use super::{Embedded, Options, open};
use crate::{Backend, KeyValue, StoreError};

/// Small segments, so that few writes make several.
fn small() -> Options {
    Options { segment_bytes: 2 << 10, ..Options::default() }
}

/// Everything a store holds now.
async fn contents(store: &Embedded) -> BTreeMap<String, KeyValue> {
    let range = store.range("", "\u{10FFFF}", 0, None).await.unwrap();
    range.items.into_iter().map(|kv| (kv.key.to_string(), kv)).collect()
}

/// Copies the files of a closed store to a new directory.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// The files whose names start so, in order.
fn files(dir: &Path, prefix: &str) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let named = |path: &std::path::PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with(prefix);
    let mut paths: Vec<_> = entries.filter(named).collect();
    paths.sort();
    paths
}

fn is_corrupt(error: &StoreError) -> bool {
    matches!(error, StoreError::Corrupt(_))
}
