//! Limits of a store that change while it is open, and what other ones would remove.

use super::StoreConfig;
use super::local::Store;
use super::rollup::HOURS;
use std::sync::{Arc, PoisonError};

/// What other limits would remove at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Removal {
    /// Files.
    pub segments: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Store {
    /// From now on these limits hold; removal by them is the writer's, soon.
    pub fn retune(&self, change: impl FnOnce(&mut StoreConfig)) {
        let mut config = self.shared.config.write().unwrap_or_else(PoisonError::into_inner);
        let mut next = (**config).clone();
        change(&mut next);
        *config = Arc::new(next);
    }

    /// What these limits would remove that the present ones keep, as far as age and size decide it.
    #[must_use]
    pub fn would_remove(&self, now_ms: i64, change: impl FnOnce(&mut StoreConfig)) -> Removal {
        let before = self.shared.config();
        let mut after = (*before).clone();
        change(&mut after);
        let gone = |config: &StoreConfig| {
            let keep_ms = |step: u32| match step {
                0 => config.raw_retention_ms,
                step if step == HOURS.step_ms => config.hour_retention_ms,
                _ => config.minute_retention_ms,
            };
            let segments = self.shared.segments();
            let mut bytes: u64 = segments.iter().map(|segment| segment.bytes).sum();
            let mut removal = Removal::default();
            for segment in segments.iter() {
                let old = segment.last_ms < now_ms.saturating_sub(keep_ms(segment.step_ms));
                if old || config.bytes_max < bytes {
                    bytes = bytes.saturating_sub(segment.bytes);
                    removal.segments += 1;
                    removal.bytes += segment.bytes;
                }
            }
            removal
        };
        let (now, then) = (gone(&before), gone(&after));
        Removal {
            segments: then.segments.saturating_sub(now.segments),
            bytes: then.bytes.saturating_sub(now.bytes),
        }
    }
}
