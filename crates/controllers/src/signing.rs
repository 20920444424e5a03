//! Certificates out of signing requests: reading a request, what each built-in signer accepts, and the signed answer.
//!
//! Subject, key and alternative names go into the certificate byte for byte as the request has them; everything else is
//! the signer's. What it does not know: who asked, and whether anybody approved.

use std::sync::Arc;

use jiff::Timestamp;
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{self, EcdsaKeyPair, RsaKeyPair};
use x509_parser::prelude::*;

pub const KUBE_APISERVER_CLIENT: &str = "kubernetes.io/kube-apiserver-client";
pub const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
pub const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";
pub const LEGACY_UNKNOWN: &str = "kubernetes.io/legacy-unknown";

/// Clocks of those who check the certificate may be behind by this many seconds.
const BACKDATE: i64 = 5 * 60;
/// A random serial number, positive: 16 bytes as upstream's.
const SERIAL_BYTES: usize = 16;

const SAN: &[u8] = &[0x55, 0x1d, 0x11];
const RSA_SHA256: &[u8] = &[0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0b, 0x05, 0x00];
const ECDSA_SHA256: &[u8] = &[0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
const ECDSA_SHA384: &[u8] = &[0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x03];

/// One DER value; lengths of up to 2²⁴ bytes, far beyond what the API takes.
fn der(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|p| p.len()).sum();
    let bytes = length.to_be_bytes();
    let mut out = vec![tag];
    match length {
        0..=0x7f => out.push(bytes[7]),
        0x80..=0xff => out.extend([0x81, bytes[7]]),
        0x100..=0xffff => out.extend([0x82, bytes[6], bytes[7]]),
        _ => out.extend([0x83, bytes[5], bytes[6], bytes[7]]),
    }
    parts.iter().for_each(|p| out.extend_from_slice(p));
    out
}

fn sequence(parts: &[&[u8]]) -> Vec<u8> {
    der(0x30, parts)
}

fn time(at: Timestamp) -> Vec<u8> {
    let zoned = at.to_zoned(jiff::tz::TimeZone::UTC);
    // Years up to 2049 are written with two digits, as RFC 5280 wants.
    match zoned.year() {
        ..=2049 => der(0x17, &[zoned.strftime("%y%m%d%H%M%SZ").to_string().as_bytes()]),
        _ => der(0x18, &[zoned.strftime("%Y%m%d%H%M%SZ").to_string().as_bytes()]),
    }
}

fn extension(oid: &[u8], critical: bool, value: &[u8]) -> Vec<u8> {
    let flag: &[u8] = if critical { &[0x01, 0x01, 0xff] } else { &[] };
    sequence(&[&der(0x06, &[oid]), flag, &der(0x04, &[value])])
}

/// What a signing request asks.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    pub common_name: String,
    pub organizations: Vec<String>,
    pub dns_names: usize,
    pub ip_addresses: usize,
    pub emails: usize,
    pub uris: usize,
    subject: Vec<u8>,
    key: Vec<u8>,
    /// The alternative names' extension: whether critical, and its value.
    names: Option<(bool, Vec<u8>)>,
}

impl Asked {
    /// Reads a PEM `CERTIFICATE REQUEST` and checks that who made it has the key.
    pub fn parse(pem: &[u8]) -> Result<Self, String> {
        let (_, block) = parse_x509_pem(pem).map_err(|_| "PEM block type must be CERTIFICATE REQUEST".to_string())?;
        if block.label != "CERTIFICATE REQUEST" && block.label != "NEW CERTIFICATE REQUEST" {
            return Err("PEM block type must be CERTIFICATE REQUEST".into());
        }
        let (_, request) = X509CertificationRequest::from_der(&block.contents).map_err(|e| e.to_string())?;
        let info = &request.certification_request_info;
        let text = |a: &AttributeTypeAndValue<'_>| a.as_str().unwrap_or_default().to_string();
        let mut asked = Self {
            common_name: info.subject.iter_common_name().next().map(text).unwrap_or_default(),
            organizations: info.subject.iter_organization().map(text).collect(),
            subject: info.subject.as_raw().to_vec(),
            key: info.subject_pki.raw.to_vec(),
            ..Self::default()
        };
        for wanted in request.requested_extensions().into_iter().flatten() {
            let ParsedExtension::SubjectAlternativeName(names) = wanted else { continue };
            for name in &names.general_names {
                match name {
                    GeneralName::DNSName(_) => asked.dns_names += 1,
                    GeneralName::IPAddress(_) => asked.ip_addresses += 1,
                    GeneralName::RFC822Name(_) => asked.emails += 1,
                    GeneralName::URI(_) => asked.uris += 1,
                    _ => {}
                }
            }
            asked.names = raw_names(info);
        }
        verify(info, &request)?;
        Ok(asked)
    }

