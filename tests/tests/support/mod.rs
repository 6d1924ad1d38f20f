//! Brokers of a cluster and agents of it, for the tests with real processes.

mod agents;
pub(crate) mod judge;
pub(crate) mod network;

pub(crate) use agents::Agents;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};
use strobe_broker::control;
use strobe_tests::namespace::Machine;
use strobe_tests::relay::Relay;
use strobe_tests::{Folder, Process, free_address, pause, run, wait};
use strobe_wire::message::ApiRequest;
use strobe_wire::settings::Settings;

/// One broker.
pub(crate) struct Broker {
    pub(crate) folder: Folder,
    /// Where others reach it.
    address: String,
    listen: String,
    relay: Option<Relay>,
    /// Where it runs, if not where the test does.
    machine: Option<Machine>,
    program: Vec<String>,
    /// It speaks as the version before.
    previous: bool,
    process: Option<Process>,
}

/// Several.
pub(crate) struct Cluster {
    pub(crate) brokers: Vec<Broker>,
    /// How they are told of a Redis when they init and join.
    share: Vec<String>,
}

/// What a broker says of its cluster.
#[derive(Debug)]
pub(crate) struct Status {
    pub(crate) leader: Option<u64>,
    pub(crate) members: Vec<Member>,
}

#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) id: u64,
    stage: String,
    down: bool,
    shards: u64,
}

impl Broker {
    pub(crate) fn start(name: &str, listen: &str) -> Self {
        let address = if listen.ends_with(":0") { free_address() } else { listen.to_owned() };
        Self::of(name, address, &["strobe-broker"])
    }

    fn of(name: &str, listen: String, program: &[&str]) -> Self {
        let mut broker = Self::before_its_start(name, listen, program);
        broker.begin();
        broker
    }

    pub(crate) fn before_its_start(name: &str, listen: String, program: &[&str]) -> Self {
        let program = program.iter().map(|part| (*part).to_owned()).collect();
        let (folder, address) = (Folder::new(name), listen.clone());
        let (relay, machine, process) = (None, None, None);
        Self { folder, address, listen, relay, machine, program, previous: false, process }
    }

    pub(crate) fn dir(&self) -> String {
        self.folder.text().to_owned()
    }

    pub(crate) fn begin(&mut self) {
        let mut args: Vec<&str> = self.program.iter().map(String::as_str).collect();
        let program = args.remove(0);
        args.extend(["--dir", self.folder.text(), "--broker-listen", &self.listen]);
        let env: &[(&str, &str)] = if self.previous { &[PREVIOUS] } else { &[] };
        let start = || Process::start_with(program, env, &args);
        let mut process = match &self.machine {
            Some(machine) => machine.run(start),
            None => start(),
        };
        process.line();
        self.process = Some(process);
    }

    fn ask(&self, path: &str, query: &str) -> Option<String> {
        let (path, query) = (format!("/api/strobe/v1/{path}"), query.to_owned());
        let method = "POST".to_owned();
        let request = ApiRequest { method, path, query, ..ApiRequest::default() };
        let answer = control::ask(self.folder.path(), request, Duration::from_secs(20)).ok()?;
        (answer.status == 200).then(|| String::from_utf8_lossy(&answer.body).into_owned())
    }

    fn text(&self, path: &str, query: &str) -> String {
        let (method, path, query) = ("GET".to_owned(), path.to_owned(), query.to_owned());
        let request = ApiRequest { method, path, query, ..ApiRequest::default() };
        let answer = control::ask(self.folder.path(), request, Duration::from_secs(20));
        let answer = answer.expect("it answers");
        assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
        String::from_utf8(answer.body).expect("text")
    }

    pub(crate) fn status(&self) -> Option<Status> {
        let json: serde_json::Value =
            serde_json::from_str(&self.ask("cluster/status", "")?).ok()?;
        let member = |member: &serde_json::Value| {
            Some(Member {
                id: member["id"].as_u64()?,
                stage: member["stage"].as_str()?.to_owned(),
                down: member["down"].as_bool()?,
                shards: member["shards"].as_u64()?,
            })
        };
        let members = json["members"].as_array()?.iter().filter_map(member).collect();
        Some(Status { leader: json["leader"].as_u64(), members })
    }
}

