//! A Redis that forgets: one server or a Cluster of three, each with a replica that lags.
//!
//! It stands at the door of this thread ([`strobe_broker::store::redis::door`]): what brokers send
//! is read as bytes and answered as bytes. A failover makes the replica the primary, without
//! the last writes; a restart leaves nothing; a server that hangs answers nobody and may carry out
//! what it was sent; one that is full refuses what wants memory; a connection is cut between any
//! two commands of a pipeline. A script is carried out, and copied to the replica, whole or not at all.
//!
//! What must hold, looked at with every command: nothing of a shard is written but by a script,
//! which names no other shard's keys; and no script of an older epoch writes after a newer one
//! did, as long as what the newer one wrote is there.

mod keyspace;
mod resp;

use super::dice::Die;
use keyspace::{Keyspace, name, number, text, wants_memory, writes};
use resp::{Reply, commands};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{Error, ErrorKind};
use std::rc::Rc;
use std::time::Duration;
use strobe_broker::store::redis::RedisConfig;
use strobe_broker::store::redis::door::{Call, watch};
use strobe_wire::ids::HostId;
use strobe_wire::shard::Shard;

/// All servers; clones share them.
#[derive(Clone)]
pub(crate) struct Redis(Rc<RefCell<Inner>>);

struct Inner {
    servers: Vec<Server>,
    talks: BTreeMap<u64, Talk>,
    now_us: u64,
    now_ms: i64,
    /// How long who asked had to wait.
    waited_ms: u64,
    die: Die,
    /// Shards and epochs that were written by since the last turn.
    written: BTreeSet<(u32, u64)>,
    said: Vec<String>,
    commands: u64,
    /// Whether anything that was written is gone.
    has_lost: bool,
}

#[derive(Default)]
struct Server {
    primary: Keyspace,
    replica: Keyspace,
    /// What the replica lacks, oldest first: each all or nothing.
    behind: VecDeque<Effect>,
    /// Connections of an earlier one are cut.
    life: u64,
    fails_in: Option<(u64, Failure)>,
    down_until: u64,
    hung_until: u64,
    full_until: u64,
}

/// Writes that are done together.
struct Effect {
    now_ms: i64,
    commands: Vec<Vec<Vec<u8>>>,
    /// The fence of a script, and its epoch.
    by: Option<(Vec<u8>, u64)>,
}

/// A connection.
struct Talk {
    server: usize,
    life: u64,
    answers: VecDeque<Vec<u8>>,
    /// Whether something was sent that is not going to be answered.
    silent: bool,
}

/// How a server ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Failure {
    /// The replica goes on.
    Failover,
    /// It starts again and has nothing.
    Empty,
    /// Only its connections do.
    Cut,
}

impl Redis {
    pub(crate) fn new(die: Die, servers: usize) -> Self {
        let servers = (0..servers).map(|_| Server::default()).collect();
        let inner = Inner {
            servers,
            talks: BTreeMap::new(),
            now_us: 0,
            now_ms: 0,
            waited_ms: 0,
            die,
            written: BTreeSet::new(),
            said: Vec::new(),
            commands: 0,
            has_lost: false,
        };
        Self(Rc::new(RefCell::new(inner)))
    }

    /// How brokers name it.
    pub(crate) fn config(&self) -> RedisConfig {
        let count = self.0.borrow().servers.len();
        let url = match count {
            1 => format!("redis://{}", address(0)),
            _ => {
                format!("redis+cluster://{}", (0..count).map(address).collect::<Vec<_>>().join(","))
            }
        };
        RedisConfig::at(url)
    }

    /// Takes its place at the door of this thread.
    pub(crate) fn take_the_door(&self) {
        let redis = self.clone();
        watch(move |call| redis.0.borrow_mut().call(call));
    }

    /// What time it is there.
    pub(crate) fn set_time(&self, now_us: u64, now_ms: i64) {
        let mut inner = self.0.borrow_mut();
        (inner.now_us, inner.now_ms) = (now_us, now_ms);
    }

