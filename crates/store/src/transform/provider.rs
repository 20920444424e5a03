//! The ciphers values are sealed with, in upstream's forms, so that data moves between both: a mark that names provider and
//! key, `k8s:enc:PROVIDER:v1:KEY:`, then what the cipher made.
//!
//! AES-GCM binds a value to its key in the store, so that it is not accepted elsewhere; the other two, by upstream's form,
//! do not, and AES-CBC does not notice changes either: it is here to read what was written with it.

use std::sync::{Arc, PoisonError, RwLock};

use aes::cipher::block_padding::Pkcs7;
use aes::cipher::{BlockDecryptMut, BlockEncryptMut, KeyIvInit};
use aes::{Aes128, Aes192, Aes256};
use bytes::Bytes;
use crypto_secretbox::aead::AeadInPlace;
use crypto_secretbox::{KeyInit, XSalsa20Poly1305};
use ring::aead::{AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};

use super::{SEALED, Transformer};
use crate::StoreError;

/// The nonce of XSalsa20, and the tag of Poly1305 that NaCl puts before the ciphertext.
const BOX_NONCE: usize = 24;
const BOX_TAG: usize = 16;
/// The tag of AES-GCM.
const GCM_TAG: usize = 16;
/// AES's block, which is the initial vector of CBC too.
const BLOCK: usize = 16;

/// What a provider does with values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    AesGcm,
    AesCbc,
    SecretBox,
}

impl Kind {
    /// The name upstream's marks and configurations have for it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::AesGcm => "aesgcm",
            Kind::AesCbc => "aescbc",
            Kind::SecretBox => "secretbox",
        }
    }

    /// The lengths of key it takes, in bytes.
    pub fn key_lengths(self) -> &'static [usize] {
        match self {
            // Upstream takes 24 too, which the one crypto provider of this project does not have.
            Kind::AesGcm => &[16, 32],
            Kind::AesCbc => &[16, 24, 32],
            Kind::SecretBox => &[32],
        }
    }
}

enum Cipher {
    AesGcm(Box<LessSafeKey>),
    AesCbc(Vec<u8>),
    SecretBox(Box<XSalsa20Poly1305>),
}

/// One key of one provider.
pub struct Sealer {
    mark: Vec<u8>,
    cipher: Cipher,
    random: SystemRandom,
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Sealer({})", String::from_utf8_lossy(&self.mark))
    }
}

impl Sealer {
    /// A sealer with a named key.
    pub fn new(kind: Kind, name: &str, key: &[u8]) -> Result<Self, StoreError> {
        let wrong = || {
            let (got, expected) = (key.len(), kind.key_lengths());
            StoreError::Invalid(format!(
                "secret is not of the expected length, got {got}, expected one of {expected:?}"
            ))
        };
        if !kind.key_lengths().contains(&key.len()) {
            return Err(wrong());
        }
        let cipher = match kind {
            Kind::AesGcm => {
                let algorithm = if key.len() == 16 { &AES_128_GCM } else { &AES_256_GCM };
                Cipher::AesGcm(Box::new(LessSafeKey::new(UnboundKey::new(algorithm, key).map_err(|_| wrong())?)))
            }
            Kind::AesCbc => Cipher::AesCbc(key.to_vec()),
            Kind::SecretBox => Cipher::SecretBox(Box::new(XSalsa20Poly1305::new_from_slice(key).map_err(|_| wrong())?)),
        };
        let mark = format!("k8s:enc:{}:v1:{name}:", kind.name()).into_bytes();
        Ok(Sealer { mark, cipher, random: SystemRandom::new() })
    }

    /// The mark, then so many random bytes, then room for the rest.
    fn begin<const N: usize>(&self, more: usize) -> Option<(Vec<u8>, [u8; N])> {
        let mut random = [0; N];
        self.random.fill(&mut random).ok()?;
        let mut out = Vec::with_capacity(self.mark.len() + N + more);
        out.extend_from_slice(&self.mark);
        out.extend_from_slice(&random);
        Some((out, random))
    }

