//! Transactions as etcd has them: compares of any field, ranges, nested branches, reads that see earlier writes.
//!
//! Pure: a request and a state in, an answer and effects out. The state is the writer's own, so that nothing can come
//! between what is compared and what is written.

use std::collections::{BTreeMap, HashSet};

use bytes::Bytes;
use tonic::Status;

use super::convert::{self, key_value};
use super::key::{self, Span};
use super::{error, limits, range};
use crate::embedded::staging::Staging;
use crate::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use crate::etcdserverpb::request_op::Request;
use crate::etcdserverpb::response_op::Response;
use crate::etcdserverpb::{self as pb};
use crate::limits::MAX_KEY_BYTES;
use crate::{Key, KeyValue, MAX_TXN_OPS, Op, Revision};

/// Checks what can be told without the state: sizes, keys, keys written twice. Gives the bytes it carries.
pub fn check(txn: &pb::TxnRequest, max_bytes: usize) -> Result<usize, Status> {
    let size = check_branches(txn, MAX_TXN_OPS, 0)?;
    if size > max_bytes {
        return Err(error::too_large());
    }
    branch(&txn.success)?;
    branch(&txn.failure)?;
    Ok(size)
}

fn check_branches(txn: &pb::TxnRequest, most: usize, depth: usize) -> Result<usize, Status> {
    let operations = txn.compare.len().max(txn.success.len()).max(txn.failure.len());
    if operations > most || depth > limits::MAX_TXN_DEPTH {
        return Err(error::too_many_operations());
    }
    let mut size = 0;
    for compare in &txn.compare {
        check_key(&compare.key)?;
        size += compare.key.len() + compare.range_end.len();
        if let Some(TargetUnion::Value(value)) = &compare.target_union {
            size += value.len();
        }
    }
    for op in txn.success.iter().chain(&txn.failure) {
        size += match &op.request {
            Some(Request::RequestRange(range)) => range::check(range)?,
            Some(Request::RequestPut(put)) => check_put(put)?,
            Some(Request::RequestDeleteRange(delete)) => check_delete(delete)?,
            Some(Request::RequestTxn(txn)) => check_branches(txn, most - operations, depth + 1)?,
            None => 0,
        };
    }
    Ok(size)
}

/// A key that a request names.
pub fn check_key(key: &[u8]) -> Result<usize, Status> {
    match key.len() {
        0 => Err(error::empty_key()),
        n if n > MAX_KEY_BYTES => Err(error::too_large()),
        n => Ok(n),
    }
}

/// Checks a put's form; gives its bytes.
pub fn check_put(put: &pb::PutRequest) -> Result<usize, Status> {
    check_key(&put.key)?;
    if put.ignore_value && !put.value.is_empty() {
        return Err(error::value_provided());
    }
    if put.ignore_lease && put.lease != 0 {
        return Err(error::lease_provided());
    }
    Ok(put.key.len() + put.value.len())
}

/// Checks a delete's form; gives its bytes.
pub fn check_delete(delete: &pb::DeleteRangeRequest) -> Result<usize, Status> {
    check_key(&delete.key)
}

type Written<'a> = (HashSet<&'a Bytes>, Vec<Span>);

/// What one branch writes, branches of its transactions included: no key twice on any way through it.
fn branch(ops: &[pb::RequestOp]) -> Result<Written<'_>, Status> {
    let (mut puts, mut deletes) = (HashSet::new(), Vec::new());
    for op in ops {
        if let Some(Request::RequestDeleteRange(delete)) = &op.request {
            deletes.push(Span::of(&delete.key, &delete.range_end));
        }
    }
    let covered = |spans: &[Span], key: &Bytes| {
        let text = key::to_text(key);
        spans.iter().any(|span| span.contains(&text))
    };
    for op in ops {
        match &op.request {
            Some(Request::RequestPut(put)) if covered(&deletes, &put.key) || !puts.insert(&put.key) => {
                return Err(error::duplicate_key());
            }
            Some(Request::RequestTxn(txn)) => {
                let ((then_puts, then_deletes), (else_puts, else_deletes)) =
                    (branch(&txn.success)?, branch(&txn.failure)?);
                let inner: HashSet<&Bytes> = then_puts.union(&else_puts).copied().collect();
                let inner_deletes: Vec<Span> = then_deletes.into_iter().chain(else_deletes).collect();
                if inner.iter().any(|key| puts.contains(*key) || covered(&deletes, key))
                    || puts.iter().any(|key| covered(&inner_deletes, key))
                {
                    return Err(error::duplicate_key());
                }
                puts.extend(inner);
                deletes.extend(inner_deletes);
            }
            _ => {}
        }
    }
    Ok((puts, deletes))
}

