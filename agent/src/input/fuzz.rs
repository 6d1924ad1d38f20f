//! The inputs as the fuzzer drives them. Not part of any normal build.

use super::board::Room;
use super::config::{ExecConfig, ExecFormat, ScrapeConfig};
use super::exec::{Command, Ended};
use super::http::{From, Message};
use super::outbox::Outbox;
use super::scrape::Target;
use super::statsd::Statsd;
use super::stream::{Conversation, Streams};
use super::write::{Written, decode};
use crate::sampler::Tick;
use crate::schemas::Table;
use std::collections::HashSet;
use std::sync::Arc;
use strobe_wire::schema::Labels;

/// One input over several readings.
///
/// # Panics
/// If a row, its schema and the data model do not belong together.
pub fn input(kind: u8, data: &[u8]) {
    let (outbox, table) = (Outbox::default(), Arc::new(Table::new()));
    let room = Room::new(1000);
    let readings = data.split(|byte| *byte == 0xff).take(8);
    let at = |second: u64| Tick { wall_ns: 0, boottime_ns: second * 400_000_000_000 };
    match kind % 9 {
        format @ (0 | 1) => {
            let mut target = Target::new(scrape(), room, Arc::clone(&table));
            let content_type = if format == 0 { "" } else { "application/openmetrics-text" };
            for (second, body) in (1..).zip(readings) {
                target.answered(at(second), Ok((content_type, body)), 1, &outbox);
                check(&outbox);
            }
        }
        2 => http(From::Server, data),
        3 => http(From::Client, data),
        4 => {
            let mut statsd = Statsd::new(1000, room, table);
            for (second, datagram) in (1..).zip(readings) {
                statsd.heard(at(second).boottime_ns, datagram);
                statsd.flush(at(second), &outbox);
                check(&outbox);
            }
        }
        5 => {
            let _ = decode(data);
            let body = snap::raw::Encoder::new().compress_vec(data).unwrap_or_default();
            let mut written = Written::new(room, table);
            let _ = written.heard(at(1), &body, &outbox);
            let _ = written.heard(at(1), data, &outbox);
            check(&outbox);
        }
        format @ (6 | 7) => {
            let format = if format == 6 { ExecFormat::Nagios } else { ExecFormat::Pairs };
            let mut command = Command::new(exec(format), room, table);
            for (second, output) in (1..).zip(readings) {
                command.ended(at(second), &Ended::Code(0), output, 1, &outbox);
                check(&outbox);
            }
        }
        _ => {
            let mut streams = Streams::new(room, table);
            let mut one = Conversation::default();
            for (second, bytes) in (1..).zip(readings) {
                streams.heard(at(second), &mut one, bytes, &outbox);
            }
            streams.ended(at(9), one, &outbox);
            check(&outbox);
        }
    }
}

/// The same however it comes in pieces.
fn http(from: From, data: &[u8]) {
    let read = |step: usize| {
        let mut message = Message::new(1 << 12);
        for bytes in data.chunks(step) {
            match message.feed(from, bytes) {
                Ok(false) => {}
                Ok(true) => break,
                Err(_) => return None,
            }
        }
        message.close().ok().map(|()| message.body().to_vec())
    };
    assert!(read(data.len().max(1)).is_none_or(|body| body.len() <= 1 << 12));
    assert_eq!(read(1), read(data.len().max(1)));
}

fn check(outbox: &Outbox) {
    outbox.drain(|_, row| {
        assert_eq!(row.schema.check(), Ok(()));
        assert_eq!(row.id, row.schema.id());
        assert_eq!(row.values.len(), row.schema.columns.len());
        let mut seen = HashSet::new();
        assert!(
            row.schema.columns.iter().all(|column| seen.insert((&column.name, &column.labels)))
        );
    });
}

fn scrape() -> ScrapeConfig {
    ScrapeConfig {
        name: "n".to_owned(),
        authority: "h:1".to_owned(),
        path: "/m".to_owned(),
        interval_ms: 1000,
        timeout_ms: 1000,
        bytes_max: 1 << 20,
        samples_max: 500,
        job: "j".to_owned(),
        instance: "h:1".to_owned(),
        labels: Labels::default(),
        honor_labels: false,
    }
}

fn exec(format: ExecFormat) -> ExecConfig {
    ExecConfig {
        name: "n".to_owned(),
        interval_ms: 1000,
        timeout_ms: 1000,
        bytes_max: 1 << 20,
        format,
        command: vec!["/x".to_owned()],
    }
}
