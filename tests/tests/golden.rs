//! What other versions wrote: files of each version of a form, made once, that are never made again.
//!
//! Two promises. Today's program writes the same bytes for the same input, or the form has another version and
//! a golden file of its own; and it reads whatever is here. `STROBE_GOLDEN=make cargo test -p strobe-tests --test
//! golden` makes files that are not there yet, and changes none.

use bytes::Bytes;
use std::path::{Path, PathBuf};
use strobe_broker::store::{Limits, MatchOp, Matcher, Scratch, Store, StoreConfig, TimeRange};
use strobe_tests::Folder;
use strobe_wire::frame::{self, FrameKind, Header, Payload, Row, seal_row};
use strobe_wire::ids::{BootId, HostId, Seq};
use strobe_wire::limits::FRAME_BYTES_MAX;
use strobe_wire::message::{
    ApiRequest, ApiResponse, Hello, HostInfo, Incoming, Message, Reader, encode,
};
use strobe_wire::schema::{Column, Kind, Labels, Schema};

/// Rows go over the wire, into the log and to Redis as they are.
#[test]
fn frames_are_what_they_were() {
    let bytes = row(7);
    same("v1/frame-row.bin", &bytes);
    let old = golden("v1/frame-row.bin");
    let frame = frame::open(&old).expect("it is read");
    assert_eq!((frame.header.host, frame.header.seq), (HostId(0xfeed), Seq(7)));
    assert!(matches!(frame.payload, Payload::Row(row) if row.len() == 3));
}

/// Every message, in the order of their tags: a new one is added behind the last, none is changed.
#[test]
fn messages_are_what_they_were() {
    for (number, message) in messages().iter().enumerate() {
        let name = format!("v1/message-{number:02}.bin");
        same(&name, &encode(message));
        let mut reader = Reader::default();
        reader.push(&golden(&name));
        match reader.pull().expect("it is read") {
            Some(Incoming::Control(read)) => assert_eq!(*read, *message, "{name}"),
            other => panic!("{name} is {other:?}"),
        }
    }
}

/// A directory with sealed rows (HB1 blocks in a segment) and rows in the log.
#[test]
fn stores_are_what_they_were() {
    let folder = Folder::new("golden-new");
    write_store(folder.path());
    for kind in ["segments", "wal"] {
        let made = folder.path().join(kind);
        let mut files: Vec<PathBuf> =
            std::fs::read_dir(&made).expect("a folder").flatten().map(|file| file.path()).collect();
        files.sort();
        for path in files {
            let name = path.file_name().and_then(|name| name.to_str()).expect("a name");
            let bytes = std::fs::read(&path).expect("readable");
            same(&format!("v1/store/{kind}/{name}"), &bytes);
        }
    }
    let old = Folder::new("golden-old");
    for kind in ["segments", "wal"] {
        let (from, to) = (root().join("v1/store").join(kind), old.path().join(kind));
        std::fs::create_dir_all(&to).expect("writable");
        for file in std::fs::read_dir(&from).expect("golden files").flatten() {
            std::fs::copy(file.path(), to.join(file.file_name())).expect("writable");
        }
    }
    assert_eq!(strobe_broker::store::check(old.path()).expect("it is read").damage, [""; 0]);
    let (store, _writer, recovery) = Store::open(config(old.path()), T0).expect("it opens");
    assert_eq!(recovery.damage, [""; 0]);
    let limits = Limits { series_max: 100, samples_max: 100_000 };
    let (name, value) = ("__name__".to_owned(), "node_load1".to_owned());
    let matcher = Matcher { name, op: MatchOp::Equal, value };
    let range = TimeRange { start_ms: 0, end_ms: i64::MAX };
    let (mut scratch, mut found) = (Scratch::new(&limits), Vec::new());
    for part in store.select(&[matcher], range, &limits).expect("it is read") {
        let visit = &mut |_: &Labels, times: &[i64], values: &[f64]| {
            found.extend(times.iter().copied().zip(values.iter().copied()));
            Ok(())
        };
        store.scan(&part, range, &mut scratch, visit).expect("it is read");
    }
    let wanted: Vec<(i64, f64)> = (0..ROWS).map(|n| (T0 + n * 1000, load(n))).collect();
    assert_eq!(found, wanted);
}

fn load(n: i64) -> f64 {
    let hundredths = f64::from(i32::try_from(n * 3 % 400).expect("small"));
    hundredths / 100.0
}

fn write_store(dir: &Path) {
    let (_store, mut writer, _) = Store::open(config(dir), T0).expect("it opens");
    writer.schema(&schema()).expect("a good one");
    let labels = Labels::of(&[("rack", "r1")]);
    writer.host(HostId(0xfeed), "node", "golden", &labels).expect("it is written");
    let rows = |from: i64, to: i64| (from..to).map(|n| row(u64::try_from(n).expect("positive")));
    for bytes in rows(0, SEALED) {
        writer.frame(&Bytes::from(bytes)).expect("it is written");
    }
    writer.commit(T0).expect("it is written");
    // Beyond the end of the window these rows are in, and before anything is rolled up.
    writer.settle(T0 + SEALED * 1000 + 31_000).expect("it is sealed");
    for bytes in rows(SEALED, ROWS) {
        writer.frame(&Bytes::from(bytes)).expect("it is written");
    }
    writer.commit(T0 + ROWS * 1000).expect("it is written");
}

