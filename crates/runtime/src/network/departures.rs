//! Removing pods' links, many at once.
//!
//! The kernel waits for every processor before a link is gone, tens of milliseconds, and does so for one request after
//! the other. Of many pods that end together each marks its link, and whoever then gets the turn removes all that are
//! marked with one request and one wait.
//!
//! Guarantees: when [`Departures::remove`] returns, the link is gone.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::netlink::Netlink;

/// The group that marked links are in, in their node's network namespace. Nobody else's by chance: spells `gone`.
const GROUP: u32 = 0x676f_6e65;

struct Turn {
    netlink: Netlink,
    /// Marks up to this one are removed.
    removed: u64,
}

/// The links of a node that are on their way out.
pub struct Departures {
    marked: AtomicU64,
    turn: Mutex<Turn>,
}

impl Departures {
    /// None yet.
    pub fn new() -> io::Result<Departures> {
        let turn = Turn { netlink: Netlink::open()?, removed: 0 };
        Ok(Departures { marked: AtomicU64::new(0), turn: Mutex::new(turn) })
    }

    /// Removes a link, seen through a conversation with its namespace; absence is fine. Blocks, but not the conversation.
    pub fn remove(&self, node: &Mutex<Netlink>, name: &str) -> io::Result<()> {
        if !node.lock().unwrap_or_else(PoisonError::into_inner).set_group(name, GROUP)? {
            return Ok(());
        }
        let mine = self.marked.fetch_add(1, Ordering::AcqRel) + 1;
        let mut turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        if turn.removed >= mine {
            return Ok(());
        }
        let all = self.marked.load(Ordering::Acquire);
        turn.netlink.delete_group(GROUP)?;
        turn.removed = all;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sched::{CloneFlags, unshare};

    #[test]
    fn links_go_together_and_others_stay() {
        let inside = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).ok()?;
            Some((Netlink::open().unwrap(), Departures::new().unwrap()))
        });
        let Some((mut netlink, departures)) = inside.join().unwrap() else {
            return println!("skipped: needs root");
        };
        let names: Vec<String> = (0..8).map(|n| format!("d{n}")).collect();
        names.iter().for_each(|name| netlink.add_bridge(name).unwrap());
        let node = Mutex::new(netlink);
        std::thread::scope(|scope| {
            for name in names[1..].iter().map(String::as_str).chain(["none"]) {
                let (departures, node) = (&departures, &node);
                scope.spawn(move || {
                    departures.remove(node, name).unwrap();
                    assert_eq!(node.lock().unwrap().link(name).unwrap(), None);
                    departures.remove(node, name).unwrap();
                });
            }
        });
        let left = node.lock().unwrap().links().unwrap().into_iter().map(|l| l.name).filter(|n| n.starts_with("d"));
        assert_eq!(left.collect::<Vec<_>>(), ["d0"]);
    }
}
