//! Events: what components tell people about objects.
//!
//! Recording never waits and never fails: events go through a bounded channel to one task, which counts repeats on one
//! Event object, folds floods of similar ones together, and drops what exceeds an object's rate, as upstream's recorder
//! does. It writes no faster than upstream's components may by default: in a burst, events must not cost the server more
//! than what they tell of. What cannot be written is dropped; events are not state.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use meta::{Gvr, Object};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::time::rfc3339;
use crate::{Client, Patch};

/// Events waiting to be written; beyond that, new ones are dropped.
const BACKLOG: usize = 1000;
/// Events a component writes at once, and a second in the long run; later ones wait in the backlog.
const WRITES_AT_ONCE: f64 = 100.0;
const WRITES_A_SECOND: f64 = 50.0;
/// Objects, and events, remembered for counting and rates.
const REMEMBERED: usize = 4096;
/// Events an object may cause at once, and how long until it may cause one more.
const BURST: f64 = 25.0;
const REFILL: Duration = Duration::from_secs(300);
/// Different messages of one reason within this time are folded together beyond this number.
const SIMILAR: usize = 10;
const SIMILAR_WITHIN: Duration = Duration::from_secs(600);
/// Bytes of a message; the API allows 1024.
const MAX_MESSAGE: usize = 1024;

/// `Event.type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventType {
    Normal,
    Warning,
}

impl EventType {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// A reference to an object as events carry it. Set `field_path` for a part of it (`spec.containers{name}`).
pub fn reference(object: &Object) -> ObjectReference {
    let some = |text: &str| (!text.is_empty()).then(|| text.to_string());
    ObjectReference {
        api_version: some(&object.api_version),
        kind: some(&object.kind),
        namespace: some(&object.meta.namespace),
        name: some(&object.meta.name),
        uid: some(&object.meta.uid),
        resource_version: (object.resource_version > 0).then(|| object.resource_version.to_string()),
        field_path: None,
    }
}

struct Occurrence {
    about: ObjectReference,
    kind: EventType,
    reason: String,
    message: String,
    at: Timestamp,
}

/// Writes events for one component. Clones share the channel.
#[derive(Clone)]
pub struct Recorder {
    send: mpsc::Sender<Occurrence>,
}

impl Recorder {
    /// A recorder for a component (`deployment-controller`) on a host (empty when that says nothing). Must be called
    /// within a tokio runtime.
    pub fn new(client: &Client, component: &str, host: &str) -> Self {
        let (send, receive) = mpsc::channel(BACKLOG);
        let mut writer = Writer {
            client: client.clone(),
            component: component.into(),
            host: host.into(),
            known: Memory::new(),
            similar: Memory::new(),
            tokens: Memory::new(),
            writes: Tokens::full(WRITES_AT_ONCE),
        };
        tokio::spawn(async move { writer.run(receive).await });
        Self { send }
    }

    /// Tells something about an object. Never waits.
    pub fn event(&self, about: &ObjectReference, kind: EventType, reason: &str, message: impl Into<String>) {
        let mut message = message.into();
        if message.len() > MAX_MESSAGE {
            let mut end = MAX_MESSAGE - 3;
            while !message.is_char_boundary(end) {
                end -= 1;
            }
            message.truncate(end);
            message.push_str("...");
        }
        let occurrence =
            Occurrence { about: about.clone(), kind, reason: reason.into(), message, at: Timestamp::now() };
        if self.send.try_send(occurrence).is_err() {
            tracing::debug!(reason, "event dropped: too many are waiting");
        }
    }

    pub fn normal(&self, object: &Object, reason: &str, message: impl Into<String>) {
        self.event(&reference(object), EventType::Normal, reason, message);
    }

    pub fn warning(&self, object: &Object, reason: &str, message: impl Into<String>) {
        self.event(&reference(object), EventType::Warning, reason, message);
    }
}

/// A map that forgets its oldest entries.
struct Memory<K, V> {
    entries: HashMap<K, V>,
    order: VecDeque<K>,
}

impl<K: Clone + Eq + Hash, V> Memory<K, V> {
    fn new() -> Self {
        Self { entries: HashMap::new(), order: VecDeque::new() }
    }

    fn entry(&mut self, key: K, fresh: impl FnOnce() -> V) -> &mut V {
        if !self.entries.contains_key(&key) {
            if self.order.len() >= REMEMBERED
                && let Some(oldest) = self.order.pop_front()
            {
                self.entries.remove(&oldest);
            }
            self.order.push_back(key.clone());
        }
        self.entries.entry(key).or_insert_with(fresh)
    }
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct About {
    kind: String,
    namespace: String,
    name: String,
    uid: String,
    field_path: String,
}

impl About {
    fn of(reference: &ObjectReference) -> Self {
        let text = |t: &Option<String>| t.clone().unwrap_or_default();
        Self {
            kind: text(&reference.kind),
            namespace: text(&reference.namespace),
            name: text(&reference.name),
            uid: text(&reference.uid),
            field_path: text(&reference.field_path),
        }
    }
}

/// An Event object already written.
#[derive(Default)]
struct Written {
    name: String,
    count: i64,
}

struct Similar {
    last: Instant,
    messages: BTreeSet<String>,
}

/// A bucket of tokens that fills up again.
struct Tokens {
    left: f64,
    at: Instant,
}

impl Tokens {
    fn full(most: f64) -> Self {
        Self { left: most, at: Instant::now() }
    }

