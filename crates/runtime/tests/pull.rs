//! Pulling from a registry on the node's loopback that asks for a password, breaks connections and lies.

mod node;

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use cri::v1::*;
use node::{Node, busybox_image, digest, inside, members};

/// What the registry serves, by path, and how it misbehaves.
struct Registry {
    content: HashMap<String, Vec<u8>>,
    /// Blobs longer than this are cut off once, to be continued.
    cut: Mutex<HashMap<String, usize>>,
    requests: AtomicUsize,
    /// What a request must have in its head; of a mirror, that it names the registry and no user.
    password: bool,
    /// Answers never come.
    stalls: bool,
}

impl Registry {
    fn answer(&self, stream: TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut stream = stream;
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            if line == "\r\n" {
                break;
            }
            lines.push(line.trim_end().to_string());
        }
        if lines.is_empty() || !lines[0].starts_with("GET ") {
            // A TLS greeting: as Go's servers answer it.
            return stream
                .write_all(b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n");
        }
        self.requests.fetch_add(1, Ordering::Relaxed);
        if self.stalls {
            std::thread::sleep(std::time::Duration::from_secs(120));
        }
        let path = lines[0].split(' ').nth(1).unwrap_or("").split('?').next().unwrap_or("").to_string();
        let header = |name: &str| {
            lines.iter().find_map(|l| {
                let (n, v) = l.split_once(": ")?;
                n.eq_ignore_ascii_case(name).then(|| v.to_string())
            })
        };
        if !self.password && (header("authorization").is_some() || !lines[0].contains("?ns=127.0.0.1:")) {
            return stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
        }
        // "user:secret"
        if self.password && header("authorization").as_deref() != Some("Basic dXNlcjpzZWNyZXQ=") {
            return stream.write_all(
                b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"r\"\r\nContent-Length: 0\r\n\r\n",
            );
        }
        let Some(data) = self.content.get(&path) else {
            return stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
        };
        let from: usize =
            header("range").and_then(|r| r.strip_prefix("bytes=")?.trim_end_matches('-').parse().ok()).unwrap_or(0);
        let status = if from > 0 { "206 Partial Content" } else { "200 OK" };
        write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", data.len() - from)?;
        let end = self.cut.lock().unwrap().remove(&path).unwrap_or(data.len());
        stream.write_all(&data[from..end.max(from)])
    }
}

fn registry() -> Registry {
    let image = members(&busybox_image("ignored"));
    let (config, layers) = (&image["config.json"], [&image["0.tar"], &image["1.tar"]]);
    let gzip = |data: &[u8]| {
        let mut e = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        e.write_all(data).unwrap();
        e.finish().unwrap()
    };
    let blobs = [gzip(layers[0]), zstd::encode_all(&layers[1][..], 1).unwrap()];
    let mut content = HashMap::new();
    let mut put = |kind: &str, name: &str, data: &[u8]| {
        content.insert(format!("/v2/team/app/{kind}/{name}"), data.to_vec());
    };
    let descriptor = |data: &[u8]| serde_json::json!({"digest": digest(data), "size": data.len()});
    let manifest = serde_json::json!({"schemaVersion": 2, "config": descriptor(config), "layers": [descriptor(&blobs[0]), descriptor(&blobs[1])]});
    let manifest = manifest.to_string().into_bytes();
    let architecture = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    let mut entry = descriptor(&manifest);
    entry["platform"] = serde_json::json!({"os": "linux", "architecture": architecture});
    let foreign =
        serde_json::json!({"digest": digest(b"x"), "size": 1, "platform": {"os": "linux", "architecture": "s390x"}});
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [foreign, entry]}).to_string();
    let only_foreign = serde_json::json!({"schemaVersion": 2, "manifests": [foreign]}).to_string();
    for data in [config, &blobs[0], &blobs[1]] {
        put("blobs", &digest(data), data);
    }
    put("manifests", &digest(&manifest), &manifest);
    put("manifests", "v1", index.as_bytes());
    put("manifests", &digest(index.as_bytes()), index.as_bytes());
    put("manifests", "foreign", only_foreign.as_bytes());
    let lie = serde_json::json!({"schemaVersion": 2, "config": descriptor(config), "layers": [{"digest": digest(b"other"), "size": 5}, descriptor(&blobs[1])]});
    put("manifests", "lie", lie.to_string().as_bytes());
    put("blobs", &digest(b"other"), b"False");
    let cut = HashMap::from([(format!("/v2/team/app/blobs/{}", digest(&blobs[0])), 100_000)]);
    Registry { content, cut: Mutex::new(cut), requests: AtomicUsize::new(0), password: true, stalls: false }
}

