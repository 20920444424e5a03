//! The image the tests run: busybox, built here as an OCI archive, so that nothing has to be fetched.
//!
//! Its default command sleeps, which also makes it serve as a pause image.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::Digest;

pub const NAME: &str = "docker.io/library/nauplius-test:1";
const BUSYBOX: [&str; 2] = ["/bin/busybox", "/usr/bin/busybox"];
const APPLETS: [&str; 25] = [
    "sh", "sleep", "cat", "echo", "hostname", "httpd", "ls", "mkdir", "nc", "nslookup", "printf", "ps", "rm", "stty",
    "tar", "test", "touch", "true", "false", "kill", "id", "head", "env", "date", "grep",
];
/// Asks an HTTP server (host, port) for its front page and says the body. Debian's static busybox dies in its own `wget`
/// where the image has no C library to ask for names of services; its `nc` asks for none.
const FETCH: &str = r#"#!/bin/sh
cr=$(printf '\r')
printf 'GET / HTTP/1.0\r\n\r\n' | nc -w 3 "$1" "$2" | while read -r line; do
  if [ "$body" ]; then echo "$line"; elif [ "$line" = "$cr" ]; then body=yes; fi
done
"#;

/// Where a static busybox is.
pub fn busybox() -> Option<PathBuf> {
    BUSYBOX.iter().map(PathBuf::from).find(|file| file.is_file())
}

fn digest(bytes: &[u8]) -> String {
    let hash = sha2::Sha256::digest(bytes);
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header
}

fn layer(busybox: &Path) -> Result<Vec<u8>> {
    let program = std::fs::read(busybox).with_context(|| format!("cannot read {}", busybox.display()))?;
    let mut tar = tar::Builder::new(Vec::new());
    for (dir, mode) in [("bin/", 0o755), ("etc/", 0o755), ("tmp/", 0o1777), ("www/", 0o777)] {
        tar.append_data(&mut header(tar::EntryType::Directory, mode, 0), dir, &[][..])?;
    }
    tar.append_data(&mut header(tar::EntryType::Regular, 0o755, program.len() as u64), "bin/busybox", &program[..])?;
    for applet in APPLETS {
        tar.append_link(&mut header(tar::EntryType::Symlink, 0o777, 0), format!("bin/{applet}"), "busybox")?;
    }
    tar.append_data(&mut header(tar::EntryType::Regular, 0o755, FETCH.len() as u64), "bin/fetch", FETCH.as_bytes())?;
    let users = b"root:x:0:0:root:/:/bin/sh\n";
    tar.append_data(&mut header(tar::EntryType::Regular, 0o644, users.len() as u64), "etc/passwd", &users[..])?;
    Ok(tar.into_inner()?)
}

/// Writes the archive to `file`.
pub fn write(busybox: &Path, file: &Path) -> Result<()> {
    let layer = layer(busybox)?;
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = json!({
        "architecture": architecture, "os": "linux",
        "config": {"Env": ["PATH=/bin"], "Cmd": ["/bin/sleep", "1000000"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", digest(&layer))]},
    });
    let config = serde_json::to_vec(&config)?;
    let blob = |kind: &str, bytes: &[u8]| json!({"mediaType": format!("application/vnd.oci.image.{kind}"), "digest": format!("sha256:{}", digest(bytes)), "size": bytes.len()});
    let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": blob("config.v1+json", &config), "layers": [blob("layer.v1.tar", &layer)]});
    let manifest = serde_json::to_vec(&manifest)?;
    let mut entry: Value = blob("manifest.v1+json", &manifest);
    entry["annotations"] = json!({"org.opencontainers.image.ref.name": NAME, "io.containerd.image.name": NAME});
    let index = serde_json::to_vec(
        &json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [entry]}),
    )?;
    let layout = br#"{"imageLayoutVersion":"1.0.0"}"#;
    let mut tar = tar::Builder::new(std::fs::File::create(file)?);
    let files = [("oci-layout".to_string(), &layout[..]), ("index.json".to_string(), &index)];
    let blobs = [&layer, &config, &manifest].map(|bytes| (format!("blobs/sha256/{}", digest(bytes)), &bytes[..]));
    for (name, bytes) in files.into_iter().chain(blobs) {
        tar.append_data(&mut header(tar::EntryType::Regular, 0o644, bytes.len() as u64), name, bytes)?;
    }
    Ok(tar.into_inner()?.flush()?)
}
