//! Three nodes' network with real packets: pods, Services, node ports, balancers; from pods, nodes, the control plane and
//! a machine outside; nodes that fail. Each answer says whom the pod saw, so source addresses are judged too.

mod failures;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};

use anyhow::{Context, Result, ensure};
use client::{Gvr, Patch};
use serde_json::{Value, json};

use super::place::{IMPATIENCE, Outside, PATIENCE, Place, exchange, exchange_of};
use super::{Stage, image, value, wait};

/// Where each pod's server listens, and the Services' own port.
const POD_PORT: u16 = 8080;
const PORT: u16 = 80;
/// Sent one after the other, each answered before the next.
const LARGE_PACKETS: usize = 20;
const OUTSIDE: [&str; 2] = ["10.245.0.200", "fd0a:245::200"];

/// One pod a node, the nodes' and the outside's places, and the Services' clients.
struct Ground<'a> {
    stage: &'a Stage,
    pods: Vec<Pod>,
    nodes: Vec<Node>,
    fabric: Place,
    outside: Outside,
}

struct Pod {
    place: Place,
    ips: Vec<IpAddr>,
}

struct Node {
    place: Place,
    ips: Vec<IpAddr>,
    ranges: Vec<String>,
}

fn ips(list: &Value, field: &str) -> Vec<IpAddr> {
    list.as_array().into_iter().flatten().filter_map(|one| one[field].as_str()?.parse().ok()).collect()
}

fn of_family(addresses: &[IpAddr], v4: bool) -> Result<IpAddr> {
    addresses.iter().copied().find(|ip| ip.is_ipv4() == v4).with_context(|| format!("{addresses:?} lack a family"))
}

fn names(answers: &BTreeSet<(String, IpAddr)>) -> BTreeSet<&str> {
    answers.iter().map(|(name, _)| name.as_str()).collect()
}

/// All of it, on a cluster of three nodes with both address families.
pub async fn packets(stage: &Stage, done: &dyn Fn(&str)) -> Result<()> {
    let ground = Ground::new(stage).await?;
    ground.pods_reach_pods()?;
    done("pod to pod");
    ground.services(done).await?;
    ground.large_packets_stay_large().await?;
    done("a node port's refusal of a large packet");
    ground.source_addresses(done).await?;
    ground.clients_stay().await?;
    done("session affinity");
    failures::nodes_fail(&ground, done).await?;
    // The last: a pod goes with it.
    ground.endpoints_leave().await?;
    done("endpoints that leave");
    Ok(())
}

