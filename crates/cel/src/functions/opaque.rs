//! Values only functions look into.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use meta::quantity::Quantity;

use super::authorizer::{Authorize, Check, Decision};
use super::formats::Format;
use super::semver::Version;
use super::url::Url;

#[derive(Clone)]
pub enum Opaque<'a> {
    Quantity(Quantity),
    Ip(IpAddr),
    Cidr(IpAddr, u8),
    Url(Arc<Url>),
    Semver(Arc<Version>),
    Format(&'static Format),
    Authorizer(&'a dyn Authorize, Arc<Check>),
    PathCheck(&'a dyn Authorize, Arc<Check>),
    GroupCheck(&'a dyn Authorize, Arc<Check>),
    ResourceCheck(&'a dyn Authorize, Arc<Check>),
    Decision(Arc<Decision>),
}

impl Opaque<'_> {
    /// A semantic version, as it must be written.
    pub fn semver(said: &str) -> Result<Self, String> {
        super::semver::parse(said).map(|version| Self::Semver(Arc::new(version)))
    }

    pub fn type_name(&self) -> &'static str {
        match self {
            Opaque::Quantity(_) => "kubernetes.Quantity",
            Opaque::Ip(_) => "net.IP",
            Opaque::Cidr(..) => "net.CIDR",
            Opaque::Url(_) => "kubernetes.URL",
            Opaque::Semver(_) => "kubernetes.Semver",
            Opaque::Format(_) => "kubernetes.NamedFormat",
            Opaque::Authorizer(..) => "kubernetes.authorization.Authorizer",
            Opaque::PathCheck(..) => "kubernetes.authorization.PathCheck",
            Opaque::GroupCheck(..) => "kubernetes.authorization.GroupCheck",
            Opaque::ResourceCheck(..) => "kubernetes.authorization.ResourceCheck",
            Opaque::Decision(_) => "kubernetes.authorization.Decision",
        }
    }

    /// Bytes of an address, whose comparison they measure.
    pub fn size(&self) -> u64 {
        match self {
            Opaque::Ip(IpAddr::V4(_)) | Opaque::Cidr(IpAddr::V4(_), _) => 4,
            Opaque::Ip(IpAddr::V6(_)) | Opaque::Cidr(IpAddr::V6(_), _) => 16,
            _ => 1,
        }
    }

    pub fn equals(&self, other: &Opaque<'_>) -> bool {
        match (self, other) {
            (Opaque::Quantity(a), Opaque::Quantity(b)) => a.cmp(b).is_eq(),
            (Opaque::Ip(a), Opaque::Ip(b)) => a == b,
            (Opaque::Cidr(a, n), Opaque::Cidr(b, m)) => a == b && n == m,
            (Opaque::Url(a), Opaque::Url(b)) => a.text == b.text,
            (Opaque::Semver(a), Opaque::Semver(b)) => a.cmp(b).is_eq(),
            (Opaque::Format(a), Opaque::Format(b)) => a.name == b.name,
            (Opaque::Decision(a), Opaque::Decision(b)) => Arc::ptr_eq(a, b),
            (Opaque::Authorizer(_, a), Opaque::Authorizer(_, b))
            | (Opaque::PathCheck(_, a), Opaque::PathCheck(_, b))
            | (Opaque::GroupCheck(_, a), Opaque::GroupCheck(_, b))
            | (Opaque::ResourceCheck(_, a), Opaque::ResourceCheck(_, b)) => a == b,
            _ => false,
        }
    }
}

impl fmt::Display for Opaque<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Opaque::Quantity(q) => write!(f, "{q}"),
            Opaque::Ip(ip) => write!(f, "{ip}"),
            Opaque::Cidr(ip, bits) => write!(f, "{ip}/{bits}"),
            Opaque::Url(url) => f.write_str(&url.text),
            Opaque::Semver(version) => write!(f, "{version}"),
            Opaque::Format(format) => f.write_str(format.name),
            other => f.write_str(other.type_name()),
        }
    }
}

impl fmt::Debug for Opaque<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({self})", self.type_name())
    }
}
