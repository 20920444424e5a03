//! What pods get from a node, as data: scenarios like the API's, which wait for containers and read what they print.
//!
//! They run on a cluster of this file's house, or on the one whose kubeconfig `NAUPLIUS_TEST_KUBECONFIG` names, with an
//! image that holds busybox's commands and is there already: `NAUPLIUS_TEST_IMAGE`.

use std::path::Path;

use anyhow::{Result, ensure};
use futures::StreamExt;

use crate::api::{self, http, scenario, server};

const SCENARIOS: &str = include_str!("pods.yaml");
/// Scenarios at once: most of them wait most of the time.
const AT_ONCE: usize = 6;

/// Runs them all; one failure hides no other.
pub async fn all(kubeconfig: &Path, image: &str) -> Result<()> {
    let server = &http::Server::from_kubeconfig(kubeconfig)?;
    let minor = scenario::minor_version(server).await?;
    let scenarios = api::parse("pods", SCENARIOS)?;
    let run = |scenario: scenario::Scenario| async move {
        match scenario.run(server, minor, &[("image", image)], None).await {
            Ok(true) => println!("pods: {}: passed", scenario.name),
            Ok(false) => println!("pods: {}: skipped, it is about a newer version than 1.{minor}", scenario.name),
            Err(error) => return Some(format!("{error:#}")),
        }
        None
    };
    let failed: Vec<String> = futures::stream::iter(scenarios)
        .map(run)
        .buffer_unordered(AT_ONCE)
        .filter_map(std::future::ready)
        .collect()
        .await;
    ensure!(failed.is_empty(), "{} failed:\n\n{}", failed.len(), failed.join("\n\n"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn elsewhere() -> Result<()> {
    match (server::elsewhere()?, std::env::var("NAUPLIUS_TEST_IMAGE")) {
        (Some(kubeconfig), Ok(image)) => all(&kubeconfig, &image).await,
        _ => {
            println!("skipped: no other cluster and image are named");
            Ok(())
        }
    }
}
