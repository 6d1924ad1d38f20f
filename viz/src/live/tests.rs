//! Synthetic frames in, the browser's texts out.

#![expect(clippy::indexing_slicing, reason = "tests may panic")]

use super::*;
use proptest::prelude::*;
use serde_json::{Value, json};
use strobe_wire::frame::{FrameKind, Header, Row, seal_row};
use strobe_wire::ids::{BootId, Seq};
use strobe_wire::limits::FRAME_BYTES_MAX;
use strobe_wire::message::Hello;
use strobe_wire::schema::{Column, Kind, Labels};

const HOST: HostId = HostId(7);

fn column(name: &str, labels: &[(&str, &str)], kind: Kind) -> Column {
    Column { name: name.into(), labels: Labels::of(labels), kind }
}

fn cpu() -> Arc<Schema> {
    let cpu = |mode| {
        column(
            "node_cpu_seconds_total",
            &[("cpu", "0"), ("mode", mode)],
            Kind::Counter { scale: 2 },
        )
    };
    Arc::new(Schema {
        section: "cpu".into(),
        columns: vec![cpu("user"), cpu("idle"), cpu("iowait")],
    })
}

fn mixed() -> Arc<Schema> {
    let bytes = Kind::Gauge { scale: 0 };
    let counter = Kind::Counter { scale: 3 };
    let net = |device| ("device", device);
    Arc::new(Schema {
        section: "host".into(),
        columns: vec![
            column("node_load1", &[], Kind::Gauge { scale: 2 }),
            column("node_memory_MemTotal_bytes", &[], bytes),
            column("node_memory_MemAvailable_bytes", &[], bytes),
            column("node_pressure_io_waiting_seconds_total", &[], Kind::Counter { scale: 6 }),
            column("node_disk_io_time_seconds_total", &[net("sda")], counter),
            column("node_disk_io_time_seconds_total", &[net("sdb")], counter),
            column("node_network_receive_bytes_total", &[net("lo")], Kind::Counter { scale: 0 }),
            column("node_network_receive_bytes_total", &[net("eth0")], Kind::Counter { scale: 0 }),
            column("node_filesystem_size_bytes", &[("mountpoint", "/")], bytes),
            column("node_filesystem_avail_bytes", &[("mountpoint", "/")], bytes),
            column("node_memory_SwapTotal_bytes", &[], bytes),
            column("node_memory_SwapFree_bytes", &[], bytes),
        ],
    })
}

fn frame(host: HostId, schema: &Schema, second: u64, values: &[u64]) -> Update {
    let header = Header {
        kind: FrameKind::Row,
        host,
        boot: BootId(1),
        seq: Seq(second),
        wall_ns: i64::try_from(second * 1_000_000_000).unwrap(),
        boottime_ns: second * 1_000_000_000,
        schema: schema.id(),
    };
    let valid = vec![0xff; values.len().div_ceil(8)];
    let mut out = vec![0; FRAME_BYTES_MAX];
    let row = Row { values, valid: &valid, scores: &[] };
    let length = seal_row(&mut out, &header, &row).unwrap();
    out.truncate(length);
    Update::Frame(out.into())
}

fn info(host: HostId, name: &str) -> Update {
    let hello =
        Hello { host: host.0, instance: name.into(), interval_ms: 1000, ..Hello::default() };
    Update::Host(HostInfo { hello, first_seen_ms: 0, last_seen_ms: 0, connected: true })
}

struct World {
    live: Live,
    out: Vec<Outgoing>,
}

impl World {
    fn new() -> Self {
        let limits = LiveLimits { hosts_max: 4, schemas_max: 4, sections_max: 3 };
        Self { live: Live::new(limits), out: Vec::new() }
    }
    fn update(&mut self, second: u64, update: Update) {
        self.live.update(i64::try_from(second * 1000).unwrap(), update, &mut self.out);
    }
    fn watch(&mut self, id: usize, request: &Value) {
        self.live.open(WatcherId(id));
        self.live.request(0, WatcherId(id), &request.to_string(), &mut self.out);
    }
    fn texts(&mut self, id: usize) -> Vec<Value> {
        let (of, rest) = self.out.drain(..).partition(|o| o.to == WatcherId(id));
        self.out = rest;
        let of: Vec<Outgoing> = of;
        of.iter().map(|o| serde_json::from_str(&o.text).unwrap()).collect()
    }
}

