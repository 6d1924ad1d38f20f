//! How much memory a connection may take, how soon it speaks and for how long it may be silent.

use super::{IDLE_TIMEOUT, KEEP_ALIVE, Side};
use quinn_proto::{AckFrequencyConfig, TransportConfig, VarInt};
use std::time::Duration;

/// Which end of a connection this is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum End {
    Accepted,
    Dialled,
}

/// A viz or a peer at a broker: more streams at once and larger bodies than an agent.
pub(super) fn widen(quic: &mut quinn_proto::Connection) {
    quic.set_max_concurrent_streams(quinn_proto::Dir::Bi, VarInt::from_u32(STREAMS_WIDE));
    quic.set_receive_window(VarInt::from_u32(WINDOW_WIDE));
    quic.set_send_window(u64::from(WINDOW_WIDE));
}

/// The memory that one connection may take is the sum of its receive window, its send window and
/// about 20 KiB of state (measured, DESIGN §2).
pub(super) fn transport(side: Side, end: End) -> TransportConfig {
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
        .initial_rtt(INITIAL_RTT)
        .max_idle_timeout(IDLE_TIMEOUT.try_into().ok());
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
    // One end is enough to keep both awake, and those who dial are many: they do it.
    config.keep_alive_interval(match end {
        End::Dialled => Some(KEEP_ALIVE),
        End::Accepted => None,
    });
    config
}

/// A tick is 2 to 4 datagrams; a backlog is acknowledged every eighth.
const ACK_EVERY_AGENT: u32 = 7;
/// What is lost of a handshake is sent again after three of it, then six more. At QUIC's 333 ms a
/// handshake in which two datagrams were lost took three seconds, and was given up after two.
const INITIAL_RTT: Duration = Duration::from_millis(150);
const STREAMS_NARROW: u32 = 2;
const STREAMS_WIDE: u32 = 128;
const WINDOW_WIDE: u32 = 8 << 20;
const CRYPTO_BYTES: usize = 16 << 10;
