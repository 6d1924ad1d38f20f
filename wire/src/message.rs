//! Messages on a QUIC stream, and their framing.
//!
//! ```text
//! length of what follows, u32 LE | tag u8 | body
//!                                  1: frame, raw ([`crate::frame`]); 2: control, rkyv [`Message`]
//! ```
//!
//! An agent opens one bidirectional stream: `Hello`, then schemas and frames; the broker answers
//! `Welcome` and then cumulative `Ack`s. A second one, `Replay`, is for what waited in its spool.
//! A viz opens one bidirectional stream a request (`ApiRequest` → `ApiResponse`) and one for
//! `Subscribe` (→ `Hosts`, schemas and frames).
//! An enrolling agent opens one stream: `Enrol` → `Enrolled`; a joining broker too: `Join` → `Joined`.
//! Between brokers the frames are the control plane's, opaque here.
//!
//! An agent and a broker that both speak [`ALPN_AGENT`] say `Configure` and `Configured`, `Ask` and
//! `Answer` on the agent's stream; where one of them knows only [`ALPN_AGENT_FIRST`], neither does.
//!
//! On an agent's stream and a viz's subscription the broker says `RenewDue` when the certificate
//! nears its end; the answer is `Renew`, and the answer to that is `Enrolled`.

use crate::limits::MESSAGE_BYTES_MAX;
use crate::schema::Schema;
use bytes::{Buf, Bytes, BytesMut};
use rkyv::rancor::Failure;
use rkyv::{Archive, Deserialize, Serialize};
use std::time::Duration;

/// ALPN of an agent's connection (client certificate required).
pub const ALPN_AGENT: &[u8] = b"strobe-agent/2";
/// The same of programs that know no configuration from the fleet and no questions.
pub const ALPN_AGENT_FIRST: &[u8] = b"strobe-agent/1";
/// Whether this program is to speak as the version before it did, so that a test can upgrade brokers and agents
/// one by one: only one that was built for tests can.
#[must_use]
pub fn is_previous() -> bool {
    cfg!(debug_assertions) && std::env::var_os("STROBE_TEST_PREVIOUS").is_some()
}

/// ALPN of a viz connection (client certificate required).
pub const ALPN_VIZ: &[u8] = b"strobe-viz/1";
/// ALPN of another broker's connection (client certificate required).
pub const ALPN_PEER: &[u8] = b"strobe-peer/1";
/// ALPN of an enrolment (no client certificate yet; the token is the proof).
pub const ALPN_ENROL: &[u8] = b"strobe-enrol/1";

