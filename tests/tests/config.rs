//! The configuration of a fleet from end to end, with real processes: versions, canaries, going back, and
//! what is asked of hosts with its audit log.

#[expect(dead_code, reason = "most of it is for what a cluster goes through")]
mod support;

use serde_json::Value;
use std::path::Path;
use strobe_tests::{Folder, Process, free_address, run, wait};
use support::Cluster;

/// A broker by itself and agents of it, each a process.
struct Fleet {
    folder: Folder,
    dir: String,
    address: String,
    broker: Process,
    agents: Vec<Process>,
}

impl Fleet {
    fn new(name: &str) -> Self {
        let (folder, address) = (Folder::new(name), free_address());
        let dir = folder.path().join("broker").display().to_string();
        let mut fleet =
            Self { broker: begin(&dir, &address), dir, address, folder, agents: vec![] };
        fleet.broker.line();
        fleet
    }

    fn strobe(&self, args: &[&str]) -> (bool, String, String) {
        run("strobe", &[args, &["--dir", &self.dir]].concat())
    }

    /// An agent; the second time it is another life of the same.
    fn start(&mut self, name: &str, more: &[&str]) {
        let (ok, token, why) = self.strobe(&["token", "create"]);
        assert!(ok, "{why}");
        let dir = self.folder.path().join(name).display().to_string();
        let args = ["--dir", &dir, "--broker", &self.address, "--token", token.trim()];
        let args = [&args[..], &["--instance", name, "--spool-size", "0"], more].concat();
        self.agents.push(Process::start("strobe-agent", &args));
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).expect("writable");
        path.display().to_string()
    }

    fn apply(&self, text: &str, more: &[&str]) -> (bool, String, String) {
        let file = self.file("fleet.toml", text);
        let args = ["config", "apply", &file, "--reason", "because of the test"];
        self.strobe(&[&args[..], more].concat())
    }

    /// What a host says that it runs.
    fn runs(&self, name: &str) -> Value {
        let (ok, text, why) = self.strobe(&["hosts", "--json"]);
        assert!(ok, "{why}");
        let hosts: Value = serde_json::from_str(&text).unwrap_or_default();
        let mut hosts = hosts.as_array().cloned().unwrap_or_default().into_iter();
        hosts.find(|host| host["instance"] == name).unwrap_or_default()
    }

    fn wait_until_it_runs(&self, name: &str, version: u64) {
        wait(&format!("{name} runs version {version}"), 60, || {
            let of = &self.runs(name)["configuration"];
            of["version"] == version && of["proven"] == true
        });
    }
}

fn begin(dir: &str, address: &str) -> Process {
    Process::start("strobe-broker", &["--dir", dir, "--broker-listen", address])
}

fn kept(dir: &Path) -> String {
    std::fs::read_to_string(dir.join("configuration")).unwrap_or_default()
}

