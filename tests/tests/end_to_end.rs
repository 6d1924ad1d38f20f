//! The program as its users run it: real processes, a real /proc, real kills.

use std::collections::BTreeSet;
use strobe_tests::{Folder, Process, fake_procfs, free_address, http_get, pause, query, run, wait};

fn up(dir: &str, viz: &str, broker: &str, more: &[&str]) -> Process {
    let mut args = vec!["up", "--dir", dir, "--listen", viz, "--broker-listen", broker];
    args.extend_from_slice(more);
    Process::start("strobe", &args)
}

/// Times and values of node_time_seconds, as stored.
fn stored(viz: &str) -> Option<BTreeSet<String>> {
    let series = query(viz, "node_time_seconds[1h]");
    let values = series.first()?["values"].as_array()?;
    let set: BTreeSet<String> = values.iter().map(ToString::to_string).collect();
    assert_eq!(set.len(), values.len(), "a sample stands twice");
    Some(set)
}

#[test]
fn one_command_shows_this_host() {
    let (dir, viz, broker) = (Folder::new("up"), free_address(), free_address());
    let mut strobe = up(dir.text(), &viz, &broker, &[]);
    let line = strobe.line();
    assert!(line.contains(&format!("http://{viz}")), "printed {line:?}");
    wait("this host is there", 10, || !query(&viz, "node_load1").is_empty());
    let (status, page) = http_get(&viz, "/").expect("the dashboard answers");
    assert!(status == 200 && page.contains("<!doctype html"), "{status}: {page:.200}");
    assert!(strobe.terminate(), "SIGTERM ends it well");
}

/// Whatever a person saw stored must be there after the next start, once, whenever the kill came.
/// Kill times come from a fixed seed (splitmix64) so that a failure can be run again.
#[test]
fn nothing_stored_is_lost_by_one_hundred_kills() {
    let (dir, viz, broker) = (Folder::new("kill"), free_address(), free_address());
    let mut before = BTreeSet::new();
    let mut seed = 0x5eed_u64;
    for round in 0..100 {
        let mut strobe = up(dir.text(), &viz, &broker, &["--set", "agent.interval=100ms"]);
        let mut after = None;
        wait("the store answers", 20, || {
            after = stored(&viz);
            after.is_some()
        });
        let after = after.expect("waited for");
        let lost: Vec<_> = before.difference(&after).collect();
        assert!(lost.is_empty(), "round {round}: {} samples are gone: {lost:?}", lost.len());
        seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (seed ^ seed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        pause(mixed >> 33 & 0x1ff);
        before = stored(&viz).unwrap_or(after);
        strobe.kill();
    }
    assert!(before.len() > 100, "only {} samples in 100 rounds", before.len());
}

#[test]
fn ten_agents_are_ten_hosts() {
    let (dir, viz, broker) = (Folder::new("ten"), free_address(), free_address());
    let _strobe = up(dir.text(), &viz, &broker, &["--no-agent"]);
    wait("the broker is ready", 10, || {
        http_get(&viz, "/-/ready").is_ok_and(|(status, _)| status == 200)
    });
    let mut agents = Vec::new();
    for host in 0..10 {
        let (ok, token, error) = run("strobe", &["token", "create", "--dir", dir.text()]);
        assert!(ok, "strobe token create: {error}");
        let own = dir.path().join(format!("agent{host}"));
        fake_procfs(&own.join("proc"));
        let (own_text, proc) = (own.display().to_string(), own.join("proc").display().to_string());
        let name = format!("host{host}");
        let args = ["--broker", &broker, "--token", token.trim(), "--dir", &own_text, "--procfs"];
        let args = [&args[..], &[&proc, "--instance", &name]].concat();
        agents.push(Process::start("strobe-agent", &args));
    }
    wait("ten hosts are there", 30, || {
        query(&viz, "count(count by (instance) (node_load1))")
            .first()
            .is_some_and(|r| r["value"][1] == "10")
    });
}

#[test]
fn two_processes_do_not_share_a_state_directory() {
    let (dir, viz, broker) = (Folder::new("two"), free_address(), free_address());
    let mut first = up(dir.text(), &viz, &broker, &[]);
    first.line();
    let (viz, broker) = (free_address(), free_address());
    let args = ["up", "--dir", dir.text(), "--listen", &viz, "--broker-listen", &broker];
    let (ok, _, error) = run("strobe", &args);
    assert!(
        !ok && error.contains(dir.text()),
        "a second process was let in, or said only: {error}"
    );
}

#[test]
fn a_busy_port_is_named() {
    let (dir, viz, broker) = (Folder::new("busy"), free_address(), free_address());
    let _taken = std::net::TcpListener::bind(&viz).expect("free a moment ago");
    let args = ["up", "--dir", dir.text(), "--listen", &viz, "--broker-listen", &broker];
    let (ok, _, error) = run("strobe", &args);
    assert!(!ok && error.contains(&viz), "it said: {error}");
}
