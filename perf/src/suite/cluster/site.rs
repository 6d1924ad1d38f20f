//! Brokers and a Redis of one run: started, asked, hurt, ended.

use super::{DRAIN, READY, Wanted};
use crate::broker::{Broker, sealed};
use crate::process::{cpu_ns, pss_kib};
use crate::rows::{Model, Shape};
use crate::run;
use crate::suite::Bench;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use strobe_broker::control;
use strobe_wire::message::ApiRequest;

/// The processes.
pub(super) struct Site {
    pub(super) brokers: Vec<Broker>,
    redis: Option<Redis>,
    /// Of each broker, KiB.
    pub(super) peaks: Vec<u64>,
    /// CPU time of lives that are over.
    spent_ns: u64,
}

/// A server that keeps nothing over its end.
struct Redis {
    child: Child,
    port: u16,
    dir: PathBuf,
}

/// What a broker answers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counted {
    /// Moments of all hosts.
    pub(super) sum: u64,
    /// Of the host that has the fewest.
    pub(super) least: u64,
    pub(super) warnings: usize,
}

impl Site {
    pub(super) fn start(bench: &Bench, wanted: &Wanted, scratch: &Path) -> Result<Self, String> {
        let redis = if wanted.redis { Some(Redis::start(scratch)?) } else { None };
        let store = redis.as_ref().map(|redis| format!("redis://127.0.0.1:{}/0", redis.port));
        let more: Vec<&str> = store.iter().flat_map(|url| ["--store", url.as_str()]).collect();
        let program = bench.program("strobe-broker")?;
        let mut brokers = Vec::new();
        for number in 1..=wanted.brokers {
            let own = scratch.join(number.to_string());
            let started = Broker::start_with(&program, &own, &more);
            brokers.push(started.map_err(|why| why.to_string())?);
        }
        let site = Self { brokers, redis, peaks: vec![0; wanted.brokers], spent_ns: 0 };
        let ask = |at: usize, what: &str, form: &str| {
            let said = site.brokers[at].operate(&format!("/api/strobe/v1/cluster/{what}"), form);
            said.map_err(|why| why.to_string())
        };
        ask(0, "init", "")?;
        let seed = site.brokers[0].address;
        for at in 1..wanted.brokers {
            let token = ask(0, "token", "lifetime_ms=600000")?;
            ask(at, "join", &format!("seed={seed}&token={}", token.trim()))?;
        }
        site.settle()?;
        Ok(site)
    }

    /// Waits until all are there and have their share.
    pub(super) fn settle(&self) -> Result<(), String> {
        let until = run::now() + READY;
        while !self.is_balanced() {
            if until < run::now() {
                return Err("the brokers did not become a cluster within a minute".into());
            }
            run::sleep_until(run::now() + Duration::from_millis(200));
        }
        Ok(())
    }

    /// Which one leads, as this one says.
    pub(super) fn leader(&self, at: usize) -> Option<usize> {
        leader_of(&self.brokers[at].dir)
    }

    fn is_balanced(&self) -> bool {
        let status = status(&self.brokers[0].dir);
        let members = status["members"].as_array().cloned().unwrap_or_default();
        let fair = 256_u64.div_ceil(self.brokers.len() as u64) * 21 / 20 + 1;
        let shards = |member: &Value| member["shards"].as_u64().unwrap_or(u64::MAX);
        let fits = |member: &Value| member["stage"] == "voter" && member["down"] == false;
        members.len() == self.brokers.len()
            && members.iter().all(|one| fits(one) && shards(one) <= fair)
            && members.iter().map(shards).sum::<u64>() == 256
    }

    pub(super) fn cpu_ns(&self) -> u64 {
        let living = self.brokers.iter().filter_map(|broker| cpu_ns(broker.pid()));
        self.spent_ns + living.sum::<u64>()
    }

    /// Looks at how much memory they take.
    pub(super) fn look(&mut self) {
        for (peak, broker) in self.peaks.iter_mut().zip(&self.brokers) {
            *peak = pss_kib(broker.pid()).unwrap_or(0).max(*peak);
        }
    }

    /// Brokers, and then the Redis if there is one.
    pub(super) fn processes(&self) -> usize {
        self.brokers.len() + usize::from(self.redis.is_some())
    }

    /// SIGKILL.
    pub(super) fn kill(&mut self, at: usize) {
        if let Some(broker) = self.brokers.get_mut(at) {
            self.spent_ns += cpu_ns(broker.pid()).unwrap_or(0);
            broker.kill();
        } else if let Some(redis) = &mut self.redis {
            redis.kill();
        }
    }

    /// Another life.
    pub(super) fn begin_again(&mut self, at: usize) -> Result<(), String> {
        match (self.brokers.get_mut(at), &mut self.redis) {
            (Some(broker), _) => broker.begin_again().map_err(|why| why.to_string()),
            (None, Some(redis)) => redis.begin(),
            (None, None) => Ok(()),
        }
    }

    /// Held still, or let go on.
    pub(super) fn signal(&self, at: usize, what: Signal) -> Result<(), String> {
        match (self.brokers.get(at), &self.redis) {
            (Some(broker), _) => signal(broker.pid(), what),
            (None, Some(redis)) => signal(redis.child.id(), what),
            (None, None) => Ok(()),
        }
    }

