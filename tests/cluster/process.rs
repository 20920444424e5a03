//! A cluster as a child process: started, killed, stopped, and whatever happens removed.
//!
//! What it guarantees: after a drop nothing of the cluster is left, also when a test fails half-way. It signals only
//! processes it started or found below those, by id.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use client::{Client, DynamicApi, Gvr};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::api::server::free_port;

/// A cluster of a debug build on a busy machine.
const READY_WITHIN: Duration = Duration::from_secs(120);
const STOPPED_WITHIN: Duration = Duration::from_secs(40);

/// The program under test: built into the directory above this test's own.
pub fn program() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let file =
        own.parent().and_then(Path::parent).map(|dir| dir.join("nauplius")).context("this test has no directory")?;
    ensure!(file.is_file(), "{} is missing: `cargo build --package nauplius` makes it", file.display());
    Ok(file)
}

/// `nauplius` with these words, to its end.
pub fn run(arguments: &[&str]) -> Result<String> {
    let output = Command::new(program()?).args(arguments).stdin(Stdio::null()).output()?;
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "nauplius {}: {said}", arguments.join(" "));
    Ok(said)
}

fn reset(data: &Path) -> Result<()> {
    run(&["reset", &format!("--data-dir={}", data.display())]).map(drop)
}

const PREFIX: &str = "nauplius-test-";
/// Says whose a directory is: the process's id and start.
const OWNER: &str = "owner";

fn owner(pid: u32) -> Option<String> {
    Some(format!("{pid} {}", started(i32::try_from(pid).ok()?)?))
}

/// A directory for everything a test puts on the disk.
pub fn directory() -> Result<tempfile::TempDir> {
    let dir = tempfile::Builder::new().prefix(PREFIX).tempdir()?;
    std::fs::write(dir.path().join(OWNER), owner(std::process::id()).context("this process has no /proc entry")?)?;
    Ok(dir)
}

/// Kills every process of a cluster that is to be removed by force.
fn end_all(data: &Path) {
    let mark = format!("{}/", data.display());
    for (pid, words) in processes() {
        if words.contains("nauplius") && words.contains(&mark) && pid.unsigned_abs() != std::process::id() {
            signal(pid, Signal::SIGKILL);
        }
    }
}

/// Removes what tests left that were killed half-way.
pub fn sweep() {
    let entries = std::fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten();
    for dir in entries.filter(|e| e.file_name().to_string_lossy().starts_with(PREFIX)).map(|e| e.path()) {
        let Ok(text) = std::fs::read_to_string(dir.join(OWNER)) else { continue };
        let pid = text.split(' ').next().and_then(|pid| pid.parse().ok());
        if pid.and_then(owner).is_some_and(|now| now == text) {
            continue;
        }
        println!("removing {}, left by a test that was killed", dir.display());
        let data = dir.join("data");
        end_all(&data);
        let reset = if data.join("pki").exists() { reset(&data) } else { Ok(()) };
        super::engine::remove(&dir.join(super::engine::DIRECTORY));
        let removed = reset.and_then(|()| Ok(std::fs::remove_dir_all(&dir)?));
        if let Err(error) = removed {
            eprintln!("{error:#}");
        }
    }
}

pub fn signal(pid: i32, signal: Signal) {
    // One that is gone already needs none.
    let _ = kill(Pid::from_raw(pid), signal);
}

pub struct Cluster {
    pub dir: PathBuf,
    pub kubeconfig: PathBuf,
    /// Prefix of the cluster's network namespaces.
    pub name: String,
    arguments: Vec<String>,
    up: Option<Child>,
}

impl Cluster {
    /// A cluster with all its files in `dir`.
    pub fn new(dir: &Path, more: &[&str]) -> Result<Self> {
        let dir = dir.canonicalize()?;
        let data = dir.join("data");
        std::fs::create_dir_all(&data)?;
        let data = data.canonicalize()?;
        let mut arguments = vec![
            "up".to_string(),
            format!("--data-dir={}", data.display()),
            format!("--listen=127.0.0.1:{}", free_port()?),
        ];
        arguments.extend(more.iter().map(|a| a.to_string()));
        Ok(Self {
            name: nauplius::up::cluster_name(&data),
            kubeconfig: data.join("admin.kubeconfig"),
            dir,
            arguments,
            up: None,
        })
    }

    pub fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    pub fn log(&self) -> PathBuf {
        self.dir.join("up.log")
    }

