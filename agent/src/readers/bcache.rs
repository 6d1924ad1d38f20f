//! bcache: `writeback_rate_debug` of a disk that is cached, a line a number.
//!
//! ```text
//! rate:           4.0M/sec
//! target:         36.7G
//! proportional:   -920.7M
//! ```

use super::sheet::{Repair, Sheet};
use super::text::{human, lines, words};
use super::{GAUGE, column};
use crate::config::SMALL;
use strobe_wire::schema::Column;

pub(super) fn parse_writeback(bytes: &[u8], sheet: &mut Sheet) {
    // The small build has no such walk, and need not have this.
    if SMALL {
        return;
    }
    let mut values = [None; WRITEBACK.len()];
    for line in lines(bytes) {
        let Some((name, text)) =
            memchr::memchr(b':', line).and_then(|at| line.split_at_checked(at))
        else {
            continue;
        };
        let is = |(line, _): &(&str, &str)| line.as_bytes() == name;
        let Some(at) = WRITEBACK.iter().position(is) else { continue };
        let word = words(text.get(1..).unwrap_or(&[])).last().unwrap_or(&[]);
        let word = word.strip_suffix(b"/sec").unwrap_or(word);
        if let Some(value) = values.get_mut(at) {
            *value = level(word);
        }
    }
    if values.iter().any(Option::is_some) {
        sheet.put(0, b"", &values, Repair::None);
    }
}

/// `about` is the set and the disk, a line each.
pub(super) fn writeback_columns(about: &str) -> Vec<Column> {
    if SMALL {
        return Vec::new();
    }
    let (uuid, device) = about.split_once('\n').unwrap_or((about, ""));
    let labels = [("uuid", uuid), ("backing_device", device)];
    WRITEBACK.iter().map(|(_, name)| column(name, &labels, GAUGE)).collect()
}

/// A size with a sign, as the bits of a gauge.
fn level(word: &[u8]) -> Option<u64> {
    match word.strip_prefix(b"-") {
        Some(size) => Some(human(size)?.wrapping_neg()),
        None => human(word),
    }
}

/// Line, metric.
const WRITEBACK: [(&str, &str); 5] = [
    ("rate", "node_bcache_writeback_rate"),
    ("target", "node_bcache_dirty_target_bytes"),
    ("proportional", "node_bcache_writeback_rate_proportional_term"),
    ("integral", "node_bcache_writeback_rate_integral_term"),
    ("change", "node_bcache_writeback_change"),
];
