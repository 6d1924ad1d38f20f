//! What a world is made of: machines, hosts, their disks and links.

use super::{DAY_END_NS, DISKS, HOSTS, RETENTION_MS, World};
use crate::agent::Agent;
use crate::clock::Clock;
use crate::dice::Die;
use crate::disk::Disk;
use crate::machine::{Host, Machine};
use crate::network::{agent_address, broker_address};
use crate::plant::Plant;
use crate::platter::{Platter, database};
use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::Instant;
use strobe_agent::managed::Pushed;
use strobe_broker::store::StoreConfig;
use strobe_cluster::Identity as Place;
use strobe_wire::ids::BootId;
use strobe_wire::link::{Link, LinkConfig, Side};
use strobe_wire::pki::Identity;

impl World<'_> {
    pub(super) fn add_machine(&mut self, id: u64) {
        let root = self.root.join(id.to_string());
        let lies = self.plant == Some(Plant::NoSync);
        let disk = Disk::new(&root, Die::new(self.plan.seed, 16 + id), lies);
        // Some seal early all the time, some only when it is time.
        let head_bytes_max = [2 << 10, 16 << 10, 1 << 20][self.luck.index(3)];
        let at = StoreConfig::at(root.join("state"));
        let mut config = StoreConfig { head_bytes_max, ..at };
        // Some keep raw samples for minutes only, some have little room: what is gone by that is
        // told from what is lost.
        match self.luck.index(4) + 4 * usize::from(self.is_plain()) {
            0 => config.raw_retention_ms = RETENTION_MS,
            1 => (config.bytes_max, config.wal_file_bytes) = (ROOM_BYTES, ROOM_BYTES / 8),
            _ => {}
        }
        let (rate, ahead) = (950 + self.luck.below(101), self.luck.below(100_000_000));
        let machine = Machine {
            clock: Clock::new(self.start, rate, ahead),
            disk,
            platter: Platter::new(),
            config,
            joined: false,
            broker: None,
            lives: 0,
            back_at: u64::MAX,
            stopped_until: 0,
            wake_at: u64::MAX,
            turned_at: 0,
            slow_until: 0,
            full_until: 0,
            low_until: 0,
            skewed_until: 0,
            restart_at: None,
            asked: VecDeque::new(),
        };
        self.machines.insert(id, machine);
    }

    /// Whether nothing is let go of for its age or room, so that limits may change.
    pub(super) fn is_plain(&self) -> bool {
        self.shared.is_some() || self.plan.seed % 3 == 2
    }

    pub(super) fn add_host(&mut self, number: u64) {
        let clock =
            Clock::new(self.start, 950 + self.luck.below(101), self.luck.below(100_000_000));
        let brokers = (1..=self.plan.brokers.min(2)).map(|id| broker_address(id).to_string());
        let kept = (brokers.collect(), Pushed::default());
        let agent = self.agent(number, 1, kept, clock.at(self.now));
        self.hosts.push(Host { agent, clock, wake_at: self.now, skewed_until: 0 });
    }

    /// A life of the agent of that host.
    pub(super) fn agent(
        &self,
        number: u64,
        life: u64,
        kept: (Vec<String>, Pushed),
        now: Instant,
    ) -> Agent {
        let index = usize::try_from(number - 1).expect("few hosts");
        let (host, boot) = (HOSTS[index], BootId(life.into()));
        let link = link(&self.keys.agents[index], Side::Agent, host.0 << 32, boot.0);
        let mut agent = Agent::new((host, boot), agent_address(number, life), link, kept, now);
        agent.halves = self.plant == Some(Plant::HalfApply);
        // Half of them keep what the ring cannot hold, in memory: the disks here are the brokers'.
        if self.plan.seed.is_multiple_of(2) {
            agent.set_spool(NOWHERE.into());
        }
        agent
    }

    /// A new cluster's first store, or that of a broker that was given a place in it.
    pub(super) fn make_store(&mut self, id: u64) {
        let Some(machine) = self.machines.get_mut(&id) else { return };
        let place = Place { cluster: CLUSTER, broker: id, disk: DISKS + id };
        let database = database(&machine.platter).expect("a new disk");
        let made = if id == 1 {
            let address = broker_address(1).to_string();
            strobe_cluster::Store::init(
                &database,
                place,
                &address,
                &strobe_cluster::State::default(),
            )
        } else {
            strobe_cluster::Store::join(&database, place)
        };
        made.expect("a new disk");
        machine.joined = true;
    }
}

/// In memory where that is possible: a sync costs nothing there.
pub(super) fn folder(seed: u64) -> PathBuf {
    let shared = PathBuf::from("/dev/shm");
    let root = if shared.is_dir() { shared } else { std::env::temp_dir() };
    let (pid, thread) = (std::process::id(), std::thread::current().id());
    let root = root.join(format!("strobe-simulation-{pid}-{thread:?}-{seed}"));
    let _ = std::fs::remove_dir_all(&root);
    std::fs::create_dir_all(&root).expect("a folder");
    root
}

pub(super) fn link(identity: &Identity, side: Side, who: u128, life: u128) -> Link {
    let mut seed = [7; 32];
    seed[..16].copy_from_slice(&who.to_le_bytes());
    seed[16..].copy_from_slice(&life.to_le_bytes());
    Link::new(&LinkConfig {
        identity: Some(identity.clone()),
        side,
        connections_max: 64,
        whole_datagrams: false,
        wall_s: u64::try_from(DAY_END_NS / 1_000_000_000).expect("positive"),
        seed: Some(seed),
        accept: None,
    })
    .expect("a link")
}

/// Where no directory can be made.
const NOWHERE: &str = "/dev/null/spool";
const CLUSTER: u128 = 0x5afe;
/// Less than a fleet of three says in a run.
const ROOM_BYTES: u64 = 24 << 10;
