//! How an agent or a dashboard gets its identity: one conversation with a broker, as a state machine.
//!
//! `Dial::Enrol` (the broker's CA must have the token's fingerprint) → one stream → `Enrol` with
//! the token's secret and a certificate request → `Enrolled` → an [`Identity`] that is checked
//! here: right key, right host, right role, right CA. The private key never leaves
//! this host.

use crate::link::{ConnId, Dial, Distrust, Event, Link, LinkError, StreamId, Why};
use crate::message::{Incoming, Message, Reader, encode};
use crate::pki::{self, Identity, PkiError, Subject, Token};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// The conversation.
#[derive(Debug)]
pub struct Enrol {
    token: Token,
    subject: Subject,
    key_der: Vec<u8>,
    csr_der: Vec<u8>,
    conn: ConnId,
    stream: Option<StreamId>,
    reader: Reader,
    until: Instant,
}

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// The broker said no.
    #[error("the broker refused to enrol it: {0}")]
    Refused(String),
    /// The token is another broker's, or the address is.
    #[error(
        "the token is not of the broker at this address: {0}; give --token, as printed by \
         `strobe token create` on that broker's machine"
    )]
    Foreign(Distrust),
    /// The connection ended before an answer.
    #[error("enrolling: the connection failed: {0}")]
    Lost(String),
    /// No answer.
    #[error("enrolling: no answer within {} s; is the broker running and its UDP port open?", ENROL_TIMEOUT.as_secs())]
    Timeout,
    /// The answer makes no sense.
    #[error("enrolling: the broker's answer is wrong: {0}")]
    Answer(String),
    /// Keys.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The link.
    #[error(transparent)]
    Link(#[from] LinkError),
}

impl Enrol {
    /// Begins: makes a key and dials.
    ///
    /// # Errors
    /// It cannot even begin.
    pub fn begin(
        now: Instant,
        link: &mut Link,
        broker: SocketAddr,
        token: Token,
        subject: Subject,
    ) -> Result<Self, EnrolError> {
        let (key_der, csr_der) = pki::request()?;
        let conn = link.connect(now, broker, &Dial::Enrol { fingerprint: token.fingerprint })?;
        let until = now + ENROL_TIMEOUT;
        let reader = Reader::default();
        Ok(Self { token, subject, key_der, csr_der, conn, stream: None, reader, until })
    }

    /// When it gives up.
    #[must_use]
    pub fn timeout(&self) -> Instant {
        self.until
    }

    /// Whether it has to give up.
    ///
    /// # Errors
    /// [`EnrolError::Timeout`].
    pub fn on_timeout(&self, now: Instant) -> Result<(), EnrolError> {
        if self.until <= now { Err(EnrolError::Timeout) } else { Ok(()) }
    }

    /// The link says what happened; the identity when it is there.
    ///
    /// # Errors
    /// It failed for good; begin anew.
    pub fn told(
        &mut self,
        now: Instant,
        event: &Event,
        link: &mut Link,
    ) -> Result<Option<Identity>, EnrolError> {
        match event {
            Event::Connected { conn, .. } if *conn == self.conn => {
                let stream = link
                    .open(self.conn)
                    .ok_or_else(|| EnrolError::Lost("the broker allows no stream".to_owned()))?;
                self.stream = Some(stream);
                let ask = Message::Enrol {
                    secret: self.token.secret.to_vec(),
                    host: self.subject.host.0,
                    role: self.subject.role.word().to_owned(),
                    csr: self.csr_der.clone(),
                };
                link.send(self.conn, stream, &mut [encode(&ask)])
                    .map_err(|error| EnrolError::Lost(error.to_string()))?;
                Ok(None)
            }
            Event::Closed { conn, why } if *conn == self.conn => Err(match why {
                Why::Distrust(why @ Distrust::BrokerForeign) => EnrolError::Foreign(*why),
                why => EnrolError::Lost(why.to_string()),
            }),
            Event::Readable { conn, stream }
                if *conn == self.conn && Some(*stream) == self.stream =>
            {
                self.read(now, link, *stream)
            }
            _ => Ok(None),
        }
    }

    fn read(
        &mut self,
        now: Instant,
        link: &mut Link,
        stream: StreamId,
    ) -> Result<Option<Identity>, EnrolError> {
        link.recv(self.conn, stream, &mut self.reader)
            .map_err(|error| EnrolError::Lost(error.to_string()))?;
        let said = self.reader.pull().map_err(|error| EnrolError::Answer(error.to_string()))?;
        let Some(Incoming::Control(message)) = said else { return Ok(None) };
        match *message {
            Message::Enrolled { certificate, ca } => {
                let identity = self.check(certificate, ca)?;
                link.close(now, self.conn, "enrolled");
                Ok(Some(identity))
            }
            Message::Refused { why } => Err(EnrolError::Refused(why)),
            _ => Err(EnrolError::Answer("neither Enrolled nor Refused".to_owned())),
        }
    }

    /// A broker that mixes up its answers must not leave an identity that never works.
    fn check(&self, certificate_der: Vec<u8>, ca_der: Vec<u8>) -> Result<Identity, EnrolError> {
        if pki::fingerprint(&ca_der) != self.token.fingerprint {
            return Err(EnrolError::Answer("another CA than the token's".to_owned()));
        }
        let identity = Identity { key_der: self.key_der.clone(), certificate_der, ca_der };
        let subject = identity.subject()?;
        if subject != self.subject {
            return Err(EnrolError::Answer(format!("a certificate for {subject}")));
        }
        Ok(identity)
    }
}

/// A broker signs at once; the rest is two round trips.
pub const ENROL_TIMEOUT: Duration = Duration::from_secs(20);
