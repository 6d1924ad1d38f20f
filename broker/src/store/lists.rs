//! A schema as it stands in a segment: each text as what it shares with the one before it and the
//! rest, so that zstd has little left to do.
//!
//! ```text
//! schema: section text, columns varint, columns
//! column: kind (0, 16 + scale: counter, gauge; 32: float), name text, labels varint, (name text, value text)…
//! text:   bytes shared with the text in the same place of the column before varint, bytes varint, bytes
//! ```

use super::codec::{Take, put_varint};
use strobe_wire::limits::SECTION_COLUMNS_MAX;
use strobe_wire::schema::{Column, Kind, Labels, Schema};

pub(super) fn put_schema(schema: &Schema) -> Vec<u8> {
    let mut out = Vec::new();
    put_text(&mut out, "", &schema.section);
    put_varint(&mut out, schema.columns.len() as u64);
    let mut before = NONE;
    for column in &schema.columns {
        out.push(match column.kind {
            Kind::Counter { scale } => scale,
            Kind::Gauge { scale } => GAUGE + scale,
            Kind::Float => FLOAT,
        });
        put_text(&mut out, &before.name, &column.name);
        put_varint(&mut out, column.labels.0.len() as u64);
        for (place, (name, value)) in column.labels.0.iter().enumerate() {
            let (name_before, value_before) = pair(before, place);
            put_text(&mut out, name_before, name);
            put_text(&mut out, value_before, value);
        }
        before = column;
    }
    out
}

pub(super) fn take_schema(bytes: &[u8]) -> Result<Schema, String> {
    let mut take = Take(bytes);
    let section = take_text(&mut take, "")?;
    let count = take.varint()?;
    if (SECTION_COLUMNS_MAX as u64) < count {
        return Err("a section has too many columns".to_owned());
    }
    let mut columns: Vec<Column> = Vec::new();
    for _ in 0..count {
        let before = columns.last().unwrap_or(NONE);
        let [kind] = take.array()?;
        let kind = match kind {
            0..=9 => Kind::Counter { scale: kind },
            GAUGE..=25 => Kind::Gauge { scale: kind - GAUGE },
            FLOAT => Kind::Float,
            _ => return Err("a kind of column is not known".to_owned()),
        };
        let name = take_text(&mut take, &before.name)?;
        let mut pairs = Vec::new();
        for place in 0..usize::try_from(take.varint()?).map_err(|e| e.to_string())? {
            let (name_before, value_before) = pair(before, place);
            let name = take_text(&mut take, name_before)?;
            pairs.push((name, take_text(&mut take, value_before)?));
        }
        // Not sorted again: it stands as it was, and its id says whether that is so.
        columns.push(Column { name, labels: Labels(pairs), kind });
    }
    Ok(Schema { section, columns })
}

fn pair(column: &Column, place: usize) -> (&str, &str) {
    column.labels.0.get(place).map_or(("", ""), |(name, value)| (name, value))
}

fn put_text(out: &mut Vec<u8>, before: &str, text: &str) {
    let same = before.bytes().zip(text.bytes()).take_while(|(a, b)| a == b).count();
    put_varint(out, same as u64);
    put_varint(out, (text.len() - same) as u64);
    out.extend(text.bytes().skip(same));
}

fn take_text(take: &mut Take<'_>, before: &str) -> Result<String, String> {
    let mut number = || usize::try_from(take.varint()?).map_err(|e| e.to_string());
    let (same, rest) = (number()?, number()?);
    let shared = before.as_bytes().get(..same).ok_or("a text shares more than there is")?;
    let text = [shared, take.slice(rest)?].concat();
    String::from_utf8(text).map_err(|e| e.to_string())
}

/// Before the first column.
const NONE: &Column =
    &Column { name: String::new(), labels: Labels(Vec::new()), kind: Kind::Float };
const GAUGE: u8 = 16;
const FLOAT: u8 = 32;

#[cfg(test)]
mod tests {
    use super::super::check;
    use super::super::tests::{HOST, Place, T0, dump, files, write};
    use super::*;
    use proptest::prelude::*;
    use std::fs;

    proptest! {
        #[test]
        fn a_schema_is_read_as_it_was_written(
            columns in prop::collection::vec(
                ("[a-zä]{1,4}", prop::collection::vec(("[a-c]{1,2}", "[x-zö]{0,3}"), 0..3), 0..21_u8),
                0..20,
            ),
            cut in any::<prop::sample::Index>(),
        ) {
            let columns = columns.into_iter().map(|(name, labels, kind)| Column {
                name,
                labels: Labels(labels),
                kind: match kind {
                    0..=9 => Kind::Counter { scale: kind },
                    10..=19 => Kind::Gauge { scale: kind - 10 },
                    _ => Kind::Float,
                },
            });
            let schema = Schema { section: "cpu.1".to_owned(), columns: columns.collect() };
            let bytes = put_schema(&schema);
            prop_assert_eq!(take_schema(&bytes).unwrap(), schema);
            prop_assert!(take_schema(&bytes[..cut.index(bytes.len())]).is_err());
        }
    }

    /// A list of series stands once in a segment. Where it is broken, the same list in another
    /// segment serves: only what no file says any more is lost.
    #[test]
    fn a_broken_list_is_found_in_another_segment() {
        let place = Place::new("list");
        let (store, mut writer, _) = place.open();
        for first in [0, 700] {
            write(&mut writer, HOST, first..first + 20);
            writer.settle(T0 + 700_000 + i64::try_from(first).unwrap() * 1000).unwrap();
        }
        let whole = dump(&store);
        drop((store, writer));
        let segments = files(&place.0.join("segments"), "seg");
        assert!(2 <= segments.len());
        for (broken, path) in (1..).zip(&segments) {
            let mut bytes = fs::read(path).unwrap();
            // The source's list is the first chunk, the schema's the second.
            let mut chunks = bytes.windows(4).enumerate().filter(|(_, four)| four == b"SGC1");
            let at = chunks.nth(1).unwrap().0 + 30;
            bytes[at] ^= 1;
            fs::write(path, &bytes).unwrap();
            assert!(broken <= check(&place.0).unwrap().damage.len());
            let (store, _, _) = place.open();
            let left = if broken < segments.len() { whole.clone() } else { Vec::new() };
            assert_eq!(dump(&store), left, "{broken} broken");
        }
    }
}
