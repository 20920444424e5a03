//! Follows Services and EndpointSlices into the [`World`].

use std::time::SystemTime;

use client::{Client, News, Reflector, Scope, gvr_of};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde::de::DeserializeOwned;

use crate::slice::triggered;
use crate::world::World;

/// Changes remembered for one write, for the metric's sake.
const MAX_TRIGGERS: usize = 10_000;

/// What is followed, and what is known by it.
pub struct Objects {
    services: Reflector,
    slices: Reflector,
    complete: (bool, bool),
    pub world: World,
    /// When the pods changed that the next write brings into effect.
    pub triggers: Vec<SystemTime>,
    /// Changes since somebody looked: of Services, of slices.
    pub changes: (usize, usize),
}

impl Objects {
    pub fn start(client: &Client, node: &str) -> Objects {
        Objects {
            services: Reflector::start(client, Scope::all(gvr_of::<Service>())),
            slices: Reflector::start(client, Scope::all(gvr_of::<EndpointSlice>())),
            complete: (false, false),
            world: World::new(node),
            triggers: Vec::new(),
            changes: (0, 0),
        }
    }

    /// When all there is has been taken in.
    pub async fn ready(&mut self) {
        while self.complete != (true, true) && self.changed().await {}
    }

    /// When there is something new, which has been taken in then; false when there will be nothing any more.
    pub async fn changed(&mut self) -> bool {
        tokio::select! {
            news = self.services.next() => match news {
                Some(news) => self.take_services(news),
                None => return false,
            },
            news = self.slices.next() => match news {
                Some(news) => self.take_slices(news),
                None => return false,
            },
        }
        self.absorb();
        true
    }

    /// Takes in everything that waits.
    pub fn absorb(&mut self) {
        while let Some(news) = self.services.try_next() {
            self.take_services(news);
        }
        while let Some(news) = self.slices.try_next() {
            self.take_slices(news);
        }
    }

    fn take_services(&mut self, news: Vec<News>) {
        for one in news {
            self.changes.0 += 1;
            match one {
                News::Put(object) => match read(&object) {
                    Some(service) => self.world.set_service(&service),
                    None => self.world.remove_service(&object.meta.key()),
                },
                News::Gone(key) => self.world.remove_service(&key),
                News::Complete => self.complete.0 = true,
            }
        }
    }

    fn take_slices(&mut self, news: Vec<News>) {
        for one in news {
            self.changes.1 += 1;
            match one {
                News::Put(object) => match read(&object) {
                    Some(slice) => {
                        self.triggers.extend(triggered(&slice).filter(|_| self.triggers.len() < MAX_TRIGGERS));
                        self.world.set_slice(&slice);
                    }
                    None => self.world.remove_slice(&object.meta.key()),
                },
                News::Gone(key) => self.world.remove_slice(&key),
                News::Complete => self.complete.1 = true,
            }
        }
    }
}

/// Reads an object without keeping it, or the parsed form: what is made of that is all that is needed later.
pub(crate) fn read<T: DeserializeOwned>(object: &client::Object) -> Option<T> {
    let read = serde_json::from_slice(object.raw());
    if let Err(error) = &read {
        tracing::warn!("cannot read {} {}: {error}", object.kind, object.meta.key());
    }
    read.ok()
}
