//! The images on this node: one record a file, layers unpacked once and shared.
//!
//! Guarantees: a record on disk means that all its layers are complete; names point to at most one image; a layer is
//! kept as long as an image or a container uses it. An image that a disk has lost a part of is not there: it is fetched
//! again like any other. It knows nothing of archives or registries.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::config::ImageConfig;
use super::reference::{Reference, is_hex_id};
use super::unpack;

/// Length of a layer directory's name: enough of the digest to be unique, short enough that the options of an overlay
/// of over a hundred layers fit in the one page the kernel takes.
const LAYER_NAME: usize = 24;

/// One image.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Image {
    /// `sha256:` of its configuration.
    pub id: String,
    /// The configuration, verbatim.
    pub config: String,
    /// Layer directories, topmost first.
    pub layers: Vec<String>,
    /// Normalised names with a tag.
    pub tags: BTreeSet<String>,
    /// Normalised names with a digest.
    pub digests: BTreeSet<String>,
    /// Bytes as stored in its registry or archive.
    pub size: u64,
    /// Never collected.
    #[serde(default)]
    pub pinned: bool,
}

impl Image {
    /// What its configuration says about running it.
    pub fn parsed_config(&self) -> Result<ImageConfig> {
        serde_json::from_str(&self.config).with_context(|| format!("image {} has an unreadable configuration", self.id))
    }
}

/// A layer about to be added.
pub struct NewLayer<'a> {
    /// Digest of the archive as stored, if known.
    pub digest: Option<&'a str>,
    /// Opens the archive.
    pub open: Box<dyn FnOnce() -> Result<Box<dyn std::io::Read + Send + 'a>> + Send + 'a>,
}

/// All images.
pub struct ImageStore {
    root: PathBuf,
    images: RwLock<BTreeMap<String, Arc<Image>>>,
    /// One unpacking at a time: images share layers, and the disk is the bottleneck.
    writing: Mutex<()>,
    /// Layers of running containers, which outlive their image's removal.
    held: Mutex<BTreeMap<String, Vec<String>>>,
    /// What layers take on disk; they never change.
    sizes: Mutex<BTreeMap<String, (u64, u64)>>,
    serial: std::sync::atomic::AtomicU64,
}

impl ImageStore {
    /// Opens the store, forgetting whatever an interrupted import left.
    pub fn open(root: &Path) -> Result<ImageStore> {
        for dir in ["records", "layers", "ingest"] {
            std::fs::create_dir_all(root.join(dir))
                .with_context(|| format!("creating {}", root.join(dir).display()))?;
        }
        let mut images = BTreeMap::new();
        for entry in std::fs::read_dir(root.join("records"))? {
            let path = entry?.path();
            if path.extension() != Some(std::ffi::OsStr::new("json")) {
                let _ = std::fs::remove_file(&path);
                continue;
            }
            let read = std::fs::read(&path).map_err(anyhow::Error::from);
            match read.and_then(|bytes| Ok(serde_json::from_slice::<Image>(&bytes)?)) {
                Ok(image) => drop(images.insert(image.id.clone(), Arc::new(image))),
                Err(error) => {
                    tracing::warn!(record = %path.display(), "an image is forgotten, its record is unreadable: {error:#}");
                    let _ = std::fs::remove_file(&path);
                }
            }
        }
        for entry in std::fs::read_dir(root.join("ingest"))? {
            let path = entry?.path();
            let removed = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
            removed.with_context(|| format!("removing {}", path.display()))?;
        }
        Ok(ImageStore {
            root: root.to_path_buf(),
            images: RwLock::new(images),
            writing: Mutex::new(()),
            held: Mutex::default(),
            sizes: Mutex::default(),
            serial: std::sync::atomic::AtomicU64::new(0),
        })
    }

    /// Where layers lie.
    pub fn layers_dir(&self) -> PathBuf {
        self.root.join("layers")
    }

