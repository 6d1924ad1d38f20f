//! What a lost broker of a cluster has left in Redis, and who takes it in.

use crate::support::{
    Server, dir, free_port, mirror, open, query, uninterrupted, wall_ms, write_copied_rows,
};
use std::path::Path;
use std::sync::Arc;
use strobe_broker::store::redis::{Confirmed, Epochs, Log, RedisConfig, restore};
use strobe_broker::store::{Recovery, Store, Writer};

const SHARDS: usize = 256;

/// A broker's store and what sends its log.
struct One {
    store: Store,
    writer: Writer,
    log: Log,
    confirmed: Confirmed,
    epochs: Arc<Epochs>,
}

impl One {
    fn new(dir: &Path, server: &Server, broker: u64, now_ms: i64) -> Self {
        let (store, writer) = open(dir, now_ms);
        let (mirror, confirmed) = (mirror(&store, &server.url(), now_ms), Confirmed::default());
        let (log, epochs) = (mirror.log(confirmed.clone()), mirror.epochs());
        epochs.set_broker(broker);
        Self { store, writer, log, confirmed, epochs }
    }

    /// It hears who owns all shards, since which epoch.
    fn hears(&self, owner: u64, epoch: u64) {
        for shard in 0..SHARDS {
            self.epochs.set(shard, epoch);
            self.epochs.set_owner(shard, owner);
        }
    }

    fn is_acknowledged(&self) -> bool {
        self.confirmed.through() == self.writer.synced()
    }

    /// What its writer does: how many frames are new to it.
    fn take(&mut self, now_ms: i64) -> usize {
        for _ in 0..4 {
            self.log.pass(now_ms);
            let Some(taken) = self.confirmed.offered() else { continue };
            assert_eq!(self.writer.take_in(&taken).unwrap(), Vec::<String>::new());
            self.writer.commit(now_ms).unwrap();
            self.confirmed.took(Some(self.writer.synced()));
            // It says that it is there only when Redis has it under its own name.
            self.log.pass(now_ms);
            self.log.pass(now_ms);
            return taken.seen().iter().map(|seen| seen.ranges.len()).sum();
        }
        0
    }

    fn rows(&self, base: i64) -> usize {
        query(&self.store, "node_load1[5m]", base + 60_000).0
    }
}

/// The owner of before goes on without knowing of it: it is refused from the moment on at which the new one
/// reads, and what it still had follows when it knows.
#[test]
fn who_was_deposed_acknowledges_nothing_and_what_it_left_is_taken_in_once() {
    let server = Server::start(free_port(), &[]);
    let dirs = ["old", "new", "third"].map(|name| dir(&format!("takeover-{name}")));
    let base = wall_ms() - 60_000;
    let mut old = One::new(&dirs[0], &server, 1, base);
    old.hears(1, 5);
    write_copied_rows(&mut old.writer, 0..20, base);
    old.log.pass(base);
    assert!(old.is_acknowledged());

    let mut new = One::new(&dirs[1], &server, 2, base + 1);
    new.hears(1, 5);
    assert_eq!((new.take(base), new.take(base + 60_000)), (0, 0), "it goes on by itself");
    new.hears(2, 6);
    assert_eq!(new.take(base + 63_000), 0, "it may come back in a moment, with its disk");
    // The new one has read, and written nothing yet.
    new.log.pass(base + 80_000);
    write_copied_rows(&mut old.writer, 20..30, base);
    old.log.pass(base + 80_000);
    assert!(!old.is_acknowledged(), "what is written behind the reader is not taken in");
    assert_eq!((new.take(base + 80_000), new.rows(base)), (20, 20));
    assert_eq!(new.take(base + 90_000), 0, "once");
    old.hears(2, 6);
    old.log.pass(base + 92_000);
    assert!(old.is_acknowledged());
    assert_eq!((new.take(base + 100_000), new.rows(base)), (10, 30));
    drop(old);

    // Its log begins anew, as by a restart: what is marked is not taken again. It tells Redis of itself before
    // it knows who it is, and writes nothing more until it dies.
    let confirmed = Confirmed::default();
    confirmed.want(true);
    let again = mirror(&new.store, &server.url(), base);
    (new.log, new.epochs, new.confirmed) =
        (again.log(confirmed.clone()), again.epochs(), confirmed);
    new.log.pass(base + 105_000);
    new.epochs.set_broker(2);
    new.hears(2, 6);
    assert_eq!((new.take(base + 110_000), new.take(base + 130_000)), (0, 0));
    drop(new);

    // It dies as well: who goes on then takes in what both have left, and has each row once.
    let mut third = One::new(&dirs[2], &server, 3, base + 2);
    third.hears(3, 7);
    // A ring that is dropped may interrupt a call of its thread: Redis is asked again then.
    for later in 0..5 {
        third.take(base + 140_000 + 20_000 * later);
    }
    assert_eq!(third.rows(base), 30);
    drop(third);
    // A broker by itself with an empty directory leaves a cluster's log alone while that lives.
    let other = dir("takeover-other");
    for (now_ms, wanted) in [(base + 100_000, 0), (base + 300_000, 60)] {
        let (store, mut writer) = open(&other, base + 3);
        let mut recovery = Recovery::default();
        let config = RedisConfig::at(server.url());
        let records = uninterrupted(|| restore(&config, &mut writer, &mut recovery, now_ms));
        assert!(wanted <= records && (0 < wanted) == (0 < records), "{records} at {now_ms}");
        drop((writer, store));
    }
    for dir in dirs.iter().chain([&other]) {
        std::fs::remove_dir_all(dir).unwrap();
    }
}
