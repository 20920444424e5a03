//! A pod's resolver configuration: its DNS policy, the cluster's servers and what it adds itself.

use k8s_openapi::api::core::v1::Pod;

use crate::config::Config;
use crate::cri::v1::DnsConfig;

/// As many name servers and search domains as upstream hands on.
const MAX_NAMESERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;
const MAX_SEARCH_CHARS: usize = 2048;

/// The parts of a resolv.conf.
pub fn parse_resolv_conf(text: &str) -> DnsConfig {
    let mut out = DnsConfig::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => out.servers.extend(words.next().map(str::to_string)),
            Some("search") => {
                out.searches = words.map(|w| if w == "." { w } else { w.trim_end_matches('.') }.to_string()).collect()
            }
            Some("options") => out.options = words.map(str::to_string).collect(),
            _ => {}
        }
    }
    out
}

/// What the pod's resolver is told; `host` is the node's own configuration.
pub fn config(config: &Config, pod: &Pod, host: &DnsConfig) -> DnsConfig {
    let spec = super::spec(pod);
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let cluster = match policy {
        "ClusterFirst" => !super::host_network(pod),
        "ClusterFirstWithHostNet" => true,
        _ => false,
    };
    let mut out = if policy == "None" {
        DnsConfig::default()
    } else if cluster && !config.cluster_dns.is_empty() {
        let namespace = super::namespace(pod);
        let mut searches = Vec::new();
        if !config.cluster_domain.is_empty() {
            let domain = &config.cluster_domain;
            searches = vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.clone()];
        }
        searches.extend(host.searches.iter().cloned());
        DnsConfig {
            servers: config.cluster_dns.iter().map(ToString::to_string).collect(),
            searches,
            options: vec!["ndots:5".into()],
        }
    } else {
        host.clone()
    };
    if let Some(extra) = &spec.dns_config {
        out.servers.extend(extra.nameservers.iter().flatten().cloned());
        out.searches.extend(extra.searches.iter().flatten().cloned());
        for option in extra.options.iter().flatten() {
            let name = option.name.as_deref().unwrap_or_default();
            out.options.retain(|o| o.split(':').next() != Some(name));
            out.options.push(match option.value.as_deref() {
                Some(value) if !value.is_empty() => format!("{name}:{value}"),
                _ => name.to_string(),
            });
        }
    }
    let mut seen = std::collections::HashSet::new();
    out.servers.retain(|s| seen.insert(s.clone()));
    out.servers.truncate(MAX_NAMESERVERS);
    let mut seen = std::collections::HashSet::new();
    out.searches.retain(|s| seen.insert(s.clone()));
    out.searches.truncate(MAX_SEARCHES);
    while out.searches.iter().map(|s| s.len() + 1).sum::<usize>() > MAX_SEARCH_CHARS {
        out.searches.pop();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn policies() {
        let mut node = Config::new("n", "/r", "/s");
        node.cluster_dns = vec!["10.96.0.10".parse().unwrap()];
        let host = parse_resolv_conf("# x\nnameserver 1.1.1.1\nsearch example.com.\noptions rotate\n");
        for (spec, servers, searches, options) in [
            (
                json!({}),
                vec!["10.96.0.10"],
                vec!["ns.svc.cluster.local", "svc.cluster.local", "cluster.local", "example.com"],
                vec!["ndots:5"],
            ),
            (json!({"hostNetwork": true}), vec!["1.1.1.1"], vec!["example.com"], vec!["rotate"]),
            (json!({"dnsPolicy": "Default"}), vec!["1.1.1.1"], vec!["example.com"], vec!["rotate"]),
            (
                json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["9.9.9.9"], "searches": ["a"], "options": [{"name": "ndots", "value": "2"}]}}),
                vec!["9.9.9.9"],
                vec!["a"],
                vec!["ndots:2"],
            ),
        ] {
            let mut spec = spec;
            spec["containers"] = json!([]);
            let pod: Pod = serde_json::from_value(json!({"metadata": {"namespace": "ns"}, "spec": spec})).unwrap();
            let got = config(&node, &pod, &host);
            assert_eq!(
                (got.servers, got.searches, got.options),
                (
                    servers.into_iter().map(String::from).collect(),
                    searches.into_iter().map(String::from).collect(),
                    options.into_iter().map(String::from).collect::<Vec<_>>()
                )
            );
        }
    }
}
