//! Networks that split, hear one way, lose, delay, or come and go.

use crate::support::network::Reach;
use crate::support::{Agents, Cluster, now};
use std::time::Duration;
use strobe_tests::relay::{Way, Weather};
use strobe_tests::{pause, wait};

/// Two, two and one of five: nobody has a majority, so nothing is agreed on and nobody leads; what was agreed on
/// stays in force, and no agent is without an acknowledgement for longer than its second.
#[test]
fn five_brokers_split_in_three_without_a_majority() {
    let cluster = Cluster::behind_relays("split", 5);
    let agents = Agents::start(&cluster, 10);
    agents.wait_until_all_are_heard(30);
    let watch = agents.watch(Duration::from_secs(10));
    split(&cluster, &[&[0, 3], &[1, 4], &[2]]);
    wait("nobody leads", 8, || (0..5).all(|at| cluster.status(at).leader.is_none()));
    let (found, warnings) = cluster.query(2, "count by (instance) (node_load1)");
    assert_eq!(warnings.len(), 4, "the others are missed: {warnings:?}");
    println!("the one that is alone answers for {} hosts", found.len());
    let gaps = watch.join().expect("the watch ends");
    println!("agents' gaps in the split {gaps:?}");
    assert!(gaps.iter().all(|gap| *gap < NO_GAP), "{gaps:?}");
    let (watch, begun) = (agents.watch(Duration::from_secs(8)), now());
    cluster.heal();
    cluster.leader();
    println!("healed: one leads again after {:?}", begun.elapsed());
    cluster.wait_until_balanced(30);
    let gaps = watch.join().expect("the watch ends");
    println!("agents' gaps in healing {gaps:?}");
    assert!(gaps.iter().all(|gap| *gap < GAP_MAX), "{gaps:?}");
    agents.wait_until_all_are_heard(10);
    println!("{}", cluster.judge(agents));
}

/// What one says does not arrive and what it is told does: of the leader to one, of one to the leader, of the
/// leader to all. Agents reach everybody, and go on.
#[test]
fn brokers_that_are_heard_one_way_only() {
    let cluster = Cluster::behind_relays("one-way", 3);
    let agents = Agents::start(&cluster, 6);
    agents.wait_until_all_are_heard(30);
    for case in ["leader to one", "one to the leader", "leader to all"] {
        let leader = cluster.leader();
        let (one, other) = ((leader + 1) % 3, (leader + 2) % 3);
        let (watch, begun) = (agents.watch(Duration::from_secs(6)), now());
        match case {
            "leader to one" => cut_one_way(&cluster, leader, one),
            "one to the leader" => cut_one_way(&cluster, one, leader),
            _ => {
                cut_one_way(&cluster, leader, one);
                cut_one_way(&cluster, leader, other);
                let elected = cluster.wait_for_another_leader(leader, begun);
                println!("{case}: another one leads after {elected:?}");
            }
        }
        let gaps = watch.join().expect("the watch ends");
        println!("{case}: agents' gaps {gaps:?}");
        assert!(gaps.iter().all(|gap| *gap < GAP_MAX), "{case}: {gaps:?}");
        cluster.heal();
        cluster.wait_until_balanced(30);
        agents.wait_until_all_are_heard(10);
        cluster.keep_logs();
    }
    println!("{}", cluster.judge(agents));
}

/// One datagram in twenty is lost, some come twice, and each is up to 200 ms late by itself, so that nothing is
/// in its order; then the lines are narrow. Rows go on, and nobody is taken for dead for long.
#[test]
fn a_network_that_loses_delays_and_reorders() {
    let cluster = Cluster::behind_relays("weather", 3);
    let agents = Agents::start(&cluster, 6);
    agents.wait_until_all_are_heard(30);
    let jitter = Duration::from_millis(200);
    let bad = Weather { lost: 50, twice: 20, jitter, ..Weather::FINE };
    // Three brokers' heartbeats and six agents' rows want about 30 KB/s.
    let narrow = Weather { bytes_per_second: 60_000, ..Weather::FINE };
    for (what, weather, seconds) in [("5 % and 200 ms", bad, 15), ("narrow", narrow, 6)] {
        let watch = agents.watch(Duration::from_secs(seconds));
        (0..3).for_each(|at| cluster.relay(at).weather(weather));
        let gaps = watch.join().expect("the watch ends");
        println!("{what}: agents' gaps {gaps:?}");
        assert!(gaps.iter().all(|gap| *gap < BAD_MAX), "{what}: {gaps:?}");
    }
    cluster.heal();
    cluster.wait_until_balanced(30);
    agents.wait_until_all_are_heard(10);
    println!("{}", cluster.judge(agents));
}

