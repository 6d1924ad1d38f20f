//! Samples that came by remote-write, on their way into the log.

use super::head::split_remote;
use super::local::{Pending, Writer};
use super::wal;
use super::{RemoteSeries, StoreError};
use crate::class::Durability;
use sha2::{Digest, Sha256};
use strobe_wire::schema::Labels;

impl Writer {
    /// Appends samples that came by remote-write. A series without `__name__` is left out.
    ///
    /// # Errors
    /// As [`Writer::frame`].
    pub fn samples(&mut self, series: &[RemoteSeries]) -> Result<(), StoreError> {
        self.samples_of(series, Durability::Wal)
    }

    /// The same of this class.
    ///
    /// # Errors
    /// As [`Writer::frame`].
    pub fn samples_of(
        &mut self,
        series: &[RemoteSeries],
        class: Durability,
    ) -> Result<(), StoreError> {
        self.room()?;
        self.copied |= class.is_copied();
        for one in series {
            let Some((name, labels)) = split_remote(&one.labels) else { continue };
            let id = remote_id(&labels);
            self.name(id, labels)?;
            self.write_labels(id)?;
            // Pieces, so that a record keeps its bound however long the series is.
            for piece in one.samples.chunks(SAMPLES_MAX) {
                let samples: Vec<(i64, u64)> =
                    piece.iter().map(|&(time, value)| (time, value.to_bits())).collect();
                let bytes = wal::samples(id, &name, &samples);
                self.journal.append(&[&[wal::kind(wal::SAMPLES, class)], &bytes])?;
                self.pending_bytes += bytes.len();
                if let Some(last) = samples.iter().map(|sample| sample.0).max() {
                    self.note_time(last);
                }
                let (name, labels) = (name.name.clone(), name.labels.clone());
                let samples = wal::Samples { source: id, name, labels, samples };
                self.pending.push(Pending::Samples(samples));
            }
        }
        Ok(())
    }
}

/// The id of a remote-write source: a hash of its labels.
fn remote_id(labels: &Labels) -> u128 {
    let mut hash = Sha256::new();
    hash.update(b"remote");
    for (name, value) in &labels.0 {
        hash.update([0]);
        hash.update(name);
        hash.update([0]);
        hash.update(value);
    }
    let mut first = [0; 16];
    first.copy_from_slice(&hash.finalize()[..16]);
    u128::from_le_bytes(first)
}

/// Samples of one WAL record.
const SAMPLES_MAX: usize = 1 << 18;