/// A version is tried by one host and then everybody's; it outlives agents and brokers; one that a canary
/// finds too dear, or does not understand, is taken back by itself; and a command goes back.
#[test]
fn versions_are_tried_kept_taken_back_and_gone_back_from() {
    let mut fleet = Fleet::new("config");
    fleet.start("a", &[]);
    fleet.start("b", &["--locked", "agent.interval"]);
    fleet.wait_until_it_runs("a", 0);
    fleet.wait_until_it_runs("b", 0);

    let first = "[agent]\ninterval = \"500ms\"\nlabels = \"site=berlin\"\n";
    let (ok, said, why) = fleet.apply(first, &["--canary", "a"]);
    assert!(
        ok && said.contains("on trial with a (") && said.contains("Version 1 is in force: a ("),
        "{said}{why}"
    );
    assert!(said.contains("2 hosts would change") && said.contains("samples a second"), "{said}");
    fleet.wait_until_it_runs("a", 1);
    fleet.wait_until_it_runs("b", 1);
    let (a, b) = (fleet.runs("a"), fleet.runs("b"));
    assert_eq!((&a["interval_ms"], &b["interval_ms"]), (&500.into(), &1000.into()), "locked there");
    assert_eq!(b["configuration"]["locked"], "agent.interval");
    assert!(a["labels"]["site"] == "berlin" && b["labels"]["site"] == "berlin");

    let other = "[broker]\nquery_time = \"20s\"\n";
    let (ok, _, why) = fleet.apply(other, &["--canary", "broker:9"]);
    assert!(!ok && why.contains("broker 9 cannot try it"), "{why}");
    // One made from another version than is in force, one with a mistake, and the same again.
    let second = format!("{first}\n[label.\"site=berlin\".agent]\nscores = false\n");
    let (ok, _, why) = fleet.apply(&second, &["--base", "0"]);
    assert!(!ok && why.contains("version 1 was made meanwhile by"), "{why}");
    let (ok, _, why) = fleet.apply("[agent]\n\nintervall = \"1s\"", &[]);
    assert!(
        !ok && why.contains("line 3") && why.contains("did you mean `agent.interval`"),
        "{why}"
    );
    let (ok, _, why) = fleet.apply(first, &[]);
    assert!(!ok && why.contains("which is in force"), "{why}");

    // Too dear for its budget: the canary takes it back, and nobody else ever ran it.
    fleet.agents[0].terminate();
    fleet.agents.remove(0);
    fleet.start("a", &["--cost-max", "0.01"]);
    fleet.wait_until_it_runs("a", 1);
    let dear = format!(
        "{first}[agent.recorder]\ninterval = \"20ms\"\n[host.a.agent]\ninterval = \"100ms\"\n"
    );
    let (ok, said, why) = fleet.apply(&dear, &["--canary", "a", "--base", "1"]);
    assert!(
        !ok && why.contains("version 2 is taken back") && why.contains("of a core"),
        "{said}{why}"
    );
    fleet.wait_until_it_runs("a", 1);
    assert_eq!(fleet.runs("b")["configuration"]["version"], 1);
    assert!(kept(&fleet.folder.path().join("a")).starts_with("version 1\n"));
    let (_, text, _) = fleet.strobe(&["config", "history"]);
    assert!(text.contains("taken back: ") && text.contains("because of the test"), "{text}");

    // All start anew, the agents first, with nobody to ask: the version is there all the same.
    fleet.broker.kill();
    for agent in &mut fleet.agents {
        agent.kill();
    }
    fleet.agents.clear();
    fleet.start_offline("a");
    fleet.broker = begin(&fleet.dir, &fleet.address);
    fleet.broker.line();
    fleet.wait_until_it_runs("a", 1);
    assert_eq!(fleet.runs("a")["interval_ms"], 500);
    let (_, text, _) = fleet.strobe(&["config", "show"]);
    assert_eq!(text.trim_end(), first.trim_end());

    let (ok, said, why) = fleet.strobe(&["config", "rollback", "0", "--reason", "enough"]);
    assert!(ok && said.contains("Version 3 is in force"), "{said}{why}");
    fleet.wait_until_it_runs("a", 3);
    assert_eq!(fleet.runs("a")["interval_ms"], 1000);
    let (_, diff, _) = fleet.strobe(&["config", "diff"]);
    assert!(diff.contains("- interval = \"500ms\""), "{diff}");

    // The broker's own part is tried by the broker.
    let (ok, said, why) = fleet.apply("[broker]\nretention = \"3d\"\nquery_time = \"9s\"\n", &[]);
    assert!(ok && said.contains("broker:0") && said.contains("would be removed"), "{said}{why}");
    let (_, text, _) = fleet.strobe(&["config", "status"]);
    assert!(text.contains("Version 4 is in force") && text.contains("broker:0  4"), "{text}");
}

impl Fleet {
    /// The broker is not there.
    fn start_offline(&mut self, name: &str) {
        let dir = self.folder.path().join(name).display().to_string();
        let args = ["--dir", &dir, "--broker", &self.address, "--instance", name];
        self.agents.push(Process::start("strobe-agent", &args));
    }
}

