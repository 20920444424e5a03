//! `nauplius reset`: takes away everything a cluster left on this machine, and nothing else.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::cluster_name;
use crate::claim;
use crate::fabric::{Fabric, Layout};
use crate::node::NodePlace;

#[derive(clap::Args, Clone)]
pub struct ResetOptions {
    /// The cluster's data directory.
    #[arg(long)]
    pub data_dir: Option<PathBuf>,
}

/// Files that mark a directory as a cluster's: nothing else is ever removed.
const MARKS: [&str; 2] = ["pki/ca.crt", "store"];

pub async fn run(options: ResetOptions) -> Result<()> {
    let dir = options.data_dir.unwrap_or_else(super::default_data_dir);
    if !dir.exists() {
        eprintln!("  nothing to remove: {} does not exist", dir.display());
        return Ok(());
    }
    let dir = dir.canonicalize()?;
    if !MARKS.iter().any(|mark| dir.join(mark).exists()) {
        bail!("{} does not look like a cluster's data directory; nothing was removed", dir.display());
    }
    if claim::taken(&dir)? {
        bail!("a cluster is running on {}: stop it first", dir.display());
    }
    let cluster = cluster_name(&dir);
    let mut failed = Vec::new();
    let mut note = |what: &str, result: Result<()>| match result {
        Ok(()) => eprintln!("  removed {what}"),
        Err(error) => failed.push(format!("{what}: {error:#}")),
    };
    if nix::unistd::geteuid().is_root() {
        for entry in std::fs::read_dir(dir.join("nodes")).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            note(&format!("pods and mounts of {name}"), remove_node(&entry.path()).await);
        }
        // The groups of the nodes lie in the cluster's own.
        note("control groups", crate::node::leftovers::remove_cgroups(&format!("/{cluster}")));
        note("network namespaces and routes", Fabric::remove(&Layout::new(&*cluster, 0)));
        let run_dir = Path::new("/run").join(&cluster);
        if run_dir.exists() {
            note("run-time files", std::fs::remove_dir_all(&run_dir).map_err(Into::into));
        }
    }
    note(
        "the data directory",
        std::fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display())),
    );
    if failed.is_empty() { Ok(()) } else { bail!("not everything could be removed:\n  {}", failed.join("\n  ")) }
}

async fn remove_node(dir: &Path) -> Result<()> {
    let file = dir.join("node.json");
    let place: NodePlace =
        serde_json::from_slice(&std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?)?;
    crate::node::remove(&place).await
}
