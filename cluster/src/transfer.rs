//! Snapshots on their way, in pieces: what a leader sends, what a follower has of one.
//!
//! The receiver says how far it is, the sender goes on from there: after a lost piece, a broken
//! connection, and, since images are canonical, under another leader too. A sender that hears
//! nothing new [`TRIES`] times over gives up, and raft is told so; nothing is left open.

use crate::codec;
use crate::peer::{Chunk, Got, Verdict};
use crate::state::State;
use bytes::Bytes;
use std::time::{Duration, Instant};

/// A snapshot that is being sent.
#[derive(Debug)]
pub(crate) struct Sending {
    message: codec::Message,
    image: Bytes,
    crc: u32,
    /// The receiver has these many bytes; these many were sent.
    got: usize,
    sent: usize,
    heard: Instant,
    silent: u32,
    /// From where it was last sent again because the receiver said so.
    again: Option<usize>,
}

/// A snapshot of which a part is here. In memory: a restart begins anew.
#[derive(Debug)]
pub(crate) struct Receiving {
    index: u64,
    term: u64,
    total: usize,
    crc: u32,
    bytes: Vec<u8>,
}

/// What a piece made of it.
#[derive(Debug)]
pub(crate) enum Step {
    /// The answer, and nothing else yet.
    Answer(Got),
    /// All is here: what raft is to be told, if it takes it.
    Whole(Got, Box<codec::Message>, Bytes),
}

impl Sending {
    pub(crate) fn new(now: Instant, message: codec::Message, image: Bytes) -> Self {
        let crc = crc32c::crc32c(&image);
        Self { message, image, crc, got: 0, sent: 0, heard: now, silent: 0, again: None }
    }

    /// The next piece, when one may be sent now.
    pub(crate) fn next(&mut self, piece_bytes: usize) -> Option<Chunk> {
        if self.image.len() <= self.sent || self.got + WINDOW * piece_bytes <= self.sent {
            return None;
        }
        let end = (self.sent + piece_bytes).min(self.image.len());
        let chunk = Chunk {
            message: Some(self.message.clone()),
            total: self.image.len() as u64,
            crc: self.crc,
            offset: self.sent as u64,
            data: self.image.slice(self.sent..end),
        };
        self.sent = end;
        Some(chunk)
    }

    /// The receiver said how far it is; the outcome, when that is known.
    pub(crate) fn on_got(&mut self, now: Instant, got: Got) -> Option<bool> {
        if self.message.snapshot_at() != Some((got.index, got.term)) {
            return None;
        }
        match got.verdict() {
            Verdict::Taken => return Some(true),
            Verdict::Refused => return Some(false),
            Verdict::More => {}
        }
        let through = usize::try_from(got.through).unwrap_or(usize::MAX).min(self.image.len());
        if self.got < through {
            (self.got, self.heard, self.silent) = (through, now, 0);
            self.sent = self.sent.max(through);
        } else if self.again != Some(through) {
            // A piece is missing, or all of them since the receiver began anew: once it is said of a place,
            // it is sent from there again; what comes of those sent meanwhile says the same.
            (self.got, self.sent, self.again) = (through, through, Some(through));
        }
        None
    }

    /// Goes on from what was heard last after a silence; false when there were too many.
    pub(crate) fn on_timeout(&mut self, now: Instant, pause: Duration) -> bool {
        if self.heard + pause <= now {
            (self.heard, self.sent, self.again) = (now, self.got, None);
            self.silent += 1;
        }
        self.silent < TRIES
    }
}

