//! `nauplius store ...` as a person runs it: on a store at rest, beside one that is served, and to others and back.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use store::{Backend, Op, Txn, embedded};

use crate::api::server::free_port;
use crate::cluster::program;

/// A process start on a busy machine.
const WITHIN: Duration = Duration::from_secs(60);
const KEYS: usize = 50;

/// Runs `nauplius store` with these words to its end, and expects it to say so.
fn check(words: &str, expected: &[&str]) -> Result<()> {
    said(words, true, expected)
}

fn refused(words: &str, expected: &[&str]) -> Result<()> {
    said(words, false, expected)
}

fn said(words: &str, success: bool, expected: &[&str]) -> Result<()> {
    let output = Command::new(program()?).arg("store").args(words.split_whitespace()).stdin(Stdio::null()).output()?;
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success() == success, "store {words}: {said}");
    for part in expected {
        ensure!(said.contains(part), "store {words}: says nothing of {part:?}: {said}");
    }
    Ok(())
}

/// A cluster's directory whose store holds some keys.
fn filled(data: &Path) -> Result<()> {
    let store = embedded::open(data.join("store"), embedded::Options::default())?;
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    for n in 0..KEYS {
        let op = Op::Put { key: format!("/registry/{n}").into(), value: vec![b'v'; n].into(), lease: None };
        runtime.block_on(store.txn(Txn { compares: Vec::new(), ops: vec![op] }))?;
    }
    Ok(())
}

/// `store serve` in a process of its own; killed if it is still there at the end.
struct Served {
    process: Child,
    url: String,
}

impl Served {
    fn start(data: &Path) -> Result<Self> {
        let address = format!("127.0.0.1:{}", free_port()?);
        let process = Command::new(program()?)
            .args(["store", "serve", "--listen", &address, "--data-dir"])
            .arg(data)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let served = Served { process, url: format!("http://{address}") };
        let began = Instant::now();
        while std::net::TcpStream::connect(&address).is_err() {
            ensure!(began.elapsed() < WITHIN, "store serve does not come up");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(served)
    }

    fn stop(mut self) -> Result<()> {
        kill(Pid::from_raw(self.process.id() as i32), Signal::SIGTERM)?;
        let began = Instant::now();
        loop {
            match self.process.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => bail!("store serve ended with {status}"),
                None => ensure!(began.elapsed() < WITHIN, "store serve does not end"),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        _ = self.process.kill();
        _ = self.process.wait();
    }
}

#[test]
fn care_and_moving() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let place = |name: &str| dir.path().join(name).to_str().context("a path that is text").map(str::to_owned);
    let (first, second, third) = (place("first")?, place("second")?, place("third")?);
    filled(Path::new(&first))?;
    let keys = format!("keys: {KEYS}");

    // At rest.
    check(&format!("status --data-dir {first}"), &[&keys, "revision: 51"])?;
    check(&format!("check --data-dir {first}"), &["every byte is good", "torn end: no"])?;
    let saved = place("saved")?;
    check(&format!("snapshot {saved} --data-dir {first}"), &["revision: 51"])?;
    check(&format!("restore {saved} --data-dir {second} --bump-revision 1000"), &["revision: 1051"])?;
    refused(&format!("restore {saved} --data-dir {second}"), &["there is a store in"])?;
    check(&format!("compare {first} {second}"), &[&format!("{KEYS} keys, the same in both")])?;
    check(&format!("defrag --compact --data-dir {first}"), &["freed bytes"])?;
    refused(&format!("check --data-dir {third}"), &["is not a directory"])?;
    std::fs::write(&saved, b"not this")?;
    refused(&format!("restore {saved} --data-dir {third}"), &["saved", "cut short"])?;

    // Beside whoever has it open.
    let served = Served::start(Path::new(&first))?;
    let url = &served.url;
    check(&format!("status --data-dir {first}"), &[&keys])?;
    check(&format!("snapshot {saved} --data-dir {first}"), &["revision: 51"])?;
    check(&format!("defrag --data-dir {first}"), &["freed bytes"])?;
    refused(&format!("check --data-dir {first}"), &["in use", "stop the cluster first"])?;
    refused(&format!("defrag --compact --data-dir {first}"), &["the cluster is running"])?;
    refused(&format!("compare {first} {second}"), &["in use"])?;

    // Through etcd's API to a store of its own.
    check(&format!("copy {url} {third}"), &[&format!("{KEYS} keys")])?;
    check(&format!("compare {url} {third}"), &[&format!("{KEYS} keys, the same in both")])?;
    refused(&format!("copy {url} {third}"), &[&format!("the target holds {KEYS} keys")])?;
    refused(&format!("compare {url} {url}"), &["both stores are"])?;
    served.stop()?;
    check(&format!("check --data-dir {first}"), &["every byte is good"])
}
