//! Get, list and watch, from the watch cache.
//!
//! Resource version semantics follow upstream's "Resource Versions" page: unset is a consistent read, `0` is whatever the
//! cache has, `N` is at least that (or exactly that, when asked). Pages of a list come from one snapshot: from the cache
//! while it is unchanged, else from the store's history.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures::StreamExt;
use meta::{FieldSelector, LabelSelector, List, Object, Options, Reply, Status, Verb, WatchEvent, WatchStream};
use rand::Rng;
use serde::{Deserialize, Serialize};
use store::{Revision, StoreError};

use super::converted::Converted;
use super::{FRESHNESS_LIMIT, Target};
use crate::cache::watcher::{self, Selection, Start};
use crate::instruments::Asked;
use crate::server::ApiServer;

/// How long a watch lasts when the client names no timeout: upstream's half to one hour.
const WATCH_SECONDS: std::ops::Range<u64> = 1800..3600;
/// Longest watch a client may ask for.
const MAX_WATCH: Duration = Duration::from_secs(24 * 3600);
/// Objects read from the store's history at a time.
const HISTORY_PAGE: usize = 1000;

/// Where the next page starts; upstream's token has the same fields.
#[derive(Serialize, Deserialize)]
struct ContinueToken {
    v: String,
    /// The snapshot; [`NEWEST`] when it may be any.
    rv: i64,
    start: String,
}

impl ContinueToken {
    fn encode(&self) -> Result<String, Status> {
        Ok(URL_SAFE_NO_PAD.encode(serde_json::to_vec(self).map_err(Status::internal)?))
    }
}

/// The list goes on from its key in whatever the world is by then.
const NEWEST: i64 = -1;

const TOKEN_VERSION: &str = "meta.k8s.io/v1";

/// Which state of the world a read wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Freshness {
    Consistent,
    Any,
    AtLeast(Revision),
    Exactly(Revision),
}

fn parse_revision(text: &str) -> Result<Revision, Status> {
    text.parse().map_err(|error| {
        let why = crate::http::route::not_a_number("ParseUint", text, &error);
        Status::bad_request(format!("resourceVersion: Invalid value: {text:?}: {why}"))
    })
}

fn freshness(options: &Options) -> Result<Freshness, Status> {
    let version = options.resource_version.as_deref().unwrap_or_default();
    let matching = options.resource_version_match.as_deref().unwrap_or_default();
    match (version, matching) {
        ("", _) => Ok(Freshness::Consistent),
        ("0", _) => Ok(Freshness::Any),
        (n, "Exact") => Ok(Freshness::Exactly(parse_revision(n)?)),
        // Before resourceVersionMatch existed, a limit made a version exact.
        (n, "") if options.limit.unwrap_or(0) > 0 => Ok(Freshness::Exactly(parse_revision(n)?)),
        (n, _) => Ok(Freshness::AtLeast(parse_revision(n)?)),
    }
}

