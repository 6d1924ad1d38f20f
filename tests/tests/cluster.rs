//! Three brokers as one Strobe: real processes, real disks, real kills, and agents that must not notice.
//!
//! `cargo test --release -p strobe-tests --test cluster -- --nocapture` prints how long the agents' gaps
//! and the elections were, and how many changes a second the control plane takes.

mod backed_up;
mod shared;
#[expect(dead_code, reason = "what an upgrade goes through is a test of its own")]
mod support;

use std::collections::BTreeMap;
use std::time::Duration;
use strobe_broker::{Subscription, Update};
use strobe_tests::{Folder, pause, run, wait};
use strobe_wire::ids::HostId;
use strobe_wire::message::ApiRequest;
use strobe_wire::shard::capacity;
use support::network::Reach;
use support::{Agents, Cluster, now};

/// Whoever is killed, the leader or another one: agents go on at the others within seconds, and every
/// frame that was acknowledged is in a broker's log.
#[test]
fn agents_go_on_whichever_broker_is_killed() {
    let mut cluster = Cluster::start("kill", 3);
    let agents = Agents::start(&cluster, 9);
    agents.wait_until_all_are_heard(30);
    let (mut gaps, mut elections) = (Vec::new(), Vec::new());
    for round in 0..4 {
        let leader = cluster.leader();
        let victim = if round % 2 == 0 { leader } else { (leader + 1) % 3 };
        let watch = agents.watch(Duration::from_secs(9));
        cluster.keep_logs();
        let killed = now();
        cluster.kill(victim);
        if victim == leader {
            let elected = cluster.wait_for_another_leader(leader, killed);
            println!("broker {} was killed and led: another one led after {elected:?}", victim + 1);
            elections.push(elected);
        }
        let of_round = watch.join().expect("the watch ends");
        println!("broker {} was killed: agents' gaps {of_round:?}", victim + 1);
        gaps.extend(of_round);
        cluster.restart(victim);
        cluster.wait_until_balanced(60);
        agents.wait_until_all_are_heard(30);
    }
    gaps.sort();
    let worst = *gaps.last().expect("agents were watched");
    let middle = gaps[gaps.len() / 2];
    println!(
        "gaps of {} agents: median {middle:?}, worst {worst:?}; elections {elections:?}",
        gaps.len()
    );
    assert!(worst < GAP_MAX, "an agent was not taken: {gaps:?}");
    assert!(elections.iter().all(|took| *took < ELECTION_MAX), "{elections:?}");
    let acknowledged = agents.stop();
    cluster.stop();
    let (all, twice) = cluster.assert_stored(&acknowledged);
    println!("{all} frames were acknowledged and none is lost; {twice} are in two brokers' logs");
}