#[test]
fn the_fleet_row_is_worked_out_of_two_ticks() {
    let mut world = World::new();
    world.update(1, info(HOST, "web-1"));
    world.update(1, Update::Schema(cpu()));
    world.update(1, Update::Schema(mixed()));
    world.update(1, frame(HOST, &cpu(), 1, &[100, 1000, 100]));
    world.update(1, frame(HOST, &mixed(), 1, &[25, 1000, 250, 0, 0, 0, 9, 100, 200, 50, 0, 0]));
    // 0.25 s user, 0.70 s idle, 0.05 s iowait; sda 100 ms, sdb 400 ms; 1 500 bytes.
    world.update(2, frame(HOST, &cpu(), 2, &[125, 1070, 105]));
    let row = [25, 1000, 250, 125_000, 100, 400, 9_999, 1_600, 200, 50, 0, 0];
    world.update(2, frame(HOST, &mixed(), 2, &row));
    world.watch(1, &json!({"watch": {"fleet": true}}));
    let texts = world.texts(1);
    assert_eq!(texts[0]["type"], "fleet");
    let wanted = json!({
        "id": HOST.to_string(), "instance": "web-1", "state": "fresh", "version": "", "kernel": "",
        "last_seen_ms": null, "cpu": 0.25, "load1": 0.25, "cores": 1, "mem": 0.75, "swap": null,
        "disk_busy": 0.4, "fs": 0.75, "rx": 1495.0, "tx": null,
        "pressure": {"cpu": null, "memory": null, "io": 0.125},
    });
    assert_eq!(texts[0]["hosts"], json!([wanted]));
}

#[test]
fn the_fleet_changes_once_a_second_by_what_changed() {
    let mut world = World::new();
    for (id, name) in [(1, "a"), (2, "b")] {
        world.update(1, info(HostId(id), name));
    }
    world.update(1, Update::Schema(cpu()));
    world.watch(1, &json!({"watch": {"fleet": true}}));
    assert_eq!(world.texts(1)[0]["hosts"].as_array().unwrap().len(), 2);
    world.live.tick(1_000, &mut world.out);
    world.texts(1);
    world.update(2, frame(HostId(2), &cpu(), 2, &[1, 2, 3]));
    world.live.tick(2_000, &mut world.out);
    let texts = world.texts(1);
    assert_eq!(texts.len(), 1);
    assert_eq!(texts[0]["type"], "fleet_delta");
    assert_eq!(texts[0]["hosts"][0]["instance"], "b");
    assert_eq!(texts[0]["hosts"].as_array().unwrap().len(), 1);
    world.live.tick(3_000, &mut world.out);
    assert_eq!(world.texts(1), [json!({"type": "fleet_delta", "now_ms": 3000, "hosts": []})]);
    world.live.tick(13_000, &mut world.out);
    let late: Vec<_> = world.texts(1)[0]["hosts"].as_array().unwrap().clone();
    assert!(late.iter().any(|host| host["state"] == "late" && host["last_seen_ms"] == 2000));
    world.live.tick(90_000, &mut world.out);
    assert!(world.texts(1)[0]["hosts"].as_array().unwrap().iter().all(|h| h["state"] == "lost"));
}

/// The table prints a tenth of a per cent and three digits of a unit: less is no change.
#[test]
fn a_change_that_nobody_sees_is_not_sent() {
    let mut world = World::new();
    world.update(1, info(HOST, "web-1"));
    world.update(1, Update::Schema(mixed()));
    world.watch(1, &json!({"watch": {"fleet": true}}));
    let mut changed = |second, available, received| {
        let row = [25, 100_000, available, 0, 0, 0, 0, received, 200, 50, 0, 0];
        world.update(second, frame(HOST, &mixed(), second, &row));
        world.live.tick(i64::try_from(second * 1000).unwrap(), &mut world.out);
        let last = world.texts(1).pop().unwrap();
        last["hosts"].as_array().unwrap().first().map(|h| (h["mem"].clone(), h["rx"].clone()))
    };
    assert_eq!(changed(1, 25_000, 0), Some((json!(0.75), json!(null))));
    assert_eq!(changed(2, 25_000, 1_234_567), Some((json!(0.75), json!(1_237_320.0))));
    assert_eq!(changed(3, 25_030, 2_471_000), None, "75.0 % and 1.18 MiB/s still");
    assert_eq!(changed(4, 25_100, 3_707_000), Some((json!(0.749), json!(1_237_320.0))));
}

