//! The store among others: served by etcd's API, moved to another store and compared with it.
//!
//! A store is named by its directory, which nobody may have open, or by the URLs of what serves etcd's API: a real etcd, or
//! `nauplius store serve`. Knows no keys and no kinds.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use store::copy::{Copy, Side};
use store::{embedded, etcd, serve};
use tokio_util::sync::CancellationToken;

use crate::cli::parse_listen;

/// What is done with a store that others, or other stores, are part of.
#[derive(clap::Subcommand)]
pub enum Action {
    /// Serve the embedded store by etcd's API, to upstream's API server, `etcdctl` and others.
    Serve(ServeOptions),
    /// Copy all keys from one store to another that holds none of them.
    Copy(CopyOptions),
    /// Check that two stores hold the same keys and values; both may be in use.
    Compare(PairOptions),
}

#[derive(clap::Args)]
pub struct ServeOptions {
    /// Where to serve.
    #[arg(long, default_value = "127.0.0.1:2379", value_parser = parse_listen)]
    listen: SocketAddr,
    /// The URLs clients are told to use; the listening address when absent.
    #[arg(long, value_delimiter = ',')]
    advertise_client_urls: Vec<String>,
    /// Serve HTTPS with this certificate.
    #[arg(long, requires = "key_file")]
    cert_file: Option<PathBuf>,
    #[arg(long, requires = "cert_file")]
    key_file: Option<PathBuf>,
    /// Serve only clients with a certificate of this authority.
    #[arg(long, requires = "cert_file")]
    trusted_ca_file: Option<PathBuf>,
    /// How often watches that ask for progress hear of it.
    #[arg(long, value_parser = super::seconds, default_value = "5s")]
    watch_progress_notify_interval: Duration,
    /// How long history is kept when no client compacts it.
    #[arg(long, value_parser = super::seconds, default_value = "3600s")]
    history_age: Duration,
    /// The most bytes of keys and values.
    #[arg(long, default_value_t = 8 << 30)]
    quota_backend_bytes: u64,
}

#[derive(clap::Args)]
pub struct PairOptions {
    /// A cluster's data directory, or URLs of etcd's API, separated by commas.
    first: String,
    /// Likewise.
    second: String,
    /// Only keys that start with this.
    #[arg(long, default_value = "")]
    prefix: String,
    #[command(flatten)]
    access: Access,
}

#[derive(clap::Args)]
pub struct CopyOptions {
    #[command(flatten)]
    pair: PairOptions,
    /// Keep applying the source's changes to the target until interrupted.
    #[arg(long)]
    follow: bool,
}

/// How to reach etcd by HTTPS.
#[derive(clap::Args)]
struct Access {
    #[arg(long)]
    cacert: Option<PathBuf>,
    #[arg(long)]
    cert: Option<PathBuf>,
    #[arg(long)]
    key: Option<PathBuf>,
}

fn read(file: Option<&Path>) -> Result<Option<Vec<u8>>> {
    file.map(|file| std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))).transpose()
}

async fn open(directory: PathBuf, options: embedded::Options) -> Result<Arc<embedded::Embedded>> {
    let name = directory.display().to_string();
    let opened = tokio::task::spawn_blocking(move || embedded::open(directory, options)).await?;
    Ok(Arc::new(opened.with_context(|| format!("store in {name}"))?))
}

impl Access {
    async fn side(&self, location: &str) -> Result<Side> {
        if !location.starts_with("http://") && !location.starts_with("https://") {
            let directory = Path::new(location).join("store");
            return Ok(Side::Embedded(open(directory, embedded::Options::default()).await?));
        }
        let options = etcd::Options {
            endpoints: location.split(',').map(str::to_owned).collect(),
            ca: read(self.cacert.as_deref())?,
            cert: read(self.cert.as_deref())?,
            key: read(self.key.as_deref())?,
            ..etcd::Options::default()
        };
        Ok(Side::Etcd(Arc::new(etcd::connect(options).await.with_context(|| format!("etcd at {location}"))?)))
    }
}

impl PairOptions {
    async fn open(&self) -> Result<(Side, Side)> {
        ensure!(self.first != self.second, "both stores are {}", self.first);
        Ok((self.access.side(&self.first).await?, self.access.side(&self.second).await?))
    }
}

/// Does it. `directory` is the store that is served.
pub async fn run(action: Action, directory: PathBuf, cancel: CancellationToken) -> Result<()> {
    match action {
        Action::Serve(options) => serve(options, directory, cancel).await,
        Action::Copy(options) => copy(options, cancel).await,
        Action::Compare(options) => compare(options).await,
    }
}

async fn serve(options: ServeOptions, directory: PathBuf, cancel: CancellationToken) -> Result<()> {
    let tls = match (&options.cert_file, &options.key_file) {
        (Some(cert), Some(key)) => Some(serve::Tls {
            cert: read(Some(cert))?.unwrap_or_default(),
            key: read(Some(key))?.unwrap_or_default(),
            client_ca: read(options.trusted_ca_file.as_deref())?,
        }),
        _ => None,
    };
    ensure!(
        tls.is_some() || options.listen.ip().is_loopback(),
        "{} can be reached from elsewhere: give --cert-file, --key-file and --trusted-ca-file",
        options.listen
    );
    let scheme = if tls.is_some() { "https" } else { "http" };
    let listener = super::listen(options.listen).await?;
    let address = listener.local_addr()?;
    let settings = embedded::Options {
        history_age: options.history_age,
        max_database_bytes: options.quota_backend_bytes,
        ..embedded::Options::default()
    };
    let store = open(directory, settings).await?;
    // `store status`, `snapshot` and `defrag` work beside it.
    let door = store::door::serve(&store)?;
    let url = format!("{scheme}://{address}");
    let client_urls =
        if options.advertise_client_urls.is_empty() { vec![url.clone()] } else { options.advertise_client_urls };
    let served = serve::Options { tls, client_urls, progress_interval: options.watch_progress_notify_interval };
    eprintln!("the store is served on {url}");
    serve::serve(store, listener, served, async move { cancel.cancelled().await }).await?;
    door.abort();
    Ok(())
}

async fn copy(options: CopyOptions, cancel: CancellationToken) -> Result<()> {
    let (from, to) = options.pair.open().await?;
    let mut copy = Copy::new(from, to, &options.pair.prefix);
    let work = async {
        let copied = copy.run().await?;
        eprintln!(
            "{} keys, {} bytes and {} leases copied, as of revision {}",
            copied.keys, copied.bytes, copied.leases, copied.revision
        );
        if options.follow {
            eprintln!("following; interrupt when nobody writes the source any more");
            copy.follow(copied.revision, |_| false).await?;
        }
        anyhow::Ok(())
    };
    tokio::select! {
        done = work => done,
        () = cancel.cancelled() => Ok(()),
    }
}

async fn compare(options: PairOptions) -> Result<()> {
    let (first, second) = options.open().await?;
    let found = store::copy::compare(&first, &second, &options.prefix).await?;
    for (key, what) in &found.examples {
        println!("{what}: {key}");
    }
    if !found.agrees() {
        bail!("{} keys differ, {} are the same", found.different, found.same);
    }
    println!("{} keys, the same in both", found.same);
    Ok(())
}