    fn encrypt(&self, key: &str, value: &[u8]) -> Option<Vec<u8>> {
        match &self.cipher {
            Cipher::AesGcm(cipher) => {
                // Random nonces: safe for some four thousand million values under one key.
                let (mut out, nonce) = self.begin::<NONCE_LEN>(value.len() + GCM_TAG)?;
                let head = out.len();
                out.extend_from_slice(value);
                let nonce = Nonce::assume_unique_for_key(nonce);
                let tag = cipher.seal_in_place_separate_tag(nonce, Aad::from(key), &mut out[head..]).ok()?;
                out.extend_from_slice(tag.as_ref());
                Some(out)
            }
            Cipher::AesCbc(cipher) => {
                let (mut out, iv) = self.begin::<BLOCK>(value.len() + BLOCK)?;
                let sealed = match cipher.len() {
                    16 => encrypt_cbc::<Aes128>(cipher, &iv, value),
                    24 => encrypt_cbc::<Aes192>(cipher, &iv, value),
                    _ => encrypt_cbc::<Aes256>(cipher, &iv, value),
                };
                out.extend_from_slice(&sealed?);
                Some(out)
            }
            Cipher::SecretBox(cipher) => {
                let (mut out, nonce) = self.begin::<BOX_NONCE>(value.len() + BOX_TAG)?;
                let tag_at = out.len();
                out.extend_from_slice(&[0; BOX_TAG]);
                out.extend_from_slice(value);
                let tag = cipher.encrypt_in_place_detached(&nonce.into(), b"", &mut out[tag_at + BOX_TAG..]).ok()?;
                out[tag_at..tag_at + BOX_TAG].copy_from_slice(&tag);
                Some(out)
            }
        }
    }

    fn decrypt(&self, key: &str, sealed: &[u8]) -> Option<Vec<u8>> {
        match &self.cipher {
            Cipher::AesGcm(cipher) => {
                let (nonce, sealed) = sealed.split_first_chunk::<NONCE_LEN>()?;
                let mut out = sealed.to_vec();
                let nonce = Nonce::assume_unique_for_key(*nonce);
                let length = cipher.open_in_place(nonce, Aad::from(key), &mut out).ok()?.len();
                out.truncate(length);
                Some(out)
            }
            Cipher::AesCbc(cipher) => {
                let (iv, sealed) = sealed.split_first_chunk::<BLOCK>()?;
                match cipher.len() {
                    16 => decrypt_cbc::<Aes128>(cipher, iv, sealed),
                    24 => decrypt_cbc::<Aes192>(cipher, iv, sealed),
                    _ => decrypt_cbc::<Aes256>(cipher, iv, sealed),
                }
            }
            Cipher::SecretBox(cipher) => {
                let (nonce, sealed) = sealed.split_first_chunk::<BOX_NONCE>()?;
                let (tag, sealed) = sealed.split_first_chunk::<BOX_TAG>()?;
                let mut out = sealed.to_vec();
                cipher.decrypt_in_place_detached(&(*nonce).into(), b"", &mut out, &(*tag).into()).ok()?;
                Some(out)
            }
        }
    }
}

fn encrypt_cbc<C>(key: &[u8], iv: &[u8; BLOCK], value: &[u8]) -> Option<Vec<u8>>
where
    C: aes::cipher::BlockCipher + aes::cipher::BlockEncryptMut,
    cbc::Encryptor<C>: KeyIvInit + BlockEncryptMut,
{
    let cipher = cbc::Encryptor::<C>::new_from_slices(key, iv).ok()?;
    Some(cipher.encrypt_padded_vec_mut::<Pkcs7>(value))
}

fn decrypt_cbc<C>(key: &[u8], iv: &[u8; BLOCK], sealed: &[u8]) -> Option<Vec<u8>>
where
    C: aes::cipher::BlockCipher + aes::cipher::BlockDecryptMut,
    cbc::Decryptor<C>: KeyIvInit + BlockDecryptMut,
{
    let cipher = cbc::Decryptor::<C>::new_from_slices(key, iv).ok()?;
    cipher.decrypt_padded_vec_mut::<Pkcs7>(sealed).ok()
}

/// One way a value may be stored.
#[derive(Debug)]
pub enum Provider {
    /// As it is.
    Identity,
    /// Sealed with a key.
    Sealed(Sealer),
}

