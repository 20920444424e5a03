//! What a pod's worker is told: the newest version of its pod, and that something happened. Everything coalesces.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::core::v1::Pod;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// The newest known of a pod.
#[derive(Clone)]
pub struct Latest {
    pub pod: Arc<Pod>,
    /// The API has it no more.
    pub removed: bool,
}

/// One worker's letter box.
pub struct Inbox {
    latest: Mutex<Latest>,
    notify: Notify,
    references: AtomicBool,
    resend: AtomicBool,
    /// The pod is over here, though its object is not gone.
    idle: AtomicBool,
    /// Set once the pod must end, so that long work for a living pod is given up.
    pub ending: CancellationToken,
}

/// Whether a pod has been asked to end.
fn ends(latest: &Latest) -> bool {
    latest.removed || latest.pod.metadata.deletion_timestamp.is_some()
}

impl Inbox {
    pub fn new(pod: Arc<Pod>) -> Arc<Self> {
        let inbox = Self {
            latest: Mutex::new(Latest { pod, removed: false }),
            notify: Notify::new(),
            references: AtomicBool::new(false),
            resend: AtomicBool::new(false),
            idle: AtomicBool::new(false),
            ending: CancellationToken::new(),
        };
        if ends(&inbox.latest()) {
            inbox.ending.cancel();
        }
        Arc::new(inbox)
    }

    pub fn latest(&self) -> Latest {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A newer version.
    pub fn update(&self, pod: Arc<Pod>) {
        self.change(|l| l.pod = pod);
    }

    /// The API dropped it.
    pub fn remove(&self) {
        self.change(|l| l.removed = true);
    }

    fn change(&self, apply: impl FnOnce(&mut Latest)) {
        let over = {
            let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
            apply(&mut latest);
            ends(&latest)
        };
        if over {
            self.ending.cancel();
        }
        self.notify.notify_one();
    }

    /// Something happened: look again.
    pub fn wake(&self) {
        self.notify.notify_one();
    }

    /// Something the pod refers to changed.
    pub fn wake_for_references(&self) {
        self.references.store(true, Ordering::Release);
        self.notify.notify_one();
    }

    /// Whether references changed since last asked.
    pub fn take_references(&self) -> bool {
        self.references.swap(false, Ordering::AcqRel)
    }

    /// The API has lost the pod's status: report all of it again.
    pub fn resend(&self) {
        self.resend.store(true, Ordering::Release);
        self.notify.notify_one();
    }

    pub fn take_resend(&self) -> bool {
        self.resend.swap(false, Ordering::AcqRel)
    }

    /// Nothing of the pod runs any more.
    pub fn rest(&self) {
        self.idle.store(true, Ordering::Release);
    }

    pub fn is_idle(&self) -> bool {
        self.idle.load(Ordering::Acquire)
    }

    pub async fn woken(&self) {
        self.notify.notified().await;
    }
}
