//! The flight recorder from end to end: an agent is asked for its last seconds, by its broker and by
//! a signal, and they are there, told apart by hundredths of a second.

use nix::sys::signal::Signal;
use strobe_tests::{Folder, Process, free_address, http_get, pause, query, run, wait};

#[test]
fn a_burst_that_is_asked_for_is_stored_beside_the_hosts_history() {
    let (dir, viz, broker) = (Folder::new("burst"), free_address(), free_address());
    let base = dir.path().join("strobe").display().to_string();
    let args = ["up", "--no-agent", "--dir", &base, "--listen", &viz, "--broker-listen", &broker];
    let mut strobe = Process::start("strobe", &args);
    strobe.line();
    let (ok, token, error) = run("strobe", &["token", "create", "--dir", &base]);
    assert!(ok, "{error}");
    let own = dir.path().join("agent").display().to_string();
    let args = ["--dir", &own, "--broker", &broker, "--token", token.trim()];
    let more = ["--recorder", "--instance", "flown"];
    let mut agent = Process::start("strobe-agent", &[&args[..], &more].concat());
    wait("the host is there", 20, || !query(&viz, "node_load1").is_empty());

    // It shall have something to tell of the time before.
    pause(3_000);
    let (ok, said, error) = run("strobe", &["burst", "flown", "--dir", &base]);
    assert!(ok && said.contains("flown"), "{said}{error}");
    // Within the same second, and told apart.
    pause(300);
    agent.signal(Signal::SIGUSR2);
    let mut bursts = Vec::new();
    wait("both bursts are stored", 40, || {
        let (_, body) = http_get(&viz, "/api/strobe/v1/bursts?host=flown").unwrap_or_default();
        let list: serde_json::Value = serde_json::from_str(&body).unwrap_or_default();
        bursts = list.as_array().cloned().unwrap_or_default();
        let has = |reason| bursts.iter().any(|burst| burst["reason"] == reason);
        has("request") && has("signal")
    });
    for burst in &bursts {
        let ms = |name: &str| burst[name].as_i64().unwrap_or_else(|| panic!("{name}: {burst}"));
        // A machine under pressure asks for one of its own, when the recorder has just begun.
        let was_asked = ["request", "signal"].map(Into::into).contains(&burst["reason"]);
        let before_ms = if was_asked { 1_000 } else { 0 };
        assert!(ms("from_ms") + before_ms < ms("at_ms") && ms("at_ms") < ms("to_ms"), "{burst}");
    }

    let samples = |expression: &str| -> Vec<(f64, f64)> {
        let series = query(&viz, expression);
        let [one] = &series[..] else { return Vec::new() };
        let pair = |pair: &serde_json::Value| {
            Some((pair[0].as_f64()?, pair[1].as_str()?.parse::<f64>().ok()?))
        };
        one["values"].as_array().into_iter().flatten().filter_map(pair).collect()
    };
    let running = r#"strobe_burst_procs_running{instance="flown"}[2m]"#;
    let signal =
        bursts.iter().find(|burst| burst["reason"] == "signal").expect("it was waited for");
    let at_s = signal["at_ms"].as_f64().expect("a time") / 1000.0;
    wait("their samples are all there, from before to ten seconds after", 20, || {
        let times = samples(running);
        let ends = times.first().zip(times.last());
        ends.is_some_and(|(first, last)| first.0 + 1.0 < at_s && at_s + 9.5 < last.0)
    });
    let running = samples(running);
    // A busy machine makes the recorder halve its pace, to 25 a second at least here.
    let steps: Vec<f64> = running.windows(2).map(|pair| pair[1].0 - pair[0].0).collect();
    let close = steps.iter().filter(|step| **step < 0.05).count();
    assert!(steps.iter().all(|step| 0.0 < *step), "times go forward, each once");
    assert!(close * 2 > steps.len() && 200 < close, "{close} of {} are close", steps.len());
    let user = samples(r#"strobe_burst_cpu_seconds_total{instance="flown",mode="user"}[2m]"#);
    assert!(user.windows(2).all(|pair| pair[0].1 <= pair[1].1), "a counter counts");
    assert!(agent.terminate() && strobe.terminate(), "SIGTERM ends both well");
}