/// Parses both selectors and narrows a collection to them, but for what can only be told of converted objects.
fn selection(target: &Target<'_>) -> Result<(Selection, Option<Converted>), Status> {
    let options = &target.request.options;
    let resource = &target.served.resource;
    let labels =
        LabelSelector::parse(options.label_selector.as_deref().unwrap_or_default()).map_err(Status::bad_request)?;
    let mut fields =
        FieldSelector::parse(options.field_selector.as_deref().unwrap_or_default()).map_err(Status::bad_request)?;
    let converted = Converted::split(resource, target.version, &mut fields);
    let own = if resource.custom { &target.version.selectable } else { &resource.selectable };
    for (field, _, _) in &fields.terms {
        let known =
            matches!(&**field, "metadata.name" | "metadata.namespace") || own.iter().any(|s| *s.name == **field);
        if !known {
            // A kind that selects by nothing of its own is upstream's general case.
            let general = resource.selectable.is_empty() && !resource.custom;
            let of_its_own = (&*resource.group, &*resource.kind) == ("batch", "Job");
            return Err(Status::bad_request(if of_its_own {
                format!("field label {field:?} not supported for Job")
            } else if general {
                format!("{field:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"")
            } else {
                format!("field label not supported: {field}")
            }));
        }
    }
    if !target.request.name.is_empty() {
        fields.terms.push(("metadata.name".into(), target.request.name.as_str().into(), true));
    }
    let prefix = match (resource.namespaced, &*target.request.namespace) {
        (true, ns) if !ns.is_empty() => format!("{}/{ns}/", resource.prefix),
        _ => format!("{}/", resource.prefix),
    };
    Ok((Selection::new(resource, &prefix, labels, fields), converted))
}

/// The store's troubles, as clients see them.
pub fn store_error(error: StoreError) -> Status {
    match error {
        StoreError::Compacted { .. } => Status::expired("The resourceVersion for the provided list is too old."),
        StoreError::TooLarge { .. } => Status::new(meta::Reason::RequestEntityTooLarge, error.to_string()),
        StoreError::Unavailable(_) => Status::new(meta::Reason::ServiceUnavailable, error.to_string()),
        other => Status::internal(other),
    }
}

impl ApiServer {
    async fn await_freshness(&self, wanted: Freshness) -> Result<(), Status> {
        let revision = match wanted {
            Freshness::Any => return Ok(()),
            Freshness::Consistent => self.store().current_revision().await.map_err(store_error)?,
            Freshness::AtLeast(revision) | Freshness::Exactly(revision) => revision,
        };
        if self.feed().progress() >= revision {
            return Ok(());
        }
        self.store().request_progress().await.map_err(store_error)?;
        if self.feed().reach(revision, FRESHNESS_LIMIT).await {
            return Ok(());
        }
        let message = format!("Too large resource version: {revision}, current: {}", self.feed().progress());
        let cause = meta::Cause {
            reason: "ResourceVersionTooLarge".into(),
            message: "Too large resource version".into(),
            field: String::new(),
        };
        Err(Status::timeout(format!("Timeout: {message}"), 1).with_causes(vec![cause]))
    }

    /// The newest state of one object, or a 404.
    pub(super) async fn get(&self, target: Target<'_>) -> Result<Reply, Status> {
        let version = target.request.options.resource_version.as_deref().unwrap_or_default();
        let wanted = match version {
            "" => Freshness::Consistent,
            "0" => Freshness::Any,
            n => Freshness::AtLeast(parse_revision(n)?),
        };
        self.await_freshness(wanted).await?;
        let (cache, key) = (target.served.cache()?, target.key());
        cache.readable(&key)?;
        let object = cache.get(&key).ok_or_else(|| target.not_found())?;
        Ok(Reply::Object { object: target.served.present(object, target.version).await?, created: false })
    }

    pub(super) async fn list(&self, target: Target<'_>) -> Result<Reply, Status> {
        let mut list = self.list_stored(target).await?;
        target.served.present_all(&mut list.items, target.version).await?;
        Ok(Reply::List(list))
    }

    /// A list in the storage version.
    pub async fn list_stored(&self, target: Target<'_>) -> Result<List, Status> {
        let options = &target.request.options;
        super::list_options::check(options, false)?;
        let (selection, converted) = selection(&target)?;
        let limit = options.limit.filter(|n| *n > 0).map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX));
        let token = options.continue_token.as_deref().filter(|t| !t.is_empty()).map(parse_token).transpose()?;
        let (after, at) = match token {
            Some(_) if options.resource_version.as_deref().is_some_and(|v| !v.is_empty() && v != "0") => {
                return Err(Status::bad_request("specifying resource version is not allowed when using continue"));
            }
            Some(token) if token.rv == NEWEST => {
                self.await_freshness(Freshness::Consistent).await?;
                (Some(format!("{}{}", selection.prefix, token.start)), None)
            }
            Some(token) => (Some(format!("{}{}", selection.prefix, token.start)), Some(token.rv.unsigned_abs())),
            None => match freshness(options)? {
                Freshness::Exactly(revision) => {
                    self.await_freshness(Freshness::AtLeast(revision)).await?;
                    (None, Some(revision))
                }
                wanted => {
                    self.await_freshness(wanted).await?;
                    (None, None)
                }
            },
        };
        let cache = target.served.cache()?;
        let page = match at {
            Some(revision) if cache.newest() > revision => {
                let from = after.as_deref().and_then(|key| key.strip_prefix(&*selection.prefix)).map(str::to_string);
                match self.page_of_history(&target, &selection, after, limit, revision).await {
                    Err(mut status) if status.is(meta::Reason::Expired) => {
                        // What is left can be had, if not from that moment.
                        if let Some(start) = from {
                            let token = ContinueToken { v: TOKEN_VERSION.into(), rv: NEWEST, start };
                            status.continue_token = Some(token.encode()?.into());
                        }
                        return Err(status);
                    }
                    page => page?,
                }
            }
            _ => {
                cache.all_readable(&selection.prefix)?;
                // The revision first: what it covers is in the cache for certain.
                let progress = self.feed().progress();
                let mut page = page_of_cache(cache, &selection, after, limit);
                page.revision = at.unwrap_or(progress.max(page.revision));
                page
            }
        };
        let mut list = List { resource_version: page.revision, items: page.items, ..List::default() };
        if let Some(last) = page.next {
            let start = last.strip_prefix(&*selection.prefix).unwrap_or(&last).to_string();
            let rv = i64::try_from(page.revision).map_err(Status::internal)?;
            list.continue_token = Some(ContinueToken { v: TOKEN_VERSION.into(), rv, start }.encode()?);
            let all = selection.is_everything() && converted.is_none();
            list.remaining_item_count = all.then_some(page.remaining as u64);
        }
        if let Some(converted) = converted {
            let mut shown = list.items.clone();
            target.served.present_all(&mut shown, target.version).await?;
            let selected: Result<Vec<bool>, Status> = shown.iter().map(|object| converted.selects(object)).collect();
            let mut selected = selected?.into_iter();
            list.items.retain(|_| selected.next() == Some(true));
        }
        Ok(list)
    }

    async fn page_of_history(
        &self,
        target: &Target<'_>,
        selection: &Selection,
        after: Option<String>,
        limit: usize,
        revision: Revision,
    ) -> Result<Page, Status> {
        let cache = target.served.cache()?;
        let end = store::prefix_end(&selection.prefix);
        let goes_on = after.is_some();
        let mut start = after.map_or_else(|| selection.prefix.to_string(), |key| key + "\0");
        let mut page = Page { revision, ..Page::default() };
        loop {
            let range = self.store().range(&start, &end, HISTORY_PAGE, Some(revision));
            let range = target.served.stored.of(Asked::List, range).await.map_err(|error| match error {
                StoreError::Compacted { .. } if goes_on => Status::expired(
                    "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.",
                ),
                other => store_error(other),
            })?;
            for (at, item) in range.items.iter().enumerate() {
                let Some(object) = cache.read(item)?.filter(|object| selection.matches(object)) else { continue };
                page.items.push(Arc::new(object));
                if page.items.len() == limit {
                    page.remaining = usize::try_from(range.count).unwrap_or(usize::MAX).saturating_sub(at + 1);
                    page.next = (page.remaining > 0).then(|| item.key.to_string());
                    return Ok(page);
                }
            }
            match range.items.last() {
                Some(last) if range.more => start = format!("{}\0", last.key),
                _ => return Ok(page),
            }
        }
    }

    pub(super) async fn watch(&self, target: Target<'_>) -> Result<Reply, Status> {
        let options = &target.request.options;
        super::list_options::check(options, true)?;
        let (selection, converted) = selection(&target)?;
        let cache = target.served.cache()?.clone();
        let version = options.resource_version.as_deref().unwrap_or_default();
        let streaming_list = options.send_initial_events == Some(true);
        let initial = streaming_list || (matches!(version, "" | "0") && options.send_initial_events.is_none());
        let mut start = Start {
            initial: Vec::new(),
            position: 0,
            mark_initial: streaming_list && options.allow_watch_bookmarks,
            bookmarks: options.allow_watch_bookmarks,
            timeout: options.timeout_seconds.filter(|s| *s > 0).map_or_else(
                || Duration::from_secs(rand::rng().random_range(WATCH_SECONDS)),
                |s| Duration::from_secs(s).min(MAX_WATCH),
            ),
        };
        if initial {
            self.await_freshness(match version {
                "" => Freshness::Consistent,
                "0" => Freshness::Any,
                n => Freshness::AtLeast(parse_revision(n)?),
            })
            .await?;
            cache.all_readable(&selection.prefix)?;
            let progress = self.feed().progress();
            let slice = cache.list(&selection.prefix);
            start.position = progress.max(slice.newest);
            start.initial = slice.items.into_iter().filter(|object| selection.matches(object)).collect();
        } else {
            start.position = match version {
                "" | "0" => {
                    self.await_freshness(Freshness::Consistent).await?;
                    self.feed().progress()
                }
                n => parse_revision(n)?,
            };
        }
        let (served, shown) = (target.served.clone(), target.version.clone());
        let converted = Arc::new(converted);
        let events = watcher::watch(cache, self.feed().clone(), selection, start);
        let events = events.then(move |batch| {
            let (served, shown, converted) = (served.clone(), shown.clone(), converted.clone());
            async move {
                let mut events = Vec::with_capacity(batch.len());
                for seen in batch {
                    let event = match &*converted {
                        Some(converted) => converted.see(seen, &served, &shown).await,
                        None => Ok(Some(seen.into_watch_event())),
                    };
                    let event = match event {
                        Ok(Some(WatchEvent::Object { kind, object })) => {
                            let object = served.present(object, &shown).await;
                            object.map(|object| Some(WatchEvent::Object { kind, object }))
                        }
                        other => other,
                    };
                    match event {
                        Ok(event) => events.extend(event),
                        Err(status) => {
                            events.push(WatchEvent::Error(status));
                            return [Some(events), None];
                        }
                    }
                }
                [Some(events), Some(Vec::new())]
            }
        });
        // What cannot be shown ends the watch: going on would hide that something is missing.
        let events = events.flat_map(futures::stream::iter).take_while(|batch| std::future::ready(batch.is_some()));
        let events = events.filter_map(|batch| std::future::ready(batch.filter(|batch| !batch.is_empty())));
        let events: WatchStream = events.boxed();
        debug_assert_eq!(target.request.verb, Verb::Watch);
        Ok(Reply::Watch(events))
    }
}

