//! What the proxy answers over HTTP: its own health and metrics, and the health check node ports of Services.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use client::answers::{Answer, serve};
use client::{EventType, Recorder};
use k8s_openapi::api::core::v1::ObjectReference;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::DropGuard;

use crate::metrics::Metrics;
use crate::{Config, Family, pages};

/// Rules that could not be written for this long make the proxy unhealthy.
const LATE: Duration = Duration::from_secs(60);

/// Whether the proxy works: shared between the loop and the servers.
#[derive(Debug)]
pub struct Health {
    began: Instant,
    families: Vec<Family>,
    /// Milliseconds after `began` since when rules wait to be written; 0: none do.
    waiting_since: AtomicU64,
    /// Likewise when they were last written.
    written: AtomicU64,
    /// There is a Node, and it stays.
    node_stays: AtomicBool,
}

impl Health {
    pub fn new(families: &[Family]) -> Health {
        Health {
            began: Instant::now(),
            families: families.to_vec(),
            waiting_since: AtomicU64::new(0),
            written: AtomicU64::new(0),
            node_stays: AtomicBool::new(false),
        }
    }

    fn now(&self) -> u64 {
        self.began.elapsed().as_millis() as u64 + 1
    }

    /// Rules wait to be written, from now unless some waited already.
    pub fn waiting(&self) {
        let _ = self.waiting_since.compare_exchange(0, self.now(), Ordering::Relaxed, Ordering::Relaxed);
    }

    pub fn done(&self) {
        self.written.store(self.now(), Ordering::Relaxed);
        self.waiting_since.store(0, Ordering::Relaxed);
    }

    /// The Node was seen, and is to stay or to go. Until it was nobody should send traffic here.
    pub fn node_is(&self, staying: bool) {
        self.node_stays.store(staying, Ordering::Relaxed);
    }

    /// For how long rules have been waiting.
    fn waits(&self) -> Duration {
        match self.waiting_since.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            since => Duration::from_millis(self.now().saturating_sub(since)),
        }
    }

    pub fn in_time(&self) -> bool {
        self.waits() < LATE
    }

    pub fn healthy(&self) -> bool {
        self.in_time() && self.node_stays.load(Ordering::Relaxed)
    }

    /// `of_node`: whether the Node is one to send traffic to is part of it.
    fn answer(&self, of_node: bool) -> Answer {
        let (now, in_time) = (jiff::Timestamp::now(), self.in_time());
        let healthy = if of_node { self.healthy() } else { in_time };
        let ago = self.now().saturating_sub(self.written.load(Ordering::Relaxed));
        let written = (now - Duration::from_millis(ago)).to_string();
        // Who is healthy is up to date, though nothing has been written for long.
        let updated = if healthy { now.to_string() } else { written.clone() };
        let of_family = |family: &Family| {
            (family.address_type().to_string(), json!({"lastUpdated": written.as_str(), "healthy": in_time}))
        };
        let status: serde_json::Map<String, Value> = self.families.iter().map(of_family).collect();
        let mut body = json!({
            "lastUpdated": updated, "currentTime": now.to_string(), "healthy": healthy, "status": status,
        });
        if of_node {
            body["nodeEligible"] = self.node_stays.load(Ordering::Relaxed).into();
        }
        let body = body.to_string();
        let status = if healthy { 200 } else { 503 };
        Answer { content_type: "application/json", ..Answer::text(status, body) }
    }
}

/// The proxy's own two servers. An address that is taken is reported, and the proxy works without unless it must not.
pub async fn own_servers(config: &Config, health: &Arc<Health>, metrics: &Arc<Metrics>) -> io::Result<Vec<DropGuard>> {
    let mut out = Vec::new();
    let bind = async |address: Option<SocketAddr>| {
        let Some(address) = address else { return Ok(None) };
        match TcpListener::bind(address).await {
            Ok(listener) => Ok(Some(listener)),
            Err(error) if config.bind_hard_fail => Err(io::Error::new(error.kind(), format!("{address}: {error}"))),
            Err(error) => {
                tracing::warn!("the proxy does not answer on {address}: {error}");
                Ok(None)
            }
        }
    };
    if let Some(listener) = bind(config.healthz).await? {
        let (health, metrics) = (health.clone(), metrics.clone());
        out.push(serve(listener, move |path| match path {
            "/healthz" => {
                metrics.asked(false, health.healthy());
                health.answer(true)
            }
            "/livez" => {
                metrics.asked(true, health.in_time());
                health.answer(false)
            }
            _ => Answer::text(404, "404 page not found\n"),
        }));
    }
    if let Some(listener) = bind(config.metrics).await? {
        let (metrics, config, began) = (metrics.clone(), config.clone(), SystemTime::now());
        out.push(serve(listener, move |path| match path {
            "/metrics" => Answer {
                content_type: "text/plain; version=0.0.4",
                ..Answer::text(200, metrics.render() + &client::process::text() + &client::exposition::text())
            },
            "/proxyMode" => Answer::text(200, "nftables"),
            "/healthz" => Answer::text(200, "ok"),
            "/configz" => Answer { content_type: "application/json", ..Answer::text(200, pages::configz(&config)) },
            "/statusz" => Answer::text(200, pages::statusz(began, SystemTime::now())),
            "/flagz" => Answer::text(200, pages::flagz(&config)),
            _ => Answer::text(404, "404 page not found\n"),
        }));
    }
    Ok(out)
}

