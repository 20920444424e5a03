//! The trees of a bbolt file: sorted keys in leaves, branches above them, and the tree of the buckets' names above all.
//!
//! Guarantees: a tree is written once through, leaf after leaf, holding one unfinished page a level; it is read in order
//! and to a bounded depth. Knows nothing of what the keys mean.

use std::collections::BTreeMap;

use super::pages::{self, BRANCH, HEAD, Input, LEAF, Output, PAGE};
use crate::StoreError;

/// What is said of each key in a page, before all keys.
const ELEMENT: usize = 16;

/// The mark of a key whose value is a bucket.
const BUCKET: u32 = 1;

/// What a bucket's value begins with: its root, and a count that etcd does not use. A root of 0: its one page follows.
const BUCKET_BYTES: usize = 16;

/// Levels of a tree: with two keys a page it would hold more than any disk.
const DEEPEST: usize = 48;

/// Keys in one page.
const MOST: usize = u16::MAX as usize;

/// A page being filled: its keys with what stands beside each.
#[derive(Default)]
struct Filling<T> {
    keys: Vec<(Vec<u8>, T)>,
    bytes: usize,
}

impl<T> Filling<T> {
    /// Whether one more of so many bytes would need another page.
    fn is_full_for(&self, bytes: usize) -> bool {
        !self.keys.is_empty() && (HEAD + self.bytes + ELEMENT + bytes > PAGE || self.keys.len() == MOST)
    }

    fn push(&mut self, key: Vec<u8>, beside: T, bytes: usize) {
        self.keys.push((key, beside));
        self.bytes += ELEMENT + bytes;
    }
}

/// A tree being written.
#[derive(Default)]
pub struct Tree {
    /// Keys, with values and marks.
    leaf: Filling<(u32, Vec<u8>)>,
    /// The pages of each level, by their first keys, that no branch has yet.
    levels: Vec<Filling<u64>>,
}

impl Tree {
    /// Adds a key, which must be greater than all before.
    pub fn add(&mut self, out: &mut Output, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        self.add_marked(out, key, value, 0)
    }

    fn add_marked(&mut self, out: &mut Output, key: &[u8], value: &[u8], mark: u32) -> Result<(), StoreError> {
        let bytes = key.len() + value.len();
        if self.leaf.is_full_for(bytes) {
            self.end_leaf(out)?;
        }
        self.leaf.push(key.to_vec(), (mark, value.to_vec()), bytes);
        Ok(())
    }

    fn end_leaf(&mut self, out: &mut Output) -> Result<(), StoreError> {
        let Filling { keys, bytes } = std::mem::take(&mut self.leaf);
        let mut body = Vec::with_capacity(bytes);
        let mut at = ELEMENT * keys.len();
        for (number, (key, (mark, value))) in keys.iter().enumerate() {
            // Counted from where this element begins.
            for word in [*mark as usize, at - ELEMENT * number, key.len(), value.len()] {
                body.extend_from_slice(&(word as u32).to_le_bytes());
            }
            at += key.len() + value.len();
        }
        for (key, (_, value)) in &keys {
            body.extend_from_slice(key);
            body.extend_from_slice(value);
        }
        let page = out.page(LEAF, keys.len() as u16, &body)?;
        let first = keys.into_iter().next().map(|(key, _)| key).unwrap_or_default();
        self.raise(out, 0, first, page)
    }

    /// Puts a page under the branch that is being filled on a level.
    fn raise(&mut self, out: &mut Output, level: usize, first: Vec<u8>, page: u64) -> Result<(), StoreError> {
        if self.levels.len() == level {
            self.levels.push(Filling::default());
        }
        if self.levels[level].is_full_for(first.len()) {
            self.end_branch(out, level)?;
        }
        let bytes = first.len();
        self.levels[level].push(first, page, bytes);
        Ok(())
    }

    fn end_branch(&mut self, out: &mut Output, level: usize) -> Result<(), StoreError> {
        let Filling { keys, bytes } = std::mem::take(&mut self.levels[level]);
        let mut body = Vec::with_capacity(bytes);
        let mut at = ELEMENT * keys.len();
        for (number, (key, page)) in keys.iter().enumerate() {
            body.extend_from_slice(&((at - ELEMENT * number) as u32).to_le_bytes());
            body.extend_from_slice(&(key.len() as u32).to_le_bytes());
            body.extend_from_slice(&page.to_le_bytes());
            at += key.len();
        }
        keys.iter().for_each(|(key, _)| body.extend_from_slice(key));
        let page = out.page(BRANCH, keys.len() as u16, &body)?;
        let first = keys.into_iter().next().map(|(key, _)| key).unwrap_or_default();
        self.raise(out, level + 1, first, page)
    }

