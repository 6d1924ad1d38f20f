//! Sessions, refusals, forks and the ledger.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;
use strobe_wire::frame::{FrameKind, Header, Loss, Row};
use strobe_wire::limits::FRAME_BYTES_MAX;
use strobe_wire::schema::{Column, Kind, Labels};

const NOW: i64 = 1_800_000_000_000;
const ONE: SessionId = SessionId(1);
const TWO: SessionId = SessionId(2);

const SEVEN: Proof = Proof { host: HostId(7), certificate: [7; 32] };

fn hello(boot: u128) -> Hello {
    Hello {
        host: 7,
        boot,
        instance: "a".into(),
        job: "node".into(),
        interval_ms: 1000,
        ..Hello::default()
    }
}

fn schema() -> Schema {
    let column = Column {
        name: "x_total".into(),
        labels: Labels::default(),
        kind: Kind::Counter { scale: 0 },
    };
    Schema { section: "host".into(), columns: vec![column] }
}

fn header(seq: u64) -> Header {
    Header {
        kind: FrameKind::Row,
        host: HostId(7),
        boot: BootId(1),
        seq: Seq(seq),
        wall_ns: NOW * 1_000_000,
        boottime_ns: 1,
        schema: schema().id(),
    }
}

fn row(header: &Header, values: &[u64]) -> Vec<u8> {
    let mut out = [0; FRAME_BYTES_MAX];
    let row = Row { values, valid: &[1], scores: &[] };
    let length = frame::seal_row(&mut out, header, &row).unwrap();
    out[..length].to_vec()
}

/// Number, reason, first and last of every entry that waits.
fn losses(ingest: &mut Ingest) -> Vec<(u64, String, u64, u64)> {
    let entry = |bytes: Bytes| {
        let frame = frame::open(&bytes).unwrap();
        let Payload::Loss(loss) = frame.payload else { panic!("not a loss") };
        let (first, last) = (loss.first.to_native(), loss.last.to_native());
        (frame.header.seq.0, loss.reason.to_string(), first, last)
    };
    std::iter::from_fn(|| ingest.poll_loss()).map(entry).collect()
}

fn opened() -> Ingest {
    let mut ingest = Ingest::default();
    ingest.hello(ONE, SEVEN, &hello(1), NOW).unwrap();
    ingest.schema(ONE, &schema()).unwrap();
    ingest
}

#[test]
fn each_refusal_is_named_and_counted() {
    let check = |change: &dyn Fn(&mut Header), values: &[u64], reason: &str| {
        let mut ingest = opened();
        let mut header = header(1);
        change(&mut header);
        let refused = ingest.frame(ONE, &row(&header, values), NOW).unwrap_err();
        assert_eq!(refused.reason(), reason, "{refused}");
        assert_eq!(ingest.counts().refused.get(reason), Some(&1));
        assert_eq!(ingest.through(HostId(7), BootId(1)), 0, "{reason} must not be taken");
    };
    check(&|h| h.host = HostId(8), &[1], "identity");
    check(&|h| h.boot = BootId(8), &[1], "boot");
    check(&|h| h.schema = SchemaId(8), &[1], "unknown_schema");
    check(&|_| {}, &[1, 2], "width");
    check(&|h| h.seq = Seq(0), &[1], "sequence");
    check(&|h| h.seq = Seq(u64::MAX), &[1], "sequence");
    let mut ingest = opened();
    let mut bytes = row(&header(1), &[1]);
    bytes[90] ^= 1;
    assert_eq!(ingest.frame(ONE, &bytes, NOW).unwrap_err().reason(), "crc");
    assert_eq!(ingest.frame(ONE, &bytes[..20], NOW).unwrap_err().reason(), "frame");
    let early = ingest.frame(TWO, &row(&header(1), &[1]), NOW).unwrap_err();
    assert_eq!(early.reason(), "order");
}

