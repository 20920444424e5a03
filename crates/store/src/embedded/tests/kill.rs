//! kill -9 under a write load: the test binary runs itself as a child that writes and tells what was acknowledged.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use super::*;
use crate::tests::{commit, put};

/// Where the child writes; unset for everybody but the child.
const DIR: &str = "STORE_KILL_TEST_DIR";

/// The child: writes until killed, a line for every acknowledged write.
#[tokio::test]
#[ignore = "runs only as the child of acknowledged_writes_survive_a_kill"]
async fn child() {
    let Ok(dir) = std::env::var(DIR) else { return };
    let store = open(dir, options()).unwrap();
    let start = store.current_revision().await.unwrap();
    println!("ready {start}");
    for n in 0.. {
        // Several at once, so that groups form; values large enough to tear.
        let writes = (0..4).map(|writer| {
            let (store, value) = (&store, format!("{n} ").repeat(1 + n % 900));
            async move {
                let key = format!("/{writer}/{}", n % 50);
                let revision = commit(store, vec![put(&key, &value)]).await;
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
    let dir = tempfile::tempdir().unwrap();
    let mut known: BTreeMap<String, (u64, usize)> = BTreeMap::new();
    for cycle in 0..4 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["embedded::tests::kill::child", "--exact", "--ignored", "--nocapture", "--quiet"])
            .env(DIR, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut acknowledged = 0;
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
        for line in lines.by_ref().take(150 + 97 * cycle) {
            note(line);
        }
        child.kill().unwrap();
        // What it had told before it died counts too; the very last line may be incomplete.
        let mut rest: Vec<_> = lines.collect();
        rest.pop();
        rest.into_iter().for_each(&mut note);
        child.wait().unwrap();
        assert!(acknowledged > 100);
        let store = open(dir.path(), options()).unwrap();
        let found = contents(&store).await;
        for (key, (revision, n)) in &known {
            let kv = found.get(key).unwrap_or_else(|| panic!("{key} is lost"));
            assert!(kv.mod_revision >= *revision, "{key}: {} is older than {revision}", kv.mod_revision);
            if kv.mod_revision == *revision {
                assert_eq!(kv.value, format!("{n} ").repeat(1 + n % 900));
            }
        }
    }
}
