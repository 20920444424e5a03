//! What an informer holds: objects by key, the indexes over them, and who is told of changes.
//!
//! It takes versions and lists as they come, makes the differences itself, and knows nothing of where they come from.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};

use meta::selector::Operator;
use meta::{LabelSelector, Object};

use crate::subscription::{MAX_PENDING_KEYS, Mailbox, Subscription};

type IndexFn = Arc<dyn Fn(&Object) -> Vec<String> + Send + Sync>;

/// Objects by key. Indexes hold the objects themselves: reading one must not cost a search for each of thousands.
type Objects = BTreeMap<Arc<str>, Arc<Object>>;

struct Index {
    of: IndexFn,
    objects: HashMap<String, Objects>,
}

impl Index {
    fn change(&mut self, key: &Arc<str>, old: Option<&Arc<Object>>, new: Option<&Arc<Object>>) {
        let of = |object: Option<&Arc<Object>>| object.map(|o| (self.of)(o)).unwrap_or_default();
        let (before, after) = (of(old), of(new));
        for value in before.iter().filter(|v| !after.contains(v)) {
            if let Some(objects) = self.objects.get_mut(value) {
                objects.remove(key);
                if objects.is_empty() {
                    self.objects.remove(value);
                }
            }
        }
        let Some(new) = new else { return };
        for value in after {
            self.objects.entry(value).or_default().insert(key.clone(), new.clone());
        }
    }
}

/// The index of labels within namespaces; [`Store::list_selected`] uses it where it is there.
const LABELS: &str = "labels";

/// A label as that index holds it.
fn label_value(namespace: &str, key: &str, value: &str) -> String {
    format!("{namespace}/{key}={value}")
}

#[derive(Default)]
struct Contents {
    /// Ordered, so that a namespace is a range.
    objects: Objects,
    indexes: BTreeMap<&'static str, Index>,
    subscribers: Vec<Weak<Mailbox>>,
    closed: bool,
}

impl Contents {
    fn set(&mut self, key: &Arc<str>, new: Option<&Arc<Object>>) {
        let old = match new {
            Some(object) => self.objects.insert(key.clone(), object.clone()),
            None => self.objects.remove(key),
        };
        for index in self.indexes.values_mut() {
            index.change(key, old.as_ref(), new);
        }
        if old.is_some() || new.is_some() {
            for mailbox in self.subscribers.iter().filter_map(Weak::upgrade) {
                mailbox.put(key, old.as_ref(), new);
            }
        }
    }

    fn wake(&mut self) {
        self.subscribers.retain(|s| match s.upgrade() {
            Some(mailbox) => {
                mailbox.wake();
                true
            }
            None => false,
        });
    }
}

/// Objects by key, with indexes and subscribers. All methods may be called from any thread; none blocks for long.
#[derive(Default)]
pub struct Store {
    contents: RwLock<Contents>,
}

