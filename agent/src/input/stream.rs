//! Lines of Prometheus text on a Unix socket, from collectors of the user's own.
//!
//! A collector writes samples, a line each, and says `# EOF`, an empty line, or good-bye when a reading
//! is whole; whoever says nothing for [`GATHER_NS`] is told as far as they came. A line that is no
//! sample is left out and counted.

use super::board::{Absent, Board, Put, Room};
use super::line::Line;
use super::outbox::Outbox;
use super::text::series;
use crate::sampler::Tick;
use crate::schemas::Table;
use std::sync::Arc;

/// The series of all collectors.
#[derive(Debug)]
pub(crate) struct Streams {
    board: Board,
    /// When the first sample of a reading that is not told came.
    since_ns: Option<u64>,
    pub(crate) numbers: Numbers,
}

/// What became of samples.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Numbers {
    pub(crate) taken: u64,
    pub(crate) bad: u64,
    pub(crate) refused: u64,
    pub(crate) dropped: u64,
}

/// One collector's connection: the line that is not whole yet.
#[derive(Debug, Default)]
pub(crate) struct Conversation {
    held: Vec<u8>,
    /// The line was longer than allowed; the rest of it says nothing.
    skipping: bool,
}

impl Streams {
    pub(crate) fn new(room: Room, table: Arc<Table>) -> Self {
        let board = Board::new("socket".to_owned(), usize::MAX / 4, room, table);
        let mut streams = Self { board, since_ns: None, numbers: Numbers::default() };
        streams.board.begin();
        streams
    }

    /// Bytes of one of them.
    pub(crate) fn heard(
        &mut self,
        now: Tick,
        of: &mut Conversation,
        mut bytes: &[u8],
        outbox: &Outbox,
    ) {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let (line, rest) = bytes.split_at_checked(end + 1).unwrap_or((bytes, &[]));
            bytes = rest;
            of.hold(line);
            let line = std::mem::take(&mut of.held);
            if std::mem::take(&mut of.skipping) {
                self.numbers.bad += 1;
            } else {
                self.line(now, &line, outbox);
            }
        }
        of.hold(bytes);
    }

    /// It said good-bye: what it said is whole, with or without a last newline.
    pub(crate) fn ended(&mut self, now: Tick, mut of: Conversation, outbox: &Outbox) {
        self.heard(now, &mut of, b"\n", outbox);
        self.flush(now, outbox);
    }

    /// When what came so far is told at the latest.
    pub(crate) fn due_ns(&self) -> Option<u64> {
        self.since_ns.map(|since_ns| since_ns + GATHER_NS)
    }

    /// Tells what came so far.
    pub(crate) fn flush(&mut self, now: Tick, outbox: &Outbox) {
        if self.since_ns.take().is_some() {
            self.numbers.dropped += self.board.finish(now, Absent::Silent, outbox);
            self.board.begin();
        }
    }

    fn line(&mut self, now: Tick, line: &[u8], outbox: &Outbox) {
        match Line::read(line.trim_ascii()) {
            Line::End => self.flush(now, outbox),
            Line::Comment if line.trim_ascii().is_empty() => self.flush(now, outbox),
            Line::Comment => {}
            Line::Bad => self.numbers.bad += 1,
            Line::Sample { series: text, value } => {
                let mut put = self.board.put(text, value, series);
                if put == Put::Twice {
                    // The next reading has begun without a word.
                    self.flush(now, outbox);
                    put = self.board.put(text, value, series);
                }
                match put {
                    Put::Taken | Put::Twice => {
                        self.numbers.taken += 1;
                        self.since_ns.get_or_insert(now.boottime_ns);
                    }
                    Put::Bad => self.numbers.bad += 1,
                    Put::Full => self.numbers.refused += 1,
                }
            }
        }
    }
}

impl Conversation {
    fn hold(&mut self, bytes: &[u8]) {
        if LINE_BYTES_MAX < self.held.len() + bytes.len() {
            self.skipping = true;
            self.held.clear();
        }
        if !self.skipping {
            self.held.extend_from_slice(bytes);
        }
    }
}

const LINE_BYTES_MAX: usize = 16 << 10;
const GATHER_NS: u64 = 1_000_000_000;

#[cfg(test)]
mod tests {
    use super::super::scrape::tests::told;
    use super::*;

    #[test]
    fn readings_end_with_a_word_a_repetition_or_time() {
        let (outbox, table) = (Outbox::default(), Arc::new(Table::new()));
        let mut streams = Streams::new(Room::new(3), table);
        let at = |ns| Tick { wall_ns: 1, boottime_ns: ns };
        let mut one = Conversation::default();
        streams.heard(at(1), &mut one, b"a 1\nb{x=\"y\"", &outbox);
        assert_eq!((told(&outbox).len(), streams.due_ns()), (0, Some(1 + GATHER_NS)));
        streams.heard(at(2), &mut one, b"} 2\r\n# EOF\n", &outbox);
        let rows = told(&outbox);
        assert_eq!((&*rows["a{}"], &*rows["b{x=y}"], streams.due_ns()), ("1", "2", None));
        streams.heard(at(3), &mut one, b"a 3\na 4\n", &outbox);
        assert_eq!(told(&outbox)["a{}"], "3");
        streams.flush(at(4), &outbox);
        let rows = told(&outbox);
        assert_eq!((&*rows["a{}"], rows.len()), ("4", 1), "b is silent, not stale");
        streams.heard(at(5), &mut one, b"oops\nc 1\nd 1\n", &outbox);
        let long = [vec![b'x'; LINE_BYTES_MAX], b"y\na 7".to_vec()].concat();
        streams.heard(at(6), &mut one, &long, &outbox);
        streams.ended(at(7), one, &outbox);
        assert_eq!(told(&outbox)["a{}"], "7");
        let Numbers { taken, bad, refused, .. } = streams.numbers;
        assert_eq!((taken, bad, refused), (6, 2, 1));
    }
}
