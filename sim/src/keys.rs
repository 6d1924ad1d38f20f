//! Who is who, the same in every run: keys made of a number, and signatures of one length.
//!
//! ECDSA signatures differ in length by a byte or two, and such a byte can make one datagram more;
//! Ed25519 has neither that nor a nonce.

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use std::sync::Arc;
use strobe_wire::ids::HostId;
use strobe_wire::pki::{Authority, Identity, Role, Subject};

/// The fleet's certificates.
#[derive(Clone, Debug)]
pub struct Keys {
    /// By number; the first is that of a broker by itself.
    pub(crate) brokers: Vec<Identity>,
    /// One for each host.
    pub(crate) agents: Vec<Identity>,
    /// A broker wants one; nobody enrols here.
    pub(crate) authority: Arc<Authority>,
}

impl Keys {
    pub(crate) fn new(hosts: &[HostId]) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        params.distinguished_name.push(DnType::CommonName, "simulated authority");
        let (key, _) = key(0);
        let ca_der = params.self_signed(&key).expect("a certificate").der().to_vec();
        let issuer = Issuer::new(params, key);
        let brokers = (0..=BROKERS_MAX).map(|number| {
            let subject = Subject { role: Role::Broker, host: HostId(number.into()) };
            issue(&issuer, &ca_der, 100 + number, &subject)
        });
        let brokers = brokers.collect();
        let agents = hosts.iter().zip(1..).map(|(&host, number)| {
            issue(&issuer, &ca_der, number, &Subject { role: Role::Agent, host })
        });
        let agents = agents.collect();
        let authority = Arc::new(Authority::create(0).expect("an authority"));
        Self { brokers, agents, authority }
    }
}

fn issue(
    issuer: &Issuer<'static, KeyPair>,
    ca_der: &[u8],
    number: u8,
    subject: &Subject,
) -> Identity {
    let mut params = CertificateParams::default();
    let name = subject.to_string().try_into().expect("a DNS name");
    params.subject_alt_names = vec![SanType::DnsName(name)];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let (key, key_der) = key(number);
    let certificate = params.signed_by(&key, issuer).expect("a certificate");
    let certificate_der = certificate.der().to_vec();
    Identity { key_der, certificate_der, ca_der: ca_der.to_vec() }
}

/// An Ed25519 key whose seed is one byte, 32 times, in PKCS#8 (RFC 8410, section 7).
fn key(number: u8) -> (KeyPair, Vec<u8>) {
    let mut der = vec![0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
    der.extend_from_slice(&[number; 32]);
    (KeyPair::try_from(der.as_slice()).expect("a key"), der)
}

/// Brokers there are at most, those that join later included.
pub(crate) const BROKERS_MAX: u8 = 8;
