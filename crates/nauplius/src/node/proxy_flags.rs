//! The service proxy's flags that say what fields of its configuration file would, and are read as such.
//!
//! So a flag is refused, honoured or told of as its field is, in the same words.

use serde_json::{Value, json};

/// Upstream's flags, each with the field it stands for.
#[derive(clap::Args, Clone, Default)]
pub struct DocumentFlags {
    /// Pod addresses of the whole cluster, one range a family.
    #[arg(long)]
    cluster_cidr: Option<String>,
    #[arg(long, num_args = 0..=1, default_missing_value = "true")]
    masquerade_all: Option<bool>,
    /// The node's own address of its family, whatever the Node object says.
    #[arg(long)]
    bind_address: Option<String>,
    /// Ranges of the node's addresses that node ports answer on, `primary` or `all`.
    #[arg(long, value_delimiter = ',')]
    nodeport_addresses: Vec<String>,
    /// An address, with a port or without; empty: none.
    #[arg(long)]
    healthz_bind_address: Option<String>,
    /// The same for metrics.
    #[arg(long)]
    metrics_bind_address: Option<String>,
    /// The port of an address without one; 0: none.
    #[arg(long, hide = true)]
    healthz_port: Option<u16>,
    #[arg(long, hide = true)]
    metrics_port: Option<u16>,
    #[arg(long, visible_alias = "iptables-masquerade-bit")]
    nftables_masquerade_bit: Option<i64>,
    #[arg(long)]
    detect_local_mode: Option<String>,
    #[arg(long)]
    pod_bridge_interface: Option<String>,
    #[arg(long)]
    pod_interface_name_prefix: Option<String>,
    #[arg(long)]
    conntrack_max_per_core: Option<i64>,
    #[arg(long)]
    conntrack_min: Option<i64>,
    #[arg(long, num_args = 0..=1, default_missing_value = "true")]
    conntrack_tcp_be_liberal: Option<bool>,
    #[arg(long)]
    conntrack_tcp_timeout_established: Option<String>,
    #[arg(long)]
    conntrack_tcp_timeout_close_wait: Option<String>,
    #[arg(long)]
    conntrack_udp_timeout: Option<String>,
    #[arg(long)]
    conntrack_udp_timeout_stream: Option<String>,
    #[arg(long, num_args = 0..=1, default_missing_value = "true")]
    bind_address_hard_fail: Option<bool>,
    #[arg(long, allow_hyphen_values = true)]
    oom_score_adj: Option<i64>,
    #[arg(long, hide = true)]
    proxy_mode: Option<String>,
    #[arg(long, hide = true)]
    config_sync_period: Option<String>,
    #[arg(long, hide = true)]
    iptables_min_sync_period: Option<String>,
    #[arg(long, hide = true)]
    iptables_sync_period: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true")]
    iptables_localhost_nodeports: Option<bool>,
    #[arg(long, hide = true, value_delimiter = ',')]
    ipvs_exclude_cidrs: Vec<String>,
    #[arg(long, hide = true)]
    ipvs_min_sync_period: Option<String>,
    #[arg(long, hide = true)]
    ipvs_scheduler: Option<String>,
    #[arg(long, hide = true)]
    ipvs_sync_period: Option<String>,
    #[arg(long, hide = true)]
    ipvs_tcp_timeout: Option<String>,
    #[arg(long, hide = true)]
    ipvs_tcpfin_timeout: Option<String>,
    #[arg(long, hide = true)]
    ipvs_udp_timeout: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true")]
    ipvs_strict_arp: Option<bool>,
    #[arg(long, hide = true)]
    kube_api_burst: Option<i64>,
    #[arg(long, hide = true)]
    kube_api_content_type: Option<String>,
    #[arg(long, hide = true)]
    kube_api_qps: Option<f32>,
    #[arg(long, hide = true)]
    logging_format: Option<String>,
    #[arg(short, long, hide = true)]
    v: Option<i64>,
    #[arg(long, hide = true)]
    vmodule: Option<String>,
    #[arg(long, hide = true)]
    proxy_port_range: Option<String>,
    #[arg(long, hide = true)]
    show_hidden_metrics_for_version: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true")]
    profiling: Option<bool>,
    #[command(flatten)]
    log: LogFlags,
}