/// Whichever broker is asked, the answer is of all brokers' rows; of one that died the answer lacks what
/// only it had, and says so. What it had and others have too is counted once when it is back.
#[test]
fn any_broker_answers_for_all() {
    let mut cluster = Cluster::start("anywhere", 3);
    let agents = Agents::start(&cluster, 6);
    agents.wait_until_all_are_heard(30);
    let all: Vec<String> = (0..6).map(|number| format!("host{number}")).collect();
    let nothing = Vec::<String>::new();
    for at in 0..3 {
        let (found, warnings) = cluster.query(at, "count by (instance) (node_load1)");
        assert_eq!(
            (found.into_keys().collect::<Vec<_>>(), warnings),
            (all.clone(), nothing.clone())
        );
        let values = cluster.get(at, "/api/v1/label/instance/values", "");
        assert_eq!(values["data"], serde_json::json!(all));
        let series = cluster.get(at, "/api/v1/series", "match[]=node_load1");
        assert_eq!(series["data"].as_array().expect("a list").len(), 6);
        let hosts = cluster.get(at, "/api/strobe/v1/hosts", "");
        let hosts = hosts.as_array().expect("a list");
        assert!(hosts.len() == 6 && hosts.iter().all(|h| h["state"] == "fresh"), "{hosts:?}");
    }

    for at in 0..3 {
        let asked = run("strobe", &["burst", "host3", "--dir", &cluster.dir(at)]);
        // The host itself answers: it has none.
        let answered = !asked.0 && asked.2.contains("its flight recorder is off");
        assert!(answered, "a host is asked by way of any broker: {asked:?}");
    }
    let mut homes = Vec::new();
    wait("every agent is where it belongs", 10, || {
        homes = (0..3).map(|at| cluster.sessions(at)).collect::<Vec<usize>>();
        homes.iter().sum::<usize>() == 6
    });
    println!("agents of each broker: {homes:?}");
    cluster.keep_logs();
    cluster.kill(2);
    let begun = now();
    let (found, warnings) = cluster.query(0, "count by (instance) (node_load1)");
    println!("asked at once: {} hosts after {:?}, {warnings:?}", found.len(), begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(4), "a dead broker is not waited for");
    assert!(warnings.len() == 1 && warnings[0].contains("broker 3"), "{warnings:?}");
    assert_eq!(found.len(), homes[0] + homes[1], "the others' rows are there: {found:?}");
    agents.wait_until_all_are_heard(30);
    let (found, warnings) = cluster.query(1, "count by (instance) (node_load1)");
    assert_eq!(found.into_keys().collect::<Vec<_>>(), all, "they are taken by others");
    assert!(warnings.len() == 1 && warnings[0].contains("is not connected"), "{warnings:?}");

    cluster.restart(2);
    cluster.wait_until_balanced(60);
    agents.wait_until_all_are_heard(30);
    let acknowledged = agents.stop();
    let count = "count_over_time(node_load1[1h])";
    wait("every broker is connected to every other one", 20, || {
        (0..3).all(|at| cluster.query(at, count).1.is_empty())
    });
    let counted: Vec<_> = (0..3).map(|at| cluster.query(at, count).0).collect();
    let sums: Vec<_> =
        (0..3).map(|at| cluster.query(at, &format!("sum by (instance) ({count})")).0).collect();
    cluster.stop();
    let stored = cluster.moments("node_load1");
    assert_eq!(stored.len(), 6);
    assert_eq!(counted, [stored.clone(), stored.clone(), stored.clone()]);
    assert_eq!(sums, counted, "by the way of a fleet too");
    let (frames, twice) = cluster.assert_stored(&acknowledged);
    println!("{stored:?}: {frames} frames, {twice} in two brokers' logs");
}

/// A dashboard on any broker sees every host live, and goes on when another broker dies.
#[test]
fn a_dashboard_anywhere_sees_all() {
    let mut cluster = Cluster::start("live", 2);
    let (here, _folder) = cluster.join_here("live", &[]);
    let agents = Agents::start(&cluster, 6);
    agents.wait_until_all_are_heard(30);
    let dashboard = here.subscribe();
    pause(1000);
    let homes = [cluster.sessions(0), cluster.sessions(1)];
    println!("agents of the other brokers: {homes:?}");
    assert!(0 < homes[0] + homes[1]);
    let begun = now();
    let rows = watch(&dashboard, &agents.hosts(), 5);
    println!("rows of every host after {:?}: {rows:?}", begun.elapsed());
    for host in agents.hosts() {
        let path = "/api/strobe/v1/history".to_owned();
        let body = format!(
            r#"{{"host":"{host}","range_ms":60000,"pixels":100,"terms":[
                {{"metric":"node_load1","how":"value","agg":"max","by":null,"where":null}}]}}"#
        );
        let method = "POST".to_owned();
        let request = ApiRequest { method, path, body: body.into_bytes(), ..Default::default() };
        let answer = here.api(request);
        let text = String::from_utf8_lossy(&answer.body);
        assert!(answer.status == 200 && text.contains("null,"), "{host}: {text}");
        assert!(text.contains(r#""terms":[{"":["#), "{host} has a line: {text}");
    }
    let victim = usize::from(homes[0] < homes[1]);
    cluster.kill(victim);
    let begun = now();
    watch(&dashboard, &agents.hosts(), 12);
    println!("and after a broker with {} of them was killed: {:?}", homes[victim], begun.elapsed());
    drop(agents);
    here.stop();
}