    /// How long somebody had to wait since the last time.
    pub(crate) fn waited(&self) -> Duration {
        Duration::from_millis(std::mem::take(&mut self.0.borrow_mut().waited_ms))
    }

    /// By which epochs shards were written to, and what happened, since the last time.
    pub(crate) fn turned(&self) -> (BTreeSet<(u32, u64)>, Vec<String>) {
        let inner = &mut *self.0.borrow_mut();
        (std::mem::take(&mut inner.written), std::mem::take(&mut inner.said))
    }

    /// Whether a frame of then is in the log of its shard or in a block, or was before something was lost.
    pub(crate) fn has_or_lost(&self, host: HostId, frame: &[u8], ms: i64) -> bool {
        let inner = self.0.borrow();
        let (key, host) = (log_key(host), host.to_string());
        let record = [&[FRAME], frame].concat();
        let has = |keys: &Keyspace| keys.has(key.as_bytes(), &record) || keys.covers(&host, ms);
        inner.has_lost || inner.servers.iter().any(|server| has(&server.primary))
    }

    pub(crate) fn commands(&self) -> u64 {
        self.0.borrow().commands
    }

    pub(crate) fn fail_in(&self, which: u64, commands: u64, how: Failure) {
        self.with(which, |server| server.fails_in = Some((commands, how)));
    }

    pub(crate) fn hang(&self, which: u64, until: u64) {
        self.with(which, |server| server.hung_until = until);
    }

    pub(crate) fn fill(&self, which: u64, until: u64) {
        self.with(which, |server| server.full_until = until);
    }

    /// Nothing more goes wrong.
    pub(crate) fn heal(&self) {
        for server in &mut self.0.borrow_mut().servers {
            server.fails_in = None;
            (server.down_until, server.hung_until, server.full_until) = (0, 0, 0);
        }
    }

    fn with(&self, which: u64, act: impl FnOnce(&mut Server)) {
        let servers = &mut self.0.borrow_mut().servers;
        let which = usize::try_from(which).expect("small") % servers.len();
        act(&mut servers[which]);
    }
}

impl Inner {
    fn call(&mut self, call: Call<'_>) -> Result<Vec<u8>, Error> {
        match call {
            Call::Connect(number, to) => {
                let server = (0..self.servers.len()).find(|at| address(*at) == to);
                let server = server.expect("one of them");
                let Server { life, down_until, hung_until, .. } = self.servers[server];
                if self.now_us < down_until {
                    return Err(ErrorKind::ConnectionRefused.into());
                }
                if self.now_us < hung_until {
                    self.waited_ms += WAIT_MS;
                    return Err(ErrorKind::TimedOut.into());
                }
                let talk = Talk { server, life, answers: VecDeque::new(), silent: false };
                self.talks.insert(number, talk);
                Ok(Vec::new())
            }
            Call::Send(number, bytes) => self.send(number, bytes).map(|()| Vec::new()),
            Call::Hear(number) => {
                let talk = self.talks.get_mut(&number).ok_or(ErrorKind::NotConnected)?;
                let answer = talk.answers.pop_front();
                if answer.is_none() && talk.silent {
                    self.waited_ms += WAIT_MS;
                    return Err(ErrorKind::TimedOut.into());
                }
                answer.ok_or_else(|| ErrorKind::ConnectionReset.into())
            }
        }
    }