    fn names_total(&self) -> usize {
        self.dns_names + self.ip_addresses + self.emails + self.uris
    }
}

/// The alternative names' extension as the request has it.
fn raw_names(info: &X509CertificationRequestInfo<'_>) -> Option<(bool, Vec<u8>)> {
    info.iter_attributes().find_map(|attribute| match attribute.parsed_attribute() {
        ParsedCriAttribute::ExtensionRequest(request) => {
            request.extensions.iter().find(|e| e.oid.as_bytes() == SAN).map(|e| (e.critical, e.value.to_vec()))
        }
        _ => None,
    })
}

/// Whether the request is signed with the key it names.
fn verify(info: &X509CertificationRequestInfo<'_>, request: &X509CertificationRequest<'_>) -> Result<(), String> {
    let key = &info.subject_pki.subject_public_key.data;
    let algorithm = request.signature_algorithm.algorithm.to_id_string();
    // The curve is the key's, the digest the signature's.
    let long_curve = key.len() > 65;
    let check: &dyn signature::VerificationAlgorithm = match (algorithm.as_str(), long_curve) {
        ("1.2.840.10045.4.3.2", false) => &signature::ECDSA_P256_SHA256_ASN1,
        ("1.2.840.10045.4.3.2", true) => &signature::ECDSA_P384_SHA256_ASN1,
        ("1.2.840.10045.4.3.3", false) => &signature::ECDSA_P256_SHA384_ASN1,
        ("1.2.840.10045.4.3.3", true) => &signature::ECDSA_P384_SHA384_ASN1,
        ("1.3.101.112", _) => &signature::ED25519,
        ("1.2.840.113549.1.1.11", _) => &signature::RSA_PKCS1_2048_8192_SHA256,
        ("1.2.840.113549.1.1.12", _) => &signature::RSA_PKCS1_2048_8192_SHA384,
        ("1.2.840.113549.1.1.13", _) => &signature::RSA_PKCS1_2048_8192_SHA512,
        (other, _) => return Err(format!("unsupported signature algorithm {other}")),
    };
    signature::UnparsedPublicKey::new(check, key)
        .verify(info.raw, &request.signature_value.data)
        .map_err(|_| "unable to verify certificate request signature".into())
}

/// Whether this is a kubelet's request for its client certificate, and if not why.
pub fn check_kubelet_client(asked: &Asked, usages: &[String]) -> Result<(), String> {
    check_node_subject(asked)?;
    if asked.dns_names > 0 {
        return Err("DNS subjectAltNames are not allowed".into());
    }
    if asked.emails > 0 {
        return Err("Email subjectAltNames are not allowed".into());
    }
    if asked.ip_addresses > 0 {
        return Err("IP subjectAltNames are not allowed".into());
    }
    if asked.uris > 0 {
        return Err("URI subjectAltNames are not allowed".into());
    }
    check_usages(usages, "client auth")
}

fn check_node_subject(asked: &Asked) -> Result<(), String> {
    if asked.organizations != ["system:nodes"] {
        return Err("subject organization is not system:nodes".into());
    }
    if !asked.common_name.starts_with("system:node:") {
        return Err("subject common name does not begin with system:node: ".into());
    }
    Ok(())
}

/// Exactly: digital signature, the purpose, and (as RSA keys need it) maybe key encipherment.
fn check_usages(usages: &[String], purpose: &str) -> Result<(), String> {
    let allowed = |u: &&String| ["digital signature", "key encipherment", purpose].contains(&u.as_str());
    let has = |wanted: &str| usages.iter().any(|u| u == wanted);
    if usages.iter().all(|u| allowed(&u)) && has("digital signature") && has(purpose) {
        return Ok(());
    }
    Err(format!("usages did not match [digital signature key encipherment {purpose}]"))
}

