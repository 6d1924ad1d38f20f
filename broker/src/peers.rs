//! What the other brokers of the cluster have, asked for over the connections that there are anyway.
//!
//! ```text
//!  query's thread --Letter (bounded)--> network loop --stream of a peer's connection--> that broker
//!        ^                                   |                                             |
//!        +---- its own channel, a page ------+<---- ApiResponse, 1 MiB or so --------------+
//! ```
//!
//! Every member is asked at once, for one page at a time: who asks says when it wants the next, so what
//! is under way is bounded by members and queries. Whoever is asked answers from its own store, by
//! threads that wait for nobody ([`PATH`]), so two brokers cannot wait for each other. A member that is
//! not connected, or silent for 2 s, is left out: the answer's warnings name it.

use crate::query::{Deadline, QueryError};
use crate::store::{Depth, Elsewhere, Limits, Matcher, Store, TimeRange, Wanted, newest_page};
use crate::vitals::Vitals;
use mio::Waker;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use strobe_wire::message::{ApiRequest, ApiResponse, HostInfo, Incoming, Message, Reader};

/// Asks the other members; clones share it. A broker by itself has nobody to ask.
#[derive(Clone, Debug)]
pub struct Peers {
    inner: Arc<Mutex<Inner>>,
    letters: SyncSender<Letter>,
    waker: Arc<Waker>,
    /// Members that did not answer when they were asked. Relaxed: a count.
    silent: Arc<AtomicU64>,
}

/// For the network loop.
#[derive(Debug)]
pub enum Letter {
    /// To a member; what it answers is [`Peers::deliver`]ed.
    Ask {
        /// Which broker.
        to: u64,
        /// What its answer is known by.
        ticket: u64,
        /// The question.
        request: ApiRequest,
    },
    /// Nobody waits for this answer any more.
    Forget(u64),
}

#[derive(Debug, Default)]
struct Inner {
    /// Without this broker.
    members: BTreeMap<u64, String>,
    waiting: BTreeMap<u64, Sender<(u64, Option<ApiResponse>)>>,
    next: u64,
    /// The hosts that each member told last.
    hosts: BTreeMap<u64, Vec<HostInfo>>,
}

/// One query's reach.
#[derive(Debug)]
pub struct Reach {
    peers: Peers,
    /// Who was silent is not asked again for the same query.
    silent: Mutex<BTreeSet<u64>>,
}

/// A round of questions.
struct Round<'a> {
    peers: &'a Peers,
    path: &'static str,
    answers: Receiver<(u64, Option<ApiResponse>)>,
    reply: Sender<(u64, Option<ApiResponse>)>,
    /// By ticket: whom it was asked of and when.
    open: BTreeMap<u64, (u64, u64)>,
}

impl Peers {
    /// With nobody to ask yet.
    #[must_use]
    pub fn new(letters: SyncSender<Letter>, waker: Arc<Waker>) -> Self {
        Self { inner: Arc::default(), letters, waker, silent: Arc::default() }
    }

    /// The members of the cluster as they are now.
    pub fn set_members(&self, me: u64, all: &[(u64, String)]) {
        let others = all.iter().filter(|(id, _)| *id != me).cloned().collect();
        let mut inner = self.lock();
        inner.members = others;
        let Inner { members, hosts, .. } = &mut *inner;
        hosts.retain(|id, _| members.contains_key(id));
    }

    /// An answer, or that there is none.
    pub fn deliver(&self, ticket: u64, answer: Option<ApiResponse>) {
        let waiting = self.lock().waiting.remove(&ticket);
        if let Some(reply) = waiting {
            // Who asked may have given up.
            drop(reply.send((ticket, answer)));
        }
    }

    /// How often a member did not answer.
    #[must_use]
    pub fn silent(&self) -> u64 {
        self.silent.load(Ordering::Relaxed)
    }

    /// For one query; none if there is nobody to ask.
    #[must_use]
    pub fn reach(&self) -> Option<Reach> {
        let alone = self.lock().members.is_empty();
        (!alone).then(|| Reach { peers: self.clone(), silent: Mutex::default() })
    }

