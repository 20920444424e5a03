//! What the server knows: the records of each Service, and which name stands for what.
//!
//! [`records`] makes a Service's records from what is known of it; [`Zone::lookup`] finds what a name has. Both are pure. A name
//! that exists without a record of the wanted type is told apart from one that does not exist, as negative caching needs.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use hickory_proto::rr::rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use k8s_openapi::api::core::v1::Service;

use crate::world::{Endpoints, key_of};

/// The specification's version, as `TXT dns-version.<domain>` says it.
const SPECIFICATION_VERSION: &str = "1.1.0";
/// Times of the zone's SOA, in seconds; no secondary server ever reads them.
const REFRESH_SECONDS: i32 = 7200;
const RETRY_SECONDS: i32 = 1800;
const EXPIRE_SECONDS: i32 = 86_400;
/// SRV records have no preference among endpoints.
const SRV_PRIORITY: u16 = 0;
const SRV_WEIGHT: u16 = 100;

/// A host of a headless Service.
#[derive(Clone, Debug, PartialEq)]
pub struct Host {
    pub name: Name,
    pub addresses: Vec<IpAddr>,
}

/// A port by its name.
#[derive(Clone, Debug, PartialEq)]
pub struct Port {
    /// Empty when the Service's only port has none.
    pub name: String,
    /// In lower case.
    pub protocol: String,
    /// Number and host: the Service itself, or each of its endpoints.
    pub targets: Vec<(u16, Name)>,
}

/// Everything one Service answers.
#[derive(Clone, Debug, PartialEq)]
pub struct Records {
    pub name: Name,
    pub addresses: Vec<IpAddr>,
    pub alias: Option<Name>,
    pub ports: Vec<Port>,
    /// By host label; only headless Services have any.
    pub hosts: BTreeMap<String, Host>,
    pub headless: bool,
}

impl Records {
    /// `key`: `namespace/name`.
    fn new(key: &str, origin: &Name) -> Option<Records> {
        let (namespace, label) = key.split_once('/')?;
        let labels = [label.as_bytes(), namespace.as_bytes(), b"svc"];
        Some(Records {
            name: Name::from_labels(labels).ok()?.append_domain(origin).ok()?,
            addresses: Vec::new(),
            alias: None,
            ports: Vec::new(),
            hosts: BTreeMap::new(),
            headless: false,
        })
    }
}

/// The records of a Service that is not headless; `None` when it has none (yet).
pub fn records(service: &Service, origin: &Name) -> Option<Records> {
    let spec = service.spec.as_ref()?;
    let mut out = Records::new(&key_of(&service.metadata), origin)?;
    if spec.type_.as_deref() == Some("ExternalName") {
        let mut target = Name::from_ascii(spec.external_name.as_deref()?).ok()?;
        target.set_fqdn(true);
        out.alias = Some(target);
        return Some(out);
    }
    let texts = spec.cluster_ips.as_deref().filter(|ips| !ips.is_empty()).unwrap_or(spec.cluster_ip.as_slice());
    out.addresses = texts.iter().filter_map(|ip| ip.parse().ok()).collect();
    out.addresses.shrink_to_fit();
    if out.addresses.is_empty() {
        return None;
    }
    for port in spec.ports.iter().flatten() {
        out.ports.push(Port {
            name: port.name.clone().unwrap_or_default(),
            protocol: port.protocol.as_deref().unwrap_or("TCP").to_ascii_lowercase(),
            targets: u16::try_from(port.port).ok().map(|number| (number, out.name.clone())).into_iter().collect(),
        });
    }
    out.ports.shrink_to_fit();
    Some(out)
}

