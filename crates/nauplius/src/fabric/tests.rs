//! The fabric for real, under names of its own. Needs root; says so and passes without it.

mod paths;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::*;

fn root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        println!("skipped: needs root to make network namespaces");
    }
    root
}

/// Removes the fabric when the test ends, however it ends.
struct Cleared(Layout);

impl Drop for Cleared {
    fn drop(&mut self) {
        if let Err(error) = Fabric::remove(&self.0) {
            eprintln!("{error:#}");
        }
    }
}

/// A layout that no other cluster or test of this machine uses; its ranges are documentation and benchmark networks,
/// so that the host's routes for a real cluster stay as they are.
fn layout(test: &str, nodes: u32) -> Layout {
    let net = |text: &str| -> IpNet { text.parse().unwrap() };
    Layout {
        node_network: "198.18.0.0/24".parse().unwrap(),
        node_network_v6: "fd00:198:18::/64".parse().unwrap(),
        pod_networks: vec![net("198.19.0.0/17"), net("fd00:198:19::/56")],
        service_networks: vec![net("198.19.128.0/17"), net("fd00:198:20::/112")],
        balancer_networks: vec![net("198.18.1.0/24"), net("fd00:198:21::/120")],
        ..Layout::new(format!("fabric-{test}-{}", std::process::id()), nodes)
    }
}

#[test]
fn names_and_addresses() {
    let layout = Layout::new("nauplius", 3);
    assert_eq!(layout.fabric_namespace().to_str(), Some("/run/netns/nauplius"));
    assert_eq!(layout.node_namespace(2).to_str(), Some("/run/netns/nauplius-node-2"));
    assert_eq!(layout.control_plane_address().to_string(), "10.245.0.1");
    assert_eq!(layout.node_addresses(3), [IpAddr::from([10, 245, 0, 13])]);
    let six = Layout { pod_networks: vec!["fd01::/48".parse().unwrap(), layout.pod_networks[0]], ..layout.clone() };
    let all: Vec<String> = six.node_addresses(3).iter().map(IpAddr::to_string).collect();
    assert_eq!(all, ["fd0a:245::d", "10.245.0.13"]);
    assert_eq!(six.control_plane_address().to_string(), "fd0a:245::1");
    assert!(layout.is_node_name("nauplius-node-12"));
    assert!(!layout.is_node_name("nauplius-node-"));
    assert!(!layout.is_node_name("nauplius2-node-1"));
}

#[test]
fn bad_layouts_are_refused() {
    for cluster in ["", "a/b", "UPPER", "a-node-1", &"x".repeat(41)] {
        assert!(Layout::new(cluster, 1).check().is_err(), "{cluster:?}");
    }
    assert!(Layout::new("a", 244).check().is_ok());
    assert!(Layout::new("a", 245).check().is_err());
}

#[test]
fn two_clusters_never_share_a_host_route() {
    let (one, two) = (Layout::new("one", 1), Layout::new("two", 1));
    assert!(one.host_routes().iter().all(|route| !two.host_routes().contains(route)));
}

/// Node to node, node to control plane and back; made twice, removed twice; the host cannot reach any of it.
#[test]
fn nodes_reach_each_other() {
    if !root() {
        return;
    }
    let layout = layout("reach", 2);
    let _cleared = Cleared(layout.clone());
    let began = Instant::now();
    Fabric::ensure(&layout).unwrap();
    println!("two nodes made in {:?}", began.elapsed());
    let began = Instant::now();
    Fabric::ensure(&layout).unwrap();
    println!("two nodes found in {:?}", began.elapsed());

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let places = [
        (layout.fabric_namespace(), layout.hosts(1).iter().map(IpNet::addr).collect()),
        (layout.node_namespace(1), layout.node_addresses(1)),
        (layout.node_namespace(2), layout.node_addresses(2)),
    ];
    for (to, address, family) in
        places.iter().flat_map(|(to, all): &(_, Vec<IpAddr>)| [(to, all[0], 0), (to, all[1], 1)])
    {
        let listener = listen_in(to, SocketAddr::from((address, 0))).unwrap();
        let target = listener.local_addr().unwrap();
        for (from, source) in &places {
            runtime.block_on(async {
                let stream = connect_in(from, target).await.unwrap();
                assert_eq!(stream.local_addr().unwrap().ip(), source[family]);
                let mut stream = stream.into_std().unwrap();
                stream.set_nonblocking(false).unwrap();
                let (mut accepted, _) = listener.accept().unwrap();
                accepted.write_all(b"!").unwrap();
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
            });
        }
        let error = std::net::TcpStream::connect_timeout(&target, Duration::from_secs(2)).unwrap_err();
        println!("from the host: {error}");
    }
    // Nothing leads out of the fabric, and a node is told so at once.
    for out in ["203.0.113.1:9", "[2001:db8::1]:9"] {
        let from = layout.node_namespace(1);
        let answer = runtime.block_on(async {
            tokio::time::timeout(Duration::from_secs(2), connect_in(&from, out.parse().unwrap())).await
        });
        println!("out of the fabric to {out}: {:?}", answer.expect("answered at once").unwrap_err());
    }

    let ours = || Netlink::here().unwrap().routes().unwrap();
    assert!(layout.host_routes().iter().all(|route| ours().contains(route)));
    Fabric::remove(&layout).unwrap();
    Fabric::remove(&layout).unwrap();
    assert!(places.iter().all(|(namespace, _)| !namespace.exists()));
    assert!(layout.host_routes().iter().all(|route| !ours().contains(route)));
}

