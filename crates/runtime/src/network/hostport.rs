//! Host ports and masquerading of the built-in network, as one nftables table of our own.
//!
//! The table is rewritten whole, in one transaction, from what is open; other tables are never touched. Without host
//! ports and masquerading no table exists and `nft` is not needed.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use ipnet::IpNet;

use cri::v1::{PortMapping, Protocol};

/// The table's name.
const TABLE: &str = "nauplius-hostports";

/// One forwarded port.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Forward {
    protocol: &'static str,
    host_ip: Option<IpAddr>,
    host_port: u16,
    pod: IpAddr,
    port: u16,
}

#[derive(Default)]
struct State {
    open: BTreeMap<String, Vec<Forward>>,
    /// Pods, and whom they show their own address.
    masquerade: Option<(Vec<IpNet>, Vec<IpNet>)>,
    written: bool,
}

/// All forwarded ports of the node.
pub struct HostPorts {
    bridge: String,
    /// Exists while the table does, so that a restarted engine knows.
    marker: PathBuf,
    state: Mutex<State>,
}

impl HostPorts {
    /// None yet; `marker` is a file that is there while the table is.
    pub fn new(bridge: &str, marker: PathBuf) -> HostPorts {
        let state = State { written: marker.exists(), ..State::default() };
        HostPorts { bridge: bridge.to_string(), marker, state: Mutex::new(state) }
    }

    /// Writes what is open, and nothing that an earlier life had.
    pub fn refresh(&self) -> Result<()> {
        self.write(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Lets the node reach host ports by its loopback address too. What this would open towards pods is closed again by
    /// the table: nothing that comes from the bridge may be for a loopback address.
    fn route_loopback(&self) {
        let path = format!("/proc/sys/net/ipv4/conf/{}/route_localnet", self.bridge);
        if let Err(error) = std::fs::write(&path, "1") {
            tracing::debug!(%error, path, "host ports will not answer on loopback");
        }
    }

    /// Hides pods behind the node towards everything but the given ranges; with none given, never.
    pub fn ensure_masquerade(&self, pods: &[IpNet], except: &[IpNet]) -> Result<()> {
        let wanted = (!except.is_empty()).then(|| (pods.to_vec(), except.to_vec()));
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.masquerade == wanted {
            return Ok(());
        }
        state.masquerade = wanted;
        self.write(&mut state)
    }

    /// Forwards a sandbox's host ports to its addresses, each in its own family.
    pub fn open(&self, sandbox: &str, pod: &[IpAddr], mappings: &[PortMapping]) -> Result<()> {
        let mut forwards = Vec::new();
        for m in mappings.iter().filter(|m| m.host_port > 0) {
            let port = |n: i32| u16::try_from(n).with_context(|| format!("{n} is not a port"));
            let host_ip: Option<IpAddr> = match m.host_ip.as_str() {
                "" => None,
                text => Some(text.parse().with_context(|| format!("host address \"{text}\""))?),
            };
            for pod in pod.iter().filter(|pod| host_ip.is_none_or(|host| host.is_ipv4() == pod.is_ipv4())) {
                forwards.push(Forward {
                    protocol: match m.protocol() {
                        Protocol::Tcp => "tcp",
                        Protocol::Udp => "udp",
                        Protocol::Sctp => "sctp",
                    },
                    host_ip: host_ip.filter(|ip| !ip.is_unspecified()),
                    host_port: port(m.host_port)?,
                    pod: *pod,
                    port: port(m.container_port)?,
                });
            }
        }
        if forwards.is_empty() {
            return Ok(());
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.open.insert(sandbox.to_string(), forwards);
        self.write(&mut state)
    }

    /// Stops forwarding for a sandbox; idempotent.
    pub fn close(&self, sandbox: &str) -> Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match state.open.remove(sandbox) {
            Some(_) => self.write(&mut state),
            None => Ok(()),
        }
    }

    fn write(&self, state: &mut State) -> Result<()> {
        let empty = state.open.is_empty() && state.masquerade.is_none();
        if empty && !state.written {
            return Ok(());
        }
        if !state.open.is_empty() && !state.written {
            self.route_loopback();
        }
        if !empty {
            std::fs::write(&self.marker, "").with_context(|| format!("writing {}", self.marker.display()))?;
        }
        apply(&program(state, &self.bridge))?;
        state.written = !empty;
        if !empty {
            return Ok(());
        }
        match std::fs::remove_file(&self.marker) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e).context("removing the host ports' marker"),
            _ => Ok(()),
        }
    }