    /// Moments of every host, as each broker answers when all are there.
    pub(super) fn counted(&self, wanted: &Wanted, lasted_s: f64) -> Result<Vec<Counted>, String> {
        let model = Model::new(Shape::Host, wanted.series);
        let first = &model.schemas[0].columns[0];
        // Seconds that any host's first row may be ago, with what came before them.
        let seconds = (Duration::from_secs_f64(lasted_s) + DRAIN + READY + READY).as_secs();
        let expression = format!("sum(count_over_time({}[{seconds}s]))", first.name);
        let least = format!("min(count_over_time({}[{seconds}s]))", first.name);
        let until = run::now() + READY;
        loop {
            let all: Result<Vec<Counted>, String> = (0..self.brokers.len())
                .map(|at| {
                    let (sum, warnings) = self.ask(at, &expression)?;
                    Ok(Counted { sum, least: self.ask(at, &least)?.0, warnings })
                })
                .collect();
            // A broker that was hurt last may still be on its way back.
            match all {
                Ok(all) if all.iter().all(|one| one.warnings == 0) => return Ok(all),
                all if until < run::now() => return all,
                _ => run::sleep_until(run::now() + Duration::from_millis(500)),
            }
        }
    }

    fn ask(&self, at: usize, expression: &str) -> Result<(u64, usize), String> {
        // Nothing in it would have to be encoded.
        let query = format!("query={expression}");
        let body = self.brokers[at].ask("/api/v1/query", &query).map_err(|why| why.to_string())?;
        let body: Value = serde_json::from_str(&body).map_err(|why| why.to_string())?;
        let value = body["data"]["result"][0]["value"][1].as_str().unwrap_or("0");
        let value = value.parse().map_err(|_| format!("{value:?} is no whole number"))?;
        Ok((value, body["warnings"].as_array().map_or(0, Vec::len)))
    }

    /// Ends all, and counts the raw samples on their disks.
    pub(super) fn end(self, from_ms: i64) -> Result<u64, String> {
        let dirs: Vec<_> = self.brokers.iter().map(|broker| broker.dir.join("store")).collect();
        let ended: Vec<_> = self.brokers.into_iter().map(Broker::end_and_keep).collect();
        let mut samples = 0;
        for dir in &dirs {
            samples += sealed(dir, from_ms).map_err(|why| why.to_string())?.raw.samples;
        }
        drop(ended);
        drop(self.redis);
        Ok(samples)
    }
}

impl Redis {
    fn start(scratch: &Path) -> Result<Self, String> {
        std::fs::create_dir_all(scratch).map_err(|why| why.to_string())?;
        let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr());
        let port = free.map_err(|why| why.to_string())?.port();
        let redis = Self { child: spawn(port, scratch)?, port, dir: scratch.to_owned() };
        let until = run::now() + READY;
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            if until < run::now() {
                return Err("redis-server does not answer".into());
            }
            run::sleep_until(run::now() + Duration::from_millis(20));
        }
        Ok(redis)
    }

    fn begin(&mut self) -> Result<(), String> {
        self.child = spawn(self.port, &self.dir)?;
        Ok(())
    }

    fn kill(&mut self) {
        // By its id; it may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}

fn spawn(port: u16, dir: &Path) -> Result<Child, String> {
    let port = port.to_string();
    Command::new("redis-server")
        .args(["--port", &port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
        .arg("--dir")
        .arg(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .map_err(|why| format!("redis-server cannot be started: {why}"))
}

/// What a broker says of its cluster; nothing if it does not run.
fn status(dir: &Path) -> Value {
    let (method, path) = ("POST".to_owned(), "/api/strobe/v1/cluster/status".to_owned());
    let request = ApiRequest { method, path, ..ApiRequest::default() };
    let answer = control::ask(dir, request, Duration::from_secs(5));
    let body = answer.map(|answer| answer.body).unwrap_or_default();
    serde_json::from_slice(&body).unwrap_or_default()
}

/// Entries of the log that this broker has applied.
pub(super) fn applied(dir: &Path) -> u64 {
    status(dir)["applied"].as_u64().unwrap_or(0)
}

fn leader_of(dir: &Path) -> Option<usize> {
    let id = status(dir)["leader"].as_u64()?;
    usize::try_from(id).ok()?.checked_sub(1)
}

/// How long after `killed` a broker of these says that another one than `before` leads.
pub(super) fn election(dirs: &[PathBuf], before: usize, killed: Instant) -> Option<Duration> {
    while killed + READY > run::now() {
        let another = |dir: &PathBuf| leader_of(dir).is_some_and(|leader| leader != before);
        if dirs.iter().any(another) {
            return Some(run::now() - killed);
        }
        run::sleep_until(run::now() + Duration::from_millis(5));
    }
    None
}

fn signal(pid: u32, signal: Signal) -> Result<(), String> {
    let pid = i32::try_from(pid).map_err(|why| why.to_string())?;
    kill(Pid::from_raw(pid), signal).map_err(|why| format!("{signal}: {why}"))
}
