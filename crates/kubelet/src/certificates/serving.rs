//! The serving certificate of the node API when the cluster's signer gives it: handshakes wait for nobody, they fail
//! until there is one; a new one is used from the next handshake on.

use std::sync::{Arc, PoisonError, RwLock};

use anyhow::Context as _;
use jiff::Timestamp;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::{Ask, Store};
use crate::agent::Context;

/// The pair in use.
#[derive(Debug, Default)]
pub struct Current(RwLock<Option<Arc<CertifiedKey>>>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Current {
    /// Takes over what a store holds.
    fn load(&self, store: &Store) -> anyhow::Result<()> {
        let pem = super::read(&store.current())?;
        let chain: Vec<_> = CertificateDer::pem_slice_iter(&pem).collect::<Result<_, _>>()?;
        let key = PrivateKeyDer::from_pem_slice(&pem).context("serving key")?;
        let pair = CertifiedKey::from_der(chain, key, &rustls::crypto::ring::default_provider())?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(pair));
        Ok(())
    }
}

/// Keeps the pair current until the agent stops.
pub async fn run(context: Arc<Context>, current: Arc<Current>) {
    let store = Store::server(context.config.root_dir.join("pki"));
    let ask = Ask {
        signer: "kubernetes.io/kubelet-serving",
        usages: &["digital signature", "server auth"],
        node_name: context.config.node_name.clone(),
        names: vec![context.config.hostname().into()],
        ips: context.host_ips.clone(),
    };
    loop {
        if store.valid(Timestamp::now()).is_some()
            && let Err(error) = current.load(&store)
        {
            tracing::error!("serving certificate not usable: {error:#}");
        }
        super::replace(&context.client, &store, &ask).await;
    }
}
