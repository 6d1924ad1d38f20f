//! Who is believed: certificates, and what TLS makes of them.

use super::transport::{End, transport};
use super::{Accept, Alpn, Dial, LinkConfig, LinkError};
use crate::pki::{Identity, Role, Subject, derive, fingerprint};
use quinn_proto::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn_proto::{
    ClientConfig, EndpointConfig, HashedConnectionIdGenerator, ServerConfig, TransportConfig,
};
use ring::hmac;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::time_provider::TimeProvider;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore,
    SignatureScheme,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

/// The server name of every dial: any broker of the CA will do, so one session store serves all.
pub(super) const SERVER_NAME: &str = "broker.strobe";

/// Everything TLS that a link needs, made once.
pub(super) struct Tls {
    provider: Arc<CryptoProvider>,
    wall: Arc<Wall>,
    identity: Option<Identity>,
    accept: Option<Accept>,
    /// Of connections that are accepted, and of those that are dialled.
    accepted: Arc<TransportConfig>,
    dialled: Arc<TransportConfig>,
    /// By ALPN as asked for: configurations keep the session tickets.
    clients: Vec<(Dial, ClientConfig)>,
}

/// The wall clock as the link was told. `Relaxed`: a lone number, nothing else is read by it.
#[derive(Debug)]
struct Wall(AtomicU64);

/// Whose certificate a server must have.
#[derive(Debug)]
struct Verifier {
    anchor: Anchor,
    algorithms: WebPkiSupportedAlgorithms,
}

/// Believes certificates for a while after their end: the link tells its owner when that was, and
/// the owner lets such a client renew and do nothing else.
#[derive(Debug)]
struct ClientVerifier {
    inner: Arc<dyn ClientCertVerifier>,
    grace: Duration,
}

#[derive(Debug)]
enum Anchor {
    /// Signed by this CA.
    Ca(RootCertStore),
    /// Signed by a CA in the server's own chain that has this SHA-256.
    Fingerprint([u8; 32]),
}

impl Tls {
    pub(super) fn new(config: &LinkConfig) -> Result<Self, LinkError> {
        if let Some(identity) = &config.identity {
            identity.subject()?;
        }
        Ok(Self {
            provider: Arc::new(rustls::crypto::ring::default_provider()),
            wall: Arc::new(Wall(AtomicU64::new(config.wall_s))),
            identity: config.identity.clone(),
            accept: config.accept,
            accepted: Arc::new(transport(config.side, End::Accepted)),
            dialled: Arc::new(transport(config.side, End::Dialled)),
            clients: Vec::new(),
        })
    }