#[test]
fn a_host_watch_gets_its_columns_once_and_then_rows() {
    let mut world = World::new();
    world.update(1, Update::Schema(mixed()));
    let names = ["node_load1", "node_network_receive_bytes_total"];
    world.watch(1, &json!({"watch": {"host": HOST.to_string(), "names": names}}));
    world.watch(2, &json!({"watch": {"host": HOST.to_string(), "names": names}}));
    world.watch(3, &json!({"watch": {"host": HostId(8).to_string()}}));
    let row = [25, 1000, 250, 0, 0, 0, 9, 100, 200, 50, 0, 0];
    world.update(1, frame(HOST, &mixed(), 1, &row));
    world.update(2, frame(HOST, &mixed(), 2, &row));
    // Replayed: the live view does not go back.
    world.update(3, frame(HOST, &mixed(), 1, &row));
    let shared: Vec<_> = world.out.iter().filter(|o| o.text.contains("\"row\"")).collect();
    assert_eq!(shared.len(), 4);
    assert_eq!(shared[0].text.as_ptr(), shared[1].text.as_ptr(), "one encode for both");
    let texts = world.texts(1);
    assert_eq!(
        texts.iter().map(|t| t["type"].as_str().unwrap()).collect::<Vec<_>>(),
        ["columns", "row", "row"]
    );
    assert_eq!(texts[0]["columns"][2]["labels"], json!({"device": "eth0"}));
    assert_eq!(texts[1]["v"], json!([0.25, 9, 100]));
    assert_eq!(texts[1]["t"], 1000);
    assert_eq!(texts[1]["schema"], texts[0]["schema"]);
    assert_eq!(world.texts(3), Vec::<Value>::new());
}

#[test]
fn a_slow_watcher_skips_and_is_told() {
    let mut world = World::new();
    world.update(1, Update::Schema(cpu()));
    world.watch(1, &json!({"watch": {"host": HOST.to_string()}}));
    world.live.room(0, WatcherId(1), Room::Full, &mut world.out);
    for second in 1..=5 {
        world.update(second, frame(HOST, &cpu(), second, &[1, 2, 3]));
    }
    assert_eq!(world.texts(1), Vec::<Value>::new());
    world.live.room(0, WatcherId(1), Room::Free, &mut world.out);
    assert_eq!(world.texts(1), [json!({"type": "skipped", "n": 5})]);
    world.update(6, frame(HOST, &cpu(), 6, &[1, 2, 3]));
    assert_eq!(world.texts(1)[0]["type"], "columns");
    assert_eq!(world.live.counts().skipped, 5);
    world.update(6, Update::Lagged(9));
    assert_eq!(world.texts(1), [json!({"type": "skipped", "n": 9})]);
}

fn history(ask: u64) -> Value {
    let wish = json!({"range_ms": 300_000, "pixels": 600, "terms": []});
    json!({"watch": {"host": HOST.to_string(), "ask": ask, "history": wish}})
}

/// What each text is, and of rows when they are from.
fn kinds(texts: &[Value]) -> Vec<String> {
    let time = |text: &Value| text["t"].as_i64().map(|t| format!(" {t}")).unwrap_or_default();
    texts.iter().map(|text| format!("{}{}", text["type"].as_str().unwrap(), time(text))).collect()
}