/// The records of a headless Service. `key`: `namespace/name`.
pub fn records_of_endpoints<'a>(
    key: &str,
    slices: impl Iterator<Item = &'a Endpoints>,
    origin: &Name,
) -> Option<Records> {
    let mut out = Records::new(key, origin)?;
    out.headless = true;
    let mut known = HashSet::new();
    for slice in slices {
        for (address, hostname) in &slice.hosts {
            let label = if hostname.is_empty() { dashed(*address) } else { hostname.to_string() };
            let Ok(name) = out.name.prepend_label(label.as_str()) else { continue };
            let host = out.hosts.entry(label).or_insert_with(|| Host { name: name.clone(), addresses: Vec::new() });
            if !host.addresses.contains(address) {
                host.addresses.push(*address);
            }
            for (port_name, protocol, number) in &slice.ports {
                let at = out.ports.iter().position(|p| *p.name == **port_name && *p.protocol == **protocol);
                let at = at.unwrap_or_else(|| {
                    let (name, protocol) = (port_name.to_string(), protocol.to_string());
                    out.ports.push(Port { name, protocol, targets: Vec::new() });
                    out.ports.len() - 1
                });
                if known.insert((at, *number, name.clone())) {
                    out.ports[at].targets.push((*number, name.clone()));
                }
            }
        }
    }
    out.addresses = out.hosts.values().flat_map(|host| host.addresses.iter().copied()).collect();
    out.addresses.sort();
    out.addresses.dedup();
    Some(out)
}

/// The host label of an endpoint or pod without a name: its address with dashes.
fn dashed(address: IpAddr) -> String {
    address.to_string().replace(['.', ':'], "-")
}

/// The address such a label says. IPv6 addresses have at least two dashes in a row or eight groups.
fn undashed(label: &str) -> Option<IpAddr> {
    let v4 = label.replace('-', ".").parse().map(IpAddr::V4);
    v4.or_else(|_| label.replace('-', ":").parse().map(IpAddr::V6)).ok()
}

/// What a name has of a type.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Found {
    /// What the asked name itself has.
    pub answers: Vec<RData>,
    /// Addresses of the hosts the answers name.
    pub additionals: Vec<Record>,
}

/// What became of a lookup.
#[derive(Clone, Debug, PartialEq)]
pub enum Lookup {
    /// The name exists; it may have nothing of this type.
    Name(Found),
    /// It is another name for this one.
    Alias(Name),
    NoSuchName,
    /// Not this zone's to say.
    Elsewhere,
    /// The zone is not complete yet.
    NotYet,
}

/// The cluster's domain, and who has which address.
#[derive(Debug)]
pub struct Zone {
    pub origin: Name,
    pub ttl: u32,
    domain: Vec<String>,
    /// By `namespace/name`.
    services: HashMap<String, Arc<Records>>,
    namespaces: HashSet<String>,
    reverse: HashMap<IpAddr, Vec<Name>>,
    serial: u32,
    complete: bool,
}

impl Zone {
    /// An empty zone; it answers once it is told that it is complete. `None` for an impossible domain.
    pub fn new(domain: &str, ttl: u32) -> Option<Zone> {
        let mut origin = Name::from_ascii(domain.trim_end_matches('.')).ok()?.to_lowercase();
        origin.set_fqdn(true);
        if origin.is_root() {
            return None;
        }
        let domain = labels(&origin);
        Some(Zone {
            origin,
            ttl,
            domain,
            services: HashMap::new(),
            namespaces: HashSet::new(),
            reverse: HashMap::new(),
            serial: 1,
            complete: false,
        })
    }

    pub fn complete(&mut self) {
        self.complete = true;
    }