/// A node's namespace removed behind our back is made anew, on the same bridge.
#[test]
fn a_lost_node_is_made_again() {
    if !root() {
        return;
    }
    let layout = layout("again", 1);
    let _cleared = Cleared(layout.clone());
    Fabric::ensure(&layout).unwrap();
    namespace::remove(&layout.node_name_of(1)).unwrap();
    Fabric::ensure(&layout).unwrap();
    let listener = listen_in(&layout.node_namespace(1), SocketAddr::from((layout.node_addresses(1)[0], 0))).unwrap();
    let target = listener.local_addr().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(connect_in(&layout.fabric_namespace(), target)).unwrap();
}

#[test]
fn routes_follow_the_node_object() {
    use k8s_openapi::api::core::v1::Node;
    let cases = [
        (
            r#"{"spec":{"podCIDR":"10.244.1.0/24"},"status":{"addresses":[{"type":"InternalIP","address":"10.245.0.12"}]}}"#,
            vec!["10.244.1.0/24 10.245.0.12"],
        ),
        (
            r#"{"spec":{"podCIDR":"10.244.1.0/24","podCIDRs":["10.244.1.0/24","fd00::/64","10.244.9.7/24"]},
             "status":{"addresses":[{"type":"Hostname","address":"n"},{"type":"InternalIP","address":"10.245.0.12"}]}}"#,
            vec!["10.244.1.0/24 10.245.0.12", "10.244.9.0/24 10.245.0.12"],
        ),
        (
            r#"{"spec":{"podCIDRs":["fd00:0:0:7::/64","10.244.1.0/24"]},
             "status":{"addresses":[{"type":"InternalIP","address":"fd01::2"},{"type":"InternalIP","address":"10.245.0.12"}]}}"#,
            vec!["fd00:0:0:7::/64 fd01::2", "10.244.1.0/24 10.245.0.12"],
        ),
        (
            r#"{"spec":{"podCIDR":"0.0.0.0/0"},"status":{"addresses":[{"type":"InternalIP","address":"10.245.0.12"}]}}"#,
            vec![],
        ),
        (r#"{"spec":{"podCIDR":"10.244.1.0/24"}}"#, vec![]),
        (r#"{"spec":{},"status":{"addresses":[{"type":"InternalIP","address":"10.245.0.12"}]}}"#, vec![]),
    ];
    for (node, expect) in cases {
        let mut value: serde_json::Value = serde_json::from_str(node).unwrap();
        value["metadata"] = serde_json::json!({"name": "n"});
        let node: Node = serde_json::from_value(value).unwrap();
        let got: Vec<String> =
            routes::routes_to(&node).iter().map(|r| format!("{} {}", r.destination, r.gateway.unwrap())).collect();
        assert_eq!(got, expect);
    }
}

fn node(name: &str, ranges: &[&str], addresses: &[&str]) -> std::sync::Arc<k8s_openapi::api::core::v1::Node> {
    let addresses: Vec<_> = addresses.iter().map(|a| serde_json::json!({"type": "InternalIP", "address": a})).collect();
    let body = serde_json::json!({"metadata": {"name": name}, "spec": {"podCIDRs": ranges},
        "status": {"addresses": addresses}});
    std::sync::Arc::new(serde_json::from_value(body).unwrap())
}