impl Receiving {
    /// Takes a piece into `slot`, where the only half-received snapshot is.
    pub(crate) fn take(slot: &mut Option<Self>, chunk: Chunk) -> Option<Step> {
        let Chunk { message, total, crc, offset, data } = chunk;
        let message = message.filter(codec::Message::is_snapshot)?;
        let (index, term) = message.snapshot_at()?;
        let got = |through: usize, verdict: Verdict| Got {
            index,
            term,
            through: through as u64,
            verdict: verdict.into(),
        };
        let total = usize::try_from(total).ok().filter(|&total| total <= IMAGE_BYTES_MAX);
        let Some(total) = total else { return Some(Step::Answer(got(0, Verdict::Refused))) };
        let same = |known: &Self| {
            (known.index, known.term, known.total, known.crc) == (index, term, total, crc)
        };
        if slot.as_ref().is_some_and(|known| !same(known) && index < known.index) {
            return None;
        }
        if !slot.as_ref().is_some_and(same) {
            *slot = Some(Self { index, term, total, crc, bytes: Vec::new() });
        }
        let known = slot.as_mut()?;
        let have = known.bytes.len();
        let skip = usize::try_from(offset).ok().and_then(|offset| have.checked_sub(offset));
        if let Some(new) = skip.and_then(|skip| data.get(skip..)) {
            let room = total.saturating_sub(have);
            known.bytes.extend(new.iter().take(room));
        }
        if known.bytes.len() < total {
            return Some(Step::Answer(got(known.bytes.len(), Verdict::More)));
        }
        let image = Bytes::from(std::mem::take(&mut known.bytes));
        *slot = None;
        if crc32c::crc32c(&image) != crc || State::of_image(&image).is_err() {
            return Some(Step::Answer(got(0, Verdict::Refused)));
        }
        Some(Step::Whole(got(total, Verdict::Taken), Box::new(message), image))
    }
}

/// Pieces on their way at once.
const WINDOW: usize = 4;
/// Silences in a row after which a sender gives up.
const TRIES: u32 = 5;
/// Of a state: a hundred thousand hosts are 10 MB.
const IMAGE_BYTES_MAX: usize = 256 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::members;
    use raft::eraftpb;

    #[expect(clippy::disallowed_methods, reason = "a beginning for the virtual clock")]
    fn now() -> Instant {
        Instant::now()
    }

    fn message() -> codec::Message {
        let mut message = eraftpb::Message::default();
        message.set_msg_type(eraftpb::MessageType::MsgSnapshot);
        message.mut_snapshot().mut_metadata().index = 9;
        codec::Message::of(&message)
    }

    /// Pieces get lost, the sender is replaced by another leader's, and it is whole all the same.
    #[test]
    fn a_snapshot_goes_on_where_it_was() {
        let state = members::first_state(1, &"a".repeat(200), 7);
        let image = Bytes::from(state.image());
        let now = now();
        let mut sender = Sending::new(now, message(), image.clone());
        let mut slot = None;
        assert!(Receiving::take(&mut slot, sender.next(50).unwrap()).is_some());
        let _lost = sender.next(50).unwrap();
        let Some(Step::Answer(got)) = Receiving::take(&mut slot, sender.next(50).unwrap()) else {
            panic!("not whole yet")
        };
        assert_eq!(got.through, 50, "behind the hole nothing counts");
        let mut sender = Sending::new(now, message(), image.clone());
        assert_eq!(sender.on_got(now, got), None);
        let mut pieces = 1;
        loop {
            let chunk = sender.next(50).expect("not at the end");
            assert!(50 <= chunk.offset);
            pieces += 1;
            match Receiving::take(&mut slot, chunk).unwrap() {
                Step::Answer(got) => assert_eq!(sender.on_got(now, got), None),
                Step::Whole(got, _, whole) => {
                    assert_eq!(whole, image);
                    assert_eq!(sender.on_got(now, got), Some(true));
                    break;
                }
            }
        }
        assert_eq!(pieces, image.len().div_ceil(50));
    }

    #[test]
    fn a_sender_that_hears_nothing_gives_up() {
        let (mut now, pause) = (now(), Duration::from_secs(1));
        let mut sender = Sending::new(now, message(), Bytes::from_static(b"image"));
        let mut sent = 0;
        while sender.on_timeout(now, pause) {
            sent += usize::from(sender.next(50).is_some());
            now += pause;
        }
        assert_eq!(sent, 5);
    }

    #[test]
    fn a_damaged_snapshot_is_refused() {
        let image = Bytes::from(members::first_state(1, "a", 7).image());
        let mut chunk = Sending::new(now(), message(), image).next(9999).unwrap();
        let mut bytes = chunk.data.to_vec();
        bytes[20] ^= 1;
        chunk.data = bytes.into();
        let step = Receiving::take(&mut None, chunk).unwrap();
        let Step::Answer(got) = step else { panic!("taken") };
        assert_eq!(got.verdict(), Verdict::Refused);
    }
}
