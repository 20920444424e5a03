//! The cluster's certificates and keys: made once, kept in the data directory, used by every role.
//!
//! One authority signs servers and clients alike; each component has a client certificate of its own whose subject is its
//! identity (`CN` user, `O` groups). Files are PEM, private keys readable by the owner alone. A certificate that would
//! expire within a month, or lacks a name it needs, is made anew at start.

use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};

const CA_DAYS: i64 = 3650;
const LEAF_DAYS: i64 = 365;
/// A certificate with less than this left is renewed.
const RENEW_BEFORE_DAYS: i64 = 30;
/// Clocks of clients may be behind by this much.
const BACKDATE_DAYS: i64 = 1;

/// A certificate chain and its key, PEM files.
#[derive(Clone, Debug)]
pub struct Pair {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Pair {
    fn at(dir: &Path, name: &str) -> Self {
        Self { certificate: dir.join(format!("{name}.crt")), key: dir.join(format!("{name}.key")) }
    }

    pub fn read(&self) -> Result<(String, String)> {
        let read = |path: &Path| fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()));
        Ok((read(&self.certificate)?, read(&self.key)?))
    }
}

/// The authority and where its files are.
pub struct Pki {
    dir: PathBuf,
    issuer: Issuer<'static, KeyPair>,
    ca_pem: String,
}

/// Who a certificate is for.
pub enum Purpose<'a> {
    Client,
    Server { names: &'a [&'a str], addresses: &'a [IpAddr] },
    Both { names: &'a [&'a str], addresses: &'a [IpAddr] },
}

fn write(path: &Path, text: &str, mode: u32) -> Result<()> {
    let partial = path.with_extension("new");
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&partial)
        .with_context(|| format!("cannot write {}", partial.display()))?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&partial, path).with_context(|| format!("cannot write {}", path.display()))
}

fn day(offset: i64) -> time_parts::Date {
    time_parts::days_from_now(offset)
}

/// rcgen takes calendar dates.
mod time_parts {
    pub type Date = (i32, u8, u8);

    pub fn days_from_now(days: i64) -> Date {
        let span = jiff::SignedDuration::from_hours(24 * days);
        let at = jiff::Timestamp::now().checked_add(span).unwrap_or(jiff::Timestamp::MAX);
        let date = at.to_zoned(jiff::tz::TimeZone::UTC).date();
        (i32::from(date.year()), date.month().unsigned_abs(), date.day().unsigned_abs())
    }
}

fn lifetime(params: &mut CertificateParams, days: i64) {
    let ((y, m, d), (ey, em, ed)) = (day(-BACKDATE_DAYS), day(days));
    params.not_before = rcgen::date_time_ymd(y, m, d);
    params.not_after = rcgen::date_time_ymd(ey, em, ed);
}

impl Pki {
    /// Opens the authority in `dir`, making it when it is not there.
    pub fn open(dir: &Path) -> Result<Self> {
        Self::authority(dir, "ca", "nauplius-ca")
    }

    /// The authority of front proxies beside it, whose certificates name no users.
    pub fn front_proxy(&self) -> Result<Self> {
        Self::authority(&self.dir, "front-proxy-ca", "nauplius-front-proxy-ca")
    }

