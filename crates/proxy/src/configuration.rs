//! `KubeProxyConfiguration`, as upstream's `--config` takes it.
//!
//! A document is refused as upstream refuses it ([`shape`] says which types its fields have, [`validation`] what they may
//! be). What this proxy has no use for is passed over with a word ([`inert`]). It does not read files: [`read`] takes
//! the parsed document.

mod inert;
mod shape;
mod validation;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use serde_json::Value;

use crate::{Config, HEALTHZ_PORT, Locality, METRICS_PORT};

pub(crate) const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
/// Among ranges for node ports: the Node object's addresses.
pub(crate) const PRIMARY: &str = "primary";
/// Words for ranges there.
const RANGES: [(&str, [&str; 2]); 2] = [("all", ["0.0.0.0/0", "::/0"]), ("localhost", ["127.0.0.0/8", "::1/128"])];
pub(crate) const KIND: &str = "KubeProxyConfiguration";

pub use crate::pages::document;

/// What a document says.
#[derive(Clone, Debug)]
pub struct Configuration {
    pub config: Config,
    /// `clientConnection.kubeconfig`.
    pub kubeconfig: Option<String>,
    pub feature_gates: BTreeMap<String, bool>,
    /// What its writer should know.
    pub warnings: Vec<String>,
}

/// Reads a document over what holds without it.
pub fn read(document: &Value, mut config: Config) -> Result<Configuration, String> {
    let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_string);
    let (version, kind) = (document["apiVersion"].as_str(), document["kind"].as_str());
    if version != Some(API_VERSION) || kind != Some(KIND) {
        let [version, kind] = [version, kind].map(Option::unwrap_or_default);
        return Err(format!("no kind {kind:?} is registered for version {version:?}"));
    }
    let unknown = shape::check(document)?;
    validation::validate(document)?;
    let mut warnings: Vec<String> = unknown.iter().map(|field| format!("unknown field {field:?}")).collect();
    if let Some(other) = text(&document["mode"]).filter(|mode| mode != "nftables") {
        warnings.push(format!("mode: {other}: this proxy works with nftables in its place"));
    }
    warnings.extend(inert::said(document));
    let local = &document["detectLocal"];
    match document["detectLocalMode"].as_str() {
        Some("NodeCIDR") => config.locality = Locality::NodeCidr,
        Some("BridgeInterface") => {
            config.locality = Locality::Interface(text(&local["bridgeInterface"]).unwrap_or_default());
        }
        Some("InterfaceNamePrefix") => {
            let prefix = text(&local["interfaceNamePrefix"]).unwrap_or_default();
            config.locality = Locality::Interface(format!("{prefix}*"));
        }
        _ => {}
    }
    if let Some(name) = text(&document["hostnameOverride"]) {
        config.node_name = name.trim().to_lowercase();
    }
    if let Some(ranges) = text(&document["clusterCIDR"]) {
        config.cluster_cidrs = nets(ranges.split(','));
    }
    if let Some(list) = document["nodePortAddresses"].as_array() {
        let words = || list.iter().filter_map(Value::as_str);
        let ranges = |word| RANGES.iter().find(|(name, _)| *name == word).map_or(vec![word], |(_, both)| both.to_vec());
        config.node_port_addresses = nets(words().flat_map(ranges));
        config.node_ports_on_primary = words().any(|word| word == PRIMARY);
        let is_loopback = |range: &IpNet| range.addr().is_loopback();
        if config.node_port_addresses.iter().any(is_loopback) {
            warnings.push("nodePortAddresses: node ports do not answer on loopback addresses".into());
        }
    }
    // What else was to be listened on follows its family.
    if let Some(address) = text(&document["bindAddress"]).and_then(|text| text.parse::<IpAddr>().ok()) {
        config.bind_address = Some(address).filter(|address| !address.is_unspecified());
        if address.is_ipv6() {
            config.healthz = config.healthz.map(|_| SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), HEALTHZ_PORT));
            config.metrics = config.metrics.map(|_| SocketAddr::new(Ipv6Addr::LOCALHOST.into(), METRICS_PORT));
        }
    }
    if let Some(address) = text(&document["healthzBindAddress"]) {
        config.healthz = bind(&address, HEALTHZ_PORT);
    }
    if let Some(address) = text(&document["metricsBindAddress"]) {
        config.metrics = bind(&address, METRICS_PORT);
    }
    config.masquerade_all |=
        ["nftables", "iptables", "ipvs"].iter().any(|mode| document[mode]["masqueradeAll"] == Value::Bool(true));
    // This proxy's own mode's bit; a document for another mode may have it there.
    for mode in ["iptables", "nftables"] {
        let bit = document[mode]["masqueradeBit"].as_i64().and_then(|bit| u32::try_from(bit).ok());
        if let Some(mark) = bit.and_then(|bit| 1u32.checked_shl(bit)) {
            config.masquerade_mark = mark;
        }
    }
    if let Some(score) = document["oomScoreAdj"].as_i64() {
        config.oom_score_adj = i32::try_from(score).ok();
    }
    config.bind_hard_fail |= document["bindAddressHardFail"] == Value::Bool(true);
    let conntrack = &document["conntrack"];
    let settings = &mut config.conntrack;
    for (field, target) in [("maxPerCore", &mut settings.max_per_core), ("min", &mut settings.min)] {
        *target = conntrack[field].as_i64().and_then(|number| u32::try_from(number).ok()).unwrap_or(*target);
    }
    settings.tcp_be_liberal = conntrack["tcpBeLiberal"].as_bool().unwrap_or(settings.tcp_be_liberal);
    for (field, target) in [
        ("tcpEstablishedTimeout", &mut settings.tcp_established),
        ("tcpCloseWaitTimeout", &mut settings.tcp_close_wait),
        ("udpTimeout", &mut settings.udp),
        ("udpStreamTimeout", &mut settings.udp_stream),
    ] {
        *target = length(&conntrack[field]).unwrap_or(*target);
    }
    let kubeconfig = text(&document["clientConnection"]["kubeconfig"]);
    let gates = document["featureGates"].as_object().into_iter().flatten();
    let feature_gates = gates.filter_map(|(name, open)| Some((name.clone(), open.as_bool()?))).collect();
    Ok(Configuration { config, kubeconfig, feature_gates, warnings })
}

