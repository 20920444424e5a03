//! Port forwarding: pairs of channels (data and error), each a TCP connection to a port on a pod's loopback.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use super::channel::{Outgoing, Output};
use super::spdy::Stream;
use crate::engine::Engine;
use crate::network::namespace;

/// One read, in bytes.
const CHUNK: usize = 32 * 1024;
/// Most half-opened pairs of a connection.
const MAX_PENDING: usize = 256;
/// How long a connection's other half may take.
const PAIR_TIMEOUT: Duration = Duration::from_secs(30);
/// How long what remains may take to arrive once one direction has ended.
const LINGER: Duration = Duration::from_secs(60);

/// One direction pair of a forwarded connection.
pub struct Pair {
    /// From the client.
    pub input: mpsc::Receiver<Bytes>,
    /// To the client.
    pub data: Output,
    /// Complaints to the client.
    pub error: Output,
    /// The pod's port.
    pub port: u16,
}

/// Forwards one connection to its end.
pub async fn forward(engine: Arc<Engine>, sandbox: String, mut pair: Pair) {
    let (data, error, port) = (pair.data.clone(), pair.error.clone(), pair.port);
    if let Err(e) = run(&engine, &sandbox, &mut pair).await {
        let text = format!(
            "failed to execute portforward in network namespace for sandbox \"{sandbox}\": failed to connect to localhost:{port} inside namespace: {e:#}"
        );
        // A client that is gone does not ask any more.
        let _ = error.write(text.into()).await;
    }
    data.finish().await;
    error.finish().await;
}

async fn run(engine: &Engine, sandbox: &str, pair: &mut Pair) -> Result<()> {
    let record = engine.sandbox(sandbox).context("the sandbox is gone")?.record();
    let file = std::fs::File::open(format!("/proc/{}/ns/net", record.shim_pid)).context("the sandbox has ended")?;
    let stream = namespace::connect(OwnedFd::from(file), pair.port).await?;
    let (mut read, mut write) = stream.into_split();
    let data = pair.data.clone();
    let mut back = tokio::spawn(async move {
        let mut buffer = vec![0u8; CHUNK];
        while let Ok(n) = read.read(&mut buffer).await {
            if n == 0 || data.write(Bytes::copy_from_slice(&buffer[..n])).await.is_err() {
                break;
            }
        }
        data.finish().await;
    });
    loop {
        tokio::select! {
            piece = pair.input.recv() => match piece {
                Some(piece) => {
                    if write.write_all(&piece).await.is_err() {
                        break;
                    }
                }
                None => {
                    // Half closed: the answer may still be coming.
                    let _ = write.shutdown().await;
                    let _ = tokio::time::timeout(LINGER, &mut back).await;
                    break;
                }
            },
            _ = &mut back => return Ok(()),
        }
    }
    back.abort();
    Ok(())
}

/// Pairs the streams of a SPDY connection by their request id and forwards each pair.
pub async fn serve_spdy(
    engine: Arc<Engine>,
    sandbox: String,
    mut streams: mpsc::Receiver<Stream>,
    connection: mpsc::Sender<Outgoing>,
) {
    let mut waiting: HashMap<String, (Option<Stream>, Option<Stream>, tokio::time::Instant)> = HashMap::new();
    let mut running = tokio::task::JoinSet::new();
    while let Some(stream) = streams.recv().await {
        while running.try_join_next().is_some() {}
        let header = |name: &str| stream.headers.get(name).cloned().unwrap_or_default();
        let (kind, port) = (header("streamtype"), header("port"));
        // Clients from before request ids open one pair a port at a time.
        let request = if header("requestid").is_empty() { port.clone() } else { header("requestid") };
        waiting.retain(|_, (.., since)| since.elapsed() < PAIR_TIMEOUT);
        let Ok(port) = port.parse::<u16>() else {
            let _ = stream.output.write(format!("unable to parse \"{port}\" as a port").into()).await;
            stream.output.finish().await;
            continue;
        };
        if waiting.len() >= MAX_PENDING {
            stream.output.finish().await;
            continue;
        }
        let entry = waiting.entry(request.clone()).or_insert_with(|| (None, None, tokio::time::Instant::now()));
        match kind.as_str() {
            "data" => entry.0 = Some(stream),
            "error" => entry.1 = Some(stream),
            _ => {
                stream.output.finish().await;
                continue;
            }
        }
        if entry.0.is_some()
            && entry.1.is_some()
            && let Some((Some(data), Some(error), _)) = waiting.remove(&request)
        {
            let pair = Pair { input: data.input, data: data.output, error: error.output, port };
            running.spawn(forward(engine.clone(), sandbox.clone(), pair));
        }
    }
    // The client is gone; its connections go with the set.
    let _ = connection.send(Outgoing::Close).await;
}