#[derive(Default)]
struct Page {
    items: Vec<Arc<Object>>,
    revision: Revision,
    /// Key of the last item, when more follow.
    next: Option<String>,
    remaining: usize,
}

fn page_of_cache(cache: &crate::cache::Cache, selection: &Selection, after: Option<String>, limit: usize) -> Page {
    let key_of = |object: &Object| match &*object.meta.namespace {
        "" => format!("{}/{}", cache.prefix(), object.meta.name),
        ns => format!("{}/{ns}/{}", cache.prefix(), object.meta.name),
    };
    let (slice, more) =
        cache.slice(&selection.prefix, after.as_deref(), if selection.is_everything() { limit } else { usize::MAX });
    let mut page = Page { revision: slice.newest, ..Page::default() };
    if selection.is_everything() {
        page.next = if more { slice.items.last().map(|last| key_of(last)) } else { None };
        if let Some(last) = &page.next {
            page.remaining = cache.slice(&selection.prefix, Some(last), usize::MAX).0.items.len();
        }
        page.items = slice.items;
        return page;
    }
    let mut rest = slice.items.into_iter().filter(|object| selection.matches(object));
    page.items = rest.by_ref().take(limit).collect();
    if page.items.len() == limit && rest.next().is_some() {
        page.next = page.items.last().map(|last| key_of(last));
    }
    page
}