    /// Bytes and inodes that all layers take on disk.
    pub fn usage(&self) -> (u64, u64) {
        let mut sizes = self.sizes.lock().unwrap_or_else(PoisonError::into_inner);
        let names: Vec<String> = std::fs::read_dir(self.layers_dir())
            .into_iter()
            .flatten()
            .flatten()
            .map(|e| e.file_name().to_string_lossy().into_owned())
            .collect();
        sizes.retain(|name, _| names.contains(name));
        for name in names {
            sizes.entry(name).or_insert_with_key(|name| crate::stats::disk_usage(&self.layers_dir().join(name)));
        }
        sizes.values().fold((0, 0), |(bytes, inodes), (b, i)| (bytes + b, inodes + i))
    }

    /// A new path for data on its way in.
    pub fn ingest_path(&self) -> PathBuf {
        let n = self.serial.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.root.join("ingest").join(format!("{}-{n}", std::process::id()))
    }

    /// Every image.
    pub fn list(&self) -> Vec<Arc<Image>> {
        self.images.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// The image that a name, digest, id or prefix of an id means.
    pub fn find(&self, name: &str) -> Option<Arc<Image>> {
        let images = self.images.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(image) = images.get(name) {
            return Some(image.clone());
        }
        if is_hex_id(name)
            && let Some(image) = images.get(&format!("sha256:{name}"))
        {
            return Some(image.clone());
        }
        if let Ok(reference) = Reference::parse(name) {
            let canonical = reference.canonical();
            let named = images.values().find(|i| i.tags.contains(&canonical) || i.digests.contains(&canonical));
            if named.is_some() {
                return named.cloned();
            }
        }
        // A shortened id, as command lines show it.
        let short = name.strip_prefix("sha256:").unwrap_or(name);
        if short.len() < 8 || !short.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        let mut matching = images.values().filter(|i| i.id["sha256:".len()..].starts_with(short));
        matching.next().filter(|_| matching.next().is_none()).cloned()
    }

    /// The same, if all of its layers are there; one that lacks some is forgotten.
    pub fn find_whole(&self, name: &str) -> Option<Arc<Image>> {
        let image = self.find(name)?;
        let lacking = image.layers.iter().find(|layer| !self.layers_dir().join(layer).is_dir());
        let Some(layer) = lacking else { return Some(image) };
        tracing::warn!(image = image.id, layer, "an image is forgotten, a layer of it is not there any more");
        let _ = std::fs::remove_file(self.record_path(&image.id));
        self.images.write().unwrap_or_else(PoisonError::into_inner).remove(&image.id);
        None
    }

    /// Adds an image, or names to one that is there. `layers` are bottom first, one a `diff_id` of the configuration.
    pub fn add(&self, config: &[u8], layers: Vec<NewLayer<'_>>, size: u64, names: &[Reference]) -> Result<Arc<Image>> {
        let id = unpack::digest_of(config);
        let text = String::from_utf8(config.to_vec()).context("the image's configuration is not text")?;
        let parsed: ImageConfig = serde_json::from_str(&text).context("the image's configuration is not valid")?;
        if let Some(reason) = parsed.unusable() {
            bail!("{reason}");
        }
        if parsed.rootfs.diff_ids.len() != layers.len() {
            bail!("the image has {} layers but its configuration names {}", layers.len(), parsed.rootfs.diff_ids.len());
        }
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut chain = String::new();
        let mut dirs: Vec<String> = Vec::new();
        for (layer, diff_id) in layers.into_iter().zip(&parsed.rootfs.diff_ids) {
            chain = if chain.is_empty() {
                diff_id.clone()
            } else {
                unpack::digest_of(format!("{chain} {diff_id}").as_bytes())
            };
            let name = self.layer(&chain, diff_id, layer, &dirs)?;
            dirs.insert(0, name);
        }
        // Before the record says that they are: the layers are on disk.
        nix::unistd::syncfs(std::fs::File::open(&self.root)?).context("writing the layers to disk")?;
        let mut image = match self.images.read().unwrap_or_else(PoisonError::into_inner).get(&id) {
            Some(known) => Image::clone(known),
            None => Image {
                id: id.clone(),
                config: text,
                layers: dirs,
                tags: BTreeSet::new(),
                digests: BTreeSet::new(),
                size,
                pinned: false,
            },
        };
        for name in names {
            let canonical = name.canonical();
            self.untag(&canonical, &id)?;
            if name.digest.is_some() {
                image.digests.insert(canonical)
            } else {
                image.tags.insert(canonical)
            };
        }
        self.save(image)
    }

    /// Unpacks a layer unless it is there.
    fn layer(&self, chain: &str, diff_id: &str, layer: NewLayer<'_>, below: &[String]) -> Result<String> {
        let hex =
            chain.strip_prefix("sha256:").filter(|h| is_hex_id(h)).context("a layer digest that is not sha256")?;
        let name = hex[..LAYER_NAME].to_string();
        let place = self.layers_dir().join(&name);
        if place.exists() {
            return Ok(name);
        }
        let upper = self.ingest_path();
        let scratch = self.ingest_path();
        let layers = self.layers_dir();
        let site = unpack::Site { layers: &layers, lower: below, upper: &upper, scratch: &scratch };
        unpack::layer((layer.open)()?, layer.digest, diff_id, &site)?;
        std::fs::rename(&upper, &place).with_context(|| format!("placing layer {name}"))?;
        Ok(name)
    }

    fn save(&self, image: Image) -> Result<Arc<Image>> {
        let path = self.record_path(&image.id);
        let partial = path.with_extension("part");
        let file = std::fs::File::create(&partial).with_context(|| format!("creating {}", partial.display()))?;
        serde_json::to_writer(&file, &image)?;
        file.sync_all()?;
        std::fs::rename(&partial, &path)?;
        let image = Arc::new(image);
        self.images.write().unwrap_or_else(PoisonError::into_inner).insert(image.id.clone(), image.clone());
        Ok(image)
    }

    fn record_path(&self, id: &str) -> PathBuf {
        self.root.join("records").join(format!("{}.json", id.trim_start_matches("sha256:")))
    }

    /// Takes a name away from every image but `keep`.
    fn untag(&self, name: &str, keep: &str) -> Result<()> {
        for image in self.list() {
            if image.id != keep && (image.tags.contains(name) || image.digests.contains(name)) {
                let mut changed = Image::clone(&image);
                changed.tags.remove(name);
                changed.digests.remove(name);
                self.save(changed)?;
            }
        }
        Ok(())
    }

    /// Removes the image that a name means, with all its names. Absence is fine.
    pub fn remove(&self, name: &str) -> Result<()> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(image) = self.find(name) else { return Ok(()) };
        let path = self.record_path(&image.id);
        std::fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
        self.images.write().unwrap_or_else(PoisonError::into_inner).remove(&image.id);
        self.collect()
    }