/// Ends of the tunnel, next hops and routes, from the Nodes alone.
#[test]
fn a_tunnel_is_planned_from_the_nodes() {
    let own = node("a", &["10.244.0.0/24", "fd00:10:244::/64"], &["192.0.2.1", "2001:db8::1"]);
    let show = |others: &[std::sync::Arc<k8s_openapi::api::core::v1::Node>]| {
        let tunnel = vxlan::Tunnel::plan(&own, others.iter().map(|node| &**node)).unwrap();
        assert_eq!(tunnel.local.to_string(), "192.0.2.1");
        let said = tunnel.neighbours.iter().map(|neighbour| match neighbour {
            netlink::Neighbour::Near(address, hardware) => format!("{address} is {:02x?}", &hardware[..2]),
            netlink::Neighbour::Behind(hardware, address) => format!("{:02x?} behind {address}", &hardware[..2]),
        });
        said.map(|text| text.split(' ').map(|w| w.trim_matches(['[', ']', ','])).collect::<Vec<_>>().join(" "))
            .collect::<Vec<_>>()
    };
    assert!(show(&[]).is_empty());
    let other = node("b", &["10.244.1.0/24", "fd00:10:244:1::/64"], &["2001:db8::2", "192.0.2.2"]);
    let said = show(std::slice::from_ref(&other));
    assert_eq!(said.len(), 3, "{said:?}");
    assert!(said[0].starts_with("10.244.1.0 is 06") && said[1].starts_with("fd00:10:244:1:: is 06"), "{said:?}");
    assert!(said[2].ends_with("behind 192.0.2.2"), "{said:?}");
    // A node that cannot be an end of this tunnel, or has no pods, is none.
    assert!(show(&[node("c", &["10.244.2.0/24"], &["2001:db8::3"]), node("d", &[], &["192.0.2.4"])]).is_empty());
    // A node without an address is not yet one.
    assert!(vxlan::Tunnel::plan(&node("a", &["10.244.0.0/24"], &[]), std::iter::empty()).is_none());
    // Two nodes are two ends, and each is told apart by its name alone.
    assert_eq!(show(&[other, node("c", &["10.244.2.0/24"], &["192.0.2.3"])]).len(), 5);
}