/// The health check node ports, one server a port and address.
#[derive(Default)]
pub struct HealthPorts {
    open: BTreeMap<(IpAddr, u16), (String, Arc<AtomicU64>, DropGuard)>,
}

impl HealthPorts {
    /// `wanted`: port → Service key and its count of local ready endpoints.
    /// That a port cannot be opened is said in an event of its Service.
    pub async fn set(
        &mut self,
        wanted: &BTreeMap<u16, (String, usize)>,
        addresses: &[IpAddr],
        health: &Arc<Health>,
        (node, recorder): (&str, &Recorder),
    ) {
        self.open.retain(|(address, port), (key, _, _)| {
            addresses.contains(address) && wanted.get(port).is_some_and(|(service, _)| service == key)
        });
        for (port, (key, count)) in wanted {
            for address in addresses {
                if let Some((_, known, _)) = self.open.get(&(*address, *port)) {
                    known.store(*count as u64, Ordering::Relaxed);
                    continue;
                }
                let listener = match TcpListener::bind((*address, *port)).await {
                    Ok(listener) => listener,
                    Err(error) => {
                        tracing::warn!(
                            "cannot open the health check port {port} of Service {key} on {address}: {error}"
                        );
                        let said = format!(
                            "node {node} failed to start healthcheck {key:?} on port {port}: listen {address}: {error}"
                        );
                        let warning = EventType::Warning;
                        recorder.event(&service_reference(key), warning, "FailedToStartServiceHealthcheck", said);
                        continue;
                    }
                };
                let known = Arc::new(AtomicU64::new(*count as u64));
                let (counted, service, health) = (known.clone(), key.clone(), health.clone());
                let guard = serve(listener, move |_| {
                    service_health(&service, counted.load(Ordering::Relaxed), health.in_time())
                });
                self.open.insert((*address, *port), (key.clone(), known, guard));
            }
        }
    }
}

fn service_reference(key: &str) -> ObjectReference {
    let (namespace, name) = key.split_once('/').unwrap_or(("", key));
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Service".into()),
        namespace: Some(namespace.into()),
        name: Some(name.into()),
        ..Default::default()
    }
}

/// What a load balancer is told: this node takes traffic for the Service when it has an endpoint and the proxy works. A
/// node that is about to go has its endpoints as long as they are there.
pub fn service_health(key: &str, local_endpoints: u64, proxy_healthy: bool) -> Answer {
    let (namespace, name) = key.split_once('/').unwrap_or(("", key));
    let body = json!({
        "service": {"namespace": namespace, "name": name},
        "localEndpoints": local_endpoints,
        "serviceProxyHealthy": proxy_healthy,
    });
    let status = if local_endpoints > 0 && proxy_healthy { 200 } else { 503 };
    Answer {
        status,
        content_type: "application/json",
        header: Some(("X-Load-Balancing-Endpoint-Weight", local_endpoints.to_string())),
        body: body.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nobody is sent to a node that was not seen yet, or goes; the proxy lives all the same.
    #[test]
    fn of_the_node_and_of_each_family() {
        let health = Health::new(&[Family::V4, Family::V6]);
        let said = |of_node: bool| {
            let answer = health.answer(of_node);
            let body: Value = serde_json::from_str(&answer.body).unwrap();
            let families: Vec<&str> = body["status"].as_object().unwrap().keys().map(String::as_str).collect();
            assert_eq!(families, ["IPv4", "IPv6"]);
            assert_eq!(body["status"]["IPv6"]["healthy"], true);
            (answer.status, body["healthy"].as_bool().unwrap(), body["nodeEligible"].as_bool())
        };
        assert_eq!(said(true), (503, false, Some(false)));
        assert_eq!(said(false), (200, true, None));
        health.node_is(true);
        assert_eq!(said(true), (200, true, Some(true)));
        health.node_is(false);
        assert_eq!(said(true), (503, false, Some(false)));
        assert_eq!(said(false), (200, true, None));
    }
}
