//! `strobe-agent doctor`, the real program: beside an agent that runs, without its broker, over a broken
//! spool, and on another tree.

use serde_json::Value;
use strobe_tests::{Folder, Process, fake_procfs, free_address, run, run_with, wait};

fn doctor(args: &[&str]) -> (i32, Value) {
    let (code, out, error) =
        run_with("strobe-agent", &[], &[&["doctor", "--json"][..], args].concat());
    let json = serde_json::from_str(&out).unwrap_or_else(|why| panic!("{why}: {out}{error}"));
    (code, json)
}

/// What it found of this: its state, its words and its advice.
fn of<'a>(report: &'a Value, area: &str, name: &str) -> (&'a str, &'a str, &'a str) {
    let findings = report["findings"].as_array().expect("a list");
    let is_it = |f: &&Value| {
        f["area"] == area && f["name"].as_str().is_some_and(|found| found.ends_with(name))
    };
    let found = findings.iter().find(is_it).unwrap_or_else(|| panic!("{area} {name}: {report}"));
    let text = |key: &str| found[key].as_str().unwrap_or_default();
    (text("state"), text("found"), text("advice"))
}

#[test]
fn the_doctor_finds_what_is_wrong_and_disturbs_nobody() {
    let folder = Folder::new("doctor");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (broker_dir, dir, listen) = (path("broker"), path("agent"), free_address());
    let base = ["--broker", &listen, "--dir", &dir];
    let (code, report) = doctor(&base);
    assert_eq!((code, of(&report, "state", "identity").0), (2, "bad"), "not enrolled: {report}");

    let args = ["--dir", &broker_dir, "--broker-listen", &listen];
    let mut broker = Process::start("strobe-broker", &args);
    broker.line();
    let (_, token, _) = run("strobe", &["token", "create", "--dir", &broker_dir]);
    let with = [&base[..], &["--token", token.trim()]].concat();
    let mut agent = Process::start("strobe-agent", &with);
    let identity = folder.path().join("agent/identity.pem");
    wait("it has enrolled", 20, || identity.exists());
    let (code, report) = doctor(&base);
    assert_eq!(code, 0, "{report}");
    let (state, found, _) = of(&report, "broker", &listen);
    assert!(state == "ok" && found.contains("took the handshake in"), "{found}");
    assert!(of(&report, "state", "identity").1.contains("enrolled, good for"), "{report}");
    assert!(of(&report, "state", "agent").1.contains("an agent runs on it"), "{report}");
    assert!(of(&report, "spool", "spool").1.contains("empty, up to 64 MiB"), "{report}");
    let (state, found, _) = of(&report, "files", "/proc/stat");
    assert!(state == "ok" && found.contains("kept open, read whole"), "{found}");
    for area in ["sight", "pressure", "memory", "clock"] {
        assert!(report["findings"].as_array().expect("a list").iter().any(|f| f["area"] == area));
    }
    let collectors = report["collectors"].as_array().expect("a list");
    let of_name = |name: &str| collectors.iter().find(|c| c["name"] == name).expect("all");
    assert!(0.0 < of_name("meminfo")["reading_us"].as_f64().expect("it is on"));
    assert_eq!(of_name("slabinfo")["reading_us"], Value::Null, "it is off");

    assert!(agent.terminate(), "the one that runs was not disturbed");
    broker.kill();
    let spool = folder.path().join("agent/spool");
    std::fs::create_dir_all(&spool).expect("writable");
    std::fs::write(spool.join("0000000000000001.log"), "no journal at all").expect("writable");
    let (code, report) = doctor(&base);
    assert_eq!((code, of(&report, "broker", &listen).0), (2, "bad"), "{report}");
    let (state, _, advice) = of(&report, "spool", "spool");
    assert!(state == "less" && advice.contains("at byte 0"), "{report}");

    // Another tree, text, and a file of it that is gone.
    let procfs = folder.path().join("proc");
    fake_procfs(&procfs);
    std::fs::remove_file(procfs.join("meminfo")).expect("it was there");
    let text = procfs.display().to_string();
    let more = ["doctor", "--dir", &dir, "--procfs", &text];
    let (code, out, _) = run_with("strobe-agent", &[], &more);
    assert_eq!(code, 0, "{out}");
    assert!(out.contains("another tree") && out.contains("/meminfo"), "{out}");
    let missing = out.lines().find(|line| line.contains("/meminfo")).expect("it is named");
    assert!(missing.starts_with("less") && missing.contains("is not there"), "{missing}");
    let (ok, _, error) = run("strobe-agent", &["doctor", "--nonsense"]);
    assert!(!ok && error.contains("unknown key"), "{error}");
}
