//! Strobe's own paths of the API: hosts, tokens, health and the broker's counters.
//!
//! Pure: what is known comes in, an answer goes out. Everything else is Prometheus's API and is
//! answered by `api`.

mod machines;

pub(crate) use machines::Machines;

use crate::lookout::LookoutCounts;
use crate::net::NetCounts;
use crate::store::StoreCounts;
use crate::store::redis::{MirrorCounts, TROUBLES};
use crate::trust::Standing;
use serde_json::json;
use std::collections::BTreeMap;
use std::fmt::Write;
use strobe_wire::health::Health;
use strobe_wire::message::{ApiResponse, HostInfo};

/// An error in the form of Prometheus's API.
pub(crate) fn error(status: u16, kind: &str, why: &str) -> ApiResponse {
    json_answer(status, &json!({ "status": "error", "errorType": kind, "error": why }))
}

/// A line of text.
pub(crate) fn text(status: u16, line: &str) -> ApiResponse {
    ApiResponse {
        status,
        content_type: "text/plain; charset=utf-8".to_owned(),
        body: format!("{line}\n").into_bytes(),
    }
}

/// JSON.
pub(crate) fn json_answer(status: u16, value: &serde_json::Value) -> ApiResponse {
    ApiResponse {
        status,
        content_type: "application/json".to_owned(),
        body: value.to_string().into_bytes(),
    }
}

/// A host, and how its certificates stand.
pub(crate) type Known = (HostInfo, Standing);

/// What the broker counts about itself.
#[derive(Debug, Default)]
pub(crate) struct Numbers {
    /// The network side.
    pub net: NetCounts,
    /// The store.
    pub store: StoreCounts,
    /// Redis, where it is used.
    pub mirror: Option<MirrorCounts>,
    /// Queries whose caller hung up before their answer.
    pub queries_abandoned: u64,
    /// Members of the cluster that did not answer a query.
    pub members_silent: u64,
    /// Machines and their checks.
    pub lookout: LookoutCounts,
}

/// `/metrics`, in Prometheus's text format.
#[expect(clippy::too_many_lines, reason = "one flat list: every number once")]
pub(crate) fn metrics(numbers: &Numbers, hosts: &[Known], now_ms: i64) -> ApiResponse {
    let Numbers { net, store, mirror, queries_abandoned, members_silent, lookout } = numbers;
    let mut out = Exposition::default();
    out.counter("frames_stored_total", "Frames that passed every check.", net.ingest.accepted);
    out.counter("frames_duplicate_total", "Frames that were stored before.", net.ingest.duplicate);
    out.head("refused_total", "counter", "Frames, schemas and hellos refused, by reason.");
    for (reason, count) in &net.ingest.refused {
        out.line("refused_total", &format!("{{reason=\"{reason}\"}}"), *count);
    }
    out.head("frames_lost_total", "counter", "Frames told in the loss ledger, by reason.");
    for (reason, count) in &net.ingest.lost {
        out.line("frames_lost_total", &format!("{{reason=\"{reason}\"}}"), *count);
    }
    out.counter("acks_total", "Acknowledgements sent.", net.acks);
    let waiting = "Agents' streams of class wal+redis whose acknowledgements wait for Redis.";
    out.gauge("acks_waiting", waiting, count(net.acks_waiting));
    out.counter("enrolled_total", "Certificates given for a token.", net.certificates.enrolled);
    out.counter(
        "enrolments_refused_total",
        "Enrolments refused.",
        net.certificates.enrolments_refused,
    );
    out.counter("certificates_renewed_total", "Certificates renewed.", net.certificates.renewed);
    out.counter(
        "certificates_expired_total",
        "Sessions closed because their certificate ended.",
        net.certificates.expired,
    );
    out.counter(
        "certificates_revoked_total",
        "Connections closed because their certificate was revoked.",
        net.certificates.revoked,
    );
    let help = "When this broker's certificate ends, in seconds since 1970.";
    out.gauge("certificate_expiry_seconds", help, net.certificates.own_expires_s);
    let connected = hosts.iter().filter(|(info, _)| info.connected);
    if let Some(first) = connected.map(|(_, standing)| standing.expires_s).min() {
        let help = "When the first certificate of a connected host ends, in seconds since 1970.";
        out.gauge("hosts_certificate_expiry_seconds", help, first);
    }
    out.counter("handshakes_failed_total", "TLS handshakes that failed.", net.handshakes_failed);
    out.counter("connections_refused_total", "Connections refused.", net.connections_refused);
    let help = "Queries whose caller hung up before their answer.";
    out.counter("queries_abandoned_total", help, *queries_abandoned);
    out.gauge("sessions", "Agents connected.", count(net.sessions));
    out.gauge("connections", "QUIC connections.", count(net.connections));
    out.gauge("subscribers", "Dashboards subscribed over QUIC.", count(net.subscribers));
    out.gauge("frames_in_flight", "Frames not on disk yet.", count(net.frames_in_flight));
    if let Some(cluster) = &net.cluster {
        let help = "Other brokers of the cluster that this one is connected to.";
        out.gauge("cluster_peers_connected", help, count(cluster.connected));
        let help = "Messages of the control plane that found a queue full.";
        out.counter("cluster_messages_dropped_total", help, cluster.dropped);
        let help = "Agents that were sent to the owner of their shard.";
        out.counter("cluster_redirects_total", help, cluster.redirects);
        let help = "Times that another broker did not answer for what it has.";
        out.counter("cluster_members_silent_total", help, *members_silent);
    }
    out.gauge(
        "storing",
        "1 while frames are taken, 0 while the store refuses.",
        net.storing.into(),
    );
    out.counter("samples_total", "Samples made visible.", store.samples);
    let help = "Samples of remote-write of more than 7 days ago or 10 min ahead.";
    out.counter("samples_refused_total", help, store.samples_refused);
    out.counter("commits_total", "Group commits (fdatasync).", store.commits);
    out.counter("blocks_sealed_total", "Blocks sealed.", store.blocks_sealed);
    out.counter("segments_expired_total", "Segments removed by age.", store.segments_expired);
    out.counter("segments_capped_total", "Segments removed by size.", store.segments_capped);
    out.counter("blocks_corrupt_total", "Blocks with a wrong checksum.", store.blocks_corrupt);
    out.gauge("segment_bytes", "Bytes of all segments.", store.segment_bytes);
    out.gauge("wal_bytes", "Bytes of the write-ahead log.", store.wal_bytes);
    let help = "Column groups that queries found decompressed in memory.";
    out.counter("column_groups_found_total", help, store.groups_found);
    let help = "Column groups that queries had to read and decompress.";
    out.counter("column_groups_read_total", help, store.groups_read);
    out.gauge("head_bytes", "Bytes of unsealed rows in memory.", store.head_bytes);
    if let Some(mirror) = mirror {
        out.redis(mirror);
    }
    out.lookout(lookout);
    let mut states: BTreeMap<&str, u64> = Health::ALL.map(|state| (state.word(), 0)).into();
    for (info, _) in hosts {
        *states.entry(Health::of(info, now_ms).word()).or_default() += 1;
    }
    out.head("hosts", "gauge", "Hosts known, by state.");
    for (state, count) in states {
        out.line("hosts", &format!("{{state=\"{state}\"}}"), count);
    }
    ApiResponse {
        status: 200,
        content_type: "text/plain; version=0.0.4; charset=utf-8".to_owned(),
        body: out.0.into_bytes(),
    }
}

