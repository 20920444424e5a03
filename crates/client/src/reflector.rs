//! A resource's changes for one who makes of each object what he needs, and keeps that instead.
//!
//! A [`Reflector`] remembers of an object no more than that it is there, and in which version; so a list that had to be taken
//! anew is told as what differs. What it has not been asked for yet is bounded: beyond that the server waits.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use meta::Object;
use tokio::sync::mpsc;
use tokio_util::sync::DropGuard;

use crate::Client;
use crate::follower::{self, Sink};
use crate::informer::Scope;

/// Batches on their way beside the one that is read and the one that is taken in: a page of a list, or what one read of a
/// watch brought. Each is some hundred objects as they came, which is most of what starting on a large cluster needs.
const BATCHES: usize = 1;

/// What became of an object.
#[derive(Debug)]
pub enum News {
    /// It is there, or is another now.
    Put(Arc<Object>),
    /// `namespace/name`, or `name`.
    Gone(Box<str>),
    /// Everything there is has been told. Comes again after a list that had to be taken anew.
    Complete,
}

/// A resource's changes, from everything there is on, until it is dropped.
pub struct Reflector {
    news: mpsc::Receiver<Vec<News>>,
    _stop: DropGuard,
}

impl Reflector {
    /// Starts following; must be called within a tokio runtime.
    pub fn start(client: &Client, scope: Scope) -> Reflector {
        let (sender, news) = mpsc::channel(BATCHES);
        let known = Known { sender: Mutex::new(Some(sender)), state: Mutex::default() };
        Reflector { news, _stop: follower::start(client, scope, Arc::new(known)) }
    }

    /// Waits for news, in the order of events. `None` only when the runtime ends. Cancel safe.
    pub async fn next(&mut self) -> Option<Vec<News>> {
        self.news.recv().await
    }

    /// What is there right now.
    pub fn try_next(&mut self) -> Option<Vec<News>> {
        self.news.try_recv().ok()
    }
}

#[derive(Default)]
struct State {
    /// The version of each object there is, and the list it was seen in.
    versions: HashMap<Box<str>, (u64, u32)>,
    lists: u32,
}

struct Known {
    /// Taken away at the end.
    sender: Mutex<Option<mpsc::Sender<Vec<News>>>>,
    state: Mutex<State>,
}

impl Known {
    // Whole after every statement, so a panic elsewhere leaves it usable.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn tell(&self, news: Vec<News>) {
        let sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(sender) = sender
            && !news.is_empty()
        {
            // Whoever dropped the reflector stops the follower with it.
            let _ = sender.send(news).await;
        }
    }
}

impl State {
    fn put(&mut self, object: Arc<Object>) -> Option<News> {
        let seen = (object.resource_version, self.lists);
        let before = self.versions.insert(object.meta.key().into(), seen);
        before.is_none_or(|(version, _)| version != object.resource_version).then_some(News::Put(object))
    }

    /// Everything the list under way has not told of.
    fn missing(&mut self) -> Vec<News> {
        let lists = self.lists;
        self.versions.extract_if(|_, (_, seen)| *seen != lists).map(|(key, _)| News::Gone(key)).collect()
    }
}

impl Sink for Known {
    const STREAMED: bool = true;

    fn begins(&self) {
        let mut state = self.state();
        state.lists = state.lists.wrapping_add(1);
    }

    async fn listed(&self, objects: Vec<Arc<Object>>, version: Option<u64>) {
        let news = {
            let mut state = self.state();
            let mut news: Vec<News> = objects.into_iter().filter_map(|object| state.put(object)).collect();
            if version.is_some() {
                news.append(&mut state.missing());
                news.push(News::Complete);
            }
            news
        };
        self.tell(news).await;
    }

    async fn changed(&self, events: Vec<(Arc<Object>, bool)>, _: u64) {
        let news = {
            let mut state = self.state();
            let tell = |(object, deleted): (Arc<Object>, bool)| {
                if !deleted {
                    return state.put(object);
                }
                let (key, _) = state.versions.remove_entry(object.meta.key().as_str())?;
                Some(News::Gone(key))
            };
            events.into_iter().filter_map(tell).collect()
        };
        self.tell(news).await;
    }

    async fn unserved(&self) {
        self.begins();
        let news = self.state().missing();
        self.tell(news).await;
    }

    fn close(&self) {
        self.sender.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}
