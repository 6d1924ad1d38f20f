//! Whom a certificate names: a host and its role, as the DNS name `<32 hex digits>.<role>.strobe`.

use super::{PkiError, crypto};
use crate::ids::HostId;
use rustls_pki_types::CertificateDer;
use std::fmt;
use std::str::FromStr;

/// What a certificate says of its holder.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Subject {
    /// What it may do.
    pub role: Role,
    /// Which one it is.
    pub host: HostId,
}

/// What the holder of a certificate may do.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Role {
    /// Send the frames of its own host.
    Agent,
    /// Ask and subscribe.
    Viz,
    /// Serve, and speak with other brokers.
    Broker,
}

impl Subject {
    /// The subject that a certificate (DER) names: its first DNS name that is one.
    ///
    /// # Errors
    /// [`PkiError::Subject`], or it is no certificate.
    pub fn of_certificate(certificate_der: &[u8]) -> Result<Self, PkiError> {
        let der = CertificateDer::from(certificate_der);
        let certificate =
            webpki::EndEntityCert::try_from(&der).map_err(crypto("read a certificate"))?;
        let mut names = certificate.valid_dns_names();
        names.find_map(|name| name.parse().ok()).ok_or(PkiError::Subject)
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.strobe", self.host, self.role.word())
    }
}

impl FromStr for Subject {
    type Err = PkiError;

    fn from_str(text: &str) -> Result<Self, PkiError> {
        let mut parts = text.split('.');
        let (Some(host), Some(role), Some("strobe"), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(PkiError::Subject);
        };
        let host = host.parse().map_err(|_| PkiError::Subject)?;
        Ok(Self { role: role.parse()?, host })
    }
}

impl Role {
    /// As it stands in names and messages: `agent`, `viz`, `broker`.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Viz => "viz",
            Self::Broker => "broker",
        }
    }
}

impl FromStr for Role {
    type Err = PkiError;

    fn from_str(text: &str) -> Result<Self, PkiError> {
        match text {
            "agent" => Ok(Self::Agent),
            "viz" => Ok(Self::Viz),
            "broker" => Ok(Self::Broker),
            _ => Err(PkiError::Subject),
        }
    }
}