/// A host on which nothing stays tells of thousands of schemas: those that it tells of again are kept.
#[test]
fn a_schema_that_is_told_again_is_the_newest() {
    let mut ingest = opened();
    let mut seq = 0;
    for number in 0..3 * SESSION_SCHEMAS_MAX {
        let section = format!("net.{number}");
        ingest.schema(ONE, &Schema { section, ..schema() }).unwrap();
        if number % 1024 == 7 {
            ingest.schema(ONE, &schema()).unwrap();
        }
        seq += 1;
        ingest.frame(ONE, &row(&header(seq), &[1]), NOW).unwrap();
    }
    let known = &ingest.sessions[&ONE];
    assert_eq!(known.schemas.len(), SESSION_SCHEMAS_MAX);
    assert_eq!(known.schema_order.len(), SESSION_SCHEMAS_MAX);
}

#[test]
fn hostile_hellos_are_named() {
    let check = |change: &dyn Fn(&mut Hello), wanted: &str| {
        let mut said = hello(1);
        change(&mut said);
        let refused = Ingest::default().hello(ONE, SEVEN, &said, NOW).unwrap_err();
        assert!(refused.to_string().contains(wanted), "{refused}");
    };
    check(&|h| h.host = 9, "certificate");
    check(&|h| h.instance.clear(), "instance");
    check(&|h| h.job = "x".repeat(5000), "job");
    check(&|h| h.labels = vec![("job".into(), "x".into())], "reserved");
    check(&|h| h.labels = vec![("__name__".into(), "x".into())], "reserved");
    check(&|h| h.labels = vec![("b".into(), "x".into()), ("a".into(), "x".into())], "sorted");
    check(&|h| h.interval_ms = 0, "interval");
    check(&|h| h.version = "x".repeat(300), "version");
}

#[test]
fn a_row_whose_time_is_far_off_becomes_a_loss_in_its_place() {
    let mut ingest = opened();
    for (seq, off_ms, wanted) in [
        (1, TIME_AHEAD_MAX_MS, Verdict::Store),
        (2, TIME_AHEAD_MAX_MS + 1, Verdict::Lost),
        (3, -TIME_BEHIND_MAX_MS, Verdict::Store),
        (4, -TIME_BEHIND_MAX_MS - 1, Verdict::Lost),
    ] {
        let mut header = header(seq);
        header.wall_ns += off_ms * 1_000_000;
        assert_eq!(ingest.frame(ONE, &row(&header, &[1]), NOW), Ok(wanted), "{off_ms}");
    }
    assert_eq!(ingest.through(HostId(7), BootId(1)), 4);
    assert_eq!(ingest.counts().lost.get("time"), Some(&2));
    assert_eq!(losses(&mut ingest), [(2, "time".to_owned(), 2, 2), (4, "time".into(), 4, 4)]);
}

/// A broker that lost its disk hears of an agent in the middle of its life.
#[test]
fn what_a_session_skips_is_told_unless_the_agent_tells_it() {
    let mut ingest = opened();
    assert_eq!(ingest.frame(ONE, &row(&header(9), &[1]), NOW), Ok(Verdict::Store));
    assert_eq!(losses(&mut ingest), [(8, "skipped".to_owned(), 1, 8)]);
    assert_eq!(ingest.counts().lost.get("skipped"), Some(&8));
    assert_eq!(ingest.through(HostId(7), BootId(1)), 9);
    let mut ingest = opened();
    let loss = Loss { reason: "ring_full".into(), first: 1, last: 8, from_ns: 0, to_ns: 0 };
    let header = Header { kind: FrameKind::Loss, ..header(9) };
    let bytes = frame::seal_loss(&header, &loss).unwrap();
    assert_eq!(ingest.frame(ONE, &bytes, NOW), Ok(Verdict::Store));
    assert_eq!(losses(&mut ingest), []);
    assert_eq!(ingest.counts().lost.get("ring_full"), Some(&8));
}

