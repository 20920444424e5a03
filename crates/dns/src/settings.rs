//! Which other servers to ask, as a ConfigMap of the cluster says.
//!
//! The two keys kube-dns had: `stubDomains`, an object of domains and their servers, and `upstreamNameservers`, a list of
//! servers for everything else; both JSON. What it says goes before what the server was started with. A key that cannot be
//! read changes nothing.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use hickory_proto::rr::Name;

use crate::upstreams::parse_server;

/// Servers of one list; more would only be asked when all before them are silent, and nobody waits that long.
const MAX_SERVERS: usize = 8;
/// Domains with servers of their own.
const MAX_DOMAINS: usize = 1000;

/// What the ConfigMap says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    pub stub_domains: Vec<(String, Vec<SocketAddr>)>,
    /// `None`: it says nothing of them.
    pub upstreams: Option<Vec<SocketAddr>>,
}

/// Reads its data; and says what could not be read.
pub fn read(data: &BTreeMap<String, String>) -> (Settings, Vec<String>) {
    let mut out = Settings::default();
    let mut faults = Vec::new();
    if let Some(text) = data.get("stubDomains").filter(|text| !text.trim().is_empty()) {
        match stub_domains(text) {
            Ok(domains) => out.stub_domains = domains,
            Err(error) => faults.push(format!("stubDomains: {error}")),
        }
    }
    if let Some(text) = data.get("upstreamNameservers").filter(|text| !text.trim().is_empty()) {
        match serde_json::from_str(text).map_err(|error| error.to_string()).and_then(servers) {
            Ok(servers) => out.upstreams = Some(servers),
            Err(error) => faults.push(format!("upstreamNameservers: {error}")),
        }
    }
    (out, faults)
}

fn stub_domains(text: &str) -> Result<Vec<(String, Vec<SocketAddr>)>, String> {
    let domains: BTreeMap<String, Vec<String>> = serde_json::from_str(text).map_err(|error| error.to_string())?;
    if domains.len() > MAX_DOMAINS {
        return Err(format!("more than {MAX_DOMAINS} domains"));
    }
    let one = |(domain, list): (String, Vec<String>)| {
        if domain.is_empty() || Name::from_ascii(&domain).is_err() {
            return Err(format!("{domain:?} is no domain name"));
        }
        Ok((domain, servers(list)?))
    };
    domains.into_iter().map(one).collect()
}

fn servers(list: Vec<String>) -> Result<Vec<SocketAddr>, String> {
    if list.len() > MAX_SERVERS {
        return Err(format!("more than {MAX_SERVERS} servers"));
    }
    let one = |text: &String| match text.split_once('#').map(|(address, port)| (address.parse(), port.parse())) {
        // dnsmasq's way to name a port, which kube-dns passed on.
        Some((Ok(address), Ok(port))) => Ok(SocketAddr::new(address, port)),
        _ => parse_server(text),
    };
    list.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn config_maps_are_read() {
        let show = |(settings, faults): (Settings, Vec<String>)| {
            let list = |all: &[SocketAddr]| all.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
            let mut out: Vec<String> =
                settings.stub_domains.iter().map(|(domain, all)| format!("{domain}={}", list(all))).collect();
            out.extend(settings.upstreams.map(|all| format!("others={}", list(&all))));
            out.extend(faults.iter().map(|fault| format!("fault {}", fault.split(':').next().unwrap_or_default())));
            out.join(", ")
        };
        for (stubs, upstreams, expect) in [
            ("", "", ""),
            (
                r#"{"acme.local": ["1.2.3.4"]}"#,
                r#"["8.8.8.8", "8.8.4.4:54"]"#,
                "acme.local=1.2.3.4:53, others=8.8.8.8:53 8.8.4.4:54",
            ),
            (r#"{"a.b": ["1.2.3.4#5353", "fd00::1#54"], "c": []}"#, "[]", "a.b=1.2.3.4:5353 [fd00::1]:54, c=, others="),
            // One key's fault is not the other's.
            ("{", r#"["8.8.8.8"]"#, "others=8.8.8.8:53, fault stubDomains"),
            (r#"{"a": ["example.com"]}"#, "7", "fault stubDomains, fault upstreamNameservers"),
            (r#"{"a..b": ["1.2.3.4"]}"#, "", "fault stubDomains"),
        ] {
            let data = [("stubDomains", stubs), ("upstreamNameservers", upstreams)];
            let data = data.into_iter().map(|(key, text)| (key.to_string(), text.to_string())).collect();
            assert_eq!(show(read(&data)), expect, "{stubs} {upstreams}");
        }
    }
}
