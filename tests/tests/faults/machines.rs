//! Brokers, agents and Redis on machines of their own: network namespaces, whose nftables lose, cut one way and
//! reset.

use crate::server::Server;
use crate::support::{Agents, Cluster, now};
use std::time::Duration;
use strobe_tests::namespace::Segment;
use strobe_tests::{pause, wait};

/// Every acknowledgement waits for Redis here, whose connections are reset in the middle of a stream of commands.
/// At the end a broker and its disk are gone, no agent has its rows any more, and every one is answered once.
#[test]
fn machines_whose_network_loses_cuts_and_resets() {
    Segment::with(|segment| {
        let machine = segment.machine(9);
        let open = ["--bind", "0.0.0.0", "--protected-mode", "no"];
        let redis = machine.run(|| Server::start_at(6379, &open));
        let url = format!("redis://{}:{}/0", machine.address(), redis.port());
        let arguments = ["--store", &url, "--durability", "wal+redis"];
        let mut cluster = Cluster::on_machines(segment, 3, &arguments);
        let agents = Agents::start(&cluster, 6);
        agents.wait_until_all_are_heard(30);
        for fault in ["lossy", "one-way", "refusing", "Redis reset"] {
            let leader = cluster.leader();
            let others = [(leader + 1) % 3, (leader + 2) % 3];
            let hurt = |at: usize| cluster.machine(at);
            let (victims, rule) = match fault {
                "lossy" => (vec![hurt(0), hurt(1), hurt(2)], LOSSY.to_owned()),
                // The leader hears everybody, agents too, and no broker hears it.
                "one-way" => {
                    let rule = format!("ip saddr {} counter drop", hurt(leader).address());
                    (others.map(hurt).to_vec(), rule)
                }
                // It lives, and whoever sends to it is told that nobody is there.
                "refusing" => (vec![hurt(others[0])], REFUSING.to_owned()),
                _ => (vec![&machine], RESET.to_owned()),
            };
            let (watch, begun) = (agents.watch(Duration::from_secs(9)), now());
            victims.iter().for_each(|machine| machine.rule(&rule));
            if fault == "one-way" {
                let elected = cluster.wait_for_another_leader(leader, begun);
                println!("{fault}: another one leads after {elected:?}");
            }
            let rest = Duration::from_secs(4).saturating_sub(begun.elapsed());
            pause(u64::try_from(rest.as_millis()).expect("small"));
            let met: Vec<u64> = victims.iter().map(|machine| machine.met()).collect();
            victims.iter().for_each(|machine| machine.rule(""));
            let gaps = watch.join().expect("the watch ends");
            println!("{fault}: packets {met:?}, agents' gaps {gaps:?}");
            assert!(met.iter().all(|met| 0 < *met), "{fault} hit nobody: {met:?}");
            let most = if fault == "Redis reset" { AWAY_MAX } else { GAP_MAX };
            assert!(gaps.iter().all(|gap| *gap < most), "{fault}: {gaps:?}");
            cluster.wait_until_balanced(30);
            agents.wait_until_all_are_heard(10);
            cluster.keep_logs();
        }
        wait("the brokers are with Redis again", 30, || {
            (0..3).all(|at| cluster.metric(at, "strobe_broker_redis_connected") == Some(1))
        });
        let resets = "strobe_broker_redis_failures_total{reason=\"unreachable\"}";
        let resets: Vec<_> = (0..3).map(|at| cluster.metric(at, resets)).collect();
        assert!(resets.iter().all(|count| Some(0) < *count), "each counts them: {resets:?}");
        let acknowledged = agents.stop();
        let (frames, twice) = cluster.while_stopped(|cluster| cluster.assert_stored(&acknowledged));
        let count = "count_over_time(node_load1[1h])";
        let all = || cluster.query(1, count);
        wait("everybody is heard again", 30, || all().1.is_empty() && all().0.len() == 6);
        let all = all().0;
        cluster.lose(0);
        wait("the others answer for it, by what Redis has", 60, || {
            cluster.query(1, count).0 == all && cluster.query(2, count).0 == all
        });
        println!("{frames} frames were acknowledged, none is lost; {twice} are in two logs");
    });
}

/// What brokers listen to.
const LOSSY: &str = "udp dport 7801 numgen random mod 1000 < 100 counter drop";
const REFUSING: &str = "udp dport 7801 counter reject with icmpx port-unreachable";
const RESET: &str = "tcp dport 6379 counter reject with tcp reset";
/// As when brokers are heard one way only.
const GAP_MAX: Duration = Duration::from_secs(4);
/// Redis is away for four seconds, and tried again after one at most.
const AWAY_MAX: Duration = Duration::from_millis(6500);
