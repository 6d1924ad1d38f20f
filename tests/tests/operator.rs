//! What an operator of a cluster is told, by the programs and nothing else.

#[expect(dead_code, reason = "other tests break more of a cluster")]
mod support;

use std::time::Duration;
use strobe_tests::{pause, run, wait};
use support::{Cluster, now};

/// What `strobe cluster …` at broker `at` answers, and whether it did it.
fn ask(cluster: &Cluster, at: usize, args: &[&str]) -> (bool, String) {
    let dir = cluster.dir(at);
    let (ok, said, why) = run("strobe", &[&["cluster"], args, &["--dir", &dir]].concat());
    (ok, format!("{said}{why}"))
}

/// Numbers of brokers that are not there, are not heard of, or have left: each answer says which broker,
/// what is the matter with it, and what to do; a broker that was removed does not believe in its day for ever.
#[test]
fn a_broker_that_is_meant_has_to_be_there() {
    let mut cluster = Cluster::start("operator", 3);
    cluster.wait_until_balanced(60);
    let commands: [&[&str]; 4] =
        [&["transfer-leader", "9"], &["move", "7", "9"], &["drain", "9"], &["remove", "9"]];
    for args in commands {
        let (ok, said) = ask(&cluster, 0, args);
        assert!(!ok && said.contains("no broker 9") && said.contains("only 1, 2, 3"), "{said}");
    }
    let (ok, said) = ask(&cluster, 1, &["add", "--lifetime", "90m"]);
    let join = format!("strobe cluster join {} --token strobe1.", cluster.address(1));
    assert!(ok && said.contains(&join) && said.contains("for 90 min"), "{said}");

    let gone = (cluster.leader() + 1) % 3;
    let (leader, id) = (cluster.leader(), (gone + 1).to_string());
    cluster.kill(gone);
    wait("it is missed", 20, || ask(&cluster, leader, &["doctor"]).1.contains("not heard of"));
    for args in [&["transfer-leader", &id][..], &["move", "7", &id], &["drain", &id]] {
        let (ok, said) = ask(&cluster, leader, args);
        assert!(!ok && said.contains("is not heard of"), "{said}");
        assert!(said.contains(cluster.address(gone)) && said.contains("start it first"), "{said}");
    }
    let (ok, said) = ask(&cluster, leader, &["remove", &id]);
    assert!(ok, "{said}");

    cluster.restart(gone);
    let left = || {
        let (ok, said) = ask(&cluster, gone, &["doctor"]);
        !ok && said.contains("not-a-member") && !said.contains("no-leader")
    };
    wait("it knows that it is no member", 20, left);
    let (ok, said) = ask(&cluster, gone, &["status"]);
    assert!(ok && said.contains("no member any more"), "{said}");
    let (ok, said) = ask(&cluster, gone, &["move", "7", "1"]);
    assert!(!ok && said.contains("no member of the cluster any more"), "{said}");

    let (ok, said) = ask(&cluster, leader, &["move", "300", "1"]);
    assert!(!ok && said.contains("0 to 255") && said.contains("`strobe hosts`"), "{said}");

    // Of two voters one is no majority.
    let rest = 3 - gone - leader;
    cluster.kill(rest);
    let old = || ask(&cluster, leader, &["status"]).1.contains("No leader is known");
    wait("what is shown is called old", 20, old);
    cluster.kill(leader);
}

/// How soon brokers miss each other is a key: with a heartbeat of 2 s nobody is missed for three of them,
/// where it is 1.5 s else.
#[test]
fn brokers_miss_each_other_as_soon_as_they_are_told_to() {
    let pace = ["--cluster-heartbeat", "2s", "--cluster-election", "4s"];
    let mut cluster = Cluster::start_with("pace", 3, &pace);
    let leader = cluster.leader();
    let killed = now();
    cluster.kill((leader + 1) % 3);
    let missed = || ask(&cluster, leader, &["doctor"]).1.contains("not heard of");
    while killed.elapsed() < Duration::from_secs(3) {
        assert!(!missed(), "after {:?}", killed.elapsed());
        pause(200);
    }
    wait("it is missed", 20, missed);
    println!("missed after {:?}", killed.elapsed());
    assert!(Duration::from_secs(4) < killed.elapsed(), "{:?}", killed.elapsed());
}

/// The only broker can go nowhere, and who is asked to join nobody is told where to look.
#[test]
fn a_broker_alone_is_told_what_it_lacks() {
    let cluster = Cluster::alone("only");
    cluster.init();
    for args in [&["drain", "1"][..], &["remove", "1", "--force"]] {
        let (ok, said) = ask(&cluster, 0, args);
        assert!(!ok && said.contains("the only one that votes"), "{said}");
        assert!(said.contains("strobe cluster add"), "{said}");
    }
    let other = Cluster::alone("other");
    let token = cluster.join_token(0);
    let (ok, said) = ask(&other, 0, &["join", "127.0.0.1:1", "--token", &token]);
    assert!(!ok && said.contains("127.0.0.1:1 ") && said.contains("UDP port open"), "{said}");
}
