//! Words and machines the program cannot use: each is refused at once, with what to do instead, and nothing is left.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::api::server::free_port;
use crate::cluster::program;

/// A refusal needs no cluster; on a busy machine a process start may take its time.
const WITHIN: Duration = Duration::from_secs(30);
/// The user nobody, who may do nothing.
const NOBODY: u32 = 65534;

/// Runs the program with these words and `DIR`, which stands for a directory of the test's own, to a failure that says
/// all of `expected`.
#[track_caller]
fn check(words: &str, expected: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let words = words.replace("DIR", &dir.path().join("data").display().to_string());
    let mut command = Command::new(program().unwrap());
    command.args(words.split_whitespace());
    refused(command, &words, expected).unwrap();
    let left = dir.path().join("data/pki").exists() && !words.contains("etcd-servers");
    assert!(!left, "{words}: made files before it looked");
}

fn refused(mut command: Command, words: &str, expected: &[&str]) -> Result<()> {
    let began = Instant::now();
    let output = command.stdin(Stdio::null()).env_remove("NAUPLIUS_LOG").output().context("cannot be started")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success(), "{words}: is done");
    ensure!(output.status.code().is_some_and(|code| code <= 2), "{words}: ended with {}: {said}", output.status);
    for part in expected {
        ensure!(said.contains(part), "{words}: says nothing of {part:?}: {said}");
    }
    ensure!(!said.contains("panicked"), "{words}: {said}");
    ensure!(began.elapsed() < WITHIN, "{words}: takes {} s", began.elapsed().as_secs());
    Ok(())
}

const UP: &str = "up --control-plane-only --listen=127.0.0.1:0 --data-dir=DIR";

#[test]
fn ranges() {
    check(&format!("{UP} --cluster-cidr=10.244.0.0/33"), &["10.244.0.0/33", "such as 10.244.0.0/16"]);
    check(&format!("{UP} --cluster-cidr=pods"), &["--cluster-cidr", "such as 10.244.0.0/16"]);
    check(&format!("{UP} --service-cluster-ip-range=10.96.0.0"), &["prefix length"]);
    check(&format!("{UP} --service-cluster-ip-range=10.96.0.0/30"), &["too small", "prefix length of 28"]);
    check(&format!("{UP} --cluster-cidr=10.96.0.0/16"), &["overlap", "--service-cluster-ip-range"]);
    check("up --data-dir=DIR --nodes=3 --cluster-cidr=10.244.0.0/23", &["holds 2 pod ranges", "shorter prefix"]);
}

#[test]
fn listeners() -> Result<()> {
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let up = "up --control-plane-only --data-dir=DIR";
    check(&format!("{up} --listen={}", taken.local_addr()?), &["is in use", "--listen"]);
    check(&format!("{up} --listen=localhost"), &["address and port such as 127.0.0.1:6443"]);
    // A documentation address, which no machine has.
    check(&format!("{up} --listen=203.0.113.1:6443"), &["no such address"]);
    check(&format!("{up} --split --listen=127.0.0.1:0"), &["--split needs a port"]);
    Ok(())
}

#[test]
fn words() -> Result<()> {
    check("up --frobnicate", &["unexpected argument '--frobnicate'"]);
    check("frobnicate", &["unrecognized subcommand 'frobnicate'"]);
    check("up --nodes=0", &["0 is not in 1..="]);
    check("up --nodes=many", &["invalid value 'many' for '--nodes"]);
    check(&format!("{UP} --node-monitor-grace-period=soon"), &["--node-monitor-grace-period"]);
    check(&format!("{UP} --log=apiserver=loud"), &["--log", "error, warn, info, debug"]);
    check("up --data-dir=DIR --nodes=2 --container-runtime-endpoint=unix:///none", &["--nodes 1"]);
    check(&format!("{UP} --container-runtime-endpoint=unix:///none"), &["--nodes 1"]);
    check("image import --data-dir=DIR archive.tar", &["no cluster in", "nauplius up"]);
    check("scheduler", &["--kubeconfig"]);
    Ok(())
}

#[test]
fn places() -> Result<()> {
    let up = "up --control-plane-only --listen=127.0.0.1:0";
    check(&format!("{up} --data-dir=/dev/null/data"), &["cannot make the data directory /dev/null/data"]);
    let other = tempfile::tempdir()?;
    std::fs::write(other.path().join("precious"), "")?;
    check(&format!("reset --data-dir={}", other.path().display()), &["does not look like", "nothing was removed"]);
    ensure!(other.path().join("precious").exists(), "reset removed what is none of a cluster's");
    check(&format!("{UP} --etcd-servers=http://127.0.0.1:{}", free_port()?), &["etcd at http://127.0.0.1:"]);
    Ok(())
}

#[test]
fn nobody() -> Result<()> {
    use std::os::unix::process::CommandExt;
    let mut command = Command::new(program()?);
    command.args(["up", "--listen=127.0.0.1:0"]).current_dir("/");
    if nix::unistd::geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    match refused(command, "up", &["needs root", "--control-plane-only"]) {
        Err(error) if error.to_string().contains("cannot be started") => {
            println!("skipped: nobody may not run the program from where it was built");
            Ok(())
        }
        result => result,
    }
}