    /// A container starts using these layers.
    pub fn hold(&self, container: &str, layers: &[String]) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).insert(container.to_string(), layers.to_vec());
    }

    /// A container is gone.
    pub fn release(&self, container: &str) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).remove(container);
    }

    /// Removes layers that nobody uses. Called with `writing` held, or before serving begins.
    pub fn collect(&self) -> Result<()> {
        let mut used: HashSet<String> = self.list().iter().flat_map(|i| i.layers.clone()).collect();
        used.extend(self.held.lock().unwrap_or_else(PoisonError::into_inner).values().flatten().cloned());
        for entry in std::fs::read_dir(self.layers_dir())? {
            let entry = entry?;
            if !used.contains(&*entry.file_name().to_string_lossy()) {
                std::fs::remove_dir_all(entry.path())
                    .with_context(|| format!("removing layer {}", entry.path().display()))?;
            }
        }
        Ok(())
    }

    /// Reads a small file of an image as a container would see it, through its layers. Symbolic links end the search
    /// with nothing, unless they stay within one layer.
    pub fn read_file(&self, layers: &[String], path: &str, limit: u64) -> Option<Vec<u8>> {
        use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
        use std::io::Read;
        for layer in layers {
            let dir = std::fs::File::open(self.layers_dir().join(layer)).ok()?;
            let how = OpenHow::new()
                .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)
                .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
            let relative = path.trim_start_matches('/');
            match openat2(&dir, relative, how) {
                Ok(fd) => {
                    let file = std::fs::File::from(fd);
                    if !file.metadata().ok()?.is_file() {
                        // A whiteout or something odd.
                        return None;
                    }
                    let mut data = Vec::new();
                    file.take(limit).read_to_end(&mut data).ok()?;
                    return Some(data);
                }
                // A whiteout: device 0/0 cannot be opened.
                Err(nix::errno::Errno::ENXIO) => return None,
                Err(_) => {}
            }
        }
        None
    }
}