/// Providers in order: the first writes, whichever fits reads.
#[derive(Debug)]
pub struct Chain(Vec<Provider>);

impl Chain {
    /// None when there is no provider to write with.
    pub fn new(providers: Vec<Provider>) -> Option<Self> {
        (!providers.is_empty()).then_some(Chain(providers))
    }
}

impl Transformer for Chain {
    fn seal(&self, key: &str, value: Bytes) -> Result<Bytes, StoreError> {
        let Some(Provider::Sealed(sealer)) = self.0.first() else { return Ok(value) };
        let failed = || StoreError::Unavailable(format!("cannot encrypt the value of {key}"));
        sealer.encrypt(key, &value).map(Bytes::from).ok_or_else(failed)
    }

    fn open(&self, key: &str, stored: Bytes) -> Result<Bytes, StoreError> {
        let corrupt = |what: &str| StoreError::Corrupt(format!("the value of {key} cannot be decrypted: {what}"));
        let mut known = false;
        for provider in &self.0 {
            match provider {
                Provider::Identity if !stored.starts_with(SEALED) => return Ok(stored),
                Provider::Identity => {}
                // Keys may share a name: any of them may be the one.
                Provider::Sealed(sealer) => {
                    let Some(sealed) = stored.strip_prefix(&*sealer.mark) else { continue };
                    known = true;
                    if let Some(value) = sealer.decrypt(key, sealed) {
                        return Ok(value.into());
                    }
                }
            }
        }
        Err(match (known, stored.starts_with(SEALED)) {
            (true, _) => corrupt("it was sealed with another key of that name, was changed, or belongs elsewhere"),
            (false, true) => corrupt("no key for it is configured"),
            (false, false) => corrupt("it is not encrypted, and the identity provider is not configured"),
        })
    }

    fn passes(&self, _: &str, stored: &[u8]) -> bool {
        !stored.starts_with(SEALED) && self.0.iter().any(|provider| matches!(provider, Provider::Identity))
    }

    fn is_current(&self, _: &str, stored: &[u8]) -> bool {
        match self.0.first() {
            Some(Provider::Sealed(sealer)) => stored.starts_with(&sealer.mark),
            _ => !stored.starts_with(SEALED),
        }
    }
}

/// Chains by the beginning of keys: the first that fits is used, and what fits none is stored as it is.
#[derive(Debug, Default)]
pub struct ByPrefix(pub Vec<(String, Arc<Chain>)>);

impl ByPrefix {
    fn of(&self, key: &str) -> &dyn Transformer {
        match self.0.iter().find(|(prefix, _)| key.starts_with(&**prefix)) {
            Some((_, chain)) => &**chain,
            None => &super::Plain,
        }
    }
}

impl Transformer for ByPrefix {
    fn seal(&self, key: &str, value: Bytes) -> Result<Bytes, StoreError> {
        self.of(key).seal(key, value)
    }

    fn open(&self, key: &str, stored: Bytes) -> Result<Bytes, StoreError> {
        self.of(key).open(key, stored)
    }

    fn passes(&self, key: &str, stored: &[u8]) -> bool {
        self.of(key).passes(key, stored)
    }

    fn is_current(&self, key: &str, stored: &[u8]) -> bool {
        self.of(key).is_current(key, stored)
    }
}

/// Rules that can be replaced while they are in use: what is under way ends by those it began with.
#[derive(Debug, Default)]
pub struct Replaceable(RwLock<Arc<ByPrefix>>);

impl Replaceable {
    /// Puts others in their place.
    pub fn replace(&self, rules: ByPrefix) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(rules);
    }

    fn now(&self) -> Arc<ByPrefix> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Transformer for Replaceable {
    fn seal(&self, key: &str, value: Bytes) -> Result<Bytes, StoreError> {
        self.now().seal(key, value)
    }

    fn open(&self, key: &str, stored: Bytes) -> Result<Bytes, StoreError> {
        self.now().open(key, stored)
    }

    fn passes(&self, key: &str, stored: &[u8]) -> bool {
        self.now().passes(key, stored)
    }

    fn is_current(&self, key: &str, stored: &[u8]) -> bool {
        self.now().is_current(key, stored)
    }
}
