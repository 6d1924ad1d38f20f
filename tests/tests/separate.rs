//! Broker, agent and dashboard as three processes that know of each other only by address and token.

use strobe_tests::{Folder, Process, free_address, http_get, pause, query, run, wait};

struct Fleet {
    dir: Folder,
    address: String,
    broker: Process,
}

impl Fleet {
    fn new(name: &str) -> Self {
        let dir = Folder::new(name);
        let path = dir.path().join("broker").display().to_string();
        let listen = ["--dir", &path, "--broker-listen", "127.0.0.1:0"];
        let mut broker = Process::start("strobe-broker", &listen);
        let line = broker.line();
        let address = line.split("QUIC on ").nth(1).and_then(|rest| rest.split(',').next());
        let address = address.unwrap_or_else(|| panic!("no address in {line:?}")).to_owned();
        Self { dir, address, broker }
    }

    fn folder(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    fn token(&self) -> String {
        let (ok, token, error) =
            run("strobe", &["token", "create", "--dir", &self.folder("broker")]);
        assert!(ok, "strobe token create: {error}");
        token.trim().to_owned()
    }

    fn start(&self, program: &str, name: &str, more: &[&str]) -> Process {
        let (dir, token) = (self.folder(name), self.token());
        let args = ["--broker", &self.address, "--token", &token, "--dir", &dir];
        Process::start(program, &[&args[..], more].concat())
    }

    /// A dashboard that must end by itself; what it said.
    fn refused(&self, token: &str, name: &str, more: &[&str]) -> String {
        let dir = self.folder(name);
        let args = ["--broker", &self.address, "--token", token, "--dir", &dir];
        let (ok, out, error) = run("strobe-viz", &[&args[..], more].concat());
        assert!(!ok, "it started: {out}{error}");
        error
    }
}

#[test]
fn three_processes_are_one_strobe() {
    let mut fleet = Fleet::new("three");
    let mut agent = fleet.start("strobe-agent", "agent", &[]);
    let mut viz = fleet.start("strobe-viz", "viz", &["--listen", "127.0.0.1:0"]);
    let line = viz.line();
    let address = line.trim().split("http://").nth(1).expect("it says where it is").to_owned();
    wait("the host is there", 20, || !query(&address, "node_load1").is_empty());
    let (status, hosts) = http_get(&address, "/api/strobe/v1/hosts").expect("the API answers");
    assert!(status == 200 && hosts.contains("\"state\":\"fresh\""), "{status}: {hosts}");
    let (status, metrics) = http_get(&address, "/metrics").expect("the metrics answer");
    assert!(status == 200 && metrics.contains("strobe_viz_rows_total"), "{status}: {metrics:.300}");
    // The dashboard holds nothing: without its broker it says so, and finds it again.
    let entries = || std::fs::read_dir(fleet.folder("viz")).expect("its folder").count();
    assert_eq!(entries(), 2, "its identity and its workers' socket");
    assert!(viz.terminate() && agent.terminate(), "SIGTERM ends both well");
    assert_eq!(entries(), 1, "the socket's folder is gone, the identity stays");
    assert!(fleet.broker.terminate(), "SIGTERM ends the broker well");
}

/// A broker that comes back is found again, by the certificate alone.
#[test]
fn a_dashboard_outlives_its_broker() {
    let dir = Folder::new("outlives");
    let (state, listen) = (dir.path().join("broker").display().to_string(), free_address());
    let args = ["--dir", &state, "--broker-listen", &listen];
    let mut broker = Process::start("strobe-broker", &args);
    broker.line();
    let (_, token, _) = run("strobe", &["token", "create", "--dir", &state]);
    let own = dir.path().join("viz").display().to_string();
    let more = ["--token", token.trim(), "--dir", &own, "--listen", "127.0.0.1:0"];
    let mut viz = Process::start("strobe-viz", &[&["--broker", &listen][..], &more].concat());
    let line = viz.line();
    let address = line.trim().split("http://").nth(1).expect("it says where it is").to_owned();
    let ready = |wanted| http_get(&address, "/-/ready").is_ok_and(|(status, _)| status == wanted);
    wait("it is connected", 10, || ready(200));
    broker.kill();
    wait("it says that the broker is gone", 30, || ready(503));
    let (status, why) = http_get(&address, "/api/v1/query?query=up").expect("it answers");
    assert!(status == 503 && why.contains("not connected"), "{status}: {why}");
    let _broker = Process::start("strobe-broker", &args);
    wait("it is connected again", 30, || ready(200));
}

/// A token and an identity are of one fleet: another one's broker is named as what it is, and its own
/// token moves the dashboard over.
#[test]
fn a_dashboard_of_another_fleet_says_so() {
    let (ours, theirs) = (Fleet::new("ours"), Fleet::new("theirs"));
    let any = ["--listen", "127.0.0.1:0"];
    let wanted =
        ["the token is not of the broker at this address", "--token", "strobe token create"];
    let said = theirs.refused(&ours.token(), "viz", &any);
    assert!(wanted.iter().all(|part| said.contains(part)), "{said}");
    assert!(said.lines().count() == 1, "once: {said}");

    let mut viz = ours.start("strobe-viz", "viz", &any);
    viz.line();
    assert!(viz.terminate(), "SIGTERM ends it well");
    let own = ours.folder("viz");
    let identity = || std::fs::read(ours.dir.path().join("viz/viz.pem")).expect("its identity");
    let before = identity();
    let args = ["--broker", &theirs.address, "--dir", &own, "--listen", "127.0.0.1:0"];
    let ready = |viz: &mut Process| {
        let line = viz.line();
        let address = line.trim().split("http://").nth(1).expect("it says where it is").to_owned();
        move || http_get(&address, "/-/ready").unwrap_or_default()
    };
    let mut viz = Process::start("strobe-viz", &args);
    let ask = ready(&mut viz);
    wait("it says whose broker it is not", 10, || {
        let (status, why) = ask();
        let wanted = [&theirs.address, "not signed by this fleet's authority", "--token"];
        status == 503 && wanted.iter().all(|part| why.contains(part))
    });
    assert!(viz.terminate() && identity() == before, "it keeps what is good elsewhere");

    let mut viz =
        Process::start("strobe-viz", &[&args[..], &["--token", &theirs.token()]].concat());
    let ask = ready(&mut viz);
    wait("it is in the other fleet", 10, || ask().0 == 200);
    assert!(viz.terminate() && identity() != before, "SIGTERM ends it well");
}

/// An agent that meets a broker of another fleet keeps what it has, even with a token of its own
/// fleet; a token of the broker's moves it over.
#[test]
fn a_token_moves_an_agent_to_another_fleet() {
    let (ours, theirs) = (Fleet::new("left"), Fleet::new("joined"));
    let identity = || std::fs::read(ours.dir.path().join("agent/identity.pem")).ok();
    let mut agent = ours.start("strobe-agent", "agent", &[]);
    wait("it is enrolled", 10, || identity().is_some());
    assert!(agent.terminate(), "SIGTERM ends it well");
    let before = identity();
    let own = ours.folder("agent");
    let at_theirs = |token: String| {
        let args = ["--broker", &theirs.address, "--dir", &own, "--token", &token];
        Process::start("strobe-agent", &args)
    };
    let mut agent = at_theirs(ours.token());
    pause(2_500);
    assert!(agent.terminate() && identity() == before, "it is of its own fleet still");
    let mut agent = at_theirs(theirs.token());
    wait("it is in the other fleet", 10, || identity() != before);
    assert!(agent.terminate(), "SIGTERM ends it well");
}

/// `$STROBE_DIR` is set for a whole machine: what each program keeps there is its own.
#[test]
fn one_directory_serves_a_broker_an_agent_and_a_dashboard() {
    let dir = Folder::new("one-dir");
    let env = [("STROBE_DIR", dir.text())];
    let listen = ["--broker-listen", "127.0.0.1:0"];
    let mut broker = Process::start_with("strobe-broker", &env, &listen);
    let address = broker.line().split("QUIC on ").nth(1).expect("it says where").to_owned();
    let address = address.split(',').next().expect("an address").to_owned();
    let token = || run("strobe", &["token", "create", "--dir", dir.text()]).1.trim().to_owned();
    let names = ["identity.pem", "viz.pem", "host.toml", "ca/authority.pem", "version"];
    let files = || names.map(|name| std::fs::read(dir.path().join(name)).expect(name));
    let mut kept = None;
    for tokens in [Some([token(), token()]), None] {
        let args = |of: usize| {
            let token = tokens.as_ref().map(|tokens| tokens[of].as_str());
            let token = token.map(|token| ["--token", token]);
            let args = ["--broker", address.as_str()].into_iter();
            args.chain(token.into_iter().flatten()).collect::<Vec<_>>()
        };
        let mut agent = Process::start_with("strobe-agent", &env, &args(0));
        let viz = [&args(1)[..], &["--listen", "127.0.0.1:0"]].concat();
        let mut viz = Process::start_with("strobe-viz", &env, &viz);
        let line = viz.line();
        let at = line.trim().split("http://").nth(1).expect("it says where it is").to_owned();
        wait("the host is seen", 20, || !query(&at, "node_load1").is_empty());
        wait("it is fresh", 20, || {
            http_get(&at, "/api/strobe/v1/hosts").is_ok_and(|(_, hosts)| hosts.contains("fresh"))
        });
        // A second of the same program would be the same host twice.
        let (code, _, said) = strobe_tests::run_with("strobe-agent", &env, &args(0));
        assert!(code == 1 && said.contains(dir.text()) && said.contains("--dir"), "{said}");
        assert!(agent.terminate() && viz.terminate(), "SIGTERM ends both well");
        let found = files();
        assert_eq!(*kept.get_or_insert_with(|| found.clone()), found);
    }
    assert!(broker.terminate(), "SIGTERM ends the broker well");
}

#[test]
fn what_cannot_work_is_said_and_ends() {
    let fleet = Fleet::new("refusals");
    let any = ["--listen", "127.0.0.1:0"];
    let token = fleet.token();
    let mut first = Process::start(
        "strobe-viz",
        &[
            &["--broker", &fleet.address, "--token", &token, "--dir", &fleet.folder("first")][..],
            &any,
        ]
        .concat(),
    );
    let line = first.line();
    let taken = line.trim().split("http://").nth(1).expect("it says where it is");
    let said = fleet.refused(&token, "replayed", &any);
    assert!(said.contains("the token was used before"), "{said}");
    let said = fleet.refused(&fleet.token(), "busy", &["--listen", taken]);
    assert!(said.contains(taken) && said.contains("--listen"), "{said}");
    let (_, brief, _) =
        run("strobe", &["token", "create", "--lifetime", "1s", "--dir", &fleet.folder("broker")]);
    pause(1_100);
    let said = fleet.refused(brief.trim(), "expired", &any);
    assert!(said.contains("the token has expired"), "{said}");
    let said = fleet.refused("strobe1.short", "malformed", &any);
    assert!(said.contains("--token") && said.contains("strobe token"), "{said}");
    let said = fleet.refused(&token, "open", &["--listen", "0.0.0.0:0"]);
    assert!(said.contains("can be reached from other machines"), "{said}");
    let file = fleet.folder("file");
    std::fs::write(&file, "").expect("writable");
    let said = fleet.refused(&token, "file/below", &any);
    assert!(said.contains(&file) && said.contains("--dir"), "{said}");
    let toml = fleet.folder("viz.toml");
    std::fs::write(&toml, "[viz]\nlistne = \"127.0.0.1:0\"\n").expect("writable");
    let said = fleet.refused(&token, "config", &["--config", &toml]);
    assert!(said.contains(&toml) && said.contains("did you mean `viz.listen`?"), "{said}");
    let (ok, _, said) =
        run("strobe-viz", &["--broker", &fleet.address, "--dir", &fleet.folder("new")]);
    assert!(!ok && said.contains("--token"), "{said}");
}
