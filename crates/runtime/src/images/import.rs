//! Images from archives: OCI layouts and what `docker save` writes, plain or compressed.
//!
//! Guarantees: every blob is checked against its digest; names come from the archive's annotations or tags, and from
//! whoever imports if the archive has none.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::config::{Descriptor, Manifest};
use super::reference::Reference;
use super::store::{Image, ImageStore, NewLayer};
use super::unpack;

/// Largest manifest, index or configuration in bytes.
const MAX_JSON: u64 = 8 << 20;
/// Most indexes inside each other.
const MAX_NESTING: usize = 4;
/// Most images in one archive.
const MAX_IMAGES: usize = 1024;
/// Most links from one archive member to another for the same blob.
const MAX_LINKS: usize = 8;

/// An image that came in.
pub struct Imported {
    /// It.
    pub image: Arc<Image>,
    /// The names it got.
    pub names: Vec<String>,
}

/// One member of the archive.
enum Member {
    Data { offset: u64, size: u64 },
    Link(String),
}

/// An archive on disk, indexed by name.
struct Archive<'a> {
    path: &'a Path,
    members: HashMap<String, Member>,
}

impl<'a> Archive<'a> {
    fn index(path: &'a Path) -> Result<Archive<'a>> {
        let mut archive = tar::Archive::new(File::open(path)?);
        let mut members = HashMap::new();
        for entry in archive.entries_with_seek().context("reading the archive")? {
            let entry = entry.context("reading the archive")?;
            let name = entry.path()?.to_string_lossy().trim_start_matches("./").to_string();
            let kind = entry.header().entry_type();
            if kind.is_file() {
                members.insert(name, Member::Data { offset: entry.raw_file_position(), size: entry.size() });
            } else if kind.is_symlink() || kind.is_hard_link() {
                let target = entry.link_name()?.context("a link without target")?.to_string_lossy().to_string();
                let target = if kind.is_hard_link() { target } else { beside(&name, &target) };
                members.insert(name, Member::Link(target));
            }
        }
        Ok(Archive { path, members })
    }

    fn locate(&self, name: &str) -> Result<(u64, u64)> {
        let mut name = name;
        for _ in 0..MAX_LINKS {
            match self.members.get(name) {
                Some(Member::Data { offset, size }) => return Ok((*offset, *size)),
                Some(Member::Link(target)) => name = target,
                None => break,
            }
        }
        bail!("the archive has no \"{name}\"")
    }

    fn open(&self, name: &str) -> Result<(io::Take<File>, u64)> {
        let (offset, size) = self.locate(name)?;
        let mut file = File::open(self.path)?;
        file.seek(SeekFrom::Start(offset))?;
        Ok((file.take(size), size))
    }

    fn small(&self, name: &str) -> Result<Vec<u8>> {
        let (mut reader, size) = self.open(name)?;
        if size > MAX_JSON {
            bail!("\"{name}\" has {size} bytes, more than {MAX_JSON}");
        }
        let mut data = Vec::new();
        reader.read_to_end(&mut data)?;
        Ok(data)
    }

    fn blob(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        let data = self.small(&blob_name(&descriptor.digest)?)?;
        let digest = unpack::digest_of(&data);
        if digest != descriptor.digest {
            bail!("blob digest mismatch: expected {}, got {digest}", descriptor.digest);
        }
        Ok(data)
    }
}

/// A relative link target as a member name.
fn beside(name: &str, target: &str) -> String {
    let mut parts: Vec<&str> = name.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            other => parts.push(other),
        }
    }
    parts.join("/")
}

fn blob_name(digest: &str) -> Result<String> {
    let (algorithm, hex) = digest.split_once(':').context("a digest without algorithm")?;
    if algorithm != "sha256" {
        bail!("unsupported digest algorithm \"{algorithm}\"");
    }
    Ok(format!("blobs/sha256/{hex}"))
}

/// An entry of `docker save`'s manifest.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerManifest {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// Writes a possibly compressed archive where it can be sought in.
pub fn spool(source: impl Read, place: &Path) -> Result<()> {
    let mut plain = unpack::decompress(source)?;
    let mut file = File::create_new(place).with_context(|| format!("creating {}", place.display()))?;
    io::copy(&mut plain, &mut file).context("storing the archive")?;
    Ok(())
}

/// Adds every image of an archive file. `names` apply if it holds exactly one image.
pub fn import(store: &ImageStore, path: &Path, names: &[String]) -> Result<Vec<Imported>> {
    let archive = Archive::index(path)?;
    let given = names.iter().map(|n| Reference::parse(n)).collect::<Result<Vec<_>, _>>()?;
    let imported = if archive.members.contains_key("index.json") {
        import_oci(store, &archive, &given)?
    } else if archive.members.contains_key("manifest.json") {
        import_docker(store, &archive, &given)?
    } else {
        bail!("not an image archive: it has neither index.json (OCI) nor manifest.json (docker save)");
    };
    if imported.is_empty() {
        bail!("the archive holds no image for linux/{}", super::config::architecture());
    }
    if imported.len() > 1 && !given.is_empty() {
        bail!("a name can only be given to an archive with one image; this one has {}", imported.len());
    }
    Ok(imported)
}