/// Serves a registry on the node's loopback; returns its address.
fn serve(node: &Node, registry: Registry) -> (Arc<Registry>, String) {
    let listener = inside(node, || TcpListener::bind("127.0.0.1:0").unwrap()).join().unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let registry = Arc::new(registry);
    let served = registry.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let served = served.clone();
            std::thread::spawn(move || served.answer(stream));
        }
    });
    (registry, host)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn images_are_pulled() {
    if let Some(why) = node::unable() {
        eprintln!("skipped: {why}");
        return;
    }
    let node = Node::start(&["--pod-cidr", "10.77.7.0/24"]).await;
    let mut c = node.clients().await;
    let (registry, host) = serve(&node, registry());
    let mut pull = async |name: &str, password: &str| {
        let request = PullImageRequest {
            image: Some(ImageSpec { image: format!("{host}/team/app{name}"), ..Default::default() }),
            auth: Some(AuthConfig { username: "user".into(), password: password.into(), ..Default::default() }),
            sandbox_config: None,
        };
        c.images.pull_image(request).await.map(|r| r.into_inner().image_ref)
    };
    let refused = pull(":lie", "secret").await.unwrap_err();
    assert!(refused.message().contains("digest mismatch"), "{refused}");
    let id = pull(":v1", "secret").await.unwrap();
    assert!(id.starts_with("sha256:"));
    let before = registry.requests.load(Ordering::Relaxed);
    assert_eq!(pull(":v1", "secret").await.unwrap(), id);
    // Manifest, index and configuration, each with a challenge at most: no layer is fetched again.
    assert!(registry.requests.load(Ordering::Relaxed) - before <= 6);
    for (name, password, code, words) in [
        (":none", "secret", tonic::Code::NotFound, "not found"),
        (":v1", "wrong", tonic::Code::Unknown, "pull access denied"),
        (":foreign", "secret", tonic::Code::Unknown, "no match for platform"),
        (":BAD NAME", "secret", tonic::Code::Unknown, "invalid reference format"),
    ] {
        let refused = pull(name, password).await.unwrap_err();
        assert_eq!(refused.code(), code, "{name}: {refused}");
        assert!(refused.message().contains(words), "{name}: {refused}");
    }
    let images = c.images.list_images(ListImagesRequest::default()).await.unwrap().into_inner().images;
    assert_eq!(images.len(), 1);
    assert_eq!(images[0].repo_tags, [format!("{host}/team/app:v1")]);
    assert!(images[0].repo_digests[0].starts_with(&format!("{host}/team/app@sha256:")));
    let by_digest = ImageSpec { image: images[0].repo_digests[0].clone(), ..Default::default() };
    let status = c.images.image_status(ImageStatusRequest { image: Some(by_digest.clone()), verbose: true }).await;
    assert_eq!(status.unwrap().into_inner().image.unwrap().id, id);
    c.images.remove_image(RemoveImageRequest { image: Some(by_digest.clone()) }).await.unwrap();
    c.images.remove_image(RemoveImageRequest { image: Some(by_digest) }).await.unwrap();
    let layers = std::fs::read_dir(node.dir.path().join("root/images/layers")).unwrap().count();
    let ingest = std::fs::read_dir(node.dir.path().join("root/images/ingest")).unwrap().count();
    assert_eq!((layers, ingest), (0, 0));
}

