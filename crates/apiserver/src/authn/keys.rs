//! Keys of service account tokens, of the kinds and files upstream takes: RSA and P-256 or P-384, private or public.
//!
//! What a key is called is what upstream calls it, so that relying parties that have seen the one know the other.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm, KeyPair,
    RsaKeyPair,
};
use serde_json::{Value, json};
use x509_parser::pem::Pem;
use x509_parser::prelude::FromDer;
use x509_parser::public_key::{PublicKey, RSAPublicKey};
use x509_parser::x509::SubjectPublicKeyInfo;

const RSA: &[Algorithm] = &[Algorithm::RS256, Algorithm::RS384, Algorithm::RS512];
const P256: &[Algorithm] = &[Algorithm::ES256];
const P384: &[Algorithm] = &[Algorithm::ES384];
/// Object identifiers, encoded: rsaEncryption, ecPublicKey, and the two curves.
const OID_RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
const OID_EC: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
const OID_P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const OID_P384: &[u8] = &[0x2b, 0x81, 0x04, 0x00, 0x22];

/// A public key.
pub struct Verifying {
    pub id: String,
    pub decoding: DecodingKey,
    pub algorithms: &'static [Algorithm],
    /// As a key set shows it.
    pub jwk: Value,
}

/// A private key, and its public half.
pub struct Signing {
    pub encoding: EncodingKey,
    pub algorithm: Algorithm,
    pub public: Verifying,
}

fn der(tag: u8, content: &[&[u8]]) -> Vec<u8> {
    let length: usize = content.iter().map(|part| part.len()).sum();
    let mut out = vec![tag];
    match length {
        0..=0x7f => out.push(length as u8),
        0x80..=0xff => out.extend([0x81, length as u8]),
        _ => out.extend([0x82, (length >> 8) as u8, length as u8]),
    }
    content.iter().for_each(|part| out.extend_from_slice(part));
    out
}

fn integer(big_endian: &[u8]) -> Vec<u8> {
    let zero: &[u8] = if big_endian.first().is_some_and(|first| *first >= 0x80) { &[0] } else { &[] };
    der(0x02, &[zero, big_endian])
}

/// A key's whole public form, whose digest is its name.
fn named(algorithm: &[&[u8]], key: &[u8]) -> String {
    let info = der(0x30, &[&der(0x30, algorithm), &der(0x03, &[&[0], key])]);
    URL_SAFE_NO_PAD.encode(ring::digest::digest(&ring::digest::SHA256, &info))
}

fn rsa(modulus: &[u8], exponent: &[u8]) -> Result<Verifying, String> {
    let plain = |number: &[u8]| number.iter().copied().skip_while(|byte| *byte == 0).collect::<Vec<u8>>();
    let (modulus, exponent) = (plain(modulus), plain(exponent));
    let (n, e) = (URL_SAFE_NO_PAD.encode(&modulus), URL_SAFE_NO_PAD.encode(&exponent));
    let key = der(0x30, &[&integer(&modulus), &integer(&exponent)]);
    let id = named(&[&der(0x06, &[OID_RSA]), &[0x05, 0x00]], &key);
    Ok(Verifying {
        decoding: DecodingKey::from_rsa_components(&n, &e).map_err(|e| e.to_string())?,
        algorithms: RSA,
        jwk: json!({"use": "sig", "kty": "RSA", "kid": id, "alg": "RS256", "n": n, "e": e}),
        id,
    })
}

/// Of an uncompressed point: 4, x, y.
fn ec(point: &[u8]) -> Result<Verifying, String> {
    let (algorithms, curve, oid, alg) = match point.len() {
        65 => (P256, "P-256", OID_P256, "ES256"),
        97 => (P384, "P-384", OID_P384, "ES384"),
        _ => return Err("only the curves P-256 and P-384 are supported".into()),
    };
    let (x, y) = point[1..].split_at((point.len() - 1) / 2);
    let (x, y) = (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y));
    let id = named(&[&der(0x06, &[OID_EC]), &der(0x06, &[oid])], point);
    Ok(Verifying {
        decoding: DecodingKey::from_ec_components(&x, &y).map_err(|e| e.to_string())?,
        algorithms,
        jwk: json!({"use": "sig", "kty": "EC", "kid": id, "crv": curve, "alg": alg, "x": x, "y": y}),
        id,
    })
}

fn ec_signing(pkcs8: &[u8]) -> Result<Signing, String> {
    let rng = SystemRandom::new();
    let pair = |curve: &'static EcdsaSigningAlgorithm| EcdsaKeyPair::from_pkcs8(curve, pkcs8, &rng);
    let found = pair(&ECDSA_P256_SHA256_FIXED_SIGNING).or_else(|_| pair(&ECDSA_P384_SHA384_FIXED_SIGNING));
    let found = found.map_err(|e| format!("neither RSA nor of a supported curve: {e}"))?;
    let public = ec(found.public_key().as_ref())?;
    Ok(Signing { encoding: EncodingKey::from_ec_der(pkcs8), algorithm: public.algorithms[0], public })
}