    /// Keys that a restart does not change, so that peers believe what the next life tells them.
    pub(super) fn endpoint(&self) -> EndpointConfig {
        let secret = match (&self.accept, &self.identity) {
            (Some(accept), _) => accept.secret.as_slice(),
            (None, Some(identity)) => &identity.key_der,
            (None, None) => return EndpointConfig::default(),
        };
        let derive = |what: &str| derive(secret, what);
        let reset_key = hmac::Key::new(hmac::HMAC_SHA256, &derive("strobe stateless reset"));
        let mut config = EndpointConfig::new(Arc::new(reset_key));
        let [a, b, c, d, e, f, g, h, ..] = derive("strobe connection id");
        let id_key = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
        config.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(id_key)));
        config.min_reset_interval(RESET_INTERVAL);
        config
    }

    /// Another certificate for the connections to come; the old one stays if this one is not good.
    pub(super) fn set_identity(&mut self, identity: Identity) -> Result<(), LinkError> {
        identity.subject()?;
        let (chain, key) = chain_and_key(&identity)?;
        rustls::sign::CertifiedKey::from_der(chain, key, &self.provider).map_err(tls)?;
        self.identity = Some(identity);
        self.clients.clear();
        Ok(())
    }

    pub(super) fn grace_s(&self) -> u64 {
        self.accept.map_or(0, |accept| accept.grace_s)
    }

    pub(super) fn wall_s(&self) -> u64 {
        self.wall.0.load(Ordering::Relaxed)
    }

    pub(super) fn set_wall_s(&self, wall_s: u64) {
        self.wall.0.store(wall_s, Ordering::Relaxed);
    }

    /// Accepts clients with a certificate of the CA, and without one (they may only enrol, which
    /// the link checks once the ALPN is known).
    pub(super) fn server(&self) -> Result<Arc<ServerConfig>, LinkError> {
        let identity = self.identity.as_ref().ok_or(LinkError::NoIdentity("a broker"))?;
        let roots = Arc::new(roots(&identity.ca_der).map_err(tls)?);
        let clients =
            WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&self.provider))
                .allow_unauthenticated()
                .build()
                .map_err(tls)?;
        let grace = Duration::from_secs(self.grace_s());
        let clients = Arc::new(ClientVerifier { inner: clients, grace });
        let wall: Arc<dyn TimeProvider> = Arc::clone(&self.wall) as _;
        let (chain, key) = chain_and_key(identity)?;
        let mut server =
            rustls::ServerConfig::builder_with_details(Arc::clone(&self.provider), wall)
                .with_protocol_versions(&[&rustls::version::TLS13])
                .map_err(tls)?
                .with_client_cert_verifier(clients)
                .with_single_cert(chain, key)
                .map_err(tls)?;
        server.alpn_protocols =
            [Alpn::Agent, Alpn::Viz, Alpn::Peer, Alpn::Enrol].map(Alpn::protocols).concat();
        // Tickets, not a store: ten thousand agents keep their own session.
        server.ticketer = rustls::crypto::ring::Ticketer::new().map_err(tls)?;
        server.send_tls13_tickets = 1;
        let crypto = QuicServerConfig::try_from(server).map_err(tls)?;
        let mut server = ServerConfig::with_crypto(Arc::new(crypto));
        server.transport_config(Arc::clone(&self.accepted));
        server.time_source(Arc::clone(&self.wall) as _);
        server.incoming_buffer_size(INCOMING_BYTES).incoming_buffer_size_total(INCOMING_BYTES_ALL);
        Ok(Arc::new(server))
    }

    pub(super) fn client(&mut self, dial: &Dial) -> Result<ClientConfig, LinkError> {
        if let Some((_, config)) = self.clients.iter().find(|(made, _)| made == dial) {
            return Ok(config.clone());
        }
        let (alpn, anchor, identity) = match *dial {
            Dial::Enrol { fingerprint } => (Alpn::Enrol, Anchor::Fingerprint(fingerprint), None),
            Dial::With(alpn) => {
                let identity =
                    self.identity.as_ref().ok_or(LinkError::NoIdentity("this connection"))?;
                (alpn, Anchor::Ca(roots(&identity.ca_der).map_err(tls)?), Some(identity))
            }
        };
        let config = self.make_client(alpn, anchor, identity)?;
        // A new token replaces the old one's configuration: at most one a kind is kept.
        self.clients.retain(|(made, _)| {
            std::mem::discriminant(made) != std::mem::discriminant(dial)
                || matches!(made, Dial::With(_))
        });
        self.clients.push((*dial, config.clone()));
        Ok(config)
    }

    /// A client without an identity that acts as one that has it.
    #[cfg(test)]
    pub(super) fn rogue(&self, alpn: Alpn, fingerprint: [u8; 32]) -> ClientConfig {
        self.make_client(alpn, Anchor::Fingerprint(fingerprint), None).unwrap()
    }

    fn make_client(
        &self,
        alpn: Alpn,
        anchor: Anchor,
        identity: Option<&Identity>,
    ) -> Result<ClientConfig, LinkError> {
        let algorithms = self.provider.signature_verification_algorithms;
        let wall: Arc<dyn TimeProvider> = Arc::clone(&self.wall) as _;
        let builder = rustls::ClientConfig::builder_with_details(Arc::clone(&self.provider), wall)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(tls)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Verifier { anchor, algorithms }));
        let mut client = match identity {
            Some(identity) => {
                let (chain, key) = chain_and_key(identity)?;
                builder.with_client_auth_cert(chain, key).map_err(tls)?
            }
            None => builder.with_no_client_auth(),
        };
        client.alpn_protocols = alpn.protocols();
        client.resumption = Resumption::in_memory_sessions(SESSIONS);
        let crypto = QuicClientConfig::try_from(client).map_err(tls)?;
        let mut config = ClientConfig::new(Arc::new(crypto));
        config.transport_config(Arc::clone(&self.dialled));
        Ok(config)
    }
}

impl TimeProvider for Wall {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(self.0.load(Ordering::Relaxed))))
    }
}

impl quinn_proto::TimeSource for Wall {
    fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(self.0.load(Ordering::Relaxed))
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let pinned;
        let roots = match &self.anchor {
            Anchor::Ca(roots) => roots,
            Anchor::Fingerprint(wanted) => {
                let ca = intermediates
                    .iter()
                    .find(|der| fingerprint(der) == *wanted)
                    .ok_or(Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
                pinned = roots(ca)?;
                &pinned
            }
        };
        let certificate = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(
            &certificate,
            roots,
            intermediates,
            now,
            self.algorithms.all,
        )?;
        match Subject::of_certificate(end_entity) {
            Ok(Subject { role: Role::Broker, .. }) => Ok(ServerCertVerified::assertion()),
            Ok(_) | Err(_) => Err(Error::InvalidCertificate(CertificateError::NotValidForName)),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.3 only".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.inner.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let then = Duration::from_secs(now.as_secs()).saturating_sub(self.grace);
        let then = UnixTime::since_unix_epoch(then);
        self.inner.verify_client_cert(end_entity, intermediates, then)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.3 only".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

fn roots(ca_der: &[u8]) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(ca_der.to_vec()))?;
    Ok(roots)
}

/// The CA goes with it: one that enrols knows only its SHA-256.
fn chain_and_key(
    identity: &Identity,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), LinkError> {
    let chain = vec![
        CertificateDer::from(identity.certificate_der.clone()),
        CertificateDer::from(identity.ca_der.clone()),
    ];
    let key = PrivateKeyDer::try_from(identity.key_der.clone()).map_err(tls)?;
    Ok((chain, key))
}

fn tls(error: impl std::fmt::Display) -> LinkError {
    LinkError::Tls(error.to_string())
}

const INCOMING_BYTES: u64 = 16 << 10;
const INCOMING_BYTES_ALL: u64 = 4 << 20;
/// Session tickets kept: a client speaks to a handful of brokers at most.
const SESSIONS: usize = 8;
/// A thousand a second, which is the rate of handshakes that follow.
const RESET_INTERVAL: Duration = Duration::from_millis(1);
