//! A broker that is away for longer than an agent's ring lasts, with real processes.

use std::time::Duration;
use strobe_broker::control;
use strobe_broker::store::{Store, StoreConfig};
use strobe_tests::{Folder, Process, free_address, pause, run, wait};
use strobe_wire::message::ApiRequest;

fn metrics(dir: &str) -> Option<String> {
    let (path, method) = ("/metrics".to_owned(), "GET".to_owned());
    let request = ApiRequest { method, path, ..ApiRequest::default() };
    let answer = control::ask(dir.as_ref(), request, Duration::from_secs(5)).ok()?;
    (answer.status == 200).then(|| String::from_utf8_lossy(&answer.body).into_owned())
}

/// The sum of a metric over its labels.
fn sum(metrics: &str, name: &str) -> u64 {
    let of = |line: &str| line.strip_prefix(name)?.split(' ').nth(1)?.parse::<u64>().ok();
    metrics.lines().filter_map(of).sum()
}

/// The ring lasts some three seconds here. The broker is killed for eight, the agent ends meanwhile and
/// starts again: every frame of both its lives is stored once, and none is told as lost.
#[test]
fn a_broker_that_is_away_costs_no_frame_and_neither_does_a_restart_meanwhile() {
    let folder = Folder::new("spool");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (broker_dir, agent_dir, listen) = (path("broker"), path("agent"), free_address());
    let start_broker = || {
        let args = ["--dir", &broker_dir, "--broker-listen", &listen];
        let mut broker = Process::start("strobe-broker", &args);
        broker.line();
        broker
    };
    let mut broker = start_broker();
    let (ok, token, error) = run("strobe", &["token", "create", "--dir", &broker_dir]);
    assert!(ok, "{error}");
    let start_agent = || {
        let own = ["--dir", &agent_dir, "--interval", "100ms", "--ring-slots", "128"];
        let args = [&["--broker", &listen, "--token", token.trim()][..], &own].concat();
        Process::start("strobe-agent", &args)
    };
    let accepted =
        || metrics(&broker_dir).map_or(0, |m| sum(&m, "strobe_broker_frames_stored_total"));
    let mut agent = start_agent();
    wait("frames come", 20, || 50 < accepted());
    broker.kill();
    let spool = folder.path().join("agent/spool");
    wait("frames wait on the disk", 30, || spool.exists());
    pause(4_000);
    assert!(agent.terminate(), "SIGTERM ends it well without a broker, too");
    let mut agent = start_agent();
    pause(6_000);
    let mut broker = start_broker();
    wait("all of it was sent", 60, || !spool.exists());
    let said = metrics(&broker_dir).expect("it answers");
    assert_eq!(sum(&said, "strobe_broker_frames_lost_total"), 0, "{said}");
    assert!(agent.terminate() && broker.terminate(), "SIGTERM ends both well");
    let config = StoreConfig::at(folder.path().join("broker/store"));
    let (_, _, recovery) = Store::open(config, 0).expect("it opens");
    assert_eq!(recovery.damage, Vec::<String>::new());
    assert_eq!(recovery.seen.len(), 2, "two lives");
    for seen in &recovery.seen {
        let &[(1, last)] = &seen.ranges[..] else { panic!("a hole: {:?}", seen.ranges) };
        assert!(100 < last, "{last}");
    }
}