impl Status {
    pub(crate) fn voters(&self) -> usize {
        self.members.iter().filter(|member| member.stage == "voter").count()
    }
}

impl Status {
    pub(crate) fn shards(&self, id: u64) -> u64 {
        self.members.iter().filter(|member| member.id == id).map(|member| member.shards).sum()
    }
}

impl Cluster {
    /// So many brokers, all of them voters with their share of the shards.
    pub(crate) fn start(name: &str, count: usize) -> Self {
        let start = |at| Broker::start(&format!("{name}-{at}"), "127.0.0.1:0");
        Self::made_of((1..=count).map(start).collect())
    }

    /// The same, of the version before.
    pub(crate) fn start_previous(name: &str, count: usize) -> Self {
        let start = |at: usize| {
            let (name, program) = (format!("{name}-{at}"), ["strobe-broker"]);
            let mut broker = Broker::before_its_start(&name, free_address(), &program);
            broker.previous = true;
            broker.begin();
            broker
        };
        Self::made_of((1..=count).map(start).collect())
    }

    /// A broker ends well, and its next life is of this version.
    pub(crate) fn upgrade(&mut self, at: usize) {
        let broker = &mut self.brokers[at];
        assert!(broker.process.take().expect("it runs").terminate(), "SIGTERM ends it well");
        broker.previous = false;
        broker.begin();
    }

    /// A third broker in this process, so that its live view is at hand; it votes and has its share.
    pub(crate) fn join_here(&self, name: &str, args: &[&str]) -> (strobe_broker::Broker, Folder) {
        let folder = Folder::new(&format!("{name}-here"));
        let listen = free_address();
        let own = ["--dir", folder.text(), "--broker-listen", &listen];
        let args: Vec<String> = own.iter().chain(args).map(|arg| (*arg).to_owned()).collect();
        let keys = strobe_broker::config::KEYS;
        let settings = Settings::load(keys, None, &|_| None, &args).expect("good settings");
        let config = strobe_broker::Config::of(&settings, None, false).expect("good settings");
        let here = strobe_broker::Broker::start(config).expect("it starts");
        let token = self.join_token(0);
        let join = ["cluster", "join", self.address(0), "--token", &token, "--dir", folder.text()];
        let (ok, said, why) = run("strobe", &join);
        assert!(ok, "{said}{why}");
        wait("it votes and has its share", 30, || {
            let status = self.status(0);
            status.voters() == 3 && status.shards(3) > 60
        });
        (here, folder)
    }

    /// The same, with more arguments for each.
    pub(crate) fn start_with(name: &str, count: usize, args: &[&str]) -> Self {
        let program = [&["strobe-broker"], args].concat();
        let start = |at| Broker::of(&format!("{name}-{at}"), free_address(), &program);
        Self::made_of((1..=count).map(start).collect())
    }

    /// One `strobe up`, with this machine's agent, that is no cluster yet.
    pub(crate) fn alone(name: &str) -> Self {
        let up = &["strobe", "up", "--no-viz"];
        Self::before_init(Broker::of(&format!("{name}-1"), free_address(), up))
    }

    pub(crate) fn before_init(broker: Broker) -> Self {
        Self { brokers: vec![broker], share: Vec::new() }
    }

    /// One `strobe up` that begins on what `fill` leaves in its directory.
    pub(crate) fn alone_with(name: &str, more: &[&str], fill: impl FnOnce(&Path)) -> Self {
        let up = [&["strobe", "up", "--no-viz"], more].concat();
        let mut broker = Broker::before_its_start(&format!("{name}-1"), free_address(), &up);
        fill(broker.folder.path());
        broker.begin();
        Self::before_init(broker)
    }