    fn send(&mut self, number: u64, bytes: &[u8]) -> Result<(), Error> {
        let talk = self.talks.get_mut(&number).ok_or(ErrorKind::NotConnected)?;
        let at = talk.server;
        if talk.life != self.servers[at].life {
            return Err(ErrorKind::BrokenPipe.into());
        }
        let hangs = self.now_us < self.servers[at].hung_until;
        talk.silent |= hangs;
        // What it has in its buffer it carries out when it is well, unless it is killed.
        if hangs && self.die.chance(2) {
            return Ok(());
        }
        for args in commands(bytes) {
            self.commands += 1;
            match &mut self.servers[at].fails_in {
                Some((0, how)) => {
                    let how = *how;
                    self.fail(at, how);
                    break;
                }
                Some((commands, _)) => *commands -= 1,
                None => {}
            }
            let reply = self.run(at, &args);
            let mut packed = Vec::new();
            reply.pack(&mut packed);
            if let Some(talk) = self.talks.get_mut(&number).filter(|_| !hangs) {
                talk.answers.push_back(packed);
            }
        }
        Ok(())
    }

    fn fail(&mut self, at: usize, how: Failure) {
        let server = &mut self.servers[at];
        (server.life, server.fails_in) = (server.life + 1, None);
        match how {
            Failure::Cut => self.said.push(format!("Redis {at} cuts its connections")),
            Failure::Empty => {
                (server.primary, server.replica) = Default::default();
                server.behind.clear();
                self.said.push(format!("Redis {at} starts again and is empty"));
            }
            Failure::Failover => {
                let kept = self.die.index(server.behind.len() + 1);
                let lost = server.behind.len() - kept;
                server.behind.truncate(kept);
                server.catch_up(0);
                server.primary = server.replica.clone();
                self.said.push(format!("Redis {at} fails over and loses its last {lost} writes"));
            }
        }
        if how != Failure::Cut {
            self.has_lost = true;
            server.down_until = self.now_us + 1_000 * self.die.below(3_000);
        }
    }

    fn run(&mut self, at: usize, args: &[&[u8]]) -> Reply {
        let full = self.now_us < self.servers[at].full_until;
        let server = &mut self.servers[at];
        match name(args) {
            "ROLE" => {
                Reply::List(vec![Reply::text("master"), Reply::Number(0), Reply::List(Vec::new())])
            }
            "INFO" => Reply::text("maxmemory:1\r\nmaxmemory_policy:noeviction\r\n"),
            "CLUSTER" => self.slots(),
            "EVAL" => {
                let (reply, by) = server.script(self.now_ms, full, args);
                self.written.extend(by);
                reply
            }
            name => {
                let key = text(args[1]);
                assert!(shard(key).is_none() || !writes(name), "{name} {key} without a fence");
                self.servers[at].one(self.now_ms, full, args)
            }
        }
    }

    /// `CLUSTER SLOTS`.
    fn slots(&self) -> Reply {
        let count = self.servers.len();
        if count == 1 {
            return Reply::Refused("ERR This instance has cluster support disabled".to_owned());
        }
        let each = SLOTS.div_ceil(count);
        let range = |at: usize| {
            let (first, last) = (at * each, (at * each + each).min(SLOTS) - 1);
            let number = |slot: usize| Reply::Number(i64::try_from(slot).expect("small"));
            let node = vec![Reply::text(host(at)), Reply::Number(PORT), Reply::text("id")];
            Reply::List(vec![number(first), number(last), Reply::List(node)])
        };
        Reply::List((0..count).map(range).collect())
    }
}

impl Server {
    fn one(&mut self, now_ms: i64, full: bool, args: &[&[u8]]) -> Reply {
        if full && wants_memory(name(args)) {
            return Reply::Refused(OOM.to_owned());
        }
        let reply = self.primary.run(now_ms, args);
        if writes(name(args)) {
            self.copy(Effect { now_ms, commands: vec![owned(args)], by: None });
        }
        reply
    }

