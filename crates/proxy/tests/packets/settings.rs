//! Each setting of the proxy that decides a packet's fate, by what becomes of packets.

use std::io::ErrorKind;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use proxy::nft::full;
use proxy::{Config, Family, Locality, NodeView, program};
use serde_json::json;

use crate::net::{CLIENT, NODE, Net, VIP, spec};

const SOON: Duration = Duration::from_millis(200);

#[test]
fn settings_have_effect() {
    settings(Family::V4);
}

#[test]
fn settings_have_effect_in_ipv6() {
    settings(Family::V6);
}

fn settings(family: Family) {
    let Some(net) = Net::new(family) else { return };
    net.serve("one", 8080);
    net.serve("two", 8080);
    let both = [("10.8.1.2", "node"), ("10.8.2.2", "elsewhere")];
    let here = both.map(|(address, _)| (address, "node"));
    let node: Node = serde_json::from_value(net.document(json!({
        "metadata": {"name": "node"}, "spec": {"podCIDRs": ["10.8.1.0/24"]}})))
    .unwrap();
    let links = ["10.9.0.1", "10.8.1.1", "10.8.2.1"].map(|text| net.address(text));
    let apply = |more: serde_json::Value, endpoints: &[(&str, &str)], config: &Config| {
        let view = NodeView::new(Some(&node), config).on_links(links, config);
        let table = program([&net.service(spec(more))], [&net.slice_of(endpoints)], family, &view, config);
        net.apply(&full(&table).text);
    };

    // Who is a pod keeps its address through a cluster IP, and is let through a node port that is for outsiders only.
    let cluster = Locality::ClusterCidr;
    for (locality, two_is_a_pod) in [
        (cluster, true),
        (Locality::NodeCidr, false),
        (Locality::Interface("one".into()), false),
        (Locality::Interface("on*".into()), false),
    ] {
        println!("{locality:?}");
        let config = Config { locality, ..net.config() };
        apply(json!({}), &here, &config);
        net.answers("one", VIP, 80, &[("one", "10.8.1.1"), ("two", "10.8.1.2")]);
        let seen_as = if two_is_a_pod { "10.8.2.2" } else { "10.8.1.1" };
        net.answers("two", VIP, 80, &[("one", seen_as), ("two", "10.8.2.1")]);
        net.answers("client", VIP, 80, &[("one", "10.8.1.1"), ("two", "10.8.2.1")]);
        apply(json!({"externalTrafficPolicy": "Local"}), &[("10.8.1.2", "elsewhere")], &config);
        assert_eq!(net.ask_within("two", NODE, 30080, SOON).is_ok(), two_is_a_pod);
        assert!(net.ask_within("client", NODE, 30080, SOON).is_err());
    }

    let all = Config { masquerade_all: true, ..net.config() };
    apply(json!({}), &both, &all);
    net.answers("one", VIP, 80, &[("one", "10.8.1.1"), ("two", "10.8.2.1")]);
    // Local traffic policy keeps the client's address even so.
    apply(json!({"externalTrafficPolicy": "Local"}), &both, &all);
    net.answers("client", NODE, 30080, &[("one", CLIENT)]);

    // Node ports answer on the node's addresses in these ranges, and on no others.
    let config = Config { node_port_addresses: vec![net.net("10.8.1.0/24")], ..net.config() };
    apply(json!({}), &both, &config);
    net.answers("client", "10.8.1.1", 30080, &[("one", "10.8.1.1"), ("two", "10.8.2.1")]);
    for address in [NODE, "10.8.2.1"] {
        let error = net.ask_within("client", address, 30080, SOON).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{address}");
    }
    apply(json!({}), &both, &net.config());
    net.answers("client", NODE, 30080, &[("one", "10.8.1.1"), ("two", "10.8.2.1")]);

    // The mark is the bit that was named: somebody else drops what has it.
    let other = format!(
        "add table {0} other\nadd chain {0} other forward {{ type filter hook forward priority 0 ; }}\n\
         add rule {0} other forward meta mark & 0x20 == 0x20 drop\n",
        family.nft()
    );
    net.apply(&other);
    net.answers("client", VIP, 80, &[("one", "10.8.1.1"), ("two", "10.8.2.1")]);
    apply(json!({}), &both, &Config { masquerade_mark: 0x20, ..net.config() });
    assert!(net.ask_within("client", VIP, 80, SOON).is_err());
}
