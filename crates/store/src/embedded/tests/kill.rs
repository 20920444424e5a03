//! kill -9 under a write load: the test binary runs itself as a child that writes and tells what was acknowledged.
//!
//! A few cycles by default; `STORE_KILL_CYCLES` asks for more.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::*;
use crate::tests::model::{Random, collect};
use crate::tests::{commit, delete, put};

/// Where the child writes; unset for everybody but the child.
const DIR: &str = "STORE_KILL_TEST_DIR";

/// How many times the child is killed.
const CYCLES: &str = "STORE_KILL_CYCLES";

fn value(n: usize) -> String {
    format!("{n} ").repeat(1 + n % 900)
}

/// The child: writes until killed, a line for every acknowledged write.
#[tokio::test]
#[ignore = "runs only as the child of acknowledged_writes_survive_a_kill"]
async fn child() {
    let Ok(dir) = std::env::var(DIR) else { return };
    let store = open(dir, options()).unwrap();
    let start = store.current_revision().await.unwrap();
    println!("ready {start}");
    for n in start as usize.. {
        // Several at once, so that groups form; values large enough to tear; pairs that belong together.
        let writes = (0..4).map(|writer| {
            let store = &store;
            async move {
                let key = format!("/{writer}/{}", n % 50);
                let ops = match n % 7 {
                    0 => vec![put(&key, &value(n)), delete(&format!("{key}/twin"))],
                    _ => vec![put(&key, &value(n)), put(&format!("{key}/twin"), &n.to_string())],
                };
                let revision = commit(store, ops).await;
                println!("ack {revision} {key} {n}");
            }
        });
        futures::future::join_all(writes).await;
    }
}

fn options() -> Options {
    Options { segment_bytes: 64 << 10, history_changes: 500, snapshot_log_bytes: 256 << 10, ..Options::default() }
}

#[tokio::test]
async fn acknowledged_writes_survive_a_kill() {
    let cycles: u64 = std::env::var(CYCLES).ok().and_then(|n| n.parse().ok()).unwrap_or(5);
    let dir = tempfile::tempdir().unwrap();
    let mut known: BTreeMap<String, (u64, usize)> = BTreeMap::new();
    let mut random = Random::new(cycles);
    let (mut acknowledged, mut torn) = (0, 0);
    for cycle in 0..cycles {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["embedded::tests::kill::child", "--exact", "--ignored", "--nocapture", "--quiet"])
            .env(DIR, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut note = |line: std::io::Result<String>| {
            // The last line may be cut by the kill.
            let Ok(line) = line else { return };
            let words: Vec<_> = line.split(' ').collect();
            let ["ack", revision, key, n] = words[..] else { return };
            let (Ok(revision), Ok(n)) = (revision.parse(), n.parse()) else { return };
            let held = known.entry(key.to_owned()).or_default();
            *held = (*held).max((revision, n));
            acknowledged += 1;
        };
        // Killed after some acknowledgements and a moment more; or, now and then, while it opens.
        match random.below(8) {
            0 => std::thread::sleep(Duration::from_micros(random.below(30_000))),
            _ => lines.by_ref().take(3 + random.below(150) as usize).for_each(&mut note),
        }
        std::thread::sleep(Duration::from_micros(random.below(2_000)));
        child.kill().unwrap();
        // What it had told before it died counts too; the very last line may be incomplete.
        let mut rest: Vec<_> = lines.collect();
        rest.pop();
        rest.into_iter().for_each(&mut note);
        child.wait().unwrap();
        torn += usize::from(crate::maintain::check(dir.path(), &options()).is_ok_and(|report| report.torn));
        let store = open(dir.path(), options()).unwrap_or_else(|e| panic!("cycle {cycle}: {e}"));
        let found = contents(&store).await;
        for (key, (revision, n)) in &known {
            let kv = found.get(key).unwrap_or_else(|| panic!("cycle {cycle}: {key} is lost"));
            assert!(kv.mod_revision >= *revision, "{key}: {} is older than {revision}", kv.mod_revision);
            if kv.mod_revision == *revision {
                assert_eq!(kv.value, value(*n));
            }
            // The pair was written at one revision or not at all.
            let n: usize = std::str::from_utf8(&kv.value).unwrap().split(' ').next().unwrap().parse().unwrap();
            let twin = found.get(&format!("{key}/twin"));
            assert_eq!(twin.map(|twin| twin.mod_revision), (!n.is_multiple_of(7)).then_some(kv.mod_revision), "{key}");
        }
        let status = store.status().unwrap();
        // An empty store stands at 1.
        let from = status.compacted.max(1);
        let changes = collect(&store, "/", from, status.revision).await;
        let revisions: std::collections::BTreeSet<u64> = changes.iter().map(|change| change.revision).collect();
        assert_eq!(revisions.len() as u64, status.revision - from, "history has a gap");
    }
    println!("{cycles} kills, {acknowledged} acknowledged writes, {torn} torn ends; nothing lost");
}