fn rsa_signing(pair: &RsaKeyPair, pem: &str) -> Result<Signing, String> {
    let encoding = EncodingKey::from_rsa_pem(pem.as_bytes()).map_err(|e| e.to_string())?;
    let (_, key) = RSAPublicKey::from_der(pair.public_key().as_ref()).map_err(|e| e.to_string())?;
    let public = rsa(key.modulus, key.exponent)?;
    Ok(Signing { encoding, algorithm: Algorithm::RS256, public })
}

/// An `EC PRIVATE KEY` as PKCS#8, whose curve it names itself.
fn pkcs8_of_sec1(sec1: &[u8]) -> Vec<u8> {
    let has = |oid: &[u8]| sec1.windows(oid.len()).any(|window| window == oid);
    let curve = if has(OID_P384) { OID_P384 } else { OID_P256 };
    let algorithm = der(0x30, &[&der(0x06, &[OID_EC]), &der(0x06, &[curve])]);
    der(0x30, &[&[0x02, 0x01, 0x00], &algorithm, &der(0x04, &[sec1])])
}

fn blocks(text: &str) -> Vec<Pem> {
    Pem::iter_from_buffer(text.as_bytes()).filter_map(Result::ok).collect()
}

/// The private key of PEM text.
pub fn signing(text: &str) -> Result<Signing, String> {
    for block in blocks(text) {
        match &*block.label {
            "RSA PRIVATE KEY" => {
                let pair = RsaKeyPair::from_der(&block.contents).map_err(|e| e.to_string())?;
                return rsa_signing(&pair, text);
            }
            "PRIVATE KEY" => {
                return match RsaKeyPair::from_pkcs8(&block.contents) {
                    Ok(pair) => rsa_signing(&pair, text),
                    Err(_) => ec_signing(&block.contents),
                };
            }
            "EC PRIVATE KEY" => return ec_signing(&pkcs8_of_sec1(&block.contents)),
            _ => {}
        }
    }
    Err("data does not contain a valid RSA or ECDSA private key".into())
}

fn of_info(info: &SubjectPublicKeyInfo<'_>) -> Result<Verifying, String> {
    match info.parsed() {
        Ok(PublicKey::RSA(key)) => rsa(key.modulus, key.exponent),
        Ok(PublicKey::EC(point)) => ec(point.data()),
        _ => Err("neither an RSA nor an ECDSA key".into()),
    }
}

/// The public keys of PEM text: those in it, and the public halves of private ones.
pub fn verifying(text: &str) -> Result<Vec<Verifying>, String> {
    let mut out = Vec::new();
    for block in blocks(text) {
        let bytes = &block.contents;
        match &*block.label {
            "PUBLIC KEY" => {
                let (_, info) = SubjectPublicKeyInfo::from_der(bytes).map_err(|e| e.to_string())?;
                out.push(of_info(&info)?);
            }
            "RSA PUBLIC KEY" => {
                let (_, key) = RSAPublicKey::from_der(bytes).map_err(|e| e.to_string())?;
                out.push(rsa(key.modulus, key.exponent)?);
            }
            "CERTIFICATE" => {
                let certificate = block.parse_x509().map_err(|e| e.to_string())?;
                out.push(of_info(certificate.public_key())?);
            }
            label if label.ends_with("PRIVATE KEY") => out.push(signing(text)?.public),
            _ => {}
        }
    }
    if out.is_empty() { Err("data does not contain any valid RSA or ECDSA public keys".into()) } else { Ok(out) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by openssl, with what it says of their public halves.
    const RSA_PRIVATE: &str = include_str!("testdata/rsa.key");
    const RSA_PUBLIC: &str = include_str!("testdata/rsa.pub");
    const EC_PRIVATE: &str = include_str!("testdata/ec.key");
    const EC_PUBLIC: &str = include_str!("testdata/ec.pub");

    #[test]
    fn both_halves_have_one_name() {
        for (private, public, algorithm) in
            [(RSA_PRIVATE, RSA_PUBLIC, Algorithm::RS256), (EC_PRIVATE, EC_PUBLIC, Algorithm::ES256)]
        {
            let signing = signing(private).unwrap();
            let [verifying] = &verifying(public).unwrap()[..] else { panic!("one key") };
            assert_eq!((&signing.public.id, signing.algorithm), (&verifying.id, algorithm));
            // As `openssl pkey -pubin -outform DER | openssl dgst -sha256` has it.
            let body: String = public.lines().filter(|line| !line.starts_with('-')).collect();
            let info = base64::engine::general_purpose::STANDARD.decode(body).unwrap();
            let digest = ring::digest::digest(&ring::digest::SHA256, &info);
            assert_eq!(verifying.id, URL_SAFE_NO_PAD.encode(digest));
            let header = jsonwebtoken::Header::new(algorithm);
            let token = jsonwebtoken::encode(&header, &json!({"a": 1}), &signing.encoding).unwrap();
            let (message, signature) = token.rsplit_once('.').unwrap();
            let good = jsonwebtoken::crypto::verify(signature, message.as_bytes(), &verifying.decoding, algorithm);
            assert!(good.unwrap());
        }
        assert!(signing(RSA_PUBLIC).is_err());
        assert!(verifying("none").is_err());
    }
}
