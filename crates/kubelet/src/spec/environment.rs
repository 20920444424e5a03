//! A container's environment: service links, envFrom, env with references, and `$(NAME)` expansion.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Container, Pod, Secret, Service};

use super::downward::{self, Surroundings};
use super::expansion::expand;

/// The ConfigMaps and Secrets a container's environment refers to, read beforehand; absent ones are not in the maps.
#[derive(Clone, Debug, Default)]
pub struct Referenced {
    pub config_maps: HashMap<String, Arc<ConfigMap>>,
    pub secrets: HashMap<String, Arc<Secret>>,
    /// File values (`fileKeyRef`) by volume name: the directory of the volume.
    pub volume_dirs: HashMap<String, std::path::PathBuf>,
}

/// Names of the ConfigMaps and Secrets a container's environment needs.
pub fn references(container: &Container) -> (Vec<String>, Vec<String>) {
    let (mut config_maps, mut secrets) = (Vec::new(), Vec::new());
    for source in container.env_from.iter().flatten() {
        config_maps.extend(source.config_map_ref.as_ref().map(|r| r.name.clone()));
        secrets.extend(source.secret_ref.as_ref().map(|r| r.name.clone()));
    }
    for source in container.env.iter().flatten().filter_map(|e| e.value_from.as_ref()) {
        config_maps.extend(source.config_map_key_ref.as_ref().map(|r| r.name.clone()));
        secrets.extend(source.secret_key_ref.as_ref().map(|r| r.name.clone()));
    }
    for list in [&mut config_maps, &mut secrets] {
        list.sort();
        list.dedup();
    }
    (config_maps, secrets)
}

/// Docker-style variables of the services a pod sees.
pub fn service_links<'a>(services: impl Iterator<Item = &'a Service>) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    for service in services {
        let Some(spec) = service.spec.as_ref() else { continue };
        let (Some(ip), Some(ports)) = (spec.cluster_ip.as_deref(), spec.ports.as_deref()) else { continue };
        let Some(first) = ports.first().filter(|_| !ip.is_empty() && ip != "None") else { continue };
        let variable = |text: &str| text.to_uppercase().replace('-', "_");
        let name = variable(service.metadata.name.as_deref().unwrap_or_default());
        let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_string() };
        out.insert(format!("{name}_SERVICE_HOST"), ip.to_string());
        out.insert(format!("{name}_SERVICE_PORT"), first.port.to_string());
        let protocol = |p: Option<&str>| p.filter(|p| !p.is_empty()).unwrap_or("TCP").to_string();
        for (at, port) in ports.iter().enumerate() {
            if let Some(port_name) = port.name.as_deref().filter(|n| !n.is_empty()) {
                out.insert(format!("{name}_SERVICE_PORT_{}", variable(port_name)), port.port.to_string());
            }
            let proto = protocol(port.protocol.as_deref());
            let url = format!("{}://{host}:{}", proto.to_lowercase(), port.port);
            if at == 0 {
                out.insert(format!("{name}_PORT"), url.clone());
            }
            let prefix = format!("{name}_PORT_{}_{}", port.port, proto.to_uppercase());
            out.insert(prefix.clone(), url);
            out.insert(format!("{prefix}_PROTO"), proto.to_lowercase());
            out.insert(format!("{prefix}_PORT"), port.port.to_string());
            out.insert(format!("{prefix}_ADDR"), ip.to_string());
        }
    }
    out
}

/// Whether a name can be an environment variable's: printable ASCII without `=`.
fn valid_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| (0x20..0x7f).contains(&b) && b != b'=')
}

/// A `KEY=value` file's value for one key; quotes around the value are dropped.
fn file_value(text: &str, key: &str) -> Option<String> {
    text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')).find_map(|line| {
        let (name, value) = line.split_once('=')?;
        let value = value.trim();
        let bare = ['"', '\''].iter().find_map(|q| value.strip_prefix(*q)?.strip_suffix(*q)).unwrap_or(value);
        (name.trim() == key).then(|| bare.to_string())
    })
}

