//! Who may be what: the role in a certificate against the ALPN of a connection.

use super::{Alpn, CODE_EXPIRED, CODE_REFUSED, Distrust};
use crate::message::{ALPN_AGENT, ALPN_AGENT_FIRST, ALPN_ENROL, ALPN_PEER, ALPN_VIZ, is_previous};
use crate::pki::{Role, Subject, expires_s};
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

    /// As this side says or understands it, what it likes best first.
    pub(super) fn protocols(self) -> Vec<Vec<u8>> {
        match self {
            Self::Agent if is_previous() => vec![ALPN_AGENT_FIRST.to_vec()],
            Self::Agent => vec![ALPN_AGENT.to_vec(), ALPN_AGENT_FIRST.to_vec()],
            Self::Viz | Self::Peer | Self::Enrol => vec![self.protocol().to_vec()],
        }
    }

    fn of(protocol: &[u8]) -> Option<Self> {
        if protocol == ALPN_AGENT_FIRST {
            return Some(Self::Agent);
        }
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

/// What a peer may be.
pub(super) struct Admitted {
    pub(super) alpn: Alpn,
    pub(super) subject: Option<Subject>,
    pub(super) expires_s: Option<u64>,
}

/// Why a peer may not be what it says, as it is told.
pub(super) struct Refusal {
    pub(super) code: u32,
    pub(super) why: String,
}

/// Whether both ends know all that this version of the protocol says.
pub(super) fn is_newest(quic: &quinn_proto::Connection) -> bool {
    protocol(quic).is_some_and(|protocol| protocol != ALPN_AGENT_FIRST)
}

fn protocol(quic: &quinn_proto::Connection) -> Option<Vec<u8>> {
    let data = quic.crypto_session().handshake_data()?;
    data.downcast::<quinn_proto::crypto::rustls::HandshakeData>().ok()?.protocol
}

/// What the peer may be, or why it may not: its role against the ALPN, and the end of its
/// certificate, which a resumed session brings along unchecked. A broker was checked in its
/// handshake, and by the handshake that a resumed one rests on.
pub(super) fn admit(
    quic: &quinn_proto::Connection,
    wall_s: u64,
    grace_s: u64,
) -> Result<Admitted, Refusal> {
    let session = quic.crypto_session();
    let alpn = protocol(quic)
        .and_then(|protocol| Alpn::of(&protocol))
        .ok_or_else(|| refused("no known protocol was agreed on"))?;
    let certificates = session
        .peer_identity()
        .and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok());
    let (subject, expires_s) = match certificates.as_ref().and_then(|chain| chain.first()) {
        Some(certificate) => {
            let subject = Subject::of_certificate(certificate).map_err(refused)?;
            let expires_s = expires_s(certificate).map_err(refused)?;
            (Some(subject), Some(expires_s))
        }
        None => (None, None),
    };
    let admitted = Admitted { alpn, subject, expires_s };
    if quic.side().is_client() {
        return Ok(admitted);
    }
    let grace_s = if alpn == Alpn::Peer { 0 } else { grace_s };
    if expires_s.is_some_and(|end| end.saturating_add(grace_s) < wall_s) {
        return Err(Refusal { code: CODE_EXPIRED, why: Distrust::Expired.to_string() });
    }
    match (alpn.role(), subject.map(|subject| subject.role)) {
        (None, _) => Ok(admitted),
        (Some(wanted), Some(role)) if wanted == role => Ok(admitted),
        (Some(wanted), Some(role)) => Err(refused(format!(
            "a certificate for the role {} cannot act as {}",
            role.word(),
            wanted.word()
        ))),
        (Some(wanted), None) => {
            Err(refused(format!("the role {} needs a certificate: enrol first", wanted.word())))
        }
    }
}

fn refused(why: impl std::fmt::Display) -> Refusal {
    Refusal { code: CODE_REFUSED, why: why.to_string() }
}