#[test]
fn a_loss_closes_its_hole() {
    let mut ingest = opened();
    ingest.frame(ONE, &row(&header(1), &[1]), NOW).unwrap();
    ingest.frame(ONE, &row(&header(5), &[1]), NOW).unwrap();
    assert_eq!(ingest.through(HostId(7), BootId(1)), 1);
    let loss = Loss { reason: "ring_full".into(), first: 2, last: 4, from_ns: 0, to_ns: 0 };
    let header = Header { kind: FrameKind::Loss, ..header(6) };
    let bytes = frame::seal_loss(&header, &loss).unwrap();
    assert_eq!(ingest.frame(ONE, &bytes, NOW), Ok(Verdict::Store));
    assert_eq!(ingest.through(HostId(7), BootId(1)), 6);
}

/// A state directory was copied to a second machine: both say they are host 7. The later life
/// goes on, the earlier one is told; when the later has been silent, it may come back.
#[test]
fn forked_hosts_are_never_merged() {
    let mut ingest = opened();
    let copy = ingest.hello(TWO, SEVEN, &hello(2), NOW).unwrap();
    assert_eq!(copy, Welcomed { stored: Seq(0), replaced: Some(ONE) });
    assert!(ingest.frame(ONE, &row(&header(2), &[1]), NOW).is_err(), "the old one is closed");
    for at_ms in [0, 2_000] {
        let forked = ingest.hello(ONE, SEVEN, &hello(1), NOW + at_ms);
        assert_eq!(forked, Err(Refusal::Forked { host: HostId(7) }));
    }
    assert_eq!(ingest.counts().refused.get("forked"), Some(&2));
    let back = ingest.hello(ONE, SEVEN, &hello(1), NOW + 9_000).unwrap();
    assert_eq!(back.replaced, Some(TWO));
}

/// Somebody enrolled as host 7 while host 7 is alive: a greater boot id alone proves nothing.
#[test]
fn another_certificate_waits_for_silence() {
    let mut ingest = opened();
    let other = Proof { certificate: [8; 32], ..SEVEN };
    let forked = ingest.hello(TWO, other, &hello(2), NOW + 2_000);
    assert_eq!(forked, Err(Refusal::Forked { host: HostId(7) }));
    ingest.frame(ONE, &row(&header(1), &[1]), NOW + 2_000).unwrap();
    let forked = ingest.hello(TWO, other, &hello(2), NOW + 4_000);
    assert_eq!(forked, Err(Refusal::Forked { host: HostId(7) }));
    assert!(ingest.hello(TWO, other, &hello(2), NOW + 9_000).is_ok());
}

/// An agent's connection breaks and it comes back before the broker noticed.
#[test]
fn the_same_boot_replaces_its_own_session_and_resends() {
    let mut ingest = opened();
    ingest.frame(ONE, &row(&header(1), &[1]), NOW).unwrap();
    let again = ingest.hello(TWO, SEVEN, &hello(1), NOW).unwrap();
    assert_eq!(again, Welcomed { stored: Seq(0), replaced: Some(ONE) }, "not on disk yet");
    ingest.schema(TWO, &schema()).unwrap();
    let verdict = ingest.frame(TWO, &row(&header(1), &[1]), NOW);
    assert_eq!(verdict, Ok(Verdict::Duplicate));
    ingest.close(ONE);
    assert!(ingest.whose(TWO).is_some(), "closing the old one leaves the new one");
}