fn import_docker(store: &ImageStore, archive: &Archive<'_>, given: &[Reference]) -> Result<Vec<Imported>> {
    let manifests: Vec<DockerManifest> =
        serde_json::from_slice(&archive.small("manifest.json")?).context("reading manifest.json")?;
    let mut imported = Vec::new();
    for manifest in manifests.into_iter().take(MAX_IMAGES) {
        let mut names = given.to_vec();
        for tag in manifest.repo_tags.iter().flatten() {
            names.push(Reference::parse(tag)?);
        }
        let config = archive.small(&manifest.config)?;
        let mut size = config.len() as u64;
        let mut layers = Vec::new();
        for name in &manifest.layers {
            size += archive.locate(name)?.1;
            layers.push(NewLayer { digest: None, open: Box::new(move || Ok(Box::new(archive.open(name)?.0))) });
        }
        imported.push(add(store, &config, layers, size, &names)?);
    }
    Ok(imported)
}

fn import_oci(store: &ImageStore, archive: &Archive<'_>, given: &[Reference]) -> Result<Vec<Imported>> {
    let index: Manifest = serde_json::from_slice(&archive.small("index.json")?).context("reading index.json")?;
    // Archives that `docker save` writes have both; its tags are the better names.
    let mut tags: HashMap<String, Vec<String>> = HashMap::new();
    if archive.members.contains_key("manifest.json") {
        let docker: Vec<DockerManifest> = serde_json::from_slice(&archive.small("manifest.json")?).unwrap_or_default();
        for m in docker {
            let id = m.config.trim_end_matches(".json").rsplit('/').next().unwrap_or("").to_string();
            tags.entry(id).or_default().extend(m.repo_tags.unwrap_or_default());
        }
    }
    // One manifest may be named several times: collect its names first.
    let mut found: Vec<(Descriptor, Vec<Reference>)> = Vec::new();
    for entry in index.manifests.iter().take(MAX_IMAGES) {
        let Some(manifest) = resolve(archive, entry, 0)? else { continue };
        let names = names_of(entry).into_iter().chain(names_of(&manifest));
        match found.iter_mut().find(|(d, _)| d.digest == manifest.digest) {
            Some((_, have)) => have.extend(names),
            None => found.push((manifest.clone(), names.collect())),
        }
    }
    let mut imported = Vec::new();
    for (descriptor, mut names) in found {
        let manifest: Manifest = serde_json::from_slice(&archive.blob(&descriptor)?).context("reading a manifest")?;
        let config_descriptor = manifest.config.context("a manifest without configuration")?;
        let config = archive.blob(&config_descriptor)?;
        if let Some(more) = config_descriptor.digest.strip_prefix("sha256:").and_then(|id| tags.get(id)) {
            for tag in more {
                names.push(Reference::parse(tag)?);
            }
        }
        names.extend(given.iter().cloned());
        let mut size = config.len() as u64 + descriptor.size;
        let mut layers = Vec::new();
        for layer in &manifest.layers {
            let name = blob_name(&layer.digest)?;
            size += archive.locate(&name)?.1;
            layers.push(NewLayer {
                digest: Some(&layer.digest),
                open: Box::new(move || Ok(Box::new(archive.open(&name)?.0))),
            });
        }
        imported.push(add(store, &config, layers, size, &names)?);
    }
    Ok(imported)
}

/// Follows indexes to the manifest for this machine; attestations and foreign machines lead to nothing.
fn resolve(archive: &Archive<'_>, descriptor: &Descriptor, depth: usize) -> Result<Option<Descriptor>> {
    let blob: Manifest = serde_json::from_slice(&archive.blob(descriptor)?).context("reading a manifest")?;
    if blob.config.is_some() {
        return Ok(Some(descriptor.clone()));
    }
    if depth >= MAX_NESTING {
        bail!("indexes nested deeper than {MAX_NESTING}");
    }
    match blob.for_this_machine() {
        Some(next) => resolve(archive, next, depth + 1),
        None => Ok(None),
    }
}

fn names_of(descriptor: &Descriptor) -> Vec<Reference> {
    let annotation = |key: &str| descriptor.annotations.get(key);
    if let Some(name) = annotation("io.containerd.image.name") {
        return Reference::parse(name).into_iter().collect();
    }
    // Builders put a full name here, or only a tag, which names nothing.
    annotation("org.opencontainers.image.ref.name")
        .filter(|name| name.contains([':', '/']))
        .and_then(|name| Reference::parse(name).ok())
        .into_iter()
        .collect()
}

fn add(
    store: &ImageStore,
    config: &[u8],
    layers: Vec<NewLayer<'_>>,
    size: u64,
    names: &[Reference],
) -> Result<Imported> {
    let mut seen = std::collections::HashSet::new();
    let names: Vec<Reference> = names.iter().filter(|n| seen.insert(n.canonical())).cloned().collect();
    let image = store.add(config, layers, size, &names)?;
    Ok(Imported { image, names: names.iter().map(Reference::canonical).collect() })
}
