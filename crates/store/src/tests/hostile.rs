//! What no client in its right mind sends: requests of random fields to a served store, which has to answer each with a
//! result or with a refusal of its own, and afterwards to be whole. Deterministic for a seed.

use bytes::Bytes;
use futures::StreamExt;
use prost::Message;
use tonic::{Code, Status};

use super::ask::{self, Watches};
use super::model::Random;
use super::served::Served;
use crate::etcd::wire::{Call, Connection};
use crate::etcdserverpb::compare::TargetUnion;
use crate::etcdserverpb::request_op::Request;
use crate::etcdserverpb::{self as pb};

/// Fields of requests; mostly of few values, so that requests meet each other.
struct Fields(Random);

impl Fields {
    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.0.below(from.len() as u64) as usize].clone()
    }

    fn flag(&mut self) -> bool {
        self.0.below(3) == 0
    }

    fn key(&mut self) -> Bytes {
        match self.0.below(12) {
            0 => Bytes::new(),
            1 => vec![0xff; self.0.below(9000) as usize].into(),
            _ => Bytes::from_static(self.pick(&[b"a", b"a/1", b"a/2", b"b", b"\0", b"\xff\xfe", b"\xc3(", b"a\0"])),
        }
    }

    fn end(&mut self) -> Bytes {
        if self.0.below(2) == 0 { Bytes::new() } else { self.key() }
    }

    fn number(&mut self) -> i64 {
        match self.0.below(4) {
            0 => self.pick(&[0, -1, i64::MIN, i64::MAX, i64::MAX - 1, 1 << 62, i64::from(u32::MAX)]),
            1 => self.0.below(u64::MAX) as i64,
            _ => self.0.below(40) as i64,
        }
    }

    fn choice(&mut self) -> i32 {
        self.pick(&[0, 0, 1, 2, 3, 4, 5, -1, i32::MAX])
    }

    fn range(&mut self) -> pb::RangeRequest {
        pb::RangeRequest {
            key: self.key(),
            range_end: self.end(),
            limit: self.number(),
            revision: if self.flag() { self.number() } else { 0 },
            sort_order: self.choice(),
            sort_target: self.choice(),
            serializable: self.flag(),
            keys_only: self.flag(),
            count_only: self.flag(),
            min_mod_revision: if self.flag() { self.number() } else { 0 },
            max_mod_revision: if self.flag() { self.number() } else { 0 },
            min_create_revision: if self.flag() { self.number() } else { 0 },
            max_create_revision: if self.flag() { self.number() } else { 0 },
        }
    }

    fn put(&mut self) -> pb::PutRequest {
        pb::PutRequest {
            key: self.key(),
            value: vec![b'v'; self.0.below(300) as usize].into(),
            lease: if self.flag() { self.number() } else { 0 },
            prev_kv: self.flag(),
            ignore_value: self.flag(),
            ignore_lease: self.flag(),
        }
    }

    fn delete(&mut self) -> pb::DeleteRangeRequest {
        pb::DeleteRangeRequest { key: self.key(), range_end: self.end(), prev_kv: self.flag() }
    }

    fn compare(&mut self) -> pb::Compare {
        let union = match self.0.below(6) {
            0 => None,
            1 => Some(TargetUnion::Version(self.number())),
            2 => Some(TargetUnion::CreateRevision(self.number())),
            3 => Some(TargetUnion::ModRevision(self.number())),
            4 => Some(TargetUnion::Value(self.key())),
            _ => Some(TargetUnion::Lease(self.number())),
        };
        // The target and what it is compared with need not fit.
        pb::Compare {
            result: self.choice(),
            target: self.choice(),
            key: self.key(),
            range_end: self.end(),
            target_union: union,
        }
    }

    fn ops(&mut self, depth: u64) -> Vec<pb::RequestOp> {
        let count = self.0.below(4);
        let op = |fields: &mut Self| match fields.0.below(if depth > 0 { 5 } else { 4 }) {
            0 => None,
            1 => Some(Request::RequestRange(fields.range())),
            2 => Some(Request::RequestPut(fields.put())),
            3 => Some(Request::RequestDeleteRange(fields.delete())),
            _ => Some(Request::RequestTxn(fields.txn(depth - 1))),
        };
        (0..count).map(|_| pb::RequestOp { request: op(self) }).collect()
    }

    fn txn(&mut self, depth: u64) -> pb::TxnRequest {
        let compare = (0..self.0.below(3)).map(|_| self.compare()).collect();
        pb::TxnRequest { compare, success: self.ops(depth), failure: self.ops(depth) }
    }

    fn watch(&mut self) -> pb::WatchCreateRequest {
        pb::WatchCreateRequest {
            key: self.key(),
            range_end: self.end(),
            start_revision: self.number(),
            progress_notify: self.flag(),
            filters: (0..self.0.below(3)).map(|_| self.choice()).collect(),
            prev_kv: self.flag(),
            watch_id: if self.flag() { self.number() } else { 0 },
            fragment: self.flag(),
        }
    }
}

