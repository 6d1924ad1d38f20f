//! The broker without its threads: link, ingest and store, and the faults of its life.

use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::time::Instant;
use strobe_broker::ingest::{Ingest, SessionId, Verdict};
use strobe_broker::store::{Store, StoreConfig, Writer};
use strobe_wire::ids::{BootId, HostId, Seq};
use strobe_wire::link::{ConnId, Event, Link, StreamId};
use strobe_wire::message::{Incoming, Message, Reader, encode};
use strobe_wire::schema::Labels;

/// One life of a broker.
pub(crate) struct Shell {
    pub(crate) link: Link,
    pub(crate) store: Store,
    dir: PathBuf,
    ingest: Ingest,
    writer: Writer,
    hosts: BTreeMap<ConnId, HostId>,
    streams: BTreeMap<(ConnId, StreamId), Stream>,
    session_next: u64,
    touched: BTreeMap<(HostId, BootId), SessionId>,
    dirty: bool,
}

#[derive(Default)]
struct Stream {
    reader: Reader,
    out: VecDeque<Bytes>,
    session: Option<SessionId>,
}

/// What happens at a commit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fate {
    /// It succeeds and is acknowledged.
    Good,
    /// The broker dies before it.
    Before,
    /// The broker dies in it: this share of 1,000 of the bytes reached the disk.
    Torn(u64),
    /// The broker dies between it and the acknowledgement.
    After,
}

impl Shell {
    pub(crate) fn new(link: Link, dir: &Path, now_ms: i64) -> Self {
        let config = StoreConfig { free_bytes_min: 0, ..StoreConfig::at(dir.to_owned()) };
        let (store, writer, recovery) = Store::open(config, now_ms).expect("the store opens");
        let mut ingest = Ingest::default();
        for seen in &recovery.seen {
            for (first, last) in &seen.ranges {
                ingest.replay(seen.host, seen.boot, Seq(*first), Seq(*last));
            }
        }
        Self {
            link,
            store,
            dir: dir.to_owned(),
            ingest,
            writer,
            hosts: BTreeMap::new(),
            streams: BTreeMap::new(),
            session_next: 1,
            touched: BTreeMap::new(),
            dirty: false,
        }
    }

    /// Whether a commit is owed.
    pub(crate) fn is_dirty(&self) -> bool {
        self.dirty
    }

    /// Frames that came again and were not stored again.
    pub(crate) fn duplicates(&self) -> u64 {
        self.ingest.counts().duplicate
    }

    pub(crate) fn advance(&mut self, now: Instant, now_ms: i64) {
        while let Some(event) = self.link.poll() {
            match event {
                Event::Connected { conn, subject, .. } => {
                    self.hosts.insert(conn, subject.expect("agents have certificates").host);
                }
                Event::Opened { conn, stream } => {
                    self.streams.insert((conn, stream), Stream::default());
                }
                Event::Readable { conn, stream } => self.read((conn, stream), now, now_ms),
                Event::Writable { conn, stream } => self.flush((conn, stream)),
                Event::Room { .. } => {}
                Event::Closed { conn, .. } => self.forget(conn),
            }
        }
    }

    /// Commits and acknowledges, or dies on the way: `false`.
    pub(crate) fn commit(&mut self, now_ms: i64, fate: Fate) -> bool {
        if fate == Fate::Before {
            return false;
        }
        self.dirty = false;
        let before = self.newest_file();
        self.writer.commit(now_ms).expect("the disk is not full");
        if let Fate::Torn(share) = fate {
            let (path, length) = self.newest_file().expect("something was written");
            let synced = before.filter(|(p, _)| *p == path).map_or(0, |(_, length)| length);
            let file = std::fs::OpenOptions::new().write(true).open(&path).expect("the WAL");
            file.set_len(synced + (length - synced) * share / 1000).expect("the WAL is cut");
        }
        if fate != Fate::Good {
            return false;
        }
        for ((host, boot), session) in std::mem::take(&mut self.touched) {
            let seq = self.ingest.through(host, boot);
            self.ingest.stored(host, boot, seq);
            let place = self.streams.iter().find(|(_, s)| s.session == Some(session));
            let Some(place) = place.map(|(place, _)| *place) else { continue };
            self.say(place, &Message::Ack { boot: boot.0, seq });
        }
        true
    }

