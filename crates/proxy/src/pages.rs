//! What the proxy says of itself on its metrics address: `/configz`, `/statusz`, `/flagz`.
//!
//! In upstream's forms: the configuration in effect as a KubeProxyConfiguration, which `--config` would take; the other two
//! as text for people.

use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use crate::{Config, Family, Locality, configuration};

/// What else answers there.
const PATHS: &str = "/configz /flagz /healthz /metrics /proxyMode /statusz";
const WARNING: &str = "Warning: This endpoint is not meant to be machine parseable, has no formatting compatibility \
                       guarantees and is for debugging purposes only.";
/// The minor version of Kubernetes this is.
const KUBERNETES: &str = "1.37";

fn title(page: &str) -> String {
    format!("\nkube-proxy {page}\n{WARNING}\n\n")
}

/// Since when this runs, and what it is.
pub fn statusz(began: SystemTime, now: SystemTime) -> String {
    let up = now.duration_since(began).unwrap_or_default().as_secs();
    let started = jiff::Timestamp::try_from(began).map(|t| t.strftime("%a %b %e %H:%M:%S UTC %Y").to_string());
    format!(
        "{}Started: {}\nUp: {} hr {:02} min {:02} sec\nBinary version: {}\nEmulation version: {KUBERNETES}\nPaths: {PATHS}\n",
        title("statusz"),
        started.unwrap_or_default(),
        up / 3600,
        up / 60 % 60,
        up % 60,
        env!("CARGO_PKG_VERSION"),
    )
}

/// What upstream's flags would have to be for this configuration.
pub fn flagz(config: &Config) -> String {
    let document = document(config);
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Array(list) => list.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    };
    let flags = [
        ("bind-address-hard-fail", &document["bindAddressHardFail"]),
        ("cluster-cidr", &document["clusterCIDR"]),
        ("conntrack-max-per-core", &document["conntrack"]["maxPerCore"]),
        ("conntrack-min", &document["conntrack"]["min"]),
        ("conntrack-tcp-timeout-close-wait", &document["conntrack"]["tcpCloseWaitTimeout"]),
        ("conntrack-tcp-timeout-established", &document["conntrack"]["tcpEstablishedTimeout"]),
        ("detect-local-mode", &document["detectLocalMode"]),
        ("healthz-bind-address", &document["healthzBindAddress"]),
        ("hostname-override", &document["hostnameOverride"]),
        ("masquerade-all", &document["nftables"]["masqueradeAll"]),
        ("metrics-bind-address", &document["metricsBindAddress"]),
        ("nodeport-addresses", &document["nodePortAddresses"]),
        ("proxy-mode", &document["mode"]),
    ];
    let lines: String = flags.iter().map(|(name, value)| format!("{name}={}\n", text(value))).collect();
    format!("{}{lines}network-policies={}\n", title("flagz"), config.network_policies)
}

/// The configuration in effect, by its group.
pub fn configz(config: &Config) -> String {
    json!({"kubeproxy.config.k8s.io": document(config)}).to_string()
}

/// A configuration as a document that [`configuration::read`] takes.
pub fn document(config: &Config) -> Value {
    let nets = |nets: &[ipnet::IpNet]| nets.iter().map(ToString::to_string).collect::<Vec<_>>();
    let mut node_ports = nets(&config.node_port_addresses);
    node_ports.extend(config.node_ports_on_primary.then(|| configuration::PRIMARY.to_string()));
    let any = if config.families.first() == Some(&Family::V6) { "::" } else { "0.0.0.0" };
    let (mode, local) = match &config.locality {
        Locality::ClusterCidr => ("ClusterCIDR", json!({"bridgeInterface": "", "interfaceNamePrefix": ""})),
        Locality::NodeCidr => ("NodeCIDR", json!({"bridgeInterface": "", "interfaceNamePrefix": ""})),
        Locality::Interface(name) => match name.strip_suffix('*') {
            Some(prefix) => ("InterfaceNamePrefix", json!({"bridgeInterface": "", "interfaceNamePrefix": prefix})),
            None => ("BridgeInterface", json!({"bridgeInterface": name, "interfaceNamePrefix": ""})),
        },
    };
    let conntrack = &config.conntrack;
    json!({
        "apiVersion": configuration::API_VERSION,
        "kind": configuration::KIND,
        "bindAddress": config.bind_address.map_or(any.to_string(), |address| address.to_string()),
        "bindAddressHardFail": config.bind_hard_fail,
        "clusterCIDR": nets(&config.cluster_cidrs).join(","),
        "conntrack": {
            "maxPerCore": conntrack.max_per_core,
            "min": conntrack.min,
            "tcpBeLiberal": conntrack.tcp_be_liberal,
            "tcpCloseWaitTimeout": go_duration(conntrack.tcp_close_wait),
            "tcpEstablishedTimeout": go_duration(conntrack.tcp_established),
            "udpStreamTimeout": go_duration(conntrack.udp_stream),
            "udpTimeout": go_duration(conntrack.udp),
        },
        "detectLocal": local,
        "detectLocalMode": mode,
        "healthzBindAddress": config.healthz.map(|address| address.to_string()).unwrap_or_default(),
        "hostnameOverride": config.node_name,
        "metricsBindAddress": config.metrics.map(|address| address.to_string()).unwrap_or_default(),
        "mode": "nftables",
        "nftables": {
            "masqueradeAll": config.masquerade_all,
            "masqueradeBit": config.masquerade_mark.trailing_zeros(),
        },
        "nodePortAddresses": node_ports,
        "oomScoreAdj": config.oom_score_adj,
    })
}

/// As Go writes it, whole seconds.
fn go_duration(duration: Duration) -> String {
    let (hours, minutes, seconds) = (duration.as_secs() / 3600, duration.as_secs() / 60 % 60, duration.as_secs() % 60);
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, _) => format!("{minutes}m{seconds}s"),
        _ => format!("{hours}h{minutes}m{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_can_be_given_back() {
        let mut config = Config {
            cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap(), "fd00::/56".parse().unwrap()],
            locality: Locality::Interface("veth*".into()),
            masquerade_mark: 1 << 7,
            bind_address: "192.0.2.7".parse().ok(),
            node_port_addresses: vec!["198.51.100.0/24".parse().unwrap()],
            node_ports_on_primary: true,
            oom_score_adj: Some(-999),
            bind_hard_fail: true,
            ..Config::new("here")
        };
        config.conntrack.udp = Duration::from_secs(90);
        let said: Value = serde_json::from_str(&configz(&config)).unwrap();
        let read = configuration::read(&said["kubeproxy.config.k8s.io"], Config::new("other")).unwrap();
        assert_eq!(read.warnings, Vec::<String>::new());
        assert_eq!(document(&read.config), document(&config));
    }

    #[test]
    fn pages_for_people() {
        let began = SystemTime::UNIX_EPOCH + Duration::from_secs(1_725_603_591);
        let said = statusz(began, began + Duration::from_secs(3_725));
        assert!(said.starts_with("\nkube-proxy statusz\nWarning: "), "{said}");
        assert!(said.contains("\nStarted: Fri Sep  6 06:19:51 UTC 2024\nUp: 1 hr 02 min 05 sec\n"), "{said}");
        let said = flagz(&Config::new("here"));
        assert!(said.contains("\nproxy-mode=nftables\n") && said.contains("\nhostname-override=here\n"), "{said}");
        assert!(said.contains("\nconntrack-tcp-timeout-established=24h0m0s\n"), "{said}");
    }
}
