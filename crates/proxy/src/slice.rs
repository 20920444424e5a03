//! What the proxy keeps of an EndpointSlice: a fraction of it, since a large cluster has very many.

use std::net::IpAddr;
use std::time::SystemTime;

use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde::Deserialize;

use crate::Family;
use crate::service::Protocol;

/// A slice with this label belongs to a headless Service: DNS only.
const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";
/// Put on a slice by its controller: when the pods changed that it was written for.
const TRIGGERED: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// One slice, read.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(from = "EndpointSlice")]
pub struct Slice {
    /// None for one the proxy has nothing to do with.
    pub family: Option<Family>,
    pub ports: Box<[SlicePort]>,
    pub endpoints: Box<[Known]>,
    /// When the pods changed that it was written for.
    pub triggered: Option<SystemTime>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct SlicePort {
    pub name: Box<str>,
    pub protocol: Protocol,
    pub number: u16,
}

/// An endpoint as its slice tells of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Known {
    pub address: IpAddr,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    /// Empty when the slice names none.
    pub node: Box<str>,
    pub hints: Option<Box<Hints>>,
}

/// Whom an endpoint is meant for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Hints {
    pub zones: Vec<String>,
    pub nodes: Vec<String>,
}

impl From<EndpointSlice> for Slice {
    fn from(slice: EndpointSlice) -> Slice {
        Slice::from(&slice)
    }
}

impl From<&EndpointSlice> for Slice {
    fn from(slice: &EndpointSlice) -> Slice {
        let (labels, annotations) = (slice.metadata.labels.as_ref(), slice.metadata.annotations.as_ref());
        let headless = labels.is_some_and(|labels| labels.contains_key(HEADLESS_LABEL));
        let of_type = |family: &Family| slice.address_type == family.address_type();
        let Some(family) = [Family::V4, Family::V6].into_iter().find(of_type).filter(|_| !headless) else {
            return Slice::default();
        };
        let ports = slice.ports.iter().flatten().filter_map(|port| {
            Some(SlicePort {
                name: port.name.as_deref().unwrap_or_default().into(),
                protocol: Protocol::parse(port.protocol.as_deref())?,
                number: u16::try_from(port.port?).ok().filter(|number| *number != 0)?,
            })
        });
        let endpoints = slice.endpoints.iter().flatten().filter_map(|endpoint| {
            // All addresses of one endpoint are one pod's: the first stands for it.
            let address = endpoint.addresses.first()?.parse::<IpAddr>().ok().filter(|ip| Family::of(*ip) == family)?;
            let conditions = endpoint.conditions.as_ref();
            let ready = conditions.and_then(|c| c.ready).unwrap_or(true);
            let hints = endpoint.hints.as_ref().map(|hints| Hints {
                zones: hints.for_zones.iter().flatten().map(|zone| zone.name.clone()).collect(),
                nodes: hints.for_nodes.iter().flatten().map(|node| node.name.clone()).collect(),
            });
            Some(Known {
                address,
                ready,
                serving: conditions.and_then(|c| c.serving).unwrap_or(ready),
                terminating: conditions.and_then(|c| c.terminating).unwrap_or(false),
                node: endpoint.node_name.as_deref().unwrap_or_default().into(),
                hints: hints.filter(|hints| *hints != Hints::default()).map(Box::new),
            })
        });
        let triggered = annotations.and_then(|annotations| annotations.get(TRIGGERED));
        Slice {
            family: Some(family),
            ports: ports.collect(),
            endpoints: endpoints.collect(),
            triggered: triggered.and_then(|time| Some(time.parse::<jiff::Timestamp>().ok()?.into())),
        }
    }
}
