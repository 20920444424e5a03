//! IP addresses and ranges of them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::opaque::Opaque;
use super::{Row, bool, no_overload, text};
use crate::eval::{Error, fail};
use crate::value::Value;

fn parse(raw: &str) -> Result<IpAddr, Error> {
    if raw.contains('%') {
        return fail(format!("IP address {raw:?} with zone value is not allowed"));
    }
    match raw.parse::<IpAddr>() {
        Ok(IpAddr::V6(ip)) if ip.to_ipv4_mapped().is_some() => {
            fail(format!("IPv4-mapped IPv6 address {raw:?} is not allowed"))
        }
        Ok(ip) => Ok(ip),
        Err(_) => fail(format!(
            "IP Address {raw:?} parse error during conversion from string: ParseAddr({raw:?}): unable to parse IP"
        )),
    }
}

fn parse_cidr(raw: &str) -> Result<(IpAddr, u8), Error> {
    let wrong = |why: &str| {
        const CONTEXT: &str = "network address parse error during conversion from string: ";
        fail(format!("{CONTEXT}{CONTEXT}netip.ParsePrefix({raw:?}): {why}"))
    };
    let Some((address, bits)) = raw.rsplit_once('/') else { return wrong("no '/'") };
    let Ok(ip) = address.parse::<IpAddr>() else { return wrong("ParseAddr: unable to parse IP") };
    let digits =
        !bits.is_empty() && bits.bytes().all(|b| b.is_ascii_digit()) && (bits == "0" || !bits.starts_with('0'));
    let max = if ip.is_ipv4() { 32 } else { 128 };
    match bits.parse::<u8>() {
        Ok(n) if digits && n <= max => {
            if matches!(ip, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some()) {
                return fail(format!(
                    "network address parse error during conversion from string: IPv4-mapped IPv6 address {raw:?} is not allowed"
                ));
            }
            Ok((ip, n))
        }
        Ok(_) if digits => wrong("prefix length out of range"),
        _ => wrong(&format!("bad bits after slash: {bits:?}")),
    }
}

fn masked(ip: IpAddr, bits: u8) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => {
            IpAddr::V4(Ipv4Addr::from(u32::from(ip) & u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0)))
        }
        IpAddr::V6(ip) => {
            IpAddr::V6(Ipv6Addr::from(u128::from(ip) & u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0)))
        }
    }
}

fn ip(args: &[Value<'_>], at: usize) -> Result<IpAddr, Error> {
    match args.get(at) {
        Some(Value::Opaque(Opaque::Ip(ip))) => Ok(*ip),
        Some(Value::String(raw)) => parse(raw),
        _ => no_overload(),
    }
}

fn cidr(args: &[Value<'_>], at: usize) -> Result<(IpAddr, u8), Error> {
    match args.get(at) {
        Some(Value::Opaque(Opaque::Cidr(ip, bits))) => Ok((*ip, *bits)),
        Some(Value::String(raw)) => parse_cidr(raw),
        _ => no_overload(),
    }
}

fn contains_ip<'a>(args: &[Value<'a>]) -> Result<Value<'a>, Error> {
    let ((network, bits), ip) = (cidr(args, 0)?, ip(args, 1)?);
    bool(network.is_ipv4() == ip.is_ipv4() && masked(network, bits) == masked(ip, bits))
}

fn contains_cidr<'a>(args: &[Value<'a>]) -> Result<Value<'a>, Error> {
    let ((outer, bits), (inner, more)) = (cidr(args, 0)?, cidr(args, 1)?);
    bool(outer.is_ipv4() == inner.is_ipv4() && bits <= more && masked(outer, bits) == masked(inner, bits))
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.segments()[0] & 0xffc0 == 0xfe80,
    }
}

fn is_link_local_multicast(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.octets()[..3] == [224, 0, 0],
        IpAddr::V6(ip) => ip.segments()[0] & 0xff0f == 0xff02,
    }
}

fn is_global(ip: IpAddr) -> bool {
    let broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
    !(ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || is_link_local(ip) || broadcast)
}

pub const ROWS: &[Row] = &[
    Row("ip", "string_to_ip", "(string) net.IP", |a| Ok(Value::Opaque(Opaque::Ip(parse(text(a, 0)?)?)))),
    Row("isIP", "is_ip", "(string) bool", |a| bool(parse(text(a, 0)?).is_ok())),
    Row("ip.isCanonical", "ip_is_canonical", "(string) bool", |a| bool(parse(text(a, 0)?)?.to_string() == text(a, 0)?)),
    Row("family", "ip_family", "net.IP.() int", |a| Ok(Value::Int(if ip(a, 0)?.is_ipv4() { 4 } else { 6 }))),
    Row("isUnspecified", "ip_is_unspecified", "net.IP.() bool", |a| bool(ip(a, 0)?.is_unspecified())),
    Row("isLoopback", "ip_is_loopback", "net.IP.() bool", |a| bool(ip(a, 0)?.is_loopback())),
    Row("isLinkLocalMulticast", "ip_is_link_local_multicast", "net.IP.() bool", |a| {
        bool(is_link_local_multicast(ip(a, 0)?))
    }),
    Row("isLinkLocalUnicast", "ip_is_link_local_unicast", "net.IP.() bool", |a| bool(is_link_local(ip(a, 0)?))),
    Row("isGlobalUnicast", "ip_is_global_unicast", "net.IP.() bool", |a| bool(is_global(ip(a, 0)?))),
    Row("cidr", "string_to_cidr", "(string) net.CIDR", |a| {
        let (ip, bits) = parse_cidr(text(a, 0)?)?;
        Ok(Value::Opaque(Opaque::Cidr(ip, bits)))
    }),
    Row("isCIDR", "is_cidr", "(string) bool", |a| bool(parse_cidr(text(a, 0)?).is_ok())),
    Row("containsIP", "cidr_contains_ip_string", "net.CIDR.(string) bool", contains_ip),
    Row("containsIP", "cidr_contains_ip_ip", "net.CIDR.(net.IP) bool", contains_ip),
    Row("containsCIDR", "cidr_contains_cidr_string", "net.CIDR.(string) bool", contains_cidr),
    Row("containsCIDR", "cidr_contains_cidr", "net.CIDR.(net.CIDR) bool", contains_cidr),
    Row("ip", "cidr_ip", "net.CIDR.() net.IP", |a| Ok(Value::Opaque(Opaque::Ip(cidr(a, 0)?.0)))),
    Row("prefixLength", "cidr_prefix_length", "net.CIDR.() int", |a| Ok(Value::Int(i64::from(cidr(a, 0)?.1)))),
    Row("masked", "cidr_masked", "net.CIDR.() net.CIDR", |a| {
        let (ip, bits) = cidr(a, 0)?;
        Ok(Value::Opaque(Opaque::Cidr(masked(ip, bits), bits)))
    }),
];