proptest! {
    /// Any order of sends, resends, reconnects, failed commits and restarts: no frame is
    /// stored twice, and nothing is acknowledged that is not stored.
    #[test]
    fn stored_once_and_acknowledged_only_when_stored(
        steps in prop::collection::vec((0..12_u8, 1..40_u64), 1..120),
    ) {
        let mut ingest = opened();
        let mut kept = Window::default();
        let (mut disk, mut flight) = (BTreeSet::new(), BTreeSet::new());
        let (mut session, mut skipped) = (ONE, 0);
        let mut first = true;
        for (step, seq) in steps {
            match step {
                0 => { // Reconnect.
                    session = SessionId(session.0 + 1);
                    ingest.hello(session, SEVEN, &hello(1), NOW).unwrap();
                    ingest.schema(session, &schema()).unwrap();
                    first = true;
                }
                1 => { // The commit fails.
                    for seq in std::mem::take(&mut flight) {
                        ingest.forget(HostId(7), BootId(1), seq, seq);
                    }
                }
                2 => { // The commit succeeds.
                    disk.append(&mut flight);
                    let through = ingest.through(HostId(7), BootId(1));
                    for acked in 1..=through {
                        prop_assert!(disk.contains(&acked) || acked < skipped, "{acked}");
                    }
                    ingest.stored(HostId(7), BootId(1), through);
                    if seq % 2 == 0 {
                        kept = ingest.windows().next().map(|one| one.2.clone()).unwrap();
                    }
                }
                3 => { // A restart: the window as it was kept, and the log.
                    ingest = Ingest::default();
                    ingest.restore(HostId(7), BootId(1), kept.clone());
                    for seq in disk.iter().map(|seq| Seq(*seq)) {
                        ingest.replay(HostId(7), BootId(1), seq, seq);
                    }
                    flight.clear();
                    session = SessionId(session.0 + 1);
                    ingest.hello(session, SEVEN, &hello(1), NOW).unwrap();
                    ingest.schema(session, &schema()).unwrap();
                    first = true;
                }
                _ => {
                    if first {
                        skipped = skipped.max(seq);
                        first = false;
                    }
                    let verdict = ingest.frame(session, &row(&header(seq), &[1]), NOW);
                    if verdict == Ok(Verdict::Store) {
                        prop_assert!(!disk.contains(&seq), "{seq} stored twice");
                        prop_assert!(flight.insert(seq), "{seq} in flight twice");
                    }
                }
            }
        }
    }
}

/// The ring's frames come first, those before them beside them from the spool: none is given up for the
/// other, and each stream is told what of it is stored.
#[test]
fn a_spool_comes_beside_what_is_live_and_its_holes_are_told() {
    let mut ingest = opened();
    ingest.spooled(ONE, (3, 9), None);
    let of = |boot, seq| row(&Header { boot: BootId(boot), ..header(seq) }, &[seq]);
    let through =
        |ingest: &Ingest, session, boot| ingest.through_of(session, HostId(7), BootId(boot));
    for seq in [10, 11, 12] {
        assert_eq!(ingest.frame(ONE, &of(1, seq), NOW).unwrap(), Verdict::Store);
    }
    assert_eq!(losses(&mut ingest), [], "what is before may still come");
    assert_eq!((through(&ingest, ONE, 1), ingest.through(HostId(7), BootId(1))), (12, 0));
    // An earlier life, then this one; a record of each was broken.
    ingest.replay_begins(TWO, ONE).unwrap();
    ingest.schema(TWO, &schema()).unwrap();
    for (boot, seq) in [(0, 5), (0, 6), (0, 8), (1, 3), (1, 4), (1, 6)] {
        assert_eq!(ingest.frame(TWO, &of(boot, seq), NOW).unwrap(), Verdict::Store, "{boot} {seq}");
    }
    let skipped = |last, first| (last, "skipped".to_owned(), first, last);
    assert_eq!(losses(&mut ingest), [skipped(4, 1), skipped(7, 7), skipped(2, 1), skipped(5, 5)]);
    assert_eq!((through(&ingest, TWO, 0), through(&ingest, TWO, 1)), (8, 6));
    assert_eq!(ingest.whose(TWO), Some((HostId(7), BootId(1))));
    assert_eq!(ingest.frame(TWO, &of(0, 6), NOW).unwrap(), Verdict::Duplicate);
    // A full spool's entry stands at its last number.
    let told = Header { kind: FrameKind::Loss, schema: SchemaId(0), ..header(9) };
    let reason = "spool_full".to_owned();
    let loss = Loss { reason, first: 7, last: 9, from_ns: 1, to_ns: 2 };
    let bytes = frame::seal_loss(&told, &loss).unwrap();
    assert_eq!(ingest.frame(TWO, &bytes, NOW).unwrap(), Verdict::Store);
    assert_eq!(losses(&mut ingest), []);
    assert_eq!(ingest.counts().lost["spool_full"], 3);
    assert_eq!((through(&ingest, ONE, 1), through(&ingest, TWO, 1)), (12, 12));
    let refused = ingest.frame(ONE, &of(0, 9), NOW).unwrap_err();
    assert_eq!(refused.reason(), "boot", "and only there");
}