    /// Gives the page everything is under; an empty leaf if there is nothing.
    pub fn finish(mut self, out: &mut Output) -> Result<u64, StoreError> {
        if !self.leaf.keys.is_empty() || self.levels.is_empty() {
            self.end_leaf(out)?;
        }
        let mut level = 0;
        loop {
            match self.levels[level].keys.as_slice() {
                [(_, page)] if level + 1 == self.levels.len() => return Ok(*page),
                _ => self.end_branch(out, level)?,
            }
            level += 1;
        }
    }
}

/// Writes the tree of buckets: names, in order, and their roots.
pub fn buckets(out: &mut Output, roots: &[(&str, u64)]) -> Result<u64, StoreError> {
    let mut tree = Tree::default();
    for (name, root) in roots {
        let mut value = [0; BUCKET_BYTES];
        value[..8].copy_from_slice(&root.to_le_bytes());
        tree.add_marked(out, name.as_bytes(), &value, BUCKET)?;
    }
    tree.finish(out)
}

/// Where a bucket's keys are.
#[derive(Clone)]
pub enum Root {
    Page(u64),
    /// So few that they stand with its name.
    Inline(Vec<u8>),
}

/// The buckets of a file by name.
pub fn roots(input: &Input) -> Result<BTreeMap<Vec<u8>, Root>, StoreError> {
    let mut roots = BTreeMap::new();
    visit(input, &Root::Page(input.root()), &mut |mark, name, value| {
        let (root, inline) = value
            .split_first_chunk()
            .filter(|_| value.len() >= BUCKET_BYTES && mark == BUCKET)
            .ok_or_else(|| input.corrupt("a bucket is damaged"))?;
        let root = match u64::from_le_bytes(*root) {
            0 => Root::Inline(inline[BUCKET_BYTES - 8..].to_vec()),
            page => Root::Page(page),
        };
        roots.insert(name.to_vec(), root);
        Ok(())
    })?;
    Ok(roots)
}

/// Takes a key and its value.
type Visitor<'a> = dyn FnMut(&[u8], &[u8]) -> Result<(), StoreError> + 'a;

/// All keys of a bucket with their values, in order.
pub fn walk(input: &Input, root: &Root, visitor: &mut Visitor<'_>) -> Result<(), StoreError> {
    visit(input, root, &mut |mark, key, value| match mark {
        BUCKET => Err(input.corrupt("a bucket in a bucket")),
        _ => visitor(key, value),
    })
}

type Marked<'a> = dyn FnMut(u32, &[u8], &[u8]) -> Result<(), StoreError> + 'a;

fn visit(input: &Input, root: &Root, visitor: &mut Marked<'_>) -> Result<(), StoreError> {
    let page = match root {
        Root::Page(number) => input.read(*number)?,
        Root::Inline(bytes) => pages::parse(bytes).ok_or_else(|| input.corrupt("a bucket's page is damaged"))?.0,
    };
    below(input, &page, visitor, 0)
}

fn below(input: &Input, page: &pages::Page, visitor: &mut Marked<'_>, depth: usize) -> Result<(), StoreError> {
    let damaged = || input.corrupt("what a page holds is damaged");
    if depth > DEEPEST {
        return Err(damaged());
    }
    for number in 0..usize::from(page.count) {
        let element = page.body.get(ELEMENT * number..).ok_or_else(damaged)?;
        let word = |at: usize| {
            let bytes = element.get(at..).and_then(|bytes| bytes.first_chunk());
            bytes.map(|bytes| u32::from_le_bytes(*bytes)).ok_or_else(damaged)
        };
        let cut = |at: u32, len: u32| {
            let (at, len) = (at as usize, len as usize);
            element.get(at..).and_then(|rest| rest.get(..len)).ok_or_else(damaged)
        };
        match page.kind {
            LEAF => {
                let (mark, at, key, value) = (word(0)?, word(4)?, word(8)?, word(12)?);
                let value_at = at.checked_add(key).ok_or_else(damaged)?;
                visitor(mark, cut(at, key)?, cut(value_at, value)?)?;
            }
            BRANCH => {
                let child = u64::from(word(8)?) | u64::from(word(12)?) << 32;
                below(input, &input.read(child)?, visitor, depth + 1)?;
            }
            _ => return Err(damaged()),
        }
    }
    Ok(())
}
