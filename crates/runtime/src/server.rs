//! Serving: the unix socket, and the client side of importing an image.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use futures::StreamExt;
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::Config;
use crate::authority::Tolerant;
use crate::engine::Engine;
use crate::image_service::ImageServer;
use crate::runtime_service::RuntimeServer;
use crate::transfer::ImportChunk;
use crate::transfer::image_transfer_client::ImageTransferClient;
use crate::transfer::image_transfer_server::ImageTransferServer;
use cri::v1::image_service_server::ImageServiceServer;
use cri::v1::runtime_service_server::RuntimeServiceServer;

pub use crate::transfer::ImportedImage;

/// Largest message, in bytes: as the kubelet's own limit.
const MAX_MESSAGE: usize = 16 << 20;
/// Bytes of one chunk of an archive on its way in.
const IMPORT_CHUNK: usize = 1 << 20;
/// Chunks that wait to be sent.
const IMPORT_BACKLOG: usize = 4;

/// Serves CRI until cancelled. `ready` is told when calls are taken. Containers go on running afterwards.
pub async fn serve(config: Config, cancel: CancellationToken, ready: oneshot::Sender<()>) -> Result<()> {
    check(&config)?;
    let (socket, streaming) = (config.socket.clone(), config.streaming_address);
    if let Some(dir) = socket.parent() {
        fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    }
    fs::create_dir_all(&config.root).with_context(|| format!("creating {}", config.root.display()))?;
    let _lock = lock(&config.root)?;
    let engine = Engine::open(config).await?;
    let tcp = TcpListener::bind(streaming).await.with_context(|| format!("listening on {streaming}"))?;
    engine.tokens.set_address(tcp.local_addr()?);
    let streams = tokio::spawn(crate::streaming::server::serve(tcp, engine.clone(), cancel.clone()));
    match fs::remove_file(&socket) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(e).with_context(|| format!("removing {}", socket.display()));
        }
        _ => {}
    }
    let listener = UnixListener::bind(&socket).with_context(|| format!("listening on {}", socket.display()))?;
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o600))?;
    let images = ImageServer { engine: engine.clone() };
    let server = tonic::transport::Server::builder()
        .add_service(
            RuntimeServiceServer::new(RuntimeServer { engine: engine.clone() })
                .max_decoding_message_size(MAX_MESSAGE)
                .max_encoding_message_size(2 * MAX_MESSAGE),
        )
        .add_service(ImageServiceServer::new(images.clone()).max_decoding_message_size(MAX_MESSAGE))
        .add_service(ImageTransferServer::new(images).max_decoding_message_size(2 * IMPORT_CHUNK));
    // Nobody waiting is fine.
    let _ = ready.send(());
    tracing::info!(socket = %socket.display(), "the container engine serves");
    let incoming = tokio_stream::wrappers::UnixListenerStream::new(listener);
    let incoming = incoming.map(|stream| stream.map(Tolerant::new));
    // Open event streams would hold a graceful end for ever: the call ends with the cancellation.
    tokio::select! {
        served = server.serve_with_incoming(incoming) => served.context("serving CRI")?,
        () = cancel.cancelled() => {}
    }
    streams.abort();
    let _ = fs::remove_file(&socket);
    Ok(())
}

fn check(config: &Config) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("the container engine needs root; run it as root or with sudo");
    }
    for (name, path) in [("root", &config.root), ("state", &config.state), ("socket", &config.socket)] {
        if !path.is_absolute() {
            bail!("the {name} path \"{}\" must be absolute", path.display());
        }
        // Both separate what the kernel takes as options of an overlay.
        if path.to_string_lossy().contains([',', ':']) {
            bail!("the {name} path \"{}\" must not contain a comma or colon", path.display());
        }
    }
    if !config.streaming_address.ip().is_loopback() {
        bail!("the streaming address {} is not a loopback address", config.streaming_address);
    }
    Ok(())
}

/// One engine a root directory.
fn lock(root: &Path) -> Result<nix::fcntl::Flock<fs::File>> {
    let path = root.join("lock");
    let file = fs::File::create(&path).with_context(|| format!("creating {}", path.display()))?;
    nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock)
        .map_err(|(_, _)| anyhow::anyhow!("another container engine uses {}", root.display()))
}

/// A channel to an engine's socket.
pub async fn connect(socket: PathBuf) -> Result<tonic::transport::Channel> {
    let shown = socket.display().to_string();
    // The address is never used: the connector knows the way.
    tonic::transport::Endpoint::from_static("http://localhost")
        .connect_with_connector(tower_service(socket))
        .await
        .with_context(|| format!("no container engine answers at {shown}; is it running?"))
}

fn tower_service(
    socket: PathBuf,
) -> impl tower::Service<
    http::Uri,
    Response = hyper_util::rt::TokioIo<UnixStream>,
    Error = std::io::Error,
    Future = impl Future<Output = std::io::Result<hyper_util::rt::TokioIo<UnixStream>>> + Send,
> + Send
+ 'static {
    tower::service_fn(move |_: http::Uri| {
        let socket = socket.clone();
        async move { Ok(hyper_util::rt::TokioIo::new(UnixStream::connect(socket).await?)) }
    })
}

/// Sends an image archive (OCI or `docker save`, plain or compressed) to a running engine. `names` are given to it if
/// it holds exactly one image.
pub async fn image_import(socket: &Path, file: &Path, names: Vec<String>) -> Result<Vec<ImportedImage>> {
    use tokio::io::AsyncReadExt;
    let mut archive = tokio::fs::File::open(file).await.with_context(|| format!("opening {}", file.display()))?;
    let channel = connect(socket.to_path_buf()).await?;
    let (sender, receiver) = tokio::sync::mpsc::channel(IMPORT_BACKLOG);
    let reader = tokio::spawn(async move {
        let mut names = names;
        loop {
            let mut data = Vec::with_capacity(IMPORT_CHUNK);
            let n = (&mut archive).take(IMPORT_CHUNK as u64).read_to_end(&mut data).await?;
            if n == 0 && names.is_empty() {
                return Ok::<_, std::io::Error>(());
            }
            // The other side hung up: its own error says why.
            if sender.send(ImportChunk { data, names: std::mem::take(&mut names) }).await.is_err() {
                return Ok(());
            }
        }
    });
    let summary = ImageTransferClient::new(channel)
        .import(tokio_stream::wrappers::ReceiverStream::new(receiver))
        .await
        .map_err(|status| anyhow::anyhow!("importing {}: {}", file.display(), status.message()))?;
    reader.await?.with_context(|| format!("reading {}", file.display()))?;
    Ok(summary.into_inner().images)
}
