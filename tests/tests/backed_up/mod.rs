//! Backups under load: nothing that was acknowledged before one began is missing in what is restored of it.

use crate::shared::redis::Server;
use crate::support::{Agents, Cluster};
use std::collections::BTreeMap;
use std::path::Path;
use strobe_tests::{Folder, run, wait};

/// A broker by itself, with agents that go on: its disk is lost, a backup takes its place, and the agents go on
/// with it. A backup that changed is refused, and so is a directory that something is in.
#[test]
fn a_broker_comes_back_from_its_backup() {
    let mut cluster = Cluster::alone("backup");
    let agents = Agents::start(&cluster, 4);
    agents.wait_until_all_are_heard(30);
    let folder = Folder::new("backup-of-one");
    let (to, dir) = (folder.path().join("one"), cluster.dir(0));
    let to = to.to_str().expect("text");
    let mut acknowledged = BTreeMap::new();
    let file = folder.path().join("fleet.toml");
    std::fs::write(&file, "[agent]\ninterval = \"1s\"\n").expect("writable");
    let file = file.to_str().expect("text");
    let apply = ["config", "apply", file, "--reason", "for the backup", "--now", "--dir", &dir];
    let (ok, said, why) = run("strobe", &apply);
    assert!(ok, "{said}{why}");
    let audit = audited(&dir);
    for round in 0..3 {
        agents.wait_until_all_are_heard(10);
        acknowledged = agents.acknowledged();
        let to = if round == 2 { to.to_owned() } else { format!("{to}-{round}") };
        let (ok, said, why) = run("strobe", &["backup", &to, "--dir", &dir]);
        assert!(ok && said.contains("private key"), "{said}{why}");
    }
    let (ok, said, why) = run("strobe", &["backup", "check", to]);
    assert!(ok && said.contains("a broker by itself, as it was at 20"), "{said}{why}");
    let again = run("strobe", &["backup", to, "--dir", &dir]);
    assert!(!again.0 && again.2.contains("is not empty"), "{again:?}");
    let private = std::fs::metadata(Path::new(to).join("ca/authority.pem")).expect("it is there");
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&private.permissions()) & 0o777, 0o600);
    agents.wait_until_all_are_heard(10);
    let why = run("strobe", &["restore", to, "--dir", &dir]);
    assert!(!why.0 && why.2.contains("is not empty"), "{why:?}");

    cluster.lose(0);
    let (ok, said, why) = run("strobe", &["restore", to, "--dir", &dir]);
    assert!(ok, "{said}{why}");
    for file in ["agreed.state", "audit.log"] {
        let read = |dir: &str| std::fs::read(Path::new(dir).join(file)).expect("it is there");
        let restored = read(&dir);
        assert!(!restored.is_empty() && restored == read(to), "{file} is as it was backed up");
    }
    // Before it starts: what agents no longer have is told as lost then, and counts as known.
    cluster.keep_logs();
    let (frames, _) = cluster.assert_stored(&acknowledged);
    assert!(0 < frames);
    cluster.restart(0);
    agents.wait_until_all_are_heard(30);
    let after = audited(&dir);
    let known = |line: &str| after.lines().any(|other| other == line);
    assert!(audit.contains("config") && audit.lines().all(known), "{audit}\n{after}");
    let (ok, said, why) = run("strobe", &["audit", "--verify", "--dir", &dir]);
    assert!(ok && said.contains("each as it was written"), "{said}{why}");
    let (ok, shown, why) = run("strobe", &["config", "history", "--dir", &dir]);
    assert!(ok && shown.contains("for the backup"), "what was agreed on is known: {shown}{why}");
    drop(agents.stop());
    cluster.stop();
    println!("{frames} frames were acknowledged before the backup, and none is lost");

    assert_damage_is_told(to, &folder.path().join("other"));
}

