//! Pulling an image: resolve its name to a manifest for this machine, fetch what is missing, hand it to the store.
//!
//! Guarantees: manifests and blobs match their digests; a download that breaks goes on where it stopped, a few times;
//! what was fetched for a pull that failed is removed.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use http_body_util::BodyExt;
use tokio::io::AsyncWriteExt;

use super::config::{Descriptor, Manifest};
use super::reference::Reference;
use super::registry::{Registry, RegistryError};
use super::store::{Image, NewLayer};
use super::{hosts, unpack};
use crate::engine::Engine;
use cri::v1::AuthConfig;

/// Layers fetched at a time.
const PARALLEL: usize = 3;
/// Times that a download is begun or continued before it is given up.
const TRIES: usize = 5;
/// Longest silence of a download.
const STALL: Duration = Duration::from_secs(30);
/// Pause before a download is continued.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// Most indexes inside each other.
const MAX_NESTING: usize = 4;
/// Largest blob in bytes.
const MAX_BLOB: u64 = 64 << 30;

/// Why an image could not be pulled.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The registry's part.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// Our part, or an image that is not right.
    #[error("{0}")]
    Image(String),
    /// What comes cannot be written down: coming again would not help.
    #[error("writing {0}: {1}")]
    Disk(String, std::io::Error),
}

impl PullError {
    /// As gRPC shows it, in the words that callers know.
    pub fn into_status(self, name: &str) -> tonic::Status {
        let message = format!("failed to pull and unpack image \"{name}\": {self}");
        match self {
            PullError::Registry(RegistryError::NotFound(_)) => tonic::Status::not_found(message),
            _ => tonic::Status::unknown(message),
        }
    }
}

fn wrong(error: impl std::fmt::Display) -> PullError {
    PullError::Image(error.to_string())
}

/// The places of a registry, in order of preference.
struct Source(Vec<Registry>);

impl Source {
    fn new(reference: &Reference, auth: AuthConfig, directories: &[PathBuf]) -> Result<Source, PullError> {
        let places = hosts::of(&reference.registry, directories).map_err(PullError::Image)?;
        let of = |place| Registry::new(place, &reference.repository, auth.clone());
        Ok(Source(places.into_iter().map(of).collect::<Result<_, _>>()?))
    }

    /// From the first place that has it. What the last says is the error.
    async fn manifest(&self, tag_or_digest: &str) -> Result<bytes::Bytes, RegistryError> {
        let by_digest = super::reference::is_digest(tag_or_digest);
        let mut last = RegistryError::NotFound(tag_or_digest.into());
        for registry in &self.0 {
            let place = registry.place();
            if if by_digest { !place.pull } else { !place.resolve } {
                continue;
            }
            match registry.manifest(tag_or_digest).await {
                // A mirror that lies is passed over.
                Ok(bytes) if by_digest && self.0.len() > 1 && unpack::digest_of(&bytes) != tag_or_digest => {
                    last = RegistryError::Failed(format!("{}: manifest digest mismatch", place.authority));
                }
                Ok(bytes) => return Ok(bytes),
                Err(error) => last = error,
            }
            tracing::debug!(host = place.authority, error = %last, "a manifest is not to be had");
        }
        Err(last)
    }

    /// The places for content; each attempt begins with the next.
    fn for_content(&self, attempt: usize) -> impl Iterator<Item = &Registry> {
        let able: Vec<&Registry> = self.0.iter().filter(|r| r.place().pull).collect();
        let count = able.len();
        able.into_iter().cycle().skip(attempt).take(count)
    }

