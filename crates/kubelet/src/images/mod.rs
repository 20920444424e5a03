//! Images: pull policies, credentials, back-off between failed pulls.

pub mod access;
pub mod credentials;
pub mod gc;
pub mod providers;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Pod, Secret};

use self::access::{Access, Credential, Origin};
use self::providers::Providers;
use crate::agent::Context;
use crate::config::Config;
use crate::cri::v1;
use crate::events::About;
use crate::metrics::families;
use crate::pods::plan::{Failed, is_over};
use crate::references::Referent;
use crate::spec;

const FIRST_BACK_OFF: SignedDuration = SignedDuration::from_secs(10);
const MAX_BACK_OFF: SignedDuration = SignedDuration::from_secs(300);
/// How soon a failed pull is looked at again; then the back-off shows.
const SHOWN_AFTER: SignedDuration = SignedDuration::from_secs(1);

#[derive(Clone)]
struct Wait {
    delay: SignedDuration,
    at: Timestamp,
    /// What went wrong the last time.
    why: String,
}

/// Pull state of the node.
pub struct Images {
    waits: Mutex<HashMap<(String, String), Wait>>,
    /// How long pods waited for pulls, by uid, until they run.
    took: Mutex<HashMap<String, Duration>>,
    pulls: tokio::sync::Semaphore,
    providers: Providers,
    access: Access,
    /// When each image was last used, by id, for collection.
    pub(crate) used: Mutex<HashMap<String, Instant>>,
}

impl Images {
    /// As the node is configured.
    pub fn new(config: &Config) -> anyhow::Result<Self> {
        let providers = match &config.credential_providers {
            Some((file, dir)) => Providers::load(file, dir)?,
            None => Providers::default(),
        };
        Ok(Self {
            waits: Mutex::default(),
            took: Mutex::default(),
            pulls: tokio::sync::Semaphore::new(config.parallel_pulls),
            used: Mutex::default(),
            providers,
            access: Access::new(config.root_dir.join("image-access"), config.image_verification.clone()),
        })
    }
}

/// Whether a name ends in `:latest` or has neither tag nor digest.
fn is_latest(image: &str) -> bool {
    if image.contains('@') {
        return false;
    }
    match image.rsplit('/').next().unwrap_or(image).split_once(':') {
        Some((_, tag)) => tag == "latest",
        None => true,
    }
}

/// Whether a name can be an image's.
fn well_formed(image: &str) -> bool {
    let name = image.split('@').next().unwrap_or(image);
    !name.is_empty()
        && image.len() <= 1024
        && !image.contains(char::is_whitespace)
        && image.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-/:@+[]".contains(&b))
        && !name
            .rsplit('/')
            .next()
            .unwrap_or(name)
            .split(':')
            .next()
            .unwrap_or_default()
            .bytes()
            .any(|b| b.is_ascii_uppercase())
        && !name.starts_with('-')
}

impl Images {
    /// Makes sure a container's image is there: its status from the engine, or why the container has to wait.
    pub async fn ensure(
        &self,
        context: &Context,
        pod: &Pod,
        container: &Container,
        about: &About,
    ) -> Result<v1::Image, Failed> {
        let image = container.image.as_deref().unwrap_or_default();
        self.obtain(context, pod, image, container.image_pull_policy.as_deref(), about).await
    }

    /// The same for an image volume; the engine's reference to it.
    pub async fn ensure_volume(
        &self,
        context: &Context,
        pod: &Pod,
        image: &str,
        policy: Option<&str>,
    ) -> Result<String, String> {
        let about = context.events.about_pod(pod);
        context.metrics.count(&families::IMAGE_VOLUMES, &[]);
        let had = self.obtain(context, pod, image, policy, &about).await;
        let outcome = if had.is_ok() { &families::IMAGE_VOLUMES_MOUNTED } else { &families::IMAGE_VOLUMES_ERRORS };
        context.metrics.count(outcome, &[]);
        had.map(|i| i.id).map_err(|f| f.message)
    }

    async fn present(&self, context: &Context, image: &str) -> Result<Option<v1::Image>, tonic::Status> {
        let spec = v1::ImageSpec { image: image.into(), ..Default::default() };
        let found =
            context.engine.image_status(v1::ImageStatusRequest { image: Some(spec), verbose: false }).await?.image;
        if let Some(image) = &found {
            self.used.lock().unwrap_or_else(PoisonError::into_inner).insert(image.id.clone(), Instant::now());
        }
        Ok(found)
    }