    /// Takes one, if there is one; else says how long until there is.
    fn take(&mut self, most: f64, a_second: f64) -> Result<(), Duration> {
        let now = Instant::now();
        let gained = now.duration_since(self.at).as_secs_f64() * a_second;
        (self.left, self.at) = ((self.left + gained).min(most), now);
        if self.left < 1.0 {
            return Err(Duration::from_secs_f64((1.0 - self.left) / a_second));
        }
        self.left -= 1.0;
        Ok(())
    }
}

struct Writer {
    client: Client,
    component: Arc<str>,
    host: Arc<str>,
    known: Memory<(About, EventType, String, String), Written>,
    similar: Memory<(About, EventType, String), Similar>,
    tokens: Memory<About, Tokens>,
    writes: Tokens,
}

impl Writer {
    async fn run(&mut self, mut receive: mpsc::Receiver<Occurrence>) {
        while let Some(occurrence) = receive.recv().await {
            self.write(occurrence).await;
        }
    }

    /// Takes one token of the object's bucket.
    fn allowed(&mut self, about: &About) -> bool {
        let tokens = self.tokens.entry(about.clone(), || Tokens::full(BURST));
        tokens.take(BURST, 1.0 / REFILL.as_secs_f64()).is_ok()
    }

    /// Waits for the component's own turn to write.
    async fn turn(&mut self) {
        while let Err(wait) = self.writes.take(WRITES_AT_ONCE, WRITES_A_SECOND) {
            tokio::time::sleep(wait).await;
        }
    }

    /// Folds floods of differing messages: (what repeats are recognized by, the message to write).
    fn fold(&mut self, about: &About, o: &Occurrence) -> (String, String) {
        let now = Instant::now();
        let fresh = || Similar { last: now, messages: BTreeSet::new() };
        let similar = self.similar.entry((about.clone(), o.kind, o.reason.clone()), fresh);
        if now.duration_since(similar.last) > SIMILAR_WITHIN {
            similar.messages.clear();
        }
        similar.last = now;
        if similar.messages.len() < SIMILAR {
            similar.messages.insert(o.message.clone());
        }
        if similar.messages.len() < SIMILAR {
            return (o.message.clone(), o.message.clone());
        }
        (String::new(), format!("(combined from similar events): {}", o.message))
    }

    async fn write(&mut self, o: Occurrence) {
        let about = About::of(&o.about);
        let (repeat, message) = self.fold(&about, &o);
        if !self.allowed(&about) {
            return;
        }
        self.turn().await;
        let namespace = if about.namespace.is_empty() { "default" } else { &about.namespace }.to_string();
        let api = self.client.dynamic(Gvr::new("", "v1", "events")).namespaced(&namespace);
        let at = rfc3339(o.at);
        let written = self.known.entry((about.clone(), o.kind, o.reason.clone(), repeat), Written::default);
        if written.count > 0 {
            let patch = json!({"count": written.count + 1, "lastTimestamp": at, "message": message});
            match api.patch(&written.name, Patch::Strategic(patch)).await {
                Ok(_) => {
                    written.count += 1;
                    return;
                }
                // Events expire; then it begins anew.
                Err(status) if status.is_not_found() => {}
                Err(status) => {
                    tracing::debug!(reason = %o.reason, "event not written: {status}");
                    return;
                }
            }
        }
        let name = format!("{}.{:x}", about.name, o.at.as_nanosecond());
        let mut source = json!({"component": &*self.component});
        if !self.host.is_empty() {
            source["host"] = Value::from(&*self.host);
        }
        let event = json!({
            "apiVersion": "v1", "kind": "Event",
            "metadata": {"name": name, "namespace": namespace},
            "involvedObject": o.about,
            "reason": o.reason, "message": message, "type": o.kind.as_str(),
            "source": source,
            "firstTimestamp": at, "lastTimestamp": at, "count": 1,
            "reportingComponent": &*self.component, "reportingInstance": &*self.host,
        });
        match api.create(event).await {
            Ok(_) => *written = Written { name, count: 1 },
            // A namespace that goes away takes no new events, and that is nobody's concern.
            Err(status) => tracing::debug!(reason = %o.reason, "event not written: {status}"),
        }
    }
}