    async fn blob(
        &self,
        digest: &str,
        from: u64,
        attempt: usize,
    ) -> Result<(hyper::body::Incoming, bool), RegistryError> {
        let mut last = RegistryError::NotFound(digest.into());
        for registry in self.for_content(attempt) {
            match registry.blob(digest, from).await {
                Ok(answer) => return Ok(answer),
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

/// A directory of downloads that goes with its owner.
struct Downloads(PathBuf);

impl Drop for Downloads {
    fn drop(&mut self) {
        // What cannot be removed now goes with the next start.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Pulls an image under its name.
pub async fn pull(engine: &Arc<Engine>, name: &str, auth: AuthConfig) -> Result<Arc<Image>, PullError> {
    let reference = Reference::parse(name).map_err(wrong)?;
    let registry = Arc::new(Source::new(&reference, auth, &engine.config.registry_dirs)?);
    let wanted = reference.digest.clone().or(reference.tag.clone()).unwrap_or_default();
    let top = registry.manifest(&wanted).await?;
    let digest = unpack::digest_of(&top);
    if reference.digest.as_ref().is_some_and(|d| *d != digest) {
        return Err(wrong(format!("manifest digest mismatch: expected {wanted}, got {digest}")));
    }
    let (manifest, manifest_size) = for_this_machine(&registry, top.to_vec()).await?;
    let config_descriptor = manifest.config.clone().ok_or_else(|| wrong("a manifest without configuration"))?;
    let downloads = Downloads(engine.images.ingest_path());
    std::fs::create_dir_all(&downloads.0).map_err(wrong)?;
    let config_file = fetch(&registry, &config_descriptor, &downloads.0).await?;
    let config = tokio::fs::read(&config_file).await.map_err(wrong)?;
    let known = engine.images.find_whole(&unpack::digest_of(&config));
    let files: Vec<PathBuf> = if known.is_some() {
        Vec::new()
    } else {
        stream::iter(manifest.layers.clone())
            .map(|layer| {
                let (registry, dir) = (registry.clone(), downloads.0.clone());
                async move { fetch(&registry, &layer, &dir).await }
            })
            .buffered(PARALLEL)
            .try_collect()
            .await?
    };
    let size = manifest_size + config.len() as u64 + manifest.layers.iter().map(|l| l.size).sum::<u64>();
    let mut names = vec![reference.clone()];
    if reference.digest.is_none() {
        names.push(Reference { tag: None, digest: Some(digest), ..reference });
    }
    let engine = engine.clone();
    tokio::task::spawn_blocking(move || {
        let layers = manifest.layers.iter().enumerate().map(|(n, layer)| NewLayer {
            digest: Some(&layer.digest),
            open: match files.get(n) {
                Some(file) => Box::new(move || Ok(Box::new(std::fs::File::open(file)?))),
                // The image is here already, so its layers are not opened.
                None => Box::new(|| anyhow::bail!("the layer was not fetched")),
            },
        });
        let added = engine.images.add(&config, layers.collect(), size, &names);
        drop(downloads);
        added.map_err(|e| wrong(format!("{e:#}")))
    })
    .await
    .map_err(wrong)?
}

/// Follows indexes to the manifest for this machine.
async fn for_this_machine(registry: &Source, mut bytes: Vec<u8>) -> Result<(Manifest, u64), PullError> {
    for _ in 0..MAX_NESTING {
        let manifest: Manifest =
            serde_json::from_slice(&bytes).map_err(|e| wrong(format!("reading a manifest: {e}")))?;
        if manifest.config.is_some() {
            return Ok((manifest, bytes.len() as u64));
        }
        let next = manifest.for_this_machine().ok_or_else(|| {
            wrong(format!("no match for platform in manifest: linux/{}: not found", super::config::architecture()))
        })?;
        bytes = registry.manifest(&next.digest).await?.to_vec();
        let digest = unpack::digest_of(&bytes);
        if digest != next.digest {
            return Err(wrong(format!("manifest digest mismatch: expected {}, got {digest}", next.digest)));
        }
    }
    Err(wrong(format!("indexes nested deeper than {MAX_NESTING}")))
}

/// Fetches a blob into a directory and checks it.
async fn fetch(registry: &Source, blob: &Descriptor, dir: &Path) -> Result<PathBuf, PullError> {
    if !super::reference::is_digest(&blob.digest) {
        return Err(wrong(format!("unsupported digest \"{}\"", blob.digest)));
    }
    if blob.size > MAX_BLOB {
        return Err(wrong(format!("blob {} has {} bytes, more than {MAX_BLOB}", blob.digest, blob.size)));
    }
    let place = dir.join(&blob.digest["sha256:".len()..]);
    let mut file = tokio::fs::File::create(&place).await.map_err(wrong)?;
    let mut have = 0u64;
    let mut last = wrong("no host to fetch from");
    for attempt in 0..TRIES {
        if attempt > 0 {
            tokio::time::sleep(RETRY_PAUSE * attempt as u32).await;
        }
        match continue_blob(registry, blob, &mut file, &mut have, attempt).await {
            Ok(()) => {}
            Err(PullError::Registry(e @ (RegistryError::NotFound(_) | RegistryError::Denied(_)))) => {
                return Err(e.into());
            }
            Err(full @ PullError::Disk(..)) => return Err(full),
            Err(error) => {
                last = error;
                continue;
            }
        }
        file.flush().await.map_err(|e| PullError::Disk(blob.digest.clone(), e))?;
        let got = hash_of(place.clone()).await?;
        if got == blob.digest {
            return Ok(place);
        }
        let lie = wrong(format!("blob digest mismatch: expected {}, got {got}", blob.digest));
        // The next place, if there is one, may be more honest.
        if registry.for_content(0).count() < 2 {
            return Err(lie);
        }
        last = lie;
        begin_anew(&mut file, &mut have).await?;
    }
    Err(wrong(format!("fetching {}: {last} ({TRIES} tries)", blob.digest)))
}

async fn hash_of(path: PathBuf) -> Result<String, PullError> {
    tokio::task::spawn_blocking(move || unpack::Hashing::new(std::fs::File::open(path)?, MAX_BLOB).finish())
        .await
        .map_err(wrong)?
        .map_err(wrong)
        .map(|(digest, _)| digest)
}

async fn begin_anew(file: &mut tokio::fs::File, have: &mut u64) -> Result<(), PullError> {
    use tokio::io::AsyncSeekExt;
    file.set_len(0).await.map_err(wrong)?;
    file.rewind().await.map_err(wrong)?;
    *have = 0;
    Ok(())
}

async fn continue_blob(
    registry: &Source,
    blob: &Descriptor,
    file: &mut tokio::fs::File,
    have: &mut u64,
    attempt: usize,
) -> Result<(), PullError> {
    let (mut body, partial) = registry.blob(&blob.digest, *have, attempt).await?;
    if !partial && *have > 0 {
        begin_anew(file, have).await?;
    }
    loop {
        match tokio::time::timeout(STALL, body.frame()).await {
            Err(_) => return Err(wrong(format!("nothing came for {} s", STALL.as_secs()))),
            Ok(None) => break,
            Ok(Some(Err(e))) => return Err(wrong(e)),
            Ok(Some(Ok(frame))) => {
                if let Ok(data) = frame.into_data() {
                    *have += data.len() as u64;
                    if *have > blob.size {
                        return Err(wrong(format!("more than the announced {} bytes", blob.size)));
                    }
                    file.write_all(&data).await.map_err(|e| PullError::Disk(blob.digest.clone(), e))?;
                }
            }
        }
    }
    if *have < blob.size {
        return Err(wrong(format!("it ended after {have} of {} bytes", blob.size)));
    }
    Ok(())
}
