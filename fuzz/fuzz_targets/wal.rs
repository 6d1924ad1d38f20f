//! Exactly once, as a broker keeps it: agents send, and send again; groups are committed, or refused;
//! time passes and seals; windows are kept; the process dies, with the newest log whole or cut.
//!
//! A model knows which frames are durable. Ingest may take none of them a second time, may
//! acknowledge nothing else, and finds every one of them after a death; readers see each of their
//! rows, once, and nothing more; and on the disk a sealed row stands once.
#![no_main]

use arbitrary::Unstructured;
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use strobe_broker::ingest::{Ingest, Proof, SessionId, Verdict};
use strobe_broker::store::{Limits, Scratch, Store, StoreConfig, TimeRange, Writer, check};
use strobe_broker::window::Window;
use strobe_journal::disk::{Fate, watch};
use strobe_wire::frame::{FrameKind, Header, Payload, Row, open, seal_row};
use strobe_wire::ids::{BootId, HostId, Seq};
use strobe_wire::limits::FRAME_BYTES_MAX;
use strobe_wire::message::Hello;
use strobe_wire::schema::{Column, Kind, Labels, Schema};

#[derive(Debug)]
enum Op {
    /// The next frames of a host, behind a hole of so many numbers, which may be sent later; the
    /// first row is late by so many seconds.
    Send {
        host: u8,
        skip: u8,
        frames: u8,
        late_s: u8,
    },
    /// The agent comes back and begins so many frames before what it is told to.
    Again {
        host: u8,
        back: u8,
    },
    Commit,
    /// The group is not stored: its senders are told, and come again.
    Refuse,
    /// So many minutes go by.
    Pass {
        minutes: u8,
    },
    KeepWindows,
    Die,
    /// The process dies, and the newest log lost its end.
    Cut {
        bytes: u8,
    },
}

fuzz_target!(|data: &[u8]| {
    // Somebody at the door keeps the journal from trying out which commit is faster.
    watch(|_| Fate::Pass);
    let mut data = Unstructured::new(data);
    let mut world = World::new();
    for _ in 0..64 {
        let Ok(op) = op(&mut data) else { break };
        world.act(&op);
        if data.is_empty() {
            break;
        }
    }
    world.commit();
    world.pass(120);
    world.judge();
    world.die(0);
    world.judge();
});

/// A byte an operation and one for each number: a derived one would be twice as long, and the fuzzer
/// begins with short inputs.
fn op(data: &mut Unstructured<'_>) -> arbitrary::Result<Op> {
    let kind: u8 = data.arbitrary()?;
    let mut byte = || data.arbitrary::<u8>();
    Ok(match kind % 10 {
        0..=2 => Op::Send { host: byte()?, skip: byte()?, frames: byte()?, late_s: byte()? },
        3 => Op::Again { host: byte()?, back: byte()? },
        4 | 5 => Op::Commit,
        6 => Op::Refuse,
        7 => Op::Pass { minutes: byte()? },
        8 => Op::KeepWindows,
        _ if kind / 10 % 2 == 0 => Op::Die,
        _ => Op::Cut { bytes: byte()? },
    })
}

type Id = (usize, u64);

struct World {
    dir: PathBuf,
    broker: Option<(Store, Writer)>,
    ingest: Ingest,
    sessions: u64,
    agents: [Agent; HOSTS],
    schema: Schema,
    now_ms: i64,
    /// As the registry has them.
    kept: Vec<(HostId, BootId, Window)>,
    /// Handed to the store and not committed, in this order.
    pending: Vec<Id>,
    /// Durable, in this order, and whether it is sealed.
    stored: Vec<(Id, bool)>,
    /// Was in a log until somebody cut it off, or was given up.
    gone: BTreeSet<Id>,
    /// Rows in sealed blocks.
    sealed_rows: u64,
}

#[derive(Default)]
struct Agent {
    session: Option<SessionId>,
    /// Frame `n` has number `n + 1`: its bytes and its row's time.
    made: Vec<(Bytes, i64)>,
    /// The number that is sent next.
    next: u64,
}

