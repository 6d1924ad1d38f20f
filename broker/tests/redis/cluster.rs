//! A Cluster of three primaries and three replicas: one is killed, slots move by hand.

use crate::support::{
    Server, counts, dir, drive, equal_local, fill, free_port, mirror, now, open, query, until,
    whole_hour_ms,
};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

struct Cluster {
    nodes: Vec<Server>,
    files: PathBuf,
}

impl Cluster {
    fn start(name: &str) -> Self {
        let files = dir(&format!("{name}-nodes"));
        std::fs::create_dir_all(&files).unwrap();
        let start = |n: usize| {
            let (bus, file) = (free_port().to_string(), format!("nodes-{n}.conf"));
            let args = ["--cluster-enabled", "yes", "--cluster-config-file", &file];
            let more = ["--cluster-port", &bus, "--cluster-node-timeout", "1500"];
            let dir = ["--dir", files.to_str().unwrap()];
            // A replica that has not heard of its primary for long may stand all the same.
            let any = ["--cluster-replica-validity-factor", "0"];
            let server = Server::start(free_port(), &[&args[..], &more, &dir, &any].concat());
            (server, bus)
        };
        let nodes: Vec<(Server, String)> = (0..6).map(start).collect();
        for (n, (node, _)) in nodes.iter().enumerate() {
            node.tell(&["CLUSTER", "SET-CONFIG-EPOCH", &(n + 1).to_string()]);
        }
        for (node, bus) in &nodes[1..] {
            let port = node.port.to_string();
            nodes[0].0.tell(&["CLUSTER", "MEET", "127.0.0.1", &port, bus]);
        }
        for (n, range) in [["0", "5460"], ["5461", "10922"], ["10923", "16383"]].iter().enumerate()
        {
            nodes[n].0.tell(&["CLUSTER", "ADDSLOTSRANGE", range[0], range[1]]);
        }
        let cluster = Self { nodes: nodes.into_iter().map(|(node, _)| node).collect(), files };
        let ids: Vec<String> = cluster.nodes.iter().map(|n| n.say(&["CLUSTER", "MYID"])).collect();
        let told = |server: &Server, what: &str| server.say(&["CLUSTER", "INFO"]).contains(what);
        let all = |what: &str| cluster.nodes.iter().all(|node| told(node, what));
        until("six nodes", || all("cluster_known_nodes:6"));
        for n in 3..6 {
            until("the replica's primary", || {
                cluster.nodes[n].try_tell(&["CLUSTER", "REPLICATE", &ids[n - 3]])
            });
        }
        until("the Cluster", || all("cluster_state:ok"));
        until("the replicas", || {
            let up = |node: &Server| node.info("replication").contains("master_link_status:up");
            cluster.nodes[3..].iter().all(up)
        });
        cluster
    }

    fn url(&self) -> String {
        let nodes = self.nodes.iter().map(|node| format!("127.0.0.1:{}", node.port));
        format!("redis+cluster://{}", nodes.collect::<Vec<_>>().join(","))
    }

    fn primaries(&self) -> impl Iterator<Item = &Server> {
        self.nodes.iter().filter(|node| node.info("replication").contains("role:master"))
    }

    fn blocks(&self) -> BTreeMap<String, Vec<u8>> {
        let mut all = BTreeMap::new();
        for (key, block) in self.primaries().flat_map(Server::blocks) {
            assert!(all.insert(key, block).is_none(), "on two nodes");
        }
        all
    }

    /// How often all nodes said so.
    fn said(&self, error: &str) -> u64 {
        let of = |node: &Server| {
            let text = node.info("errorstats");
            let line =
                text.lines().find_map(|l| l.strip_prefix(&format!("errorstat_{error}:count=")));
            line.and_then(|count| count.trim().parse::<u64>().ok()).unwrap_or(0)
        };
        self.nodes.iter().map(of).sum()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.nodes.clear();
        drop(std::fs::remove_dir_all(&self.files));
    }
}

#[test]
fn a_cluster_loses_a_primary_and_no_row() {
    let (dir, found, base) = (dir("cluster"), dir("cluster-found"), whole_hour_ms());
    let mut cluster = Cluster::start("cluster");
    let (store, mut writer) = open(&dir, base);
    // One node is enough to find the others, and it may be the one that dies.
    let mut mirror = mirror(&store, &format!("redis://127.0.0.1:{}", cluster.nodes[0].port), base);
    fill(&mut writer, base);
    drive(&mut mirror, base);
    let first = cluster.blocks();
    assert_eq!(first.len(), 20);
    let with_blocks = cluster.primaries().filter(|node| !node.blocks().is_empty()).count();
    assert_eq!(with_blocks, 3, "shards are spread");

    drop(cluster.nodes.remove(0));
    let begin = now();
    fill(&mut writer, base + 600_000);
    assert!(begin.elapsed() < Duration::from_secs(1), "ingest waits for nobody");
    drive(&mut mirror, base + 600_000);
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
    let blocks = cluster.blocks();
    assert_eq!(blocks.len(), 40, "{:?}", counts(&mirror));
    equal_local(&dir, &blocks);

    // A store without a past reads all of it, by way of those that are left.
    let later = base + 600_000;
    let (other, _writer) = open(&found, later);
    let mut reader = crate::support::mirror(&other, &cluster.url(), later);
    until("a first look", || {
        reader.pass(later);
        counts(&reader).connected
    });
    assert_eq!(query(&other, "x[2h]", later), (20 * 120, vec![]), "each row once");
    drop((writer, store));
    for dir in [dir, found] {
        std::fs::remove_dir_all(dir).unwrap();
    }
}

