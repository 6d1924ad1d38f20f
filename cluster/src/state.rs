//! What the cluster agreed on: an ordered map that every node has alike.
//!
//! ```text
//!   key   = kind u8 | the kind's own bytes       value = the kind's record, protobuf
//!   image = "SCS1" | version u16 | count u32 | count × (key u16 + bytes, value u32 + bytes) | CRC32C
//! ```
//!
//! The image is canonical: keys ascend, each once, and a record has one encoding. So two nodes of
//! one applied index have the same image, and a half-received one can be completed from another
//! leader. The hash is a sum over the entries, kept as they change.

use crate::plant::Plants;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};

/// The agreed state.
#[derive(Clone, Default, Debug)]
pub struct State {
    entries: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Of each kind: the sum over its entries.
    hashes: BTreeMap<u8, u128>,
    dirty: BTreeSet<Vec<u8>>,
    pub(crate) plants: Plants,
}

/// Why bytes are no image of a state.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ImageError {
    /// It ends early, or goes on behind its end.
    #[error("the image of the state has another length than it says")]
    Length,
    /// Made by another program.
    #[error("these bytes are no image of a cluster's state")]
    Magic,
    /// Made by a newer version.
    #[error("the image of the state has version {0}; this broker knows {VERSION}: upgrade it")]
    Version(u16),
    /// The checksum does not fit.
    #[error("the image of the state is damaged")]
    Checksum,
    /// Keys do not ascend.
    #[error("the image of the state is not in order")]
    Order,
}

impl State {
    /// The value at `key`.
    #[must_use]
    pub fn get(&self, key: &[u8]) -> Option<&[u8]> {
        self.entries.get(key).map(Vec::as_slice)
    }

    /// Entries whose key begins with `prefix`, in order.
    pub fn scan<'a>(&'a self, prefix: &'a [u8]) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        self.entries
            .range(prefix.to_vec()..)
            .take_while(move |(key, _)| key.starts_with(prefix))
            .map(|(key, value)| (key.as_slice(), value.as_slice()))
    }

    /// Equal for equal states; of different ones it differs, unless somebody wants it not to.
    #[must_use]
    pub fn hash(&self) -> u128 {
        self.hashes.values().fold(0, |sum, hash| sum.wrapping_add(*hash))
    }

    /// The same of one kind's entries.
    pub(crate) fn hash_of(&self, kind: u8) -> u128 {
        self.hashes.get(&kind).copied().unwrap_or(0)
    }

    /// A command takes effect, for a broker that agrees with nobody but itself.
    ///
    /// # Errors
    /// Why it changed nothing.
    pub fn run(&mut self, command: &crate::kinds::Command) -> Result<u64, crate::Refusal> {
        let outcome = crate::kinds::apply(self, command.kind, &command.body);
        outcome.unwrap_or(Err(crate::Refusal::Malformed))
    }

    /// What a broker by itself had agreed on goes into the cluster that is made of it.
    pub(crate) fn take_along(&mut self, alone: &Self) {
        for kind in crate::kinds::OF_ONE {
            for (key, value) in alone.scan(&[kind]) {
                self.put(key.to_vec(), value.to_vec());
            }
        }
    }

    /// The canonical bytes.
    #[must_use]
    pub fn image(&self) -> Vec<u8> {
        let mut image = MAGIC.to_vec();
        image.extend_from_slice(&VERSION.to_le_bytes());
        let count = u32::try_from(self.entries.len()).expect("kinds bound their entries");
        image.extend_from_slice(&count.to_le_bytes());
        for (key, value) in &self.entries {
            let key_len = u16::try_from(key.len()).expect("kinds bound their keys");
            let value_len = u32::try_from(value.len()).expect("kinds bound their records");
            image.extend_from_slice(&key_len.to_le_bytes());
            image.extend_from_slice(key);
            image.extend_from_slice(&value_len.to_le_bytes());
            image.extend_from_slice(value);
        }
        let crc = crc32c::crc32c(&image);
        image.extend_from_slice(&crc.to_le_bytes());
        image
    }

    /// Of an image.
    ///
    /// # Errors
    /// It is not one.
    pub fn of_image(image: &[u8]) -> Result<Self, ImageError> {
        let (body, crc) = image.split_last_chunk::<4>().ok_or(ImageError::Length)?;
        let mut rest = Rest(body);
        if rest.array::<4>()? != *MAGIC {
            return Err(ImageError::Magic);
        }
        if crc32c::crc32c(body) != u32::from_le_bytes(*crc) {
            return Err(ImageError::Checksum);
        }
        let version = u16::from_le_bytes(rest.array()?);
        if version != VERSION {
            return Err(ImageError::Version(version));
        }
        let mut state = Self::default();
        for _ in 0..u32::from_le_bytes(rest.array()?) {
            let key_len = u16::from_le_bytes(rest.array()?);
            let key = rest.take(usize::from(key_len))?.to_vec();
            let value_len = u32::from_le_bytes(rest.array()?);
            let value = rest.take(usize::try_from(value_len).map_err(|_| ImageError::Length)?)?;
            if state.entries.last_key_value().is_some_and(|(last, _)| key <= *last) {
                return Err(ImageError::Order);
            }
            state.put(key, value.to_vec());
        }
        if rest.0.is_empty() { Ok(state) } else { Err(ImageError::Length) }
    }

    pub(crate) fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        if let Some(before) = self.entries.get(&key) {
            if *before == value {
                return;
            }
            let gone = digest(&key, before);
            self.add(&key, gone.wrapping_neg());
        }
        self.add(&key, digest(&key, &value));
        self.dirty.insert(key.clone());
        self.entries.insert(key, value);
    }

    pub(crate) fn remove(&mut self, key: &[u8]) {
        if let Some(before) = self.entries.remove(key) {
            self.add(key, digest(key, &before).wrapping_neg());
            self.dirty.insert(key.to_vec());
        }
    }

    fn add(&mut self, key: &[u8], digest: u128) {
        let hash = self.hashes.entry(key.first().copied().unwrap_or(0)).or_insert(0);
        *hash = hash.wrapping_add(digest);
    }

    /// What changed since it was last asked; `None` was removed.
    pub(crate) fn take_changes(&mut self) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
        let dirty = std::mem::take(&mut self.dirty);
        dirty.into_iter().map(|key| (self.entries.get(&key).cloned(), key)).map(swap).collect()
    }

    /// Every entry, as if all had changed.
    pub(crate) fn all_changed(&mut self) {
        self.dirty = self.entries.keys().cloned().collect();
    }
}

struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], ImageError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(ImageError::Length)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ImageError> {
        self.take(N)?.try_into().map_err(|_| ImageError::Length)
    }
}

fn swap((value, key): (Option<Vec<u8>>, Vec<u8>)) -> (Vec<u8>, Option<Vec<u8>>) {
    (key, value)
}

fn digest(key: &[u8], value: &[u8]) -> u128 {
    let mut sha = Sha256::new();
    sha.update(u64::try_from(key.len()).unwrap_or(u64::MAX).to_le_bytes());
    sha.update(key);
    sha.update(value);
    let digest = sha.finalize();
    u128::from_le_bytes(digest.first_chunk().copied().unwrap_or_default())
}

const MAGIC: &[u8; 4] = b"SCS1";
/// Of the image's form; a record grows by protobuf's rules without it.
const VERSION: u16 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        let mut state = State::default();
        state.put(b"\x01b".to_vec(), b"two".to_vec());
        state.put(b"\x01a".to_vec(), b"one".to_vec());
        state.put(b"\x02".to_vec(), vec![]);
        state
    }

    #[test]
    fn an_image_is_canonical_and_comes_back() {
        let mut other = State::default();
        other.put(b"\x02".to_vec(), b"wrong".to_vec());
        other.put(b"\x03".to_vec(), b"gone".to_vec());
        other.put(b"\x01a".to_vec(), b"one".to_vec());
        other.put(b"\x01b".to_vec(), b"two".to_vec());
        assert_ne!(other.hash(), state().hash());
        other.put(b"\x02".to_vec(), vec![]);
        other.remove(b"\x03");
        assert_eq!((other.hash(), other.image()), (state().hash(), state().image()));
        let back = State::of_image(&state().image()).unwrap();
        assert_eq!((back.hash(), back.image()), (state().hash(), state().image()));
    }

    #[test]
    fn no_damaged_image_is_taken() {
        let image = state().image();
        for at in 0..image.len() {
            assert!(State::of_image(&image[..at]).is_err(), "cut at {at}");
            let mut damaged = image.clone();
            damaged[at] ^= 1;
            assert!(State::of_image(&damaged).is_err(), "damaged at {at}");
        }
    }

    #[test]
    fn the_image_of_version_1_stays_readable() {
        let hex: String = state().image().iter().map(|byte| format!("{byte:02x}")).collect();
        let golden =
            "534353310100030000000200016103000000 6f6e65 02000162 03000000 74776f 010002 00000000";
        let golden: String = golden.split(' ').collect();
        assert_eq!(hex.get(..hex.len() - 8), Some(&*golden));
    }
}
