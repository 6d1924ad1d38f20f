//! One life of one host's agent: sealer, ring, uplink and link, without its threads.

use super::ledger::{Id, Ledger, Sent};
use bytes::Bytes;
use hugepage_config::{Region, Want};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;
use strobe_agent::config::{Config, KEYS};
use strobe_agent::managed::{Act, Managed, Pulse, Pushed};
use strobe_agent::ring::{Reader as Ring, Ring as Ends};
use strobe_agent::sampler::{SectionRow, Tick};
use strobe_agent::schemas::Table;
use strobe_agent::sealer::Sealer;
use strobe_agent::spool::{Spool, SpoolConfig};
use strobe_agent::uplink::{Uplink, UplinkConfig};
use strobe_wire::frame::{self, FrameKind, Header, Row};
use strobe_wire::ids::{BootId, HostId};
use strobe_wire::limits::FRAME_BYTES_MAX;
use strobe_wire::link::Link;
use strobe_wire::message::Hello;
use strobe_wire::schema::{Column, Kind, Labels, Schema};
use strobe_wire::settings::Settings;

/// A life.
pub(crate) struct Agent {
    pub(crate) host: HostId,
    pub(crate) boot: BootId,
    pub(crate) address: SocketAddr,
    pub(crate) link: Link,
    /// The brokers it knows, kept for its next life.
    pub(crate) brokers: Vec<String>,
    /// The configuration that proved itself, likewise.
    pub(crate) kept: Pushed,
    managed: Managed,
    hello: Hello,
    ticks: u64,
    /// It takes over a version without its last value.
    pub(crate) halves: bool,
    uplink: Uplink,
    sealer: Sealer,
    ring: Ring,
    /// Some have one.
    spool: Option<Spool>,
    table: Table,
    schemas: Vec<Arc<Schema>>,
}

impl Agent {
    pub(crate) fn new(
        (host, boot): (HostId, BootId),
        address: SocketAddr,
        link: Link,
        (brokers, kept): (Vec<String>, Pushed),
        now: Instant,
    ) -> Self {
        let region = Region::map(SLOTS * FRAME_BYTES_MAX, Want::Plain).expect("memory");
        let Ends { writer, reader } = Ends::new(SLOTS, region).expect("a ring");
        let (managed, config) = Managed::new(own(), kept.clone());
        let hello = Hello {
            labels: config.labels.0,
            host: host.0,
            boot: boot.0,
            instance: instance(host),
            job: "node".to_owned(),
            interval_ms: 250,
            ..Hello::default()
        };
        let seed = u64::try_from(host.0 << 16 | boot.0).expect("small numbers");
        let config = UplinkConfig { brokers: brokers.clone(), hello: hello.clone(), seed };
        let mut uplink = Uplink::new(config, now);
        uplink.stands(managed.standing());
        let table = Table::new();
        let schemas = schemas();
        for schema in &schemas {
            table.publish(schema);
        }
        Self {
            host,
            boot,
            address,
            link,
            brokers,
            kept,
            managed,
            hello,
            ticks: 0,
            halves: false,
            uplink,
            sealer: Sealer::new(host, boot, writer),
            ring: reader,
            spool: None,
            table,
            schemas,
        }
    }

    /// From now on it has a spool; without a disk where `dir` cannot be made.
    pub(crate) fn set_spool(&mut self, dir: PathBuf) {
        let config = SpoolConfig { dir, disk_bytes_max: 64 << 20, memory_bytes_max: 1 << 20 };
        self.spool = Some(Spool::open(config, (self.host, self.boot), Arc::default()));
    }

    pub(crate) fn drive(&mut self, now: Instant) {
        self.link.on_timeout(now);
        if let Some(spool) = &mut self.spool {
            self.uplink.spill(now, &mut self.link, &mut self.ring, spool, &self.table);
        }
        self.uplink.on_timeout(now, &mut self.link, &mut self.ring);
        if let Some(broker) = self.uplink.wants(now) {
            let at = broker.parse().map_err(|_| format!("{broker} is no address"));
            self.uplink.dial(now, &mut self.link, at);
        }
        while let Some(event) = self.link.poll() {
            self.uplink.told(now, &event, &mut self.link, &mut self.ring);
        }
        self.manage(now);
        self.uplink.pump(now, &mut self.link, &mut self.ring, &self.table);
        if let Some(spool) = &mut self.spool {
            self.uplink.replay(now, &mut self.link, spool, &self.table);
        }
        self.brokers = self.uplink.brokers().unwrap_or_else(|| std::mem::take(&mut self.brokers));
    }

    /// Whom it speaks to, or did.
    pub(crate) fn broker(&self) -> String {
        self.uplink.status().broker
    }

    pub(crate) fn timeout(&self) -> Option<Instant> {
        let managed = self.managed.timeout();
        [self.link.timeout(), self.uplink.timeout(), managed].into_iter().flatten().min()
    }

    /// What its broker wants it to run.
    fn manage(&mut self, now: Instant) {
        let status = self.uplink.status();
        let pulse = Pulse {
            streaming: status.streaming,
            ticks: self.ticks,
            acknowledged_seq: status.acknowledged_seq,
            cost_ns: 0,
        };
        if let Some(mut pushed) = self.uplink.pushed() {
            if self.halves {
                pushed.values.pop();
            }
            self.managed.offered(now, pushed, pulse);
        }
        self.managed.on_timeout(now, pulse);
        while let Some(act) = self.managed.poll() {
            match act {
                Act::Run(config) => {
                    self.hello.labels = config.labels.0.clone();
                    let (hello, link) = (self.hello.clone(), &mut self.link);
                    self.uplink.introduce(now, hello, link, &mut self.ring);
                }
                Act::Keep(kept) => self.kept = kept,
                Act::Tell(standing) => self.uplink.stands(standing),
            }
        }
    }