    fn newest_file(&self) -> Option<(PathBuf, u64)> {
        let files = std::fs::read_dir(self.dir.join("wal")).expect("the WAL").flatten();
        let logs = files.map(|f| f.path()).filter(|p| p.extension().is_some_and(|e| e == "log"));
        let path = logs.max()?;
        let length = path.metadata().expect("its length").len();
        Some((path, length))
    }

    fn read(&mut self, place: (ConnId, StreamId), now: Instant, now_ms: i64) {
        loop {
            let Some(stream) = self.streams.get_mut(&place) else { return };
            let received = self.link.recv(place.0, place.1, &mut stream.reader);
            while let Some(stream) = self.streams.get_mut(&place) {
                let Some(incoming) = stream.reader.pull().expect("agents speak well") else {
                    break;
                };
                if let Err(why) = self.hear(place, incoming, now_ms) {
                    self.link.close(now, place.0, &why);
                    self.forget(place.0);
                }
            }
            if received != Ok(strobe_wire::link::Received::More) {
                return;
            }
        }
    }

    fn hear(
        &mut self,
        place: (ConnId, StreamId),
        incoming: Incoming,
        now_ms: i64,
    ) -> Result<(), String> {
        let session = self.streams.get(&place).and_then(|stream| stream.session);
        let message = match incoming {
            Incoming::Frame(bytes) => {
                let session = session.ok_or("a frame before the hello")?;
                let verdict = self.ingest.frame(session, &bytes, now_ms);
                let verdict = verdict.map_err(|why| why.to_string())?;
                let whose = self.ingest.whose(session).ok_or("no session")?;
                self.touched.insert(whose, session);
                self.dirty = true;
                if verdict == Verdict::Store {
                    self.writer.frame(&bytes).expect("ingest let it through");
                }
                return Ok(());
            }
            Incoming::Control(message) => *message,
        };
        match message {
            Message::Hello(hello) => {
                let session = SessionId(self.session_next);
                let host = *self.hosts.get(&place.0).ok_or("no certificate")?;
                let welcomed = self.ingest.hello(session, host, &hello, now_ms);
                let welcomed = welcomed.map_err(|why| why.to_string())?;
                self.session_next += 1;
                let labels = Labels::new(hello.labels.clone());
                self.writer.host(host, &hello.job, &hello.instance, &labels).expect("a host");
                self.streams.get_mut(&place).ok_or("no stream")?.session = Some(session);
                let version = String::new();
                self.say(place, &Message::Welcome { stored_seq: welcomed.stored.0, version });
                Ok(())
            }
            Message::Schema(schema) => {
                let session = session.ok_or("a schema before the hello")?;
                self.ingest.schema(session, &schema).map_err(|why| why.to_string())?;
                self.writer.schema(&schema).expect("ingest let it through");
                Ok(())
            }
            other => Err(format!("an agent does not say {other:?}")),
        }
    }

    fn say(&mut self, place: (ConnId, StreamId), message: &Message) {
        if let Some(stream) = self.streams.get_mut(&place) {
            stream.out.push_back(encode(message));
        }
        self.flush(place);
    }

    fn flush(&mut self, place: (ConnId, StreamId)) {
        let Some(stream) = self.streams.get_mut(&place) else { return };
        // A connection that is over says so by an event.
        let _ = self.link.send(place.0, place.1, stream.out.make_contiguous());
        stream.out.retain(|chunk| !chunk.is_empty());
    }

    fn forget(&mut self, conn: ConnId) {
        self.hosts.remove(&conn);
        let gone = self.streams.extract_if(.., |place, _| place.0 == conn);
        for session in gone.filter_map(|(_, stream)| stream.session) {
            self.ingest.close(session);
        }
    }
}