/// With `wal+redis` a backup is as new as Redis: what was acknowledged after it is taken from the log there, once,
/// though no agent has it any more.
#[test]
fn a_backup_and_redis_are_everything() {
    let redis = Server::start();
    let (store, class) = (format!("broker.store={}", redis.url()), "broker.durability=wal+redis");
    let more = ["--set", &store, "--set", class];
    let mut cluster = Cluster::alone_with("backup-redis", &more, |_| {});
    let agents = Agents::start(&cluster, 4);
    agents.wait_until_all_are_heard(30);
    let folder = Folder::new("backup-with-redis");
    let (to, dir) = (folder.path().join("one"), cluster.dir(0));
    let to = to.to_str().expect("text");
    let (ok, said, why) = run("strobe", &["backup", to, "--dir", &dir]);
    assert!(ok, "{said}{why}");
    let count = "count_over_time(node_load1{instance=~\"host.*\"}[1h])";
    let before = cluster.query(0, count).0;
    wait("there is more than in the backup", 20, || {
        let now = cluster.query(0, count).0;
        now.len() == 4 && now.iter().all(|(host, rows)| before.get(host).unwrap_or(&0) + 5 < *rows)
    });
    drop(agents.stop());
    let (all, _) = cluster.query(0, count);
    cluster.lose(0);
    let (ok, said, why) = run("strobe", &["restore", to, "--dir", &dir]);
    assert!(ok, "{said}{why}");
    cluster.restart(0);
    assert_eq!(cluster.query(0, count).0, all);
    // It has them, and is not in need of Redis for it.
    redis.tell(&["flushall"]);
    cluster.stop();
    cluster.restart(0);
    assert_eq!(cluster.query(0, count).0, all);
}

/// Whichever file of a backup changed, it is named, and nothing is restored.
fn assert_damage_is_told(to: &str, other: &Path) {
    let logs = std::fs::read_dir(Path::new(to).join("store/wal")).expect("a log").flatten();
    let log = logs.map(|log| log.path()).max_by_key(|path| path.metadata().map_or(0, |m| m.len()));
    let log = log.expect("one at least");
    for path in [log, Path::new(to).join("agreed.state"), Path::new(to).join("audit.log")] {
        let whole = std::fs::read(&path).expect("readable");
        let mut bytes = whole.clone();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&path, bytes).expect("writable");
        let what = path.strip_prefix(to).expect("below").display();
        let named = format!("{what} is not as it was ({0} bytes, {0} then)", whole.len());
        let why = run("strobe", &["backup", "check", to]);
        assert!(!why.0 && why.2.contains(&named), "{named:?} is told: {why:?}");
        let why = run("strobe", &["restore", to, "--dir", other.to_str().expect("text")]);
        assert!(!why.0 && why.2.contains(&named) && !other.exists(), "{why:?}");
        std::fs::write(&path, whole).expect("writable");
    }
    assert!(run("strobe", &["backup", "check", to]).0, "it is whole again");
}

/// The audit log, as it is told.
fn audited(dir: &str) -> String {
    let (ok, log, why) = run("strobe", &["audit", "--dir", dir]);
    assert!(ok, "{why}");
    log
}

/// All three brokers of a cluster are lost. One comes back from its backup as a cluster of its own that knows
/// what was agreed on (agents are let in), takes all shards, and others join it anew.
#[test]
fn a_cluster_comes_back_from_one_backup() {
    let mut cluster = Cluster::start("backups", 3);
    let agents = Agents::start(&cluster, 3);
    agents.wait_until_all_are_heard(30);
    let folder = Folder::new("backup-of-three");
    let to = folder.path().join("of-two");
    let to = to.to_str().expect("text");
    let (ok, said, why) = run("strobe", &["backup", to, "--dir", &cluster.dir(1)]);
    assert!(ok, "{said}{why}");
    (0..3).for_each(|at| cluster.lose(at));
    let dir = cluster.dir(1);
    let (ok, said, why) = run("strobe", &["restore", to, "--dir", &dir]);
    assert!(ok && said.contains("broker 2 of cluster"), "{said}{why}");
    cluster.restart(1);
    wait("it leads alone and has all shards", 20, || {
        let status = cluster.status(1);
        status.leader == Some(2) && status.voters() == 1 && status.shards(2) == 256
    });
    agents.wait_until_all_are_heard(30);
    let hosts = cluster.get(1, "/api/strobe/v1/hosts", "");
    assert_eq!(hosts.as_array().expect("a list").len(), 3, "all are there: {hosts}");
    cluster.join_anew(0, 1);
    wait("another one joined", 30, || cluster.status(1).voters() == 2);
    agents.wait_until_all_are_heard(30);
    drop(agents);
}
