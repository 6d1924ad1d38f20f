//! What Redis says it has of this store.

use super::batch::Batch;
use super::keys::{Keys, SHARDS};
use super::link::Link;
use super::stores::Stores;
use super::stream;
use redis::RedisResult;
use strobe_journal::Position;

/// As Redis has them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Marks {
    /// The last segment of each shard that is whole there: of raw samples, of rollups.
    pub(super) shards: Vec<(u64, u64)>,
    /// The same of what was here before Redis was: see [`super::import::Import`].
    pub(super) imports: Vec<u64>,
    /// Whether they are this store's.
    pub(super) ours: bool,
    /// See [`super::archive::Archive`].
    pub(super) elsewhere_ms: i64,
    /// Up to where the log is in the stream.
    pub(super) wal: Option<Position>,
    /// Who else has written there.
    pub(super) stores: Stores,
}

/// What of a shard a mark is of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Field {
    /// Raw samples.
    Raw,
    /// Rollups.
    Rollup,
    /// Both, of what was there before.
    Import,
}

impl Field {
    /// Of a new segment.
    pub(super) fn of(step_ms: u32) -> Self {
        if step_ms == 0 { Self::Raw } else { Self::Rollup }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Rollup => "rollup",
            Self::Import => "import",
        }
    }
}

impl Marks {
    pub(super) fn none() -> Self {
        Self {
            shards: vec![(0, 0); SHARDS],
            imports: vec![0; SHARDS],
            ours: false,
            elsewhere_ms: i64::MIN,
            wal: None,
            stores: Stores::default(),
        }
    }

    /// A shard whose marks are another store's, or gone, has none.
    pub(super) fn read(link: &mut Link, keys: &Keys, store: u64) -> RedisResult<Self> {
        let mut batch = Batch::default();
        for shard in 0..SHARDS {
            let fields = ["store", "raw", "rollup", "elsewhere", "wal", "import"];
            batch.cmd("HMGET", &keys.mark(shard, store)).arg(&fields);
        }
        Stores::ask(&mut batch, keys);
        let me = format!("{store:016x}");
        let mut marks = Self { shards: Vec::new(), imports: Vec::new(), ..Self::none() };
        let mut answers = link.query(&batch)?;
        let stores = answers.pop().unwrap_or(::redis::Value::Nil);
        marks.stores = Stores::read(&::redis::from_redis_value(stores)?);
        for answer in answers {
            let (store, raw, rollup): (Option<String>, Option<u64>, Option<u64>);
            let (elsewhere_ms, wal, import): (Option<i64>, Option<String>, Option<u64>);
            (store, raw, rollup, elsewhere_ms, wal, import) = ::redis::from_redis_value(answer)?;
            let ours = store.as_ref() == Some(&me);
            let mark = (raw.unwrap_or(0), rollup.unwrap_or(0));
            marks.shards.push(if ours { mark } else { (0, 0) });
            marks.imports.push(import.filter(|_| ours).unwrap_or(0));
            if ours {
                marks.ours = true;
                marks.wal = marks.wal.or_else(|| stream::position(wal.as_deref()?));
                marks.elsewhere_ms = marks.elsewhere_ms.max(elsewhere_ms.unwrap_or(i64::MIN));
            }
        }
        Ok(marks)
    }

    /// Of a shard.
    pub(super) fn held(&self, shard: usize, field: Field) -> u64 {
        let mark = self.shards.get(shard).copied().unwrap_or_default();
        match field {
            Field::Raw => mark.0,
            Field::Rollup => mark.1,
            Field::Import => self.imports.get(shard).copied().unwrap_or_default(),
        }
    }

    /// What Redis would say, if it were asked.
    pub(super) fn note(&mut self, field: Field, number: u64) {
        for mark in &mut self.shards {
            match field {
                Field::Raw => mark.0 = number,
                Field::Rollup => mark.1 = number,
                Field::Import => {}
            }
        }
    }

    /// The least of the shards that count.
    pub(super) fn least(&self, step_ms: u32, counts: impl Fn(usize) -> bool) -> u64 {
        let of = (0..self.shards.len()).filter(|shard| counts(*shard));
        of.map(|shard| self.held(shard, Field::of(step_ms))).min().unwrap_or(u64::MAX)
    }
}
