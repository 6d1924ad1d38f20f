//! Certificates that live for seconds, in real processes: they change under load, come back after
//! an absence, and a broker that was killed is found again at once.

use strobe_tests::{Folder, Process, fake_procfs, free_address, http_get, pause, query, run, wait};

fn up(dir: &str, viz: &str, broker: &str) -> Process {
    let life = ["--set", "broker.certificate_life=6s"];
    let args = ["up", "--dir", dir, "--listen", viz, "--broker-listen", broker, "--no-agent"];
    let strobe = Process::start("strobe", &[&args[..], &life].concat());
    wait("the broker is ready", 10, || {
        http_get(viz, "/-/ready").is_ok_and(|(status, _)| status == 200)
    });
    strobe
}

/// Times of the samples, in s, as stored.
fn times(viz: &str) -> Vec<f64> {
    let series = query(viz, "node_time_seconds[10m]");
    let values = series.first().and_then(|series| series["values"].as_array().cloned());
    values.unwrap_or_default().iter().filter_map(|pair| pair[0].as_f64()).collect()
}

fn metric(viz: &str, name: &str) -> f64 {
    let (_, text) = http_get(viz, "/metrics").expect("the broker answers");
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {name}"))
}

#[test]
fn certificates_change_under_load_after_an_absence_and_over_a_kill() {
    let (dir, viz, broker) = (Folder::new("renewal"), free_address(), free_address());
    let mut strobe = up(dir.text(), &viz, &broker);
    let (ok, token, error) = run("strobe", &["token", "create", "--dir", dir.text()]);
    assert!(ok, "strobe token create: {error}");
    let own = dir.path().join("agent");
    fake_procfs(&own.join("proc"));
    let (own, proc) = (own.display().to_string(), own.join("proc").display().to_string());
    let args = ["--broker", &broker, "--dir", &own, "--procfs", &proc, "--interval", "100ms"];
    let mut agent =
        Process::start("strobe-agent", &[&args[..], &["--token", token.trim()]].concat());

    wait("its certificate is renewed", 30, || {
        2.0 <= metric(&viz, "strobe_broker_certificates_renewed_total")
    });
    let seen = times(&viz);
    let holes = seen.windows(2).filter(|pair| 1.0 < pair[1] - pair[0]).count();
    assert!(seen.is_sorted_by(|a, b| a < b) && holes == 0, "{seen:?}");

    // Away for longer than a certificate lives, and back without a token.
    assert!(agent.terminate(), "it stops well");
    pause(6_200);
    let before = times(&viz).len();
    let mut agent = Process::start("strobe-agent", &args);
    wait("it is back", 10, || before < times(&viz).len());

    // The broker is killed: its next life says at once that it knows no connections.
    strobe.kill();
    let mut strobe = up(dir.text(), &viz, &broker);
    let before = times(&viz).len();
    let took = wait("it is found again", 30, || before < times(&viz).len());
    assert!(took < 10.0, "{took} s: the agent waited for the silence");
    assert!(agent.terminate() && strobe.terminate(), "both stop well");
}