    async fn obtain(
        &self,
        context: &Context,
        pod: &Pod,
        image: &str,
        policy: Option<&str>,
        about: &About,
    ) -> Result<v1::Image, Failed> {
        let now = Timestamp::now();
        let fail = |reason: &str, message: String, after: SignedDuration| Failed {
            reason: reason.into(),
            message,
            retry_at: now + after,
        };
        if !well_formed(image) {
            let message = format!(
                "Failed to apply default image tag \"{image}\": couldn't parse image name \"{image}\": invalid reference format"
            );
            context.events.warning(about, "InspectFailed", &message);
            context.events.warning(about, "Failed", "Error: InvalidImageName");
            return Err(fail("InvalidImageName", message, MAX_BACK_OFF));
        }
        let policy =
            policy.filter(|p| !p.is_empty()).unwrap_or(if is_latest(image) { "Always" } else { "IfNotPresent" });
        let present = match self.present(context, image).await {
            Ok(present) => present,
            Err(status) => {
                let message = format!("Failed to inspect image \"{image}\": {}", status.message());
                context.events.warning(about, "InspectFailed", &message);
                return Err(fail("ImageInspectError", message, SHOWN_AFTER));
            }
        };
        let usable = match &present {
            Some(found) if policy != "Always" => {
                self.access.allows(&found.id, image, self.credentials(context, pod, image)).await
            }
            _ => true,
        };
        match (present, policy) {
            (Some(_), "Never") if !usable => {
                let message = format!(
                    "Container image \"{image}\" is present with pull policy of Never but does not have the proper credentials to access the image"
                );
                context.events.warning(about, "ErrImageNeverPull", &message);
                context.events.warning(about, "Failed", "Error: ErrImageNeverPull");
                return Err(fail("ErrImageNeverPull", message, FIRST_BACK_OFF));
            }
            (Some(found), "IfNotPresent" | "Never") if usable => {
                context.events.normal(
                    about,
                    "Pulled",
                    &format!("Container image \"{image}\" already present on machine and can be accessed by the pod"),
                );
                return Ok(found);
            }
            (None, "Never") => {
                let message = format!("Container image \"{image}\" is not present with pull policy of Never");
                context.events.warning(about, "ErrImageNeverPull", &message);
                context.events.warning(about, "Failed", "Error: ErrImageNeverPull");
                return Err(fail("ErrImageNeverPull", message, FIRST_BACK_OFF));
            }
            _ => {}
        }
        let key = (spec::uid(pod).to_string(), image.to_string());
        let wait = self.waits.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        if let Some(wait) = &wait
            && !is_over(wait.at + wait.delay, now)
        {
            let message = format!("Back-off pulling image \"{image}\"");
            context.events.normal(about, "BackOff", &message);
            context.events.warning(about, "Failed", "Error: ImagePullBackOff");
            let message = format!("{message}: ErrImagePull: {}", wait.why);
            return Err(Failed { reason: "ImagePullBackOff".into(), message, retry_at: wait.at + wait.delay });
        }
        context.events.normal(about, "Pulling", &format!("Pulling image \"{image}\""));
        let begun = Instant::now();
        match self.pull(context, pod, image).await {
            Ok(pulled) => {
                self.waits.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
                let (took, size) = (begun.elapsed(), pulled.size);
                context.metrics.since(&families::IMAGE_PULLS, &[size_class(size)], begun);
                *self.took.lock().unwrap_or_else(PoisonError::into_inner).entry(key.0).or_default() += took;
                context.events.normal(
                    about,
                    "Pulled",
                    &format!(
                        "Successfully pulled image \"{image}\" in {} ({} including waiting). Image size: {size} bytes.",
                        shown(took),
                        shown(took)
                    ),
                );
                Ok(pulled)
            }
            Err(error) => {
                let now = Timestamp::now();
                let delay = wait.map_or(FIRST_BACK_OFF, |w| (w.delay * 2).min(MAX_BACK_OFF));
                self.waits
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .insert(key, Wait { delay, at: now, why: error.clone() });
                context.events.warning(about, "Failed", &format!("Failed to pull image \"{image}\": {error}"));
                context.events.warning(about, "Failed", "Error: ErrImagePull");
                Err(Failed { reason: "ErrImagePull".into(), message: error, retry_at: now + SHOWN_AFTER })
            }
        }
    }

