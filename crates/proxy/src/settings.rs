//! The kernel's connection tracking, set as a node with many connections needs it.
//!
//! Upstream's settings and defaults. What the kernel does not let us set (the table's size, outside the machine's first
//! network namespace) stays as it is.

use std::time::Duration;

/// Files below this are connection tracking's, of this process's network namespace.
const PLACE: &str = "/proc/sys/net/netfilter";

fn number(name: &str) -> Option<u64> {
    std::fs::read_to_string(format!("{PLACE}/{name}")).ok()?.trim().parse().ok()
}

/// The connections the kernel remembers here, and the most it does: with that many, packets that would open another are
/// dropped.
pub fn table() -> Option<(u64, u64)> {
    Some((number("nf_conntrack_count")?, number("nf_conntrack_max")?))
}

/// Whether there was room for another connection.
#[derive(Debug, Default)]
pub struct Room {
    is_crowded: bool,
}

impl Room {
    /// Tells when the kernel has no room for another connection, once, and when it has again.
    pub fn look(&mut self) {
        if let Some(news) = table().and_then(|(count, most)| self.news(count, most)) {
            tracing::warn!("{news}");
        }
    }

    /// What is new with so many connections, where so many are the most.
    fn news(&mut self, count: u64, most: u64) -> Option<String> {
        if !self.is_crowded && count >= most {
            self.is_crowded = true;
            Some(format!("{count} connections are all that the kernel remembers here: no other is let through"))
        } else if self.is_crowded && count < most - most / 10 {
            self.is_crowded = false;
            Some(format!("there is room for connections again: {count} of {most}"))
        } else {
            None
        }
    }
}

/// `KubeProxyConfiguration.conntrack`; zero leaves a setting alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conntrack {
    /// Connections remembered, for each core.
    pub max_per_core: u32,
    /// And at least.
    pub min: u32,
    pub tcp_established: Duration,
    pub tcp_close_wait: Duration,
    pub tcp_be_liberal: bool,
    pub udp: Duration,
    pub udp_stream: Duration,
}

impl Default for Conntrack {
    fn default() -> Conntrack {
        Conntrack {
            max_per_core: 32_768,
            min: 131_072,
            tcp_established: Duration::from_secs(86_400),
            tcp_close_wait: Duration::from_secs(3600),
            tcp_be_liberal: false,
            udp: Duration::ZERO,
            udp_stream: Duration::ZERO,
        }
    }
}

impl Conntrack {
    /// Files below [`PLACE`] and what is to be in them; the first only ever grows.
    fn values(&self, cores: u32) -> Vec<(&'static str, u64)> {
        let size = if self.max_per_core == 0 { 0 } else { self.max_per_core.saturating_mul(cores).max(self.min) };
        let all = [
            ("nf_conntrack_max", u64::from(size)),
            ("nf_conntrack_tcp_timeout_established", self.tcp_established.as_secs()),
            ("nf_conntrack_tcp_timeout_close_wait", self.tcp_close_wait.as_secs()),
            ("nf_conntrack_tcp_be_liberal", u64::from(self.tcp_be_liberal)),
            ("nf_conntrack_udp_timeout", self.udp.as_secs()),
            ("nf_conntrack_udp_timeout_stream", self.udp_stream.as_secs()),
        ];
        all.into_iter().filter(|(_, value)| *value > 0).collect()
    }

    /// Sets them in this process's network namespace.
    pub fn apply(&self) {
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32);
        for (name, value) in self.values(cores) {
            let (path, now) = (format!("{PLACE}/{name}"), number(name));
            if now == Some(value) || (name == "nf_conntrack_max" && now >= Some(value)) {
                continue;
            }
            match std::fs::write(&path, value.to_string()) {
                // What nobody asked for may be as it is.
                Err(error) if *self == Conntrack::default() => {
                    tracing::debug!("cannot set {path} to {value}: {error}");
                }
                Err(error) => tracing::warn!("cannot set {path} to {value}: {error}"),
                Ok(()) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A full table is told of once, and that there is room again only when there is some.
    #[test]
    fn a_full_table_is_news_once() {
        let mut room = Room::default();
        let said = [99, 100, 101, 100, 95, 89, 50, 100].map(|count| room.news(count, 100).is_some());
        assert_eq!(said, [false, true, false, false, false, true, false, true]);
    }
}