/// A control message.
#[derive(Archive, Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub enum Message {
    /// Agent → broker, first on its stream.
    Hello(Hello),
    /// Broker → agent: go on behind `seq` of this boot (everything up to it is stored).
    Welcome {
        /// Last sequence number stored of this boot, 0 if none.
        stored_seq: u64,
        /// The broker's version.
        version: String,
    },
    /// Either way: the columns behind a schema id, before the first row that uses it.
    Schema(Schema),
    /// Broker → agent: every frame of `boot` up to `seq` is on disk (fdatasync returned).
    Ack {
        /// Boot id.
        boot: u128,
        /// Cumulative.
        seq: u64,
    },
    /// Broker → agent: this host belongs to another broker.
    Redirect {
        /// `host:port` to connect to.
        broker: String,
    },
    /// Client without a certificate → broker.
    Enrol {
        /// The token's secret part.
        secret: Vec<u8>,
        /// The host id it asks for (agents) or 0 (viz).
        host: u128,
        /// `agent` or `viz`.
        role: String,
        /// Certificate signing request, DER.
        csr: Vec<u8>,
    },
    /// Broker → enrolling or renewing client.
    Enrolled {
        /// Its certificate, DER.
        certificate: Vec<u8>,
        /// The CA's certificate, DER.
        ca: Vec<u8>,
    },
    /// Viz → broker: an HTTP API request, answered on the same stream.
    ApiRequest(ApiRequest),
    /// Broker → viz.
    ApiResponse(ApiResponse),
    /// Viz → broker: send every new frame from now on, of all hosts.
    Subscribe,
    /// Broker → viz, before a host's first frame and whenever what is known of it changes.
    Host(HostInfo),
    /// Either way: the reason before a stream or connection is closed.
    Refused {
        /// A sentence: what, why, what to do.
        why: String,
    },
    /// Broker → client: its certificate nears its end, or is past it: ask for another.
    RenewDue,
    /// Client → broker, after `RenewDue`: a certificate for a new key and the same subject.
    Renew {
        /// Certificate signing request, DER.
        csr: Vec<u8>,
    },
    /// Agent → broker, before its `Hello`, when it was with another broker before.
    Resume {
        /// Frames of its boot up to this one were acknowledged, by whichever broker.
        acknowledged_seq: u64,
        /// The `host:port` that it left because nothing was heard from there, or empty.
        silent: String,
    },
    /// Broker → agent: where the brokers of its cluster are, `host:port` each.
    Brokers(Vec<String>),
    /// A broker without a cluster → a broker of one, with no certificate yet.
    Join {
        /// The token's secret part.
        secret: Vec<u8>,
        /// `host:port` where peers and agents will reach it.
        address: String,
        /// The number of its disk.
        disk: u64,
    },
    /// Broker → joining broker: it is a learner now.
    Joined {
        /// Which cluster.
        cluster: u128,
        /// Which broker it is.
        broker: u64,
        /// The authority's private key, PKCS#8: any broker enrols hosts.
        key: Vec<u8>,
        /// The authority's certificate, DER.
        ca: Vec<u8>,
    },
    /// Broker → agent: send what the flight recorder has, and what comes.
    Burst,
    /// Agent → broker, before its `Hello`: these frames of its boot wait in its spool, and come on a
    /// stream of their own beside the newer ones; both are 0 if all that waits is of earlier boots.
    Spooled {
        /// The first of them.
        first_seq: u64,
        /// The last of them.
        last_seq: u64,
    },
    /// Agent → broker, first on a second stream, behind the `Welcome` on the first: schemas and
    /// frames of its spool follow, of this boot and of earlier ones, those of each in order. They are
    /// acknowledged here, each boot's by itself.
    Replay,
    /// Broker → agent: run this version of the fleet's configuration.
    Configure {
        /// Its number; 0 is none, which is the host's own configuration.
        version: u64,
        /// What it says of this host, by key.
        values: Vec<(String, String)>,
    },
    /// Agent → broker, behind each `Welcome` and whenever something of it changes.
    Configured {
        /// The version that it runs.
        running: u64,
        /// It has run so for long enough, and well.
        proven: bool,
        /// A version that it does not run, or does not run any more, and does not want again; 0: none.
        refused: u64,
        /// Why.
        why: String,
        /// Keys of the version that its own file has locked, with commas between.
        locked: String,
        /// [`digest`] of the values of what it runs.
        digest: u32,
    },
    /// Broker → agent: what a person wants to see of the host, as far as the agent's own file allows it.
    Ask {
        /// What the answer is known by.
        id: u64,
        /// What.
        what: Question,
    },
    /// Agent → broker.
    Answer {
        /// Of the question.
        id: u64,
        /// The answer; otherwise why there is none.
        good: bool,
        /// At most [`ANSWER_BYTES_MAX`].
        text: String,
    },
}

/// Of what a version says of a host: equal for equal values.
#[must_use]
pub fn digest(values: &[(String, String)]) -> u32 {
    let text: String = values.iter().map(|(key, text)| format!("{key}={text}\n")).collect();
    crc32fast::hash(text.as_bytes())
}