/// A transaction being worked out: the state, and what the transaction has written so far.
pub struct Course<'a> {
    state: &'a Staging<'a>,
    written: BTreeMap<Key, Option<KeyValue>>,
    /// The keys of `written` in the order they came: events keep it.
    order: Vec<Key>,
    deleted_bytes: usize,
    deleted_keys: usize,
}

impl<'a> Course<'a> {
    /// A transaction on a state.
    pub fn on(state: &'a Staging<'a>) -> Self {
        Course { state, written: BTreeMap::new(), order: Vec::new(), deleted_bytes: 0, deleted_keys: 0 }
    }

    /// The revision its writes get.
    fn next(&self) -> Revision {
        self.state.revision() + 1
    }

    /// The revision the store stands at after it.
    pub fn revision(&self) -> Revision {
        if self.written.is_empty() { self.state.revision() } else { self.next() }
    }

    /// What it writes.
    pub fn effects(self) -> Vec<Op> {
        let Course { mut written, order, .. } = self;
        let op = |key: Key| match written.remove(&key)? {
            Some(KeyValue { value, lease, .. }) => Some(Op::Put { key, value, lease }),
            None => Some(Op::Delete { key }),
        };
        order.into_iter().filter_map(op).collect()
    }

    fn write(&mut self, key: Key, kv: Option<KeyValue>) {
        if self.written.insert(key.clone(), kv).is_none() {
            self.order.push(key);
        }
    }

    fn current(&self, key: &str) -> Option<KeyValue> {
        match self.written.get(key) {
            Some(written) => written.clone(),
            None => self.state.current(key),
        }
    }

    /// The keys of a span as they are after what was written so far.
    fn all(&self, span: &Span) -> Vec<KeyValue> {
        if let Some(key) = span.single() {
            return self.current(key).into_iter().collect();
        }
        let (start, end) = span.bounds();
        let mut items = Vec::new();
        if span.is_empty() {
            return items;
        }
        self.state.visit(start, &end, |kv| {
            items.push(kv);
            true
        });
        if self.written.keys().any(|key| span.contains(key)) {
            let mut merged: BTreeMap<Key, KeyValue> = items.into_iter().map(|kv| (kv.key.clone(), kv)).collect();
            for (key, kv) in self.written.iter().filter(|(key, _)| span.contains(key)) {
                match kv {
                    Some(kv) => _ = merged.insert(key.clone(), kv.clone()),
                    None => _ = merged.remove(key),
                }
            }
            items = merged.into_values().collect();
        }
        items
    }

    /// Takes a branch; the headers inside tell the revision alone.
    pub fn txn(&mut self, txn: &pb::TxnRequest) -> Result<pb::TxnResponse, Status> {
        let succeeded = txn.compare.iter().all(|compare| self.holds(compare));
        let ops = if succeeded { &txn.success } else { &txn.failure };
        let mut responses = Vec::with_capacity(ops.len());
        for op in ops {
            let response = match &op.request {
                Some(Request::RequestRange(request)) => Response::ResponseRange(self.range(request)?),
                Some(Request::RequestPut(put)) => Response::ResponsePut(self.put(put)?),
                Some(Request::RequestDeleteRange(delete)) => Response::ResponseDeleteRange(self.delete(delete)?),
                Some(Request::RequestTxn(txn)) => Response::ResponseTxn(self.txn(txn)?),
                None => continue,
            };
            responses.push(pb::ResponseOp { response: Some(response) });
        }
        Ok(pb::TxnResponse { header: Some(self.header()), succeeded, responses })
    }

    fn header(&self) -> pb::ResponseHeader {
        pb::ResponseHeader { revision: self.revision() as i64, ..Default::default() }
    }

    fn range(&self, request: &pb::RangeRequest) -> Result<pb::RangeResponse, Status> {
        let span = Span::of(&request.key, &request.range_end);
        let current = self.revision();
        let at = Revision::try_from(request.revision).unwrap_or(0);
        let items = match at {
            0 => self.all(&span),
            at if at == current => self.all(&span),
            at if at > current => return Err(error::future_revision()),
            at => {
                let (start, end) = span.bounds();
                self.state.past(start, &end, at).map_err(error::status)?
            }
        };
        let mut response = range::shape(request, items)?;
        response.header = Some(self.header());
        Ok(response)
    }

