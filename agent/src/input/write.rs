//! Remote-write 1.0 from this machine: a snappy block around one protobuf message, read by hand so that no
//! protobuf code is linked, and turned into rows of the samples' own times.
//!
//! ```text
//! WriteRequest { 1: TimeSeries { 1: Label { 1: name, 2: value }…, 2: Sample { 1: f64, 2: time }… }… }
//! ```
//!
//! Series of one `job` and `instance`, which a sender scrapes together, share a section, as their
//! samples share times. A request that is no message is refused whole; a series that is none, or one
//! series too many, is left out and counted.

use super::board::{Absent, Board, Put, Room};
use super::outbox::Outbox;
use crate::sampler::Tick;
use crate::schemas::Table;
use std::collections::BTreeMap;
use std::sync::Arc;
use strobe_wire::limits::{
    LABEL_VALUE_BYTES_MAX, LABELS_MAX, TIME_AHEAD_MAX_MS, TIME_BEHIND_MAX_MS,
};
use strobe_wire::schema::{Labels, is_label_name, is_metric_name};

/// The series that were written to us.
#[derive(Debug)]
pub(crate) struct Written {
    boards: Vec<Option<Board>>,
    room: Room,
    table: Arc<Table>,
    pub(crate) numbers: Numbers,
}

/// What became of samples.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Numbers {
    pub(crate) taken: u64,
    /// Of series that are none, or at times that no broker takes.
    pub(crate) bad: u64,
    pub(crate) refused: u64,
    pub(crate) dropped: u64,
}

/// A series of a message.
#[derive(Clone, PartialEq, Debug, Default)]
pub(crate) struct Series<'m> {
    pub(crate) labels: Vec<(&'m [u8], &'m [u8])>,
    /// Time in ms and value.
    pub(crate) samples: Vec<(i64, f64)>,
}

impl Written {
    pub(crate) fn new(room: Room, table: Arc<Table>) -> Self {
        let boards = (0..BOARDS).map(|_| None).collect();
        Self { boards, room, table, numbers: Numbers::default() }
    }

