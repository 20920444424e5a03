//! What upstream says to a KubeProxyConfiguration that makes no sense, in its words and under its names of fields.
//!
//! All of it is said, as upstream does. A document that comes through here can be read without a further question.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

use super::shape::{Span, duration};

/// The kernel's limit of a link's name, with its end.
const MAX_LINK_BYTES: usize = 16;
/// The one version whose hidden metrics could be asked for.
const PREVIOUS: &str = "1.36";
const MODES: [&str; 3] = ["iptables", "ipvs", "nftables"];
const LOCAL_MODES: [&str; 5] = ["ClusterCIDR", "NodeCIDR", "BridgeInterface", "InterfaceNamePrefix", ""];
const A_RANGE: &str = "must be a valid CIDR block (e.g. 10.100.0.0/16 or fde4:8dba:82e1::/48)";
const A_PAIR: &str =
    "must be a either a single CIDR or dual-stack pair of CIDRs (e.g. [10.100.0.0/16, fde4:8dba:82e1::/48]";

/// The faults of a document whose fields have their types.
pub(super) fn validate(document: &Value) -> Result<(), String> {
    let mut faults = Faults(Vec::new());
    let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
    let (mode, local_mode) = (text(&document["mode"]), text(&document["detectLocalMode"]));
    for (part, name) in [("iptables", "IPTables"), ("nftables", "NFTables")] {
        let counts = part == "iptables" || mode.is_empty() || mode == part;
        if let Some(bit) = document[part]["masqueradeBit"].as_i64().filter(|bit| counts && !(0..=31).contains(bit)) {
            let field = format!("KubeProxy{name}Configuration.MasqueradeBit");
            faults.invalid(&field, bit, "must be within the range [0, 31]");
        }
    }
    if mode == "ipvs" {
        for (field, name) in
            [("tcpTimeout", "TCPTimeout"), ("tcpFinTimeout", "TCPFinTimeout"), ("udpTimeout", "UDPTimeout")]
        {
            faults.not_negative(&format!("KubeProxyIPVSConfiguration.{name}"), &document["ipvs"][field]);
        }
        for (index, range) in texts(&document["ipvs"]["excludeCIDRs"]).enumerate() {
            if range.parse::<IpNet>().is_err() {
                let field = format!("KubeProxyIPVSConfiguration.ExcludeCidrs[{index}]");
                faults.invalid(&field, quoted(range), "must be a valid CIDR");
            }
        }
    }
    let conntrack = &document["conntrack"];
    let under = "KubeProxyLinuxConfiguration.KubeProxyConntrackConfiguration";
    for (field, name) in [("maxPerCore", "MaxPerCore"), ("min", "Min")] {
        faults.not_below_zero(&format!("{under}.{name}"), &conntrack[field]);
    }
    for (field, name) in [
        ("tcpEstablishedTimeout", "TCPEstablishedTimeout"),
        ("tcpCloseWaitTimeout", "TCPCloseWaitTimeout"),
        ("udpTimeout", "UDPTimeout"),
        ("udpStreamTimeout", "UDPStreamTimeout"),
    ] {
        faults.not_negative(&format!("{under}.{name}"), &conntrack[field]);
    }
    if let Some(score) = document["oomScoreAdj"].as_i64().filter(|score| !(-1000..=1000).contains(score)) {
        faults.invalid("KubeProxyLinuxConfiguration.OOMScoreAdj", score, "must be within the range [-1000, 1000]");
    }
    if !mode.is_empty() && !MODES.contains(&mode.as_str()) {
        let detail = format!(
            "must be {} or blank (blank means the best-available proxy [currently iptables])",
            MODES.join(", ")
        );
        faults.invalid("Mode.ProxyMode", quoted(&mode), &detail);
    }
    faults.not_below_zero("ClientConnection.Burst", &document["clientConnection"]["burst"]);
    faults.periods(document, if mode.is_empty() { "nftables" } else { &mode });
    let bind = text(&document["bindAddress"]);
    if !bind.is_empty() && bind.parse::<IpAddr>().is_err() {
        faults.invalid("BindAddress", quoted(&bind), "not a valid textual representation of an IP address");
    }
    for (field, name) in [("healthzBindAddress", "HealthzBindAddress"), ("metricsBindAddress", "MetricsBindAddress")] {
        faults.host_and_port(name, &text(&document[field]));
    }
    let ports = text(&document["portRange"]);
    if !is_port_range(&ports) {
        faults.invalid("PortRange", quoted(&ports), "must be a valid port range (e.g. 300-2000)");
    }
    faults.node_port_addresses(&document["nodePortAddresses"]);
    let version = text(&document["showHiddenMetricsForVersion"]);
    if !version.is_empty() && version != PREVIOUS {
        let detail = format!(
            "--show-hidden-metrics-for-version must be omitted or have the value '{PREVIOUS}'. Only the previous minor version is allowed"
        );
        faults.invalid("ShowHiddenMetricsForVersion", quoted(&version), &detail);
    }
    if !LOCAL_MODES.contains(&local_mode.as_str()) {
        let modes = LOCAL_MODES.map(quoted).join(", ");
        faults.0.push(format!(
            "KubeProxyConfiguration.DetectLocalMode: Unsupported value: {local_mode:?}: supported values: {modes}"
        ));
    }
    let local = &document["detectLocal"];
    match local_mode.as_str() {
        "BridgeInterface" => faults.link("InterfaceName", &text(&local["bridgeInterface"])),
        "InterfaceNamePrefix" => faults.link("InterfacePrefix", &text(&local["interfaceNamePrefix"])),
        "" | "ClusterCIDR" => faults.cluster_ranges(&text(&document["clusterCIDR"])),
        _ => {}
    }
    let format = text(&document["logging"]["format"]);
    if !["", "text", "json"].contains(&format.as_str()) {
        faults.invalid("logging.format", quoted(&format), "Unsupported log format");
    }
    faults.result()
}

