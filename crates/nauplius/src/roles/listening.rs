//! Where and with which certificates the API server answers, and what it is as upstream has it, as upstream's flags say it.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use apiserver::admission::Disabled;
use apiserver::admission::default_tolerations::Seconds;
use apiserver::admission::pod_security::Configured;
use apiserver::http::cors::Origins;
use apiserver::server::Settings;

use super::duration;

/// Upstream's plugins that are not here, so that they are told from words that mean nothing.
const ABSENT: [&str; 8] = [
    "AlwaysAdmit",
    "AlwaysDeny",
    "EventRateLimit",
    "ImagePolicyWebhook",
    "NamespaceAutoProvision",
    "NamespaceExists",
    "PodNodeSelector",
    "PodTolerationRestriction",
];
/// The first node port of upstream's range, and its last.
const NODE_PORTS: (u16, u16) = (30000, 32767);

/// Addresses, certificates, limits.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct ListeningOptions {
    /// The address of --listen, as upstream names it.
    #[arg(long, value_name = "IP")]
    pub bind_address: Option<IpAddr>,
    /// The port of --listen, as upstream names it.
    #[arg(long, value_name = "PORT")]
    pub secure_port: Option<u16>,
    /// The certificate to show instead of one of the cluster's own.
    #[arg(long, value_name = "FILE", requires = "tls_private_key_file")]
    pub tls_cert_file: Option<PathBuf>,
    #[arg(long, value_name = "FILE", requires = "tls_cert_file")]
    pub tls_private_key_file: Option<PathBuf>,
    /// The oldest version of TLS that is spoken [default: VersionTLS12].
    #[arg(long, value_parser = ["VersionTLS12", "VersionTLS13"], value_name = "VERSION")]
    pub tls_min_version: Option<String>,
    /// Cipher suites of TLS 1.2 that are spoken, by their IANA names.
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    pub tls_cipher_suites: Vec<String>,
    /// The certificate shown to kubelets instead of one of the cluster's own.
    #[arg(long, value_name = "FILE", requires = "kubelet_client_key")]
    pub kubelet_client_certificate: Option<PathBuf>,
    #[arg(long, value_name = "FILE", requires = "kubelet_client_certificate")]
    pub kubelet_client_key: Option<PathBuf>,
    /// The authority of kubelets' certificates; any certificate is taken without.
    #[arg(long, value_name = "FILE")]
    pub kubelet_certificate_authority: Option<PathBuf>,
    /// The certificate shown to extension servers instead of one of the cluster's own.
    #[arg(long, value_name = "FILE", requires = "proxy_client_key_file")]
    pub proxy_client_cert_file: Option<PathBuf>,
    #[arg(long, value_name = "FILE", requires = "proxy_client_cert_file")]
    pub proxy_client_key_file: Option<PathBuf>,
    /// Ports of NodePort Services [default: 30000-32767].
    #[arg(long, value_parser = ports, value_name = "FROM-TO")]
    pub service_node_port_range: Option<(u16, u16)>,
    #[command(flatten)]
    pub admission: AdmissionOptions,
    /// How long events are kept [default: 1h].
    #[arg(long, value_parser = duration, value_name = "TIME")]
    pub event_ttl: Option<Duration>,
    /// The longest a request may take [default: 1m].
    #[arg(long, value_parser = duration, value_name = "TIME")]
    pub request_timeout: Option<Duration>,
    /// Patterns of the origins whose pages may call this server from a browser.
    #[arg(long, value_delimiter = ',', value_name = "PATTERNS")]
    pub cors_allowed_origins: Vec<String>,
}

/// Which admission plugins are asked, and what they are told.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct AdmissionOptions {
    /// Admission plugins to ask besides the usual.
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    pub enable_admission_plugins: Vec<String>,
    /// Admission plugins not to ask.
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    pub disable_admission_plugins: Vec<String>,
    /// An AdmissionConfiguration: what single plugins are told.
    #[arg(long, value_name = "FILE")]
    pub admission_control_config_file: Option<PathBuf>,
    /// Seconds pods stay on nodes that are not ready, unless they say so themselves [default: 300].
    #[arg(long, value_name = "SECONDS")]
    pub default_not_ready_toleration_seconds: Option<i64>,
    /// Seconds pods stay on nodes that are out of reach, unless they say so themselves [default: 300].
    #[arg(long, value_name = "SECONDS")]
    pub default_unreachable_toleration_seconds: Option<i64>,
}

