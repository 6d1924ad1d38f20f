//! What a link says: events, reasons, counters, and the datagrams that go in and out.

use super::{Alpn, ConnId, StreamId};
use super::{CODE_EXPIRED, IDLE_TIMEOUT};
use crate::pki::{PkiError, Subject};
use bytes::BytesMut;
use quinn_proto::{ConnectionError, TransportErrorCode, VarInt};
use std::net::{IpAddr, SocketAddr};

/// What happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// A handshake is complete and the peer is who it must be.
    Connected {
        /// The connection.
        conn: ConnId,
        /// The peer's address.
        remote: SocketAddr,
        /// As what.
        alpn: Alpn,
        /// What the peer's certificate says; `None` only for one that enrols.
        subject: Option<Subject>,
        /// A client's certificate is good up to this second; `None` for one that enrols.
        expires_s: Option<u64>,
    },
    /// The peer opened a bidirectional stream. `Readable` follows if there is something to read.
    Opened {
        /// The connection.
        conn: ConnId,
        /// The stream.
        stream: StreamId,
    },
    /// There is something to read, or the stream has ended.
    Readable {
        /// The connection.
        conn: ConnId,
        /// The stream.
        stream: StreamId,
    },
    /// A `send` that took less than all may go on, or the peer wants no more (`send` says so).
    Writable {
        /// The connection.
        conn: ConnId,
        /// The stream.
        stream: StreamId,
    },
    /// After `open` gave `None`: it may give a stream now.
    Room {
        /// The connection.
        conn: ConnId,
    },
    /// The connection is over, by the peer or the network; not sent for one's own `Link::close`.
    /// A client sees it also for a connection that was never `Connected`.
    Closed {
        /// The connection, which is unknown from now on.
        conn: ConnId,
        /// Why.
        why: Why,
    },
}

/// Why a connection is over.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Why {
    /// Nothing was heard for [`IDLE_TIMEOUT`].
    #[error("nothing was heard from the peer for {} s", IDLE_TIMEOUT.as_secs())]
    Silence,
    /// The peer's application closed it, with these words.
    #[error("closed by the peer: {0}")]
    Peer(String),
    /// The peer has forgotten it (it restarted).
    #[error("the peer has restarted")]
    Reset,
    /// A certificate was not believed.
    #[error(transparent)]
    Distrust(#[from] Distrust),
    /// The handshake or the protocol failed, on this side or the peer's.
    #[error("{0}")]
    Failed(String),
}

/// Whose certificate was not believed, why, and what to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Distrust {
    /// The broker refuses this side's: it is past its end and past the time for renewals.
    #[error(
        "the broker refuses this certificate, which has expired: enrol anew with a token of \
         `strobe token create` (--token), or set the clocks right"
    )]
    Expired,
    /// The broker refuses this side's: another authority signed it, or it was changed.
    #[error(
        "the broker refuses this certificate, which its authority did not sign: this is another \
         fleet's broker, or enrol anew with a token of `strobe token create` (--token)"
    )]
    Foreign,
    /// The broker's is past its end by this machine's clock.
    #[error(
        "the broker's certificate has expired: set this machine's clock right, or the broker's \
         and restart it"
    )]
    BrokerExpired,
    /// The broker's was signed by another authority than this side's or the token's.
    #[error(
        "the broker's certificate is not signed by this fleet's authority: check the address, or \
         enrol with a token of that broker's `strobe token create` (--token)"
    )]
    BrokerForeign,
    /// The other side has a certificate that is not a broker's.
    #[error("this is not a broker: its certificate is for another role or another use")]
    NotBroker,
}

/// How far [`super::Link::recv`] came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Received {
    /// All there was; `Readable` tells of more.
    Blocked,
    /// There is more: call again when there is time.
    More,
    /// The peer finished the stream: nothing will follow.
    Finished,
}

/// Why a stream cannot go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StreamError {
    /// The connection is over.
    #[error("the connection is over")]
    Gone,
    /// The stream is over: finished, reset or stopped, here or there.
    #[error("the stream is over")]
    Closed,
}

/// Why a link could not be made, or a connection not begun.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The identity's keys do not fit TLS.
    #[error("the identity cannot be used: {0}")]
    Tls(String),
    /// Reading a certificate.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// A server or a client that is not enrolling without an identity.
    #[error("{0} needs an identity: enrol first")]
    NoIdentity(&'static str),
    /// Too many connections.
    #[error("{0} connections are open, which is the bound")]
    Full(usize),
    /// quinn-proto refused to begin.
    #[error("cannot connect to {remote}: {why}")]
    Connect {
        /// To where.
        remote: SocketAddr,
        /// Its words.
        why: String,
    },
}

