//! What a KubeProxyConfiguration may say that makes no difference to this proxy, and why: taken, and told of.
//!
//! Nothing said, nought and what is the case anyhow are no reason for a word.

use serde_json::Value;

use super::shape::duration;

const WHEN_CHANGED: &str = "rules are written when something changed";
const AS_IS: &str = "the kernel's way is used, without IPVS";

/// The modes a field counts in upstream (none: in all), its path, what it usually is, and why it makes no difference.
type Row = (&'static [&'static str], &'static str, &'static str, &'static str);

const ROWS: &[Row] = &[
    (&[], "clientConnection.acceptContentTypes", "application/json", "objects are asked for as JSON"),
    (&[], "clientConnection.contentType", "application/json", "objects are asked for as JSON"),
    (&[], "clientConnection.qps", "", "requests are not slowed down"),
    (&[], "clientConnection.burst", "", "requests are not slowed down"),
    (&[], "logging.format", "text", "logs are text"),
    (&[], "logging.verbosity", "", "use --log"),
    (&[], "logging.vmodule", "", "use --log"),
    (&[], "enableProfiling", "", "there is no Go runtime to profile"),
    (&[], "showHiddenMetricsForVersion", "", "no metric is hidden"),
    (&[], "configSyncPeriod", "15m", "changes are told as they happen"),
    (&[], "portRange", "", "nothing here takes ports"),
    (&[], "winkernel.networkName", "", "this is not Windows"),
    (&[], "winkernel.sourceVip", "", "this is not Windows"),
    (&[], "winkernel.enableDSR", "", "this is not Windows"),
    (&[], "winkernel.rootHnsEndpointName", "", "this is not Windows"),
    (&[], "winkernel.forwardHealthCheckVip", "", "this is not Windows"),
    (&[], "windowsRunAsService", "", "this is not Windows"),
    (&["", "iptables"], "iptables.localhostNodePorts", "", "node ports do not answer on loopback addresses"),
    (&["", "iptables"], "iptables.syncPeriod", "30s", WHEN_CHANGED),
    (&["", "iptables"], "iptables.minSyncPeriod", "1s", WHEN_CHANGED),
    (&["", "nftables"], "nftables.syncPeriod", "30s", WHEN_CHANGED),
    (&["", "nftables"], "nftables.minSyncPeriod", "1s", WHEN_CHANGED),
    (&["ipvs"], "ipvs.syncPeriod", "30s", WHEN_CHANGED),
    (&["ipvs"], "ipvs.minSyncPeriod", "", WHEN_CHANGED),
    (&["ipvs"], "ipvs.scheduler", "", "endpoints are chosen at random"),
    (&["ipvs"], "ipvs.excludeCIDRs", "", AS_IS),
    (&["ipvs"], "ipvs.strictARP", "", AS_IS),
    (&["ipvs"], "ipvs.tcpTimeout", "", AS_IS),
    (&["ipvs"], "ipvs.tcpFinTimeout", "", AS_IS),
    (&["ipvs"], "ipvs.udpTimeout", "", AS_IS),
];

/// What a document says in vain.
pub(super) fn said(document: &Value) -> Vec<String> {
    let mode = document["mode"].as_str().unwrap_or_default();
    let counts = |(modes, path, usual, _): &&Row| {
        let value = path.split('.').fold(document, |value, name| &value[name]);
        (modes.is_empty() || modes.contains(&mode)) && says_something(value, usual)
    };
    ROWS.iter().filter(counts).map(|(_, path, _, why)| format!("{path} makes no difference here: {why}")).collect()
}

fn says_something(value: &Value, usual: &str) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Bool(true) | Value::Object(_) => true,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::Array(list) => !list.is_empty(),
        Value::String(text) => match duration(text).map(|span| span.length) {
            Ok(length) => !length.is_zero() && Ok(length) != duration(usual).map(|span| span.length),
            Err(_) => !text.is_empty() && text != usual,
        },
    }
}