impl World {
    fn new() -> Self {
        let name = format!("strobe-fuzz-wal-{}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        drop(fs::remove_dir_all(&dir));
        let column =
            |name: &str, kind| Column { name: name.to_owned(), labels: Labels::default(), kind };
        let columns = vec![column("a", Kind::Counter { scale: 0 }), column("b", Kind::Float)];
        let mut world = Self {
            dir,
            broker: None,
            ingest: Ingest::default(),
            sessions: 0,
            agents: Default::default(),
            schema: Schema { section: "x".to_owned(), columns },
            now_ms: T0_MS,
            kept: Vec::new(),
            pending: Vec::new(),
            stored: Vec::new(),
            gone: BTreeSet::new(),
            sealed_rows: 0,
        };
        world.open();
        world
    }

    fn act(&mut self, op: &Op) {
        match *op {
            Op::Send { host, skip, frames, late_s } => {
                let host = usize::from(host) % HOSTS;
                self.agents[host].next += if skip % 4 == 0 { u64::from(skip / 64) } else { 0 };
                for frame in 0..=frames % 8 {
                    self.send(host, if frame == 0 { late_s } else { 0 });
                }
            }
            Op::Again { host, back } => self.greet(usize::from(host) % HOSTS, u64::from(back % 8)),
            Op::Commit => self.commit(),
            Op::Refuse => self.refuse(),
            Op::Pass { minutes } => {
                self.commit();
                self.pass(i64::from(minutes % 32));
            }
            Op::KeepWindows => {
                self.commit();
                let windows = self.ingest.windows();
                self.kept = windows.map(|(host, boot, of)| (host, boot, of.clone())).collect();
                let writer = self.writer();
                writer.windows_kept(writer.wal_closed());
            }
            Op::Die => self.die(0),
            Op::Cut { bytes } => self.die(u64::from(bytes)),
        }
    }

    fn writer(&mut self) -> &mut Writer {
        &mut self.broker.as_mut().expect("it runs").1
    }

    /// Opens the store as a broker does, and every agent says hello.
    fn open(&mut self) {
        let config = StoreConfig {
            free_bytes_min: 0,
            wal_file_bytes: 1 << 10,
            ..StoreConfig::at(self.dir.clone())
        };
        let (store, mut writer, recovery) =
            Store::open(config, self.now_ms).expect("it always opens");
        writer.schema(&self.schema).expect("a good schema");
        for host in 0..HOSTS {
            let instance = format!("host-{host}");
            writer.host(id(host), "node", &instance, &Labels::default()).expect("a good name");
        }
        self.ingest = Ingest::default();
        for (host, boot, window) in &self.kept {
            self.ingest.restore(*host, *boot, window.clone());
        }
        for seen in &recovery.seen {
            for (first, last) in &seen.ranges {
                self.ingest.replay(seen.host, seen.boot, Seq(*first), Seq(*last));
            }
        }
        self.broker = Some((store, writer));
        (0..HOSTS).for_each(|host| self.greet(host, 0));
    }

    fn greet(&mut self, host: usize, back: u64) {
        self.sessions += 1;
        let session = SessionId(self.sessions);
        let proof = Proof { host: id(host), certificate: [1; 32] };
        let hello = Hello {
            host: id(host).0,
            boot: BOOT.0,
            instance: format!("host-{host}"),
            job: "node".to_owned(),
            interval_ms: 1_000,
            ..Hello::default()
        };
        let welcome = self.ingest.hello(session, proof, &hello, self.now_ms).expect("no fork");
        self.ingest.schema(session, &self.schema).expect("a good schema");
        self.acknowledged(host, welcome.stored.0);
        self.agents[host].session = Some(session);
        self.agents[host].next = (welcome.stored.0 + 1).saturating_sub(back).max(1);
    }

    /// Everything up to `through` has to be durable.
    fn acknowledged(&self, host: usize, through: u64) {
        let stored: BTreeSet<Id> = self.stored.iter().map(|(id, _)| *id).collect();
        for seq in 1..=through {
            let id = (host, seq);
            assert!(stored.contains(&id) || self.gone.contains(&id), "{id:?} is nowhere");
        }
    }

    fn send(&mut self, host: usize, late_s: u8) {
        let agent = &mut self.agents[host];
        let seq = agent.next;
        agent.next += 1;
        while (agent.made.len() as u64) < seq {
            self.now_ms += 1_000;
            let time_ms = self.now_ms - i64::from(late_s) * 1_000;
            let number = agent.made.len() as u64 + 1;
            agent.made.push((row(host, number, time_ms, &self.schema), time_ms));
        }
        let bytes = agent.made[seq as usize - 1].0.clone();
        let session = agent.session.expect("it said hello");
        let known = |list: &[(Id, bool)]| list.iter().any(|(id, _)| *id == (host, seq));
        let Ok(verdict) = self.ingest.frame(session, &bytes, self.now_ms) else {
            // Too many holes: the session is closed.
            return self.greet(host, 0);
        };
        self.give_up(host);
        let id = (host, seq);
        match verdict {
            Verdict::Store => {
                let again = known(&self.stored) && !self.gone.contains(&id);
                assert!(!again, "{id:?} is stored a second time");
                assert!(!self.pending.contains(&id), "{id:?} is taken a second time");
                self.pending.push(id);
                self.writer().frame(&bytes).expect("there is room");
            }
            Verdict::Duplicate => {
                let there = known(&self.stored) || self.gone.contains(&id);
                assert!(there || self.pending.contains(&id), "{id:?} was never stored");
            }
            Verdict::Lost => panic!("{id:?} is within its bounds"),
        }
    }

    /// What a session skips is told as lost, and need not be stored any more.
    fn give_up(&mut self, host: usize) {
        while let Some(bytes) = self.ingest.poll_loss() {
            let Payload::Loss(loss) = open(&bytes).expect("it was sealed").payload else {
                panic!("not a loss")
            };
            let numbers = loss.first.to_native()..=loss.last.to_native();
            self.gone.extend(numbers.map(|seq| (host, seq)));
        }
    }

    fn commit(&mut self) {
        let now_ms = self.now_ms;
        self.writer().commit(now_ms).expect("there is room");
        for id in self.pending.drain(..) {
            self.gone.remove(&id);
            self.stored.push((id, false));
        }
        for host in 0..HOSTS {
            let through = self.ingest.through(id(host), BOOT);
            self.acknowledged(host, through);
            self.ingest.stored(id(host), BOOT, through);
        }
    }

    fn refuse(&mut self) {
        self.writer().discard();
        for (host, seq) in std::mem::take(&mut self.pending) {
            self.ingest.forget(id(host), BOOT, seq, seq);
        }
        (0..HOSTS).for_each(|host| self.greet(host, 0));
    }

    /// Time goes by, and what is due is sealed.
    fn pass(&mut self, minutes: i64) {
        self.now_ms += minutes * 60_000;
        let now_ms = self.now_ms;
        let before = self.broker.as_ref().expect("it runs").0.counts().blocks_sealed;
        self.writer().settle(now_ms).expect("there is room");
        let after = self.broker.as_ref().expect("it runs").0.counts().blocks_sealed;
        if before == after {
            return;
        }
        // A window is sealed 30 s after its end.
        let cut_ms = (now_ms - 30_000).div_euclid(600_000) * 600_000;
        let mut rows = BTreeSet::new();
        for ((host, seq), sealed) in self.stored.iter_mut().filter(|(_, sealed)| !sealed) {
            let time_ms = self.agents[*host].made[*seq as usize - 1].1;
            if time_ms < cut_ms {
                *sealed = true;
                rows.insert((*host, time_ms));
            }
        }
        self.sealed_rows += rows.len() as u64;
        let report = check(&self.dir).expect("it can be read");
        // The end of a log that was cut is damage, and is known.
        let logs = self.dir.join("wal").display().to_string();
        assert!(report.damage.iter().all(|place| place.starts_with(&logs)), "{report:?}");
        let raw = report.files.iter().filter(|file| file.step_ms == 0);
        let samples: u64 = raw.map(|file| file.samples).sum();
        assert_eq!(samples, self.sealed_rows * COLUMNS, "rows in sealed blocks");
    }

    fn die(&mut self, cut: u64) {
        self.pending.clear();
        self.broker = None;
        if 0 < cut {
            let logs = self.dir.join("wal");
            let before = in_logs(&logs);
            shorten(&logs, cut);
            let left = in_logs(&logs);
            // Who is sealed is seen all the same, but the broker may not know its number.
            self.gone.extend(before.difference(&left));
            self.stored.retain(|(id, sealed)| *sealed || !self.gone.contains(id));
        }
        self.open();
        self.judge();
    }

    /// Readers see the rows that are durable, each once.
    fn judge(&self) {
        let mut wanted: BTreeMap<(usize, i64), Vec<u64>> = BTreeMap::new();
        for ((host, seq), _) in &self.stored {
            let time_ms = self.agents[*host].made[*seq as usize - 1].1;
            wanted.entry((*host, time_ms)).or_default().push(*seq);
        }
        let seen = visible(&self.broker.as_ref().expect("it runs").0);
        for (place, seq) in &seen {
            let fits = wanted.get(place).is_some_and(|of| of.contains(seq));
            assert!(fits, "{place:?} is {seq}, and only {:?} may be", wanted.get(place));
        }
        for place in wanted.keys() {
            assert!(seen.contains_key(place), "{place:?} is durable, and nobody sees it");
        }
    }
}

/// A row that holds its own number.
fn row(host: usize, seq: u64, time_ms: i64, schema: &Schema) -> Bytes {
    let header = Header {
        kind: FrameKind::Row,
        host: id(host),
        boot: BOOT,
        seq: Seq(seq),
        wall_ns: time_ms * 1_000_000,
        boottime_ns: seq,
        schema: schema.id(),
    };
    let mut slot = [0; FRAME_BYTES_MAX];
    let row = Row { values: &[seq, (seq as f64).to_bits()], valid: &[0b11], scores: &[] };
    let length = seal_row(&mut slot, &header, &row).expect("a row of two columns fits");
    Bytes::copy_from_slice(&slot[..length])
}

/// The number in the row of each host and time.
fn visible(store: &Store) -> BTreeMap<(usize, i64), u64> {
    let range = TimeRange { start_ms: 0, end_ms: i64::MAX / 2 };
    let limits = Limits { series_max: 1_000, samples_max: 1 << 30 };
    let (mut seen, mut again) = (BTreeMap::new(), BTreeMap::new());
    for part in store.select(&[], range, &limits).expect("there is no pattern") {
        let mut scratch = Scratch::new(&limits);
        let scanned = store.scan(&part, range, &mut scratch, &mut |labels, times, values| {
            let host = labels.value("instance").and_then(|name| name.strip_prefix("host-"));
            let host: usize = host.expect("each has it").parse().expect("a number");
            let counter = labels.value("__name__") == Some("a");
            for (&time, &value) in times.iter().zip(values) {
                let list = if counter { &mut seen } else { &mut again };
                let before = list.insert((host, time), value as u64);
                assert!(before.is_none(), "host {host} has two rows at {time}");
            }
            Ok(())
        });
        scanned.expect("what was stored can be read");
    }
    assert_eq!(seen, again, "a row is whole");
    seen
}

/// The newest log with records loses its end.
fn shorten(dir: &Path, cut: u64) {
    for path in logs(dir).iter().rev() {
        let length = fs::metadata(path).expect("it is there").len();
        if MAGIC_BYTES < length {
            let file = fs::OpenOptions::new().write(true).open(path).expect("it is there");
            let left = length.saturating_sub(cut).max(MAGIC_BYTES);
            return file.set_len(left).expect("a file can be cut");
        }
    }
}

/// The frames of all logs, up to what is torn. Written anew here, so that the journal's reader is not
/// its own witness.
fn in_logs(dir: &Path) -> BTreeSet<Id> {
    let mut found = BTreeSet::new();
    for path in logs(dir) {
        let log = fs::read(path).expect("it is there");
        let mut rest = log.get(MAGIC_BYTES as usize..).unwrap_or(&[]);
        while let Some((head, tail)) = rest.split_first_chunk::<8>() {
            let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
            let Some((record, tail)) = tail.split_at_checked(length) else { break };
            rest = tail;
            if let [FRAME, bytes @ ..] = record {
                let header = open(bytes).expect("it was sealed here").header;
                found.insert((header.host.0 as usize - 1, header.seq.0));
            }
        }
    }
    found
}

fn logs(dir: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(dir).expect("it is there").flatten().map(|entry| entry.path());
    let mut logs: Vec<_> =
        files.filter(|path| path.extension().is_some_and(|e| e == "log")).collect();
    logs.sort();
    logs
}

fn id(host: usize) -> HostId {
    HostId(host as u128 + 1)
}

const HOSTS: usize = 2;
const BOOT: BootId = BootId(1);
const COLUMNS: u64 = 2;
/// A window's start.
const T0_MS: i64 = 1_699_999_200_000;
const MAGIC_BYTES: u64 = 4;
/// A WAL record that holds a frame.
const FRAME: u8 = 3;
