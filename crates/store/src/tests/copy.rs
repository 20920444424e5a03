//! Moving between stores: whole, with leases, while the source is written, there and back.

use std::sync::Arc;
use std::time::Duration;

use super::etcd_server::Server;
use super::served::Served;
use super::{commit, delete, put};
use crate::copy::{Copy, Side, compare};
use crate::{Backend, Key, Op, StoreError, embedded, etcd};

const PREFIX: &str = "/registry/";

fn directory() -> (tempfile::TempDir, Side) {
    let dir = tempfile::tempdir().unwrap();
    let store = embedded::open(dir.path(), embedded::Options::default()).unwrap();
    (dir, Side::Embedded(Arc::new(store)))
}

async fn filled(keys: usize) -> (tempfile::TempDir, Side) {
    let (dir, side) = directory();
    let store = side.backend();
    for chunk in (0..keys).collect::<Vec<_>>().chunks(100) {
        let ops = chunk.iter().map(|i| put(&format!("/registry/pods/{i:05}"), &"v".repeat(i % 700))).collect();
        commit(store, ops).await;
    }
    commit(store, vec![put("/registry/large", &"x".repeat(1 << 20)), put("/registry/empty", "")]).await;
    commit(store, vec![put("/elsewhere", "stays")]).await;
    let lease = store.grant_lease(3600).await.unwrap();
    for key in ["/registry/events/a", "/registry/events/b"] {
        commit(store, vec![Op::Put { key: Key::from(key), value: "e".into(), lease: Some(lease) }]).await;
    }
    (dir, side)
}

/// Every kind of target there is here: the served store, and a real etcd where one is installed.
async fn round_trip(etcd: Side) {
    let (_dir, from) = filled(1234).await;
    let copied = Copy::new(from.clone(), etcd.clone(), PREFIX).run().await.unwrap();
    assert_eq!((copied.keys, copied.leases), (1238, 1));
    let found = compare(&from, &etcd, PREFIX).await.unwrap();
    assert!(found.agrees() && found.same == 1238, "{found:?}");
    let (_dir, back) = directory();
    let copied = Copy::new(etcd.clone(), back.clone(), PREFIX).run().await.unwrap();
    assert_eq!((copied.keys, copied.leases), (1238, 1));
    assert!(compare(&from, &back, PREFIX).await.unwrap().agrees());
    // The lease came along, with the time it had.
    let kv = back.backend().get("/registry/events/a", None).await.unwrap().0.unwrap();
    let Side::Embedded(store) = &back else { unreachable!() };
    let lease = kv.lease.unwrap();
    store.revoke_lease(lease).await.unwrap();
    assert_eq!(store.get("/registry/events/b", None).await.unwrap().0, None);
    let found = compare(&from, &back, PREFIX).await.unwrap();
    assert_eq!((found.different, found.examples[0].1), (2, "only in the first"));
    // A target in use is not touched.
    let refused = Copy::new(from, etcd, PREFIX).run().await;
    assert!(matches!(refused, Err(StoreError::Invalid(_))), "{refused:?}");
}

#[tokio::test]
async fn there_and_back() {
    let served = Served::start().await;
    let options = etcd::Options { endpoints: vec![served.endpoint.clone()], ..etcd::Options::default() };
    round_trip(Side::Etcd(Arc::new(etcd::connect(options).await.unwrap()))).await;
    let Some(server) = Server::start() else { return };
    round_trip(Side::Etcd(server.connect().await)).await;
}

#[tokio::test]
async fn the_source_is_followed_while_it_is_written() {
    let (_dir, from) = filled(300).await;
    let served = Served::start().await;
    let options = etcd::Options { endpoints: vec![served.endpoint.clone()], ..etcd::Options::default() };
    let to = Side::Etcd(Arc::new(etcd::connect(options).await.unwrap()));
    let (writes, reads) = (from.clone(), to.clone());
    let writer = tokio::spawn(async move {
        let mut last = 0;
        for i in 0..200 {
            let key = format!("/registry/pods/{:05}", i * 3 % 400);
            let op = if i % 5 == 0 { delete(&key) } else { put(&key, &format!("new {i}")) };
            last = commit(writes.backend(), vec![op]).await;
        }
        last
    });
    let mut copy = Copy::new(from.clone(), to.clone(), PREFIX);
    let copied = copy.run().await.unwrap();
    let checking = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(50)).await;
        reads.backend().range(PREFIX, "/registry0", 0, None).await.unwrap().count
    });
    let mut last = None;
    let mut writer = Some(writer);
    // Follows until all that was written has come over.
    let (done, mut end) = tokio::sync::watch::channel(0);
    let waiting = tokio::spawn(async move { done.send(writer.take().unwrap().await.unwrap()).unwrap() });
    copy.follow(copied.revision, |reached| {
        if last.is_none() && *end.borrow_and_update() > 0 {
            last = Some(*end.borrow());
        }
        last.is_some_and(|last| reached >= last)
    })
    .await
    .unwrap();
    waiting.await.unwrap();
    assert!(checking.await.unwrap() > 0);
    let found = compare(&from, &to, PREFIX).await.unwrap();
    assert!(found.agrees() && found.same > 250, "{found:?}");
}