    pub fn start(&mut self) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.log())?;
        let mut command = Command::new(program()?);
        // It ends when this process does, whatever that dies of.
        command.env(nauplius::supervise::PARENT, nauplius::supervise::STDIN);
        command.args(&self.arguments).stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log).process_group(0);
        self.up = Some(command.spawn()?);
        Ok(())
    }

    /// Waits until so many nodes say Ready.
    pub async fn ready(&mut self, nodes: usize) -> Result<Client> {
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            if let Some(status) = self.up.as_mut().context("not started")?.try_wait()? {
                bail!("`nauplius up` ended with {status}: {}", self.tail());
            }
            if self.kubeconfig.exists()
                && let Ok(client) = Client::from_kubeconfig(&self.kubeconfig, "end-to-end").await
                && let Ok(list) = client.dynamic(Gvr::new("", "v1", "nodes")).list(&Default::default()).await
            {
                let ready = list.items.iter().filter_map(|n| n.value().ok()).filter(super::node_is_ready).count();
                if ready >= nodes {
                    return Ok(client);
                }
            }
            ensure!(
                Instant::now() < deadline,
                "{nodes} nodes are not Ready after {} s: {}",
                READY_WITHIN.as_secs(),
                self.tail()
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// The end of the cluster's logs.
    pub fn tail(&self) -> String {
        let mut files = vec![self.log()];
        files.extend(std::fs::read_dir(self.data().join("log")).into_iter().flatten().flatten().map(|e| e.path()));
        let last = |file: &PathBuf| {
            let text = std::fs::read_to_string(file).unwrap_or_default();
            let lines: Vec<_> = text.lines().collect();
            format!("\n--- {}\n{}", file.display(), lines[lines.len().saturating_sub(15)..].join("\n"))
        };
        files.iter().map(last).collect()
    }

    pub fn pid(&self) -> Result<i32> {
        Ok(i32::try_from(self.up.as_ref().context("not started")?.id())?)
    }

    /// SIGKILL to `up` alone: the worst that can happen to it.
    pub fn kill(&mut self) -> Result<()> {
        let mut up = self.up.take().context("not started")?;
        up.kill()?;
        up.wait()?;
        Ok(())
    }

    /// Ctrl-C, and its exit.
    pub fn interrupt(&mut self) -> Result<()> {
        let pid = self.pid()?;
        let mut up = self.up.take().context("not started")?;
        signal(pid, Signal::SIGINT);
        let deadline = Instant::now() + STOPPED_WITHIN;
        loop {
            if let Some(status) = up.try_wait()? {
                ensure!(status.success(), "Ctrl-C ended it with {status}");
                return Ok(());
            }
            if Instant::now() > deadline {
                up.kill()?;
                up.wait()?;
                bail!("Ctrl-C did not end it within {} s: {}", STOPPED_WITHIN.as_secs(), self.tail());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub fn reset(&self) -> Result<()> {
        reset(&self.data())
    }

    /// What of the cluster is on the machine: namespaces, mounts, control groups, files, processes.
    pub fn left(&self) -> Vec<String> {
        let mut left = Vec::new();
        let names = |dir: &str| {
            std::fs::read_dir(dir)
                .into_iter()
                .flatten()
                .flatten()
                .map(|e| e.file_name().to_string_lossy().into_owned())
                .collect::<Vec<_>>()
        };
        left.extend(
            names("/run/netns").into_iter().filter(|n| n.starts_with(&self.name)).map(|n| format!("namespace {n}")),
        );
        left.extend(names("/run").into_iter().filter(|n| *n == self.name).map(|n| format!("/run/{n}")));
        let data = self.data().display().to_string();
        let run = format!("/run/{}/", self.name);
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        left.extend(mounts.lines().filter(|l| l.contains(&data) || l.contains(&run)).map(|l| format!("mount {l}")));
        let mut groups = vec![format!("/sys/fs/cgroup/{}", self.name)];
        groups.extend(names("/sys/fs/cgroup").into_iter().map(|c| format!("/sys/fs/cgroup/{c}/{}", self.name)));
        left.extend(groups.into_iter().filter(|g| Path::new(g).exists()).map(|g| format!("control group {g}")));
        for (pid, words) in processes() {
            if words.contains(&data) || words.contains(&run) {
                left.push(format!("process {pid} {words}"));
            }
        }
        left
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.up.is_some()
            && let Err(error) = self.interrupt()
        {
            eprintln!("stopping the cluster: {error:#}");
        }
        if self.data().exists() {
            end_all(&self.data());
        }
        if self.data().join("pki").exists()
            && let Err(error) = self.reset()
        {
            eprintln!("removing the cluster: {error:#}");
        }
    }
}

/// Every process: its id and its words.
pub fn processes() -> Vec<(i32, String)> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| {
        Some((pid, String::from_utf8_lossy(&std::fs::read(format!("/proc/{pid}/cmdline")).ok()?).replace('\0', " ")))
    })
    .collect()
}

/// When a process started, in ticks since the machine did: with its id, what it is.
pub fn started(pid: i32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Behind the name in parentheses the fields count from the third; the start is the 22nd.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19).map(str::to_string)
}

pub fn parent(pid: i32) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// The one API a test needs of a kind.
pub fn api(client: &Client, group: &str, version: &str, plural: &str) -> DynamicApi {
    client.dynamic(Gvr::new(group, version, plural)).namespaced("default")
}