/// An answer, or a refusal: not what becomes of a call whose handler is gone.
fn answered<T>(what: &dyn std::fmt::Debug, answer: Result<T, Status>) {
    if let Err(status) = answer {
        let lost = matches!(status.code(), Code::Unknown | Code::Internal | Code::Unavailable | Code::Cancelled);
        assert!(!lost, "{what:?}: {status:?}");
    }
}

async fn send<C: Call + Clone + std::fmt::Debug>(client: &Connection, request: C) {
    answered(&request, client.call(request.clone()).await);
}

#[tokio::test]
async fn random_requests_are_answered() {
    for seed in 1..=2 {
        let served = Served::start().await;
        let client = served.client();
        let mut fields = Fields(Random::new(seed));
        let watches = Watches::open(&client, ask::watch_all("")).await;
        let (asking, mut answers) = watches.split();
        // Whatever they say, the answers are taken: the stream lives as long as the server does.
        let reading = tokio::spawn(async move { while let Ok(Some(_)) = answers.message().await {} });
        for _ in 0..300 {
            match fields.0.below(12) {
                0..=1 => send(&client, fields.range()).await,
                2..=3 => send(&client, fields.put()).await,
                4 => send(&client, fields.delete()).await,
                5..=6 => send(&client, fields.txn(3)).await,
                7 => {
                    send(&client, pb::CompactionRequest { revision: fields.number() % 20, physical: fields.flag() })
                        .await
                }
                8 => send(&client, pb::LeaseGrantRequest { ttl: fields.number(), id: fields.number() }).await,
                9 => send(&client, pb::LeaseRevokeRequest { id: fields.number() }).await,
                10 => {
                    send(&client, pb::LeaseTimeToLiveRequest { id: fields.number(), keys: fields.flag() }).await;
                    let keeping = futures::stream::iter([pb::LeaseKeepAliveRequest { id: fields.number() }]);
                    let kept = client.stream(keeping).await.unwrap().next().await.unwrap();
                    answered(&"keep alive", kept);
                }
                _ => {
                    let question = match fields.0.below(4) {
                        0 => None,
                        1 => Some(ask::cancelling(fields.number())),
                        2 => Some(ask::progress()),
                        _ => Some(ask::creating(fields.watch())),
                    };
                    asking.send(pb::WatchRequest { request_union: question }).await.expect("the stream is there");
                }
            }
        }
        assert!(!reading.is_finished(), "the watch stream ended");
        reading.abort();
        // Whole: it still writes, and tells of it.
        let mut watch = Watches::created(&client, ask::watch("at the end")).await;
        client.call(ask::put("at the end", "")).await.unwrap();
        assert_eq!(watch.next().await.events.len(), 1);
    }
}

/// Nested deeper than any stack would bear: refused by the message's decoder or by the server.
#[tokio::test]
async fn deep_transactions_are_refused() {
    let served = Served::start().await;
    let client = served.client();
    for depth in [9, 40, 90, 200] {
        let mut txn = pb::TxnRequest::default();
        for _ in 0..depth {
            txn = ask::txn([txn.into()]);
        }
        assert!(client.call(txn).await.is_err(), "{depth}");
        client.call(ask::put("k", "")).await.unwrap();
    }
}

/// Bytes that are no message, or another one, for every message the server or the client decodes.
#[test]
fn random_messages_are_refused_or_read() {
    let decoders: &[fn(&[u8]) -> bool] = &[
        |bytes| pb::RangeRequest::decode(bytes).is_ok(),
        |bytes| pb::PutRequest::decode(bytes).is_ok(),
        |bytes| pb::TxnRequest::decode(bytes).is_ok(),
        |bytes| pb::WatchRequest::decode(bytes).is_ok(),
        |bytes| pb::LeaseGrantRequest::decode(bytes).is_ok(),
        |bytes| pb::RangeResponse::decode(bytes).is_ok(),
        |bytes| pb::TxnResponse::decode(bytes).is_ok(),
        |bytes| pb::WatchResponse::decode(bytes).is_ok(),
    ];
    let mut fields = Fields(Random::new(1));
    let mut read = 0;
    for n in 0..4000 {
        let mut bytes = match n % 3 {
            0 => fields.txn(3).encode_to_vec(),
            1 => fields.watch().encode_to_vec(),
            _ => (0..fields.0.below(60)).map(|_| fields.0.below(256) as u8).collect(),
        };
        for _ in 0..fields.0.below(4).min(bytes.len() as u64) {
            let at = fields.0.below(bytes.len() as u64) as usize;
            bytes[at] = fields.0.below(256) as u8;
        }
        read += decoders.iter().filter(|decode| decode(&bytes)).count();
    }
    assert!(read > 0, "some are messages");
}
