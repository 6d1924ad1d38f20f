//! Which certificate a peer has shown.

use super::{ConnId, Link};
use crate::pki::fingerprint;
use rustls_pki_types::CertificateDer;

impl Link {
    /// SHA-256 of the peer's certificate; `None` for one that enrols. With it two connections are
    /// known to hold one private key.
    pub fn certificate(&mut self, conn: ConnId) -> Option<[u8; 32]> {
        let identity = self.slot(conn)?.quic.crypto_session().peer_identity()?;
        let chain = identity.downcast::<Vec<CertificateDer<'static>>>().ok()?;
        chain.first().map(|certificate| fingerprint(certificate))
    }
}