/// Until so many seconds are over or five rows of each host came, one after the other.
fn watch(dashboard: &Subscription, hosts: &[HostId], seconds: u64) -> BTreeMap<HostId, usize> {
    let mut rows: BTreeMap<HostId, usize> = hosts.iter().map(|host| (*host, 0)).collect();
    let begun = now();
    while rows.values().any(|count| *count < 5) {
        assert!(begun.elapsed() < Duration::from_secs(seconds), "hosts are not seen: {rows:?}");
        if let Some(Update::Frame(bytes)) = dashboard.recv_timeout(Duration::from_millis(100)) {
            let frame = strobe_wire::frame::open(&bytes).expect("a frame");
            if let Some(count) = rows.get_mut(&frame.header.host)
                && frame.payload.columns().is_some()
            {
                *count += 1;
            }
        }
    }
    rows
}

/// A shard that is given to another broker takes its agents along: no frame is lost, none is in two logs.
#[test]
fn a_shard_moves_when_told() {
    let cluster = Cluster::start("move", 3);
    let agents = Agents::start(&cluster, 3);
    agents.wait_until_all_are_heard(30);
    let sessions = || -> Vec<usize> { (0..3).map(|at| cluster.sessions(at)).collect() };
    let watch = agents.watch(Duration::from_secs(9));
    let mut at = 3;
    for _ in 0..4 {
        // One that has its share already would have to give some away again; the first one never has.
        let status = cluster.status(1);
        let has_room = |to: &u64| status.shards(to + 1) + 3 <= capacity(3) as u64;
        let others = (0..3).filter(|to| *to != at && has_room(to));
        let Some(to) = others.min_by_key(|to| status.shards(to + 1)) else { break };
        at = to;
        for host in ["host0", "host1", "host2"] {
            let to = (at + 1).to_string();
            let args = ["cluster", "move", host, &to, "--dir", &cluster.dir(1)];
            let (ok, said, why) = run("strobe", &args);
            assert!(ok && said.contains(&format!("is broker {to}'s")), "{said}{why}");
        }
        let home = usize::try_from(at).expect("small");
        wait("they are there", 10, || sessions()[home] == 3);
        agents.wait_until_all_are_heard(10);
    }
    assert!(at < 3, "there was room for the first move");
    println!("agents' gaps: {:?}", watch.join().expect("the watch ends"));
    let why = run("strobe", &["cluster", "move", "300", "1", "--dir", &cluster.dir(0)]).2;
    assert!(why.contains("no shard's number (0 to 255)"), "{why}");
    let why = run("strobe", &["cluster", "move", "3", "9", "--dir", &cluster.dir(0)]).2;
    assert!(why.contains("no broker 9"), "{why}");
    let all = assert_all_is_stored_once(cluster, agents);
    println!("{all} frames were acknowledged, none is lost and none in two brokers' logs");
}

/// One `strobe up` becomes three brokers while rows come in: no gap, nothing lost, nothing twice, and what it
/// had before is what any of them answers.
#[test]
fn a_strobe_grows_under_load() {
    let mut cluster = Cluster::alone("grow");
    let agents = Agents::start(&cluster, 5);
    agents.wait_until_all_are_heard(30);
    let first = "min_over_time(timestamp(node_load1)[1h:1s])";
    let before = cluster.query(0, &format!("floor({first})")).0;
    assert_eq!(before.len(), 6, "{before:?}");
    let watch = agents.watch(Duration::from_secs(20));
    cluster.init();
    cluster.grow("grow");
    cluster.grow("grow");
    cluster.wait_until_balanced(60);
    agents.wait_until_all_are_heard(30);
    let gaps = watch.join().expect("the watch ends");
    println!("one became three: agents' gaps {gaps:?}");
    assert!(gaps.iter().all(|gap| *gap < GAP_MAX), "{gaps:?}");
    for at in 0..3 {
        let (mut after, warnings) = cluster.query(at, &format!("floor({first})"));
        assert_eq!(after.len(), 8, "those of the two that joined, too");
        after.retain(|host, _| before.contains_key(host));
        assert_eq!((after, warnings), (before.clone(), vec![]));
    }
    wait("the hosts of those that joined go on", 20, || {
        let fresh = cluster.query(0, "count by (instance) (node_load1 offset 1s)").0;
        let now = cluster.query(0, "sum by (instance) (count_over_time(node_load1[5s]))").0;
        fresh.len() == 8 && ["up2", "up3"].iter().all(|up| now.get(*up).is_some_and(|n| 3 < *n))
    });
    let all = assert_all_is_stored_once(cluster, agents);
    println!("{all} frames were acknowledged, none is lost and none in two brokers' logs");
}

