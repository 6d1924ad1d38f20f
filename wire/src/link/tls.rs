//! Who is believed (certificates), and how much memory a connection may take (transport).

use super::{Alpn, Dial, IDLE_TIMEOUT, KEEP_ALIVE, LinkConfig, LinkError, Side};
use crate::pki::{Identity, Role, Subject, fingerprint};
use quinn_proto::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn_proto::{
    AckFrequencyConfig, ClientConfig, EndpointConfig, HashedConnectionIdGenerator, ServerConfig,
    TransportConfig, VarInt,
};
use ring::hmac;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::time_provider::TimeProvider;
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use sha2::{Digest, Sha256};
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
    transport: Arc<TransportConfig>,
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
            transport: Arc::new(transport(config.side)),
            clients: Vec::new(),
        })
    }

    /// Keys that a restart does not change, so that peers believe what the next life tells them.
    pub(super) fn endpoint(&self) -> EndpointConfig {
        let Some(identity) = &self.identity else { return EndpointConfig::default() };
        let derive = |what: &str| {
            let mut hash = Sha256::new();
            hash.update(what.as_bytes());
            hash.update(&identity.key_der);
            <[u8; 32]>::from(hash.finalize())
        };
        let reset_key = hmac::Key::new(hmac::HMAC_SHA256, &derive("strobe stateless reset"));
        let mut config = EndpointConfig::new(Arc::new(reset_key));
        let [a, b, c, d, e, f, g, h, ..] = derive("strobe connection id");
        let id_key = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
        config.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(id_key)));
        config.min_reset_interval(RESET_INTERVAL);
        config
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
        let wall: Arc<dyn TimeProvider> = Arc::clone(&self.wall) as _;
        let (chain, key) = chain_and_key(identity)?;
        let mut server =
            rustls::ServerConfig::builder_with_details(Arc::clone(&self.provider), wall)
                .with_protocol_versions(&[&rustls::version::TLS13])
                .map_err(tls)?
                .with_client_cert_verifier(clients)
                .with_single_cert(chain, key)
                .map_err(tls)?;
        server.alpn_protocols = [Alpn::Agent, Alpn::Viz, Alpn::Peer, Alpn::Enrol]
            .map(|alpn| alpn.protocol().to_vec())
            .to_vec();
        // Tickets, not a store: ten thousand agents keep their own session.
        server.ticketer = rustls::crypto::ring::Ticketer::new().map_err(tls)?;
        server.send_tls13_tickets = 1;
        let crypto = QuicServerConfig::try_from(server).map_err(tls)?;
        let mut server = ServerConfig::with_crypto(Arc::new(crypto));
        server.transport_config(Arc::clone(&self.transport));
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
        client.alpn_protocols = vec![alpn.protocol().to_vec()];
        client.resumption = Resumption::in_memory_sessions(SESSIONS);
        let crypto = QuicClientConfig::try_from(client).map_err(tls)?;
        let mut config = ClientConfig::new(Arc::new(crypto));
        config.transport_config(Arc::clone(&self.transport));
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

/// A viz or a peer at a broker: more streams at once and larger bodies than an agent.
pub(super) fn widen(quic: &mut quinn_proto::Connection) {
    quic.set_max_concurrent_streams(quinn_proto::Dir::Bi, VarInt::from_u32(STREAMS_WIDE));
    quic.set_receive_window(VarInt::from_u32(WINDOW_WIDE));
    quic.set_send_window(u64::from(WINDOW_WIDE));
}

/// The memory that one connection may take is the sum of its receive window, its send window and
/// about 20 KiB of state (measured, DESIGN §2).
fn transport(side: Side) -> TransportConfig {
    let (streams, stream_window, window, send_window) = match side {
        // Receives acknowledgements; sends a second's frames, or its backlog.
        Side::Agent => (0, 64 << 10, 64 << 10, 512 << 10),
        Side::Viz => (0, 1 << 20, WINDOW_WIDE, 1 << 20),
        // As an agent needs it: 10,000 of them at 256 KiB would be 2.5 GiB, but a window fills
        // only while the broker does not read, and then the frames wait at the agents.
        Side::Broker => (STREAMS_NARROW, 256 << 10, 256 << 10, 128 << 10),
    };
    let mut config = TransportConfig::default();
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(streams))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(stream_window))
        .receive_window(VarInt::from_u32(window))
        .send_window(send_window)
        .datagram_receive_buffer_size(None)
        .datagram_send_buffer_size(0)
        .crypto_buffer_size(CRYPTO_BYTES)
        .max_idle_timeout(IDLE_TIMEOUT.try_into().ok());
    // One side is enough to keep both awake, and the clients are many: they do it.
    // Asked of the other side. A broker's acknowledgement of a tick's datagrams waits for the
    // message that says they are stored, if that comes within 25 ms; an agent's of that message
    // goes at once, while it is awake. Without this each tick woke the agent twice more.
    let mut acks = AckFrequencyConfig::default();
    acks.ack_eliciting_threshold(VarInt::from_u32(match side {
        Side::Agent => ACK_EVERY_AGENT,
        Side::Viz => 1,
        Side::Broker => 0,
    }));
    config.ack_frequency_config(Some(acks));
    config.keep_alive_interval(match side {
        Side::Agent | Side::Viz => Some(KEEP_ALIVE),
        Side::Broker => Some(KEEP_ALIVE_BROKER),
    });
    config
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

const STREAMS_NARROW: u32 = 2;
const STREAMS_WIDE: u32 = 128;
/// A tick is 2 to 4 datagrams; a backlog is acknowledged every eighth.
const ACK_EVERY_AGENT: u32 = 7;
const WINDOW_WIDE: u32 = 8 << 20;
const CRYPTO_BYTES: usize = 16 << 10;
const INCOMING_BYTES: u64 = 16 << 10;
const INCOMING_BYTES_ALL: u64 = 4 << 20;
/// Brokers keep peers awake; an agent or viz that speaks every 5 s never lets this run out.
const KEEP_ALIVE_BROKER: Duration = Duration::from_secs(7);
/// Session tickets kept: a client speaks to a handful of brokers at most.
const SESSIONS: usize = 8;
/// A thousand a second, which is the rate of handshakes that follow.
const RESET_INTERVAL: Duration = Duration::from_millis(1);