/// Pulls from a registry with a password through a mirror; returns how often each was asked.
async fn pulled_through(mirror: Option<Registry>, pod_cidr: &str) -> (usize, usize) {
    let hosts = tempfile::tempdir().unwrap();
    let dir = hosts.path().display().to_string();
    let node = Node::start(&["--pod-cidr", pod_cidr, "--registry-dir", &dir]).await;
    let (origin, host) = serve(&node, registry());
    let (mirror, at) = match mirror {
        Some(mirror) => serve(&node, mirror),
        // Nobody listens there.
        None => (Arc::new(registry()), "127.0.0.1:9".to_string()),
    };
    std::fs::create_dir(hosts.path().join(&host)).unwrap();
    std::fs::write(hosts.path().join(&host).join("hosts.toml"), format!("[host.\"http://{at}\"]\n")).unwrap();
    let request = PullImageRequest {
        image: Some(ImageSpec { image: format!("{host}/team/app:v1"), ..Default::default() }),
        auth: Some(AuthConfig { username: "user".into(), password: "secret".into(), ..Default::default() }),
        sandbox_config: None,
    };
    node.clients().await.images.pull_image(request).await.unwrap();
    (mirror.requests.load(Ordering::Relaxed), origin.requests.load(Ordering::Relaxed))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mirrors_come_first() {
    if let Some(why) = node::unable() {
        eprintln!("skipped: {why}");
        return;
    }
    let mirror = || Registry { password: false, ..registry() };
    // All is there: index, manifest, configuration, two layers.
    let whole = Registry { cut: Mutex::default(), ..mirror() };
    assert_eq!(pulled_through(Some(whole), "10.77.24.0/24").await, (5, 0));
    // A download that breaks goes on elsewhere.
    let (asked, origin) = pulled_through(Some(mirror()), "10.77.24.0/24").await;
    assert!(asked >= 5 && origin >= 1, "{asked} {origin}");
    let (_, origin) = pulled_through(None, "10.77.24.0/24").await;
    assert!(origin >= 5, "{origin}");
    // One that lies about every blob, and one that has only what its index names.
    let mut lying = mirror();
    for (path, data) in &mut lying.content {
        if path.contains("/blobs/") {
            *data = vec![0; data.len()];
        }
    }
    let (asked, origin) = pulled_through(Some(lying), "10.77.24.0/24").await;
    assert!(asked >= 5 && origin >= 3, "{asked} {origin}");
    let mut empty = mirror();
    empty.content.retain(|path, _| path.contains("/manifests/"));
    let (asked, origin) = pulled_through(Some(empty), "10.77.24.0/24").await;
    assert!(asked >= 5 && origin >= 3, "{asked} {origin}");
}

/// Takes as long as the engine's patience with a registry.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes two minutes"]
async fn a_mirror_that_stalls_is_passed_over() {
    if let Some(why) = node::unable() {
        eprintln!("skipped: {why}");
        return;
    }
    let mirror = Registry { password: false, stalls: true, ..registry() };
    let (_, origin) = pulled_through(Some(mirror), "10.77.25.0/24").await;
    assert!(origin >= 5, "{origin}");
}

/// Lays an image out as docker-registry keeps it, and returns its configuration's digest.
fn store(root: &std::path::Path, repository: &str, tag: &str) -> String {
    let image = members(&busybox_image("ignored"));
    let config = &image["config.json"];
    let layers: Vec<Vec<u8>> = ["0.tar", "1.tar"].map(|n| zstd::encode_all(&image[n][..], 1).unwrap()).to_vec();
    let describe = |kind: &str, data: &[u8]| serde_json::json!({"mediaType": format!("application/vnd.oci.image.{kind}"), "digest": digest(data), "size": data.len()});
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": describe("config.v1+json", config),
        "layers": layers.iter().map(|l| describe("layer.v1.tar+zstd", l)).collect::<Vec<_>>(),
    })
    .to_string();
    let base = root.join("docker/registry/v2");
    let write = |path: std::path::PathBuf, data: &[u8]| {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, data).unwrap();
    };
    let own = base.join("repositories").join(repository);
    for data in layers.iter().map(Vec::as_slice).chain([config.as_slice(), manifest.as_bytes()]) {
        let name = digest(data);
        let hex = &name[7..];
        write(base.join("blobs/sha256").join(&hex[..2]).join(hex).join("data"), data);
        write(own.join("_layers/sha256").join(hex).join("link"), name.as_bytes());
    }
    let name = digest(manifest.as_bytes());
    write(own.join("_manifests/revisions/sha256").join(&name[7..]).join("link"), name.as_bytes());
    write(own.join("_manifests/tags").join(tag).join("current/link"), name.as_bytes());
    write(own.join("_manifests/tags").join(tag).join("index/sha256").join(&name[7..]).join("link"), name.as_bytes());
    digest(config)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_registry_with_tls_and_a_password() {
    if let Some(why) = node::unable() {
        eprintln!("skipped: {why}");
        return;
    }
    if std::process::Command::new("docker-registry").arg("--version").output().is_err() {
        eprintln!("skipped: needs docker-registry (package docker-registry)");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let mut authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    authority.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    let authority = rcgen::CertifiedIssuer::self_signed(authority, rcgen::KeyPair::generate().unwrap()).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate =
        rcgen::CertificateParams::new(vec!["localhost".into()]).unwrap().signed_by(&key, &authority).unwrap();
    std::fs::write(at("ca.pem"), authority.pem()).unwrap();
    std::fs::write(at("cert.pem"), certificate.pem()).unwrap();
    std::fs::write(at("key.pem"), key.serialize_pem()).unwrap();
    // user:secret
    std::fs::write(at("htpasswd"), "user:$2b$05$JqbWxcSAiPADuJEhqQ8rfO1FSbY5vUffVJ98yylAFPab62hwTWr1S\n").unwrap();
    let id = store(&dir.path().join("data"), "team/app", "v1");
    let config = format!(
        "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
         http: {{addr: 'localhost:5443', tls: {{certificate: {}, key: {}}}}}\nauth: {{htpasswd: {{realm: test, path: {}}}}}\n",
        at("data"),
        at("cert.pem"),
        at("key.pem"),
        at("htpasswd")
    );
    std::fs::write(at("config.yml"), config).unwrap();

    for (authorities, password, outcome) in [
        (at("ca.pem"), "secret", Ok(id)),
        (at("ca.pem"), "wrong", Err("pull access denied")),
        (at("htpasswd"), "secret", Err("certificate")),
    ] {
        let node = Node::start_with(&[], &[("SSL_CERT_FILE", &authorities)]).await;
        let mut registry = std::process::Command::new("nsenter")
            .arg(format!("--net=/run/netns/{}", node.namespace()))
            .args(["docker-registry", "serve", &at("config.yml")])
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let node = tokio::task::spawn_blocking(move || {
            let deadline = std::time::Instant::now() + node::PATIENCE;
            while inside(&node, || TcpStream::connect("localhost:5443").is_err()).join().unwrap() {
                assert!(std::time::Instant::now() < deadline, "the registry does not come up");
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            node
        })
        .await
        .unwrap();
        let request = PullImageRequest {
            image: Some(ImageSpec { image: "localhost:5443/team/app:v1".into(), ..Default::default() }),
            auth: Some(AuthConfig { username: "user".into(), password: password.into(), ..Default::default() }),
            sandbox_config: None,
        };
        let got = node.clients().await.images.pull_image(request).await;
        registry.kill().unwrap();
        registry.wait().unwrap();
        match outcome {
            Ok(id) => assert_eq!(got.unwrap().into_inner().image_ref, id),
            Err(words) => {
                let refused = got.unwrap_err();
                assert!(refused.message().contains(words), "{refused}");
            }
        }
    }
}
