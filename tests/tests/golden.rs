//! What other versions wrote: files of each version of a form, made once, that are never made again.
//!
//! Two promises. Today's program writes the same bytes for the same input, or the form has another version and
//! a golden file of its own; and it reads whatever is here. `STROBE_GOLDEN=make cargo test -p strobe-tests --test
//! golden` makes files that are not there yet, and changes none.

use bytes::Bytes;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use strobe_agent::machine::{Fact, Machine, Part};
use strobe_agent::managed::Pushed;
use strobe_agent::schemas::Table;
use strobe_agent::spool::{Spool, SpoolConfig, Spooled};
use strobe_agent::state::State;
use strobe_broker::store::{
    Depth, Elsewhere, Limits, MatchOp, Matcher, Scratch, Store, StoreConfig, TimeRange, Wanted,
};
use strobe_tests::Folder;
use strobe_wire::frame::{self, FrameKind, Header, Payload, Row, seal_row};
use strobe_wire::ids::{BootId, HostId, Seq};
use strobe_wire::limits::FRAME_BYTES_MAX;
use strobe_wire::message::{
    ApiRequest, ApiResponse, Hello, HostInfo, Incoming, Message, Question, Reader, encode,
};
use strobe_wire::pki::{Authority, Identity, Role, Subject};
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
    let found = read(&store);
    let wanted: Vec<(i64, f64)> = (0..ROWS).map(|n| (T0 + n * 1000, load(n))).collect();
    assert_eq!(found, wanted);
}

/// What one broker sends another of a query, to brokers of each version that reads such pages.
#[test]
fn pages_are_what_they_were() {
    let folder = Folder::new("golden-pages");
    write_store(folder.path());
    let (store, _writer, _) = Store::open(config(folder.path()), T0).expect("it opens");
    let (other, _dir) = empty();
    for version in 1..=3 {
        let wanted = Wanted {
            matchers: vec![matcher()],
            range: ALL,
            depth: Depth::Samples(None),
            limits: LIMITS,
            next: None,
            version,
            shares: false,
        };
        let name = format!("v1/page-{version}.bin");
        same(&name, &store.page(&wanted, &|| false).expect("it is made"));
        let elsewhere = Elsewhere::new(ALL, false);
        let said = elsewhere.take(&golden(&name)).expect("it is read");
        assert_eq!((said.next, said.coarser_ms, said.notes), (None, None, vec![]));
        let wanted: Vec<(i64, f64)> = (0..ROWS).map(|n| (T0 + n * 1000, load(n))).collect();
        assert_eq!(read(&other.with(elsewhere)), wanted, "{name}");
    }
}

/// What an agent keeps while no broker takes it.
#[test]
fn spools_are_what_they_were() {
    let folder = Folder::new("golden-spool");
    let table = Table::new();
    table.publish(&Arc::new(schema()));
    let of = |dir: &Path| {
        let dir = dir.to_owned();
        let config = SpoolConfig { dir, disk_bytes_max: 1 << 20, memory_bytes_max: 1 << 16 };
        Spool::open(config, (HostId(0xfeed), BootId(0xb007)), Arc::default())
    };
    let made = folder.path().join("new");
    let mut spool = of(&made);
    (1..=20).for_each(|seq| spool.put(&row(seq), &table));
    #[expect(clippy::disallowed_methods, reason = "an Instant can only be made so")]
    spool.close(std::time::Instant::now());
    drop(spool);
    same_files("v1/spool", &made);
    let old = folder.path().join("old");
    copy_golden("v1/spool", &old);
    let mut spool = of(&old);
    let mut found = Vec::new();
    while let Some(next) = spool.next() {
        found.push(match next {
            Spooled::Schema(id, _) => format!("schema {}", id == schema().id()),
            Spooled::Frame { bytes, mark, .. } => {
                assert_eq!(bytes[..], row(mark.seq)[..], "as it was");
                format!("frame {}", mark.seq)
            }
        });
    }
    // Each of the two files begins with it.
    let wanted = (1..=20).map(|seq| format!("frame {seq}"));
    let schema = || std::iter::once("schema true".to_owned());
    assert_eq!(found, schema().chain(wanted).chain(schema()).collect::<Vec<_>>());
}