    /// A request's body.
    ///
    /// # Errors
    /// Why it is none; nothing of it is kept then.
    pub(crate) fn heard(&mut self, now: Tick, body: &[u8], outbox: &Outbox) -> Result<(), String> {
        let plain = inflate(body)?;
        let all = decode(&plain).ok_or("the body is no WriteRequest")?;
        // By board and time; in one row a series has one value.
        let mut rows: BTreeMap<(usize, i64), Vec<(&Series<'_>, f64)>> = BTreeMap::new();
        for series in &all {
            let board = usize::from(source(series)) % BOARDS;
            for (at_ms, value) in &series.samples {
                rows.entry((board, *at_ms)).or_default().push((series, *value));
            }
        }
        for ((board, at_ms), samples) in rows {
            let ahead_ms = at_ms.saturating_sub(now.wall_ns / 1_000_000);
            if !(-TIME_BEHIND_MAX_MS..=TIME_AHEAD_MAX_MS).contains(&ahead_ms) {
                self.numbers.bad += u64::try_from(samples.len()).unwrap_or(u64::MAX);
                continue;
            }
            let at = Tick { wall_ns: at_ms.saturating_mul(1_000_000), ..now };
            self.row(board, at, &samples, outbox);
        }
        Ok(())
    }

    fn row(&mut self, at: usize, time: Tick, samples: &[(&Series<'_>, f64)], outbox: &Outbox) {
        let Some(board) = self.boards.get_mut(at) else { return };
        let board = board.get_or_insert_with(|| {
            let (room, table) = (self.room.clone(), Arc::clone(&self.table));
            Board::new(format!("write.b{at}"), usize::MAX / 4, room, table)
        });
        board.begin();
        for (series, value) in samples {
            let count = match board.put(&key(series), *value, |_| described(series)) {
                Put::Taken | Put::Twice => &mut self.numbers.taken,
                Put::Bad => &mut self.numbers.bad,
                Put::Full => &mut self.numbers.refused,
            };
            *count += 1;
        }
        // Who writes says itself what has ended.
        self.numbers.dropped += board.finish(time, Absent::Silent, outbox);
    }
}

/// The message behind the compression.
pub(crate) fn inflate(body: &[u8]) -> Result<Vec<u8>, String> {
    let bytes = snap::raw::decompress_len(body).map_err(|why| why.to_string())?;
    if PLAIN_BYTES_MAX < bytes {
        return Err(format!("{bytes} bytes decompressed; {PLAIN_BYTES_MAX} are allowed"));
    }
    snap::raw::Decoder::new().decompress_vec(body).map_err(|why| why.to_string())
}

/// The series of a `WriteRequest`; `None` if it is none. Metadata, exemplars and histograms are skipped.
pub(crate) fn decode(message: &[u8]) -> Option<Vec<Series<'_>>> {
    let mut all = Vec::new();
    each(message, |field, value| {
        if let (1, Value::Bytes(bytes)) = (field, value) {
            all.push(one(bytes)?);
        }
        Some(())
    })?;
    Some(all)
}

fn one(message: &[u8]) -> Option<Series<'_>> {
    let mut series = Series::default();
    each(message, |field, value| {
        match (field, value) {
            (1, Value::Bytes(label)) => {
                let (mut name, mut text) = (&[][..], &[][..]);
                each(label, |field, value| {
                    match (field, value) {
                        (1, Value::Bytes(bytes)) => name = bytes,
                        (2, Value::Bytes(bytes)) => text = bytes,
                        _ => {}
                    }
                    Some(())
                })?;
                series.labels.push((name, text));
            }
            (2, Value::Bytes(sample)) => {
                let (mut number, mut at_ms) = (0.0, 0);
                each(sample, |field, value| {
                    match (field, value) {
                        (1, Value::Fixed(bits)) => number = f64::from_bits(bits),
                        (2, Value::Varint(time)) => at_ms = time.cast_signed(),
                        _ => {}
                    }
                    Some(())
                })?;
                series.samples.push((at_ms, number));
            }
            _ => {}
        }
        Some(())
    })?;
    Some(series)
}

enum Value<'m> {
    Varint(u64),
    Fixed(u64),
    Bytes(&'m [u8]),
    Other,
}

/// Calls `visit` with each field of a message.
fn each<'m>(mut rest: &'m [u8], mut visit: impl FnMut(u64, Value<'m>) -> Option<()>) -> Option<()> {
    while !rest.is_empty() {
        let tag = varint(&mut rest)?;
        let value = match tag & 7 {
            0 => Value::Varint(varint(&mut rest)?),
            1 => Value::Fixed(u64::from_le_bytes(take(&mut rest, 8)?.try_into().ok()?)),
            2 => {
                let length = usize::try_from(varint(&mut rest)?).ok()?;
                Value::Bytes(take(&mut rest, length)?)
            }
            5 => take(&mut rest, 4).map(|_| Value::Other)?,
            _ => return None,
        };
        visit(tag >> 3, value)?;
    }
    Some(())
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let byte = *take(rest, 1)?.first()?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

fn take<'m>(rest: &mut &'m [u8], length: usize) -> Option<&'m [u8]> {
    let (taken, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(taken)
}

/// FNV-1a of `job` and `instance`: the same board in every request.
fn source(series: &Series<'_>) -> u8 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for (name, value) in &series.labels {
        if matches!(*name, b"job" | b"instance") {
            for byte in *value {
                hash = (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
            }
        }
    }
    hash.to_be_bytes()[0]
}

/// The bytes it was written with, which are text or refused by [`described`].
fn key(series: &Series<'_>) -> String {
    let mut key = String::new();
    for (name, value) in &series.labels {
        key.push_str(&String::from_utf8_lossy(name));
        key.push('\0');
        key.push_str(&String::from_utf8_lossy(value));
        key.push('\0');
    }
    key
}

fn described(series: &Series<'_>) -> Option<(String, Labels)> {
    if LABELS_MAX < series.labels.len() {
        return None;
    }
    let (mut metric, mut pairs) = (None, Vec::new());
    for (name, value) in &series.labels {
        let (name, value) = (std::str::from_utf8(name).ok()?, std::str::from_utf8(value).ok()?);
        if name == "__name__" {
            metric = Some(value.to_owned()).filter(|name| is_metric_name(name));
        } else if is_label_name(name) && value.len() <= LABEL_VALUE_BYTES_MAX {
            pairs.push((name.to_owned(), value.to_owned()));
        } else {
            return None;
        }
    }
    pairs.sort();
    let twice = pairs.array_windows().any(|[a, b]| a.0 == b.0);
    if twice { None } else { metric.map(|metric| (metric, Labels::new(pairs))) }
}

/// Sections that series are spread over by their source.
const BOARDS: usize = 64;
pub(crate) const PLAIN_BYTES_MAX: usize = 16 << 20;

#[cfg(test)]
mod tests {
    use super::super::scrape::tests::told;
    use super::*;

