//! How large packets may be on their way through a tunnel between nodes of IPv6, where none is taken apart on the way: what the
//! tunnel adds is left room for, and where the way holds less than the nodes' links, who sends learns of it.

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::*;

/// Many packets, more than any buffer on the way holds.
const BYTES: usize = 1 << 20;
const WAIT: Duration = Duration::from_secs(10);

fn ip(arguments: &str) {
    let done = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(done.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&done.stderr));
}

/// A pod's namespace behind a node's, with the addresses `.9` and `::9` of the node's ranges. It goes with the fabric.
fn raise_pod(layout: &Layout, n: u32, mtu: u32) -> PathBuf {
    let (node, number) = (layout.node_name_of(n), 90 + n);
    let pod = layout.node_name_of(number);
    let range = format!("fd00:198:19:{n}:");
    for line in [
        format!("netns add {pod}"),
        format!("-n {pod} link set lo up"),
        format!("-n {node} link add pod type veth peer name eth0 netns {pod}"),
        format!("-n {node} link set pod up"),
        format!("-n {pod} link set eth0 mtu {mtu} up"),
        format!("-n {node} addr add 198.19.{n}.1/24 dev pod"),
        format!("-n {node} addr add {range}:1/64 dev pod nodad"),
        format!("-n {pod} addr add 198.19.{n}.9/24 dev eth0"),
        format!("-n {pod} addr add {range}:9/64 dev eth0 nodad"),
        format!("-n {pod} route add default via 198.19.{n}.1"),
        format!("-n {pod} -6 route add default via {range}:1"),
    ] {
        ip(&line);
    }
    layout.node_namespace(number)
}

/// Both ends send as much as they can.
fn exchange(runtime: &tokio::runtime::Runtime, from: &Path, to: &Path, address: IpAddr) -> io::Result<()> {
    let listener = listen_in(to, SocketAddr::new(address, 0))?;
    let target = listener.local_addr()?;
    let connected = runtime.block_on(async { tokio::time::timeout(WAIT, connect_in(from, target)).await })??;
    let near = connected.into_std()?;
    near.set_nonblocking(false)?;
    let (far, _) = listener.accept()?;
    std::thread::scope(|scope| {
        let ends = [&near, &far].map(|stream: &TcpStream| {
            stream.set_read_timeout(Some(WAIT)).unwrap();
            stream.set_write_timeout(Some(WAIT)).unwrap();
            let (mut write, mut read) = (stream, stream);
            let writing = scope.spawn(move || write.write_all(&vec![7; BYTES]));
            let reading = scope.spawn(move || read.read_exact(&mut vec![0; BYTES]));
            [writing, reading]
        });
        ends.into_iter().flatten().try_for_each(|end| end.join().unwrap())
    })
}

#[test]
fn large_packets_cross_between_nodes_of_ipv6() {
    if !root() {
        return;
    }
    let usual = layout("large", 2);
    // Nodes speak the first family to each other.
    let layout = Layout { pod_networks: usual.pod_networks.iter().rev().copied().collect(), ..usual };
    let _cleared = Cleared(layout.clone());
    Fabric::ensure(&layout).unwrap();
    let tunnel = PodNetworkOptions { pod_network: PodNetwork::Vxlan, ..Default::default() };
    let nodes: Vec<_> = (1..=2)
        .map(|n| {
            let addresses: Vec<String> = layout.node_addresses(n).iter().map(ToString::to_string).collect();
            let ranges = [format!("fd00:198:19:{n}::/64"), format!("198.19.{n}.0/24")];
            node(
                &format!("node-{n}"),
                &ranges.each_ref().map(String::as_str),
                &addresses.iter().map(String::as_str).collect::<Vec<_>>(),
            )
        })
        .collect();
    let mtu = within(&layout.node_namespace(1), || pod_mtu(&tunnel, &layout.node_addresses(1))).unwrap();
    assert_eq!(mtu, 1500 - 70);
    let mut pods = Vec::new();
    for n in 1..=2 {
        let mut netlink = within(&layout.node_namespace(n), Netlink::here).unwrap();
        pod_network::update(&mut netlink, &tunnel, &format!("node-{n}"), &nodes).unwrap();
        let link = netlink.vxlan(vxlan::LINK).unwrap().unwrap();
        assert_eq!((link.mtu, link.local), (mtu, layout.node_addresses(n)[0]));
        pods.push(raise_pod(&layout, n, mtu));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let both = ["fd00:198:19:2::9", "198.19.2.9"].map(|text| text.parse::<IpAddr>().unwrap());
    let cross = |way: &str| {
        for address in both {
            let done = exchange(&runtime, &pods[0], &pods[1], address);
            assert!(done.is_ok(), "{way}, to {address}: {done:?}");
        }
    };
    cross("by the link");
    // Through a router, whose way holds less than the nodes' links.
    let (fabric, router) = (&layout.cluster, layout.hosts(1)[0].addr());
    for n in 1..=2 {
        let (node, far) = (layout.node_name_of(n), layout.node_addresses(3 - n)[0]);
        ip(&format!("-n {fabric} -6 route add {far}/128 dev {BRIDGE} mtu 1400"));
        ip(&format!("-n {node} -6 route add {far}/128 via {router}"));
    }
    cross("through a router");
}