/// The leader is cut off, from the others alone or from agents too, and comes back: another one leads,
/// nothing that anybody acknowledged is lost, and every row counts once.
#[test]
fn a_leader_that_is_cut_off_does_no_harm() {
    let cluster = Cluster::behind_relays("cut", 3);
    let agents = Agents::start(&cluster, 6);
    agents.wait_until_all_are_heard(30);
    for reach in [Reach::All, Reach::Others] {
        let leader = cluster.leader();
        let watch = agents.watch(Duration::from_secs(9));
        let begun = now();
        cluster.isolate(leader, reach);
        let elected = cluster.wait_for_another_leader(leader, begun);
        let other = (leader + 1) % 3;
        let (_, warnings) = cluster.query(other, "count by (instance) (node_load1)");
        println!("{reach:?} reached: another leader after {elected:?}; {warnings:?}");
        assert!(warnings.len() == 1 && warnings[0].contains(&format!("broker {}", leader + 1)));
        let gaps = watch.join().expect("the watch ends");
        println!("agents' gaps {gaps:?}");
        assert!(gaps.iter().all(|gap| *gap < CUT_MAX), "{gaps:?}");
        cluster.heal();
        cluster.wait_until_balanced(60);
        agents.wait_until_all_are_heard(30);
    }
    println!("{}", cluster.judge(agents));
}

/// An operator's mistakes are said, and what a drained broker had is with the others without a gap.
#[test]
fn operators_are_told() {
    let mut cluster = Cluster::start("operators", 3);
    let said = |outcome: (bool, String, String)| {
        assert!(!outcome.0, "it worked: {}", outcome.1);
        outcome.2
    };
    let dir = |at: usize| cluster.dir(at);
    let join = |at: usize, token: &str| {
        let args = ["cluster", "join", cluster.address(0), "--token", token, "--dir", &dir(at)];
        run("strobe", &args)
    };
    let token = cluster.join_token(2);
    let why = said(join(1, &token));
    assert!(why.contains("belongs to a cluster already"), "{why}");
    let other = support::Broker::start("operators-other", "127.0.0.1:0");
    let joined = |token: &str| {
        let other = other.dir();
        run("strobe", &["cluster", "join", cluster.address(0), "--token", token, "--dir", &other])
    };
    let (ok, agents_token, why) = run("strobe", &["token", "create", "--dir", &dir(1)]);
    assert!(ok, "{why}");
    let why = said(joined(agents_token.trim()));
    assert!(why.contains("not good for joining"), "an agent's token: {why}");
    let why = said(run("strobe", &["cluster", "status", "--dir", &other.dir()]));
    assert!(why.contains("strobe cluster init"), "{why}");
    let why = said(run("strobe", &["cluster", "remove", "3", "--dir", &dir(0)]));
    assert!(why.contains("strobe cluster drain 3"), "{why}");

    let agents = Agents::start(&cluster, 3);
    agents.wait_until_all_are_heard(30);
    let watch = agents.watch(Duration::from_secs(12));
    let (ok, _, why) = run("strobe", &["cluster", "drain", "3", "--dir", &dir(0)]);
    assert!(ok, "{why}");
    let gaps = watch.join().expect("the watch ends");
    println!("broker 3 was drained: agents' gaps {gaps:?}");
    let left = || !cluster.status(0).members.iter().any(|member| member.id == 3);
    wait("broker 3 has left", 30, left);
    let (ok, joined_as, why) = joined(&token);
    assert!(ok && joined_as.contains("broker 4"), "no id is given out twice: {joined_as}{why}");
    drop(agents);
    // Of three voters one is left: nothing is agreed on, and nobody is told that something was or was not.
    let grown = || cluster.status(0).voters() == 3;
    wait("broker 4 votes", 30, grown);
    drop(other);
    cluster.kill(1);
    pause(500);
    let why = said(run("strobe", &["cluster", "token", "--dir", &cluster.dir(0)]));
    assert!(why.contains("the outcome is unknown"), "{why}");
    let (ok, doctor, _) = run("strobe", &["cluster", "doctor", "--dir", &cluster.dir(0)]);
    assert!(!ok && doctor.contains("no leader"), "{doctor}");
}

