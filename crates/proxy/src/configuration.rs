//! `KubeProxyConfiguration`, as upstream's `--config` takes it.
//!
//! What this proxy has no use for is passed over, other modes with a word; what it would have to do and cannot is an
//! error. It does not read files: [`read`] takes the parsed document.

use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;
use serde_json::Value;

use crate::{Config, Locality};

pub(crate) const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
/// Every field upstream's type has; another one is a mistake of its writer.
const FIELDS: [&str; 26] = [
    "apiVersion",
    "kind",
    "featureGates",
    "clientConnection",
    "logging",
    "hostnameOverride",
    "bindAddress",
    "healthzBindAddress",
    "metricsBindAddress",
    "bindAddressHardFail",
    "enableProfiling",
    "showHiddenMetricsForVersion",
    "mode",
    "iptables",
    "ipvs",
    "nftables",
    "winkernel",
    "detectLocalMode",
    "detectLocal",
    "clusterCIDR",
    "nodePortAddresses",
    "oomScoreAdj",
    "conntrack",
    "configSyncPeriod",
    "portRange",
    "windowsRunAsService",
];
/// Those of the parts this proxy goes by.
const PARTS: [(&str, &[&str]); 4] = [
    (
        "conntrack",
        &[
            "maxPerCore",
            "min",
            "tcpEstablishedTimeout",
            "tcpCloseWaitTimeout",
            "tcpBeLiberal",
            "udpTimeout",
            "udpStreamTimeout",
        ],
    ),
    ("detectLocal", &["bridgeInterface", "interfaceNamePrefix"]),
    ("nftables", &["masqueradeBit", "masqueradeAll", "syncPeriod", "minSyncPeriod"]),
    ("clientConnection", &["kubeconfig", "acceptContentTypes", "contentType", "qps", "burst"]),
];
/// The kernel's limit of a link's name, with its end.
const MAX_LINK_BYTES: usize = 16;
pub(crate) const KIND: &str = "KubeProxyConfiguration";

/// What a document says.
#[derive(Clone, Debug)]
pub struct Configuration {
    pub config: Config,
    /// `clientConnection.kubeconfig`.
    pub kubeconfig: Option<String>,
    /// What its writer should know.
    pub warnings: Vec<String>,
}