fn config(dir: &Path) -> StoreConfig {
    StoreConfig { free_bytes_min: 0, ..StoreConfig::at(dir.to_owned()) }
}

fn schema() -> Schema {
    let column =
        |name: &str, kind| Column { name: name.to_owned(), labels: Labels::default(), kind };
    let columns = vec![
        column("node_load1", Kind::Gauge { scale: 2 }),
        column("node_context_switches_total", Kind::Counter { scale: 0 }),
        column("strobe_golden_ratio", Kind::Float),
    ];
    Schema { section: "golden".to_owned(), columns }
}

fn row(seq: u64) -> Vec<u8> {
    let n = i64::try_from(seq).expect("small");
    let header = Header {
        kind: FrameKind::Row,
        host: HostId(0xfeed),
        boot: BootId(0xb007),
        seq: Seq(seq),
        wall_ns: (T0 + n * 1000) * 1_000_000,
        boottime_ns: seq * 1_000_000_000,
        schema: schema().id(),
    };
    let ratio = 1.618_f64 * f64::from(i32::try_from(n).expect("small"));
    let values = [seq * 3 % 400, 1000 + seq * 17, ratio.to_bits()];
    let mut slot = [0; FRAME_BYTES_MAX];
    let row = Row { values: &values, valid: &[0b111], scores: &[] };
    let length = seal_row(&mut slot, &header, &row).expect("it fits");
    slot[..length].to_vec()
}

fn messages() -> Vec<Message> {
    let text = str::to_owned;
    let hello = Hello {
        host: 0xfeed,
        boot: 0xb007,
        instance: text("golden"),
        job: text("node"),
        version: text("0.1.0"),
        kernel: text("6.1"),
        labels: vec![(text("rack"), text("r1"))],
        interval_ms: 1000,
    };
    let info =
        HostInfo { hello: hello.clone(), first_seen_ms: 5, last_seen_ms: 9, connected: true };
    let (method, path) = (text("POST"), text("/api/v1/query"));
    let request =
        ApiRequest { method, path, query: text("a=b"), body: vec![1, 2], ..ApiRequest::default() };
    let content_type = text("text/plain");
    vec![
        Message::Hello(hello),
        Message::Welcome { stored_seq: 41, version: text("0.1.0") },
        Message::Schema(schema()),
        Message::Ack { boot: 0xb007, seq: 77 },
        Message::Redirect { broker: text("10.0.0.2:7801") },
        Message::Enrol { secret: vec![1; 8], host: 0xfeed, role: text("agent"), csr: vec![2; 9] },
        Message::Enrolled { certificate: vec![3; 7], ca: vec![4; 6] },
        Message::ApiRequest(request),
        Message::ApiResponse(ApiResponse { status: 200, content_type, body: vec![5; 5] }),
        Message::Subscribe,
        Message::Host(info),
        Message::Refused { why: text("because") },
        Message::RenewDue,
        Message::Renew { csr: vec![6; 4] },
        Message::Resume { acknowledged_seq: 76, silent: text("10.0.0.1:7801") },
        Message::Brokers(vec![text("10.0.0.1:7801"), text("10.0.0.2:7801")]),
        Message::Join { secret: vec![7; 3], address: text("10.0.0.3:7801"), disk: 8 },
        Message::Joined { cluster: 9, broker: 3, key: vec![8; 2], ca: vec![9] },
        Message::Burst,
        Message::Spooled { first_seq: 10, last_seq: 20 },
        Message::Replay,
    ]
}

/// The golden file has these bytes, or is made of them if that is wanted.
fn same(name: &str, bytes: &[u8]) {
    let path = root().join(name);
    if !path.exists() {
        let make = std::env::var("STROBE_GOLDEN").is_ok_and(|word| word == "make");
        assert!(make, "{} is missing: see the head of this file", path.display());
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("writable");
        std::fs::write(&path, bytes).expect("writable");
    }
    assert!(
        golden(name) == bytes,
        "{name}: other bytes are written for the same input. Brokers and agents of the last version cannot read \
         them: give the form another version, which is negotiated or refused in words, and golden files of its own"
    );
}

fn golden(name: &str) -> Vec<u8> {
    let path = root().join(name);
    std::fs::read(&path).unwrap_or_else(|why| panic!("{}: {why}", path.display()))
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden")
}

/// A whole window begins here: 2023-11-14T22:20:00Z.
const T0: i64 = 1_700_000_400_000;
const SEALED: i64 = 600;
const ROWS: i64 = 630;
