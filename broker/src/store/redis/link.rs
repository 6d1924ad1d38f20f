//! A conversation with Redis, be it one server, a Sentinels' primary or a Cluster: no wait is longer
//! than it was told, and what went wrong has a name.
//!
//! ```text
//! Batch ──by slot──▶ a pipeline a node ──▶ answers in order
//!                        ▲      └─ MOVED, ASK: those commands again, where they were sent
//! ```
//!
//! Whoever gets an error lets go of the whole link: there may be answers on their way. The next one
//! asks the Sentinels, or a node of the Cluster, anew.

use super::batch::Batch;
use super::door::Connection;
use super::fence::FENCED;
use super::slots::{Redirect, Slots};
use super::target::{Kind, Target};
use redis::{ErrorKind, RedisError, RedisResult, Value};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// Connections to what one target stands for.
pub(super) struct Link {
    target: Arc<Target>,
    wait: Duration,
    reads: Reads,
    shape: Shape,
    nodes: HashMap<String, Connection>,
}

/// Who is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Reads {
    /// Those that are written to.
    Primary,
    /// A copy, where there is one.
    Replica,
}

/// What `ROLE` says; the state is a copy's.
struct Role {
    name: String,
    state: String,
}

enum Shape {
    /// Everything is at this node.
    One(String),
    Cluster(Slots),
}

/// Why Redis did not do something.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trouble {
    /// Nobody answers, or too slowly.
    Unreachable,
    /// A password is wanted, or another one, or the user may not.
    Auth,
    /// Redis is at its memory limit.
    Memory,
    /// Anything else Redis said.
    Refused,
    /// A primary or a slot is on its way to another server.
    Changing,
    /// Another owner has written since.
    Fenced,
}

/// Every [`Trouble`], in the order of [`super::MirrorCounts::failures`].
pub const TROUBLES: [Trouble; 6] = [
    Trouble::Unreachable,
    Trouble::Auth,
    Trouble::Memory,
    Trouble::Refused,
    Trouble::Changing,
    Trouble::Fenced,
];

impl Link {
    /// Finds whom to ask.
    pub(super) fn open(target: &Arc<Target>, reads: Reads, wait: Duration) -> RedisResult<Self> {
        let (target, nodes) = (Arc::clone(target), HashMap::new());
        let mut link = Self { target, wait, reads, shape: Shape::One(String::new()), nodes };
        let mut found = Err(nobody("no server is named"));
        for seed in link.target.seeds() {
            found = link.find(&seed);
            match &found {
                Ok(()) => break,
                Err(error) => {
                    link.nodes.clear();
                    link.target.put_back(&seed);
                    // One that hangs has cost the time; the next try begins with another.
                    if error.is_timeout() {
                        break;
                    }
                }
            }
        }
        found.map(|()| link)
    }

    /// By what `seed` says.
    fn find(&mut self, seed: &str) -> RedisResult<()> {
        match self.target.kind.clone() {
            Kind::Unix(_) => self.keep_one(seed),
            Kind::Sentinel(name) => self.resolve(seed, &name),
            Kind::Cluster => self.map(seed),
            Kind::Probe => self.probe(seed),
        }
    }

    fn keep_one(&mut self, node: &str) -> RedisResult<()> {
        self.shape = Shape::One(node.to_owned());
        self.node(node).map(drop)
    }

    /// The owners of slots.
    fn map(&mut self, seed: &str) -> RedisResult<()> {
        let answer = self.node(seed)?.ask(::redis::cmd("CLUSTER").arg("SLOTS"))?;
        let slots = Slots::of(answer, seed)?;
        let primaries = slots.primaries();
        if primaries.is_empty() {
            return Err(nobody("no node of the Cluster has slots"));
        }
        self.target.learn(primaries.into_iter());
        self.shape = Shape::Cluster(slots);
        if self.reads == Reads::Replica {
            // Made before it was known that it has to be told.
            self.nodes.clear();
        }
        Ok(())
    }

    /// A server that may be a node of a Cluster, or a Sentinel.
    fn probe(&mut self, seed: &str) -> RedisResult<()> {
        let role = self.node(seed)?.ask(&::redis::cmd("ROLE"));
        // Who may not ask is a user of a server.
        let watched = role.ok().and_then(|answer| {
            let (role, names): (String, Vec<String>) = ::redis::from_redis_value(answer).ok()?;
            (role == "sentinel").then_some(names)
        });
        match watched.as_deref() {
            Some([name]) => return self.resolve(seed, name),
            Some(names) => {
                let names = names.join(", ");
                let why = format!("redis+sentinel://HOST:PORT/NAME is wanted; it watches: {names}");
                return Err((ErrorKind::InvalidClientConfig, "this is a Sentinel", why).into());
            }
            None => {}
        }
        match self.map(seed) {
            Err(error) if error.is_io_error() => Err(error),
            Err(_) => self.keep_one(seed),
            Ok(()) => Ok(()),
        }
    }

