//! An engine in a network namespace of its own, and a CRI client to it.
#![allow(dead_code)]

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use cri::v1::image_service_client::ImageServiceClient;
use cri::v1::runtime_service_client::RuntimeServiceClient;
use cri::v1::*;
use tonic::transport::{Channel, Endpoint};

/// Longest anything here may take.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Why tests with real containers cannot run here, if so.
pub fn unable() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("needs root".into());
    }
    if !Path::new("/bin/busybox").exists() {
        return Some("needs /bin/busybox (package busybox-static)".into());
    }
    None
}

pub struct Node {
    pub dir: tempfile::TempDir,
    server: Option<Child>,
    pub flags: Vec<String>,
    pub env: Vec<(String, String)>,
    pub cgroup: String,
}

pub struct Clients {
    pub runtime: RuntimeServiceClient<Channel>,
    pub images: ImageServiceClient<Channel>,
}

impl Node {
    pub async fn start(flags: &[&str]) -> Node {
        Node::start_with(flags, &[]).await
    }

    /// One whose data has a disk of its own, of so many MiB.
    pub async fn start_small(size: usize, flags: &[&str]) -> Node {
        let dir = tempfile::Builder::new().prefix("nauplius-runtime-").tempdir().unwrap();
        let options = format!("size={size}m");
        let flag = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("tmpfs"), dir.path(), Some("tmpfs"), flag, Some(options.as_str())).unwrap();
        Node::start_in(dir, flags, &[]).await
    }

    pub async fn start_with(flags: &[&str], env: &[(&str, &str)]) -> Node {
        let dir = tempfile::Builder::new().prefix("nauplius-runtime-").tempdir().unwrap();
        Node::start_in(dir, flags, env).await
    }

    async fn start_in(dir: tempfile::TempDir, flags: &[&str], env: &[(&str, &str)]) -> Node {
        let cgroup = format!("/{}", dir.path().file_name().unwrap().to_string_lossy());
        let mut node = Node {
            dir,
            server: None,
            flags: flags.iter().map(|f| f.to_string()).collect(),
            env: env.iter().map(|(n, v)| (n.to_string(), v.to_string())).collect(),
            cgroup,
        };
        // A namespace that outlives the server, so that a restarted one finds its pods' network.
        let name = node.namespace();
        assert!(Command::new("ip").args(["netns", "add", &name]).status().unwrap().success());
        node.nsenter(&["ip", "link", "set", "lo", "up"]);
        node.serve().await;
        node
    }

    pub fn namespace(&self) -> String {
        self.cgroup.trim_start_matches('/').to_string()
    }

    /// Runs a command in the node's network (not `ip netns exec`, which would hide the cgroups).
    pub fn nsenter(&self, command: &[&str]) -> String {
        let output = self.command(command).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    }

    fn command(&self, command: &[&str]) -> Command {
        let mut c = Command::new("nsenter");
        c.arg(format!("--net=/run/netns/{}", self.namespace())).args(command);
        c
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("cri.sock")
    }

    pub fn server_pid(&self) -> i32 {
        self.server.as_ref().unwrap().id() as i32
    }

    pub async fn serve(&mut self) {
        let exe = env!("CARGO_BIN_EXE_nauplius-runtime");
        let data = self.dir.path().to_string_lossy().into_owned();
        let mut command = self.command(&[exe, "serve", &data, "--cgroup-parent", &self.cgroup]);
        command.args(&self.flags).envs(self.env.iter().cloned());
        self.server = Some(command.spawn().unwrap());
        let deadline = std::time::Instant::now() + PATIENCE;
        while self.try_clients().await.is_none() {
            assert!(std::time::Instant::now() < deadline, "the server does not come up");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub async fn channel(&self) -> Option<Channel> {
        let socket = self.socket();
        Endpoint::from_static("http://localhost")
            .connect_with_connector(tower::service_fn(move |_: http::Uri| {
                let socket = socket.clone();
                async move {
                    Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(
                        tokio::net::UnixStream::connect(socket).await?,
                    ))
                }
            }))
            .await
            .ok()
    }

    async fn try_clients(&self) -> Option<Clients> {
        let channel = self.channel().await?;
        let limit = 64 << 20;
        let mut runtime = RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(limit);
        runtime.version(VersionRequest::default()).await.ok()?;
        Some(Clients { runtime, images: ImageServiceClient::new(channel) })
    }

    pub async fn clients(&self) -> Clients {
        self.try_clients().await.expect("the server answers")
    }

    /// kill -9.
    pub fn kill(&mut self) {
        let mut server = self.server.take().unwrap();
        server.kill().unwrap();
        server.wait().unwrap();
    }

    /// Takes the node down; returns what there was to say about it.
    pub fn reset(&self) -> String {
        let exe = env!("CARGO_BIN_EXE_nauplius-runtime");
        let data = self.dir.path().to_string_lossy().into_owned();
        let mut command = self.command(&[exe, "reset", &data, "--cgroup-parent", &self.cgroup]);
        let output = command.env("RUST_LOG", "warn").output().unwrap();
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// No mount, link, cgroup, process or directory of a pod.
    pub fn nothing_left(&self) {
        let data = self.dir.path().display().to_string();
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        assert!(!mounts.contains(&data), "{mounts}");
        let links = self.nsenter(&["ip", "-o", "link"]);
        assert!(!links.contains("veth"), "{links}");
        for dir in ["root/sandboxes", "root/containers", "state/sandboxes"] {
            let left: Vec<_> = std::fs::read_dir(self.dir.path().join(dir)).unwrap().collect();
            assert!(left.is_empty(), "{dir}: {left:?}");
        }
        for hierarchy in ["memory", "systemd", "unified", ""] {
            let cgroup = Path::new("/sys/fs/cgroup").join(hierarchy).join(self.cgroup.trim_start_matches('/'));
            let groups = std::fs::read_dir(cgroup).map(|d| d.flatten().filter(|e| e.path().is_dir()).count());
            assert_eq!(groups.unwrap_or(0), 0, "{hierarchy}");
        }
    }

    /// Connects to a TCP address in the node's network.
    pub async fn connect(&self, address: std::net::SocketAddr) -> tokio::net::TcpStream {
        let file = std::fs::File::open(format!("/run/netns/{}", self.namespace())).unwrap();
        let stream = std::thread::spawn(move || {
            nix::sched::setns(file.as_fd(), nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            let deadline = std::time::Instant::now() + PATIENCE;
            loop {
                match std::net::TcpStream::connect(address) {
                    Ok(s) => return s,
                    Err(e) => assert!(std::time::Instant::now() < deadline, "{address}: {e}"),
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        })
        .join()
        .unwrap();
        stream.set_nonblocking(true).unwrap();
        tokio::net::TcpStream::from_std(stream).unwrap()
    }

    /// Imports a busybox image under a name.
    pub async fn import_busybox(&self, name: &str) {
        let archive = self.dir.path().join("busybox.tar");
        std::fs::write(&archive, busybox_image(name)).unwrap();
        runtime::image_import(&self.socket(), &archive, Vec::new()).await.unwrap();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.take() {
            let _ = nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(server.id() as i32),
                nix::sys::signal::Signal::SIGTERM,
            );
            let _ = server.wait();
        }
        self.reset();
        // Only one with a disk of its own is mounted.
        let _ = nix::mount::umount2(self.dir.path(), nix::mount::MntFlags::MNT_DETACH);
        let _ = Command::new("ip").args(["netns", "delete", &self.namespace()]).status();
    }
}

fn file(tar: &mut tar::Builder<Vec<u8>>, name: &str, data: &[u8], mode: u32) {
    let mut header = tar::Header::new_gnu();
    header.set_size(data.len() as u64);
    header.set_mode(mode);
    tar.append_data(&mut header, name, data).unwrap();
}

/// Runs something in the node's network, on a thread of its own.
pub fn inside<T: Send + 'static>(node: &Node, work: impl FnOnce() -> T + Send + 'static) -> std::thread::JoinHandle<T> {
    let file = std::fs::File::open(format!("/run/netns/{}", node.namespace())).unwrap();
    std::thread::spawn(move || {
        nix::sched::setns(file.as_fd(), nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        work()
    })
}

/// `sha256:` of some bytes.
pub fn digest(data: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    "sha256:".to_string() + &Sha256::digest(data).iter().map(|b| format!("{b:02x}")).collect::<String>()
}

/// The members of an archive.
pub fn members(archive: &[u8]) -> HashMap<String, Vec<u8>> {
    use std::io::Read;
    let mut archive = tar::Archive::new(archive);
    let entries = archive.entries().unwrap();
    entries
        .map(|e| {
            let mut e = e.unwrap();
            let mut data = Vec::new();
            e.read_to_end(&mut data).unwrap();
            (e.path().unwrap().to_string_lossy().into_owned(), data)
        })
        .collect()
}

/// A `docker save` archive of busybox, in two layers; the upper one removes and hides parts of the lower.
pub fn busybox_image(name: &str) -> Vec<u8> {
    use sha2::{Digest, Sha256};
    let mut base = tar::Builder::new(Vec::new());
    file(&mut base, "bin/busybox", &std::fs::read("/bin/busybox").unwrap(), 0o755);
    for applet in [
        "sh", "echo", "cat", "sleep", "ls", "id", "ip", "wget", "nc", "ping", "tty", "stty", "kill", "ps", "head",
        "yes", "env", "true", "hostname", "grep", "dd", "mount", "touch", "httpd", "seq", "wc", "tr",
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        base.append_link(&mut header, format!("bin/{applet}"), "busybox").unwrap();
    }
    for dir in ["tmp/", "root/", "opaque/", "home/"] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(if dir == "tmp/" { 0o1777 } else { 0o755 });
        header.set_size(0);
        base.append_data(&mut header, dir, std::io::empty()).unwrap();
    }
    file(&mut base, "etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1000::/home:/bin/sh\n", 0o644);
    file(&mut base, "etc/group", b"root:x:0:\nweb:x:1000:\nextra:x:5000:web\n", 0o644);
    file(&mut base, "removed", b"x", 0o644);
    file(&mut base, "opaque/hidden", b"x", 0o644);
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    base.append_link(&mut header, "link", "home").unwrap();
    let base = base.into_inner().unwrap();
    let mut top = tar::Builder::new(Vec::new());
    file(&mut top, ".wh.removed", b"", 0o644);
    file(&mut top, "opaque/shown", b"y", 0o644);
    file(&mut top, "opaque/.wh..wh..opq", b"", 0o644);
    file(&mut top, "link/through", b"z", 0o644);
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Link);
    header.set_size(0);
    top.append_link(&mut header, "passwd-link", "etc/passwd").unwrap();
    let top = top.into_inner().unwrap();
    let hex = |data: &[u8]| Sha256::digest(data).iter().map(|b| format!("{b:02x}")).collect::<String>();
    let config = serde_json::json!({
        "architecture": if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" },
        "os": "linux",
        "config": {"Cmd": ["sh"], "Env": ["PATH=/bin", "FROM_IMAGE=1"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", hex(&base)), format!("sha256:{}", hex(&top))]},
    })
    .to_string();
    let manifest = serde_json::json!([{"Config": "config.json", "RepoTags": [name], "Layers": ["0.tar", "1.tar"]}]);
    let mut image = tar::Builder::new(Vec::new());
    file(&mut image, "config.json", config.as_bytes(), 0o644);
    file(&mut image, "0.tar", &base, 0o644);
    file(&mut image, "1.tar", &top, 0o644);
    file(&mut image, "manifest.json", manifest.to_string().as_bytes(), 0o644);
    image.into_inner().unwrap()
}

pub fn pod(name: &str, logs: &Path) -> PodSandboxConfig {
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: name.into(),
            uid: format!("uid-{name}"),
            namespace: "ns".into(),
            attempt: 0,
        }),
        hostname: name.into(),
        log_directory: logs.join(name).display().to_string(),
        dns_config: Some(DnsConfig {
            servers: vec!["10.96.0.10".into()],
            searches: vec!["svc".into()],
            options: vec![],
        }),
        labels: HashMap::from([("app".to_string(), name.to_string())]),
        linux: Some(LinuxPodSandboxConfig {
            security_context: Some(LinuxSandboxSecurityContext {
                namespace_options: Some(NamespaceOption { pid: NamespaceMode::Container.into(), ..Default::default() }),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

pub fn shell(name: &str, script: &str) -> ContainerConfig {
    ContainerConfig {
        metadata: Some(ContainerMetadata { name: name.into(), attempt: 0 }),
        image: Some(ImageSpec { image: "busybox:test".into(), ..Default::default() }),
        command: vec!["sh".into(), "-c".into(), script.into()],
        log_path: format!("{name}.log"),
        linux: Some(LinuxContainerConfig {
            resources: Some(LinuxContainerResources { oom_score_adj: 1000, cpu_shares: 512, ..Default::default() }),
            security_context: Some(LinuxContainerSecurityContext {
                namespace_options: Some(NamespaceOption { pid: NamespaceMode::Container.into(), ..Default::default() }),
                masked_paths: vec!["/proc/kcore".into(), "/proc/scsi".into(), "/proc/keys".into()],
                readonly_paths: vec!["/proc/sys".into(), "/proc/bus".into()],
                ..Default::default()
            }),
        }),
        ..Default::default()
    }
}

pub fn security(config: &mut ContainerConfig) -> &mut LinuxContainerSecurityContext {
    config.linux.get_or_insert_default().security_context.get_or_insert_default()
}

impl Clients {
    pub async fn run(&mut self, config: &PodSandboxConfig) -> String {
        self.run_with(config, "").await
    }

    pub async fn run_with(&mut self, config: &PodSandboxConfig, handler: &str) -> String {
        std::fs::create_dir_all(&config.log_directory).unwrap();
        let request = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: handler.into() };
        self.runtime.run_pod_sandbox(request).await.unwrap().into_inner().pod_sandbox_id
    }

    pub async fn create(&mut self, sandbox: &str, pod: &PodSandboxConfig, config: ContainerConfig) -> String {
        let request = CreateContainerRequest {
            pod_sandbox_id: sandbox.into(),
            config: Some(config),
            sandbox_config: Some(pod.clone()),
        };
        self.runtime.create_container(request).await.unwrap().into_inner().container_id
    }

    pub async fn start(&mut self, id: &str) {
        self.runtime.start_container(StartContainerRequest { container_id: id.into() }).await.unwrap();
    }

    pub async fn launch(&mut self, sandbox: &str, pod: &PodSandboxConfig, config: ContainerConfig) -> String {
        let id = self.create(sandbox, pod, config).await;
        self.start(&id).await;
        id
    }

    pub async fn status(&mut self, id: &str) -> ContainerStatus {
        let request = ContainerStatusRequest { container_id: id.into(), verbose: false };
        self.runtime.container_status(request).await.unwrap().into_inner().status.unwrap()
    }

    pub async fn ended(&mut self, id: &str) -> ContainerStatus {
        let deadline = std::time::Instant::now() + PATIENCE;
        loop {
            let status = self.status(id).await;
            if status.state() == ContainerState::ContainerExited {
                return status;
            }
            assert!(std::time::Instant::now() < deadline, "{id} does not end");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    pub async fn exec(&mut self, id: &str, script: &str) -> (String, i32) {
        let request = ExecSyncRequest {
            container_id: id.into(),
            cmd: ["sh", "-c", script].map(String::from).to_vec(),
            timeout: 10,
        };
        let out = self.runtime.exec_sync(request).await.unwrap().into_inner();
        (String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr), out.exit_code)
    }

    pub async fn remove(&mut self, sandbox: &str) {
        self.runtime.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: sandbox.into() }).await.unwrap();
        self.runtime.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: sandbox.into() }).await.unwrap();
    }
}

/// The text of a log in CRI's format.
pub fn log_text(path: &Path) -> String {
    let raw = std::fs::read_to_string(path).unwrap();
    let mut text = String::new();
    for line in raw.lines() {
        let mut parts = line.splitn(4, ' ');
        let (_, _, tag, rest) = (parts.next(), parts.next(), parts.next().unwrap(), parts.next().unwrap_or(""));
        text.push_str(rest);
        if tag == "F" {
            text.push('\n');
        }
    }
    text
}