#[test]
fn history_comes_first_and_rows_behind_it() {
    let mut world = World::new();
    world.update(1, Update::Schema(cpu()));
    world.watch(1, &history(5));
    let ask = world.live.poll_ask().unwrap();
    assert_eq!((ask.watcher, world.live.poll_ask()), (WatcherId(1), None));
    let body: Value = serde_json::from_str(&ask.body).unwrap();
    assert_eq!(
        body,
        json!({"host": HOST.to_string(), "range_ms": 300_000, "pixels": 600, "terms": []})
    );
    world.update(1, frame(HOST, &cpu(), 1, &[1, 2, 3]));
    assert_eq!(world.texts(1), Vec::<Value>::new(), "the snapshot is the first message");
    world.live.answer(WatcherId(1), ask.number + 1, b"{}", &mut world.out);
    assert_eq!(world.texts(1), Vec::<Value>::new(), "of another question");
    world.live.answer(WatcherId(1), ask.number, b"{\"data\":1}", &mut world.out);
    let texts = world.texts(1);
    assert_eq!(kinds(&texts), ["snapshot", "columns", "row 1000"]);
    assert_eq!(texts[0], json!({"type": "snapshot", "ask": 5, "answer": {"data": 1}}));
    world.update(2, frame(HOST, &cpu(), 2, &[1, 2, 3]));
    assert_eq!(kinds(&world.texts(1)), ["row 2000"]);
    // Another window: again the snapshot first, and the columns behind it.
    world.live.request(0, WatcherId(1), &history(6).to_string(), &mut world.out);
    let ask = world.live.poll_ask().unwrap();
    world.update(3, frame(HOST, &cpu(), 3, &[1, 2, 3]));
    world.live.answer(WatcherId(1), ask.number, b"no broker\n", &mut world.out);
    let texts = world.texts(1);
    assert_eq!(kinds(&texts), ["snapshot", "columns", "row 3000"]);
    assert_eq!(texts[0]["answer"], json!({"status": "error", "error": "no broker"}));
}

#[test]
fn a_window_in_the_past_gets_no_rows() {
    let mut world = World::new();
    world.update(1, Update::Schema(cpu()));
    let mut watch = history(1);
    watch["watch"]["rows"] = json!(false);
    world.watch(1, &watch);
    let ask = world.live.poll_ask().unwrap();
    world.live.answer(WatcherId(1), ask.number, b"{}", &mut world.out);
    world.update(1, frame(HOST, &cpu(), 1, &[1, 2, 3]));
    assert_eq!(kinds(&world.texts(1)), ["snapshot"]);
}

/// However long it was away: one snapshot, not a queue.
#[test]
fn a_slow_watcher_gets_a_new_snapshot() {
    let mut world = World::new();
    world.update(1, Update::Schema(cpu()));
    world.watch(1, &history(1));
    let ask = world.live.poll_ask().unwrap();
    world.live.answer(WatcherId(1), ask.number, b"{}", &mut world.out);
    // A large snapshot fills the buffer by itself: rows go behind it.
    world.live.room(0, WatcherId(1), Room::Full, &mut world.out);
    world.update(1, frame(HOST, &cpu(), 1, &[1, 2, 3]));
    assert_eq!(kinds(&world.texts(1)), ["snapshot"]);
    world.live.room(0, WatcherId(1), Room::Free, &mut world.out);
    assert_eq!(kinds(&world.texts(1)), ["columns", "row 1000"]);
    world.live.room(0, WatcherId(1), Room::Full, &mut world.out);
    for second in 2..2_000 {
        world.update(second, frame(HOST, &cpu(), second, &[1, 2, 3]));
        world.live.tick(i64::try_from(second).unwrap() * 1000, &mut world.out);
    }
    assert_eq!((world.texts(1), world.live.poll_ask()), (vec![], None), "not while it is full");
    world.live.room(0, WatcherId(1), Room::Free, &mut world.out);
    let ask = world.live.poll_ask().expect("another snapshot");
    world.live.answer(WatcherId(1), ask.number, b"{}", &mut world.out);
    world.update(2_000, frame(HOST, &cpu(), 2_000, &[1, 2, 3]));
    assert_eq!(kinds(&world.texts(1)), ["snapshot", "columns", "row 2000000"]);
    // Where the loss is ours: with the next tick.
    world.update(2_000, Update::Lagged(9));
    assert_eq!(world.live.poll_ask(), None);
    world.live.tick(2_001_000, &mut world.out);
    assert!(world.live.poll_ask().is_some());
    assert_eq!(world.texts(1), Vec::<Value>::new());
}

/// A broker that takes its time costs no memory: what was held goes, the newest rows stay.
#[test]
fn what_waits_for_a_snapshot_is_bounded() {
    let mut world = World::new();
    world.update(1, Update::Schema(cpu()));
    world.watch(1, &history(1));
    let first = world.live.poll_ask().unwrap();
    for second in 1..1_000 {
        world.update(second, frame(HOST, &cpu(), second, &[1, 2, 3]));
    }
    world.live.answer(WatcherId(1), first.number, b"{}", &mut world.out);
    let kinds = kinds(&world.texts(1));
    assert!(kinds.len() <= 257, "{}", kinds.len());
    assert_eq!(
        (&*kinds[0], &*kinds[1], kinds.last().unwrap().as_str()),
        ("snapshot", "columns", "row 999000")
    );
}

