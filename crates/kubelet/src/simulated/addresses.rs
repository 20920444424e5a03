//! Addresses of simulated pods: a block of 256 a node, from the range set aside for carriers' own use (RFC 6598), which
//! no cluster of containers here has.
//!
//! It guarantees that no two pods have one address at a time. What it does not know is which pods still live: it is told.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use super::node;

/// The first address of a block names the network, the second the node.
const FIRST: u8 = 2;
const LAST: u8 = 254;

#[derive(Default)]
struct Block {
    used: [u64; 4],
    /// Where the last search ended: addresses are not reused at once.
    next: u8,
}

impl Block {
    fn is_used(&self, host: u8) -> bool {
        self.used[usize::from(host) / 64] & (1 << (host % 64)) != 0
    }

    fn set(&mut self, host: u8, used: bool) {
        let (word, bit) = (usize::from(host) / 64, 1 << (host % 64));
        if used { self.used[word] |= bit } else { self.used[word] &= !bit }
    }

    fn take(&mut self) -> Option<u8> {
        let count = u16::from(LAST - FIRST) + 1;
        let start = u16::from(self.next.clamp(FIRST, LAST) - FIRST);
        let free = (0..count).map(|i| FIRST + ((start + i) % count) as u8).find(|host| !self.is_used(*host))?;
        self.set(free, true);
        self.next = if free == LAST { FIRST } else { free + 1 };
        Some(free)
    }
}

/// See the module.
#[derive(Default)]
pub struct Addresses {
    blocks: HashMap<u32, Block>,
    of_pod: HashMap<Box<str>, (u32, u8)>,
}

fn address(number: u32, host: u8) -> Ipv4Addr {
    (u32::from(node::block(number)) + u32::from(host)).into()
}

impl Addresses {
    /// The pod's address, a new one for a new pod; `None` when the node has none left.
    pub fn of(&mut self, number: u32, uid: &str) -> Option<Ipv4Addr> {
        if let Some((number, host)) = self.of_pod.get(uid) {
            return Some(address(*number, *host));
        }
        let host = self.blocks.entry(number).or_default().take()?;
        self.of_pod.insert(uid.into(), (number, host));
        Some(address(number, host))
    }

    /// Notes an address given in an earlier life.
    pub fn take(&mut self, number: u32, uid: &str, text: &str) {
        let Ok(given) = text.parse::<Ipv4Addr>() else { return };
        let host = u32::from(given).wrapping_sub(u32::from(node::block(number)));
        if let Some(host) = u8::try_from(host).ok().filter(|h| (FIRST..=LAST).contains(h)) {
            self.blocks.entry(number).or_default().set(host, true);
            self.of_pod.insert(uid.into(), (number, host));
        }
    }

    pub fn release(&mut self, uid: &str) {
        if let Some((number, host)) = self.of_pod.remove(uid)
            && let Some(block) = self.blocks.get_mut(&number)
        {
            block.set(host, false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_unique_kept_and_run_out() {
        let mut all = Addresses::default();
        all.take(3, "old", "100.64.2.3");
        let mut seen = std::collections::HashSet::from(["100.64.2.3".to_string()]);
        for i in 0..252 {
            let uid = format!("pod-{i}");
            let given = all.of(3, &uid).unwrap();
            assert!(seen.insert(given.to_string()), "{given} twice");
            assert_eq!(all.of(3, &uid), Some(given));
        }
        assert_eq!(all.of(3, "one too many"), None);
        assert_eq!(all.of(4, "elsewhere"), Some(Ipv4Addr::new(100, 64, 3, 2)));
        all.release("pod-7");
        assert!(all.of(3, "one too many").is_some());
        assert_eq!(all.of(3, "old"), Some(Ipv4Addr::new(100, 64, 2, 3)));
    }
}
