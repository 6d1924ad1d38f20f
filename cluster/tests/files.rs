//! Three brokers on real files: they agree, and what they agreed on is there in their next life.
//!
//! `cargo test --release -p strobe-cluster --test files -- --nocapture` says how many commands a second
//! that is, each synced by all three, on one thread and one disk.

use redb::Database;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use strobe_cluster::kinds::members::{self, Stage};
use strobe_cluster::kinds::{Command, hosts};
use strobe_cluster::{Config, Event, Identity, Node, Outcome, Output, Role, Store};

struct Three {
    now: Instant,
    nodes: Vec<Node>,
    mail: Vec<(u64, u64, Vec<u8>)>,
    applied: usize,
}

impl Three {
    fn open(dir: &Path, count: u64) -> Self {
        let open = |id| {
            let database = Database::create(dir.join(format!("{id}.redb"))).expect("it works");
            let store = Store::open(database).expect("it works");
            Node::new(store, Config::usual(id), now()).expect("it works")
        };
        let nodes = (1..=count).map(open).collect();
        Self { now: now(), nodes, mail: Vec::new(), applied: 0 }
    }

    /// Lets all that is on its way arrive.
    fn settle(&mut self) {
        loop {
            for node in &mut self.nodes {
                while let Some(output) = node.poll(self.now).expect("it works") {
                    match output {
                        Output::Send { to, bytes } => self.mail.push((node.id(), to, bytes)),
                        Output::Event(Event::Outcome(_, Outcome::Applied(_))) => self.applied += 1,
                        Output::Event(_) => {}
                    }
                }
            }
            if self.mail.is_empty() {
                return;
            }
            // As a loop does it: all that came is handed in before anything is written.
            for (from, to, bytes) in std::mem::take(&mut self.mail) {
                if let Some(node) = self.nodes.iter_mut().find(|node| node.id() == to) {
                    node.step(self.now, from, &bytes).expect("it works");
                }
            }
        }
    }

    fn wait(&mut self, ms: u64) {
        for _ in 0..ms / 50 {
            self.now += Duration::from_millis(50);
            self.nodes.iter_mut().for_each(|node| node.on_timeout(self.now).expect("it works"));
            self.settle();
        }
    }

    fn propose(&mut self, command: Command) {
        let leader = self.nodes.iter_mut().find(|node| node.status().role == Role::Leader);
        let leader = leader.expect("one of them leads");
        leader.propose(self.now, command).expect("it works").expect("there is room");
    }
}

#[test]
fn what_three_agreed_on_is_there_in_their_next_life() {
    let dir = dir("files");
    let database = Database::create(dir.join("1.redb")).expect("it works");
    Store::init(&database, identity(1), "127.0.0.1:1", &strobe_cluster::State::default())
        .expect("it works");
    let again = Store::init(&database, identity(1), "again", &strobe_cluster::State::default());
    assert!(again.is_err(), "it belongs to a cluster");
    drop(database);
    let mut three = Three::open(&dir, 1);
    three.wait(2_000);
    for id in 2..=3 {
        three.propose(members::Change::add(&format!("127.0.0.1:{id}"), id));
        three.settle();
        let database = Database::create(dir.join(format!("{id}.redb"))).expect("it works");
        Store::join(&database, identity(id)).expect("it works");
        let store = Store::open(database).expect("it works");
        three.nodes.push(Node::new(store, Config::usual(id), three.now).expect("it works"));
        three.wait(10_000);
    }
    let stages = |node: &Node| {
        let members = members::members(node.state());
        members.iter().map(members::Member::stage).collect::<Vec<_>>()
    };
    assert_eq!(stages(&three.nodes[2]), [Stage::Voter; 3]);
    assert_eq!(three.nodes[0].status().voters.len(), 3);

    let host = |number| hosts::Change::put(number, "a host", "", 1);
    let (begun, before) = (now(), three.applied);
    for number in 1..=200 {
        three.propose(host(number));
        three.settle();
    }
    println!("{:.0} commands a second, one at a time", 200.0 / begun.elapsed().as_secs_f64());
    let begun = now();
    for round in 0..20 {
        (0..50).for_each(|number| three.propose(host(1000 + round * 50 + number)));
        three.settle();
    }
    println!("{:.0} commands a second, fifty at once", 1000.0 / begun.elapsed().as_secs_f64());
    assert_eq!(three.applied - before, 1200);
    three.wait(1_000);
    let hashes: Vec<u128> = three.nodes.iter().map(|node| node.state().hash()).collect();
    assert_eq!(hashes, [hashes[0]; 3]);
    drop(three);

    let mut three = Three::open(&dir, 3);
    three.wait(3_000);
    three.propose(host(5000));
    three.settle();
    three.wait(1_000);
    assert_eq!(hosts::hosts(three.nodes[2].state()), 1201);
    assert!(three.nodes.iter().all(|node| stages(node) == [Stage::Voter; 3]));
    std::fs::remove_dir_all(dir).expect("it works");
}

/// Who reads a store that is none is told so.
#[test]
fn an_empty_store_says_so() {
    let dir = dir("empty");
    let database = Database::create(dir.join("1.redb")).expect("it works");
    let why = Store::open(database).expect_err("it is empty").to_string();
    assert!(why.contains("`init` or `join`"), "{why}");
    std::fs::remove_dir_all(dir).expect("it works");
}

fn identity(id: u64) -> Identity {
    let disk = if id == 1 { 100 } else { id };
    Identity { cluster: 7, broker: id, disk }
}

fn dir(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("strobe-cluster-{name}-{}", std::process::id()));
    drop(std::fs::remove_dir_all(&dir));
    std::fs::create_dir_all(&dir).expect("it works");
    dir
}

#[expect(
    clippy::disallowed_methods,
    reason = "a beginning for the virtual clock, and a stop watch"
)]
fn now() -> Instant {
    Instant::now()
}
