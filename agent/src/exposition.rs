//! One sample as Prometheus text (format 0.0.4).

use crate::sampler::{Sampler, SectionRow, Tick};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;
use strobe_wire::schema::{Column, Kind, Labels};

/// What [`Exposition::text`] is, for `Content-Type`.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Collects rows and prints them with the lines of each metric together.
#[derive(Debug, Default)]
pub struct Exposition {
    families: BTreeMap<String, Family>,
}

#[derive(Debug)]
struct Family {
    kind: &'static str,
    series: Vec<(Labels, f64)>,
}

/// Samples once, waiting up to `timeout` for file systems, and prints it.
#[must_use]
pub fn sample(sampler: &mut Sampler, now: Tick, timeout: Duration) -> String {
    let mut exposition = Exposition::default();
    sampler.settle(now, timeout);
    sampler.tick(now, |row| exposition.add(row));
    exposition.text()
}

impl Exposition {
    /// Adds the columns of `row` that have a value.
    pub fn add(&mut self, row: SectionRow<'_>) {
        for (index, (column, raw)) in row.schema.columns.iter().zip(row.values).enumerate() {
            let byte = row.valid.get(index / 8).copied().unwrap_or(0);
            if byte >> (index % 8) & 1 == 0 {
                continue;
            }
            let family = self
                .families
                .entry(column.name.clone())
                .or_insert_with(|| Family { kind: family_type(column), series: Vec::new() });
            family.series.push((column.labels.clone(), column.kind.value(*raw)));
        }
    }

    /// All of it, by name.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = String::with_capacity(64 << 10);
        for (name, Family { kind, series }) in &self.families {
            let _ = writeln!(out, "# TYPE {name} {kind}");
            for (labels, value) in series {
                out.push_str(name);
                write_labels(&mut out, labels);
                let _ = writeln!(out, " {}", Number(*value));
            }
        }
        out
    }
}

/// node_exporter says `untyped` of what it copies without knowing it.
fn family_type(column: &Column) -> &'static str {
    let copied = ["node_vmstat_", "node_netstat_"];
    match column.kind {
        _ if copied.iter().any(|prefix| column.name.starts_with(prefix)) => "untyped",
        Kind::Counter { .. } => "counter",
        Kind::Gauge { .. } | Kind::Float => "gauge",
    }
}

fn write_labels(out: &mut String, labels: &Labels) {
    let mut before = '{';
    for (name, value) in &labels.0 {
        out.push(before);
        before = ',';
        out.push_str(name);
        out.push_str("=\"");
        for c in value.chars() {
            match c {
                '\\' => out.push_str("\\\\"),
                '"' => out.push_str("\\\""),
                '\n' => out.push_str("\\n"),
                other => out.push(other),
            }
        }
        out.push('"');
    }
    if before == ',' {
        out.push('}');
    }
}

struct Number(f64);

impl std::fmt::Display for Number {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            infinite if infinite.is_infinite() => {
                f.write_str(if infinite < 0.0 { "-Inf" } else { "+Inf" })
            }
            // Rust prints the shortest text that reads back as the same f64, and `NaN`.
            other => write!(f, "{other}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use strobe_wire::ids::SchemaId;
    use strobe_wire::schema::Schema;

    #[test]
    fn families_stand_together_and_missing_values_do_not_stand_at_all() {
        let column = |name: &str, device: &str, kind| Column {
            name: name.to_owned(),
            labels: Labels::of(&[("device", device)]),
            kind,
        };
        let schema = Arc::new(Schema {
            section: "disk".to_owned(),
            columns: vec![
                column("b_total", "a\"\\\n", Kind::Counter { scale: 3 }),
                column("a", "x", Kind::Gauge { scale: 0 }),
                column("b_total", "y", Kind::Counter { scale: 3 }),
                column("a", "gone", Kind::Gauge { scale: 0 }),
                column("f", "", Kind::Float),
            ],
        });
        let values = [1234, (-2_i64).cast_unsigned(), 5, 9, f64::INFINITY.to_bits()];
        let mut exposition = Exposition::default();
        exposition.add(SectionRow {
            schema: &schema,
            id: SchemaId(0),
            values: &values,
            valid: &[0b1_0111],
            scores: &[],
        });
        assert_eq!(
            exposition.text(),
            "# TYPE a gauge\na{device=\"x\"} -2\n# TYPE b_total counter\n\
             b_total{device=\"a\\\"\\\\\\n\"} 1.234\nb_total{device=\"y\"} 0.005\n\
             # TYPE f gauge\nf +Inf\n"
        );
    }
}