/// How upstream holds logs back; here they are not.
#[derive(clap::Args, Clone, Default)]
struct LogFlags {
    #[arg(long, hide = true)]
    log_flush_frequency: Option<String>,
    #[arg(long, hide = true)]
    log_json_info_buffer_size: Option<String>,
    #[arg(long, hide = true)]
    log_text_info_buffer_size: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true")]
    log_json_split_stream: Option<bool>,
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true")]
    log_text_split_stream: Option<bool>,
}

impl DocumentFlags {
    /// As a configuration file would say it; nothing of what was not said.
    pub fn document(&self) -> Value {
        // Both modes have the bit; ours is read from either.
        let mut document = json!({
            "bindAddress": self.bind_address,
            "bindAddressHardFail": self.bind_address_hard_fail,
            "clientConnection": {
                "burst": self.kube_api_burst, "contentType": self.kube_api_content_type, "qps": self.kube_api_qps,
            },
            "clusterCIDR": self.cluster_cidr,
            "configSyncPeriod": self.config_sync_period,
            "conntrack": {
                "maxPerCore": self.conntrack_max_per_core, "min": self.conntrack_min,
                "tcpBeLiberal": self.conntrack_tcp_be_liberal,
                "tcpEstablishedTimeout": self.conntrack_tcp_timeout_established,
                "tcpCloseWaitTimeout": self.conntrack_tcp_timeout_close_wait,
                "udpTimeout": self.conntrack_udp_timeout, "udpStreamTimeout": self.conntrack_udp_timeout_stream,
            },
            "detectLocal": {
                "bridgeInterface": self.pod_bridge_interface, "interfaceNamePrefix": self.pod_interface_name_prefix,
            },
            "detectLocalMode": self.detect_local_mode,
            "enableProfiling": self.profiling,
            "healthzBindAddress": self.healthz_bind_address.as_deref().map(|a| with_port(a, self.healthz_port)),
            "iptables": {
                "localhostNodePorts": self.iptables_localhost_nodeports,
                "minSyncPeriod": self.iptables_min_sync_period, "syncPeriod": self.iptables_sync_period,
            },
            "ipvs": {
                "excludeCIDRs": self.ipvs_exclude_cidrs, "minSyncPeriod": self.ipvs_min_sync_period,
                "scheduler": self.ipvs_scheduler, "strictARP": self.ipvs_strict_arp,
                "syncPeriod": self.ipvs_sync_period, "tcpFinTimeout": self.ipvs_tcpfin_timeout,
                "tcpTimeout": self.ipvs_tcp_timeout, "udpTimeout": self.ipvs_udp_timeout,
            },
            "logging": {"format": self.logging_format, "verbosity": self.v, "vmodule": self.vmodule},
            "metricsBindAddress": self.metrics_bind_address.as_deref().map(|a| with_port(a, self.metrics_port)),
            "mode": self.proxy_mode,
            "nftables": {"masqueradeAll": self.masquerade_all, "masqueradeBit": self.nftables_masquerade_bit},
            "nodePortAddresses": self.nodeport_addresses,
            "oomScoreAdj": self.oom_score_adj,
            "portRange": self.proxy_port_range,
            "showHiddenMetricsForVersion": self.show_hidden_metrics_for_version,
        });
        keep_said(&mut document);
        document["apiVersion"] = "kubeproxy.config.k8s.io/v1alpha1".into();
        document["kind"] = "KubeProxyConfiguration".into();
        document
    }