    /// Removes the table.
    pub fn remove_all(&self) -> Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        *state = State { written: state.written, ..State::default() };
        self.write(&mut state)
    }
}

fn program(state: &State, bridge: &str) -> String {
    let mut text = format!("add table inet {TABLE}\ndelete table inet {TABLE}\n");
    if state.open.is_empty() && state.masquerade.is_none() {
        return text;
    }
    let mut dnat = String::new();
    let mut snat = String::new();
    for f in state.open.values().flatten() {
        let family = if f.pod.is_ipv4() { "ip" } else { "ip6" };
        let to = if f.pod.is_ipv4() { format!("{}:{}", f.pod, f.port) } else { format!("[{}]:{}", f.pod, f.port) };
        let address = match f.host_ip {
            Some(ip) => format!("{family} daddr {ip}"),
            None => "fib daddr type local".into(),
        };
        // Writing to a string cannot fail.
        let _ = writeln!(
            dnat,
            "    meta nfproto {} {address} {} dport {} dnat {family} to {to}",
            if f.pod.is_ipv4() { "ipv4" } else { "ipv6" },
            f.protocol,
            f.host_port
        );
        // A pod that reaches itself, or a node's loopback that reaches a pod, needs an address that can be answered.
        let _ = writeln!(
            snat,
            "    {family} daddr {} {} dport {} {family} saddr {{ {}, {} }} masquerade",
            f.pod,
            f.protocol,
            f.port,
            f.pod,
            if f.pod.is_ipv4() { "127.0.0.0/8" } else { "::1" }
        );
    }
    for (pods, except) in state.masquerade.iter().flat_map(|(all, except)| all.iter().map(move |pods| (pods, except))) {
        let family = if pods.addr().is_ipv4() { "ip" } else { "ip6" };
        let of_family = except.iter().filter(|net| net.addr().is_ipv4() == pods.addr().is_ipv4());
        let list: Vec<String> = of_family.map(IpNet::to_string).collect();
        let but = if list.is_empty() { String::new() } else { format!("{family} daddr != {{ {} }} ", list.join(", ")) };
        let _ = writeln!(snat, "    {family} saddr {pods} {but}masquerade");
    }
    let _ = write!(
        text,
        "table inet {TABLE} {{\n  chain prerouting {{\n    type nat hook prerouting priority -100;\n{dnat}  }}\n  \
         chain guard {{\n    type filter hook prerouting priority -300;\n    \
         iifname \"{bridge}\" ip daddr 127.0.0.0/8 drop\n  }}\n  \
         chain output {{\n    type nat hook output priority -100;\n{dnat}  }}\n  \
         chain postrouting {{\n    type nat hook postrouting priority 100;\n{snat}  }}\n}}\n"
    );
    text
}

fn apply(program: &str) -> Result<()> {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("running nft (package nftables)")?;
    child.stdin.take().context("nft without input")?.write_all(program.as_bytes())?;
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("nft refused the host port rules: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_replace_the_table_whole() {
        let mut state = State::default();
        assert!(!program(&state, "cni0").contains("chain"));
        let forward = Forward {
            protocol: "udp",
            host_ip: Some("127.0.0.1".parse().unwrap()),
            host_port: 8053,
            pod: "10.0.0.2".parse().unwrap(),
            port: 53,
        };
        state.open.insert("a".into(), vec![forward]);
        let text = program(&state, "cni0");
        assert!(text.starts_with("add table inet nauplius-hostports\ndelete table inet nauplius-hostports\n"));
        assert!(text.contains("ip daddr 127.0.0.1 udp dport 8053 dnat ip to 10.0.0.2:53"));
    }
}
