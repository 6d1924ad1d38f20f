//! A disk that is full to the last byte, and then is not.

use super::disk::Disk;
use super::support::{Agents, Cluster};
use super::{broker, judge, wait_for_silence};
use std::cell::RefCell;
use strobe_tests::wait;

/// A broker by itself: it stops acknowledging, answers, starts again, and goes on when there is room.
#[test]
fn a_full_disk_stops_acknowledgements_and_nothing_else() {
    let disk = RefCell::new(None);
    let programs = [broker(&[], &["--free-min", "1MiB"])];
    let mut cluster = Cluster::of_programs("full", &programs, |_, dir| {
        *disk.borrow_mut() = Some(Disk::small(dir, 64));
    });
    let disk = disk.into_inner().expect("made");
    let agents = Agents::start(&cluster, 3);
    agents.wait_until_all_are_heard(30);
    disk.fill();
    wait_for_silence(&agents);
    assert_eq!(cluster.query(0, "count(node_load1)").0[""], 3, "it answers");
    cluster.kill(0);
    cluster.restart(0);
    let past = "count(count_over_time(node_load1[1h]))";
    assert_eq!(cluster.query(0, past).0[""], 3, "it starts and answers");
    wait_for_silence(&agents);
    disk.clear();
    agents.wait_until_all_are_heard(30);
    println!("{} frames, each once", judge(cluster, agents));
}

/// One of three: it goes on being one of them, through a restart too. Once that was the end of its part in the
/// cluster: what brokers agree on found no room, and its file could not even be opened.
#[test]
fn a_full_disk_is_no_reason_to_leave_a_cluster() {
    let disk = RefCell::new(None);
    let program = broker(&[], &["--free-min", "1MiB"]);
    let programs = [program.clone(), program.clone(), program];
    let mut cluster = Cluster::of_programs("full-of-three", &programs, |at, dir| {
        if at == 1 {
            *disk.borrow_mut() = Some(Disk::small(dir, 64));
        }
    });
    let disk = disk.into_inner().expect("made");
    let agents = Agents::start(&cluster, 6);
    agents.wait_until_all_are_heard(30);
    disk.fill();
    wait("it takes no frames", 20, || cluster.metric(1, "strobe_broker_storing") == Some(0));
    // What is agreed on meanwhile is on its disk too, in room of its own: two of three are enough for the
    // others, so it is asked itself.
    let changes = |times| {
        for _ in 0..times {
            cluster.join_token(1);
        }
    };
    changes(50);
    assert_eq!(cluster.query(1, "count(count_over_time(node_load1[1h]))").0[""], 6);
    changes(10);
    cluster.kill(1);
    cluster.restart(1);
    wait("it is one of three again", 30, || {
        let status = cluster.brokers[1].status();
        status.is_some_and(|status| status.leader.is_some() && status.voters() == 3)
    });
    cluster.join_token(1);
    assert_eq!(cluster.query(1, "count(count_over_time(node_load1[1h]))").0[""], 6);
    disk.clear();
    cluster.wait_until_balanced(60);
    agents.wait_until_all_are_heard(30);
    println!("{} frames, each once", judge(cluster, agents));
}
