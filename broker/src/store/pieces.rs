//! Column groups that were read lately, decompressed: a dashboard asks for the same ones every few
//! seconds, and of a thousand hosts' newest half hour opening blocks is nine tenths of the answer.
//!
//! Two generations: what is used moves to the younger one; when that has half of the bytes it
//! becomes the older, and the older is let go of. A block never changes, so nothing here is ever
//! wrong; what could not be read is not kept.

use super::block::Piece;
use std::collections::HashMap;
use std::mem;
use std::sync::{Arc, Mutex, PoisonError};

/// What is kept, and how much.
#[derive(Debug)]
pub(super) struct Pieces {
    shards: [Mutex<Shard>; SHARDS],
    /// Of one generation of one shard.
    bytes_max: usize,
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
}

impl Pieces {
    /// Nothing yet, and at most about so many bytes.
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { shards: Default::default(), bytes_max: bytes_max / 2 / SHARDS }
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
            return Ok(piece);
        }
        let piece = Arc::new(read()?);
        lock().keep(key, Arc::clone(&piece), self.bytes_max);
        Ok(piece)
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

    fn keep(&mut self, key: Key, piece: Arc<Piece>, bytes_max: usize) {
        let bytes = piece.bytes();
        if bytes_max < bytes {
            return;
        }
        if bytes_max < self.young_bytes + bytes {
            self.old = mem::take(&mut self.young);
            self.young_bytes = 0;
        }
        self.young_bytes += bytes;
        self.young.insert(key, piece);
    }
}

/// Two threads of each of a few queries rarely meet.
const SHARDS: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

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