    /// Whether names of the cluster are answered.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    pub fn set_namespaces(&mut self, names: HashSet<String>) {
        self.namespaces = names;
    }

    /// Puts one Service's records in place of what it had; `key` is `namespace/name`.
    pub fn set_service(&mut self, key: &str, records: Option<Records>) {
        if self.services.get(key).map(|old| &**old) == records.as_ref() {
            return;
        }
        self.serial = self.serial.wrapping_add(1);
        if let Some(old) = self.services.remove(key) {
            for (address, name) in reverse_of(&old) {
                if let Some(names) = self.reverse.get_mut(&address) {
                    names.retain(|known| known != name);
                    if names.is_empty() {
                        self.reverse.remove(&address);
                    }
                }
            }
        }
        if let Some(new) = records {
            for (address, name) in reverse_of(&new) {
                let names = self.reverse.entry(address).or_default();
                names.reserve_exact(1);
                names.push(name.clone());
            }
            self.services.insert(key.to_string(), Arc::new(new));
        }
    }

    /// Sent along with every "no": how long it may be believed.
    pub fn soa(&self) -> Record {
        let under = |label: &str| self.origin.prepend_label(label).unwrap_or_else(|_| self.origin.clone());
        let server = under("dns").prepend_label("ns").unwrap_or_else(|_| self.origin.clone());
        let minimum = self.ttl;
        let soa =
            SOA::new(server, under("hostmaster"), self.serial, REFRESH_SECONDS, RETRY_SECONDS, EXPIRE_SECONDS, minimum);
        Record::from_rdata(self.origin.clone(), self.ttl, RData::SOA(soa))
    }

    /// Whether a name is below the cluster's domain.
    pub fn holds(&self, name: &Name) -> bool {
        self.origin.zone_of(name)
    }

    /// What `name` has of the type.
    pub fn lookup(&self, name: &Name, kind: RecordType) -> Lookup {
        if !self.holds(name) {
            return self.lookup_reverse(name, kind);
        }
        if !self.complete {
            return Lookup::NotYet;
        }
        let all = labels(name);
        let inner: Vec<&str> = all[..all.len() - self.domain.len()].iter().map(String::as_str).collect();
        let nothing = Lookup::Name(Found::default());
        match inner.as_slice() {
            [] => Lookup::Name(self.apex(kind)),
            ["svc"] | ["pod"] | ["dns"] => nothing,
            ["ns", "dns"] => {
                let addresses =
                    self.services.get("kube-system/kube-dns").map(|s| s.addresses.clone()).unwrap_or_default();
                Lookup::Name(of_addresses(&addresses, kind))
            }
            ["dns-version"] if kind == RecordType::TXT => {
                let text = RData::TXT(TXT::new(vec![SPECIFICATION_VERSION.to_string()]));
                Lookup::Name(Found { answers: vec![text], additionals: Vec::new() })
            }
            ["dns-version"] => nothing,
            [namespace, "svc" | "pod"] if self.namespaces.contains(*namespace) => nothing,
            [pod, namespace, "pod"] if self.namespaces.contains(*namespace) => match undashed(pod) {
                Some(address) => Lookup::Name(of_addresses(&[address], kind)),
                None => Lookup::NoSuchName,
            },
            [inner @ .., service, namespace, "svc"] => match self.services.get(&format!("{namespace}/{service}")) {
                Some(records) => self.in_service(records, inner, kind),
                None => Lookup::NoSuchName,
            },
            _ => Lookup::NoSuchName,
        }
    }

    fn apex(&self, kind: RecordType) -> Found {
        let answers = match kind {
            RecordType::SOA => vec![self.soa().data],
            RecordType::NS => {
                let server = self.origin.prepend_label("dns").and_then(|name| name.prepend_label("ns"));
                server.into_iter().map(|name| RData::NS(NS(name))).collect()
            }
            _ => Vec::new(),
        };
        Found { answers, additionals: Vec::new() }
    }

    /// `inner`: the labels in front of the Service's name.
    fn in_service(&self, records: &Records, inner: &[&str], kind: RecordType) -> Lookup {
        match inner {
            [] => match &records.alias {
                Some(target) => Lookup::Alias(target.clone()),
                None if kind == RecordType::SRV => Lookup::Name(self.srv(records, |_| true)),
                None => Lookup::Name(of_addresses(&records.addresses, kind)),
            },
            [host] if records.hosts.contains_key(*host) => {
                Lookup::Name(of_addresses(&records.hosts[*host].addresses, kind))
            }
            [protocol] => {
                let known = |port: &Port| protocol.strip_prefix('_') == Some(&port.protocol);
                if records.ports.iter().any(known) { Lookup::Name(Found::default()) } else { Lookup::NoSuchName }
            }
            [port, protocol] => {
                let (Some(name), Some(protocol)) = (port.strip_prefix('_'), protocol.strip_prefix('_')) else {
                    return Lookup::NoSuchName;
                };
                let wanted = |port: &Port| !name.is_empty() && port.name == name && port.protocol == protocol;
                if !records.ports.iter().any(wanted) {
                    return Lookup::NoSuchName;
                }
                Lookup::Name(if kind == RecordType::SRV { self.srv(records, wanted) } else { Found::default() })
            }
            _ => Lookup::NoSuchName,
        }
    }

    fn srv(&self, records: &Records, wanted: impl Fn(&Port) -> bool) -> Found {
        let mut out = Found::default();
        let mut named = HashSet::new();
        for (number, target) in records.ports.iter().filter(|port| wanted(port)).flat_map(|port| &port.targets) {
            out.answers.push(RData::SRV(SRV::new(SRV_PRIORITY, SRV_WEIGHT, *number, target.clone())));
            named.insert(target);
        }
        let hosts = records.hosts.values().filter(|host| named.contains(&host.name));
        let mut addresses: Vec<(&Name, IpAddr)> =
            hosts.flat_map(|host| host.addresses.iter().map(|ip| (&host.name, *ip))).collect();
        if named.contains(&records.name) {
            addresses.extend(records.addresses.iter().map(|ip| (&records.name, *ip)));
        }
        let additionals = addresses.into_iter().map(|(name, ip)| Record::from_rdata(name.clone(), self.ttl, of(ip)));
        out.additionals.extend(additionals);
        out
    }

    /// Who has an address. Other addresses are somebody else's to say.
    fn lookup_reverse(&self, name: &Name, kind: RecordType) -> Lookup {
        let Some(address) = arpa(name) else { return Lookup::Elsewhere };
        if !self.complete {
            return Lookup::NotYet;
        }
        match self.reverse.get(&address) {
            Some(names) if matches!(kind, RecordType::PTR | RecordType::ANY) => {
                let answers = names.iter().map(|name| RData::PTR(PTR(name.clone()))).collect();
                Lookup::Name(Found { answers, additionals: Vec::new() })
            }
            Some(_) => Lookup::Name(Found::default()),
            None => Lookup::Elsewhere,
        }
    }
}