    /// The primary that a Sentinel knows, if it says itself that it is one; or a copy of it.
    fn resolve(&mut self, sentinel: &str, name: &str) -> RedisResult<()> {
        let mut asked = Connection::open(&self.target.sentinel(sentinel)?, self.wait)?;
        if self.reads == Reads::Replica
            && let Some(copy) = replica(&mut asked, name)
            && self.keep_one(&copy).is_ok()
            && self.role(&copy).is_none_or(|role| role.is_copy_in_step())
        {
            return Ok(());
        }
        let ask = ::redis::cmd("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(name).to_owned();
        let found: Option<(String, u16)> = ::redis::from_redis_value(asked.ask(&ask)?)?;
        let (host, port) = found.ok_or_else(|| {
            let why = format!("the Sentinel at {sentinel} watches no {name:?}");
            RedisError::from((ErrorKind::InvalidClientConfig, "unknown name", why))
        })?;
        let primary = match host.contains(':') {
            true => format!("[{host}]:{port}"),
            false => format!("{host}:{port}"),
        };
        self.keep_one(&primary)?;
        // Who may not ask trusts the Sentinel.
        match self.role(&primary).is_none_or(|role| role.name == "master") {
            true => Ok(()),
            false => Err(nobody("the Sentinels' primary does not know yet that it is one")),
        }
    }

    /// What a server says that it is; `None`: it does not say.
    fn role(&mut self, node: &str) -> Option<Role> {
        let answer = self.node(node).ok()?.ask(&::redis::cmd("ROLE")).ok()?;
        let Value::Array(fields) = answer else { return None };
        let text = |at: usize| ::redis::from_redis_value(fields.get(at)?.clone()).ok();
        Some(Role { name: text(0)?, state: text(3).unwrap_or_default() })
    }

    fn node(&mut self, node: &str) -> RedisResult<&mut Connection> {
        if !self.nodes.contains_key(node) {
            let mut connection = Connection::open(&self.target.server(node)?, self.wait)?;
            if self.reads == Reads::Replica && matches!(self.shape, Shape::Cluster(_)) {
                connection.ask(&::redis::cmd("READONLY"))?;
            }
            self.nodes.insert(node.to_owned(), connection);
        }
        self.nodes.get_mut(node).ok_or_else(|| nobody("no connection"))
    }

    /// Whether it is several servers, of which each may fail by itself.
    pub(super) fn is_cluster(&self) -> bool {
        matches!(self.shape, Shape::Cluster(_))
    }

    /// What every server says of its memory, as far as it may be asked.
    pub(super) fn memory(&mut self) -> Vec<(String, String)> {
        let nodes = match &self.shape {
            Shape::One(node) => vec![node.clone()],
            Shape::Cluster(slots) => slots.primaries(),
        };
        let ask = ::redis::cmd("INFO").arg("memory").to_owned();
        let asked = nodes.into_iter().filter_map(|node| {
            let answer = self.node(&node).ok()?.ask(&ask).ok()?;
            Some((node, ::redis::from_redis_value(answer).ok()?))
        });
        asked.collect()
    }

    /// Every answer, or the first that is an error.
    pub(super) fn query(&mut self, batch: &Batch) -> RedisResult<Vec<Value>> {
        let answers = self.answers(batch)?.into_iter().map(|answer| match answer {
            Value::ServerError(refused) => Err(refused.into()),
            answer => Ok(answer),
        });
        answers.collect()
    }

    /// Every answer, errors of single commands among them.
    pub(super) fn answers(&mut self, batch: &Batch) -> RedisResult<Vec<Value>> {
        let mut answers = vec![Value::Nil; batch.commands.len()];
        let mut todo: Vec<(usize, Option<String>)> =
            (0..answers.len()).map(|at| (at, None)).collect();
        for _ in 0..HOPS_MAX {
            todo = self.hop(batch, todo, &mut answers)?;
            if todo.is_empty() {
                return Ok(answers);
            }
        }
        // The redirection itself says what is going on.
        Ok(answers)
    }

    /// Sends each command to where it belongs, and returns those that have to go elsewhere.
    fn hop(
        &mut self,
        batch: &Batch,
        todo: Vec<(usize, Option<String>)>,
        answers: &mut [Value],
    ) -> RedisResult<Vec<(usize, Option<String>)>> {
        let mut by_node: BTreeMap<String, Vec<(usize, bool)>> = BTreeMap::new();
        for (at, ask) in todo {
            let slot = batch.commands.get(at).map_or(0, |(slot, _)| *slot);
            let owner = match (&ask, &self.shape) {
                (Some(node), _) | (None, Shape::One(node)) => Some(node.as_str()),
                (None, Shape::Cluster(slots)) => slots.owner(slot, self.reads == Reads::Replica),
            };
            let owner = owner.ok_or_else(|| nobody("a slot of the Cluster has no node"))?;
            by_node.entry(owner.to_owned()).or_default().push((at, ask.is_some()));
        }
        for (node, list) in &by_node {
            let mut packed = Vec::new();
            for (at, asking) in list {
                if *asking {
                    packed.extend(::redis::cmd("ASKING").get_packed_command());
                }
                if let Some((_, command)) = batch.commands.get(*at) {
                    packed.extend(command.get_packed_command());
                }
            }
            self.node(node)?.send(&packed)?;
        }
        let mut again = Vec::new();
        for (node, list) in by_node {
            for (at, asking) in list {
                let connection = self.node(&node)?;
                if asking {
                    connection.hear()?;
                }
                let answer = connection.hear()?;
                match Redirect::of(&answer, &node) {
                    Some(Redirect::Moved(to)) => {
                        if let (Shape::Cluster(slots), Some((slot, _))) =
                            (&mut self.shape, batch.commands.get(at))
                        {
                            slots.set(*slot, to);
                        }
                        again.push((at, None));
                    }
                    Some(Redirect::Ask(to)) => again.push((at, Some(to))),
                    None => {}
                }
                if let Some(slot) = answers.get_mut(at) {
                    *slot = answer;
                }
            }
        }
        // In the order they were given, whichever node had them.
        again.sort();
        Ok(again)
    }
}

impl Role {
    fn is_copy_in_step(&self) -> bool {
        self.name == "slave" && self.state == "connected"
    }
}

/// A copy of what a Sentinel watches, as long as it is up.
fn replica(sentinel: &mut Connection, name: &str) -> Option<String> {
    let ask = ::redis::cmd("SENTINEL").arg("REPLICAS").arg(name).to_owned();
    let found: Vec<HashMap<String, String>> =
        ::redis::from_redis_value(sentinel.ask(&ask).ok()?).ok()?;
    let good =
        found.into_iter().find(|copy| copy.get("flags").is_some_and(|flags| flags == "slave"))?;
    let (host, port) = (good.get("ip")?, good.get("port")?);
    let bare = !host.contains(':');
    Some(if bare { format!("{host}:{port}") } else { format!("[{host}]:{port}") })
}

fn nobody(why: &'static str) -> RedisError {
    io::Error::new(io::ErrorKind::NotFound, why).into()
}

impl Trouble {
    /// As a label's value.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Auth => "auth",
            Self::Memory => "memory",
            Self::Refused => "refused",
            Self::Changing => "changing",
            Self::Fenced => "fenced",
        }
    }

    pub(super) fn of(error: &RedisError) -> Self {
        let auth = error.kind() == ErrorKind::AuthenticationFailed;
        let answer = first_answer(error);
        let code = answer.as_ref().map(::redis::ServerError::code);
        match code {
            Some("NOAUTH" | "WRONGPASS" | "NOPERM") => Self::Auth,
            _ if auth => Self::Auth,
            Some("OOM") => Self::Memory,
            Some(FENCED) => Self::Fenced,
            Some(
                "MOVED" | "ASK" | "TRYAGAIN" | "CLUSTERDOWN" | "MASTERDOWN" | "READONLY"
                | "LOADING",
            ) => Self::Changing,
            _ if error.is_io_error() => Self::Unreachable,
            _ => Self::Refused,
        }
    }

    /// What is wrong, and what to do.
    pub(super) fn sentence(self, address: &str, error: &RedisError) -> String {
        let (what, todo) = match self {
            Self::Unreachable => ("does not answer", "start it, or correct broker.store"),
            Self::Auth => (
                "does not let us in",
                "put user and password into broker.store, as in redis://USER:PASSWORD@HOST:PORT/DB",
            ),
            Self::Memory => (
                "is out of memory",
                "raise its maxmemory or lower broker.redis_retention and broker.redis_queue",
            ),
            Self::Refused => ("refuses", "correct broker.store or Redis's configuration"),
            Self::Changing => (
                "has no primary for a key just now",
                "it is tried again; if this lasts, look at its failover or its moving slots",
            ),
            Self::Fenced => (
                "was written to by a newer owner of a shard",
                "this broker no longer owns it and leaves it alone",
            ),
        };
        let said = first_answer(error).map_or_else(
            || error.to_string(),
            |answer| format!("{} {}", answer.code(), answer.details().unwrap_or_default()),
        );
        format!("Redis at {address} {what} ({said}): {todo}")
    }
}

/// What Redis said to the first command that it refused.
fn first_answer(error: &RedisError) -> Option<::redis::ServerError> {
    let answers = error.clone().into_server_errors()?;
    answers.first().map(|(_, answer)| answer.clone())
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Link")
    }
}

/// Redirections that one command follows.
const HOPS_MAX: usize = 5;
