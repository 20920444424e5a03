//! Field selectors of custom kinds whose versions name their fields differently. The cache keeps the fields of the stored
//! version; those of another version are looked at once objects have been converted to it.

use std::sync::Arc;

use meta::{EventKind, FieldSelector, Object, Status, WatchEvent};
use resources::{Resource, ResourceVersion, Selectable, select_fields};

use crate::cache::watcher::Seen;
use crate::catalog::Served;

/// The terms of a selector that are about the version's own fields.
pub struct Converted {
    terms: FieldSelector,
    fields: Arc<[Selectable]>,
}

impl Converted {
    /// Takes such terms out of a selector; there are none where the version selects by what the stored one does.
    pub fn split(resource: &Resource, version: &ResourceVersion, selector: &mut FieldSelector) -> Option<Self> {
        if !resource.custom || *version.selectable == *resource.selectable {
            return None;
        }
        let own = |field: &str| version.selectable.iter().any(|s| *s.name == *field);
        let (terms, rest) = std::mem::take(&mut selector.terms).into_iter().partition(|(field, _, _)| own(field));
        selector.terms = rest;
        let terms = FieldSelector { terms };
        (!terms.is_everything()).then(|| Self { terms, fields: version.selectable.clone() })
    }

    /// Whether an object, shown in the version, is selected.
    pub fn selects(&self, shown: &Object) -> Result<bool, Status> {
        let texts = select_fields(&self.fields, &shown.value().map_err(Status::internal)?);
        let text = |field: &str| {
            let at = self.fields.iter().position(|s| *s.name == *field);
            at.and_then(|at| texts.get(at)).map_or("", |text| &**text)
        };
        Ok(self.terms.matches_by(text))
    }

    async fn selects_stored(
        &self,
        object: &Arc<Object>,
        served: &Served,
        version: &ResourceVersion,
    ) -> Result<bool, Status> {
        self.selects(&*served.present(object.clone(), version).await?)
    }

    /// What a watcher sees of what the other selectors let through, in the stored version; nothing of what stays outside.
    pub async fn see(
        &self,
        seen: Seen,
        served: &Served,
        version: &ResourceVersion,
    ) -> Result<Option<WatchEvent>, Status> {
        let (kind, object, previous) = match seen {
            Seen::Event(event) => (event.kind, event.object.clone(), event.previous.clone()),
            Seen::Changed(kind, object) => (kind, object, None),
            other => return Ok(Some(other.into_watch_event())),
        };
        let before = match kind {
            EventKind::Added => None,
            EventKind::Modified => previous,
            EventKind::Deleted => Some(previous.unwrap_or_else(|| object.clone())),
        };
        let was = match &before {
            Some(before) => self.selects_stored(before, served, version).await?,
            None => false,
        };
        let now = kind != EventKind::Deleted && self.selects_stored(&object, served, version).await?;
        Ok(match (was, now) {
            (false, false) => None,
            (false, true) => Some(WatchEvent::Object { kind: EventKind::Added, object }),
            (true, true) => Some(WatchEvent::Object { kind: EventKind::Modified, object }),
            (true, false) => {
                let last = before.filter(|_| kind != EventKind::Deleted);
                let object = last.map_or(object.clone(), |last| Arc::new(last.at_version(object.resource_version)));
                Some(WatchEvent::Object { kind: EventKind::Deleted, object })
            }
        })
    }
}