/// What a host's own file allows is answered, what it does not is refused, and both are in the log, of which
/// every change is found.
#[test]
fn hosts_answer_what_they_allow_and_the_log_tells_of_it() {
    let mut fleet = Fleet::new("ask");
    fleet.start("open", &["--commands", "top,ss,mounts,doctor"]);
    fleet.start("shut", &[]);
    fleet.wait_until_it_runs("open", 0);
    fleet.wait_until_it_runs("shut", 0);
    let ask = |what: &str, host: &str| fleet.strobe(&["host", what, host]);
    let (ok, said, why) = ask("top", "open");
    assert!(ok && said.contains("processes; CPU within"), "{said}{why}");
    let (ok, said, why) = ask("ss", "open");
    assert!(ok && said.contains("PROTO STATE"), "{said}{why}");
    let (ok, said, why) = ask("mounts", "open");
    assert!(ok && said.contains("mountpoint=\"/"), "{said}{why}");
    let (ok, said, why) = ask("doctor", "open");
    assert!(ok && said.lines().count() > 5, "{said}{why}");
    let (ok, _, why) = ask("top", "shut");
    assert!(!ok && why.contains("not in agent.commands"), "{why}");
    let (ok, _, why) = fleet.strobe(&["burst", "shut"]);
    assert!(!ok && why.contains("flight recorder is off"), "{why}");
    let (ok, _, why) = ask("top", "nobody");
    assert!(!ok && why.contains("no host"), "{why}");

    let (ok, said, why) = fleet.strobe(&["audit"]);
    assert!(ok, "{why}");
    let entries: Vec<Value> = said.lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
    let what = |n: usize| (entries[n]["what"].as_str(), entries[n]["outcome"].as_str());
    let questions = entries.len() - 6;
    assert_eq!(what(questions), (Some("top"), Some("answered")), "{said}");
    assert!(what(questions + 4).1.is_some_and(|o| o.contains("not in agent.commands")), "{said}");
    assert!(
        entries.iter().all(|entry| entry["who"].as_str().is_some_and(|who| who.contains("uid")))
    );
    let secret = entries.iter().any(|entry| entry.to_string().contains("strobe-token"));
    assert!(!secret, "{said}");
    let (ok, said, why) = fleet.strobe(&["audit", "--verify"]);
    assert!(ok && said.contains("each as it was written"), "{said}{why}");
    let log = Path::new(&fleet.dir).join("audit.log");
    let text = std::fs::read_to_string(&log).expect("readable");
    std::fs::write(&log, text.replace("\"what\":\"ss\"", "\"what\":\"sx\"")).expect("writable");
    let (ok, _, why) = fleet.strobe(&["audit", "--verify"]);
    assert!(!ok && why.contains("was changed"), "{why}");
}

/// A trial outlives the broker that leads: whoever leads next ends it.
#[test]
fn a_trial_outlives_its_leader() {
    let mut cluster = Cluster::start("config", 3);
    let agents = support::Agents::start(&cluster, 3);
    agents.wait_until_all_are_heard(30);
    let folder = Folder::new("config-cluster");
    let file = folder.path().join("fleet.toml");
    std::fs::write(&file, "[agent]\nscores = false\n").expect("writable");
    let leader = cluster.leader();
    let others: Vec<usize> = (0..3).filter(|at| *at != leader).collect();
    let file = file.display().to_string();
    let apply = |at: usize| {
        let dir = cluster.dir(at);
        let args = ["config", "apply", &file, "--reason", "x", "--no-wait", "--dir", &dir];
        run("strobe", &args)
    };
    let mut said = (false, String::new(), String::new());
    wait("all hosts say what they run", 20, || {
        said = apply(others[0]);
        said.0
    });
    assert!(said.1.contains("Version 1 is on trial with ") && said.1.contains(" ("), "{said:?}");
    cluster.kill(leader);
    let dirs: Vec<String> = (0..3).map(|at| cluster.dir(at)).collect();
    let stage = |at: usize| {
        let (ok, text, _) = run("strobe", &["config", "history", "--json", "--dir", &dirs[at]]);
        let all: Value = serde_json::from_str(&text).unwrap_or_default();
        if ok { all[0]["stage"].as_str().unwrap_or_default().to_owned() } else { String::new() }
    };
    wait("the trial is over", 120, || {
        let stages = [stage(others[0]), stage(others[1])];
        stages[0] == stages[1] && stages.iter().all(|s| s == "in force" || s == "taken back")
    });
    cluster.restart(leader);
    cluster.wait_until_balanced(60);
    agents.wait_until_all_are_heard(30);
    let wanted = u64::from(stage(others[0]) == "in force");
    println!("the trial ended: {}", stage(others[0]));
    for dir in &dirs {
        wait("every host and broker runs what is in force", 90, || {
            let (_, text, _) = run("strobe", &["config", "status", "--json", "--dir", dir]);
            let status: Value = serde_json::from_str(&text).unwrap_or_default();
            let list = |key: &str| status[key].as_array().cloned().unwrap_or_default();
            let hosts = list("hosts");
            let good = |of: &Value| of["version"] == wanted && of["refused"] == 0;
            status["in_force"] == wanted
                && list("brokers").len() == 3
                && list("brokers").iter().all(good)
                && hosts.len() == 3
                && hosts.iter().all(|host| host["configuration"]["version"] == wanted)
        });
    }
    agents.stop();
    cluster.stop();
}