fn parse_token(token: &str) -> Result<ContinueToken, Status> {
    let invalid =
        |why: String| Status::bad_request(format!("invalid continue token: continue key is not valid: {why}"));
    let bytes = URL_SAFE_NO_PAD.decode(token.trim_end_matches('=')).map_err(|e| {
        use base64::DecodeError::InvalidByte;
        let at = if let InvalidByte(at, _) = e { at } else { token.len() / 4 * 4 };
        invalid(format!("illegal base64 data at input byte {at}"))
    })?;
    // Read as a tree first, whose errors are upstream's.
    meta::decode::json(&bytes).map_err(|e| invalid(e.plain()))?;
    let token: ContinueToken = serde_json::from_slice(&bytes).map_err(|e| invalid(e.to_string()))?;
    if token.v != TOKEN_VERSION {
        return Err(invalid(format!("server does not recognize this encoded version {}", token.v)));
    }
    if token.rv == 0 || token.rv < NEWEST {
        return Err(invalid(format!("incorrect encoded start resourceVersion (version {TOKEN_VERSION})")));
    }
    if token.start.is_empty() {
        return Err(invalid(format!("encoded start key empty (version {TOKEN_VERSION})")));
    }
    if token.start.contains("..") {
        return Err(invalid(token.start));
    }
    Ok(token)
}