/// How many changes the control plane takes, each synced by two of three real processes.
#[test]
fn changes_are_agreed_on() {
    let cluster = Cluster::start("changes", 3);
    let rate = cluster.changes_per_second(6, 60);
    println!("{rate:.0} changes a second, six at a time at the leader");
    let alone = cluster.changes_per_second(1, 100);
    println!("{alone:.0} changes a second, one at a time");
    assert!(200.0 < rate, "only {rate} a second");
}

/// More agents than the brokers are for: another one is proposed, to people and to a program. Nobody left:
/// one is drained, and the program is told which machine may go.
#[test]
fn what_the_brokers_have_to_do_decides_how_many_there_are() {
    let folder = Folder::new("scaling-hook");
    let (program, told) = (folder.path().join("scale"), folder.path().join("told"));
    std::fs::write(&program, format!("#!/bin/sh\necho \"$@\" >> {}\n", told.display()))
        .expect("writable");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&program, mode).expect("ours");
    let mut cluster = Cluster::start_with(
        "scaling",
        3,
        &[
            "--scale-agents",
            "1",
            "--scale-hold",
            "1s",
            "--scale-cool-down",
            "1s",
            "--scale-min",
            "2",
            "--scale-command",
            &program.display().to_string(),
        ],
    );
    let agents = Agents::start(&cluster, 6);
    let said = || std::fs::read_to_string(&told).unwrap_or_default();
    wait("another broker is asked for", 90, || said().starts_with("out 6 agents are more than 1"));
    let findings = cluster.get(0, "/api/strobe/v1/cluster", "");
    let findings = findings["findings"].as_array().expect("a list");
    assert!(findings.iter().any(|found| found["code"] == "scale-out"), "{findings:?}");
    agents.stop();
    wait("one may go", 90, || said().lines().any(|line| line.starts_with("in 2 brokers")));
    let line = said().lines().find(|line| line.starts_with("in ")).expect("it was told").to_owned();
    let mut words = line.rsplit(' ');
    let (address, broker) = (words.next().expect("an address"), words.next().expect("a number"));
    let broker: usize = broker.parse().expect("a number");
    assert_eq!(cluster.address(broker - 1), address);
    let other = broker % 3;
    wait("it has left", 60, || cluster.status(other).voters() == 2);
    cluster.stop();
}

/// Without an acknowledgement, for whatever reason.
const GAP_MAX: Duration = Duration::from_secs(3);
/// A broker that is cut off from agents looks like a slow one for a while.
const CUT_MAX: Duration = Duration::from_secs(4);
const ELECTION_MAX: Duration = Duration::from_secs(2);

/// Everything ends, and what was acknowledged is in one broker's log; how many frames that is.
fn assert_all_is_stored_once(mut cluster: Cluster, agents: Agents) -> u64 {
    cluster.keep_logs();
    let acknowledged = agents.stop();
    cluster.stop();
    let (all, twice) = cluster.assert_stored(&acknowledged);
    assert_eq!(twice, 0, "of {all} frames");
    all
}
