//! The streaming server.
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use crate::engine::Engine;
pub async fn serve(_l: TcpListener, _e: Arc<Engine>, _c: CancellationToken) {}
