//! The API as its clients see it: scenarios, as data, over HTTPS.
//!
//! Each file of `scenarios/` is one test against a server in this process over the embedded store, or against the server
//! whose kubeconfig `NAUPLIUS_TEST_KUBECONFIG` names. One more test runs them all over a real etcd.

pub mod expect;
pub mod hooks;
pub mod http;
pub mod scenario;
pub mod server;

use anyhow::{Context, Result};
use serde_json::Value;

use scenario::Scenario;
use server::{Etcd, InProcess};

/// Any YAML, thus any JSON.
pub fn yaml(text: &[u8]) -> Result<Value> {
    Ok(meta::yaml::read(text).map_err(anyhow::Error::msg)?.0)
}

/// A file's scenarios.
pub fn parse(file: &str, text: &str) -> Result<Vec<Scenario>> {
    serde_json::from_value(yaml(text.as_bytes()).with_context(|| format!("scenarios/{file}.yaml"))?)
        .with_context(|| format!("scenarios/{file}.yaml"))
}

/// Runs files of scenarios against one server. All run, so that one failure hides no other.
async fn run(server: &http::Server, files: &[(&str, &str)]) -> Result<()> {
    let minor = scenario::minor_version(server).await?;
    let hooks = hooks::Hooks::start().await?;
    let mut failed = Vec::new();
    for (file, text) in files {
        for scenario in parse(file, text)? {
            match scenario.run(server, minor, &hooks.words(), Some(&hooks)).await {
                Ok(true) => println!("{file}: {}: passed", scenario.name),
                Ok(false) => println!("{file}: {}: skipped, it is about a newer version than 1.{minor}", scenario.name),
                Err(error) => failed.push(format!("{file}: {error:#}")),
            }
        }
    }
    anyhow::ensure!(failed.is_empty(), "{} failed:\n\n{}", failed.len(), failed.join("\n\n"));
    Ok(())
}

async fn over_embedded(file: &str, text: &str) -> Result<()> {
    if let Some(kubeconfig) = server::elsewhere()? {
        return run(&http::Server::from_kubeconfig(&kubeconfig)?, &[(file, text)]).await;
    }
    let server = InProcess::start(Default::default()).await?;
    run(&http::Server::from_kubeconfig(&server.kubeconfig)?, &[(file, text)]).await
}

macro_rules! scenarios {
    ($($file:ident),* $(,)?) => {
        const FILES: &[(&str, &str)] = &[$((stringify!($file), include_str!(concat!("../scenarios/", stringify!($file), ".yaml")))),*];
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $file() -> Result<()> {
                over_embedded(stringify!($file), include_str!(concat!("../scenarios/", stringify!($file), ".yaml"))).await
            }
        )*
    };
}

scenarios!(
    access,
    additions,
    apply,
    bad_input,
    conformance,
    controllers,
    crud,
    custom,
    delete,
    discovery,
    encodings,
    expressions,
    jobs,
    kinds,
    lists,
    namespaces,
    network,
    nodes_and_volumes,
    patches,
    refusals,
    subresources,
    tokens,
    validation,
    watch,
    webhooks
);

/// All of them over a real etcd, where one is installed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_etcd() -> Result<()> {
    if server::elsewhere()?.is_some() {
        println!("skipped: another server is tested");
        return Ok(());
    }
    let Some(etcd) = Etcd::start()? else {
        println!("skipped: no etcd is installed");
        return Ok(());
    };
    let server = InProcess::start(nauplius::roles::apiserver::StoreOptions {
        etcd_servers: vec![etcd.endpoint.clone()],
        ..Default::default()
    })
    .await?;
    run(&http::Server::from_kubeconfig(&server.kubeconfig)?, FILES).await
}

#[test]
fn every_file_is_run() {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let mut there: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    there.sort();
    assert_eq!(there, FILES.iter().map(|(file, _)| file.to_string()).collect::<Vec<_>>());
}
