//! The kernel's word of having run out of memory: an event on the node for each process it killed to go on.
//!
//! Only kills for want of memory on the whole machine are the node's affair; a container that met its own limit says so
//! in its status.

use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::time::Duration;

use crate::agent::Context;

const LOG: &str = "/dev/kmsg";
/// A record of the kernel's log is no longer than this.
const MAX_RECORD: usize = 8192;
/// How often new records are looked for; nobody waits for the news.
const EVERY: Duration = Duration::from_secs(5);

/// Name and number of the process a record says was killed for want of memory anywhere.
fn victim(record: &str) -> Option<(String, u32)> {
    let fields = record.split_once("oom-kill:")?.1;
    let field = |name: &str| {
        fields.trim_end().split(',').find_map(|f| f.trim().strip_prefix(name)?.strip_prefix('=')).map(str::to_string)
    };
    (field("constraint")? == "CONSTRAINT_NONE").then_some(())?;
    Some((field("task")?, field("pid")?.parse().ok()?))
}

/// Follows the kernel's log until the agent stops; without access to it there is nothing to follow.
pub async fn run(context: Arc<Context>) {
    let opened =
        std::fs::OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(LOG).and_then(|mut file| {
            file.seek(SeekFrom::End(0))?;
            Ok(file)
        });
    let mut log = match opened {
        Ok(log) => log,
        Err(error) => {
            tracing::debug!("the kernel's log is not followed: {error}");
            return std::future::pending().await;
        }
    };
    let mut record = [0; MAX_RECORD];
    loop {
        match log.read(&mut record) {
            Ok(length) => {
                if let Some((name, pid)) = victim(&String::from_utf8_lossy(&record[..length])) {
                    let message = format!("System OOM encountered, victim process: {name}, pid: {pid}");
                    context.events.warning(&context.events.about_node(), "SystemOOM", &message);
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => tokio::time::sleep(EVERY).await,
            // Overtaken by newer records: the next read goes on behind the gap.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
            Err(error) => {
                tracing::warn!("the kernel's log is followed no more: {error}");
                return std::future::pending().await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn victims() {
        let record = |constraint: &str| {
            format!(
                "4,1,2,-;oom-kill:constraint={constraint},nodemask=(null),cpuset=/,mems_allowed=0,global_oom,task_memcg=/a,task=stress,pid=42,uid=0\n"
            )
        };
        for (text, expect) in [
            (record("CONSTRAINT_NONE"), Some(("stress".to_string(), 42))),
            (record("CONSTRAINT_MEMCG"), None),
            ("6,1,2,-;eth0: link up\n".into(), None),
        ] {
            assert_eq!(super::victim(&text), expect, "{text}");
        }
    }
}
