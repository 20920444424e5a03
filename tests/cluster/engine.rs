//! Debian's containerd as a node's engine: a child inside the node's network namespace, with a root, socket and network
//! configuration of its own.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use super::image;
use super::process::{processes, signal};
use crate::api::server::program;

const WITHIN: Duration = Duration::from_secs(60);
/// Its directory in a test's.
pub const DIRECTORY: &str = "engine";
const PLUGINS: &str = "/usr/lib/cni";

/// What is missing to run it.
pub fn missing() -> Option<&'static str> {
    let programs = [("containerd", "containerd"), ("ctr", "containerd"), ("runc", "runc"), ("nsenter", "util-linux")];
    let lacking = programs.into_iter().find(|(name, _)| program(name).is_none()).map(|(_, package)| package);
    lacking.or_else(|| (!Path::new(PLUGINS).join("bridge").exists()).then_some("containernetworking-plugins"))
}

pub struct Containerd {
    dir: PathBuf,
    pub socket: PathBuf,
    process: Option<Child>,
}

impl Containerd {
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.into(), socket: dir.join("containerd.sock"), process: None }
    }

    fn configuration(&self) -> Result<PathBuf> {
        let networks = self.dir.join("net.d");
        std::fs::create_dir_all(&networks)?;
        // The first node's range, as the node IPAM controller cuts them.
        let network = serde_json::json!({
            "cniVersion": "0.4.0", "name": "pods",
            "plugins": [
                {"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
                 "ipam": {"type": "host-local", "dataDir": self.dir.join("addresses"), "ranges": [[{"subnet": "10.244.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
                {"type": "portmap", "capabilities": {"portMappings": true}},
            ],
        });
        std::fs::write(networks.join("10-pods.conflist"), network.to_string())?;
        let dir = self.dir.display();
        // A machine may forbid its root to make processes less likely to be killed than root itself is.
        let text = format!(
            "version = 2\nroot = \"{dir}/root\"\nstate = \"{dir}/state\"\n[grpc]\n  address = \"{socket}\"\n[debug]\n  level = \"warn\"\n\
             [plugins.\"io.containerd.grpc.v1.cri\"]\n  sandbox_image = \"{image}\"\n  restrict_oom_score_adj = true\n\
             [plugins.\"io.containerd.grpc.v1.cri\".cni]\n  bin_dir = \"{PLUGINS}\"\n  conf_dir = \"{dir}/net.d\"\n",
            socket = self.socket.display(),
            image = image::NAME,
        );
        let file = self.dir.join("config.toml");
        std::fs::write(&file, text)?;
        Ok(file)
    }

    /// Starts it inside a network namespace that may still be in the making.
    pub async fn start(&mut self, namespace: &Path, archive: &Path) -> Result<()> {
        std::fs::create_dir_all(&self.dir)?;
        let file = self.configuration()?;
        let deadline = Instant::now() + WITHIN;
        while !namespace.exists() {
            ensure!(Instant::now() < deadline, "{} does not appear", namespace.display());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let log = std::fs::File::create(self.dir.join("containerd.log"))?;
        let mut command = Command::new(program("nsenter").context("nsenter")?);
        command
            .arg(format!("--net={}", namespace.display()))
            .args(["--", "setpriv", "--pdeathsig=KILL"])
            .arg(program("containerd").context("containerd")?)
            .arg("--config")
            .arg(file);
        self.process =
            Some(command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0).spawn()?);
        loop {
            let mut import = Command::new(program("ctr").context("ctr")?);
            import
                .arg("--address")
                .arg(&self.socket)
                .args(["--namespace", "k8s.io", "--connect-timeout", "2s", "images", "import"])
                .arg(archive);
            let output = import.output()?;
            if output.status.success() {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "containerd: {}", String::from_utf8_lossy(&output.stderr));
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
        remove(&self.dir);
    }
}

/// Ends the engine of a directory with all it runs, and unmounts what it mounted.
pub fn remove(dir: &Path) {
    // Of every process, its own socket or directory is among the words; what a shim runs dies with it.
    let mark = format!("{}/", dir.display());
    for (pid, words) in processes() {
        if words.contains("containerd") && words.contains(&mark) {
            for (child, _) in processes() {
                if super::process::parent(child) == Some(pid) {
                    signal(child, Signal::SIGKILL);
                }
            }
            signal(pid, Signal::SIGKILL);
        }
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut points: Vec<_> =
        mounts.lines().filter_map(|l| l.split(' ').nth(4)).filter(|p| p.starts_with(&mark)).collect();
    points.reverse();
    for point in points {
        let _ = nix::mount::umount2(point, nix::mount::MntFlags::MNT_DETACH);
    }
}
