//! AlwaysPullImages, off unless asked for: every image is looked up with the pod's own credentials, whoever pulled it before.

use async_trait::async_trait;
use meta::{Status, Value};

use super::{Attributes, Operation, Plugin, Write};
use crate::server::ApiServer;

pub struct AlwaysPullImages;

/// Where a pod's containers are.
const LISTS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];

fn images(pod: &Value) -> impl Iterator<Item = (&'static str, usize, &Value)> {
    LISTS.into_iter().flat_map(|list| {
        pod["spec"][list].as_array().into_iter().flatten().enumerate().map(move |(at, container)| (list, at, container))
    })
}

/// Whether there is an image that was not there.
fn has_new(pod: &Value, old: Option<&Value>) -> bool {
    let had = |image: &Value| old.is_some_and(|old| images(old).any(|(.., container)| container["image"] == *image));
    images(pod).any(|(.., container)| !had(&container["image"]))
}

#[async_trait]
impl Plugin for AlwaysPullImages {
    fn concerns(&self, _server: &ApiServer, a: &Attributes<'_>) -> bool {
        a.target.group().is_empty()
            && a.target.plural() == "pods"
            && matches!(&*a.target.request.subresource, "" | "ephemeralcontainers")
            && matches!(a.operation, Operation::Create | Operation::Update)
    }

    async fn mutate(&self, write: &Write<'_>, pod: &mut Value) -> Result<(), Status> {
        if !has_new(pod, write.old) {
            return Ok(());
        }
        for list in LISTS {
            for container in pod["spec"][list].as_array_mut().into_iter().flatten() {
                container["imagePullPolicy"] = "Always".into();
            }
        }
        Ok(())
    }

    async fn validate(&self, write: &Write<'_>, pod: Option<&Value>) -> Result<(), Status> {
        let Write { a, old, .. } = *write;
        let Some(pod) = pod.filter(|pod| has_new(pod, old)) else { return Ok(()) };
        match images(pod).find(|(.., container)| container["imagePullPolicy"] != "Always") {
            None => Ok(()),
            Some((list, at, container)) => {
                let path = meta::FieldPath::new("spec").child(list).index(at).child("imagePullPolicy");
                let said = container["imagePullPolicy"].as_str().unwrap_or_default();
                let name = pod["metadata"]["name"].as_str().unwrap_or_default();
                Err(a.forbid(name, meta::FieldError::not_supported(&path, said, &["Always"])))
            }
        }
    }
}