    fn authority(dir: &Path, file: &str, common_name: &str) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let pair = Pair::at(dir, file);
        if !pair.certificate.exists() {
            let key = KeyPair::generate()?;
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, common_name);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages =
                vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
            lifetime(&mut params, CA_DAYS);
            let certificate = params.self_signed(&key)?;
            write(&pair.key, &key.serialize_pem(), 0o600)?;
            write(&pair.certificate, &certificate.pem(), 0o644)?;
        }
        let (ca_pem, key_pem) = pair.read()?;
        let key = KeyPair::from_pem(&key_pem).with_context(|| format!("{} is not a key", pair.key.display()))?;
        let issuer = Issuer::from_ca_cert_pem(&ca_pem, key)
            .with_context(|| format!("{} is not a CA certificate", pair.certificate.display()))?;
        Ok(Self { dir: dir.into(), issuer, ca_pem })
    }

    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    pub fn ca_file(&self) -> PathBuf {
        self.dir.join("ca.crt")
    }

    /// The named certificate, made or renewed when needed.
    pub fn pair(&self, name: &str, user: &str, groups: &[&str], purpose: &Purpose<'_>) -> Result<Pair> {
        let pair = Pair::at(&self.dir, name);
        if self.is_good(&pair, purpose) {
            return Ok(pair);
        }
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, user);
        // Several organizations are several groups.
        for group in groups {
            params.distinguished_name.push(DnType::OrganizationName, *group);
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let (client, server) = (ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth);
        params.extended_key_usages = match purpose {
            Purpose::Client => vec![client],
            Purpose::Server { .. } => vec![server],
            Purpose::Both { .. } => vec![client, server],
        };
        if let Purpose::Server { names, addresses } | Purpose::Both { names, addresses } = purpose {
            for name in *names {
                params.subject_alt_names.push(SanType::DnsName((*name).try_into()?));
            }
            params.subject_alt_names.extend(addresses.iter().map(|ip| SanType::IpAddress(*ip)));
        }
        lifetime(&mut params, LEAF_DAYS);
        let certificate = params.signed_by(&key, &self.issuer)?;
        write(&pair.key, &key.serialize_pem(), 0o600)?;
        write(&pair.certificate, &certificate.pem(), 0o644)?;
        Ok(pair)
    }

    fn is_good(&self, pair: &Pair, purpose: &Purpose<'_>) -> bool {
        use x509_parser::prelude::*;
        let Ok((pem, _)) = pair.read() else { return false };
        let Ok((_, block)) = parse_x509_pem(pem.as_bytes()) else { return false };
        let Ok(certificate) = block.parse_x509() else { return false };
        let renew_at = certificate.validity().not_after.timestamp() - RENEW_BEFORE_DAYS * 86_400;
        if jiff::Timestamp::now().as_second() > renew_at {
            return false;
        }
        let (names, addresses) = match purpose {
            Purpose::Client => return true,
            Purpose::Server { names, addresses } | Purpose::Both { names, addresses } => (names, addresses),
        };
        let Ok(Some(said)) = certificate.subject_alternative_name() else { return false };
        let said = &said.value.general_names;
        let bytes = |ip: &IpAddr| match ip {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        names.iter().all(|name| said.iter().any(|s| matches!(s, GeneralName::DNSName(n) if n == name)))
            && addresses.iter().all(|ip| said.iter().any(|s| matches!(s, GeneralName::IPAddress(b) if *b == bytes(ip))))
    }

    /// The key that signs service account tokens: P-256, PKCS#8.
    pub fn service_account_key(&self) -> Result<String> {
        let path = self.dir.join("service-account.key");
        if !path.exists() {
            write(&path, &KeyPair::generate()?.serialize_pem(), 0o600)?;
        }
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    }

    /// Writes a kubeconfig of an identity; certificates are embedded, so that the file can be carried elsewhere.
    pub fn kubeconfig(&self, file: &Path, server: &str, user: &str, pair: &Pair) -> Result<()> {
        use base64::Engine;
        let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
        let (certificate, key) = pair.read()?;
        let config = serde_json::json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "nauplius",
            "clusters": [{"name": "nauplius", "cluster": {"server": server, "certificate-authority-data": encode(&self.ca_pem)}}],
            "users": [{"name": user, "user": {"client-certificate-data": encode(&certificate), "client-key-data": encode(&key)}}],
            "contexts": [{"name": "nauplius", "context": {"cluster": "nauplius", "user": user}}],
        });
        if let Some(parent) = file.parent() {
            fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        }
        write(file, &(serde_json::to_string_pretty(&config)? + "\n"), 0o600)
    }
}
