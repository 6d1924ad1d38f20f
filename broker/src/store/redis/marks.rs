//! What Redis says it has of this store.

use super::batch::Batch;
use super::keys::{Keys, SHARDS};
use super::link::Link;
use super::stream;
use redis::RedisResult;
use strobe_journal::Position;

/// As Redis has them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Marks {
    /// The last segment of each shard that is whole there: of raw samples, of rollups.
    pub(super) shards: Vec<(u64, u64)>,
    /// Whether they are this store's.
    pub(super) ours: bool,
    /// See [`super::archive::Archive`].
    pub(super) elsewhere_ms: i64,
    /// Up to where the log is in the stream.
    pub(super) wal: Option<Position>,
}

impl Marks {
    pub(super) fn none() -> Self {
        let shards = vec![(0, 0); SHARDS];
        Self { shards, ours: false, elsewhere_ms: i64::MIN, wal: None }
    }

    /// A shard whose marks are another store's, or gone, has none.
    pub(super) fn read(link: &mut Link, keys: &Keys, store: u64) -> RedisResult<Self> {
        let mut batch = Batch::default();
        for shard in 0..SHARDS {
            let fields = ["store", "raw", "rollup", "elsewhere", "wal"];
            batch.cmd("HMGET", &keys.mark(shard, store)).arg(&fields);
        }
        let me = format!("{store:016x}");
        let mut marks = Self { shards: Vec::new(), ..Self::none() };
        for answer in link.query(&batch)? {
            let (store, raw, rollup): (Option<String>, Option<u64>, Option<u64>);
            let (elsewhere_ms, wal): (Option<i64>, Option<String>);
            (store, raw, rollup, elsewhere_ms, wal) = ::redis::from_redis_value(answer)?;
            let ours = store.as_ref() == Some(&me);
            let mark = (raw.unwrap_or(0), rollup.unwrap_or(0));
            marks.shards.push(if ours { mark } else { (0, 0) });
            if ours {
                marks.ours = true;
                marks.wal = marks.wal.or_else(|| stream::position(wal.as_deref()?));
                marks.elsewhere_ms = marks.elsewhere_ms.max(elsewhere_ms.unwrap_or(i64::MIN));
            }
        }
        Ok(marks)
    }

    /// Of a shard: of raw samples where `step_ms` is 0, else of rollups.
    pub(super) fn of(&self, shard: usize, step_ms: u32) -> u64 {
        let mark = self.shards.get(shard).copied().unwrap_or_default();
        if step_ms == 0 { mark.0 } else { mark.1 }
    }

    /// The least of the shards that count.
    pub(super) fn least(&self, step_ms: u32, counts: impl Fn(usize) -> bool) -> u64 {
        let of = (0..self.shards.len()).filter(|shard| counts(*shard));
        of.map(|shard| self.of(shard, step_ms)).min().unwrap_or(u64::MAX)
    }
}