impl<'a> Ground<'a> {
    async fn new(stage: &'a Stage) -> Result<Ground<'a>> {
        for n in 1..=stage.nodes {
            let labels = json!({"app": "net", "which": format!("net-{n}")});
            let pod = json!({"metadata": {"name": format!("net-{n}"), "labels": labels}, "spec": {
                "nodeName": format!("node-{n}"), "terminationGracePeriodSeconds": 4,
                "tolerations": [{"operator": "Exists"}],
                "containers": [{"name": "c", "image": image::NAME, "imagePullPolicy": "IfNotPresent"}]}});
            stage.api("", "v1", "pods").create(pod).await?;
        }
        let mut pods = Vec::new();
        for pod in stage.ready_pods("app=net", stage.nodes).await? {
            pods.push(Pod { place: Place::of_pod(&pod)?, ips: ips(&pod["status"]["podIPs"], "ip") });
        }
        pods.sort_by(|a, b| a.place.name.cmp(&b.place.name));
        let mut nodes = Vec::new();
        for n in 1..=stage.nodes {
            let name = format!("node-{n}");
            let object = value(&*stage.client.dynamic(Gvr::new("", "v1", "nodes")).get(&name).await?)?;
            let ranges = object["spec"]["podCIDRs"].as_array().into_iter().flatten();
            nodes.push(Node {
                place: Place::named(&name, &format!("{}-{name}", stage.cluster.name)),
                ips: ips(&object["status"]["addresses"], "address"),
                ranges: ranges.filter_map(Value::as_str).map(str::to_string).collect(),
            });
        }
        for pod in &pods {
            pod.place.serve(POD_PORT)?;
        }
        let addresses = [format!("{}/24", OUTSIDE[0]), format!("{}/64", OUTSIDE[1])];
        let outside = Outside::new(
            &stage.cluster.name,
            &addresses.each_ref().map(String::as_str),
            &["10.245.0.1", "fd0a:245::1"],
        )?;
        Ok(Ground { stage, pods, nodes, fabric: Place::named("fabric", &stage.cluster.name), outside })
    }

    /// Whether an address is one a node has for its own packets to pods: its own, or of its pods' range without being a pod.
    fn is_of_node(&self, node: usize, address: IpAddr) -> bool {
        let node = &self.nodes[node];
        let inside = |range: &String| range.parse::<ipnet::IpNet>().is_ok_and(|net| net.contains(&address));
        node.ips.contains(&address)
            || (node.ranges.iter().any(inside) && !self.pods.iter().any(|pod| pod.ips.contains(&address)))
    }

    /// Each pod to each other, in both families, with its own address; as large packets as there are; nodes to pods.
    fn pods_reach_pods(&self) -> Result<()> {
        for v4 in [true, false] {
            for to in &self.pods {
                let address = SocketAddr::new(of_family(&to.ips, v4)?, POD_PORT);
                for from in &self.pods {
                    let answer = from.place.ask_much(address)?;
                    let own = of_family(&from.ips, v4)?;
                    ensure!(
                        answer == (to.place.name.clone(), own),
                        "{} → {}: {answer:?}",
                        from.place.name,
                        to.place.name
                    );
                }
                for node in &self.nodes {
                    node.place.ask_much(address)?;
                }
                self.fabric.ask_much(address)?;
            }
        }
        for pod in &self.pods {
            let link = pod.place.ip("-o link show dev eth0")?;
            ensure!(link.contains(" mtu 1450 "), "{}: {link}", pod.place.name);
        }
        Ok(())
    }

    async fn service(&self, name: &str, selector: Value, spec: Value) -> Result<Value> {
        let mut body = json!({"metadata": {"name": name}, "spec": {"selector": selector, "ipFamilyPolicy": "RequireDualStack",
            "ports": [{"name": "t", "port": PORT, "targetPort": POD_PORT}, {"name": "u", "port": PORT, "protocol": "UDP", "targetPort": POD_PORT}]}});
        for (field, value) in spec.as_object().into_iter().flatten() {
            body["spec"][field] = value.clone();
        }
        value(&*self.stage.api("", "v1", "services").create(body).await?)
    }

    async fn patch(&self, plural: &str, name: &str, patch: Value) -> Result<Value> {
        value(&*self.stage.api("", "v1", plural).patch(name, Patch::Merge(patch)).await?)
    }

    /// Cluster IP and node port, from pods, nodes and outside; a pod to itself through its Service.
    async fn services(&self, done: &dyn Fn(&str)) -> Result<()> {
        let made = self.service("net", json!({"app": "net"}), json!({"type": "NodePort"})).await?;
        let node_port = node_port_of(&made)?;
        let all: BTreeSet<&str> = self.pods.iter().map(|pod| pod.place.name.as_str()).collect();
        for v4 in [true, false] {
            let vip = SocketAddr::new(of_family(&cluster_ips(&made), v4)?, PORT);
            wait("the Service leads to all", || async {
                let answers = self.pods[0].place.everybody(vip)?;
                ensure!(names(&answers) == all, "{answers:?}");
                Ok(())
            })
            .await?;
            for (n, from) in self.pods.iter().enumerate() {
                for (name, seen) in from.place.everybody(vip)? {
                    let own = of_family(&from.ips, v4)?;
                    let fine = if name == from.place.name { self.is_of_node(n, seen) } else { seen == own };
                    ensure!(fine, "{} → Service → {name} is seen as {seen}", from.place.name);
                }
            }
            done("pod to Service, and to itself");
            for (n, node) in self.nodes.iter().enumerate() {
                let port = SocketAddr::new(of_family(&node.ips, v4)?, node_port);
                for from in [&self.outside.place, &self.fabric, &self.pods[0].place] {
                    let answers = from.everybody(port)?;
                    ensure!(names(&answers) == all, "{} → {port}: {answers:?}", from.name);
                    for (name, seen) in &answers {
                        ensure!(self.is_of_node(n, *seen), "{} → {port} → {name} is seen as {seen}", from.name);
                    }
                }
            }
            done("node ports");
        }
        Ok(())
    }

    /// A node whose packet is too large for a pod behind another's node port is told so in that node's name; pods' packets
    /// to pods there, as large as their links take, are none of that: not one is lost.
    async fn large_packets_stay_large(&self) -> Result<()> {
        let made = value(&*self.stage.api("", "v1", "services").get("net").await?)?;
        for v4 in [true, false] {
            let headers = if v4 { 20 } else { 40 } + 8;
            let port = SocketAddr::new(of_family(&self.nodes[1].ips, v4)?, nth_node_port(&made, 1)?);
            let client = self.nodes[0].place.udp(port.ip())?;
            // The first is lost, and says why; another is sent in pieces.
            wait("a node port takes large packets", || async { exchange_of(&client, port, 1500 - headers) }).await?;
            let from = &self.pods[0].place;
            let to = SocketAddr::new(of_family(&self.pods[1].ips, v4)?, POD_PORT);
            let client = from.udp(to.ip())?;
            for _ in 0..LARGE_PACKETS {
                exchange_of(&client, to, 1450 - headers).context("a large packet from pod to pod")?;
            }
        }
        Ok(())
    }

    /// Local traffic policy keeps the client's own address, says where it leads by its health check port, and lets in
    /// whom it is told to; by node port and by the balancer's address.
    async fn source_addresses(&self, done: &dyn Fn(&str)) -> Result<()> {
        let spec = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local"});
        self.service("local", json!({"which": "net-1"}), spec).await?;
        let made = wait("the Service has addresses", || async {
            let made = value(&*self.stage.api("", "v1", "services").get("local").await?)?;
            let given = ips(&made["status"]["loadBalancer"]["ingress"], "ip");
            ensure!(given.len() == 2, "{}", made["status"]);
            Ok(made)
        })
        .await?;
        let node_port = node_port_of(&made)?;
        let health = u16::try_from(made["spec"]["healthCheckNodePort"].as_u64().context("no health port")?)?;
        let balancers = ips(&made["status"]["loadBalancer"]["ingress"], "ip");
        let outside: Vec<IpAddr> = OUTSIDE.iter().filter_map(|text| text.parse().ok()).collect();
        for v4 in [true, false] {
            let on = |node: usize| -> Result<SocketAddr> {
                Ok(SocketAddr::new(of_family(&self.nodes[node].ips, v4)?, node_port))
            };
            let own = of_family(&outside, v4)?;
            let here = on(0)?;
            wait("the node of the endpoint answers", || async {
                let answer = self.outside.place.ask(here, 0, IMPATIENCE)?;
                ensure!(answer == ("net-1".into(), own), "{answer:?}");
                Ok(())
            })
            .await?;
            ensure!(!self.outside.place.refused(on(2)?)?, "a node without endpoints refuses instead of keeping silent");
            // For a pod it is as if it had asked inside the cluster.
            let answer = self.pods[2].place.ask(on(2)?, 0, PATIENCE)?;
            ensure!(answer == ("net-1".into(), of_family(&self.pods[2].ips, v4)?), "{answer:?}");
            for (node, code, count) in [(0, "200 OK", 1), (2, "503 Service Unavailable", 0)] {
                let said = self.outside.place.get(SocketAddr::new(on(node)?.ip(), health))?;
                let fine = said.starts_with(&format!("HTTP/1.1 {code}"))
                    && said.contains(&format!("\"localEndpoints\":{count}"));
                ensure!(fine, "the health check port of node {}: {said}", node + 1);
            }
            let balancer = SocketAddr::new(of_family(&balancers, v4)?, PORT);
            for (from, seen) in [(&self.outside.place, Some(own)), (&self.fabric, None)] {
                let answer = from.ask(balancer, 0, PATIENCE)?;
                ensure!(answer.0 == "net-1" && seen.is_none_or(|seen| seen == answer.1), "{}: {answer:?}", from.name);
            }
        }
        done("local traffic policy, health check ports, balancers");
        let ranges = |ranges: Value| json!({"spec": {"loadBalancerSourceRanges": ranges}});
        self.patch("services", "local", ranges(json!(["192.0.2.0/24", "2001:db8::/32"]))).await?;
        let all: Vec<SocketAddr> = balancers.iter().map(|ip| SocketAddr::new(*ip, PORT)).collect();
        for to in &all {
            wait("who is not in the ranges waits in vain", || async {
                ensure!(!self.outside.place.refused(*to)?, "refused");
                Ok(())
            })
            .await?;
        }
        self.patch("services", "local", ranges(json!([format!("{}/32", OUTSIDE[0]), format!("{}/128", OUTSIDE[1])])))
            .await?;
        for to in &all {
            wait("who is in the ranges is let in", || async { self.outside.place.ask(*to, 0, IMPATIENCE).map(drop) })
                .await?;
            ensure!(!self.fabric.refused(*to)?, "the control plane is not in the ranges");
        }
        done("balancers' source ranges");
        Ok(())
    }

    /// A client stays with its endpoint, from pods and from outside.
    async fn clients_stay(&self) -> Result<()> {
        let made = self.patch("services", "net", json!({"spec": {"sessionAffinity": "ClientIP"}})).await?;
        for v4 in [true, false] {
            let vip = SocketAddr::new(of_family(&cluster_ips(&made), v4)?, PORT);
            let port = SocketAddr::new(of_family(&self.nodes[1].ips, v4)?, node_port_of(&made)?);
            for (from, to) in [(&self.pods[0].place, vip), (&self.outside.place, port)] {
                wait("one endpoint answers", || async {
                    let answers = from.everybody(to)?;
                    ensure!(answers.len() == 1, "{} → {to}: {answers:?}", from.name);
                    Ok(())
                })
                .await?;
            }
        }
        self.patch("services", "net", json!({"spec": {"sessionAffinity": "None"}})).await?;
        Ok(())
    }

    /// A UDP client whose endpoint leaves is served by another; an endpoint that terminates serves while it is the last.
    async fn endpoints_leave(&self) -> Result<()> {
        let made = self.service("leaving", json!({"leaving": "yes"}), json!({})).await?;
        for name in ["net-1", "net-2"] {
            self.patch("pods", name, json!({"metadata": {"labels": {"leaving": "yes"}}})).await?;
        }
        let from = &self.pods[2].place;
        let mut clients: Vec<(UdpSocket, SocketAddr)> = Vec::new();
        for ip in cluster_ips(&made) {
            clients.push((from.udp(ip)?, SocketAddr::new(ip, PORT)));
        }
        let mut firsts = Vec::new();
        for (socket, to) in &clients {
            firsts.push(wait("the Service answers", || async { exchange(socket, *to) }).await?.0);
            wait("both endpoints answer", || async {
                ensure!(from.everybody(*to)?.len() == 2, "one");
                Ok(())
            })
            .await?;
            ensure!(exchange(socket, *to)?.0 == *firsts.last().context("first")?, "one socket is one connection");
        }
        // Whom the first client talks to leaves; whom the second talks to may be another.
        let gone = firsts[0].clone();
        self.patch("pods", &gone, json!({"metadata": {"labels": {"leaving": null}}})).await?;
        for (socket, to) in &clients {
            wait("the client is served by the other", || async {
                let (name, _) = exchange(socket, *to)?;
                ensure!(name != gone, "still by {name}");
                Ok(())
            })
            .await?;
        }
        let last = if gone == "net-1" { "net-2" } else { "net-1" };
        // The last one is deleted: its process ignores the signal for its grace period, and serves.
        let to = clients[0].1;
        self.stage.api("", "v1", "pods").delete(last, &Default::default()).await?;
        wait("the last endpoint terminates", || async {
            let slices = self.stage.api("discovery.k8s.io", "v1", "endpointslices");
            let list = slices.list(&client::ListOptions::labels("kubernetes.io/service-name=leaving")).await?;
            let all = list.items.iter().map(|slice| value(slice)).collect::<Result<Vec<_>>>()?;
            let terminating = |slice: &Value| slice["endpoints"][0]["conditions"]["terminating"] == true;
            ensure!(all.iter().all(terminating), "{all:?}");
            Ok(())
        })
        .await?;
        let answer = from.ask(to, 0, PATIENCE).context("the last endpoint, terminating")?;
        ensure!(answer.0 == last, "{answer:?}");
        wait("nobody is left", || async {
            ensure!(from.refused(to)?, "silence");
            Ok(())
        })
        .await
    }
}

fn node_port_of(service: &Value) -> Result<u16> {
    nth_node_port(service, 0)
}

fn nth_node_port(service: &Value, n: usize) -> Result<u16> {
    Ok(u16::try_from(service["spec"]["ports"][n]["nodePort"].as_u64().context("no node port")?)?)
}

fn cluster_ips(service: &Value) -> Vec<IpAddr> {
    service["spec"]["clusterIPs"].as_array().into_iter().flatten().filter_map(|ip| ip.as_str()?.parse().ok()).collect()
}