/// Reads a document over what holds without it.
pub fn read(document: &Value, mut config: Config) -> Result<Configuration, String> {
    for (field, expect) in [("apiVersion", API_VERSION), ("kind", KIND)] {
        if document[field] != expect {
            return Err(format!("{field}: {} is not {expect}", document[field]));
        }
    }
    let mut warnings = Vec::new();
    let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_string);
    let unknown = |part: &Value, known: &[&str]| {
        let names = part.as_object().into_iter().flatten().map(|(name, _)| name.clone());
        names.filter(|name| !known.contains(&name.as_str())).collect::<Vec<_>>()
    };
    let of_parts = PARTS.iter().flat_map(|(part, known)| {
        unknown(&document[*part], known).into_iter().map(move |name| format!("{part}.{name}"))
    });
    for field in unknown(document, &FIELDS).into_iter().chain(of_parts) {
        warnings.push(format!("unknown field {field:?}"));
    }
    match document["mode"].as_str() {
        None | Some("" | "nftables") => {}
        Some(other @ ("iptables" | "ipvs")) => {
            warnings.push(format!("mode: {other}: this proxy works with nftables in its place"));
        }
        Some(other) => return Err(format!("mode: {other:?} is none of nftables, iptables, ipvs")),
    }
    match document["detectLocalMode"].as_str() {
        None | Some("" | "ClusterCIDR") => {}
        Some("NodeCIDR") => config.locality = Locality::NodeCidr,
        Some("BridgeInterface") => {
            let name = link("bridgeInterface", &document["detectLocal"]["bridgeInterface"])?;
            config.locality = Locality::Interface(name);
        }
        Some("InterfaceNamePrefix") => {
            let prefix = link("interfaceNamePrefix", &document["detectLocal"]["interfaceNamePrefix"])?;
            config.locality = Locality::Interface(format!("{prefix}*"));
        }
        Some(other) => {
            return Err(format!(
                "detectLocalMode: {other:?} is none of ClusterCIDR, NodeCIDR, BridgeInterface, InterfaceNamePrefix"
            ));
        }
    }
    if let Some(name) = text(&document["hostnameOverride"]) {
        config.node_name = name;
    }
    if let Some(ranges) = text(&document["clusterCIDR"]) {
        config.cluster_cidrs = nets("clusterCIDR", ranges.split(','))?;
    }
    if let Some(list) = document["nodePortAddresses"].as_array() {
        let texts: Vec<&str> = list.iter().filter_map(Value::as_str).filter(|text| *text != "primary").collect();
        config.node_port_addresses = nets("nodePortAddresses", texts.into_iter())?;
    }
    config.healthz = bind("healthzBindAddress", &document["healthzBindAddress"], 10256, config.healthz)?;
    config.metrics = bind("metricsBindAddress", &document["metricsBindAddress"], 10249, config.metrics)?;
    config.masquerade_all |=
        ["nftables", "iptables", "ipvs"].iter().any(|mode| document[mode]["masqueradeAll"] == Value::Bool(true));
    // This proxy's own mode's bit; a document for another mode may have it there.
    for mode in ["iptables", "ipvs", "nftables"] {
        if let Some(bit) = document[mode]["masqueradeBit"].as_i64() {
            let mark = u32::try_from(bit).ok().and_then(|bit| 1u32.checked_shl(bit));
            config.masquerade_mark =
                mark.ok_or_else(|| format!("{mode}.masqueradeBit: {bit}: must be within the range [0, 31]"))?;
        }
    }
    if let Some(score) = document["oomScoreAdj"].as_i64() {
        let score = i32::try_from(score).ok().filter(|score| (-1000..=1000).contains(score));
        config.oom_score_adj = Some(score.ok_or("oomScoreAdj: must be within the range [-1000, 1000]".to_string())?);
    }
    config.bind_hard_fail |= document["bindAddressHardFail"] == Value::Bool(true);
    if let Some(text) = text(&document["bindAddress"])
        && text.parse::<std::net::IpAddr>().is_err()
    {
        return Err(format!("bindAddress: {text:?} is no address"));
    }
    let conntrack = &document["conntrack"];
    let settings = &mut config.conntrack;
    for (field, target) in [("maxPerCore", &mut settings.max_per_core), ("min", &mut settings.min)] {
        if let Some(number) = conntrack[field].as_i64() {
            *target = u32::try_from(number)
                .map_err(|_| format!("conntrack.{field}: {number}: must be greater than or equal to 0"))?;
        }
    }
    settings.tcp_be_liberal = conntrack["tcpBeLiberal"].as_bool().unwrap_or(settings.tcp_be_liberal);
    for (field, target) in [
        ("tcpEstablishedTimeout", &mut settings.tcp_established),
        ("tcpCloseWaitTimeout", &mut settings.tcp_close_wait),
        ("udpTimeout", &mut settings.udp),
        ("udpStreamTimeout", &mut settings.udp_stream),
    ] {
        if let Some(value) = text(&conntrack[field]) {
            *target = duration(&value).ok_or_else(|| format!("conntrack.{field}: {value:?} is no duration"))?;
        }
    }
    Ok(Configuration { config, kubeconfig: text(&document["clientConnection"]["kubeconfig"]), warnings })
}

fn nets<'a>(field: &str, texts: impl Iterator<Item = &'a str>) -> Result<Vec<IpNet>, String> {
    texts.map(|text| text.trim().parse().map_err(|_| format!("{field}: {text:?} is no range of addresses"))).collect()
}

/// A link's name, or its beginning. It becomes part of a rule: nothing that would end it there.
fn link(field: &str, value: &Value) -> Result<String, String> {
    let name = value.as_str().unwrap_or_default();
    let fine = |c: char| c.is_ascii_graphic() && !matches!(c, '"' | '\\' | '*' | '/');
    if name.is_empty() || name.len() >= MAX_LINK_BYTES || !name.chars().all(fine) {
        return Err(format!("detectLocal.{field}: {name:?} is no name of a network link"));
    }
    Ok(name.to_string())
}

/// An address, with or without a port.
fn bind(field: &str, value: &Value, port: u16, otherwise: Option<SocketAddr>) -> Result<Option<SocketAddr>, String> {
    match value.as_str() {
        None => Ok(otherwise),
        Some("") => Ok(otherwise),
        Some(text) => text
            .parse()
            .or_else(|_| text.parse().map(|address| SocketAddr::new(address, port)))
            .map(Some)
            .map_err(|_| format!("{field}: {text:?} is no address and port")),
    }
}

