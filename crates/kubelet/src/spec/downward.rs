//! The downward API: fields of the pod and amounts of its containers' resources, as text.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceFieldSelector};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::quantity;

/// What a pod's fields depend on besides the pod.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    pub pod_ips: Vec<String>,
    pub host_ips: Vec<IpAddr>,
    /// Stands in for limits that are not set.
    pub allocatable: BTreeMap<String, Quantity>,
}

/// `metadata.labels` as lines of `key="escaped value"`.
fn lines(map: Option<&BTreeMap<String, String>>) -> String {
    let lines: Vec<String> = map.into_iter().flatten().map(|(k, v)| format!("{k}={}", quoted(v))).collect();
    lines.join("\n")
}

/// A string in double quotes with Go's escapes.
fn quoted(text: &str) -> String {
    let mut out = String::from('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\u{b}' => out.push_str("\\v"),
            c if c.is_control() && (c as u32) < 0x100 => out.push_str(&format!("\\x{:02x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// The value of `fieldRef.fieldPath`.
pub fn field(pod: &Pod, path: &str, around: &Surroundings) -> Result<String, String> {
    let meta = &pod.metadata;
    let text = |t: &Option<String>| t.clone().unwrap_or_default();
    if let Some((map, key)) = path.strip_suffix("']").and_then(|p| p.split_once("['")) {
        let map = match map {
            "metadata.labels" => &meta.labels,
            "metadata.annotations" => &meta.annotations,
            _ => return Err(format!("fieldPath {path:?} does not support subscript")),
        };
        return Ok(map.as_ref().and_then(|m| m.get(key)).cloned().unwrap_or_default());
    }
    let spec = super::spec(pod);
    let joined = |ips: &[IpAddr]| ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    Ok(match path {
        "metadata.name" => text(&meta.name),
        "metadata.namespace" => text(&meta.namespace),
        "metadata.uid" => text(&meta.uid),
        "metadata.labels" => lines(meta.labels.as_ref()),
        "metadata.annotations" => lines(meta.annotations.as_ref()),
        "spec.nodeName" => text(&spec.node_name),
        "spec.serviceAccountName" => text(&spec.service_account_name),
        "status.hostIP" => around.host_ips.first().map(ToString::to_string).unwrap_or_default(),
        "status.hostIPs" => joined(&around.host_ips),
        "status.podIP" => around.pod_ips.first().cloned().unwrap_or_default(),
        "status.podIPs" => around.pod_ips.join(","),
        _ => return Err(format!("unsupported fieldPath: {path}")),
    })
}

/// The value of `resourceFieldRef`, divided and rounded up.
pub fn resource(
    container: &Container,
    selector: &ResourceFieldSelector,
    around: &Surroundings,
) -> Result<String, String> {
    let (list, name) = selector
        .resource
        .split_once('.')
        .ok_or_else(|| format!("unsupported container resource : {}", selector.resource))?;
    let resources = container.resources.as_ref();
    let amounts = match list {
        "limits" => resources.and_then(|r| r.limits.as_ref()),
        "requests" => resources.and_then(|r| r.requests.as_ref()),
        _ => return Err(format!("unsupported container resource : {}", selector.resource)),
    };
    let set = amounts
        .and_then(|l| l.get(name))
        .or_else(|| (list == "limits").then(|| around.allocatable.get(name)).flatten());
    let milli = set.map_or(0, |q| i128::from(quantity::milli(q)));
    let divisor = match selector.divisor.as_ref().map(quantity::milli) {
        None | Some(0) => 1000,
        Some(d) => i128::from(d),
    };
    Ok((milli / divisor + i128::from(milli % divisor != 0)).to_string())
}

/// The container a `resourceFieldRef` of a volume names.
pub fn named_container<'a>(pod: &'a Pod, selector: &ResourceFieldSelector) -> Result<&'a Container, String> {
    let name = selector.container_name.as_deref().unwrap_or_default();
    super::all_containers(pod)
        .find(|(_, c)| c.name == name)
        .map(|(_, c)| c)
        .ok_or_else(|| format!("container {name} not found"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn fields_and_resources() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "labels": {"b": "2", "a": "x\"y"}, "annotations": {"k/k": "v"}},
            "spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": "1500m"}, "requests": {"memory": "64Mi"}}}]}
        }))
        .unwrap();
        let around =
            Surroundings { allocatable: [("memory".into(), Quantity("1Gi".into()))].into(), ..Default::default() };
        for (path, expect) in [
            ("metadata.name", "p"),
            ("metadata.labels['b']", "2"),
            ("metadata.annotations['k/k']", "v"),
            ("metadata.labels", "a=\"x\\\"y\"\nb=\"2\""),
        ] {
            assert_eq!(field(&pod, path, &around).unwrap(), expect);
        }
        assert!(field(&pod, "spec.nothing", &around).is_err());
        let container = &super::super::spec(&pod).containers[0];
        for (name, divisor, expect) in [
            ("limits.cpu", "0", "2"),
            ("limits.cpu", "1m", "1500"),
            ("requests.memory", "1Mi", "64"),
            ("limits.memory", "1Mi", "1024"),
            ("requests.cpu", "1m", "0"),
        ] {
            let selector = ResourceFieldSelector {
                resource: name.into(),
                divisor: Some(Quantity(divisor.into())),
                ..Default::default()
            };
            assert_eq!(resource(container, &selector, &around).unwrap(), expect, "{name}");
        }
    }
}