    /// Writes a key.
    pub fn put(&mut self, put: &pb::PutRequest) -> Result<pb::PutResponse, Status> {
        let key = key::stored(&put.key);
        let previous = self.current(&key);
        if previous.is_none() && (put.ignore_value || put.ignore_lease) {
            return Err(error::key_not_found());
        }
        let kept = previous.as_ref();
        let kv = KeyValue {
            key: key.clone(),
            value: match kept.filter(|_| put.ignore_value) {
                Some(kept) => kept.value.clone(),
                // A copy of its own: the request's bytes are a view into a buffer that would live as long as the value.
                None => Bytes::copy_from_slice(&put.value),
            },
            create_revision: kept.map_or(self.next(), |kept| kept.create_revision),
            mod_revision: self.next(),
            version: kept.map_or(1, |kept| kept.version + 1),
            lease: match kept.filter(|_| put.ignore_lease) {
                Some(kept) => kept.lease,
                None => convert::lease(put.lease),
            },
        };
        self.write(key, Some(kv));
        let prev_kv = previous.filter(|_| put.prev_kv).map(|kv| key_value(kv, false));
        Ok(pb::PutResponse { header: Some(self.header()), prev_kv })
    }

    /// Deletes the keys of a range.
    pub fn delete(&mut self, delete: &pb::DeleteRangeRequest) -> Result<pb::DeleteRangeResponse, Status> {
        let gone = self.all(&Span::of(&delete.key, &delete.range_end));
        self.deleted_keys += gone.len();
        self.deleted_bytes += gone.iter().map(|kv| kv.key.len()).sum::<usize>();
        if self.deleted_keys > limits::MAX_DELETED_KEYS || self.deleted_bytes > limits::MAX_DELETED_BYTES {
            return Err(error::too_large());
        }
        for kv in &gone {
            self.write(kv.key.clone(), None);
        }
        let deleted = gone.len() as i64;
        let prev_kvs =
            if delete.prev_kv { gone.into_iter().map(|kv| key_value(kv, false)).collect() } else { Vec::new() };
        Ok(pb::DeleteRangeResponse { header: Some(self.header()), deleted, prev_kvs })
    }

    /// Whether a compare holds for every key it is about; for none, it is compared with a key that does not exist.
    fn holds(&self, compare: &pb::Compare) -> bool {
        let items = self.all(&Span::of(&compare.key, &compare.range_end));
        if items.is_empty() {
            return compare.target() != CompareTarget::Value && self.matches(compare, None);
        }
        items.iter().all(|kv| self.matches(compare, Some(kv)))
    }

    fn matches(&self, compare: &pb::Compare, kv: Option<&KeyValue>) -> bool {
        let number = |of: fn(&KeyValue) -> u64, wanted: i64| (kv.map_or(0, of) as i64).cmp(&wanted);
        let union = compare.target_union.as_ref();
        let order = match (compare.target(), union) {
            (CompareTarget::Value, Some(TargetUnion::Value(value))) => {
                kv.map_or(&[] as &[u8], |kv| &kv.value).cmp(value)
            }
            (CompareTarget::Value, _) => kv.map_or(&[] as &[u8], |kv| &kv.value).cmp(b""),
            (CompareTarget::Version, Some(TargetUnion::Version(wanted))) => number(|kv| kv.version, *wanted),
            (CompareTarget::Version, _) => number(|kv| kv.version, 0),
            (CompareTarget::Create, Some(TargetUnion::CreateRevision(wanted))) => {
                number(|kv| kv.create_revision, *wanted)
            }
            (CompareTarget::Create, _) => number(|kv| kv.create_revision, 0),
            (CompareTarget::Mod, Some(TargetUnion::ModRevision(wanted))) => number(|kv| kv.mod_revision, *wanted),
            (CompareTarget::Mod, _) => number(|kv| kv.mod_revision, 0),
            (CompareTarget::Lease, Some(TargetUnion::Lease(wanted))) => {
                kv.and_then(|kv| kv.lease).map_or(0, |lease| lease.0).cmp(wanted)
            }
            (CompareTarget::Lease, _) => kv.and_then(|kv| kv.lease).map_or(0, |lease| lease.0).cmp(&0),
        };
        match compare.result() {
            CompareResult::Equal => order.is_eq(),
            CompareResult::Greater => order.is_gt(),
            CompareResult::Less => order.is_lt(),
            CompareResult::NotEqual => order.is_ne(),
        }
    }
}