/// Go's form, whole units: `24h0m0s`, `1h`, `90s`, `250ms`.
fn duration(text: &str) -> Option<Duration> {
    let mut total = Duration::ZERO;
    let mut rest = text;
    if rest == "0" {
        return Some(total);
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: u32 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let one = match &rest[..unit] {
            "h" => Duration::from_secs(3600),
            "m" => Duration::from_secs(60),
            "s" => Duration::from_secs(1),
            "ms" => Duration::from_millis(1),
            _ => return None,
        };
        total = total.checked_add(one.checked_mul(number)?)?;
        rest = &rest[unit..];
    }
    (!text.is_empty()).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn document(extra: Value) -> Value {
        let mut document = json!({"apiVersion": API_VERSION, "kind": KIND});
        document.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        document
    }

    #[test]
    fn documents_are_read() {
        // As kubeadm writes it.
        let read = read(
            &document(json!({"bindAddress": "0.0.0.0", "clusterCIDR": "10.244.0.0/16,fd00::/48", "mode": "iptables",
                "healthzBindAddress": "", "metricsBindAddress": "127.0.0.1", "hostnameOverride": "",
                "clientConnection": {"kubeconfig": "/var/lib/kube-proxy/kubeconfig.conf"}, "nodePortAddresses": null,
                "nftables": {"masqueradeAll": true}, "detectLocalMode": "",
                "conntrack": {"maxPerCore": null, "min": 7, "tcpEstablishedTimeout": "24h0m0s", "tcpCloseWaitTimeout": "90s"}})),
            Config::new("here"),
        )
        .unwrap();
        assert_eq!(read.kubeconfig.as_deref(), Some("/var/lib/kube-proxy/kubeconfig.conf"));
        assert_eq!(read.warnings.len(), 1);
        let config = read.config;
        assert_eq!((config.node_name.as_str(), config.cluster_cidrs.len(), config.masquerade_all), ("here", 2, true));
        assert_eq!(config.metrics.unwrap().to_string(), "127.0.0.1:10249");
        assert_eq!((config.conntrack.min, config.conntrack.max_per_core), (7, 32_768));
        assert_eq!(config.conntrack.tcp_close_wait, Duration::from_secs(90));
        assert_eq!(config.conntrack.tcp_established, Duration::from_secs(86_400));
    }

    #[test]
    fn pods_are_told_as_configured() {
        for (extra, expect) in [
            (json!({"detectLocalMode": "NodeCIDR"}), Locality::NodeCidr),
            (
                json!({"detectLocalMode": "BridgeInterface", "detectLocal": {"bridgeInterface": "cni0"}}),
                Locality::Interface("cni0".into()),
            ),
            (
                json!({"detectLocalMode": "InterfaceNamePrefix", "detectLocal": {"interfaceNamePrefix": "veth"}}),
                Locality::Interface("veth*".into()),
            ),
        ] {
            assert_eq!(read(&document(extra), Config::new("here")).unwrap().config.locality, expect);
        }
    }

    #[test]
    fn what_cannot_be_is_said() {
        let cases = [
            (json!({"kind": "Pod"}), "kind: \"Pod\" is not KubeProxyConfiguration"),
            (json!({"mode": "userspace"}), "mode: \"userspace\" is none of nftables, iptables, ipvs"),
            (
                json!({"detectLocalMode": "Guess"}),
                "detectLocalMode: \"Guess\" is none of ClusterCIDR, NodeCIDR, BridgeInterface, InterfaceNamePrefix",
            ),
            (
                json!({"detectLocalMode": "BridgeInterface"}),
                "detectLocal.bridgeInterface: \"\" is no name of a network link",
            ),
            (
                json!({"detectLocalMode": "InterfaceNamePrefix", "detectLocal": {"interfaceNamePrefix": "a\" drop"}}),
                "detectLocal.interfaceNamePrefix: \"a\\\" drop\" is no name of a network link",
            ),
            (
                json!({"nftables": {"masqueradeBit": 32}}),
                "nftables.masqueradeBit: 32: must be within the range [0, 31]",
            ),
            (json!({"oomScoreAdj": -1001}), "oomScoreAdj: must be within the range [-1000, 1000]"),
            (json!({"bindAddress": "here"}), "bindAddress: \"here\" is no address"),
            (json!({"conntrack": {"min": -1}}), "conntrack.min: -1: must be greater than or equal to 0"),
            (json!({"clusterCIDR": "pods"}), "clusterCIDR: \"pods\" is no range of addresses"),
            (json!({"healthzBindAddress": "x:y"}), "healthzBindAddress: \"x:y\" is no address and port"),
            (
                json!({"conntrack": {"tcpCloseWaitTimeout": "soon"}}),
                "conntrack.tcpCloseWaitTimeout: \"soon\" is no duration",
            ),
        ];
        for (extra, expect) in cases {
            assert_eq!(read(&document(extra), Config::new("here")).unwrap_err(), expect);
        }
    }
}
