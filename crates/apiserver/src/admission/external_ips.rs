//! DenyServiceExternalIPs, off unless asked for: no Service gains an external address.

use async_trait::async_trait;
use meta::{Status, Value};

use super::{Attributes, Operation, Plugin, Write};
use crate::server::ApiServer;

pub struct DenyServiceExternalIps;

fn addresses(service: &Value) -> &[Value] {
    service["spec"]["externalIPs"].as_array().map_or(&[], Vec::as_slice)
}

#[async_trait]
impl Plugin for DenyServiceExternalIps {
    fn concerns(&self, _server: &ApiServer, a: &Attributes<'_>) -> bool {
        a.is("", "services") && matches!(a.operation, Operation::Create | Operation::Update)
    }

    async fn validate(&self, write: &Write<'_>, service: Option<&Value>) -> Result<(), Status> {
        let Write { a, old, .. } = *write;
        let Some(service) = service else { return Ok(()) };
        let had = old.map_or(&[][..], addresses);
        if addresses(service).iter().all(|address| had.contains(address)) {
            return Ok(());
        }
        let name = service["metadata"]["name"].as_str().unwrap_or_default();
        Err(a.forbid(name, "Use of external IPs is denied by admission control"))
    }
}