/// What may be asked of a host: it reads and tells, and changes nothing.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Question {
    /// The processes that use most of CPU and memory.
    Top,
    /// Sockets, as far as /proc/net tells them.
    Sockets,
    /// Mounts, with their space.
    Mounts,
    /// What `strobe-agent doctor` finds.
    Doctor,
    /// What the flight recorder has, which comes as frames.
    Burst,
}

impl Question {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Top, Self::Sockets, Self::Mounts, Self::Doctor, Self::Burst];

    /// As people and `agent.commands` say it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Top => "top",
            Self::Sockets => "ss",
            Self::Mounts => "mounts",
            Self::Doctor => "doctor",
            Self::Burst => "burst",
        }
    }

    /// The one with this word.
    #[must_use]
    pub fn of(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|question| question.word() == word)
    }
}

/// Who an agent is.
#[derive(Archive, Serialize, Deserialize, Clone, PartialEq, Eq, Debug, Default)]
pub struct Hello {
    /// Host id; must match the client certificate.
    pub host: u128,
    /// Boot id of this agent's life.
    pub boot: u128,
    /// What the series' `instance` label will be.
    pub instance: String,
    /// The series' `job` label.
    pub job: String,
    /// Agent version.
    pub version: String,
    /// Kernel release.
    pub kernel: String,
    /// Host labels of the user's, sorted.
    pub labels: Vec<(String, String)>,
    /// Sampling interval.
    pub interval_ms: u64,
}

/// A host as the registry knows it.
#[derive(Archive, Serialize, Deserialize, Clone, PartialEq, Eq, Debug, Default)]
pub struct HostInfo {
    /// As it said last.
    pub hello: Hello,
    /// Wall time, ms, of its first frame ever.
    pub first_seen_ms: i64,
    /// Wall time, ms (broker's clock), of its last frame.
    pub last_seen_ms: i64,
    /// Whether a session is open now.
    pub connected: bool,
}

/// An HTTP API request as viz hands it on.
#[derive(Archive, Serialize, Deserialize, Clone, PartialEq, Eq, Debug, Default)]
pub struct ApiRequest {
    /// `GET` or `POST`.
    pub method: String,
    /// Path without the query string, e.g. `/api/v1/query`.
    pub path: String,
    /// The query string, raw, without `?`.
    pub query: String,
    /// `Content-Type`, or empty.
    pub content_type: String,
    /// `Content-Encoding`, or empty.
    pub content_encoding: String,
    /// The body.
    pub body: Vec<u8>,
}

/// Its answer.
#[derive(Archive, Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct ApiResponse {
    /// HTTP status.
    pub status: u16,
    /// `Content-Type`.
    pub content_type: String,
    /// The body.
    pub body: Vec<u8>,
}

/// What comes off a stream.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Incoming {
    /// A frame's bytes, not opened yet.
    Frame(Bytes),
    /// A control message.
    Control(Box<Message>),
}

/// Why a stream cannot go on.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum MessageError {
    /// A length of 0 or over the bound.
    #[error("a message of {0} bytes; 1 to {MESSAGE_BYTES_MAX} are allowed")]
    Length(usize),
    /// A tag that this version does not know.
    #[error("message tag {0} is not known to this version")]
    Tag(u8),
    /// A body that is no [`Message`].
    #[error("a control message is malformed")]
    Body,
}

/// Takes a stream's bytes in any pieces and gives whole messages back. Holds at most one message.
#[derive(Debug, Default)]
pub struct Reader {
    buffer: BytesMut,
}

/// The five bytes that go before a frame of `length` bytes.
#[must_use]
pub fn frame_prefix(length: usize) -> [u8; PREFIX_BYTES] {
    prefix(length, TAG_FRAME)
}

/// A control message, ready for the stream.
#[must_use]
pub fn encode(message: &Message) -> Bytes {
    let body = rkyv::to_bytes::<Failure>(message).expect("rkyv into memory does not fail");
    let mut out = BytesMut::with_capacity(PREFIX_BYTES + body.len());
    out.extend_from_slice(&prefix(body.len(), TAG_CONTROL));
    out.extend_from_slice(&body);
    out.freeze()
}

