//! The fresh rows of a shard as a Redis stream, for consumers that do not want to wait for blocks.
//!
//! They are read from the WAL behind what is committed, and the mark of the first shard says up to
//! where: it is written when Redis has taken the rows, so after a failure rows may come twice (`boot` and `seq` tell) and none is left out that the WAL
//! still has. The WAL has at least what is not sealed; a Redis that is away for longer gets the
//! rest as blocks only. Remote-write is not streamed.

use super::RedisConfig;
use super::batch::Writes;
use super::describe::{Catalog, LIFE_LEAST_S};
use super::keys::{Keys, jittered, shard};
use crate::store::local::WAL;
use crate::store::shared::Shared;
use crate::store::wal::{self, Record};
use redis::RedisResult;
use std::collections::BTreeSet;
use std::sync::Arc;
use strobe_journal::{Position, read_between};
use strobe_wire::frame::{self, Payload};

/// Writes rows as they come; part of the mirror.
#[derive(Debug)]
pub(super) struct Stream {
    shared: Arc<Shared>,
    keys: Keys,
    store: u64,
    /// Entries of a shard, about; 0: no stream.
    length_max: u64,
    life_s: u64,
}

impl Stream {
    pub(super) fn new(shared: &Arc<Shared>, config: &RedisConfig, store: u64) -> Self {
        Self {
            shared: Arc::clone(shared),
            keys: Keys::new(&config.prefix),
            store,
            length_max: config.queue_max,
            life_s: u64::try_from(config.queue_ms / 1000).unwrap_or(0).max(LIFE_LEAST_S),
        }
    }

    /// Writes what was committed behind `mark`, at most a pipeline; returns the rows, and whether
    /// there is more.
    pub(super) fn pass(
        &self,
        catalog: &Catalog,
        mark: Option<Position>,
        send: &mut dyn FnMut(Writes) -> RedisResult<()>,
    ) -> RedisResult<(u64, bool)> {
        if self.length_max == 0 {
            return Ok((0, false));
        }
        let through = self.shared.synced();
        // A mark from the future is one of a log that is gone.
        let from = mark.filter(|mark| *mark <= through).unwrap_or_default();
        if from == through {
            return Ok((0, false));
        }
        let (mut pipe, mut rows, mut shards) = (Writes::default(), 0, BTreeSet::new());
        let dir = self.shared.config().dir.join(WAL);
        let read =
            read_between(&dir, from, through, BATCH_BYTES, &mut |record| match wal::read(record) {
                Some(Record::Schema(schema)) => catalog.add_schema(&mut pipe, &schema),
                Some(Record::Labels(source, labels)) => {
                    catalog.add_labels(&mut pipe, source, &labels);
                }
                Some(Record::Frame(bytes)) => rows += self.add(&mut pipe, &mut shards, bytes),
                Some(Record::Samples(_)) | None => {}
            });
        let at = read.unwrap_or_else(|error| {
            log::warn!("{error}: rows up to the newest are not in Redis's stream");
            through
        });
        for shard in shards {
            let key = self.keys.queue(shard);
            pipe.cmd(shard, "EXPIRE", &key).arg(jittered(self.life_s, &key));
        }
        send(pipe)?;
        let mut pipe = Writes::default();
        pipe.cmd(0, "HSET", &self.keys.mark(0, self.store)).arg("wal").arg(text(at));
        send(pipe)?;
        Ok((rows, at < through))
    }

    /// How many rows it was.
    fn add(&self, pipe: &mut Writes, shards: &mut BTreeSet<usize>, bytes: &[u8]) -> u64 {
        let Ok(frame) = frame::open(bytes) else { return 0 };
        let Payload::Row(row) = frame.payload else { return 0 };
        let header = frame.header;
        let shard = shard(header.host.0);
        let values: Vec<u8> =
            row.values().flat_map(|value| value.unwrap_or(0).to_le_bytes()).collect();
        let pipe = pipe.cmd(shard, "XADD", &self.keys.queue(shard));
        pipe.arg("MAXLEN").arg("~").arg(self.length_max).arg("*");
        pipe.arg("host").arg(header.host.to_string()).arg("boot").arg(header.boot.to_string());
        pipe.arg("seq").arg(header.seq.0).arg("t").arg(header.wall_ns.div_euclid(1_000_000));
        pipe.arg("schema").arg(format!("{:016x}", header.schema.0));
        pipe.arg("values").arg(values).arg("valid").arg(row.valid());
        shards.insert(shard);
        1
    }
}

/// As it stands in the mark.
pub(super) fn text(at: Position) -> String {
    format!("{:x}.{:x}", at.file, at.offset)
}

pub(super) fn position(text: &str) -> Option<Position> {
    let (file, offset) = text.split_once('.')?;
    let number = |digits| u64::from_str_radix(digits, 16).ok();
    Some(Position { file: number(file)?, offset: number(offset)? })
}

/// Of the log, a pass.
const BATCH_BYTES: usize = 2 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_read_as_it_was_written() {
        let at = Position { file: 0x1f, offset: 99 };
        assert_eq!(position(&text(at)), Some(at));
        assert_eq!((position(""), position("1"), position("x.1")), (None, None, None));
    }
}
