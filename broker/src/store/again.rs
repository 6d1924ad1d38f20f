//! Records of a log that is elsewhere, taken in once more.

use super::StoreError;
use super::local::{Pending, Writer};
use super::redis::Taken;
use super::wal::{self, Record};
use crate::class::Durability;
use bytes::Bytes;
use strobe_journal::Position;

impl Writer {
    /// Behind the last record that is durable.
    #[must_use]
    pub fn synced(&self) -> Position {
        self.shared.synced()
    }

    /// Appends a record as the log had it, of a source whose labels and schemas are known. It was
    /// acknowledged because Redis has it, and is there under this store's name too before the other's go.
    fn again(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        match wal::read(bytes) {
            Some(Record::Frame(frame)) => {
                self.frame_of(&Bytes::copy_from_slice(frame), Durability::WalRedis)
            }
            Some(Record::Samples(samples)) => {
                self.write_labels(samples.source)?;
                let kind = wal::kind(wal::SAMPLES, Durability::WalRedis);
                self.journal.append(&[&[kind], bytes.get(1..).unwrap_or_default()])?;
                self.copied = true;
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

    /// Appends what was taken from a log that is elsewhere; what is wrong with some of it is told.
    ///
    /// # Errors
    /// As [`Writer::frame`]; a part of it may be appended by then.
    pub fn take_in(&mut self, taken: &Taken) -> Result<Vec<String>, StoreError> {
        let mut damage = Vec::new();
        for (source, labels) in &taken.labels {
            // Whoever is known here has said himself who he is.
            if !self.knows(*source) {
                self.name(*source, labels.clone())?;
            }
        }
        for schema in &taken.schemas {
            if let Err(error) = self.schema(schema) {
                damage.push(error.to_string());
            }
        }
        for record in &taken.records {
            match self.again(record) {
                Err(error @ (StoreError::SchemaUnknown { .. } | StoreError::Columns { .. })) => {
                    damage.push(error.to_string());
                }
                done => done?,
            }
        }
        Ok(damage)
    }
}
