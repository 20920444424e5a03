//! The sandbox's configuration.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::Pod;

use super::{names, resources, security};
use crate::config::Config;
use crate::cri::v1::{
    DnsConfig, LinuxPodSandboxConfig, PodSandboxConfig, PodSandboxMetadata, PortMapping, Protocol, UserNamespace,
};

/// The longest host name the kernel takes, less one.
const MAX_HOSTNAME: usize = 63;

/// (hostname, domain): the pod's host name and, with a subdomain, the rest of its qualified name.
pub fn hostname(config: &Config, pod: &Pod) -> Result<(String, Option<String>), String> {
    let spec = super::spec(pod);
    if let Some(name) = spec.hostname_override.as_deref().filter(|n| !n.is_empty()) {
        return Ok((name.to_string(), None));
    }
    if super::host_network(pod) {
        return Ok((config.hostname().to_string(), None));
    }
    let mut hostname = match spec.hostname.as_deref().filter(|n| !n.is_empty()) {
        Some(name) => name.to_string(),
        None => {
            let name = super::name(pod);
            let cut = &name[..name.len().min(MAX_HOSTNAME)];
            cut.trim_end_matches(['-', '.']).to_string()
        }
    };
    let domain = spec
        .subdomain
        .as_deref()
        .filter(|s| !s.is_empty())
        .map(|subdomain| format!("{subdomain}.{}.svc.{}", super::namespace(pod), config.cluster_domain));
    if spec.set_hostname_as_fqdn == Some(true)
        && let Some(domain) = &domain
    {
        let full = format!("{hostname}.{domain}");
        if full.len() > MAX_HOSTNAME + 1 {
            return Err(format!(
                "failed to construct FQDN from pod hostname and cluster domain, FQDN {full} is too long (64 characters is the max, {} characters requested)",
                full.len()
            ));
        }
        hostname = full;
    }
    Ok((hostname, domain))
}

/// The pod's sysctls, and the node's where it says nothing; none of the kinds that a pod shares with its host.
fn sysctls(config: &Config, pod: &Pod) -> HashMap<String, String> {
    let spec = super::spec(pod);
    let shared = |name: &str| match name.split('.').next() {
        Some("net") => super::host_network(pod),
        Some("kernel") if name != "kernel.domainname" => spec.host_ipc == Some(true),
        Some("fs") => spec.host_ipc == Some(true),
        _ => false,
    };
    let usual = config.default_sysctls.iter().map(|(name, value)| (name.replace('/', "."), value.clone()));
    let own = spec.security_context.iter().flat_map(|c| c.sysctls.iter().flatten());
    usual.filter(|(name, _)| !shared(name)).chain(own.map(|s| (s.name.replace('/', "."), s.value.clone()))).collect()
}

/// What the engine is told to make.
pub fn config(
    config: &Config,
    pod: &Pod,
    attempt: u32,
    dns: DnsConfig,
    cgroup_parent: String,
    users: Option<UserNamespace>,
) -> Result<PodSandboxConfig, String> {
    let text = |t: &str| t.to_string();
    let map = |m: &Option<std::collections::BTreeMap<String, String>>| -> HashMap<String, String> {
        m.iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect()
    };
    let (name, namespace, uid) = (super::name(pod), super::namespace(pod), super::uid(pod));
    let mut labels = map(&pod.metadata.labels);
    for (key, value) in [(names::POD_NAME, name), (names::POD_NAMESPACE, namespace), (names::POD_UID, uid)] {
        labels.insert(text(key), text(value));
    }
    let mut annotations = map(&pod.metadata.annotations);
    annotations.entry(text(names::CONFIG_SOURCE)).or_insert_with(|| text("api"));
    let mut port_mappings = Vec::new();
    if !super::host_network(pod) {
        for (_, container) in super::all_containers(pod) {
            for port in container.ports.iter().flatten() {
                let protocol = match port.protocol.as_deref() {
                    Some("UDP") => Protocol::Udp,
                    Some("SCTP") => Protocol::Sctp,
                    _ => Protocol::Tcp,
                };
                port_mappings.push(PortMapping {
                    protocol: protocol as i32,
                    container_port: port.container_port,
                    host_port: port.host_port.unwrap_or(0),
                    host_ip: port.host_ip.clone().unwrap_or_default(),
                });
            }
        }
    }
    Ok(PodSandboxConfig {
        metadata: Some(PodSandboxMetadata { name: text(name), uid: text(uid), namespace: text(namespace), attempt }),
        // The engine keeps the node's own name for pods on the host's network.
        hostname: if super::host_network(pod) { String::new() } else { hostname(config, pod)?.0 },
        log_directory: names::pod_log_dir(&config.pod_logs, pod).to_string_lossy().into_owned(),
        dns_config: Some(dns),
        port_mappings,
        labels,
        annotations,
        linux: Some(LinuxPodSandboxConfig {
            cgroup_parent,
            security_context: Some(security::sandbox(pod, users, &config.root_dir)),
            sysctls: sysctls(config, pod),
            overhead: None,
            resources: Some(resources::pod_cgroup(pod)),
        }),
        windows: None,
    })
}