/// What was refused or failed, since the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Connections refused because there were `connections_max`.
    pub refused_full: u64,
    /// Handshakes answered with a demand to prove the address first.
    pub retried: u64,
    /// Incoming handshakes that failed (foreign CA, expired, no common ALPN, garbage).
    pub handshakes_failed: u64,
    /// Connections closed because the certificate's role did not match the ALPN.
    pub refused_role: u64,
}

/// What went over a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Traffic {
    /// Datagrams sent.
    pub sent: u64,
    /// Datagrams received.
    pub received: u64,
    /// Packets given up for lost and sent again.
    pub lost: u64,
}

/// A datagram that came in.
#[derive(Debug)]
pub struct Datagram {
    /// From whom.
    pub from: SocketAddr,
    /// To which of this machine's addresses, if known.
    pub to: Option<IpAddr>,
    /// Congestion mark: the two bits of the IP header.
    pub ecn: u8,
    /// Its bytes.
    pub bytes: BytesMut,
}

/// Datagrams to send; their bytes are in the buffer given to `Link::transmit`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Transmit {
    /// To whom.
    pub to: SocketAddr,
    /// From which of this machine's addresses, if it matters.
    pub from: Option<IpAddr>,
    /// Congestion mark: the two bits of the IP header.
    pub ecn: u8,
    /// Bytes in all.
    pub bytes: usize,
    /// Bytes of each datagram but the last; `None` is a single datagram.
    pub segment_bytes: Option<usize>,
}

impl Why {
    pub(super) fn of(error: &ConnectionError) -> Self {
        match error {
            ConnectionError::TimedOut => Self::Silence,
            ConnectionError::Reset => Self::Reset,
            ConnectionError::TransportError(error) if let Some(why) = mine(error.code) => {
                Self::Distrust(why)
            }
            ConnectionError::ConnectionClosed(close)
                if let Some(why) = theirs(close.error_code) =>
            {
                Self::Distrust(why)
            }
            ConnectionError::ApplicationClosed(close)
                if close.error_code == VarInt::from_u32(CODE_EXPIRED) =>
            {
                Self::Distrust(Distrust::Expired)
            }
            ConnectionError::ApplicationClosed(close) => {
                Self::Peer(clip(&String::from_utf8_lossy(&close.reason)))
            }
            other @ (ConnectionError::VersionMismatch
            | ConnectionError::TransportError(_)
            | ConnectionError::ConnectionClosed(_)
            | ConnectionError::LocallyClosed
            | ConnectionError::CidsExhausted) => Self::Failed(clip(&other.to_string())),
        }
    }
}

/// What this side found wrong with the broker's certificate, by the alert it sent (RFC 8446, 6.2).
fn mine(code: TransportErrorCode) -> Option<Distrust> {
    match alert(code)? {
        CERTIFICATE_EXPIRED => Some(Distrust::BrokerExpired),
        UNKNOWN_CA => Some(Distrust::BrokerForeign),
        BAD_CERTIFICATE | UNSUPPORTED_CERTIFICATE => Some(Distrust::NotBroker),
        _ => None,
    }
}

/// What the broker found wrong with this side's, by the alert it sent.
fn theirs(code: TransportErrorCode) -> Option<Distrust> {
    match alert(code)? {
        CERTIFICATE_EXPIRED => Some(Distrust::Expired),
        UNKNOWN_CA | BAD_CERTIFICATE | UNSUPPORTED_CERTIFICATE | DECRYPT_ERROR => {
            Some(Distrust::Foreign)
        }
        _ => None,
    }
}

/// QUIC carries TLS alerts as 0x100 and the alert (RFC 9001, 4.8).
fn alert(code: TransportErrorCode) -> Option<u8> {
    u64::from(code).checked_sub(0x100).and_then(|alert| u8::try_from(alert).ok())
}

/// A text for a log or a close frame: bounded, one line, nothing that moves a terminal's cursor.
pub(super) fn clip(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(WHY_CHARS_MAX).collect()
}

const BAD_CERTIFICATE: u8 = 42;
const UNSUPPORTED_CERTIFICATE: u8 = 43;
const CERTIFICATE_EXPIRED: u8 = 45;
const UNKNOWN_CA: u8 = 48;
const DECRYPT_ERROR: u8 = 51;
const WHY_CHARS_MAX: usize = 240;
