//! Importing archives: the two formats, compressed or not, and archives made to do harm.

mod node;

use std::io::Write;
use std::path::Path;

use cri::v1::*;
use node::{Node, busybox_image, digest, members};

fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, data) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        tar.append_data(&mut header, name, *data).unwrap();
    }
    tar.into_inner().unwrap()
}

/// An OCI layout with one image of the given layers, as stored and as unpacked.
fn oci(layers: &[(Vec<u8>, Vec<u8>)], annotations: &[(&str, &str)]) -> Vec<u8> {
    let architecture = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    let diff_ids: Vec<String> = layers.iter().map(|(_, plain)| digest(plain)).collect();
    let config =
        serde_json::json!({"architecture": architecture, "os": "linux", "rootfs": {"diff_ids": diff_ids}}).to_string();
    let descriptor = |data: &[u8]| serde_json::json!({"digest": digest(data), "size": data.len()});
    let manifest = serde_json::json!({
        "config": descriptor(config.as_bytes()),
        "layers": layers.iter().map(|(stored, _)| descriptor(stored)).collect::<Vec<_>>(),
    })
    .to_string();
    let mut entry = descriptor(manifest.as_bytes());
    entry["annotations"] = annotations.iter().map(|(k, v)| (k.to_string(), serde_json::json!(v))).collect();
    let index = serde_json::json!({"manifests": [entry]}).to_string();
    let name = |data: &[u8]| format!("blobs/sha256/{}", &digest(data)[7..]);
    let mut files = vec![
        ("index.json".to_string(), index.into_bytes()),
        (name(config.as_bytes()), config.clone().into_bytes()),
        (name(manifest.as_bytes()), manifest.clone().into_bytes()),
    ];
    files.extend(layers.iter().map(|(stored, _)| (name(stored), stored.clone())));
    let files: Vec<(&str, &[u8])> = files.iter().map(|(n, d)| (n.as_str(), d.as_slice())).collect();
    archive(&files)
}

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

async fn import(node: &Node, data: &[u8], names: &[&str]) -> anyhow::Result<Vec<runtime::ImportedImage>> {
    let file = node.dir.path().join("image");
    std::fs::write(&file, data).unwrap();
    runtime::image_import(&node.socket(), &file, names.iter().map(|n| n.to_string()).collect()).await
}

/// A layer of raw entries: (type, name, link target).
fn layer(entries: &[(tar::EntryType, &str, &str)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (kind, name, target) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(*kind);
        // Written as bytes: the builder would refuse such names.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        let data: &[u8] = if *kind == tar::EntryType::Regular { b"evil" } else { b"" };
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        if kind.is_character_special() {
            header.set_device_major(0).unwrap();
            header.set_device_minor(0).unwrap();
        }
        header.set_cksum();
        tar.append(&header, data).unwrap();
    }
    tar.into_inner().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn archives_are_imported() {
    if let Some(why) = node::unable() {
        eprintln!("skipped: {why}");
        return;
    }
    let node = Node::start(&[]).await;
    let mut c = node.clients().await;
    let image = members(&busybox_image("docker/one:1"));
    let layers = [image["0.tar"].clone(), image["1.tar"].clone()];
    let stored: Vec<_> = layers.iter().map(|l| (gzip(l), l.clone())).collect();
    let named = oci(
        &stored,
        &[("io.containerd.image.name", "registry.example/two:2"), ("org.opencontainers.image.ref.name", "2")],
    );
    let by_ref = oci(&stored, &[("org.opencontainers.image.ref.name", "three:3")]);
    let nameless = oci(&stored, &[("org.opencontainers.image.ref.name", "latest")]);
    let zstd = zstd::encode_all(&by_ref[..], 1).unwrap();
    for (data, given, names) in [
        (&busybox_image("docker/one:1"), &[][..], &["docker.io/docker/one:1"][..]),
        (&named, &[], &["registry.example/two:2"]),
        (&gzip(&by_ref), &[], &["docker.io/library/three:3"]),
        (&zstd, &["four"], &["docker.io/library/three:3", "docker.io/library/four:latest"]),
        (&nameless, &[], &[]),
    ] {
        let imported = import(&node, data, given).await.unwrap();
        assert_eq!(imported[0].names, names);
    }
    // The same layers, stored once; a name moves to the image that came last.
    assert_eq!(std::fs::read_dir(node.dir.path().join("root/images/layers")).unwrap().count(), 2);
    import(&node, &busybox_image("registry.example/two:2"), &[]).await.unwrap();
    let images = c.images.list_images(ListImagesRequest::default()).await.unwrap().into_inner().images;
    assert_eq!(images.iter().flat_map(|i| &i.repo_tags).filter(|t| *t == "registry.example/two:2").count(), 1);

    let mut wrong = stored.clone();
    wrong[1].1 = b"other".to_vec();
    let mut truncated = named.clone();
    truncated.truncate(truncated.len() / 2);
    for (data, words) in [
        (oci(&wrong, &[]), "mismatch"),
        (truncated, "has no"),
        (b"no archive".to_vec(), "reading the archive"),
        (archive(&[("hello", b"")]), "not an image archive"),
        (archive(&[("index.json", b"{")]), "index.json"),
        (archive(&[("manifest.json", br#"[{"Config":"c","Layers":["../../etc/passwd"]}]"#)]), "no \"c\""),
    ] {
        let error = import(&node, &data, &[]).await.unwrap_err().to_string();
        assert!(error.contains(words), "{words}: {error}");
    }

    // Layers that want out: refused, or kept inside.
    let outside = node.dir.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("precious"), "p").unwrap();
    let out = outside.to_string_lossy().into_owned();
    use tar::EntryType::{Char, Directory, Link, Regular, Symlink};
    let target = format!("{out}/precious");
    let up = "../../../../../../../../../..";
    for (entries, refused) in [
        (vec![(Regular, "../../../../../../tmp/evil-by-dots", "")], true),
        (vec![(Symlink, "link", out.as_str()), (Regular, "link/evil", "")], false),
        (vec![(Symlink, "link", up), (Regular, "link/tmp/evil-by-link", "")], false),
        (vec![(Link, "hard", target.as_str())], true),
        (vec![(Symlink, "link", "/"), (Link, "hard", "link/etc/hostname")], true),
        (vec![(Symlink, "dir", out.as_str()), (Regular, "dir/.wh.precious", "")], false),
        (vec![(Symlink, "dir", out.as_str()), (Regular, "dir/.wh..wh..opq", "")], true),
        (vec![(Char, "whiteout", "")], true),
        (vec![(Directory, "a", ""), (Regular, "a/.wh...", "")], true),
        (vec![(Regular, "/absolute", "")], false),
        (vec![(Regular, "file", ""), (Regular, "file/under", "")], true),
    ] {
        let plain = layer(&entries);
        let outcome = import(&node, &oci(&[(plain.clone(), plain)], &[]), &[]).await;
        // A directory that an absolute link names is made inside; removing what is not there is fine.
        assert!(!refused || outcome.is_err(), "{entries:?}");
        assert_eq!(std::fs::read_to_string(outside.join("precious")).unwrap(), "p");
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1, "{entries:?}");
        for evil in ["/tmp/evil-by-dots", "/tmp/evil-by-link"] {
            assert!(!Path::new(evil).exists());
        }
    }
    assert_eq!(std::fs::read_dir(node.dir.path().join("root/images/ingest")).unwrap().count(), 0);
}