    /// The hosts that other brokers know; of one that is silent, those that it told last, as gone.
    pub fn hosts(&self, deadline: Deadline<'_>) -> Vec<HostInfo> {
        let Some(reach) = self.reach() else { return Vec::new() };
        let mut told: BTreeMap<u64, Vec<HostInfo>> = BTreeMap::new();
        let mut take = |from: u64, body: &[u8]| {
            told.insert(from, read_hosts(body)?);
            Ok(None)
        };
        // Whose time is over gets what there is.
        drop(reach.ask((HOSTS_PATH, Vec::new()), deadline, &mut |_, _| {}, &mut take));
        let mut inner = self.lock();
        let mut all: Vec<HostInfo> = told.values().flatten().cloned().collect();
        for (_, old) in inner.hosts.iter().filter(|(id, _)| !told.contains_key(id)) {
            all.extend(old.iter().cloned().map(|info| HostInfo { connected: false, ..info }));
        }
        inner.hosts.extend(told);
        all
    }

    /// How the other brokers are doing, those that answer.
    pub fn vitals(&self, deadline: Deadline<'_>) -> BTreeMap<u64, Vitals> {
        let told = self.gather(VITALS_PATH, &[], deadline).into_iter();
        told.filter_map(|(id, body)| Some((id, serde_json::from_slice(&body).ok()?))).collect()
    }

    /// What every other broker answers to `body` at `path`; those that are silent are left out.
    pub fn gather(
        &self,
        path: &'static str,
        body: &[u8],
        deadline: Deadline<'_>,
    ) -> Vec<(u64, Vec<u8>)> {
        let Some(reach) = self.reach() else { return Vec::new() };
        let mut told = Vec::new();
        let mut take = |from: u64, body: &[u8]| {
            told.push((from, body.to_vec()));
            Ok(None)
        };
        // Whose time is over gets what there is.
        drop(reach.ask((path, body.to_vec()), deadline, &mut |_, _| {}, &mut take));
        told
    }

    fn ask(&self, round: &mut Round<'_>, to: u64, body: Vec<u8>, at_ms: u64) -> bool {
        let mut inner = self.lock();
        let ticket = inner.next;
        inner.next += 1;
        inner.waiting.insert(ticket, round.reply.clone());
        drop(inner);
        let (method, path) = ("POST".to_owned(), round.path.to_owned());
        let request = ApiRequest { method, path, body, ..ApiRequest::default() };
        if self.letters.try_send(Letter::Ask { to, ticket, request }).is_err() {
            self.lock().waiting.remove(&ticket);
            return false;
        }
        self.wake();
        round.open.insert(ticket, (to, at_ms));
        true
    }

    fn forget(&self, ticket: u64) {
        self.lock().waiting.remove(&ticket);
        // A full queue forgets it when the answer comes.
        drop(self.letters.try_send(Letter::Forget(ticket)));
        self.wake();
    }

