//! Who may be what: the role in a certificate against the ALPN of a connection.

use super::Alpn;
use crate::message::{ALPN_AGENT, ALPN_ENROL, ALPN_PEER, ALPN_VIZ};
use crate::pki::{Role, Subject};
use rustls_pki_types::CertificateDer;

impl Alpn {
    /// As it stands in the handshake.
    #[must_use]
    pub fn protocol(self) -> &'static [u8] {
        match self {
            Self::Agent => ALPN_AGENT,
            Self::Viz => ALPN_VIZ,
            Self::Peer => ALPN_PEER,
            Self::Enrol => ALPN_ENROL,
        }
    }

    fn of(protocol: &[u8]) -> Option<Self> {
        [Self::Agent, Self::Viz, Self::Peer, Self::Enrol]
            .into_iter()
            .find(|alpn| alpn.protocol() == protocol)
    }

    /// The role a client must have to connect so.
    fn role(self) -> Option<Role> {
        match self {
            Self::Agent => Some(Role::Agent),
            Self::Viz => Some(Role::Viz),
            Self::Peer => Some(Role::Broker),
            Self::Enrol => None,
        }
    }
}

/// Whether the peer may be what it says: its ALPN and subject, or why not.
pub(super) fn admit(quic: &quinn_proto::Connection) -> Result<(Alpn, Option<Subject>), String> {
    let session = quic.crypto_session();
    let alpn = session
        .handshake_data()
        .and_then(|data| data.downcast::<quinn_proto::crypto::rustls::HandshakeData>().ok())
        .and_then(|data| Alpn::of(data.protocol.as_deref()?))
        .ok_or("no known protocol was agreed on")?;
    let certificates = session
        .peer_identity()
        .and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok());
    let subject = match certificates.as_ref().and_then(|chain| chain.first()) {
        Some(certificate) => {
            Some(Subject::of_certificate(certificate).map_err(|error| error.to_string())?)
        }
        None => None,
    };
    let wanted = if quic.side().is_client() { Some(Role::Broker) } else { alpn.role() };
    match (wanted, subject.map(|subject| subject.role)) {
        (None, _) => Ok((alpn, subject)),
        (Some(wanted), Some(role)) if wanted == role => Ok((alpn, subject)),
        (Some(wanted), Some(role)) => Err(format!(
            "a certificate for the role {} cannot act as {}",
            role.word(),
            wanted.word()
        )),
        (Some(wanted), None) => {
            Err(format!("the role {} needs a certificate: enrol first", wanted.word()))
        }
    }
}