/// Whether a name is one of the reverse trees'.
pub fn is_reverse(name: &Name) -> bool {
    let all = labels(name);
    matches!(all.as_slice(), [.., tree, arpa] if arpa == "arpa" && (tree == "in-addr" || tree == "ip6"))
}

fn arpa(name: &Name) -> Option<IpAddr> {
    if !is_reverse(name) {
        return None;
    }
    let net = name.parse_arpa_name().ok()?;
    (net.prefix_len() == net.max_prefix_len()).then(|| net.addr())
}

fn reverse_of(records: &Records) -> Vec<(IpAddr, &Name)> {
    if records.headless {
        records.hosts.values().flat_map(|host| host.addresses.iter().map(|ip| (*ip, &host.name))).collect()
    } else {
        records.addresses.iter().map(|ip| (*ip, &records.name)).collect()
    }
}

fn of(address: IpAddr) -> RData {
    match address {
        IpAddr::V4(v4) => RData::A(A(v4)),
        IpAddr::V6(v6) => RData::AAAA(AAAA(v6)),
    }
}

fn of_addresses(addresses: &[IpAddr], kind: RecordType) -> Found {
    let wanted = |ip: &&IpAddr| match kind {
        RecordType::A => ip.is_ipv4(),
        RecordType::AAAA => ip.is_ipv6(),
        RecordType::ANY => true,
        _ => false,
    };
    Found { answers: addresses.iter().filter(wanted).map(|ip| of(*ip)).collect(), additionals: Vec::new() }
}

/// The alias record itself.
pub fn alias(target: &Name) -> RData {
    RData::CNAME(CNAME(target.clone()))
}

/// Labels in lower case, as names are compared.
fn labels(name: &Name) -> Vec<String> {
    name.iter().map(|label| String::from_utf8_lossy(label).to_ascii_lowercase()).collect()
}