/// Agents do not reach a broker for a second and a half, and the other brokers do all the time: it is not dead,
/// and whoever asks another broker meanwhile is sent back at once.
#[test]
fn an_owner_that_only_agents_missed() {
    let cluster = Cluster::behind_relays("missed", 3);
    let agents = Agents::start(&cluster, 8);
    agents.wait_until_all_are_heard(30);
    for at in 0..3 {
        let watch = agents.watch(Duration::from_secs(8));
        cluster.hide_from_agents(at);
        pause(1_500);
        cluster.heal();
        let gaps = watch.join().expect("the watch ends");
        println!("agents' gaps while broker {} was hidden {gaps:?}", at + 1);
        assert!(gaps.iter().all(|gap| *gap < MISSED_MAX), "{gaps:?}");
    }
    println!("{}", cluster.judge(agents));
}

/// The leader is cut off and back again, and again, faster than anybody can be sure of it. When it stops there is
/// one leader, all have their share, and nothing was lost.
#[test]
fn a_partition_that_comes_and_goes() {
    let cluster = Cluster::behind_relays("flap", 3);
    let agents = Agents::start(&cluster, 6);
    agents.wait_until_all_are_heard(30);
    let watch = agents.watch(Duration::from_secs(15));
    for turn in 0..8 {
        let victim = if turn % 3 == 2 { (turn + 1) % 3 } else { cluster.leader() };
        let reach = if turn % 2 == 0 { Reach::All } else { Reach::Others };
        cluster.isolate(victim, reach);
        pause(400 + 150 * turn as u64);
        cluster.heal();
        pause(300);
    }
    let gaps = watch.join().expect("the watch ends");
    println!("agents' gaps {gaps:?}");
    assert!(gaps.iter().all(|gap| *gap < BAD_MAX), "{gaps:?}");
    cluster.wait_until_balanced(30);
    agents.wait_until_all_are_heard(10);
    println!("{}", cluster.judge(agents));
}

/// Brokers reach those of their own group only; agents reach all.
fn split(cluster: &Cluster, groups: &[&[usize]]) {
    let group = |at: usize| groups.iter().position(|group| group.contains(&at));
    let all = || groups.iter().copied().flatten().copied();
    for (one, other) in all().flat_map(|one| all().map(move |other| (one, other))) {
        if group(one) != group(other) {
            cluster.relay(one).cut(&[cluster.source(other)]);
        }
    }
}

/// What one broker says does not reach the other; what the other says does.
fn cut_one_way(cluster: &Cluster, from: usize, to: usize) {
    cluster.relay(to).cut_way(cluster.source(from), Way::There);
    cluster.relay(from).cut_way(cluster.source(to), Way::Back);
}

/// A second, another one when an agent goes over to reading its acknowledgements with its next tick, and what a
/// busy machine adds.
const NO_GAP: Duration = Duration::from_millis(2500);
/// A second until the next row, 700 ms without an answer, and dials that are tried again after half a second and
/// a second; held for four seconds by whoever it asked, an agent was without an acknowledgement for 5.5 s and more.
const MISSED_MAX: Duration = Duration::from_millis(4500);
const GAP_MAX: Duration = Duration::from_secs(4);
/// Where datagrams are lost, an agent may leave an owner that is well, and is sent back to it: of 2,160 rows the
/// one that waited longest waited 4.5 s (7.4 s before whoever was asked listened for the owner itself).
const BAD_MAX: Duration = Duration::from_secs(9);
