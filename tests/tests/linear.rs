//! Several operators write and read the fleet's configuration at every broker of a cluster, while whoever
//! leads is killed, and come back with a history that one register could have: nobody reads what is over,
//! nobody overwrites what he has not seen, and what was told as done is done.

#[expect(dead_code, reason = "most of it is for what a cluster goes through")]
mod support;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use strobe_broker::control;
use strobe_sim::linear::{Operation, What, check};
use strobe_tests::pause;
use strobe_wire::message::{ApiRequest, ApiResponse};
use support::{Cluster, now};

#[test]
fn the_configuration_is_one_register_whoever_is_killed() {
    let mut cluster = Cluster::start("linear", 3);
    let dirs: Vec<String> = (0..3).map(|at| cluster.dir(at)).collect();
    let (history, done, begun) = (Mutex::new(Vec::new()), AtomicBool::new(false), now());
    std::thread::scope(|scope| {
        for who in 0..4 {
            let operator = Operator { who, dirs: &dirs, begun, history: &history };
            let done = &done;
            scope.spawn(move || operator.work(done));
        }
        for _ in 0..3 {
            pause(2_000);
            let leader = cluster.leader();
            let killed = now();
            cluster.kill(leader);
            let took = cluster.wait_for_another_leader(leader, killed);
            println!("broker {} was killed and led: another one led after {took:?}", leader + 1);
            pause(1_000);
            cluster.restart(leader);
            cluster.wait_until_balanced(60);
        }
        done.store(true, Ordering::Release);
    });
    cluster.stop();
    let history: Vec<Operation> = history.into_inner().expect("no operator panicked");
    let answered = |of: fn(&What) -> bool| {
        history.iter().filter(|op| op.answered.is_some() && of(&op.what)).count()
    };
    let reads = answered(|what| matches!(what, What::Read(_)));
    let writes = answered(|what| matches!(what, What::Swap(..)));
    let refused = answered(|what| matches!(what, What::Refused(_)));
    let unknown = history.iter().filter(|operation| operation.answered.is_none()).count();
    println!("{reads} reads, {writes} writes, {refused} refused, {unknown} without an answer");
    assert!(20 < reads && 20 < writes, "too little was asked");
    assert_eq!(check(&history, 5_000_000), Ok(()));
}

/// One who writes what follows the version that he saw last, and reads, at one broker after the other.
struct Operator<'a> {
    who: usize,
    dirs: &'a [String],
    begun: Instant,
    history: &'a Mutex<Vec<Operation>>,
}

impl Operator<'_> {
    fn work(&self, done: &AtomicBool) {
        let (mut turn, mut seen) = (self.who, 0);
        while !done.load(Ordering::Acquire) {
            turn += 1;
            let dir = &self.dirs[turn % self.dirs.len()];
            let called = self.clock();
            let (what, answered) = if turn.is_multiple_of(2) {
                let text =
                    format!("# {} {turn}\n[broker]\nquery_samples = {}", self.who, 1_000 + turn);
                let query = format!("reason=because&now=true&base={seen}");
                self.put(dir, seen, (query, text))
            } else {
                read(dir)
            };
            let answered = answered.then(|| self.clock());
            match what {
                What::Read(number) | What::Swap(_, number) if answered.is_some() => seen = number,
                _ => {}
            }
            let operation = Operation { key: 0, called, answered, what };
            self.history.lock().expect("no operator panicked").push(operation);
            pause(5);
        }
    }

    /// A version made from number `seen`, and whether it is known what became of it.
    fn put(&self, dir: &str, seen: u64, (query, text): (String, String)) -> (What, bool) {
        match ask(dir, "config/apply", query, text) {
            Some(answer) if answer.status == 200 => {
                let json: serde_json::Value = serde_json::from_slice(&answer.body).expect("JSON");
                (What::Swap(seen, json["number"].as_u64().expect("a number")), true)
            }
            Some(answer) if answer.status == 422 => {
                let why = String::from_utf8_lossy(&answer.body);
                assert!(!why.contains("in force\""), "operator {} repeats itself: {why}", self.who);
                (What::Refused(seen), true)
            }
            // It may have been done: then it is the next version.
            _ => (What::Swap(seen, seen + 1), false),
        }
    }

    fn clock(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_micros()).expect("a short test")
    }
}

/// The newest version, as all agree on it now.
fn read(dir: &str) -> (What, bool) {
    let answer = ask(dir, "config/history", "agreed=true".to_owned(), String::new());
    let Some(answer) = answer.filter(|answer| answer.status == 200) else {
        return (What::Read(0), false);
    };
    let all: serde_json::Value = serde_json::from_slice(&answer.body).expect("JSON");
    let last = all.as_array().expect("a list").last();
    (What::Read(last.map_or(0, |last| last["number"].as_u64().expect("a number"))), true)
}

fn ask(dir: &str, what: &str, query: String, body: String) -> Option<ApiResponse> {
    let (method, path) = ("POST".to_owned(), format!("/api/strobe/v1/{what}"));
    let request =
        ApiRequest { method, path, query, body: body.into_bytes(), ..ApiRequest::default() };
    control::ask(dir.as_ref(), request, Duration::from_secs(20)).ok()
}