    /// So many brokers with a Redis, each beginning on what `fill` leaves in its directory.
    pub(crate) fn sharing(
        name: &str,
        (count, more): (usize, &[&str]),
        fill: impl Fn(usize, &Path),
    ) -> Self {
        let program = [&["strobe-broker"], more].concat();
        let start = |at: usize| {
            let name = format!("{name}-{at}");
            let mut broker = Broker::before_its_start(&name, free_address(), &program);
            fill(at, broker.folder.path());
            broker.begin();
            broker
        };
        Self::made_of((0..count).map(start).collect())
    }

    /// From now on who inits or joins says this.
    pub(crate) fn will_say(&mut self, share: &[&str]) {
        self.share = share.iter().map(|word| (*word).to_owned()).collect();
    }

    /// One that was lost begins with nothing and joins.
    pub(crate) fn join_anew(&mut self, at: usize, seed: usize) {
        self.brokers[at].begin();
        let token = self.join_token(seed);
        let args = ["cluster", "join", self.address(seed), "--token", &token];
        let (ok, said, why) = run("strobe", &[&args[..], &["--dir", &self.dir(at)]].concat());
        assert!(ok, "{said}{why}");
    }

    /// SIGKILL, and its disk is gone.
    pub(crate) fn lose(&mut self, at: usize) {
        self.kill(at);
        std::fs::remove_dir_all(self.brokers[at].folder.path()).expect("it can be removed");
    }