/// What a signer accepts.
pub fn check(signer: &str, asked: &Asked, usages: &[String]) -> Result<(), String> {
    match signer {
        KUBELET_CLIENT => check_kubelet_client(asked, usages),
        KUBELET_SERVING => {
            check_node_subject(asked)?;
            if asked.dns_names + asked.ip_addresses == 0 {
                return Err("DNS or IP subjectAltName is required".into());
            }
            if asked.emails > 0 {
                return Err("Email subjectAltNames are not allowed".into());
            }
            if asked.uris > 0 {
                return Err("URI subjectAltNames are not allowed".into());
            }
            check_usages(usages, "server auth")
        }
        KUBE_APISERVER_CLIENT => {
            let allowed = ["digital signature", "key encipherment", "client auth"];
            match usages.iter().all(|u| allowed.contains(&u.as_str())) && usages.iter().any(|u| u == "client auth") {
                true => Ok(()),
                false => Err("usages did not match [digital signature key encipherment client auth]".into()),
            }
        }
        LEGACY_UNKNOWN => Ok(()),
        other => Err(format!("signer {other} is not one of ours")),
    }
}

/// (a request's word, its bit of the key usage)
const KEY_USAGES: &[(&str, u16)] = &[
    ("signing", 0x8000),
    ("digital signature", 0x8000),
    ("content commitment", 0x4000),
    ("key encipherment", 0x2000),
    ("data encipherment", 0x1000),
    ("key agreement", 0x0800),
    ("cert sign", 0x0400),
    ("crl sign", 0x0200),
    ("encipher only", 0x0100),
    ("decipher only", 0x0080),
];

/// (a request's word, the last arc below id-kp, or none for "any")
const PURPOSES: &[(&str, Option<u8>)] = &[
    ("any", None),
    ("server auth", Some(1)),
    ("client auth", Some(2)),
    ("code signing", Some(3)),
    ("email protection", Some(4)),
    ("s/mime", Some(4)),
    ("ipsec end system", Some(5)),
    ("ipsec tunnel", Some(6)),
    ("ipsec user", Some(7)),
    ("timestamping", Some(8)),
    ("ocsp signing", Some(9)),
];

enum Key {
    Rsa(RsaKeyPair),
    P256(EcdsaKeyPair),
    P384(EcdsaKeyPair),
}

/// A certificate authority that signs.
#[derive(Clone)]
pub struct Authority {
    key: Arc<Key>,
    subject: Vec<u8>,
    key_id: Option<Vec<u8>>,
    not_after: Timestamp,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("not_after", &self.not_after).finish_non_exhaustive()
    }
}

/// A private key in PKCS#8, from PEM of that form or of the older one for RSA keys.
pub fn pkcs8(pem: &str) -> Result<Vec<u8>, String> {
    let block = ::pem::parse_many(pem).map_err(|e| e.to_string())?;
    let block = block.iter().find(|b| b.tag().ends_with("PRIVATE KEY")).ok_or("there is no private key in it")?;
    match block.tag() {
        "PRIVATE KEY" => Ok(block.contents().to_vec()),
        "RSA PRIVATE KEY" => {
            let algorithm = [0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00];
            Ok(sequence(&[&[0x02, 0x01, 0x00], &algorithm, &der(0x04, &[block.contents()])]))
        }
        other => Err(format!("{other} is not supported; convert it with `openssl pkcs8 -topk8 -nocrypt`")),
    }
}

