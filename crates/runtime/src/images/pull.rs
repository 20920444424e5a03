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
use super::unpack;
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
    let registry = Arc::new(Registry::new(&reference, auth)?);
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
    let known = engine.images.find(&unpack::digest_of(&config));
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
async fn for_this_machine(registry: &Registry, mut bytes: Vec<u8>) -> Result<(Manifest, u64), PullError> {
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
async fn fetch(registry: &Registry, blob: &Descriptor, dir: &Path) -> Result<PathBuf, PullError> {
    if !super::reference::is_digest(&blob.digest) {
        return Err(wrong(format!("unsupported digest \"{}\"", blob.digest)));
    }
    if blob.size > MAX_BLOB {
        return Err(wrong(format!("blob {} has {} bytes, more than {MAX_BLOB}", blob.digest, blob.size)));
    }
    let place = dir.join(&blob.digest["sha256:".len()..]);
    let mut file = tokio::fs::File::create(&place).await.map_err(wrong)?;
    let mut have = 0u64;
    let mut last = None;
    for attempt in 0..TRIES {
        if attempt > 0 {
            tokio::time::sleep(RETRY_PAUSE * attempt as u32).await;
        }
        match continue_blob(registry, blob, &mut file, &mut have).await {
            Ok(()) => {
                last = None;
                break;
            }
            Err(PullError::Registry(e @ (RegistryError::NotFound(_) | RegistryError::Denied(_)))) => {
                return Err(e.into());
            }
            Err(error) => last = Some(error),
        }
    }
    if let Some(error) = last {
        return Err(wrong(format!("fetching {}: {error} ({TRIES} tries)", blob.digest)));
    }
    file.flush().await.map_err(wrong)?;
    let (path, expected) = (place.clone(), blob.digest.clone());
    let got = tokio::task::spawn_blocking(move || unpack::Hashing::new(std::fs::File::open(path)?, MAX_BLOB).finish())
        .await
        .map_err(wrong)?
        .map_err(wrong)?;
    if got.0 != expected {
        return Err(wrong(format!("blob digest mismatch: expected {expected}, got {}", got.0)));
    }
    Ok(place)
}

async fn continue_blob(
    registry: &Registry,
    blob: &Descriptor,
    file: &mut tokio::fs::File,
    have: &mut u64,
) -> Result<(), PullError> {
    use tokio::io::AsyncSeekExt;
    let (mut body, partial) = registry.blob(&blob.digest, *have).await?;
    if !partial && *have > 0 {
        file.set_len(0).await.map_err(wrong)?;
        file.rewind().await.map_err(wrong)?;
        *have = 0;
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
                    file.write_all(&data).await.map_err(wrong)?;
                }
            }
        }
    }
    if *have < blob.size {
        return Err(wrong(format!("it ended after {have} of {} bytes", blob.size)));
    }
    Ok(())
}