/// The environment, in order, or why it cannot be made. `skipped` collects keys of envFrom that cannot be variables.
pub fn of(
    pod: &Pod,
    container: &Container,
    links: &BTreeMap<String, String>,
    referenced: &Referenced,
    around: &Surroundings,
    skipped: &mut Vec<String>,
) -> Result<Vec<(String, String)>, String> {
    let namespace = super::namespace(pod);
    let mut order: Vec<String> = Vec::new();
    let mut values: HashMap<String, String> = HashMap::new();
    let mut set = |name: String, value: String, values: &mut HashMap<String, String>| {
        if values.insert(name.clone(), value).is_none() {
            order.push(name);
        }
    };
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        let mut add = |key: &str, value: String| {
            let name = format!("{prefix}{key}");
            if valid_name(&name) {
                set(name, value, &mut values);
            } else {
                skipped.push(name);
            }
        };
        if let Some(r) = &source.config_map_ref {
            match referenced.config_maps.get(&r.name) {
                Some(map) => map.data.iter().flatten().for_each(|(k, v)| add(k, v.clone())),
                None if r.optional == Some(true) => {}
                None => return Err(format!("configmap \"{}\" not found", r.name)),
            }
        }
        if let Some(r) = &source.secret_ref {
            match referenced.secrets.get(&r.name) {
                Some(secret) => {
                    secret.data.iter().flatten().for_each(|(k, v)| add(k, String::from_utf8_lossy(&v.0).into_owned()));
                }
                None if r.optional == Some(true) => {}
                None => return Err(format!("secret \"{}\" not found", r.name)),
            }
        }
    }
    for variable in container.env.iter().flatten() {
        let value = match (&variable.value, &variable.value_from) {
            (Some(text), _) if !text.is_empty() => {
                Some(expand(text, |name| values.get(name).or_else(|| links.get(name)).cloned()))
            }
            (_, None) => Some(String::new()),
            (_, Some(from)) => {
                if let Some(r) = &from.field_ref {
                    Some(downward::field(pod, &r.field_path, around)?)
                } else if let Some(r) = &from.resource_field_ref {
                    match r.container_name.as_deref().filter(|n| !n.is_empty()) {
                        Some(_) => Some(downward::resource(downward::named_container(pod, r)?, r, around)?),
                        None => Some(downward::resource(container, r, around)?),
                    }
                } else if let Some(r) = &from.config_map_key_ref {
                    let optional = r.optional == Some(true);
                    match referenced.config_maps.get(&r.name) {
                        Some(map) => match map.data.as_ref().and_then(|d| d.get(&r.key)) {
                            Some(value) => Some(value.clone()),
                            None if optional => None,
                            None => {
                                return Err(format!("couldn't find key {} in ConfigMap {namespace}/{}", r.key, r.name));
                            }
                        },
                        None if optional => None,
                        None => return Err(format!("configmap \"{}\" not found", r.name)),
                    }
                } else if let Some(r) = &from.secret_key_ref {
                    let optional = r.optional == Some(true);
                    match referenced.secrets.get(&r.name) {
                        Some(secret) => match secret.data.as_ref().and_then(|d| d.get(&r.key)) {
                            Some(value) => Some(String::from_utf8_lossy(&value.0).into_owned()),
                            None if optional => None,
                            None => {
                                return Err(format!("couldn't find key {} in Secret {namespace}/{}", r.key, r.name));
                            }
                        },
                        None if optional => None,
                        None => return Err(format!("secret \"{}\" not found", r.name)),
                    }
                } else if let Some(r) = &from.file_key_ref {
                    let text = referenced.volume_dirs.get(&r.volume_name).and_then(|dir| {
                        // The API server refuses `..` in paths; a plain join cannot leave the volume.
                        std::fs::read_to_string(dir.join(r.path.trim_start_matches('/'))).ok()
                    });
                    match text.as_deref().and_then(|t| file_value(t, &r.key)) {
                        Some(value) => Some(value),
                        None if r.optional == Some(true) => None,
                        None => {
                            return Err(format!(
                                "environment variable key \"{}\" not found in file \"{}\"",
                                r.key, r.path
                            ));
                        }
                    }
                } else {
                    Some(String::new())
                }
            }
        };
        if let Some(value) = value {
            set(variable.name.clone(), value, &mut values);
        }
    }
    let mut out: Vec<(String, String)> = order
        .into_iter()
        .map(|name| {
            let value = values.get(&name).cloned().unwrap_or_default();
            (name, value)
        })
        .collect();
    out.extend(links.iter().filter(|(k, _)| !values.contains_key(*k)).map(|(k, v)| (k.clone(), v.clone())));
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn environments() {
        let pod: Pod =
            serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n"}, "spec": {"containers": []}}))
                .unwrap();
        let map: ConfigMap =
            serde_json::from_value(json!({"metadata": {"name": "m"}, "data": {"a": "1", "b": "2"}})).unwrap();
        let referenced = Referenced { config_maps: [("m".to_string(), Arc::new(map))].into(), ..Default::default() };
        let links = [("WEB_SERVICE_HOST".to_string(), "10.0.0.1".to_string())].into();
        let run = |container: serde_json::Value| {
            let container: Container = serde_json::from_value(container).unwrap();
            of(&pod, &container, &links, &referenced, &Surroundings::default(), &mut Vec::new())
        };
        let got = run(json!({"name": "c", "envFrom": [{"prefix": "P_", "configMapRef": {"name": "m"}}], "env": [
            {"name": "X", "value": "$(P_a)-$(WEB_SERVICE_HOST)-$(NO)"},
            {"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "O", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "zz", "optional": true}}},
            {"name": "P_b", "value": "own"}]}))
        .unwrap();
        let expect =
            [("P_a", "1"), ("P_b", "own"), ("X", "1-10.0.0.1-$(NO)"), ("N", "p"), ("WEB_SERVICE_HOST", "10.0.0.1")];
        assert_eq!(got, expect.map(|(k, v)| (k.to_string(), v.to_string())));
        for (container, error) in [
            (json!({"name": "c", "envFrom": [{"configMapRef": {"name": "x"}}]}), "configmap \"x\" not found"),
            (
                json!({"name": "c", "env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "z"}}}]}),
                "couldn't find key z in ConfigMap n/m",
            ),
        ] {
            assert_eq!(run(container).unwrap_err(), error);
        }
    }

    #[test]
    fn links() {
        let service: Service = serde_json::from_value(json!({"metadata": {"name": "my-web"},
            "spec": {"clusterIP": "10.0.0.9", "ports": [{"name": "http-x", "port": 80}, {"port": 53, "protocol": "UDP"}]}}))
        .unwrap();
        let got = service_links([service].iter());
        for (name, value) in [
            ("MY_WEB_SERVICE_HOST", "10.0.0.9"),
            ("MY_WEB_SERVICE_PORT", "80"),
            ("MY_WEB_SERVICE_PORT_HTTP_X", "80"),
            ("MY_WEB_PORT", "tcp://10.0.0.9:80"),
            ("MY_WEB_PORT_53_UDP_ADDR", "10.0.0.9"),
        ] {
            assert_eq!(got[name], value);
        }
    }
}