/// `30000-32767`, or `30000+100`.
fn ports(text: &str) -> Result<(u16, u16), String> {
    let bad = || format!("{text:?} is not a range of ports such as 30000-32767");
    let number = |text: &str| text.trim().parse::<u16>().map_err(|_| bad());
    let (first, last) = match text.split_once('+') {
        Some((first, more)) => (number(first)?, number(first)?.checked_add(number(more)?).ok_or_else(bad)?),
        None => match text.split_once('-') {
            Some((first, last)) => (number(first)?, number(last)?),
            None => (number(text)?, number(text)?),
        },
    };
    if first == 0 || first > last { Err(bad()) } else { Ok((first, last)) }
}

impl AdmissionOptions {
    fn toleration_seconds(&self) -> Seconds {
        let said = [self.default_not_ready_toleration_seconds, self.default_unreachable_toleration_seconds];
        let Seconds(usual) = Seconds::default();
        Seconds([said[0].unwrap_or(usual[0]), said[1].unwrap_or(usual[1])])
    }

    fn disabled(&self) -> Result<Disabled> {
        let known: Vec<&str> = Disabled::known().collect();
        for (flag, names) in [
            ("enable-admission-plugins", &self.enable_admission_plugins),
            ("disable-admission-plugins", &self.disable_admission_plugins),
        ] {
            for name in names.iter().filter(|name| !known.contains(&&***name)) {
                if !ABSENT.contains(&&**name) {
                    bail!("{flag} plugin {name:?} is unknown");
                }
                ensure!(flag != "enable-admission-plugins", "{flag} plugin {name:?} is not supported");
            }
        }
        let both = self.enable_admission_plugins.iter().find(|name| self.disable_admission_plugins.contains(name));
        if let Some(name) = both {
            bail!("{name} in enable-admission-plugins and disable-admission-plugins overlapped");
        }
        Ok(Disabled::new(
            self.enable_admission_plugins.iter().map(String::as_str),
            self.disable_admission_plugins.iter().map(String::as_str),
        ))
    }

    fn pod_security(&self) -> Result<Configured> {
        match &self.admission_control_config_file {
            None => Ok(Configured::default()),
            Some(file) => {
                let shown = file.display();
                let bytes = std::fs::read(file).with_context(|| format!("cannot read {shown}"))?;
                let dir = file.parent().unwrap_or(Path::new("."));
                apiserver::admission::configuration::parse(&bytes, dir).map_err(|e| anyhow!("{shown}: {e}"))
            }
        }
    }
}

impl ListeningOptions {
    pub fn address(&self, listen: SocketAddr) -> SocketAddr {
        SocketAddr::new(self.bind_address.unwrap_or(listen.ip()), self.secure_port.unwrap_or(listen.port()))
    }

    pub fn node_ports(&self) -> (u16, u16) {
        self.service_node_port_range.unwrap_or(NODE_PORTS)
    }

    pub fn settings(&self) -> Result<Settings> {
        Ok(Settings {
            pod_security: self.admission.pod_security()?,
            disabled_plugins: self.admission.disabled()?,
            toleration_seconds: self.admission.toleration_seconds(),
            event_ttl: self.event_ttl.map(|time| time.as_secs()),
            request_timeout: self.request_timeout,
            cors: Origins::new(&self.cors_allowed_origins).map_err(|e| anyhow!(e))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_ports() {
        for (text, expect) in [
            ("30000-32767", Some((30000, 32767))),
            ("80", Some((80, 80))),
            ("100+10", Some((100, 110))),
            ("2-1", None),
            ("x", None),
            ("0", None),
        ] {
            assert_eq!(ports(text).ok(), expect, "{text}");
        }
    }

    #[test]
    fn plugins_are_known() {
        let with = |enable: &[&str], disable: &[&str]| {
            let names = |names: &[&str]| names.iter().map(ToString::to_string).collect();
            let said = AdmissionOptions {
                enable_admission_plugins: names(enable),
                disable_admission_plugins: names(disable),
                ..AdmissionOptions::default()
            };
            said.disabled().map_err(|e| e.to_string())
        };
        assert_eq!(with(&["NodeRestriction"], &[]), Ok(Disabled::default()));
        assert_ne!(with(&[], &["PodSecurity"]), Ok(Disabled::default()));
        assert_eq!(with(&[], &["AlwaysPullImages", "EventRateLimit"]), Ok(Disabled::default()));
        assert_ne!(with(&["AlwaysPullImages"], &[]), Ok(Disabled::default()));
        for (enable, disable, expect) in [
            (vec!["Who"], vec![], "plugin \"Who\" is unknown"),
            (vec!["EventRateLimit"], vec![], "is not supported"),
            (vec!["Priority"], vec!["Priority"], "overlapped"),
        ] {
            assert!(with(&enable, &disable).unwrap_err().contains(expect), "{enable:?}");
        }
    }
}