#[test]
fn the_small_lines_of_a_table_begin_with_history() {
    let mut world = World::new();
    let wish = json!({"range_ms": 300_000, "pixels": 30, "terms": []});
    world.watch(1, &json!({"watch": {"fleet": true, "ask": 3, "history": wish}}));
    assert_eq!(kinds(&world.texts(1)), ["fleet"], "the table does not wait");
    let ask = world.live.poll_ask().unwrap();
    assert!(!ask.body.contains("host"), "of all hosts: {}", ask.body);
    world.live.answer(WatcherId(1), ask.number, b"{}", &mut world.out);
    assert_eq!(kinds(&world.texts(1)), ["snapshot"]);
}

#[test]
fn a_slow_fleet_watcher_gets_the_whole_table_again() {
    let mut world = World::new();
    world.watch(1, &json!({"watch": {"fleet": true}}));
    world.texts(1);
    world.live.room(0, WatcherId(1), Room::Full, &mut world.out);
    world.update(1, info(HOST, "a"));
    world.live.tick(1_000, &mut world.out);
    assert_eq!(world.texts(1), Vec::<Value>::new());
    world.live.room(2_000, WatcherId(1), Room::Free, &mut world.out);
    let texts = world.texts(1);
    assert_eq!((&texts[0]["type"], &texts[1]["type"]), (&json!("skipped"), &json!("fleet")));
    assert_eq!(texts[1]["hosts"][0]["instance"], "a");
}

#[test]
fn hosts_schemas_and_sections_are_bounded() {
    let mut world = World::new();
    world.update(1, Update::Schema(cpu()));
    for id in 0..9 {
        world.update(1, info(HostId(id), "h"));
        world.update(1, frame(HostId(id), &cpu(), 1, &[1, 2, 3]));
    }
    assert_eq!((world.live.hosts(), world.live.counts().over_bound), (4, 10));
    for index in 0..9 {
        let mut schema = (*cpu()).clone();
        schema.section = format!("cpu.{index}");
        let schema = Arc::new(schema);
        world.update(2, Update::Schema(Arc::clone(&schema)));
        world.update(2, frame(HostId(0), &schema, 2, &[1, 2, 3]));
    }
    assert!(world.live.schemas.len() <= 4);
    assert_eq!(world.live.hosts[&HostId(0)].schemas().count(), 3);
}

#[test]
fn wrong_requests_get_a_reason() {
    let long = format!("\"{}\"", "x".repeat(REQUEST_BYTES_MAX));
    for text in ["", "[]", "{}", "{\"watch\":{\"host\":\"x\"}}", "{\"watch\":{\"hots\":1}}", &long]
    {
        let mut world = World::new();
        world.live.open(WatcherId(1));
        world.live.request(0, WatcherId(1), text, &mut world.out);
        assert_eq!(world.texts(1)[0]["type"], "error", "{text}");
    }
}

proptest! {
    #[test]
    fn any_frame_and_any_request_is_survived(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        flip in any::<(usize, u8)>(),
        values in prop::collection::vec(any::<u64>(), 1..20),
        request in ".{0,60}",
    ) {
        let mut world = World::new();
        world.update(1, Update::Schema(mixed()));
        world.watch(1, &json!({"watch": {"host": HOST.to_string()}}));
        world.update(1, Update::Frame(bytes.into()));
        world.update(1, frame(HOST, &mixed(), 1, &values));
        let Update::Frame(good) = frame(HOST, &mixed(), 2, &values) else { unreachable!() };
        let mut bad = good.to_vec();
        let at = flip.0 % bad.len();
        bad[at] ^= flip.1;
        world.update(2, Update::Frame(bad.into()));
        world.live.request(0, WatcherId(1), &request, &mut world.out);
        world.live.tick(3_000, &mut world.out);
        for outgoing in &world.out {
            prop_assert!(serde_json::from_str::<Value>(&outgoing.text).is_ok(), "{}", outgoing.text);
        }
    }
}