    fn wake(&self) {
        if let Err(why) = self.waker.wake() {
            log::error!("cannot wake the network loop: {why}");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is selected.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Selection<'a> {
    pub(crate) matchers: &'a [Matcher],
    pub(crate) range: TimeRange,
    pub(crate) depth: Depth,
    pub(crate) limits: Limits,
}

/// What came of a selection.
#[derive(Debug)]
pub(crate) enum Found {
    /// This, besides what is here.
    All(Elsewhere),
    /// Somebody has only rollups of this step of that time: they are to be asked for.
    Coarser(i64),
}

impl Reach {
    /// What others have of a selection; what is missing is noted at `store`.
    ///
    /// # Errors
    /// The query's time is over.
    pub(crate) fn select(
        &self,
        selection: Selection<'_>,
        store: &Store,
        deadline: Deadline<'_>,
    ) -> Result<Found, QueryError> {
        loop {
            let (found, broken) = self.select_once(selection, store, deadline)?;
            // Rows of rollups are added up: those of one that fell silent in the middle are dropped
            // with all others', and it is not asked again. Samples count once anyway.
            if !(broken && matches!(selection.depth, Depth::Rolled(_))) {
                return Ok(found);
            }
        }
    }

    /// And whether somebody told a part and no more.
    fn select_once(
        &self,
        selection: Selection<'_>,
        store: &Store,
        deadline: Deadline<'_>,
    ) -> Result<(Found, bool), QueryError> {
        let Selection { matchers, range, depth, limits } = selection;
        let elsewhere = Elsewhere::new(range, matches!(depth, Depth::Rolled(_)));
        let matchers = matchers.to_vec();
        let (version, shares) = (newest_page(), store.shares().is_some());
        let mut wanted = Wanted { matchers, range, depth, limits, next: None, version, shares };
        let (mut open, mut lost) = (BTreeSet::new(), Vec::new());
        let text = |wanted: &Wanted| serde_json::to_vec(wanted).unwrap_or_default();
        let first = text(&wanted);
        let mut coarser = None;
        let names = self.peers.lock().members.clone();
        let mut take = |from: u64, body: &[u8]| {
            let said = elsewhere.take(body)?;
            let name = names.get(&from).map_or("", String::as_str);
            said.notes.into_iter().for_each(|n| store.note(format!("broker {from} ({name}): {n}")));
            coarser = coarser.max(said.coarser_ms);
            wanted.next = said.next;
            if wanted.next.is_some() {
                open.insert(from)
            } else {
                open.remove(&from)
            };
            Ok(wanted.next.is_some().then(|| text(&wanted)))
        };
        let mut note = |id, why: String| {
            store.note(format!("{why}: {}", store.missing_of(id)));
            lost.push(id);
        };
        self.ask((PATH, first), deadline, &mut note, &mut take)?;
        let broken = lost.iter().any(|id| open.contains(id));
        Ok((coarser.map_or(Found::All(elsewhere), Found::Coarser), broken))
    }

    /// Asks every member, and again where `take` makes another question of an answer.
    #[expect(clippy::type_complexity, reason = "two callbacks: read once, here")]
    fn ask(
        &self,
        (path, first): (&'static str, Vec<u8>),
        deadline: Deadline<'_>,
        note: &mut dyn FnMut(u64, String),
        take: &mut dyn FnMut(u64, &[u8]) -> Result<Option<Vec<u8>>, String>,
    ) -> Result<(), QueryError> {
        let members = self.peers.lock().members.clone();
        let (reply, answers) = channel();
        let mut round = Round { peers: &self.peers, path, answers, reply, open: BTreeMap::new() };
        let lost = &mut |id: u64, why: &str| {
            self.silent().insert(id);
            self.peers.silent.fetch_add(1, Ordering::Relaxed);
            let address = members.get(&id).map_or("", String::as_str);
            note(id, format!("broker {id} ({address}) {why}"));
        };
        let mut now_ms = deadline.elapsed_ms()?;
        for &id in members.keys() {
            let known = self.silent().contains(&id);
            if !known && !self.peers.ask(&mut round, id, first.clone(), now_ms) {
                lost(id, "could not be asked, because too much is being asked");
            }
        }
        while !round.open.is_empty() {
            let answer = round.answers.recv_timeout(LOOK_EVERY);
            now_ms = deadline.elapsed_ms()?;
            match answer {
                Ok((ticket, answer)) => {
                    let Some((id, _)) = round.open.remove(&ticket) else { continue };
                    match answer.map(|answer| (answer.status, answer.body)) {
                        None => lost(id, "is not connected"),
                        Some((200, body)) => match take(id, &body) {
                            Ok(Some(next)) => {
                                if !self.peers.ask(&mut round, id, next, now_ms) {
                                    lost(id, "could not be asked for more");
                                }
                            }
                            Ok(None) => {}
                            Err(why) => lost(id, &format!("answered what cannot be used, {why}")),
                        },
                        Some((status, body)) => {
                            let why = String::from_utf8_lossy(&body);
                            lost(id, &format!("could not answer ({status}: {})", why.trim()));
                        }
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            for (ticket, id) in round.late(now_ms) {
                round.open.remove(&ticket);
                self.peers.forget(ticket);
                lost(id, &format!("did not answer within {} s", SILENCE_MS / 1000));
            }
        }
        Ok(())
    }

    fn silent(&self) -> MutexGuard<'_, BTreeSet<u64>> {
        self.silent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Round<'_> {
    fn late(&self, now_ms: u64) -> Vec<(u64, u64)> {
        let late = self.open.iter().filter(|(_, (_, asked_ms))| asked_ms + SILENCE_MS <= now_ms);
        late.map(|(ticket, (id, _))| (*ticket, *id)).collect()
    }
}

impl Drop for Round<'_> {
    fn drop(&mut self) {
        self.open.keys().for_each(|ticket| self.peers.forget(*ticket));
    }
}

/// Answers [`PATH`], from what is here.
pub(crate) fn page(store: &Store, body: &[u8], is_left: &dyn Fn() -> bool) -> ApiResponse {
    let wanted: Result<Wanted, _> = serde_json::from_slice(body);
    let page = match wanted {
        Ok(wanted) => store
            .for_peer(wanted.shares)
            .page(&wanted, is_left)
            .map_err(|why| (422, why.to_string())),
        Err(why) => Err((400, why.to_string())),
    };
    match page {
        Ok(body) => answer(200, body),
        Err((status, why)) => answer(status, why.into_bytes()),
    }
}

/// Answers [`HOSTS_PATH`].
pub(crate) fn hosts(hosts: Vec<HostInfo>) -> ApiResponse {
    let body =
        hosts.into_iter().flat_map(|info| strobe_wire::message::encode(&Message::Host(info)));
    answer(200, body.collect())
}

/// Of several accounts of a host the one of who has it, or had it last.
pub(crate) fn newest(all: impl IntoIterator<Item = HostInfo>) -> Vec<HostInfo> {
    let mut hosts: BTreeMap<u128, HostInfo> = BTreeMap::new();
    for info in all {
        let known = hosts.entry(info.hello.host).or_insert_with(|| info.clone());
        let first_seen_ms = known.first_seen_ms.min(info.first_seen_ms);
        let rank = |info: &HostInfo| (info.connected, info.last_seen_ms);
        if rank(known) < rank(&info) {
            *known = info;
        }
        known.first_seen_ms = first_seen_ms;
    }
    hosts.into_values().collect()
}

fn read_hosts(body: &[u8]) -> Result<Vec<HostInfo>, String> {
    let mut reader = Reader::default();
    reader.push(body);
    let mut hosts = Vec::new();
    while let Some(incoming) = reader.pull().map_err(|why| why.to_string())? {
        match incoming {
            Incoming::Control(message) => match *message {
                Message::Host(info) => hosts.push(info),
                _ => return Err("it told of something else than hosts".to_owned()),
            },
            Incoming::Frame(_) => return Err("it told a frame for a host".to_owned()),
        }
    }
    Ok(hosts)
}

fn answer(status: u16, body: Vec<u8>) -> ApiResponse {
    ApiResponse { status, content_type: "application/octet-stream".to_owned(), body }
}

/// Where a member answers for what it has of a selection.
pub const PATH: &str = "/peer/v1/page";
/// Where it tells its hosts.
pub const HOSTS_PATH: &str = "/peer/v1/hosts";
/// Where it tells how it is doing.
pub const VITALS_PATH: &str = "/peer/v1/vitals";
/// Where another broker is asked what it and its hosts run.
pub const VERSIONS_PATH: &str = "/peer/v1/versions";
/// Where another broker is asked to ask one of its hosts.
pub const ASK_PATH: &str = "/peer/v1/ask";
/// Letters waiting for the network loop.
pub const LETTERS_MAX: usize = 1024;
/// So long a member may take for a page.
const SILENCE_MS: u64 = 2_000;
const LOOK_EVERY: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;
    use strobe_wire::message::Hello;

    #[test]
    fn of_a_host_that_moved_the_last_account_counts() {
        let info = |host, first_seen_ms, last_seen_ms, connected| HostInfo {
            hello: Hello { host, ..Hello::default() },
            first_seen_ms,
            last_seen_ms,
            connected,
        };
        let all = [info(1, 5, 70, false), info(1, 60, 65, true), info(2, 1, 9, false)];
        let told = read_hosts(&hosts(all.to_vec()).body).unwrap();
        assert_eq!(told, all);
        assert_eq!(newest(told), [info(1, 5, 65, true), info(2, 1, 9, false)]);
        assert!(read_hosts(b"nonsense").is_err());
    }
}
