//! What a transaction may be, the same for both backends.

use std::collections::HashSet;

use crate::{MAX_TXN_OPS, StoreError, Txn};

/// The most bytes of keys and values in one transaction unless set otherwise: etcd's default, 1.5 MiB.
pub const MAX_REQUEST_BYTES: usize = 3 << 19;

/// The longest key in bytes. Names are at most some hundreds of bytes long; this stops mistakes.
pub const MAX_KEY_BYTES: usize = 8 << 10;

/// Checks a transaction's form; gives the bytes it carries.
pub(crate) fn check_txn(txn: &Txn, max_bytes: usize) -> Result<usize, StoreError> {
    let most = txn.ops.len().max(txn.compares.len());
    if most > MAX_TXN_OPS {
        return Err(StoreError::Invalid(format!("{most} operations in a transaction, the limit is {MAX_TXN_OPS}")));
    }
    let mut size = 0;
    // One operation needs no set; an empty one takes no memory.
    let mut written = HashSet::with_capacity(if txn.ops.len() > 1 { txn.ops.len() } else { 0 });
    for op in &txn.ops {
        let key = op.key();
        check_key(key)?;
        if txn.ops.len() > 1 && !written.insert(key) {
            return Err(StoreError::Invalid(format!("key {key:?} is written twice in a transaction")));
        }
        size += key.len();
        if let crate::Op::Put { value, .. } = op {
            size += value.len();
        }
    }
    for compare in &txn.compares {
        check_key(&compare.key)?;
    }
    if size > max_bytes {
        return Err(StoreError::TooLarge { size, limit: max_bytes });
    }
    Ok(size)
}

fn check_key(key: &str) -> Result<(), StoreError> {
    match key.len() {
        0 => Err(StoreError::Invalid("the key is empty".into())),
        n if n > MAX_KEY_BYTES => Err(StoreError::Invalid(format!("a key of {n} bytes, the limit is {MAX_KEY_BYTES}"))),
        _ => Ok(()),
    }
}