    /// The version that it runs.
    pub(crate) fn running(&self) -> &Pushed {
        self.managed.running()
    }

    /// Who it says it is.
    pub(crate) fn hello(&self) -> &Hello {
        &self.hello
    }

    /// Whether it tries a version.
    pub(crate) fn is_proving(&self) -> bool {
        self.managed.is_proving()
    }

    /// The last number up to which it knows all to be stored.
    pub(crate) fn acknowledged(&self) -> u64 {
        let spooled = self.spool.as_ref().and_then(Spool::mine).map(|(first, _)| first - 1);
        self.newest_acknowledged().min(spooled.unwrap_or(u64::MAX))
    }

    /// The newest that it knows to be stored.
    pub(crate) fn newest_acknowledged(&self) -> u64 {
        let status = self.uplink.status();
        assert_eq!(status.unsendable, 0, "all frames can be sent");
        // A late word of an earlier life may be refused so, to nobody's ears.
        let told = status.last_error.contains("as another agent process");
        assert!(!told, "a restart is no fork: {}", status.last_error);
        status.acknowledged_seq
    }

    /// Whether a broker takes its frames.
    pub(crate) fn is_streaming(&self) -> bool {
        self.uplink.status().streaming
    }

    /// Whether nothing waits in its spool.
    pub(crate) fn is_drained(&self) -> bool {
        self.spool.as_ref().is_none_or(Spool::is_empty)
    }

    /// The last number given.
    pub(crate) fn seq(&self) -> u64 {
        self.sealer.seq().0
    }

    /// A row of each section; `stray` if its time is out of bounds.
    pub(crate) fn sample(&mut self, tick: Tick, stray: bool, ledger: &mut Ledger) {
        self.ticks += 1;
        self.told(ledger, None, |sealer| sealer.begin(tick));
        for index in 0..self.schemas.len() {
            let schema = Arc::clone(&self.schemas[index]);
            let values = ledger.values(&schema, index);
            let valid = [0xff >> (8 - values.len())];
            let row = SectionRow {
                schema: &schema,
                id: schema.id(),
                values: &values,
                valid: &valid,
                scores: &[],
            };
            let said = (tick, &schema, values.as_slice(), stray);
            self.told(ledger, Some(said), |sealer| sealer.row(tick, &row));
        }
    }

    /// Only what was lost is told.
    pub(crate) fn settle(&mut self, tick: Tick, ledger: &mut Ledger) {
        self.told(ledger, None, |sealer| sealer.begin(tick));
    }

    /// Lets the sealer do something and tells the ledger which numbers it gave to what.
    fn told(
        &mut self,
        ledger: &mut Ledger,
        row: Option<(Tick, &Arc<Schema>, &[u64], bool)>,
        act: impl FnOnce(&mut Sealer),
    ) {
        let (seq, lost) = (self.sealer.seq().0, self.sealer.lost());
        act(&mut self.sealer);
        let last = self.sealer.seq().0;
        let was_lost = lost < self.sealer.lost();
        for seq in seq + 1..=last {
            let id = Id { host: self.host, boot: self.boot, seq };
            let sent = match row {
                _ if was_lost && seq == last => Sent::Lost,
                Some((tick, schema, values, stray)) if seq == last => {
                    let bytes = self.sealed(tick, schema, values, seq);
                    Sent::Row { bytes, schema: Arc::clone(schema), stray }
                }
                _ => Sent::Words,
            };
            ledger.sent.insert(id, sent);
        }
    }

    /// The frame as it must be.
    fn sealed(&self, tick: Tick, schema: &Schema, values: &[u64], seq: u64) -> Bytes {
        let header = Header {
            kind: FrameKind::Row,
            host: self.host,
            boot: self.boot,
            seq: strobe_wire::ids::Seq(seq),
            wall_ns: tick.wall_ns,
            boottime_ns: tick.boottime_ns,
            schema: schema.id(),
        };
        let mut out = vec![0; FRAME_BYTES_MAX];
        let valid = [0xff >> (8 - values.len())];
        let length =
            frame::seal_row(&mut out, &header, &Row { values, valid: &valid, scores: &[] });
        out.truncate(length.expect("it fits"));
        Bytes::from(out)
    }
}

/// A host's own configuration.
fn own() -> Config {
    let interval = ["--interval".to_owned(), "250ms".to_owned()];
    let settings = Settings::load(KEYS, None, &|_| None, &interval).expect("good settings");
    Config::new(&settings, &|_| Some("/nowhere".to_owned())).expect("good settings")
}

/// The `instance` of a host.
pub(crate) fn instance(host: HostId) -> String {
    format!("host-{}", host.0)
}

/// Two sections: every kind of column, and one that is alone.
fn schemas() -> Vec<Arc<Schema>> {
    let column =
        |name: &str, kind| Column { name: name.to_owned(), labels: Labels::default(), kind };
    let mixed = vec![
        column("sim_counter", Kind::Counter { scale: 0 }),
        column("sim_gauge", Kind::Gauge { scale: 2 }),
        column("sim_float", Kind::Float),
    ];
    let alone = vec![column("sim_alone", Kind::Counter { scale: 0 })];
    [("mixed", mixed), ("alone", alone)]
        .map(|(section, columns)| Arc::new(Schema { section: section.to_owned(), columns }))
        .to_vec()
}

/// Few, so that a partition fills the ring.
const SLOTS: usize = 64;
