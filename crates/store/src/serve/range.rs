//! Reads: which keys, in which order, how many of them.

use tonic::Status;

use super::convert::key_value;
use super::error;
use super::key::Span;
use super::txn::check_key;
use crate::embedded::Embedded;
use crate::etcdserverpb::range_request::{SortOrder, SortTarget};
use crate::etcdserverpb::{self as pb};
use crate::{Backend, KeyValue, Revision};

/// Checks a read's form; gives its bytes.
pub fn check(request: &pb::RangeRequest) -> Result<usize, Status> {
    let size = check_key(&request.key)?;
    if SortOrder::try_from(request.sort_order).is_err() || SortTarget::try_from(request.sort_target).is_err() {
        return Err(error::invalid_sort());
    }
    Ok(size + request.range_end.len())
}

/// Whether the keys come in another order than the store's, or not all of them.
fn is_plain(request: &pb::RangeRequest) -> bool {
    let bounds =
        [request.min_mod_revision, request.max_mod_revision, request.min_create_revision, request.max_create_revision];
    request.sort_target() == SortTarget::Key
        && request.sort_order() != SortOrder::Descend
        && bounds.iter().all(|bound| *bound == 0)
}

/// Answers a read from the store; the header is the caller's.
pub async fn read(store: &Embedded, request: &pb::RangeRequest) -> Result<(pb::RangeResponse, Revision), Status> {
    check(request)?;
    let span = Span::of(&request.key, &request.range_end);
    let at = Some(Revision::try_from(request.revision).unwrap_or(0));
    if let Some(key) = span.single() {
        let (kv, current) = store.get(key, at).await.map_err(error::status)?;
        return Ok((shape(request, kv.into_iter().collect())?, current));
    }
    let (start, end) = span.bounds();
    let plain = is_plain(request);
    let limit = match (request.count_only, plain) {
        (true, _) => 1,
        (false, true) => usize::try_from(request.limit).unwrap_or(0),
        (false, false) => 0,
    };
    let found = store.range(start, &end, limit, at).await.map_err(error::status)?;
    let current = found.current_revision;
    if !plain && !request.count_only {
        return Ok((shape(request, found.items)?, current));
    }
    let kvs = match request.count_only {
        true => Vec::new(),
        false => found.items.into_iter().map(|kv| key_value(kv, request.keys_only)).collect(),
    };
    let more = !request.count_only && found.more;
    Ok((pb::RangeResponse { header: None, kvs, more, count: found.count as i64 }, current))
}

/// Picks, orders and cuts the keys of a range as a request wants them.
pub fn shape(request: &pb::RangeRequest, mut items: Vec<KeyValue>) -> Result<pb::RangeResponse, Status> {
    let count = items.len() as i64;
    if request.count_only {
        return Ok(pb::RangeResponse { header: None, kvs: Vec::new(), more: false, count });
    }
    let within = |revision: Revision, least: i64, most: i64| {
        let revision = revision as i64;
        (least == 0 || revision >= least) && (most == 0 || revision <= most)
    };
    items.retain(|kv| {
        within(kv.mod_revision, request.min_mod_revision, request.max_mod_revision)
            && within(kv.create_revision, request.min_create_revision, request.max_create_revision)
    });
    let compare = |a: &KeyValue, b: &KeyValue| match request.sort_target() {
        SortTarget::Key => a.key.cmp(&b.key),
        SortTarget::Version => a.version.cmp(&b.version),
        SortTarget::Create => a.create_revision.cmp(&b.create_revision),
        SortTarget::Mod => a.mod_revision.cmp(&b.mod_revision),
        SortTarget::Value => a.value.cmp(&b.value),
    };
    // Equals stay in the order of keys, whichever way.
    match request.sort_order() {
        SortOrder::Descend => items.sort_by(|a, b| compare(b, a)),
        _ => items.sort_by(compare),
    }
    let limit = usize::try_from(request.limit).ok().filter(|limit| *limit > 0).unwrap_or(usize::MAX);
    let more = items.len() > limit;
    items.truncate(limit);
    let kvs = items.into_iter().map(|kv| key_value(kv, request.keys_only)).collect();
    Ok(pb::RangeResponse { header: None, kvs, more, count })
}