struct Faults(Vec<String>);

impl Faults {
    fn invalid(&mut self, field: &str, value: impl std::fmt::Display, detail: &str) {
        self.0.push(format!("KubeProxyConfiguration.{field}: Invalid value: {value}: {detail}"));
    }

    /// As upstream joins several.
    fn result(self) -> Result<(), String> {
        match &self.0[..] {
            [] => Ok(()),
            [one] => Err(one.clone()),
            all => Err(format!("[{}]", all.join(", "))),
        }
    }

    fn not_below_zero(&mut self, field: &str, value: &Value) {
        if let Some(number) = value.as_i64().filter(|number| *number < 0) {
            self.invalid(field, number, "must be greater than or equal to 0");
        }
    }

    fn not_negative(&mut self, field: &str, value: &Value) {
        if span(value).is_some_and(|span| span.negative) {
            self.invalid(field, value.as_str().unwrap_or_default(), "must be greater than or equal to 0");
        }
    }

    /// How often a mode writes its rules, and the configuration is asked for. None said, or nought, is the default.
    fn periods(&mut self, document: &Value, mode: &str) {
        let all = [&document["configSyncPeriod"], &document[mode]["syncPeriod"]];
        for (name, value) in ["ConfigSyncPeriod", "SyncPeriod"].into_iter().zip(all) {
            if span(value).is_some_and(|span| span.negative) {
                self.invalid(name, value.as_str().unwrap_or_default(), "must be greater than 0");
            }
        }
        let least = &document[mode]["minSyncPeriod"];
        self.not_negative("MinSyncPeriod", least);
        let (period, shortest) = (span(all[1]), span(least));
        if let Some((period, shortest)) = period.zip(shortest).filter(|(a, b)| !a.length.is_zero() && !b.negative)
            && (period.negative || shortest.length > period.length)
        {
            let detail = "must be greater than or equal to KubeProxyConfiguration.MinSyncPeriod";
            self.invalid("SyncPeriod", least.as_str().unwrap_or_default(), detail);
        }
    }

    fn host_and_port(&mut self, field: &str, text: &str) {
        // An address alone gets the usual port.
        if text.is_empty() || text.parse::<IpAddr>().is_ok() {
            return;
        }
        let Some((host, port)) = text.rsplit_once(':') else {
            return self.invalid(field, quoted(text), "must be IP:port");
        };
        let host = match host.strip_prefix('[') {
            Some(rest) => rest.strip_suffix(']'),
            None => (!host.contains(':')).then_some(host),
        };
        let Some(host) = host else { return self.invalid(field, quoted(text), "must be IP:port") };
        if host.parse::<IpAddr>().is_err() {
            self.invalid(field, quoted(host), "must be a valid IP");
        }
        if port.parse::<u16>().map_or(0, |port| port) == 0 {
            self.invalid(field, quoted(port), "must be a valid port");
        }
    }

    fn node_port_addresses(&mut self, list: &Value) {
        let is_word = |text: &str| text == super::PRIMARY || super::RANGES.iter().any(|(word, _)| *word == text);
        for (index, range) in texts(list).enumerate() {
            if !is_word(range) && range.parse::<IpNet>().is_err() {
                self.invalid(&format!("NodePortAddresses[{index}]"), quoted(range), "must be a valid CIDR");
            }
        }
    }

    fn cluster_ranges(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        let field = "DetectLocalConfiguration.ClusterCIDRs";
        let all: Vec<&str> = text.split(',').collect();
        let list = || format!("[{}]", all.iter().map(|range| quoted(range)).collect::<Vec<_>>().join(","));
        if all.len() > 2 {
            return self.invalid(field, list(), A_PAIR);
        }
        let read: Vec<Option<IpNet>> = all.iter().map(|range| range.parse().ok()).collect();
        for (index, _) in read.iter().enumerate().filter(|(_, net)| net.is_none()) {
            self.invalid(&format!("{field}[{index}]"), quoted(all[index]), A_RANGE);
        }
        if let [Some(a), Some(b)] = &read[..]
            && a.addr().is_ipv4() == b.addr().is_ipv4()
        {
            self.invalid(field, list(), A_PAIR);
        }
    }

    /// A link's name, or its beginning. It becomes part of a rule: nothing that would end it there.
    fn link(&mut self, field: &str, name: &str) {
        let field = format!("DetectLocalConfiguration.{field}");
        let fine = |c: char| c.is_ascii_graphic() && !matches!(c, '"' | '\\' | '*' | '/');
        if name.is_empty() {
            self.invalid(&field, quoted(name), "must not be empty");
        } else if name.len() >= MAX_LINK_BYTES || !name.chars().all(fine) {
            self.invalid(&field, quoted(name), "must be the name of a network interface");
        }
    }
}

fn quoted(text: &str) -> String {
    format!("{text:?}")
}

fn texts(list: &Value) -> impl Iterator<Item = &str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str)
}

fn span(value: &Value) -> Option<Span> {
    duration(value.as_str().filter(|text| !text.is_empty())?).ok()
}

/// `a-b`, `a+n` or `a`, as upstream reads it.
fn is_port_range(text: &str) -> bool {
    let text = text.trim();
    let number = |text: &str| text.trim().parse::<u16>().ok();
    if text.is_empty() {
        return true;
    }
    if let Some((from, to)) = text.split_once('-') {
        return number(from).zip(number(to)).is_some_and(|(from, to)| from <= to);
    }
    if let Some((from, more)) = text.split_once('+') {
        return number(from).zip(number(more)).is_some_and(|(from, more)| from.checked_add(more).is_some());
    }
    number(text).is_some()
}
