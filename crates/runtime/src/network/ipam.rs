//! Addresses for pods, out of the node's range, one file an address.
//!
//! Guarantees: no address is given twice while its owner exists, across restarts and crashes; a released address is
//! not given again before the others have been (peers may still remember it).

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use ipnet::IpNet;

/// The pool of one range.
pub struct Ipam {
    dir: PathBuf,
    range: IpNet,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    owners: BTreeMap<IpAddr, String>,
    last: u128,
}

impl Ipam {
    /// Opens the allocations of a range, kept in a directory.
    pub fn open(dir: &Path, range: IpNet) -> io::Result<Ipam> {
        std::fs::create_dir_all(dir)?;
        let mut state = State::default();
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            if let Ok(address) = entry.file_name().to_string_lossy().parse::<IpAddr>() {
                let owner = std::fs::read_to_string(entry.path())?;
                if range.contains(&address) {
                    state.last = state.last.max(offset(&range, address));
                    state.owners.insert(address, owner);
                }
            }
        }
        Ok(Ipam { dir: dir.to_path_buf(), range, state: Mutex::new(state) })
    }

    /// The range.
    pub fn range(&self) -> IpNet {
        self.range
    }

    /// The range's first address, which belongs to the bridge.
    pub fn gateway(&self) -> IpAddr {
        at(&self.range, 1)
    }

    /// An address for an owner of each pool; those that it has, if it has some. They lie at the same place in all pools, as
    /// long as that is free: what is told of a pod by one of its addresses is true of the others then.
    pub fn allocate_all(pools: &[Arc<Ipam>], owner: &str) -> io::Result<Vec<IpAddr>> {
        // The smallest pool has the least choice.
        let Some(first) = pools.iter().min_by_key(|pool| size(&pool.range)) else { return Ok(Vec::new()) };
        let place = offset(&first.range, first.allocate(owner, None)?);
        pools.iter().map(|pool| pool.allocate(owner, Some(place))).collect()
    }

    /// An address for an owner; the one that it has, if it has one; else one at this place, if it is free.
    fn allocate(&self, owner: &str, place: Option<u128>) -> io::Result<IpAddr> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((address, _)) = state.owners.iter().find(|(_, o)| *o == owner) {
            return Ok(*address);
        }
        // Without the network's, the gateway's and the broadcast address.
        let size = size(&self.range);
        let usable = size.saturating_sub(3);
        let last = state.last.max(1);
        let others = (0..usable).map(|step| 2 + (last - 1 + step) % usable);
        for n in place.into_iter().filter(|n| (2..usable.saturating_add(2)).contains(n)).chain(others) {
            let address = at(&self.range, n);
            if let std::collections::btree_map::Entry::Vacant(e) = state.owners.entry(address) {
                std::fs::write(self.dir.join(address.to_string()), owner)?;
                e.insert(owner.to_string());
                state.last = n;
                return Ok(address);
            }
        }
        Err(io::Error::other(format!("no address is free in {}", self.range)))
    }

    /// Gives an owner's addresses back; having none is fine.
    pub fn release(&self, owner: &str) -> io::Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let addresses: Vec<IpAddr> = state.owners.iter().filter(|(_, o)| *o == owner).map(|(a, _)| *a).collect();
        for address in addresses {
            match std::fs::remove_file(self.dir.join(address.to_string())) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
            state.owners.remove(&address);
        }
        Ok(())
    }

    /// Gives back what belongs to owners that are no more.
    pub fn keep_only(&self, alive: impl Fn(&str) -> bool) -> io::Result<()> {
        let owners: Vec<String> =
            self.state.lock().unwrap_or_else(PoisonError::into_inner).owners.values().cloned().collect();
        owners.iter().filter(|o| !alive(o)).try_for_each(|o| self.release(o))
    }
}

fn size(range: &IpNet) -> u128 {
    let bits = range.max_prefix_len() - range.prefix_len();
    1u128.checked_shl(bits.into()).unwrap_or(u128::MAX)
}

fn at(range: &IpNet, n: u128) -> IpAddr {
    match range.network() {
        IpAddr::V4(base) => IpAddr::V4(Ipv4Addr::from(u32::from(base).wrapping_add(n as u32))),
        IpAddr::V6(base) => IpAddr::V6((u128::from(base).wrapping_add(n)).into()),
    }
}

fn offset(range: &IpNet, address: IpAddr) -> u128 {
    match (range.network(), address) {
        (IpAddr::V4(base), IpAddr::V4(a)) => u32::from(a).wrapping_sub(u32::from(base)).into(),
        (IpAddr::V6(base), IpAddr::V6(a)) => u128::from(a).wrapping_sub(u128::from(base)),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_unique_and_durable() {
        let dir = std::env::temp_dir().join(format!("runtime-ipam-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        let range: IpNet = "10.1.2.0/29".parse().unwrap();
        let pool = Ipam::open(&dir, range).unwrap();
        assert_eq!(pool.gateway().to_string(), "10.1.2.1");
        let got: Vec<String> = (0..5).map(|n| pool.allocate(&format!("p{n}"), None).unwrap().to_string()).collect();
        assert_eq!(got, ["10.1.2.2", "10.1.2.3", "10.1.2.4", "10.1.2.5", "10.1.2.6"]);
        assert!(pool.allocate("p9", None).is_err());
        assert_eq!(pool.allocate("p3", None).unwrap().to_string(), "10.1.2.5");
        pool.release("p0").unwrap();
        pool.release("p1").unwrap();
        drop(pool);
        let pool = Ipam::open(&dir, range).unwrap();
        assert_eq!(pool.allocate("p3", None).unwrap().to_string(), "10.1.2.5");
        assert_eq!(pool.allocate("new", None).unwrap().to_string(), "10.1.2.2");
        pool.keep_only(|o| o == "new").unwrap();
        assert_eq!(pool.allocate("next", None).unwrap().to_string(), "10.1.2.3");
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn addresses_of_two_families_go_together() {
        let dir = std::env::temp_dir().join(format!("runtime-ipam-two-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        let open = |name: &str, range: &str| Arc::new(Ipam::open(&dir.join(name), range.parse().unwrap()).unwrap());
        let pools = [open("six", "fd00::/64"), open("four", "10.1.2.0/29")];
        let allocate = |owner: &str| {
            Ipam::allocate_all(&pools, owner).unwrap().iter().map(IpAddr::to_string).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(allocate("a"), "fd00::2 10.1.2.2");
        assert_eq!(allocate("a"), "fd00::2 10.1.2.2");
        for (n, owner) in ["b", "c", "d", "e"].iter().enumerate() {
            assert_eq!(allocate(owner), format!("fd00::{0} 10.1.2.{0}", n + 3));
        }
        // Of one family only, from before there was another.
        pools[0].release("b").unwrap();
        pools[0].allocate("old", Some(3)).unwrap();
        pools[1].release("b").unwrap();
        assert_eq!(allocate("f"), "fd00::7 10.1.2.3");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