impl Hello {
    /// How long this agent may take to acknowledge what it hears: one that ticks often does it
    /// with the rows of its next tick but one, half an interval late at worst. `None` is at once.
    #[must_use]
    pub fn patience(&self) -> Option<Duration> {
        let often = (1..=PATIENT_INTERVAL_MAX_MS).contains(&self.interval_ms);
        often.then(|| Duration::from_millis(self.interval_ms * 5 / 2))
    }
}

impl Reader {
    /// More bytes of the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole message, or `None` until more bytes come.
    ///
    /// # Errors
    /// The stream is broken for good.
    pub fn pull(&mut self) -> Result<Option<Incoming>, MessageError> {
        let Some(head) = self.buffer.first_chunk::<PREFIX_BYTES>() else { return Ok(None) };
        let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let tag = head[4];
        if !(2..=MESSAGE_BYTES_MAX).contains(&length) {
            return Err(MessageError::Length(length));
        }
        if self.buffer.len() < 4 + length {
            return Ok(None);
        }
        self.buffer.advance(PREFIX_BYTES);
        let body = self.buffer.split_to(length - 1).freeze();
        if self.buffer.is_empty() {
            // Else each stream would keep room for the largest it ever had, its schemas: 9 KB of the
            // 37 that a connection took (heap profile of 300 agents of 112 series).
            self.buffer = BytesMut::new();
        }
        match tag {
            TAG_FRAME => Ok(Some(Incoming::Frame(body))),
            TAG_CONTROL => rkyv::from_bytes::<Message, Failure>(&body)
                .map(|message| Some(Incoming::Control(Box::new(message))))
                .map_err(|_| MessageError::Body),
            other => Err(MessageError::Tag(other)),
        }
    }
}

fn prefix(body: usize, tag: u8) -> [u8; PREFIX_BYTES] {
    let [a, b, c, d] =
        u32::try_from(body + 1).expect("bodies are bounded by MESSAGE_BYTES_MAX").to_le_bytes();
    [a, b, c, d, tag]
}

/// A row that is lost is missed with the next tick, so a tick must not be far.
const PATIENT_INTERVAL_MAX_MS: u64 = 2000;
const PREFIX_BYTES: usize = 5;
/// Bytes of an answer to a question.
pub const ANSWER_BYTES_MAX: usize = 64 << 10;
const TAG_FRAME: u8 = 1;
const TAG_CONTROL: u8 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_any_cut() {
        let message = Message::Ack { boot: 5, seq: 77 };
        let mut bytes = encode(&message).to_vec();
        bytes.extend_from_slice(&frame_prefix(3));
        bytes.extend_from_slice(b"abc");
        for cut in 0..bytes.len() {
            let mut reader = Reader::default();
            let mut seen = Vec::new();
            for part in [&bytes[..cut], &bytes[cut..]] {
                reader.push(part);
                while let Some(incoming) = reader.pull().unwrap() {
                    seen.push(incoming);
                }
            }
            let wanted = [
                Incoming::Control(Box::new(message.clone())),
                Incoming::Frame(Bytes::from_static(b"abc")),
            ];
            assert_eq!(seen, wanted, "cut at {cut}");
        }
    }

    #[test]
    fn broken_streams_are_named() {
        let check = |bytes: &[u8], wanted: MessageError| {
            let mut reader = Reader::default();
            reader.push(bytes);
            assert_eq!(reader.pull(), Err(wanted));
        };
        check(&[0, 0, 0, 0, 1], MessageError::Length(0));
        check(&[255, 255, 255, 255, 1], MessageError::Length(u32::MAX as usize));
        check(&[2, 0, 0, 0, 9, 0], MessageError::Tag(9));
        check(&[2, 0, 0, 0, 2, 0], MessageError::Body);
    }
}
