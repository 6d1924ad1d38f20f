//! Column groups that were read lately, decompressed: a dashboard asks for the same ones every few
//! seconds, and of a thousand hosts' newest half hour opening blocks is nine tenths of the answer.
//!
//! Two generations: what is used moves to the younger one; when that has half of the bytes it
//! becomes the older, and the older is let go of. A block never changes, so nothing here is ever
//! wrong; what could not be read is not kept.
//!
//! A question about more than fits here would, asked again and again, let go of each group just
//! before it is wanted: nothing would ever be found. So the keys of what went are remembered for a
//! few generations; of those that come back all but every sixteenth is read past, and what is here
//! stays and is found. What was never here is taken in at once.

use super::block::Piece;
use std::collections::{HashMap, HashSet};
use std::mem;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// What is kept, and how much.
#[derive(Debug)]
pub(super) struct Pieces {
    shards: [Mutex<Shard>; SHARDS],
    /// Of one generation of one shard.
    bytes_max: usize,
    /// Relaxed: counts.
    found: AtomicU64,
    read: AtomicU64,
}

/// Which group of which block.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Key {
    /// Where the block lies.
    pub(super) place: Place,
    /// Its group.
    pub(super) group: usize,
}

/// Where a block lies.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Place {
    /// In the segment of this number, at this byte. Numbers are not used twice.
    Segment(u64, u64),
    /// It is the young block of this number.
    Young(u64),
}

#[derive(Debug, Default)]
struct Shard {
    young: HashMap<Key, Arc<Piece>>,
    young_bytes: usize,
    old: HashMap<Key, Arc<Piece>>,
    /// What each of the last generations was that was let go of.
    gone: [HashSet<Key>; GONE],
    /// Of those that came back.
    passed: usize,
}

impl Pieces {
    /// Nothing yet, and at most about so many bytes.
    pub(super) fn new(bytes_max: usize) -> Self {
        let (found, read) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { shards: Default::default(), bytes_max: bytes_max / 2 / SHARDS, found, read }
    }

    /// A group, as kept or as `read` reads it.
    pub(super) fn piece(
        &self,
        key: Key,
        read: impl FnOnce() -> Result<Piece, String>,
    ) -> Result<Arc<Piece>, String> {
        let (Place::Segment(_, number) | Place::Young(number)) = key.place;
        // Offsets of blocks share their low bits at most by chance.
        let shard = usize::try_from(number ^ number >> 9).unwrap_or(0) % SHARDS;
        let Some(shard) = self.shards.get(shard) else { return read().map(Arc::new) };
        let lock = || shard.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(piece) = lock().find(&key, self.bytes_max) {
            self.found.fetch_add(1, Ordering::Relaxed);
            return Ok(piece);
        }
        self.read.fetch_add(1, Ordering::Relaxed);
        let piece = Arc::new(read()?);
        lock().take_in(key, Arc::clone(&piece), self.bytes_max);
        Ok(piece)
    }

    /// How many were found here, and how many had to be read.
    pub(super) fn counts(&self) -> (u64, u64) {
        (self.found.load(Ordering::Relaxed), self.read.load(Ordering::Relaxed))
    }

    /// Lets go of everything.
    #[cfg(test)]
    pub(super) fn clear(&self) {
        for shard in &self.shards {
            *shard.lock().unwrap_or_else(PoisonError::into_inner) = Shard::default();
        }
    }

    #[cfg(test)]
    fn bytes(&self) -> usize {
        let of = |shard: &Mutex<Shard>| {
            let shard = shard.lock().unwrap();
            shard.young.values().chain(shard.old.values()).map(|piece| piece.bytes()).sum::<usize>()
        };
        self.shards.iter().map(of).sum()
    }
}

impl Shard {
    fn find(&mut self, key: &Key, bytes_max: usize) -> Option<Arc<Piece>> {
        if let Some(piece) = self.young.get(key) {
            return Some(Arc::clone(piece));
        }
        let piece = self.old.remove(key)?;
        self.keep(*key, Arc::clone(&piece), bytes_max);
        Some(piece)
    }

    /// Keeps what was read, unless it came back too late.
    fn take_in(&mut self, key: Key, piece: Arc<Piece>, bytes_max: usize) {
        if !self.old.is_empty() && self.gone.iter().any(|gone| gone.contains(&key)) {
            self.passed += 1;
            if !self.passed.is_multiple_of(TAKEN_OF) {
                return;
            }
        }
        self.keep(key, piece, bytes_max);
    }

    fn keep(&mut self, key: Key, piece: Arc<Piece>, bytes_max: usize) {
        let bytes = piece.bytes();
        if bytes_max < bytes {
            return;
        }
        if bytes_max < self.young_bytes + bytes {
            let gone = mem::replace(&mut self.old, mem::take(&mut self.young));
            self.young_bytes = 0;
            if !gone.is_empty() {
                self.gone.rotate_right(1);
                self.gone[0] = gone.into_keys().collect();
            }
        }
        self.young_bytes += bytes;
        self.young.insert(key, piece);
    }
}

/// Two threads of each of a few queries rarely meet.
const SHARDS: usize = 16;
/// Generations that are remembered: a question about four times of what fits is known again.
const GONE: usize = 8;
/// Of so many that came back one is taken in, for what is wanted changes after all.
const TAKEN_OF: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    /// A fleet's half hour that does not fit, asked for every few seconds: nothing was ever found.
    #[test]
    fn a_question_larger_than_this_finds_what_fits() {
        let pieces = Pieces::new(256 << 10);
        let ask = |numbers: std::ops::Range<u64>| {
            let before = pieces.counts();
            for number in numbers {
                let key = Key { place: Place::Young(number), group: 0 };
                pieces.piece(key, || Ok(Piece::of_bytes(400))).unwrap();
            }
            let (found, read) = pieces.counts();
            let (found, read) = (found - before.0, read - before.1);
            found * 100 / (found + read)
        };
        let whole = u64::try_from((256 << 10) / Piece::of_bytes(400).bytes()).unwrap();
        let shares: Vec<u64> = (0..12).map(|_| ask(0..whole * 2)).collect();
        assert_eq!(shares[0], 0);
        assert!(11 * 20 < shares[1..].iter().sum::<u64>(), "{shares:?}");
        // Another question, which fits, is at home at once.
        ask(100_000..100_000 + whole / 4);
        assert_eq!(ask(100_000..100_000 + whole / 4), 100);
        assert!(pieces.bytes() <= 256 << 10, "{}", pieces.bytes());
    }

    #[test]
    fn what_is_used_stays_and_the_bound_holds() {
        let pieces = Pieces::new(64 << 10);
        let key = |number| Key { place: Place::Young(number), group: 0 };
        let mut read = 0;
        for number in 0..2_000 {
            for wanted in [0, number] {
                let piece = pieces.piece(key(wanted), || {
                    read += 1;
                    Ok(Piece::of_bytes(100 + usize::try_from(wanted).unwrap()))
                });
                assert_eq!(
                    piece.unwrap().bytes(),
                    Piece::of_bytes(0).bytes() + 100 + usize::try_from(wanted).unwrap()
                );
            }
        }
        assert_eq!(read, 2_000, "the first is used always, the others once");
        assert!(pieces.bytes() <= 64 << 10, "{}", pieces.bytes());
        assert!(32 << 10 < pieces.bytes() * 2, "{}", pieces.bytes());
        assert!(pieces.piece(key(5_000), || Err("broken".into())).is_err());
        assert!(
            pieces.piece(key(5_000), || Ok(Piece::of_bytes(1))).is_ok(),
            "an error is not kept"
        );
    }
}