    /// `EVAL script count fence key… epoch life (count argument…)…`: what the broker's script does.
    fn script(&mut self, now_ms: i64, full: bool, args: &[&[u8]]) -> (Reply, Option<(u32, u64)>) {
        let script = text(args[1]);
        assert!(script.starts_with("local held = tonumber(redis.call('GET', KEYS[1])"), "{script}");
        let keys = usize::try_from(number(args[2])).expect("a count");
        let (keys, argv) = args[3..].split_at(keys);
        let fence = keys[0];
        let shard = shard(text(fence)).expect("a fence is a shard's");
        // Of one that has left.
        let mine = u64::try_from(number(argv[0])).unwrap_or(LEFT);
        let held = self.primary.run(now_ms, &[b"GET", fence]);
        let held = if let Reply::Text(held) = held { number(&held) } else { 0 };
        let fenced = script.contains("0 <= mine and mine < held");
        if fenced && (0..held).contains(&number(argv[0])) {
            let why = format!("FENCED by epoch {held}, this is of epoch {mine}");
            return (Reply::Refused(why), None);
        }
        let before = self.primary.written.get(fence).copied().unwrap_or(0);
        assert!(before <= mine, "epoch {mine} wrote to shard {shard} after epoch {before}");
        let set: [&[u8]; 5] = [b"SET", fence, argv[0], b"EX", argv[1]];
        let mut todo: Vec<&[&[u8]]> =
            if (1..LEFT).contains(&mine) { vec![&set] } else { Vec::new() };
        let mut rest = &argv[2..];
        while let [count, more @ ..] = rest {
            let count = usize::try_from(number(count)).expect("a count");
            todo.push(&more[..count]);
            rest = &more[count..];
        }
        let mut done = Vec::new();
        for command in todo {
            let key = text(command[1]);
            assert!(keys.contains(&command[1]), "{key} is not named");
            assert_eq!(self::shard(key), Some(shard), "{key} is another shard's");
            // A script that has written goes on, as Redis 7 has it.
            if full && wants_memory(name(command)) && done.is_empty() {
                return (Reply::Refused(format!("{OOM} script: x, on @user_script:10.")), None);
            }
            self.primary.run(now_ms, command);
            done.push(owned(command));
        }
        let by = (mine < LEFT).then(|| (fence.to_vec(), mine));
        self.primary.written.extend(by.clone());
        self.copy(Effect { now_ms, commands: done, by });
        (Reply::Number(1), Some((shard, mine)))
    }

    fn copy(&mut self, effect: Effect) {
        self.behind.push_back(effect);
        self.catch_up(BEHIND_MAX);
    }

    /// The replica lacks no more than so many.
    fn catch_up(&mut self, most: usize) {
        while most < self.behind.len() {
            let Some(Effect { now_ms, commands, by }) = self.behind.pop_front() else { return };
            for command in &commands {
                let args: Vec<&[u8]> = command.iter().map(Vec::as_slice).collect();
                self.replica.run(now_ms, &args);
            }
            self.replica.written.extend(by);
        }
    }
}

fn log_key(host: HostId) -> String {
    format!("monitor:log:{{s{:03}}}", Shard::of(host).0)
}

fn owned(args: &[&[u8]]) -> Vec<Vec<u8>> {
    args.iter().map(|arg| arg.to_vec()).collect()
}

/// The shard of a key: `{s017}` is the 17th.
fn shard(key: &str) -> Option<u32> {
    let (_, tag) = key.split_once("{s")?;
    tag.split_once('}')?.0.parse().ok()
}

fn host(at: usize) -> String {
    format!("redis-{at}")
}

fn address(at: usize) -> String {
    format!("{}:{PORT}", host(at))
}

/// A record of the log that is a frame of class `wal+redis`.
const FRAME: u8 = 0x83;
/// The epoch of who has left.
pub(crate) const LEFT: u64 = u64::MAX;
const PORT: i64 = 6379;
const SLOTS: usize = 16_384;
/// As long as brokers wait for an answer.
const WAIT_MS: u64 = 3_000;
/// Writes that a replica lags behind.
const BEHIND_MAX: usize = 300;
const OOM: &str = "OOM command not allowed when used memory > 'maxmemory'.";
