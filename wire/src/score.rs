//! Anomaly scores as they travel: a byte a column in the row that they are about.
//!
//! ```text
//! agent   row of section `host`: values | valid | scores (a byte a column, or none at all)
//! broker  the same time in section `score.host`: strobe_anomaly_score{metric="node_load1"} 0.447
//! ```
//!
//! A byte is `255 × −log10(p) / 9`, rounded: 85 is one in a thousand, 113 one in ten thousand. What
//! one sample in ten does is 0, so that a quiet host's scores are nothing but zeros and cost next to
//! nothing where they are stored.
//!
//! This is no new version of anything. A row without scores (of an agent that has them switched off,
//! or of before there were any) is a row as it always was, and a reader that does not care for
//! scores reads the values of one that has them. Which columns have a series of their scores follows
//! from the schema alone ([`Scores::of`]), so whoever reads the row, from the wire or from a log of years
//! ago, makes the same series of it; no schema of scores is ever sent.
//!
//! The columns that have one are those named in [`HOT`], [`COLUMNS_MAX`] a section at most. The
//! agent scores these with all its evidence, and the others in brief: their scores travel too, and
//! count in `strobe_agent_anomaly_rate`, but have no series.

use crate::ids::SchemaId;
use crate::schema::{Column, Kind, Labels, Schema};
use std::sync::Arc;

/// The section of a schema's scores, and which of its columns they are about.
#[derive(Debug)]
pub struct Scores {
    /// Its columns.
    pub schema: Arc<Schema>,
    /// Their name.
    pub id: SchemaId,
    /// The place of each column in the schema that it is about.
    pub places: Vec<usize>,
}

impl Scores {
    /// Of the rows of `schema`; `None` if none of its columns has a series of scores.
    #[must_use]
    pub fn of(schema: &Schema) -> Option<Self> {
        let hot = schema.columns.iter().enumerate().filter(|(_, column)| is_hot(column));
        let (places, columns): (Vec<_>, Vec<_>) = hot
            .take(COLUMNS_MAX)
            .map(|(place, column)| {
                let mut labels = column.labels.0.clone();
                labels.push(("metric".to_owned(), column.name.clone()));
                let kind = Kind::Gauge { scale: 3 };
                (place, Column { name: NAME.to_owned(), labels: Labels::new(labels), kind })
            })
            .unzip();
        let schema = Arc::new(Schema { section: format!("score.{}", schema.section), columns });
        // A section of the longest name has none, rather than one that no peer would take.
        schema.check().ok()?;
        Some(Self { id: schema.id(), schema, places })
    }
}

/// Whether a column is scored with all evidence and has a series of its scores.
#[must_use]
pub fn is_hot(column: &Column) -> bool {
    HOT.contains(&column.name.as_str())
}

/// A byte as the series has it: thousandths.
#[must_use]
pub fn thousandths(bits: u8) -> u64 {
    (u64::from(bits) * 1000 + 127) / 255
}

/// The series.
pub const NAME: &str = "strobe_anomaly_score";
/// From this byte on a column counts as anomalous: one in ten thousand.
pub const ODD: u8 = 113;
/// Series of scores that one section may have.
pub const COLUMNS_MAX: usize = 64;
/// Metrics that have one. What there is one of for each CPU is not among them.
pub const HOT: [&str; 31] = [
    "node_load1",
    "node_procs_running",
    "node_procs_blocked",
    "node_context_switches_total",
    "node_intr_total",
    "node_forks_total",
    "node_memory_MemAvailable_bytes",
    "node_memory_Dirty_bytes",
    "node_memory_SwapFree_bytes",
    "node_vmstat_pgmajfault",
    "node_vmstat_pswpin",
    "node_vmstat_pswpout",
    "node_pressure_cpu_waiting_seconds_total",
    "node_pressure_io_waiting_seconds_total",
    "node_pressure_io_stalled_seconds_total",
    "node_pressure_memory_waiting_seconds_total",
    "node_pressure_memory_stalled_seconds_total",
    "node_filefd_allocated",
    "node_sockstat_TCP_inuse",
    "node_netstat_Tcp_CurrEstab",
    "node_netstat_Tcp_RetransSegs",
    "node_netstat_TcpExt_ListenDrops",
    "node_disk_reads_completed_total",
    "node_disk_writes_completed_total",
    "node_disk_read_bytes_total",
    "node_disk_written_bytes_total",
    "node_disk_io_time_seconds_total",
    "node_network_receive_bytes_total",
    "node_network_transmit_bytes_total",
    "node_network_receive_drop_total",
    "node_filesystem_avail_bytes",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn column(name: &str, labels: &[(&str, &str)]) -> Column {
        Column { name: name.to_owned(), labels: Labels::of(labels), kind: Kind::Float }
    }

    #[test]
    fn a_schema_says_which_of_its_columns_have_scores() {
        let columns = vec![
            column("node_time_seconds", &[]),
            column("node_load1", &[]),
            column("node_disk_read_bytes_total", &[("device", "vda")]),
        ];
        let schema = Schema { section: "host".to_owned(), columns };
        let scores = Scores::of(&schema).unwrap();
        assert_eq!((&*scores.schema.section, &*scores.places), ("score.host", &[1, 2][..]));
        assert_eq!(scores.schema.check(), Ok(()));
        let wanted = [("device", "vda"), ("metric", "node_disk_read_bytes_total")];
        assert_eq!(scores.schema.columns[1].labels, Labels::of(&wanted));
        let cold = Schema { columns: schema.columns[..1].to_vec(), ..schema };
        assert!(Scores::of(&cold).is_none());
    }

    #[test]
    fn thousandths_are_the_nearest() {
        assert_eq!([0, 1, 85, 113, 255].map(thousandths), [0, 4, 333, 443, 1000]);
    }
}