/// A slot on its way from one node to another.
struct Move<'a> {
    slot: String,
    from: &'a Server,
    to: &'a Server,
}

impl<'a> Move<'a> {
    /// Of the slot of some block's index, which is on `from` now.
    fn begin(from: &'a Server, to: &'a Server) -> Self {
        let key = from.blocks().into_keys().next().unwrap();
        let index = key.split('}').next().unwrap().to_owned() + "}";
        let slot = from.say(&["CLUSTER", "KEYSLOT", &index]);
        let moving = Self { slot, from, to };
        let id = |of: &Server| of.say(&["CLUSTER", "MYID"]);
        to.tell(&["CLUSTER", "SETSLOT", &moving.slot, "IMPORTING", &id(from)]);
        from.tell(&["CLUSTER", "SETSLOT", &moving.slot, "MIGRATING", &id(to)]);
        moving
    }

    /// Some of its keys go over.
    fn carry(&self, wanted: impl Fn(&str) -> bool) -> usize {
        let mut redis = self.from.connect();
        let keys: Vec<String> = redis::cmd("CLUSTER")
            .arg(&["GETKEYSINSLOT", &self.slot, "1000"])
            .query(&mut redis)
            .unwrap();
        let keys: Vec<&String> = keys.iter().filter(|key| wanted(key)).collect();
        let port = self.to.port.to_string();
        let mut cmd = redis::cmd("MIGRATE");
        cmd.arg(&["127.0.0.1", &port, "", "0", "5000", "KEYS"]).arg(&keys);
        cmd.exec(&mut redis).unwrap();
        keys.len()
    }

    fn finish(&self) {
        self.carry(|_| true);
        let id = self.to.say(&["CLUSTER", "MYID"]);
        for node in [self.to, self.from] {
            node.tell(&["CLUSTER", "SETSLOT", &self.slot, "NODE", &id]);
        }
    }
}

#[test]
fn slots_move_under_reads_and_writes() {
    let (dir, found, base) = (dir("moves"), dir("moves-found"), whole_hour_ms());
    let cluster = Cluster::start("moves");
    let (store, mut writer) = open(&dir, base);
    let mut mirror = mirror(&store, &cluster.url(), base);
    fill(&mut writer, base);
    drive(&mut mirror, base);
    let (other, _writer) = open(&found, base + 1);
    let mut reader = crate::support::mirror(&other, &cluster.url(), base + 1);
    reader.pass(base + 1);
    assert!(counts(&reader).connected);
    drop(reader);

    // Half of a slot is on its way: its blocks are asked for where they went.
    let moving = Move::begin(&cluster.nodes[0], &cluster.nodes[1]);
    assert!(0 < moving.carry(|key| key.starts_with("monitor:metrics:")));
    assert_eq!((cluster.said("ASK"), query(&other, "x[2h]", base)), (0, (20 * 60, vec![])));
    assert!(0 < cluster.said("ASK"), "the reader was sent on");

    // What is written there meanwhile waits for the end of the move, and nothing else is harmed.
    fill(&mut writer, base + 600_000);
    mirror.pass(base + 600_000);
    moving.finish();
    drive(&mut mirror, base + 600_000);
    assert_eq!(cluster.blocks().len(), 40);

    // A slot that has moved between two passes: the link follows.
    let (before, passes) = (cluster.said("MOVED"), counts(&mirror).failures);
    Move::begin(&cluster.nodes[2], &cluster.nodes[1]).finish();
    fill(&mut writer, base + 1_200_000);
    drive(&mut mirror, base + 1_200_000);
    assert_eq!(counts(&mirror).failures, passes, "no pass failed by it");
    assert!(before < cluster.said("MOVED"), "the writer was sent on");
    let blocks = cluster.blocks();
    assert_eq!(blocks.len(), 60);
    equal_local(&dir, &blocks);
    drop((writer, store));
    for dir in [dir, found] {
        std::fs::remove_dir_all(dir).unwrap();
    }
}