/// Who an agent is, where its brokers are, and what the fleet configured.
#[test]
fn an_agents_state_is_what_it_was() {
    let fact = |part, text: &str| Fact { part, text: text.to_owned() };
    let hardware = vec![fact(Part::Board, "board-4711"), fact(Part::Link, "02:00:00:00:00:01")];
    let machine = Machine { id: Some("m1".to_owned()), hardware };
    let folder = Folder::new("golden-state");
    let id = HostId(0xfeed);
    // Nothing of the machine is known yet: what is to be known is written by who opens it.
    let new = format!("id = \"{id}\"\nmachine = \"\"\nhardware = \"\"\ncloned_from = \"\"\n");
    std::fs::write(folder.path().join("host.toml"), new).expect("writable");
    let brokers = ["10.0.0.1:7801", "10.0.0.2:7801"].map(str::to_owned);
    let values = vec![("agent.interval".to_owned(), "2s".to_owned())];
    let pushed = Pushed { version: 7, values };
    let state = State::open(folder.path(), &machine).expect("it opens");
    state.keep_brokers(&brokers).expect("writable");
    state.keep_configuration(&pushed).expect("writable");
    drop(state);
    std::fs::remove_file(folder.path().join("agent.lock")).expect("it is there");
    same_files("v1/agent", folder.path());
    let old = Folder::new("golden-state-old");
    copy_golden("v1/agent", old.path());
    let state = State::open(old.path(), &machine).expect("it opens");
    assert_eq!((state.host, state.cloned_from), (id, None));
    assert_eq!((state.brokers(), state.configuration()), (brokers.to_vec(), pushed));
    let kept = std::fs::read(old.path().join("host.toml")).expect("readable");
    assert_eq!(kept, golden("v1/agent/host.toml"), "the same machine");
    drop(state);
    let copied = Machine { id: Some("m2".to_owned()), ..machine };
    let state = State::open(old.path(), &copied).expect("it opens");
    assert_eq!(state.cloned_from, Some(id), "what is kept of the machine is understood");
}

/// A fleet's authority and what it signed for a broker and an agent; of nobody's fleet, made up for this.
#[test]
fn identities_are_what_they_were() {
    let subjects = [(Role::Broker, HostId(3)), (Role::Agent, HostId(0xfeed))];
    if !root().join("v1/identities").exists() {
        let folder = Folder::new("golden-identities");
        let authority = Authority::create(1_700_000_000).expect("it is made");
        authority.save(folder.path()).expect("writable");
        for (role, host) in subjects {
            let subject = Subject { role, host };
            let identity = authority.issue(&subject, 1_700_000_000, 86_400).expect("it is signed");
            identity.save(&folder.path().join(role.word())).expect("writable");
        }
        same_files("v1/identities", folder.path());
    }
    let folder = Folder::new("golden-identities-old");
    copy_golden("v1/identities", folder.path());
    let authority = Authority::load(folder.path()).expect("it is read").expect("it is there");
    for (role, host) in subjects {
        let dir = folder.path().join(role.word());
        let identity = Identity::load(&dir, role).expect("it is read").expect("it is there");
        assert_eq!(identity.subject().expect("it names somebody"), Subject { role, host });
        assert_eq!(identity.ca_der, authority.certificate_der(), "of this fleet");
        identity.save(&dir).expect("writable");
    }
    authority.save(folder.path()).expect("writable");
    same_files("v1/identities", folder.path());
}

/// What a store answers to who asks for the golden series.
fn read(store: &Store) -> Vec<(i64, f64)> {
    let (mut scratch, mut found) = (Scratch::new(&LIMITS), Vec::new());
    for part in store.select(&[matcher()], ALL, &LIMITS).expect("it is read") {
        let visit = &mut |_: &Labels, times: &[i64], values: &[f64]| {
            found.extend(times.iter().copied().zip(values.iter().copied()));
            Ok(())
        };
        store.scan(&part, ALL, &mut scratch, visit).expect("it is read");
    }
    found
}

fn matcher() -> Matcher {
    let (name, value) = ("__name__".to_owned(), "node_load1".to_owned());
    Matcher { name, op: MatchOp::Equal, value }
}

fn empty() -> (Store, Folder) {
    let folder = Folder::new("golden-empty");
    let (store, _writer, _) = Store::open(config(folder.path()), T0).expect("it opens");
    (store, folder)
}

/// Every file below `made` is [`same`] as the golden one below `name`, and none is missing.
fn same_files(name: &str, made: &Path) {
    let mut names: Vec<PathBuf> =
        std::fs::read_dir(made).expect("a folder").flatten().map(|file| file.path()).collect();
    names.sort();
    for path in &names {
        let below = format!("{name}/{}", path.file_name().and_then(|n| n.to_str()).expect("text"));
        if path.is_dir() {
            same_files(&below, path);
        } else {
            same(&below, &std::fs::read(path).expect("readable"));
        }
    }
    let golden = std::fs::read_dir(root().join(name)).expect("golden files").count();
    assert_eq!(golden, names.len(), "{name}: a file is not written any more");
}

fn copy_golden(name: &str, to: &Path) {
    std::fs::create_dir_all(to).expect("writable");
    for file in std::fs::read_dir(root().join(name)).expect("golden files").flatten() {
        let name = format!("{name}/{}", file.file_name().to_str().expect("text"));
        let to = to.join(file.file_name());
        if file.path().is_dir() {
            copy_golden(&name, &to);
        } else {
            std::fs::copy(file.path(), to).expect("writable");
        }
    }
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
        Message::Configure { version: 4, values: vec![(text("agent.interval"), text("2s"))] },
        Message::Configured {
            running: 4,
            proven: true,
            refused: 3,
            why: text("because"),
            locked: text("agent.spool"),
            digest: 5,
        },
        Message::Ask { id: 6, what: Question::Top },
        Message::Answer { id: 6, good: true, text: text("an answer") },
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
const ALL: TimeRange = TimeRange { start_ms: 0, end_ms: i64::MAX };
const LIMITS: Limits = Limits { series_max: 100, samples_max: 100_000 };
const SEALED: i64 = 600;
const ROWS: i64 = 630;
