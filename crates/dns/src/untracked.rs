//! Questions to this node's own server, and its answers, past the kernel's connection tracking.
//!
//! Nothing about them is ever rewritten, so nothing about them needs to be remembered; but every question comes from a port of its
//! own, and a node whose pods ask much would fill the table of connections with them, after which no connection of anybody is
//! let through. Elsewhere a node's DNS cache has the same rules.
//!
//! One table of nftables for all addresses, [`TABLE`], in the network namespace of this process; it goes with [`Untracked`].
//! Without `nft` questions are answered all the same, and remembered.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// The table's name, in the family of both.
const TABLE: &str = "nauplius-dns";

/// The rules, in place until this goes.
#[derive(Debug)]
pub struct Untracked(());

/// Puts the rules for these addresses in place of any others.
pub async fn untracked(addresses: &[SocketAddr]) -> Result<Option<Untracked>> {
    let mut child = nft().stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().context("cannot run nft")?;
    let mut stdin = child.stdin.take().context("nft has no input")?;
    // A broken pipe means that nft gave up; its own words say why.
    let _ = stdin.write_all(rules(addresses).as_bytes()).await;
    drop(stdin);
    let output = child.wait_with_output().await?;
    ensure!(output.status.success(), "nft: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(Some(Untracked(())))
}

impl Drop for Untracked {
    fn drop(&mut self) {
        let removed = std::process::Command::new("nft").args(["delete", "table", "inet", TABLE]).output();
        if !removed.as_ref().is_ok_and(|output| output.status.success()) {
            tracing::warn!("cannot take away the table inet {TABLE}: {removed:?}");
        }
    }
}

fn nft() -> Command {
    let mut command = Command::new("nft");
    command.args(["-f", "-"]).stdout(Stdio::null()).kill_on_drop(true);
    command
}

/// The table as text for `nft -f -`: questions as they come in and as this node's own go out, and answers.
fn rules(addresses: &[SocketAddr]) -> String {
    let mut out = format!("add table inet {TABLE}\ndelete table inet {TABLE}\nadd table inet {TABLE}\n");
    for chain in ["prerouting", "output"] {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "add chain inet {TABLE} {chain} {{ type filter hook {chain} priority raw ; }}");
    }
    for address in addresses.iter().filter(|address| !address.ip().is_loopback()) {
        let (family, ip, port) = (if address.is_ipv4() { "ip" } else { "ip6" }, address.ip(), address.port());
        for (chain, side) in [("prerouting", "d"), ("output", "d"), ("output", "s")] {
            let _ = writeln!(
                out,
                "add rule inet {TABLE} {chain} {family} {side}addr {ip} meta l4proto {{ tcp, udp }} th {side}port {port} notrack"
            );
        }
    }
    out
}