    /// A number of a broker's `/metrics`.
    pub(crate) fn metric(&self, at: usize, name: &str) -> Option<u64> {
        let text = self.brokers[at].text("/metrics", "");
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|number| number.parse().ok())
    }

    /// Another `strobe up`, with an agent of its own, joins.
    pub(crate) fn grow(&mut self, name: &str) {
        let at = self.brokers.len();
        let instance = format!("agent.instance=up{}", at + 1);
        let up = ["strobe", "up", "--no-viz", "--set", &instance];
        self.brokers.push(Broker::of(&format!("{name}-{}", at + 1), free_address(), &up));
        self.join(at);
    }

    pub(crate) fn made_of(brokers: Vec<Broker>) -> Self {
        let cluster = Self { brokers, share: Vec::new() };
        cluster.init();
        (1..cluster.brokers.len()).for_each(|at| cluster.join(at));
        cluster.wait_until_balanced(60);
        cluster
    }

    pub(crate) fn init(&self) {
        let args = ["cluster", "init", "--address", self.address(0), "--dir", &self.dir(0)];
        let share: Vec<&str> = self.share.iter().map(String::as_str).collect();
        let (ok, said, why) = run("strobe", &[&args[..], &share].concat());
        assert!(ok && said.contains("strobe cluster join"), "{said}{why}");
    }

    fn join(&self, at: usize) {
        let token = self.join_token(at - 1);
        let (seed, dir, address) = (self.address(at - 1), self.dir(at), self.address(at));
        let args = ["cluster", "join", seed, "--token", &token, "--dir", &dir];
        let share: Vec<&str> = self.share.iter().map(String::as_str).collect();
        let args = [&args[..], &["--address", address], &share].concat();
        let (ok, said, why) = run("strobe", &args);
        assert!(ok, "{said}{why}");
    }

    pub(crate) fn dir(&self, at: usize) -> String {
        self.brokers[at].dir()
    }

    pub(crate) fn address(&self, at: usize) -> &str {
        &self.brokers[at].address
    }

    pub(crate) fn join_token(&self, at: usize) -> String {
        let (ok, token, why) = run("strobe", &["cluster", "token", "--dir", &self.dir(at)]);
        assert!(ok, "{why}");
        token.trim().to_owned()
    }

    pub(crate) fn status(&self, at: usize) -> Status {
        self.brokers[at].status().expect("it answers")
    }

    /// Which one leads, as all that run say.
    pub(crate) fn leader(&self) -> usize {
        let mut leader = 0;
        wait("all know the same leader", 20, || {
            let said: Vec<Option<u64>> = (0..self.brokers.len())
                .filter(|&at| self.brokers[at].process.is_some())
                .map(|at| self.status(at).leader)
                .collect();
            leader = said[0].unwrap_or(0);
            said.iter().all(|one| *one == said[0] && one.is_some())
        });
        usize::try_from(leader).expect("small") - 1
    }

    pub(crate) fn kill(&mut self, at: usize) {
        self.brokers[at].process.take().expect("it runs").kill();
    }

    pub(crate) fn restart(&mut self, at: usize) {
        self.brokers[at].begin();
    }

    pub(crate) fn wait_for_another_leader(&self, before: usize, killed: Instant) -> Duration {
        let before = Some(before as u64 + 1);
        let others: Vec<&Broker> = self.brokers.iter().filter(|b| b.process.is_some()).collect();
        loop {
            let leads = |broker: &&Broker| {
                broker.status().is_some_and(|s| s.leader.is_some() && s.leader != before)
            };
            if others.iter().any(leads) {
                return killed.elapsed();
            }
            assert!(killed.elapsed() < Duration::from_secs(20), "nobody leads");
            pause(5);
        }
    }

    /// Every broker is up, votes, and has no more than its share.
    pub(crate) fn wait_until_balanced(&self, seconds: u64) {
        let fair = 256_u64.div_ceil(self.brokers.len() as u64) * 21 / 20 + 1;
        wait("every broker has its share of the shards", seconds, || {
            let Some(status) = self.brokers[0].status() else { return false };
            let good = |m: &Member| m.stage == "voter" && !m.down && m.shards <= fair;
            let all: u64 = status.members.iter().map(|member| member.shards).sum();
            status.members.len() == self.brokers.len()
                && status.members.iter().all(good)
                && all == 256
        });
    }

    /// What a broker that runs answers to a query: a value by `instance`, and the warnings.
    pub(crate) fn query(&self, at: usize, text: &str) -> (BTreeMap<String, u64>, Vec<String>) {
        let query = format!("query={}", strobe_tests::escape(text));
        let json = self.get(at, "/api/v1/query", &query);
        let list = |json: &serde_json::Value| json.as_array().cloned().unwrap_or_default();
        let one = |series: &serde_json::Value| {
            let value = series["value"][1].as_str().expect("a number").parse().expect("whole");
            (series["metric"]["instance"].as_str().unwrap_or("").to_owned(), value)
        };
        let warnings = list(&json["warnings"]).iter().map(ToString::to_string).collect();
        (list(&json["data"]["result"]).iter().map(one).collect(), warnings)
    }

    /// How many agents are with this broker now.
    pub(crate) fn sessions(&self, at: usize) -> usize {
        let number = self.metric(at, "strobe_broker_sessions").expect("it is counted");
        usize::try_from(number).expect("small")
    }

    pub(crate) fn get(&self, at: usize, path: &str, query: &str) -> serde_json::Value {
        serde_json::from_str(&self.brokers[at].text(path, query)).expect("JSON")
    }

    pub(crate) fn changes_per_second(&self, threads: usize, each: usize) -> f64 {
        let leader = &self.brokers[self.leader()];
        let begun = now();
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    for _ in 0..each {
                        let token = leader.ask("cluster/token", "lifetime_ms=60000");
                        assert!(token.is_some(), "a change is refused");
                    }
                });
            }
        });
        (threads * each) as f64 / begun.elapsed().as_secs_f64()
    }

    /// All brokers end well, somebody looks at their directories, and they go on.
    pub(crate) fn while_stopped<T>(&mut self, look: impl FnOnce(&Self) -> T) -> T {
        self.stop();
        let seen = look(self);
        self.brokers.iter_mut().for_each(Broker::begin);
        seen
    }

    pub(crate) fn stop(&mut self) {
        for broker in &mut self.brokers {
            assert!(broker.process.take().expect("it runs").terminate(), "SIGTERM ends it well");
        }
    }
}

/// What makes a program that was built for tests speak as the version before.
pub(crate) const PREVIOUS: (&str, &str) = ("STROBE_TEST_PREVIOUS", "1");

#[expect(clippy::disallowed_methods, reason = "real processes need real time to pass")]
pub(crate) fn now() -> Instant {
    Instant::now()
}