    fn field(tag: u8, bytes: &[u8]) -> Vec<u8> {
        [&[tag << 3 | 2, u8::try_from(bytes.len()).unwrap()][..], bytes].concat()
    }

    fn series(labels: &[(&str, &str)], samples: &[(i64, f64)]) -> Vec<u8> {
        let mut out = Vec::new();
        for (name, value) in labels {
            let label = [field(1, name.as_bytes()), field(2, value.as_bytes())].concat();
            out.extend(field(1, &label));
        }
        for (at_ms, value) in samples {
            let mut sample = vec![1 << 3 | 1];
            sample.extend(value.to_le_bytes());
            sample.push(2 << 3);
            let mut rest = at_ms.cast_unsigned();
            while 0x7f < rest {
                sample.push(u8::try_from(rest & 0x7f).unwrap() | 0x80);
                rest >>= 7;
            }
            sample.push(u8::try_from(rest).unwrap());
            out.extend(field(2, &sample));
        }
        field(1, &out)
    }

    fn body(message: &[u8]) -> Vec<u8> {
        snap::raw::Encoder::new().compress_vec(message).unwrap()
    }

    const NOW: Tick = Tick { wall_ns: 1_700_000_000_000_000_000, boottime_ns: 5 };
    const MS: i64 = 1_700_000_000_000;

    #[test]
    fn samples_keep_their_times_and_labels() {
        let (outbox, table) = (Outbox::default(), Arc::new(Table::new()));
        let mut written = Written::new(Room::new(3), table);
        let name = ("__name__", "a");
        let message = [
            series(&[name, ("instance", "i"), ("job", "j")], &[(MS - 5, 1.5), (MS, -2.0)]),
            series(&[("__name__", "b"), ("instance", "i"), ("job", "j")], &[(MS, 3.0)]),
            series(&[("__name__", "1"), ("job", "j")], &[(MS, 3.0)]),
            series(&[("job", "j")], &[(MS, 3.0)]),
            series(&[name, ("x", "y"), ("x", "z")], &[(MS, 3.0)]),
            series(&[name], &[(MS, f64::INFINITY), (MS + 3_600_000, 1.0), (1, 1.0)]),
            series(&[("__name__", "more")], &[(MS, 3.0)]),
            field(3, b"metadata"),
        ];
        written.heard(NOW, &body(&message.concat()), &outbox).unwrap();
        let mut times = Vec::new();
        let again = Outbox::default();
        outbox.drain(|at, row| {
            times.push(at.wall_ns / 1_000_000 - MS);
            let (values, valid) = (row.values.to_vec(), row.valid.to_vec());
            let schema = Arc::clone(row.schema);
            again.put(super::super::outbox::Row { at, schema, id: row.id, values, valid });
        });
        times.sort_unstable();
        assert_eq!(times, [-5, 0, 0], "two rows of one source, one of those without");
        let rows = told(&again);
        assert_eq!(rows["a{instance=i,job=j}"], "-2");
        assert_eq!((&*rows["b{instance=i,job=j}"], &*rows["a{}"]), ("3", "inf"));
        let Numbers { taken, bad, refused, dropped } = written.numbers;
        assert_eq!((taken, bad, refused, dropped), (4, 5, 1, 0));
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let (outbox, table) = (Outbox::default(), Arc::new(Table::new()));
        let mut written = Written::new(Room::new(3), table);
        let mut heard = |bytes: &[u8]| written.heard(NOW, bytes, &outbox);
        assert!(heard(b"").is_err());
        assert!(heard(&[0xff; 9]).is_err());
        assert!(heard(&body(&[10, 200])).unwrap_err().contains("no WriteRequest"));
        assert!(heard(&body(&[0x0b])).is_err(), "a group");
        // Its header says 2 GiB.
        assert!(heard(&[0x80, 0x80, 0x80, 0x80, 0x08]).unwrap_err().contains("are allowed"));
        assert!(heard(&body(&[])).is_ok());
    }
}
