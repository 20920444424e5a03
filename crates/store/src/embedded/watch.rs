//! Watches on the embedded store: a position in the shared history.
//!
//! Guarantees: every change of the prefix after the start, once, in order, whole revisions; progress for what passed
//! without one. A watcher buffers nothing of its own but the few groups it has taken; one that falls behind the history
//! gets `Compacted`. Nothing runs while nothing changes.

use std::collections::VecDeque;
use std::sync::Arc;

use futures::StreamExt;
use futures::stream;

use super::Shared;
use crate::{Change, Revision, StoreError, WatchItem, WatchStream};

/// Groups taken from the history at a time, so that the lock is held briefly.
const GROUPS_AT_ONCE: usize = 64;

struct Watcher {
    shared: Arc<Shared>,
    published: tokio::sync::watch::Receiver<Revision>,
    prefix: Box<str>,
    /// Everything up to here has been taken from the history.
    position: Revision,
    /// The newest revision the reader knows to be complete.
    told: Revision,
    taken: VecDeque<Arc<[Change]>>,
    /// Everything there was at the last look has been taken.
    current: bool,
    ended: bool,
}

/// Starts a watch of all changes of `prefix` after a revision.
pub fn start(shared: Arc<Shared>, prefix: &str, after: Revision) -> Result<WatchStream, StoreError> {
    let published = shared.published.subscribe();
    {
        let index = shared.read()?;
        let (compacted, current) = (index.compacted(), index.revision());
        if after < compacted {
            return Err(StoreError::Compacted { compacted, current });
        }
        if after > current {
            return Err(StoreError::FutureRevision { requested: after, current });
        }
    }
    let watcher = Watcher {
        shared,
        published,
        prefix: prefix.into(),
        position: after,
        told: after,
        taken: VecDeque::new(),
        current: false,
        ended: false,
    };
    let items = stream::unfold(watcher, |mut watcher| async move {
        if watcher.ended {
            return None;
        }
        let item = watcher.next().await;
        watcher.ended = item.is_err();
        Some((item, watcher))
    });
    Ok(items.boxed())
}

impl Watcher {
    async fn next(&mut self) -> Result<WatchItem, StoreError> {
        loop {
            while let Some(group) = self.taken.pop_front() {
                if let Some(changes) = self.select(group) {
                    self.told = changes.last().map_or(self.told, |change| change.revision);
                    return Ok(WatchItem::Changes(changes));
                }
            }
            if !self.current || self.published.has_changed().map_err(|_| StoreError::Closed)? {
                // Marked seen before looking, so that nothing published after the look is missed.
                self.published.borrow_and_update();
                let (groups, revision) = {
                    let index = self.shared.read()?;
                    (index.changes_after(self.position, GROUPS_AT_ONCE)?, index.revision())
                };
                let groups = super::load_groups(groups).await?;
                let last = groups.last().and_then(|group| group.last());
                let more = last.is_some();
                self.position = last.map_or(revision, |change| change.revision);
                self.current = self.position == revision;
                self.taken.extend(groups);
                if more {
                    continue;
                }
            }
            if self.told < self.position {
                self.told = self.position;
                return Ok(WatchItem::Progress(self.position));
            }
            self.published.changed().await.map_err(|_| StoreError::Closed)?;
            self.current = false;
        }
    }

    /// The changes of the prefix in a group; the group itself, shared, when that is all of them.
    fn select(&self, group: Arc<[Change]>) -> Option<Arc<[Change]>> {
        let matches = group.iter().filter(|change| change.key.starts_with(&*self.prefix)).count();
        if matches == group.len() {
            return Some(group);
        }
        if matches == 0 {
            return None;
        }
        Some(group.iter().filter(|change| change.key.starts_with(&*self.prefix)).cloned().collect())
    }
}
