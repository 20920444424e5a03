//! What the server itself follows of a kind it serves: all of its objects, then each change, for as long as it is asked.
//!
//! Guarantees that no change after the first list is missed, though one may be seen twice. Says nothing of deletions:
//! who cares looks at what is there. Knows no kind.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use meta::{EventKind, Object, WatchEvent};

use crate::cache::watcher::{Seen, Selection, Start, watch};
use crate::server::ApiServer;

/// The watch is opened anew after this long, in case it ended unseen.
const REOPEN: Duration = Duration::from_secs(3600);

/// Follows one kind.
pub struct Following {
    server: Arc<ApiServer>,
    group: &'static str,
    plural: &'static str,
    changes: Option<BoxStream<'static, Vec<Seen>>>,
}

impl Following {
    /// Of the kind with this group and plural name.
    pub fn new(server: &Arc<ApiServer>, group: &'static str, plural: &'static str) -> Self {
        Self { server: server.clone(), group, plural, changes: None }
    }

    /// The objects there are, none left out: at first and whenever the watch starts anew. Then those that changed.
    /// `None` when the kind is not served.
    pub async fn next(&mut self) -> Option<Vec<Arc<Object>>> {
        loop {
            let Some(changes) = &mut self.changes else { return self.open() };
            let Some(batch) = changes.next().await else {
                self.changes = None;
                continue;
            };
            let there = batch.into_iter().filter_map(|seen| match seen.into_watch_event() {
                WatchEvent::Object { kind, object } if kind != EventKind::Deleted => Some(object),
                _ => None,
            });
            return Some(there.collect());
        }
    }

    /// All objects there are now; empty when the kind is not served.
    pub fn all(&self) -> Vec<Arc<Object>> {
        let catalog = self.server.catalog();
        let cache = catalog.find(self.group, self.plural).and_then(|served| served.cache.as_ref());
        cache.map(|cache| cache.list(&format!("{}/", cache.prefix())).items).unwrap_or_default()
    }

    fn open(&mut self) -> Option<Vec<Arc<Object>>> {
        let catalog = self.server.catalog();
        let served = catalog.find(self.group, self.plural)?;
        let cache = served.cache.clone()?;
        let prefix = format!("{}/", cache.prefix());
        let start = Start {
            initial: Vec::new(),
            position: cache.newest().max(self.server.feed().progress()),
            mark_initial: false,
            bookmarks: false,
            timeout: REOPEN,
        };
        let items = cache.list(&prefix).items;
        let selection = Selection::new(&served.resource, &prefix, Default::default(), Default::default());
        self.changes = Some(watch(cache, self.server.feed().clone(), selection, start).boxed());
        Some(items)
    }
}