fn nets<'a>(texts: impl Iterator<Item = &'a str>) -> Vec<IpNet> {
    texts.filter_map(|text| text.parse().ok()).collect()
}

/// An address, with or without a port.
fn bind(text: &str, port: u16) -> Option<SocketAddr> {
    text.parse().or_else(|_| text.parse().map(|address| SocketAddr::new(address, port))).ok()
}

fn length(value: &Value) -> Option<Duration> {
    shape::duration(value.as_str()?).ok().map(|span| span.length)
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
    fn what_cannot_be_is_said_as_upstream_says_it() {
        let local = "KubeProxyConfiguration.DetectLocalConfiguration";
        let conntrack = "KubeProxyConfiguration.KubeProxyLinuxConfiguration.KubeProxyConntrackConfiguration";
        let bridge =
            |name: &str| json!({"detectLocalMode": "BridgeInterface", "detectLocal": {"bridgeInterface": name}});
        let cases = [
            (json!({"kind": "Pod"}), "no kind \"Pod\" is registered for version \"kubeproxy.config.k8s.io/v1alpha1\"".to_string()),
            (json!({"oomScoreAdj": "low"}), "json: cannot unmarshal string into Go struct field KubeProxyConfiguration.oomScoreAdj of type int32".into()),
            (json!({"conntrack": {"min": 3_000_000_000_i64}}), "json: cannot unmarshal number 3000000000 into Go struct field KubeProxyConfiguration.conntrack.min of type int32".into()),
            (json!({"nodePortAddresses": [1]}), "json: cannot unmarshal number into Go struct field KubeProxyConfiguration.nodePortAddresses of type string".into()),
            (json!({"conntrack": {"tcpCloseWaitTimeout": "soon"}}), "time: invalid duration \"soon\"".into()),
            (json!({"configSyncPeriod": "5"}), "time: missing unit in duration \"5\"".into()),
            (json!({"configSyncPeriod": "5d"}), "time: unknown unit \"d\" in duration \"5d\"".into()),
            (json!({"configSyncPeriod": 5}), "json: cannot unmarshal number into Go value of type string".into()),
            (json!({"mode": "userspace"}), "KubeProxyConfiguration.Mode.ProxyMode: Invalid value: \"userspace\": must be iptables, ipvs, nftables or blank (blank means the best-available proxy [currently iptables])".into()),
            (json!({"detectLocalMode": "Guess"}), "KubeProxyConfiguration.DetectLocalMode: Unsupported value: \"Guess\": supported values: \"ClusterCIDR\", \"NodeCIDR\", \"BridgeInterface\", \"InterfaceNamePrefix\", \"\"".into()),
            (bridge(""), format!("{local}.InterfaceName: Invalid value: \"\": must not be empty")),
            (bridge("a\" drop"), format!("{local}.InterfaceName: Invalid value: \"a\\\" drop\": must be the name of a network interface")),
            (json!({"detectLocalMode": "InterfaceNamePrefix"}), format!("{local}.InterfacePrefix: Invalid value: \"\": must not be empty")),
            (json!({"clusterCIDR": "pods"}), format!("{local}.ClusterCIDRs[0]: Invalid value: \"pods\": must be a valid CIDR block (e.g. 10.100.0.0/16 or fde4:8dba:82e1::/48)")),
            (json!({"clusterCIDR": "10.0.0.0/8,11.0.0.0/8"}), format!("{local}.ClusterCIDRs: Invalid value: [\"10.0.0.0/8\",\"11.0.0.0/8\"]: must be a either a single CIDR or dual-stack pair of CIDRs (e.g. [10.100.0.0/16, fde4:8dba:82e1::/48]")),
            (json!({"nftables": {"masqueradeBit": 32}}), "KubeProxyConfiguration.KubeProxyNFTablesConfiguration.MasqueradeBit: Invalid value: 32: must be within the range [0, 31]".into()),
            (json!({"iptables": {"masqueradeBit": -1}}), "KubeProxyConfiguration.KubeProxyIPTablesConfiguration.MasqueradeBit: Invalid value: -1: must be within the range [0, 31]".into()),
            (json!({"oomScoreAdj": -1001}), "KubeProxyConfiguration.KubeProxyLinuxConfiguration.OOMScoreAdj: Invalid value: -1001: must be within the range [-1000, 1000]".into()),
            (json!({"bindAddress": "here"}), "KubeProxyConfiguration.BindAddress: Invalid value: \"here\": not a valid textual representation of an IP address".into()),
            (json!({"conntrack": {"min": -1}}), format!("{conntrack}.Min: Invalid value: -1: must be greater than or equal to 0")),
            (json!({"conntrack": {"udpTimeout": "-1s"}}), format!("{conntrack}.UDPTimeout: Invalid value: -1s: must be greater than or equal to 0")),
            (json!({"configSyncPeriod": "-1s"}), "KubeProxyConfiguration.ConfigSyncPeriod: Invalid value: -1s: must be greater than 0".into()),
            (json!({"nftables": {"syncPeriod": "5s", "minSyncPeriod": "10s"}}), "KubeProxyConfiguration.SyncPeriod: Invalid value: 10s: must be greater than or equal to KubeProxyConfiguration.MinSyncPeriod".into()),
            (json!({"healthzBindAddress": "here"}), "KubeProxyConfiguration.HealthzBindAddress: Invalid value: \"here\": must be IP:port".into()),
            (json!({"healthzBindAddress": "x:1"}), "KubeProxyConfiguration.HealthzBindAddress: Invalid value: \"x\": must be a valid IP".into()),
            (json!({"metricsBindAddress": "[::1]:70000"}), "KubeProxyConfiguration.MetricsBindAddress: Invalid value: \"70000\": must be a valid port".into()),
            (json!({"portRange": "9-3"}), "KubeProxyConfiguration.PortRange: Invalid value: \"9-3\": must be a valid port range (e.g. 300-2000)".into()),
            (json!({"nodePortAddresses": ["10.0.0.0/8", "x"]}), "KubeProxyConfiguration.NodePortAddresses[1]: Invalid value: \"x\": must be a valid CIDR".into()),
            (json!({"showHiddenMetricsForVersion": "1.1"}), "KubeProxyConfiguration.ShowHiddenMetricsForVersion: Invalid value: \"1.1\": --show-hidden-metrics-for-version must be omitted or have the value '1.36'. Only the previous minor version is allowed".into()),
            (json!({"clientConnection": {"burst": -1}}), "KubeProxyConfiguration.ClientConnection.Burst: Invalid value: -1: must be greater than or equal to 0".into()),
            (json!({"mode": "ipvs", "ipvs": {"tcpTimeout": "-5s", "excludeCIDRs": ["x"]}}), "[KubeProxyConfiguration.KubeProxyIPVSConfiguration.TCPTimeout: Invalid value: -5s: must be greater than or equal to 0, KubeProxyConfiguration.KubeProxyIPVSConfiguration.ExcludeCidrs[0]: Invalid value: \"x\": must be a valid CIDR]".into()),
            (json!({"nodePortAddresses": ["primary", "here"]}), "KubeProxyConfiguration.NodePortAddresses[1]: Invalid value: \"here\": must be a valid CIDR".into()),
            (json!({"logging": {"format": "xml"}}), "KubeProxyConfiguration.logging.format: Invalid value: \"xml\": Unsupported log format".into()),
        ];
        for (extra, expect) in cases {
            assert_eq!(read(&document(extra), Config::new("here")).unwrap_err(), expect);
        }
    }

    #[test]
    fn what_is_not_there_is_warned_of() {
        let extra = json!({"sync": 1, "conntrack": {"max": 1, "min": 0}, "nodePortAddresses": ["primary"], "portRange": "",
            "conntrackExtra": null, "nftables": {"syncPeriod": "0s", "minSyncPeriod": "1s"}, "featureGates": {"A": true}});
        let read = read(&document(extra), Config::new("here")).unwrap();
        assert_eq!(
            read.warnings,
            ["unknown field \"conntrack.max\"", "unknown field \"conntrackExtra\"", "unknown field \"sync\""]
        );
        assert!(read.config.node_port_addresses.is_empty());
        assert_eq!(read.feature_gates, BTreeMap::from([("A".to_string(), true)]));
    }

    #[test]
    fn what_makes_no_difference_is_told() {
        let check = |extra: Value, fields: &[&str]| {
            let said = read(&document(extra), Config::new("here")).unwrap().warnings;
            let mut named: Vec<&str> = said.iter().filter_map(|said| said.split([' ', ':']).next()).collect();
            named.sort_unstable();
            assert_eq!(named, fields);
        };
        // As kubeadm writes what nobody asked for.
        let unsaid = json!({"bindAddress": "0.0.0.0", "bindAddressHardFail": false, "clusterCIDR": "10.244.0.0/16", "configSyncPeriod": "0s",
            "clientConnection": {"acceptContentTypes": "", "burst": 0, "contentType": "", "kubeconfig": "/k", "qps": 0}, "enableProfiling": false,
            "iptables": {"localhostNodePorts": null, "masqueradeAll": false, "masqueradeBit": null, "minSyncPeriod": "0s", "syncPeriod": "0s"},
            "ipvs": {"excludeCIDRs": null, "minSyncPeriod": "0s", "scheduler": "", "strictARP": false, "tcpTimeout": "0s"}, "nodePortAddresses": null,
            "logging": {"flushFrequency": 0, "options": {"json": {"infoBufferSize": "0"}, "text": {"infoBufferSize": "0"}}, "verbosity": 0},
            "nftables": {"masqueradeAll": false, "minSyncPeriod": "0s", "syncPeriod": "0s"}, "portRange": "", "showHiddenMetricsForVersion": "",
            "winkernel": {"enableDSR": false, "forwardHealthCheckVip": false, "networkName": "", "rootHnsEndpointName": "", "sourceVip": ""}});
        check(unsaid, &[]);
        check(
            json!({"mode": "nftables", "nftables": {"syncPeriod": "30s", "minSyncPeriod": "1000ms"}, "ipvs": {"strictARP": true}}),
            &[],
        );
        check(
            json!({"mode": "ipvs", "ipvs": {"strictARP": true, "scheduler": "lc", "tcpTimeout": "5s"}, "nftables": {"minSyncPeriod": "9s"}}),
            &["ipvs.scheduler", "ipvs.strictARP", "ipvs.tcpTimeout", "mode"],
        );
        check(
            json!({"clientConnection": {"qps": 5.0, "contentType": "application/vnd.kubernetes.protobuf"}, "logging": {"format": "json"},
                "enableProfiling": true, "configSyncPeriod": "15m0s", "winkernel": {"sourceVip": "x"}, "iptables": {"localhostNodePorts": true},
                "nodePortAddresses": ["localhost"]}),
            &[
                "clientConnection.contentType",
                "clientConnection.qps",
                "enableProfiling",
                "iptables.localhostNodePorts",
                "logging.format",
                "nodePortAddresses",
                "winkernel.sourceVip",
            ],
        );
    }

    #[test]
    fn addresses_have_words() {
        let check = |list: Value, ranges: &[&str], primary: bool| {
            let config = read(&document(json!({"nodePortAddresses": list})), Config::new("here")).unwrap().config;
            let shown: Vec<String> = config.node_port_addresses.iter().map(ToString::to_string).collect();
            assert_eq!(
                (shown, config.node_ports_on_primary),
                (ranges.iter().map(|r| r.to_string()).collect(), primary)
            );
        };
        check(json!([]), &[], false);
        check(json!(["primary"]), &[], true);
        check(json!(["all"]), &["0.0.0.0/0", "::/0"], false);
        check(json!(["primary", "10.0.0.0/8"]), &["10.0.0.0/8"], true);
        check(json!(["localhost", "fd00::/8"]), &["127.0.0.0/8", "::1/128", "fd00::/8"], false);
        let bind = |text: &str| read(&document(json!({"bindAddress": text})), Config::new("here")).unwrap().config;
        let config = bind("2001:db8::7");
        let said = [config.healthz, config.metrics].map(|address| address.unwrap().to_string());
        assert_eq!(said, ["[::]:10256", "[::1]:10249"]);
        assert_eq!(config.bind_address, "2001:db8::7".parse().ok());
        assert_eq!(bind("0.0.0.0").bind_address, None);
    }
}
