//! Durable puts of 1 KiB into the embedded store, by one writer and by many at a time.

use std::sync::Arc;

use store::{Backend, Op, Txn};

fn main() {
    divan::main();
}

const VALUE_BYTES: usize = 1024;

fn put(n: u64) -> Txn {
    let key = format!("/registry/configmaps/default/{n:08}");
    Txn { compares: vec![], ops: vec![Op::Put { key: key.into(), value: vec![b'x'; VALUE_BYTES].into(), lease: None }] }
}

/// Each sample is `writers` puts at once, all acknowledged.
#[divan::bench(args = [1, 16, 64, 256], sample_count = 50)]
fn durable_puts(bencher: divan::Bencher, writers: u64) {
    let dir = tempfile::tempdir().unwrap();
    let store: Arc<dyn Backend> =
        Arc::new(store::embedded::open(dir.path(), store::embedded::Options::default()).unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    let mut next = 0;
    bencher.counter(divan::counter::ItemsCount::new(writers)).bench_local(|| {
        let first = next;
        next += writers;
        runtime.block_on(async {
            let mut puts = tokio::task::JoinSet::new();
            for n in first..first + writers {
                let store = store.clone();
                puts.spawn(async move { store.txn(put(n)).await.unwrap() });
            }
            puts.join_all().await
        })
    });
}
