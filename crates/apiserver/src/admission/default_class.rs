//! Which class an object gets that names none, and DefaultIngressClass.

use async_trait::async_trait;
use meta::{Status, Value};

use super::{Attributes, Plugin, Write};
use crate::server::ApiServer;

pub struct DefaultIngressClass;

const GROUP: &str = "networking.k8s.io";
const DEFAULT: &str = "ingressclass.kubernetes.io/is-default-class";
/// How an Ingress named its class before there were classes.
const ANNOTATED: &str = "kubernetes.io/ingress.class";

/// The name of the class that has one of these annotations: of several the newest, of one moment's the first by name.
pub fn default_class(
    server: &ApiServer,
    group: &str,
    plural: &str,
    annotations: &[&str],
) -> Result<Option<Value>, Status> {
    let mut best: Option<Value> = None;
    for class in server.lookup_all(group, plural, "") {
        let class = class.value().map_err(Status::internal)?;
        let is_default = annotations.iter().any(|key| class["metadata"]["annotations"][*key] == "true");
        let made = |class: &Value| class["metadata"]["creationTimestamp"].as_str().unwrap_or_default().to_string();
        if is_default && best.as_ref().is_none_or(|b| made(&class) > made(b)) {
            best = Some(class);
        }
    }
    Ok(best.map(|class| class["metadata"]["name"].clone()))
}

#[async_trait]
impl Plugin for DefaultIngressClass {
    fn concerns(&self, _server: &ApiServer, a: &Attributes<'_>) -> bool {
        a.creates(GROUP, "ingresses")
    }

    async fn mutate(&self, write: &Write<'_>, ingress: &mut Value) -> Result<(), Status> {
        let Write { server, .. } = *write;
        let chosen =
            !ingress["spec"]["ingressClassName"].is_null() || !ingress["metadata"]["annotations"][ANNOTATED].is_null();
        if chosen || !ingress["spec"].is_object() {
            return Ok(());
        }
        if let Some(class) = default_class(server, GROUP, "ingressclasses", &[DEFAULT])? {
            ingress["spec"]["ingressClassName"] = class;
        }
        Ok(())
    }
}
