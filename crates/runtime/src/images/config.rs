//! The parts of an image's configuration, manifest and index that the engine reads.

use std::collections::BTreeMap;

use serde::Deserialize;

/// An OCI or Docker image configuration.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct ImageConfig {
    /// CPU architecture in Go's words.
    #[serde(default)]
    pub architecture: String,
    /// Operating system.
    #[serde(default)]
    pub os: String,
    /// How to run it.
    #[serde(default)]
    pub config: Option<RunConfig>,
    /// Its layers.
    #[serde(default)]
    pub rootfs: RootFs,
}

/// How an image wants to be run.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct RunConfig {
    /// `user[:group]`, names or numbers.
    #[serde(default)]
    pub user: Option<String>,
    /// `NAME=value`.
    #[serde(default)]
    pub env: Option<Vec<String>>,
    /// Put before the arguments.
    #[serde(default)]
    pub entrypoint: Option<Vec<String>>,
    /// Default arguments.
    #[serde(default)]
    pub cmd: Option<Vec<String>>,
    /// Where it starts.
    #[serde(default)]
    pub working_dir: Option<String>,
    /// How it likes to be stopped.
    #[serde(default)]
    pub stop_signal: Option<String>,
}

/// The layers' content digests, bottom first.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct RootFs {
    /// `sha256:` of each uncompressed layer.
    #[serde(default)]
    pub diff_ids: Vec<String>,
}

/// A pointer to a blob.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// `sha256:…`.
    pub digest: String,
    /// Bytes.
    #[serde(default)]
    pub size: u64,
    /// For which machine, in an index.
    #[serde(default)]
    pub platform: Option<Platform>,
    /// Names and more.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

/// A kind of machine.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Platform {
    /// In Go's words.
    #[serde(default)]
    pub architecture: String,
    /// Operating system.
    #[serde(default)]
    pub os: String,
}

/// A manifest, or an index of manifests: which one shows by what it has.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Manifest {
    /// The configuration, in a manifest.
    #[serde(default)]
    pub config: Option<Descriptor>,
    /// Bottom first, in a manifest.
    #[serde(default)]
    pub layers: Vec<Descriptor>,
    /// In an index.
    #[serde(default)]
    pub manifests: Vec<Descriptor>,
}

/// This machine's architecture in Go's words.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        other => other,
    }
}

impl ImageConfig {
    /// Why this machine cannot run it, if so.
    pub fn unusable(&self) -> Option<String> {
        if !self.os.is_empty() && self.os != "linux" {
            return Some(format!("the image is for operating system \"{}\", not linux", self.os));
        }
        (!self.architecture.is_empty() && self.architecture != architecture())
            .then(|| format!("the image is for architecture \"{}\", not {}", self.architecture, architecture()))
    }
}

impl Manifest {
    /// In an index: the manifest for this machine, else the only one for an unstated machine.
    pub fn for_this_machine(&self) -> Option<&Descriptor> {
        let fits =
            |d: &&Descriptor| d.platform.as_ref().is_some_and(|p| p.os == "linux" && p.architecture == architecture());
        self.manifests
            .iter()
            .find(fits)
            .or_else(|| self.manifests.iter().find(|d| d.platform.as_ref().is_none_or(|p| p.os.is_empty())))
    }
}