    /// The fields that flags say something of, if any do.
    pub fn fields(&self) -> Vec<String> {
        let document = self.document();
        let fields = document.as_object().into_iter().flat_map(|fields| fields.keys());
        fields.filter(|name| !matches!(name.as_str(), "apiVersion" | "kind")).cloned().collect()
    }

    /// What a file cannot say: that nothing is listened on.
    pub fn close(&self, config: &mut proxy::Config) {
        let closed = |address: &Option<String>, port| address.as_deref() == Some("") || port == Some(0);
        if closed(&self.healthz_bind_address, self.healthz_port) {
            config.healthz = None;
        }
        if closed(&self.metrics_bind_address, self.metrics_port) {
            config.metrics = None;
        }
    }

    /// Flags that say how logs are held back.
    pub fn is_log_held(&self) -> bool {
        let log = &self.log;
        log.log_flush_frequency.is_some()
            || log.log_json_info_buffer_size.is_some()
            || log.log_text_info_buffer_size.is_some()
            || log.log_json_split_stream == Some(true)
            || log.log_text_split_stream == Some(true)
    }
}

/// An address alone, with the port of another flag.
fn with_port(address: &str, port: Option<u16>) -> String {
    match (address.parse::<std::net::IpAddr>(), port) {
        (Ok(ip), Some(port)) if port > 0 => std::net::SocketAddr::new(ip, port).to_string(),
        _ => address.to_string(),
    }
}

/// Drops what says nothing.
fn keep_said(value: &mut Value) {
    if let Value::Object(fields) = value {
        fields.values_mut().for_each(keep_said);
        let says = |value: &Value| match value {
            Value::Null => false,
            Value::Array(list) => !list.is_empty(),
            Value::Object(fields) => !fields.is_empty(),
            _ => true,
        };
        fields.retain(|_, value| says(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        flags: DocumentFlags,
    }

    fn read(line: &str) -> Result<proxy::configuration::Configuration, String> {
        let line = <Line as clap::Parser>::try_parse_from(["kube-proxy"].into_iter().chain(line.split_whitespace()));
        let flags = line.map_err(|error| error.to_string())?.flags;
        let mut read = proxy::configuration::read(&flags.document(), proxy::Config::new("n"))?;
        flags.close(&mut read.config);
        Ok(read)
    }

    #[test]
    fn flags_are_the_files_fields() {
        let said = read("").unwrap();
        assert_eq!(said.warnings, Vec::<String>::new());
        let listens = |line: &str| {
            let config = read(line).unwrap().config;
            [config.healthz, config.metrics].map(|a| a.map(|a| a.to_string()).unwrap_or_default()).join(" ")
        };
        for (line, expect) in [
            ("", "127.0.0.1:10256 127.0.0.1:10249"),
            ("--healthz-bind-address= --metrics-bind-address=0.0.0.0", " 0.0.0.0:10249"),
            ("--healthz-port=0 --metrics-bind-address=::1 --metrics-port=9", " [::1]:9"),
            ("--bind-address=fd00::1 --metrics-port=9", "[::]:10256 [::1]:10249"),
        ] {
            assert_eq!(listens(line), expect, "{line}");
        }
        let told = |line: &str| read(line).unwrap().warnings.join("; ");
        assert_eq!(told("--proxy-mode=iptables"), "mode: iptables: this proxy works with nftables in its place");
        assert_eq!(
            told("--kube-api-qps=7"),
            "clientConnection.qps makes no difference here: requests are not slowed down"
        );
        let refused = |line: &str, why: &str| assert!(read(line).unwrap_err().contains(why), "{line}");
        refused("--proxy-mode=userspace", "Mode.ProxyMode: Invalid value: \"userspace\"");
        refused("--cluster-cidr=x", "ClusterCIDRs[0]: Invalid value: \"x\"");
        refused("--show-hidden-metrics-for-version=1.1", "ShowHiddenMetricsForVersion: Invalid value: \"1.1\"");
        refused("--config-sync-period=-1s", "ConfigSyncPeriod: Invalid value: -1s");
    }
}
