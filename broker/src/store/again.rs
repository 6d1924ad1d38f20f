//! Records of a log that is elsewhere, taken in once more.

use super::StoreError;
use super::local::{Pending, Writer};
use super::wal::{self, Record};
use bytes::Bytes;
use strobe_journal::Position;
use strobe_wire::schema::Labels;

impl Writer {
    /// Behind the last record that is durable.
    #[must_use]
    pub fn synced(&self) -> Position {
        self.shared.synced()
    }

    /// Appends a record as the log had it, of a source whose labels and schemas are known.
    pub(super) fn again(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        match wal::read(bytes) {
            Some(Record::Frame(frame)) => self.frame(&Bytes::copy_from_slice(frame)),
            Some(Record::Samples(samples)) => {
                self.write_labels(samples.source)?;
                self.journal.append(&[bytes])?;
                self.pending_bytes += bytes.len();
                if let Some(last) = samples.samples.iter().map(|sample| sample.0).max() {
                    self.note_time(last);
                }
                self.pending.push(Pending::Samples(samples));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    pub(super) fn label_again(&mut self, source: u128, labels: Labels) -> Result<(), StoreError> {
        self.name(source, labels)
    }
}