impl Authority {
    /// From a CA certificate and its key, PEM both.
    pub fn from_pem(certificate: &str, key: &str) -> Result<Self, String> {
        let (_, block) = parse_x509_pem(certificate.as_bytes()).map_err(|e| e.to_string())?;
        let parsed = block.parse_x509().map_err(|e| e.to_string())?;
        let key = pkcs8(key)?;
        let random = SystemRandom::new();
        let p256 = || EcdsaKeyPair::from_pkcs8(&signature::ECDSA_P256_SHA256_ASN1_SIGNING, &key, &random).ok();
        let p384 = || EcdsaKeyPair::from_pkcs8(&signature::ECDSA_P384_SHA384_ASN1_SIGNING, &key, &random).ok();
        let rsa = || RsaKeyPair::from_pkcs8(&key).ok();
        let key = p256().map(Key::P256).or_else(|| p384().map(Key::P384)).or_else(|| rsa().map(Key::Rsa));
        let key_id = parsed.iter_extensions().find_map(|e| match e.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
            _ => None,
        });
        Ok(Self {
            key: Arc::new(key.ok_or("the key is neither RSA nor on the curves P-256 and P-384")?),
            subject: parsed.subject().as_raw().to_vec(),
            key_id,
            not_after: Timestamp::from_second(parsed.validity().not_after.timestamp()).map_err(|e| e.to_string())?,
        })
    }

    /// The certificate for a request, PEM; it lasts `seconds`, but not longer than the authority.
    pub fn sign(&self, asked: &Asked, usages: &[String], seconds: i64, now: Timestamp) -> Result<String, String> {
        if now >= self.not_after {
            return Err(format!("the signer has expired: NotAfter={}", self.not_after));
        }
        let second = |at: i64| Timestamp::from_second(at).map_err(|e| e.to_string());
        let until = second(now.as_second() + seconds)?.min(self.not_after);
        let random = SystemRandom::new();
        let mut serial = [0u8; SERIAL_BYTES];
        random.fill(&mut serial).map_err(|_| "no random numbers")?;
        // Positive, and without leading zeros.
        serial[0] = serial[0] & 0x7f | 0x40;
        let algorithm = match &*self.key {
            Key::Rsa(_) => RSA_SHA256,
            Key::P256(_) => ECDSA_SHA256,
            Key::P384(_) => ECDSA_SHA384,
        };
        let body = sequence(&[
            &[0xa0, 0x03, 0x02, 0x01, 0x02],
            &der(0x02, &[&serial]),
            algorithm,
            &self.subject,
            &sequence(&[&time(second(now.as_second() - BACKDATE)?), &time(until)]),
            &asked.subject,
            &asked.key,
            &der(0xa3, &[&self.extensions(asked, usages)?]),
        ]);
        let signed = match &*self.key {
            Key::P256(pair) | Key::P384(pair) => {
                pair.sign(&random, &body).map_err(|_| "signing failed")?.as_ref().to_vec()
            }
            Key::Rsa(pair) => {
                let mut out = vec![0; pair.public().modulus_len()];
                pair.sign(&signature::RSA_PKCS1_SHA256, &random, &body, &mut out).map_err(|_| "signing failed")?;
                out
            }
        };
        let whole = sequence(&[&body, algorithm, &der(0x03, &[&[0], &signed])]);
        let config = ::pem::EncodeConfig::new().set_line_ending(::pem::LineEnding::LF);
        Ok(::pem::encode_config(&::pem::Pem::new("CERTIFICATE", whole), config))
    }

    fn extensions(&self, asked: &Asked, usages: &[String]) -> Result<Vec<u8>, String> {
        let (mut bits, mut purposes) = (0u16, Vec::new());
        for usage in usages {
            if let Some((_, bit)) = KEY_USAGES.iter().find(|(word, _)| word == usage) {
                bits |= bit;
            } else if let Some((_, arc)) = PURPOSES.iter().find(|(word, _)| word == usage) {
                let oid = match arc {
                    Some(arc) => der(0x06, &[&[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, *arc]]),
                    None => der(0x06, &[&[0x55, 0x1d, 0x25, 0x00]]),
                };
                purposes.push(oid);
            } else {
                return Err(format!("unrecognized usage values: [{usage:?}]"));
            }
        }
        let mut all = Vec::new();
        if bits != 0 {
            let unused = bits.trailing_zeros() as u8;
            let bytes = bits.to_be_bytes();
            let (bytes, unused) = if unused >= 8 { (&bytes[..1], unused - 8) } else { (&bytes[..], unused) };
            all.push(extension(&[0x55, 0x1d, 0x0f], true, &der(0x03, &[&[unused], bytes])));
        }
        if !purposes.is_empty() {
            let list: Vec<&[u8]> = purposes.iter().map(Vec::as_slice).collect();
            all.push(extension(&[0x55, 0x1d, 0x25], false, &sequence(&list)));
        }
        all.push(extension(&[0x55, 0x1d, 0x13], true, &sequence(&[])));
        if let Some(id) = &self.key_id {
            all.push(extension(&[0x55, 0x1d, 0x23], false, &sequence(&[&der(0x80, &[id])])));
        }
        if let Some((critical, value)) = asked.names.as_ref().filter(|_| asked.names_total() > 0) {
            all.push(extension(SAN, *critical, value));
        }
        let list: Vec<&[u8]> = all.iter().map(Vec::as_slice).collect();
        Ok(sequence(&list))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(name: &str, groups: &[&str], dns: usize, emails: usize) -> Asked {
        Asked {
            common_name: name.into(),
            organizations: groups.iter().map(ToString::to_string).collect(),
            dns_names: dns,
            emails,
            ..Asked::default()
        }
    }

    #[test]
    fn what_signers_accept() {
        let node = &["system:nodes"][..];
        for (signer, request, usages, ok) in [
            (KUBELET_CLIENT, asked("system:node:a", node, 0, 0), "digital signature,client auth", true),
            (
                KUBELET_CLIENT,
                asked("system:node:a", node, 0, 0),
                "digital signature,key encipherment,client auth",
                true,
            ),
            (KUBELET_CLIENT, asked("system:node:a", node, 1, 0), "digital signature,client auth", false),
            (KUBELET_CLIENT, asked("a", node, 0, 0), "digital signature,client auth", false),
            (KUBELET_CLIENT, asked("system:node:a", &["x"], 0, 0), "digital signature,client auth", false),
            (KUBELET_CLIENT, asked("system:node:a", node, 0, 0), "digital signature,server auth", false),
            (KUBELET_SERVING, asked("system:node:a", node, 1, 0), "digital signature,server auth", true),
            (KUBELET_SERVING, asked("system:node:a", node, 0, 0), "digital signature,server auth", false),
            (KUBELET_SERVING, asked("system:node:a", node, 1, 1), "digital signature,server auth", false),
            (KUBE_APISERVER_CLIENT, asked("jane", &["dev"], 0, 0), "client auth", true),
            (KUBE_APISERVER_CLIENT, asked("jane", &["dev"], 0, 0), "server auth", false),
            (LEGACY_UNKNOWN, asked("x", &[], 0, 3), "any", true),
            ("example.com/own", asked("x", &[], 0, 0), "client auth", false),
        ] {
            let usages: Vec<String> = usages.split(',').map(Into::into).collect();
            assert_eq!(check(signer, &request, &usages).is_ok(), ok, "{signer} {request:?} {usages:?}");
        }
    }

    /// `openssl req -new -newkey rsa:2048 -subj /O=dev/O=ops/CN=jane -addext subjectAltName=DNS:a.example,IP:10.0.0.1`
    const REQUEST: &str = include_str!("testdata/request.pem");
    const CA: &str = include_str!("testdata/ca.pem");

    #[test]
    fn signed_certificates_say_what_was_asked() {
        let asked = Asked::parse(REQUEST.as_bytes()).unwrap();
        assert_eq!(
            (asked.common_name.as_str(), asked.organizations.as_slice()),
            ("jane", &["dev".into(), "ops".into()][..])
        );
        assert_eq!((asked.dns_names, asked.ip_addresses), (1, 1));
        // One file holds the CA's certificate and its key.
        let authority = Authority::from_pem(CA, CA).unwrap();
        let usages: Vec<String> = ["digital signature", "key encipherment", "client auth"].map(Into::into).into();
        let now: Timestamp = "2026-06-01T00:00:00Z".parse().unwrap();
        let pem = authority.sign(&asked, &usages, 3600, now).unwrap();
        let (_, block) = parse_x509_pem(pem.as_bytes()).unwrap();
        let certificate = block.parse_x509().unwrap();
        assert_eq!(certificate.subject().to_string(), "O=dev, O=ops, CN=jane");
        assert_eq!(certificate.validity().not_after.timestamp(), now.as_second() + 3600);
        assert_eq!(certificate.validity().not_before.timestamp(), now.as_second() - BACKDATE);
        assert!(certificate.extended_key_usage().unwrap().unwrap().value.client_auth);
        let usage = certificate.key_usage().unwrap().unwrap().value;
        assert!(usage.digital_signature() && usage.key_encipherment() && !usage.key_cert_sign());
        assert_eq!(certificate.subject_alternative_name().unwrap().unwrap().value.general_names.len(), 2);
        let (_, ca) = parse_x509_pem(CA.as_bytes()).unwrap();
        let ca = ca.parse_x509().unwrap();
        signature::UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_ASN1, &ca.public_key().subject_public_key.data)
            .verify(certificate.tbs_certificate.as_ref(), &certificate.signature_value.data)
            .unwrap();
        // Long lives end with the authority's, and nothing is signed after it.
        let pem = authority.sign(&asked, &usages, 1_000_000_000_000, now);
        assert!(pem.is_err() || parse_x509_pem(pem.unwrap().as_bytes()).is_ok());
        assert!(authority.sign(&asked, &usages, 60, "2300-01-01T00:00:00Z".parse().unwrap()).is_err());
    }

    #[test]
    fn requests_that_are_none() {
        for bad in ["", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            assert!(Asked::parse(bad.as_bytes()).is_err(), "{bad}");
        }
        // A flipped bit in the signature.
        let mut block = ::pem::parse(REQUEST).unwrap().into_contents();
        let last = block.len() - 1;
        block[last] ^= 1;
        let forged = ::pem::encode(&::pem::Pem::new("CERTIFICATE REQUEST", block));
        assert!(Asked::parse(forged.as_bytes()).unwrap_err().contains("verify"));
    }
}
