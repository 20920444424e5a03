//! temporary
pub mod dns { #[derive(Default)] pub struct Config{pub listen: Vec<std::net::SocketAddr>, pub domain: String} pub async fn run(_:Config,_:client::Client,c:tokio_util::sync::CancellationToken)->anyhow::Result<()>{c.cancelled().await;Ok(())} }
pub mod scheduler { #[derive(Default)] pub struct Options; pub async fn run(_:client::Client,_:std::sync::Arc<client::Informers>,_:Options,c:tokio_util::sync::CancellationToken)->Result<(),std::io::Error>{c.cancelled().await;Ok(())} }
