//! Who uses a data directory: one `up` at a time, and the processes it started.
//!
//! Locks that the kernel lets go of with whoever holds them, so nothing stale is ever left. A new `up` goes on only when
//! every process of an earlier one has ended, also of one that was killed: two engines, kubelets or API servers never
//! share a node or a port. It does not know what is in the directory.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// Tells a child which directory it works on.
const ENVIRONMENT: &str = "NAUPLIUS_CLAIM";
/// Children of a killed `up` end by themselves; longer than a role may take for it.
const CHILDREN_END_WITHIN: Duration = Duration::from_secs(15);
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(10);

/// A share in a data directory, until dropped.
#[derive(Debug)]
pub struct Claim {
    file: PathBuf,
    _lock: Flock<File>,
}

fn path(data_dir: &Path, whose: &str) -> PathBuf {
    data_dir.join("lock").join(whose)
}

/// The lock, or nothing when somebody has it.
fn lock(file: &Path, how: FlockArg) -> Result<Option<Flock<File>>> {
    if let Some(dir) = file.parent() {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    let opened = File::options().create(true).append(true).open(file);
    match Flock::lock(opened.with_context(|| format!("cannot open {}", file.display()))?, how) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, error)) => Err(error).with_context(|| format!("cannot lock {}", file.display())),
    }
}

impl Claim {
    /// The directory for a new `up` alone, once the children of an earlier one are gone.
    pub async fn take(data_dir: &Path) -> Result<Self> {
        let file = path(data_dir, "up");
        let Some(own) = lock(&file, FlockArg::LockExclusiveNonblock)? else {
            bail!("a cluster is running on {}: stop it first, or choose another --data-dir", data_dir.display());
        };
        let children = path(data_dir, "children");
        let deadline = Instant::now() + CHILDREN_END_WITHIN;
        while lock(&children, FlockArg::LockExclusiveNonblock)?.is_none() {
            if Instant::now() > deadline {
                bail!("processes of an earlier start still use {}: end them first", data_dir.display());
            }
            tokio::time::sleep(LOOK_AGAIN_AFTER).await;
        }
        Ok(Self { file: children, _lock: own })
    }

    /// What a child's environment has to say.
    pub fn environment(&self) -> (&'static str, PathBuf) {
        (ENVIRONMENT, self.file.clone())
    }

    /// A child's share; nothing for a process that is no child.
    pub fn join() -> Result<Option<Self>> {
        let Some(file) = std::env::var_os(ENVIRONMENT).map(PathBuf::from) else { return Ok(None) };
        match lock(&file, FlockArg::LockSharedNonblock)? {
            Some(lock) => Ok(Some(Self { file, _lock: lock })),
            None => bail!("{} is about to be used by another cluster", file.display()),
        }
    }
}

/// Whether an `up` or something it started is at work on the directory.
pub fn taken(data_dir: &Path) -> Result<bool> {
    for whose in ["up", "children"] {
        let file = path(data_dir, whose);
        if file.exists() && lock(&file, FlockArg::LockExclusiveNonblock)?.is_none() {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!taken(dir.path()).unwrap());
        let first = Claim::take(dir.path()).await.unwrap();
        assert!(taken(dir.path()).unwrap());
        let refused = Claim::take(dir.path()).await.unwrap_err().to_string();
        assert!(refused.contains("a cluster is running"), "{refused}");
        // Its child outlives it: the next waits for that.
        let (_, file) = first.environment();
        let child = lock(&file, FlockArg::LockSharedNonblock).unwrap();
        assert!(child.is_some());
        drop(first);
        assert!(taken(dir.path()).unwrap());
        let next = Claim::take(dir.path());
        let end = async {
            tokio::time::sleep(LOOK_AGAIN_AFTER * 3).await;
            drop(child);
        };
        let (next, ()) = tokio::join!(next, end);
        next.unwrap();
        assert!(!taken(dir.path()).unwrap());
    }
}
