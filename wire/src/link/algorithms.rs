//! The algorithms of Strobe's own links: TLS 1.3's ciphers, and signatures as its authorities make them.
//!
//! Every certificate of a link is issued by a Strobe authority, with keys on P-256 (`pki`). What is never
//! used is left out: RSA, P-384 and Ed25519 are an agent's memory, and one more way in. The simulation
//! signs with Ed25519, whose signatures are of one length and without a nonce (feature `ed25519`).

use rustls::crypto::ring::cipher_suite::{
    TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
};
use rustls::crypto::ring::kx_group::{SECP256R1, X25519};
use rustls::crypto::ring::sign::any_ecdsa_type;
use rustls::crypto::{
    CryptoProvider, GetRandomFailed, KeyProvider, SecureRandom, WebPkiSupportedAlgorithms,
};
use rustls::sign::SigningKey;
use rustls::{Error, SignatureScheme};
use rustls_pki_types::{PrivateKeyDer, SignatureVerificationAlgorithm};
use std::sync::Arc;

/// See the module.
pub(super) fn provider() -> CryptoProvider {
    CryptoProvider {
        cipher_suites: vec![
            TLS13_AES_256_GCM_SHA384,
            TLS13_AES_128_GCM_SHA256,
            TLS13_CHACHA20_POLY1305_SHA256,
        ],
        kx_groups: vec![X25519, SECP256R1],
        signature_verification_algorithms: SIGNATURES,
        secure_random: &System,
        key_provider: &System,
    }
}

#[derive(Debug)]
struct System;

impl SecureRandom for System {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), GetRandomFailed> {
        getrandom::fill(bytes).map_err(|_| GetRandomFailed)
    }
}

impl KeyProvider for System {
    fn load_private_key(&self, key: PrivateKeyDer<'static>) -> Result<Arc<dyn SigningKey>, Error> {
        #[cfg(feature = "ed25519")]
        if let Ok(found) = rustls::crypto::ring::sign::any_eddsa_type(pkcs8(&key)?) {
            return Ok(found);
        }
        any_ecdsa_type(&key)
    }
}

#[cfg(feature = "ed25519")]
fn pkcs8<'k>(
    key: &'k PrivateKeyDer<'static>,
) -> Result<&'k rustls_pki_types::PrivatePkcs8KeyDer<'static>, Error> {
    match key {
        PrivateKeyDer::Pkcs8(key) => Ok(key),
        _ => Err(Error::General("a key as PKCS#8 is wanted".to_owned())),
    }
}

static P256: &[&dyn SignatureVerificationAlgorithm] = &[webpki::ring::ECDSA_P256_SHA256];
#[cfg(not(feature = "ed25519"))]
const SIGNATURES: WebPkiSupportedAlgorithms = WebPkiSupportedAlgorithms {
    all: P256,
    mapping: &[(SignatureScheme::ECDSA_NISTP256_SHA256, P256)],
};

#[cfg(feature = "ed25519")]
static ED25519: &[&dyn SignatureVerificationAlgorithm] = &[webpki::ring::ED25519];
#[cfg(feature = "ed25519")]
const SIGNATURES: WebPkiSupportedAlgorithms = WebPkiSupportedAlgorithms {
    all: &[webpki::ring::ECDSA_P256_SHA256, webpki::ring::ED25519],
    mapping: &[(SignatureScheme::ECDSA_NISTP256_SHA256, P256), (SignatureScheme::ED25519, ED25519)],
};
