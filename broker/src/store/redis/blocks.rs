//! A segment's blocks on their way to Redis.

use super::batch::Writes;
use super::keys::{Place, jittered, shard, span_ms};
use super::link::Link;
use super::marks::Field;
use super::mirror::Mirror;
use super::plant::{Plant, has};
use crate::store::block::{Block, Data};
use crate::store::rollup::HOURS;
use crate::store::segment::{Entry, Loaded, Segment};
use redis::RedisResult;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;

impl Mirror {
    /// False: stopped on the way.
    pub(super) fn write(
        &mut self,
        link: &mut Link,
        (field, number): (Field, u64),
        segment: &Segment,
        now_ms: i64,
    ) -> RedisResult<bool> {
        let Ok(loaded) = segment.loaded() else {
            // Removed by retention meanwhile, or unreadable: queries say so.
            return Ok(true);
        };
        let lacking = |entry: &&Entry| {
            let shard = shard(entry.source);
            !self.fence.is_refused(shard) && self.marks.held(shard, field) < number
        };
        let entries: Vec<Entry> = loaded.entries().iter().filter(lacking).copied().collect();
        // Before its blocks: a query that looks for them finds that they may be there.
        self.tell(link, segment.last_ms, now_ms)?;
        let fence = &mut self.fence;
        self.catalog.write(&entries, now_ms, &mut |writes| fence.send(link, writes))?;
        let mut rest = entries.as_slice();
        while !rest.is_empty() {
            if self.stopping.load(Ordering::Acquire) {
                return Ok(false);
            }
            let (mut pipe, mut blocks, mut bytes) = (Writes::default(), 0, 0);
            while let Some((entry, others)) = rest.split_first() {
                if PIPELINE_BYTES <= bytes {
                    break;
                }
                rest = others;
                let Some(left_s) = self.left_s(segment.step_ms, entry.last_ms, now_ms) else {
                    continue;
                };
                let Some(block) = read(&loaded, entry) else {
                    log::warn!(
                        "{}: a block that does not check is not mirrored",
                        segment.path.display()
                    );
                    continue;
                };
                let place = Place::of(entry, self.era.id, number);
                self.add(&mut pipe, entry.source, segment.step_ms, &place, (&block, left_s));
                if others.first().is_none_or(|next| next.source != entry.source) {
                    self.prune(&mut pipe, entry.source, segment.step_ms, now_ms);
                }
                blocks += 1;
                bytes += block.len();
            }
            self.fence.send(link, pipe)?;
            self.count(|counts| {
                counts.blocks += blocks;
                counts.bytes += u64::try_from(bytes).unwrap_or(0);
            });
        }
        Ok(true)
    }

    /// A block, its place in the index, and a life for both.
    fn add(
        &self,
        pipe: &mut Writes,
        source: u128,
        step_ms: u32,
        place: &Place,
        (block, left_s): (&[u8], u64),
    ) {
        let key = self.keys.blocks(source, step_ms, place.first_ms);
        let name = place.to_string();
        let long = span_ms(step_ms) < place.last_ms.saturating_sub(place.first_ms);
        let (index, score) = if long {
            (self.keys.late(source), place.last_ms)
        } else {
            (self.keys.index(source, step_ms), place.first_ms)
        };
        let shard = shard(source);
        pipe.cmd(shard, "HSET", &key).arg(&name).arg(block);
        if !has(Plant::NoIndex) {
            pipe.cmd(shard, "ZADD", &index).arg(score).arg(&name);
        }
        let life_s = jittered(left_s, &key);
        // A window lives as long as the newest of its blocks, an index as the newest of its windows.
        for key in [&key, &index] {
            pipe.cmd(shard, "EXPIRE", key).arg(life_s).arg("NX");
            pipe.cmd(shard, "EXPIRE", key).arg(life_s).arg("GT");
        }
    }

    /// Takes out of a host's index what no longer lives.
    fn prune(&self, pipe: &mut Writes, source: u128, step_ms: u32, now_ms: i64) {
        let keep_ms = self.keep_ms(step_ms);
        // Twentieths: the longest life of a key.
        let gone_ms = now_ms.saturating_sub(keep_ms.saturating_add(keep_ms / 20));
        let (shard, index) = (shard(source), self.keys.index(source, step_ms));
        let first = gone_ms.saturating_sub(span_ms(step_ms));
        pipe.cmd(shard, "ZREMRANGEBYSCORE", &index).arg("-inf").arg(format!("({first}"));
        if step_ms == 0 {
            let late = self.keys.late(source);
            pipe.cmd(shard, "ZREMRANGEBYSCORE", &late).arg("-inf").arg(format!("({gone_ms}"));
        }
    }

    /// Seconds that a block has still to be kept; `None`: none.
    fn left_s(&self, step_ms: u32, last_ms: i64, now_ms: i64) -> Option<u64> {
        let keep_ms = self.keep_ms(step_ms);
        let left_ms = last_ms.saturating_add(keep_ms).saturating_sub(now_ms);
        u64::try_from(left_ms.min(keep_ms) / 1000).ok().filter(|left| 0 < *left)
    }

    pub(super) fn keep_ms(&self, step_ms: u32) -> i64 {
        let store = self.shared.config();
        match step_ms {
            0 => self.config.raw_ms,
            step if step == HOURS.step_ms => store.hour_retention_ms,
            _ => store.minute_retention_ms,
        }
    }
}

fn read(loaded: &Loaded, entry: &Entry) -> Option<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(entry.length).ok()?];
    loaded.file.read_exact_at(&mut bytes, entry.offset).ok()?;
    Block::open(Data::Memory(&bytes)).ok()?;
    Some(bytes)
}

const PIPELINE_BYTES: usize = 4 << 20;