    async fn pull(&self, context: &Context, pod: &Pod, image: &str) -> Result<v1::Image, String> {
        let _permit = self.pulls.acquire().await.map_err(|e| e.to_string())?;
        let spec = v1::ImageSpec { image: image.into(), ..Default::default() };
        let mut tries: Vec<Option<Credential>> =
            self.credentials(context, pod, image).await.into_iter().map(Some).collect();
        if tries.is_empty() {
            tries.push(None);
        }
        self.access.pulling(image)?;
        let mut last = String::new();
        for credential in tries {
            let auth = credential.as_ref().map(|c| c.auth.clone());
            match context
                .engine
                .pull_image(v1::PullImageRequest { image: Some(spec.clone()), auth, sandbox_config: None })
                .await
            {
                Ok(answer) => {
                    return match self.present(context, &answer.image_ref).await {
                        Ok(Some(found)) => {
                            self.access.pulled(&found.id, image, credential.as_ref().map(|c| &c.origin));
                            Ok(found)
                        }
                        Ok(None) => Err(format!("image {} vanished after it was pulled", answer.image_ref)),
                        Err(status) => Err(status.to_string()),
                    };
                }
                Err(status) => last = format!("rpc error: code = {:?} desc = {}", status.code(), status.message()),
            }
        }
        self.access.not_pulled(image);
        Err(last)
    }

    async fn credentials(&self, context: &Context, pod: &Pod, image: &str) -> Vec<Credential> {
        let mut out = Vec::new();
        for reference in spec::spec(pod).image_pull_secrets.iter().flatten() {
            let secret =
                context.references.get(Referent::Secret, spec::namespace(pod), &reference.name, spec::uid(pod)).await;
            // A missing pull secret only means one credential less.
            if let Ok(Some(object)) = secret
                && let Ok(secret) = object.typed::<Secret>()
            {
                let secret: Arc<Secret> = secret;
                let text = |t: &Option<String>| t.clone().unwrap_or_default();
                out.extend(credentials::matching(&secret, image).into_iter().map(|auth| Credential {
                    origin: Origin::Secret {
                        namespace: spec::namespace(pod).into(),
                        name: reference.name.clone(),
                        uid: text(&secret.metadata.uid),
                        hash: access::hash(&auth),
                    },
                    auth,
                }));
            }
        }
        out.extend(self.providers.credentials(context, pod, image).await);
        out
    }

    /// Images that are gone need no notes.
    pub fn forget_all_but(&self, present: &[v1::Image], listed: SystemTime) {
        self.access.keep(present.iter().map(|i| i.id.clone()), listed);
    }

    /// A pod is gone.
    pub fn release(&self, uid: &str) {
        self.waits.lock().unwrap_or_else(PoisonError::into_inner).retain(|(pod, _), _| pod != uid);
        self.pulled_for(uid);
    }

    /// How long a pod waited for pulls; told once.
    pub fn pulled_for(&self, uid: &str) -> Duration {
        self.took.lock().unwrap_or_else(PoisonError::into_inner).remove(uid).unwrap_or_default()
    }
}

/// How large an image is, as pulls are counted by it.
fn size_class(bytes: u64) -> &'static str {
    const MB: u64 = 1 << 20;
    const CLASSES: [(u64, &str); 11] = [
        (10 * MB, "0-10MB"),
        (100 * MB, "10MB-100MB"),
        (500 * MB, "100MB-500MB"),
        (1024 * MB, "500MB-1GB"),
        (5 * 1024 * MB, "1GB-5GB"),
        (10 * 1024 * MB, "5GB-10GB"),
        (20 * 1024 * MB, "10GB-20GB"),
        (30 * 1024 * MB, "20GB-30GB"),
        (40 * 1024 * MB, "30GB-40GB"),
        (60 * 1024 * MB, "40GB-60GB"),
        (100 * 1024 * MB, "60GB-100GB"),
    ];
    CLASSES.iter().find(|(below, _)| bytes < *below).map_or("GT100GB", |(_, name)| name)
}

/// A duration as Go shows one, in milliseconds or seconds.
fn shown(took: Duration) -> String {
    if took.as_secs() == 0 { format!("{}ms", took.as_millis()) } else { format!("{:.3}s", took.as_secs_f64()) }
}

#[cfg(test)]
mod tests {
    #[test]
    fn names() {
        for (image, latest) in
            [("a", true), ("r:5000/a", true), ("a:latest", true), ("a:1", false), ("a@sha256:0", false)]
        {
            assert_eq!(super::is_latest(image), latest, "{image}");
        }
        for (image, fine) in [
            ("a/b:1", true),
            ("", false),
            ("a b", false),
            ("Upper", false),
            ("r:5000/a@sha256:00", true),
            ("a:V1", true),
        ] {
            assert_eq!(super::well_formed(image), fine, "{image}");
        }
    }
}
