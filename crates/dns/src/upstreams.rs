//! Which servers know which names.
//!
//! A stub domain's servers are asked for names at and below it, the longest match first; the default servers for
//! everything else. The cluster's own names are nobody else's business.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hickory_proto::rr::Name;

/// Where DNS servers listen.
const PORT: u16 = 53;

/// Servers that know the same names: the one that answered last is asked first, so that a dead one is waited for once.
#[derive(Debug, Default)]
pub struct Servers {
    list: Vec<SocketAddr>,
    first: AtomicUsize,
}

impl Servers {
    pub fn new(list: Vec<SocketAddr>) -> Servers {
        Servers { list, first: AtomicUsize::new(0) }
    }

    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// All of them, in the order they are to be asked.
    pub fn in_turn(&self) -> impl Iterator<Item = SocketAddr> {
        let (before, after) = self.list.split_at(self.first.load(Ordering::Relaxed).min(self.list.len()));
        after.iter().chain(before).copied()
    }

    /// Remembers who answered.
    pub fn answered(&self, server: SocketAddr) {
        let at = self.list.iter().position(|known| *known == server).unwrap_or_default();
        self.first.store(at, Ordering::Relaxed);
    }
}

/// Other servers, by what they are asked.
#[derive(Clone, Debug, Default)]
pub struct Upstreams {
    default: Arc<Servers>,
    /// The longest name first.
    stubs: Vec<(Name, Arc<Servers>)>,
}

impl Upstreams {
    /// `None` when a stub domain is no name.
    pub fn new(default: Vec<SocketAddr>, stubs: &[(String, Vec<SocketAddr>)]) -> Option<Upstreams> {
        let mut read = Vec::with_capacity(stubs.len());
        for (domain, servers) in stubs {
            let mut name = Name::from_ascii(domain).ok()?.to_lowercase();
            name.set_fqdn(true);
            read.push((name, Arc::new(Servers::new(servers.clone()))));
        }
        read.sort_by_key(|(name, _)| std::cmp::Reverse(name.num_labels()));
        Some(Upstreams { default: Arc::new(Servers::new(default)), stubs: read })
    }

    pub fn is_empty(&self) -> bool {
        self.default.is_empty() && self.stubs.is_empty()
    }

    /// Whom to ask about a name; empty: nobody.
    pub fn servers(&self, name: &Name) -> &Servers {
        // Names compare without regard to case.
        let stub = self.stubs.iter().find(|(domain, _)| domain.zone_of(name));
        stub.map_or(&self.default, |(_, servers)| servers)
    }
}

/// A server as `ADDRESS` or `ADDRESS:PORT`.
pub fn parse_server(text: &str) -> Result<SocketAddr, String> {
    let plain = text.parse::<IpAddr>().map(|address| SocketAddr::new(address, PORT));
    plain
        .or_else(|_| text.parse())
        .map_err(|_| format!("{text:?} is no server's address, such as 192.0.2.53 or [::1]:5353"))
}

/// A stub domain as `DOMAIN=SERVER[+SERVER…]`.
pub fn parse_stub(text: &str) -> Result<(String, Vec<SocketAddr>), String> {
    let (domain, servers) = text.split_once('=').ok_or_else(|| format!("{text:?} is not DOMAIN=SERVER"))?;
    if domain.is_empty() || Name::from_ascii(domain).is_err() {
        return Err(format!("{domain:?} is no domain name"));
    }
    let servers = servers.split('+').map(parse_server).collect::<Result<_, _>>()?;
    Ok((domain.to_string(), servers))
}
