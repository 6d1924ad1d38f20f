//! Machines that are found, named, checked, retired and forgotten, with the real programs.

use std::net::TcpListener;
use strobe_tests::{Folder, Process, free_address, http_get, http_post, query, run, wait};

/// A broker with a dashboard and no agent.
struct Site {
    dir: Folder,
    viz: String,
    broker: String,
}

impl Site {
    fn new(name: &str) -> Self {
        Self { dir: Folder::new(name), viz: free_address(), broker: free_address() }
    }

    fn start(&self, keys: &[&str]) -> Process {
        let base = self.base();
        let more: Vec<&str> = keys.iter().flat_map(|key| ["--set", key]).collect();
        let args = ["up", "--no-agent", "--dir", &base];
        let ports = ["--listen", &self.viz, "--broker-listen", &self.broker];
        let mut strobe = Process::start("strobe", &[&args[..], &ports, &more].concat());
        strobe.line();
        strobe
    }

    fn base(&self) -> String {
        self.dir.path().join("strobe").display().to_string()
    }

    fn hosts(&self, args: &[&str]) -> Result<String, String> {
        let base = self.base();
        // The directory goes with the command that it is for.
        let place = if args.first().is_some_and(|word| !word.starts_with('-')) { 1 } else { 0 };
        let (verb, rest) = args.split_at(place);
        let (ok, said, why) =
            run("strobe", &[&["hosts"], verb, &["--dir", base.as_str()], rest].concat());
        if ok { Ok(said) } else { Err(why) }
    }

    /// What the API says of a machine.
    fn machine(&self, name: &str) -> serde_json::Value {
        let (_, body) = http_get(&self.viz, "/api/strobe/v1/hosts").unwrap_or_default();
        let all: serde_json::Value = serde_json::from_str(&body).unwrap_or_default();
        let found = all.as_array().into_iter().flatten().find(|one| one["instance"] == name);
        found.cloned().unwrap_or_default()
    }

    fn check(&self, name: &str, check: &str) -> String {
        let machine = self.machine(name);
        let found = machine["checks"].as_array().into_iter().flatten();
        let state =
            found.filter(|one| one["check"] == check).filter_map(|one| one["state"].as_str());
        state.map(str::to_owned).next().unwrap_or_default()
    }
}

#[test]
fn a_machine_without_an_agent_is_checked_and_three_strikes_are_told() {
    let site = Site::new("hosts-checks");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (tcp, port) = (format!("tcp:{}", address.port()), site.broker.rsplit(':').next().unwrap());
    // The broker's own port speaks QUIC.
    let quic = format!("quic:{port}");
    let checks = format!("{tcp},{quic}");
    let mut strobe = site.start(&[
        "broker.discover_static=there=127.0.0.1",
        &format!("broker.checks={checks}"),
        "broker.check_interval=1s",
        "broker.check_timeout=500ms",
    ]);
    wait("both checks are up", 20, || {
        site.check("there", &tcp) == "up" && site.check("there", &quic) == "up"
    });
    assert_eq!(site.machine("there")["state"], "known");
    assert_eq!(site.machine("there")["source"], "static");
    drop(listener);
    wait("the closed port is down", 20, || site.check("there", &tcp) == "down");
    assert_eq!(site.check("there", &quic), "up");
    let up = query(&site.viz, &format!("strobe_check_up{{instance=\"there\",check=\"{tcp}\"}}"));
    assert_eq!(up[0]["value"][1], "0");
    let (_, metrics) = http_get(&site.viz, "/metrics").unwrap();
    assert!(metrics.contains("strobe_broker_checks_down 1\n"), "{metrics}");
    let again = TcpListener::bind(address).unwrap();
    wait("it is up again", 20, || site.check("there", &tcp) == "up");
    drop(again);
    assert!(strobe.terminate());
}

#[test]
fn what_an_operator_says_of_a_machine_is_kept() {
    let site = Site::new("hosts-named");
    let mut strobe = site.start(&[]);
    let add = ["add", "db1", "--address", "127.0.0.1", "--group", "db", "--tag", "eu"];
    site.hosts(&[&add[..], &["--check", "tcp:1"]].concat()).unwrap();
    site.hosts(&["add", "web1", "--tag", "eu"]).unwrap();
    for (args, wanted) in [
        (&["add", "a b"][..], "is no name"),
        (&["add", "x", "--check", "ping"], "is no check"),
        (&["add", "x", "--tag", "a b"], "is no tag"),
        (&["retire", "nobody"], "no machine \"nobody\" is known"),
        (&["remove", "nobody"], "no machine \"nobody\" is known"),
        (&["find"], "told of no way to find machines"),
    ] {
        let why = site.hosts(args).unwrap_err();
        assert!(why.contains(wanted), "{args:?}: {why}");
    }
    let listed = site.hosts(&["--group", "db", "--tag", "eu"]).unwrap();
    assert!(listed.contains("db1") && !listed.contains("web1"), "{listed}");
    site.hosts(&["retire", "web1"]).unwrap();
    wait("what is known of it is a series", 20, || {
        let told = query(&site.viz, "strobe_target_info");
        told.len() == 1 && told[0]["metric"]["group"] == "db" && told[0]["metric"]["tags"] == "eu"
    });
    assert!(strobe.terminate());

    // Another life knows it all.
    let mut strobe = site.start(&[]);
    assert_eq!(site.machine("db1")["tags"][0], "eu");
    assert_eq!(site.machine("web1")["state"], "retired");
    site.hosts(&["retire", "web1", "--undo"]).unwrap();
    assert_eq!(site.machine("web1")["state"], "known");
    site.hosts(&["remove", "web1"]).unwrap();
    assert!(site.machine("web1").is_null());

    // A program registers machines with a token that is good, and says no more than an operator lets it.
    let path = "/api/strobe/v1/hosts/register";
    let (status, body) = http_post(&site.viz, path, "host=new1&token=none").unwrap();
    assert_eq!(status, 403, "{body}");
    let (ok, token, why) = run("strobe", &["token", "create", "--dir", &site.base()]);
    assert!(ok, "{why}");
    let form = format!("host=new1&address=127.0.0.9&tag=cloud&token={}", token.trim());
    let (status, body) = http_post(&site.viz, path, &form).unwrap();
    assert_eq!(status, 200, "{body}");
    assert_eq!(site.machine("new1")["address"], "127.0.0.9");
    let (status, _) = http_post(&site.viz, path, &format!("{form}&check=tcp:22")).unwrap();
    assert_eq!(status, 400);

    // The agent on it enrols with the same token, and is what was known.
    let own = site.dir.path().join("agent").display().to_string();
    let args = ["--dir", &own, "--broker", &site.broker, "--token", token.trim()];
    let mut agent = Process::start("strobe-agent", &[&args[..], &["--instance", "new1"]].concat());
    wait("its agent is there", 20, || site.machine("new1")["state"] == "fresh");
    assert_eq!(site.machine("new1")["tags"][0], "cloud");
    let (status, _) = http_post(&site.viz, path, &form).unwrap();
    assert_eq!(status, 403, "the token is used up");
    assert!(agent.terminate());
    site.hosts(&["retire", "new1"]).unwrap();
    assert_eq!(site.machine("new1")["state"], "retired");
    let mut agent = Process::start("strobe-agent", &[&args[..], &["--instance", "new1"]].concat());
    wait("who sends again is in use again", 20, || site.machine("new1")["state"] == "fresh");
    assert!(agent.terminate() && strobe.terminate());
}
