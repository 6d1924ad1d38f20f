//! From when on each level is whole: what retention removed cannot be asked, so it is written down.

use super::StoreError;
use super::segment::io;
use std::io::Write;
use std::path::Path;
use strobe_journal::disk::{self, Output};

/// From here on, raw samples and minutes are all there; `i64::MIN`: nothing was removed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Horizon {
    pub(super) raw_ms: i64,
    pub(super) minutes_ms: i64,
}

impl Horizon {
    /// What is written in `dir`, or nothing.
    pub(super) fn read(dir: &Path) -> Self {
        let text = std::fs::read_to_string(dir.join(NAME)).unwrap_or_default();
        let mut numbers = text.split_whitespace().map(|number| number.parse().unwrap_or(i64::MIN));
        let mut next = || numbers.next().unwrap_or(i64::MIN);
        Self { raw_ms: next(), minutes_ms: next() }
    }

    /// Written whole or not at all.
    pub(super) fn write(self, dir: &Path) -> Result<(), StoreError> {
        let (part, path) = (dir.join("horizon.part"), dir.join(NAME));
        let mut file = Output::create(&part).map_err(io("make", &part))?;
        file.write_all(format!("{} {}\n", self.raw_ms, self.minutes_ms).as_bytes())
            .and_then(|()| file.sync_data())
            .map_err(io("write", &part))?;
        disk::rename(&part, &path).map_err(io("rename", &part))?;
        disk::sync_dir(dir).map_err(io("sync", dir))
    }
}

const NAME: &str = "horizon";