#[derive(Default)]
struct Exposition(String);

impl Exposition {
    fn redis(&mut self, mirror: &MirrorCounts) {
        self.counter("redis_blocks_written_total", "Blocks that Redis took.", mirror.blocks);
        self.counter("redis_bytes_written_total", "Their bytes.", mirror.bytes);
        self.counter("redis_rows_written_total", "Rows that its streams took.", mirror.rows);
        self.head("redis_failures_total", "counter", "Passes to Redis that failed, by reason.");
        for (trouble, count) in TROUBLES.iter().zip(mirror.failures) {
            let reason = format!("{{reason=\"{}\"}}", trouble.word());
            self.line("redis_failures_total", &reason, count);
        }
        self.gauge("redis_lag_segments", "Segments not whole in Redis.", mirror.lag_segments);
        self.gauge("redis_lag_milliseconds", "Age of the oldest of them.", mirror.lag_ms);
        self.gauge(
            "redis_fenced_shards",
            "Shards that a newer owner writes to.",
            mirror.fenced_shards,
        );
        self.head(
            "redis_import_segments",
            "gauge",
            "Segments of before Redis, left here or moved.",
        );
        self.line("redis_import_segments", "{state=\"left\"}", mirror.import_left);
        self.line("redis_import_segments", "{state=\"moved\"}", mirror.import_done);
        self.gauge("redis_connected", "1 if Redis took the last pass.", mirror.connected.into());
    }

    fn lookout(&mut self, lookout: &LookoutCounts) {
        self.gauge("targets", "Machines that are known by name.", lookout.targets);
        self.gauge("checks_down", "Checks that failed too often in a row.", lookout.down);
        self.counter("checks_total", "Checks that were tried.", lookout.checked);
        self.counter("checks_failed_total", "Of them: failed.", lookout.failed);
        let help = "Times that a check was due while it was still under way.";
        self.counter("checks_passed_over_total", help, lookout.passed_over);
        self.gauge("checks_refused", "Checks that there is no room for.", lookout.refused);
        let help = "Samples of checks that the store did not take.";
        self.counter("check_samples_lost_total", help, lookout.samples_lost);
    }

    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let written = writeln!(
            self.0,
            "# HELP strobe_broker_{name} {help}\n# TYPE strobe_broker_{name} {kind}"
        );
        debug_assert!(written.is_ok(), "writing to a String does not fail");
    }

    fn line(&mut self, name: &str, labels: &str, value: u64) {
        let written = writeln!(self.0, "strobe_broker_{name}{labels} {value}");
        debug_assert!(written.is_ok(), "writing to a String does not fail");
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.head(name, "counter", help);
        self.line(name, "", value);
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) {
        self.head(name, "gauge", help);
        self.line(name, "", value);
    }
}

fn count(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_have_help_type_and_reasons() {
        let mut numbers = Numbers { mirror: Some(MirrorCounts::default()), ..Numbers::default() };
        numbers.net.ingest.refused.insert("crc", 3);
        let answer = metrics(&numbers, &[], 0);
        let body = String::from_utf8(answer.body).unwrap();
        assert!(body.contains("strobe_broker_refused_total{reason=\"crc\"} 3\n"), "{body}");
        assert!(body.contains("strobe_broker_redis_failures_total{reason=\"auth\"} 0\n"), "{body}");
        assert!(body.contains("# TYPE strobe_broker_hosts gauge\n"), "{body}");
        assert!(body.contains("strobe_broker_wal_bytes 0\n"), "{body}");
    }
}