impl Store {
    // A panic in an index function leaves at worst one stale index entry, which reads skip; so poisoning is passed over.
    fn read(&self) -> RwLockReadGuard<'_, Contents> {
        self.contents.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Contents> {
        self.contents.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes events in order: the new version, or the last one with `true` for deleted.
    pub fn apply<'a>(&self, events: impl IntoIterator<Item = (&'a Arc<Object>, bool)>) {
        let mut contents = self.write();
        for (object, deleted) in events {
            let key: Arc<str> = object.meta.key().into();
            contents.set(&key, (!deleted).then_some(object));
        }
        contents.wake();
    }

    /// Takes a whole list: what differs is told, what is missing from it is told as gone.
    pub fn replace(&self, items: Vec<Arc<Object>>) {
        let mut contents = self.write();
        let mut next: BTreeMap<Arc<str>, Arc<Object>> = items.into_iter().map(|o| (o.meta.key().into(), o)).collect();
        let gone: Vec<Arc<str>> = contents.objects.keys().filter(|k| !next.contains_key(*k)).cloned().collect();
        for key in gone {
            contents.set(&key, None);
        }
        next.retain(|key, object| {
            contents
                .objects
                .get(key)
                .is_none_or(|old| old.resource_version != object.resource_version || old.meta.uid != object.meta.uid)
        });
        for (key, object) in &next {
            contents.set(key, Some(object));
        }
        contents.wake();
    }

    pub fn get(&self, key: &str) -> Option<Arc<Object>> {
        self.read().objects.get(key).cloned()
    }

    pub fn len(&self) -> usize {
        self.read().objects.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Objects of one namespace (or all) that a predicate wants, in key order.
    pub fn list_where(&self, namespace: Option<&str>, want: impl Fn(&Object) -> bool) -> Vec<Arc<Object>> {
        let contents = self.read();
        match namespace {
            None => contents.objects.values().filter(|o| want(o)).cloned().collect(),
            Some(namespace) => {
                // '0' follows '/'.
                let (from, to) = (format!("{namespace}/"), format!("{namespace}0"));
                let range = (Bound::Included(from.as_str()), Bound::Excluded(to.as_str()));
                contents.objects.range::<str, _>(range).map(|(_, o)| o).filter(|o| want(o)).cloned().collect()
            }
        }
    }

    /// Objects of one namespace (or all) that a selector picks, in key order.
    pub fn list_selected(&self, namespace: Option<&str>, selector: &LabelSelector) -> Vec<Arc<Object>> {
        let contents = self.read();
        let (Some(namespace), Some(index)) = (namespace, contents.indexes.get(LABELS)) else {
            drop(contents);
            return self.list_where(namespace, |o| selector.matches(&o.meta.labels));
        };
        // Of the labels that must have one certain value, the one the fewest objects have.
        let certain = selector.requirements.iter().filter(|r| r.operator == Operator::In && r.values.len() == 1);
        let held = certain.map(|r| index.objects.get(&label_value(namespace, &r.key, &r.values[0])));
        match held.min_by_key(|objects| objects.map_or(0, Objects::len)) {
            None => {
                drop(contents);
                self.list_where(Some(namespace), |o| selector.matches(&o.meta.labels))
            }
            Some(objects) => {
                let objects = objects.into_iter().flat_map(Objects::values);
                objects.filter(|o| selector.matches(&o.meta.labels)).cloned().collect()
            }
        }
    }

    /// Makes [`Store::list_selected`] within a namespace look only at objects that have one of the labels asked for.
    pub fn index_labels(&self) {
        self.add_index(LABELS, |o| o.meta.labels.iter().map(|(k, v)| label_value(&o.meta.namespace, k, v)).collect());
    }

    /// Adds an index, over what is held already too. The same name twice keeps the first.
    pub fn add_index(&self, name: &'static str, of: impl Fn(&Object) -> Vec<String> + Send + Sync + 'static) {
        let mut contents = self.write();
        if contents.indexes.contains_key(name) {
            return;
        }
        let mut index = Index { of: Arc::new(of), objects: HashMap::new() };
        for (key, object) in &contents.objects {
            index.change(key, None, Some(object));
        }
        contents.indexes.insert(name, index);
    }

    /// Objects an index holds under a value, in key order. An index nobody added is empty.
    pub fn by_index(&self, name: &str, value: &str) -> Vec<Arc<Object>> {
        let contents = self.read();
        let objects = contents.indexes.get(name).and_then(|i| i.objects.get(value));
        objects.into_iter().flat_map(Objects::values).cloned().collect()
    }

    /// Whether an index holds anything under a value.
    pub fn is_indexed(&self, name: &str, value: &str) -> bool {
        self.read().indexes.get(name).is_some_and(|i| i.objects.contains_key(value))
    }

    /// A subscription that begins with every object held.
    pub fn subscribe(&self) -> Subscription {
        self.subscribe_bounded(MAX_PENDING_KEYS)
    }

    /// As [`Store::subscribe`], for a subscriber with another bound of pending keys.
    pub fn subscribe_bounded(&self, limit: usize) -> Subscription {
        let mailbox = Mailbox::new(limit);
        let mut contents = self.write();
        for (key, object) in &contents.objects {
            mailbox.put(key, None, Some(object));
        }
        if contents.closed {
            mailbox.close();
        }
        contents.subscribers.push(Arc::downgrade(&mailbox));
        Subscription { mailbox }
    }

    /// No more changes will come: subscribers end.
    pub fn close(&self) {
        let mut contents = self.write();
        contents.closed = true;
        for mailbox in contents.subscribers.iter().filter_map(Weak::upgrade) {
            mailbox.close();
        }
    }
}
