//! What is to be written, and writing it: by nft, or to the kernel directly.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::conntrack::Netfilter;
use crate::elements::Change;
use crate::listing::Listing;
use crate::nft::{self, Transaction};
use crate::program::{Delta, Ruleset};
use crate::{Family, TABLE};

/// The longest a run of nft may take; the whole table of 10,000 Services takes a second or two.
const NFT_TIMEOUT: Duration = Duration::from_secs(60);

pub fn tables_absent(netfilter: &mut Netfilter, families: &[Family]) -> bool {
    families.iter().all(|family| netfilter.has_table(*family, TABLE).is_ok_and(|there| !there))
}

/// What is to be written.
pub enum Update {
    Text(Transaction),
    /// A table where there was none: without elements, then those, of which there are too many to have them all
    /// at once.
    First(Transaction),
    /// Elements only, for the kernel itself; and as text, in case that cannot be.
    Elements(Vec<(Family, Change)>, Transaction),
}

impl Update {
    pub fn of(deltas: &[Delta], tables: &[Ruleset]) -> Update {
        let mut text = Transaction::default();
        let mut elements = Some(Vec::new());
        for (delta, table) in deltas.iter().zip(tables) {
            text.append(nft::changes(delta, table));
            match (&mut elements, nft::element_changes(delta, table)) {
                (Some(all), Some(some)) => all.extend(some.into_iter().map(|change| (table.family, change))),
                _ => elements = None,
            }
        }
        match elements {
            Some(elements) => Update::Elements(elements, text),
            None => Update::Text(text),
        }
    }

    /// By the shortest way; how many commits that took.
    pub async fn write(&self, netfilter: &mut Netfilter, tables: &[Ruleset]) -> Result<u32> {
        match self {
            Update::Text(transaction) => apply(transaction).await?,
            Update::First(skeleton) => {
                apply(skeleton).await?;
                let mut commits = 1;
                for table in tables {
                    let filled = netfilter.fill(table.family, nft::direct(table));
                    commits += filled.context("the kernel refused elements")?;
                }
                return Ok(commits);
            }
            Update::Elements(changes, instead) => match netfilter.change_elements(changes) {
                Ok(true) => {}
                Ok(false) => apply(instead).await?,
                Err(error) => return Err(error).context("the kernel refused the change"),
            },
        }
        Ok(1)
    }

    pub fn is_empty(&self) -> bool {
        match self {
            Update::Text(text) | Update::First(text) => text.is_empty(),
            Update::Elements(elements, _) => elements.is_empty(),
        }
    }
}

/// The table as nft shows it; `None` when there is none.
pub async fn listing(family: Family) -> Option<Listing> {
    let output = Command::new("nft").args(["-j", "list", "table", family.nft(), TABLE]).kill_on_drop(true).output();
    let output = tokio::time::timeout(NFT_TIMEOUT, output).await.ok()?.ok()?;
    output.status.success().then(|| serde_json::from_slice(&output.stdout).ok())?
}

/// One commit.
pub async fn apply(transaction: &Transaction) -> Result<()> {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("cannot run nft: install the package nftables")?;
    let mut stdin = child.stdin.take().context("nft has no input")?;
    let text = transaction.text.clone();
    let writing = tokio::spawn(async move { stdin.write_all(text.as_bytes()).await });
    let output = tokio::time::timeout(NFT_TIMEOUT, child.wait_with_output()).await.context("nft did not finish")??;
    // A broken pipe means that nft gave up; its own words say why.
    let _ = writing.await;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!(
            "nft refused the transaction ({}): {}",
            output.status,
            said.lines().take(6).collect::<Vec<_>>().join(" / ")
        );
    }
    Ok(())
}