/// Sixteen lives are remembered; a spool with more must not cost the live one its numbers.
#[test]
fn many_lives_in_a_spool_do_not_push_out_the_live_one() {
    let mut ingest = Ingest::default();
    ingest.hello(ONE, SEVEN, &hello(100), NOW).unwrap();
    ingest.schema(ONE, &schema()).unwrap();
    ingest.spooled(ONE, (0, 0), None);
    ingest.replay_begins(TWO, ONE).unwrap();
    ingest.schema(TWO, &schema()).unwrap();
    let of = |boot, seq| row(&Header { boot: BootId(boot), ..header(seq) }, &[seq]);
    assert_eq!(ingest.frame(ONE, &of(100, 1), NOW).unwrap(), Verdict::Store);
    for boot in 1..=40 {
        assert_eq!(ingest.frame(TWO, &of(boot, 1), NOW).unwrap(), Verdict::Store);
    }
    assert_eq!(ingest.frame(ONE, &of(100, 1), NOW).unwrap(), Verdict::Duplicate);
}

/// A broker died between the live frames and those before them, which waited in the agent's spool: its
/// log began with 40, and it said that it had everything before.
#[test]
fn a_log_that_begins_late_does_not_stand_for_what_is_before_it() {
    let mut ingest = Ingest::default();
    ingest.replay(HostId(7), BootId(1), Seq(40), Seq(60));
    assert_eq!(ingest.hello(ONE, SEVEN, &hello(1), NOW).unwrap().stored, Seq(0));
    ingest.spooled(ONE, (1, 39), None);
    ingest.replay_begins(TWO, ONE).unwrap();
    ingest.schema(TWO, &schema()).unwrap();
    for seq in 1..=39 {
        let verdict = ingest.frame(TWO, &row(&header(seq), &[seq]), NOW).unwrap();
        assert_eq!(verdict, Verdict::Store, "{seq}");
    }
    assert_eq!(ingest.through(HostId(7), BootId(1)), 60);
}

/// 63 to 91 went live to another broker while 31 to 62 waited in the spool; then 92 to 123 had to wait
/// as well, and 100 broke there. (Seed 438 of the simulation.)
#[test]
fn what_another_broker_has_between_two_parts_of_a_spool_is_no_loss() {
    let mut ingest = opened();
    ingest.spooled(ONE, (31, 123), Some(91));
    ingest.replay_begins(TWO, ONE).unwrap();
    ingest.schema(TWO, &schema()).unwrap();
    let of = |boot, seq| row(&Header { boot: BootId(boot), ..header(seq) }, &[seq]);
    // Of an earlier boot nobody here knows what was acknowledged.
    let spool =
        [(0, 5)].into_iter().chain((31..=62).chain(92..=99).chain(101..=123).map(|s| (1, s)));
    for (boot, seq) in spool {
        assert_eq!(ingest.frame(TWO, &of(boot, seq), NOW).unwrap(), Verdict::Store, "{boot} {seq}");
    }
    assert_eq!(losses(&mut ingest), [(100, "skipped".to_owned(), 100, 100)]);
    assert_eq!(ingest.through(HostId(7), BootId(1)), 123);
}