/// Three nodes with a tunnel between, in both families: for a node that comes, changes its address, and goes; as large as
/// asked; and nothing is left of it when nodes route again.
#[test]
fn a_tunnel_carries_pods_packets() {
    if !root() {
        return;
    }
    let layout = layout("tunnel", 3);
    let _cleared = Cleared(layout.clone());
    Fabric::ensure(&layout).unwrap();
    let range = |n: u32| [format!("198.19.{n}.0/24"), format!("fd00:198:19:{n}::/64")];
    let pod = |n: u32| [format!("198.19.{n}.9").parse().unwrap(), format!("fd00:198:19:{n}::9").parse().unwrap()];
    let object = |n: u32, addresses: &[IpAddr]| {
        let (ranges, addresses) = (range(n), addresses.iter().map(ToString::to_string).collect::<Vec<_>>());
        node(
            &format!("node-{n}"),
            &ranges.iter().map(String::as_str).collect::<Vec<_>>(),
            &addresses.iter().map(String::as_str).collect::<Vec<_>>(),
        )
    };
    let mut netlinks: Vec<Netlink> =
        (1..=3).map(|n| within(&layout.node_namespace(n), Netlink::here).unwrap()).collect();
    for (n, netlink) in (1..).zip(&mut netlinks) {
        // A pod's address, as if a pod were there.
        for address in pod(n) {
            netlink.add_address(LOOPBACK, IpNet::from(address)).unwrap();
        }
    }
    let tunnel = PodNetworkOptions { pod_network: PodNetwork::Vxlan, ..Default::default() };
    let mut update = |options: &PodNetworkOptions, nodes: &[std::sync::Arc<k8s_openapi::api::core::v1::Node>]| {
        for (n, netlink) in (1..).zip(&mut netlinks) {
            pod_network::update(netlink, options, &format!("node-{n}"), nodes).unwrap();
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // The far ends that the tunnel's own packets on the first node have routes to.
    let own_routes = || -> Vec<String> {
        let routes = within(&layout.node_namespace(1), || Netlink::here()?.routes()).unwrap();
        let own = routes.iter().filter(|route| route.table == netlink::TUNNEL_TABLE);
        own.map(|route| format!("{} {}", route.destination, route.gateway.unwrap())).collect()
    };
    let reach = |from: u32, to: u32| -> io::Result<Vec<IpAddr>> {
        pod(to)
            .into_iter()
            .map(|address| {
                let listener = listen_in(&layout.node_namespace(to), SocketAddr::new(address, 0))?;
                let target = listener.local_addr()?;
                let namespace = layout.node_namespace(from);
                runtime.block_on(async {
                    tokio::time::timeout(Duration::from_secs(5), connect_in(&namespace, target)).await
                })??;
                Ok(listener.accept()?.1.ip())
            })
            .collect()
    };
    let mtu = |n: u32| {
        let (namespace, addresses) = (layout.node_namespace(n), layout.node_addresses(n));
        within(&namespace, || pod_mtu(&tunnel, &addresses)).unwrap()
    };
    assert_eq!(mtu(1), 1450);

    let mut nodes: Vec<_> = (1..=2).map(|n| object(n, &layout.node_addresses(n))).collect();
    update(&tunnel, &nodes);
    // The node's own packets come out of the tunnel under its pods' first address.
    let seen: Vec<String> = reach(1, 2).unwrap().iter().map(IpAddr::to_string).collect();
    assert_eq!(seen, ["198.19.1.0", "fd00:198:19:1::"]);
    assert!(reach(1, 3).is_err());
    // A node comes.
    nodes.push(object(3, &layout.node_addresses(3)));
    update(&tunnel, &nodes);
    update(&tunnel, &nodes);
    for (from, to) in [(1, 3), (3, 1), (2, 3), (3, 2)] {
        reach(from, to).unwrap();
    }
    assert_eq!(own_routes(), ["198.18.0.12/32 198.18.0.12", "198.18.0.13/32 198.18.0.13"]);
    // Its address changes.
    let moved: IpAddr = "198.18.0.77".parse().unwrap();
    {
        let mut netlink = within(&layout.node_namespace(3), Netlink::here).unwrap();
        let uplink = netlink.expect_link(UPLINK).unwrap();
        netlink.add_address(uplink, IpNet::new(moved, 24).unwrap()).unwrap();
    }
    nodes[2] = object(3, &[moved]);
    update(&tunnel, &nodes);
    for (from, to) in [(1, 3), (3, 1)] {
        reach(from, to).unwrap();
    }
    // It goes.
    nodes.pop();
    update(&tunnel, &nodes);
    assert!(reach(1, 3).is_err());
    reach(2, 1).unwrap();
    // A smaller packet, as asked: the link is another.
    let small = PodNetworkOptions { pod_mtu: Some(1400), ..tunnel.clone() };
    update(&small, &nodes);
    let link = within(&layout.node_namespace(1), || Netlink::here()?.vxlan(vxlan::LINK)).unwrap().unwrap();
    assert_eq!((link.mtu, link.number), (1400, vxlan::NUMBER));
    reach(2, 1).unwrap();
    // By routes again: no link, no tunnel.
    update(&PodNetworkOptions::default(), &nodes);
    assert_eq!(within(&layout.node_namespace(1), || Netlink::here()?.link(vxlan::LINK)).unwrap(), None);
    assert!(own_routes().is_empty());
    reach(2, 1).unwrap();
}

#[test]
fn load_balancers_are_reached_through_a_ready_node() {
    use k8s_openapi::api::core::v1::Node;
    let node = |name: &str, ready: &str, address: &str| -> Node {
        serde_json::from_value(serde_json::json!({"metadata": {"name": name}, "status": {
            "addresses": [{"type": "InternalIP", "address": address}],
            "conditions": [{"type": "Ready", "status": ready}]}}))
        .unwrap()
    };
    let net: IpNet = "198.18.1.0/24".parse().unwrap();
    let via = |nodes: &[Node]| routes::to_balancers(nodes.iter(), net).map(|route| route.gateway.unwrap().to_string());
    assert_eq!(via(&[]), None);
    assert_eq!(
        via(&[node("a", "Unknown", "198.18.0.11"), node("b", "True", "198.18.0.12")]).as_deref(),
        Some("198.18.0.12")
    );
    assert_eq!(
        via(&[node("b", "True", "198.18.0.12"), node("a", "True", "198.18.0.11")]).as_deref(),
        Some("198.18.0.11")
    );
}

#[test]
fn tcp_ports_are_published() {
    let service = serde_json::json!({"metadata": {"name": "s"}, "spec": {"type": "LoadBalancer", "ports": [
        {"port": 80, "nodePort": 30080, "protocol": "TCP"}, {"port": 53, "nodePort": 30053, "protocol": "UDP"},
        {"port": 81, "nodePort": 30081}, {"port": 82}, {"port": 83, "nodePort": 0}]},
        "status": {"loadBalancer": {"ingress": [{"ip": "198.18.1.1"}]}}});
    let mut service: k8s_openapi::api::core::v1::Service = serde_json::from_value(service).unwrap();
    let node = IpAddr::from([198, 18, 0, 11]);
    let lines = |service: &_| -> Vec<String> {
        nodeports::published(service, node).iter().map(|(port, target)| format!("{port} {target}")).collect()
    };
    let node_ports = ["30080 198.18.0.11:30080", "30081 198.18.0.11:30081"];
    let balanced = ["80 198.18.1.1:80", "81 198.18.1.1:81", "82 198.18.1.1:82", "83 198.18.1.1:83"];
    assert_eq!(lines(&service), [&balanced[..], &node_ports[..]].concat());
    service.status = None;
    assert_eq!(lines(&service), node_ports);
}
