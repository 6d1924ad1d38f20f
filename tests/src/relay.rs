//! A UDP relay on loopback with the weather of a bad network: loss, delay, jitter, duplicates, a narrow
//! line, cuts of one way or both; between real processes and without any privilege.
//!
//! ```text
//!  client ──▶ relay's socket ──▶ (weather) ──▶ a socket of that client ──▶ target
//!  client ◀── relay's socket ◀── (weather) ◀── the same, on its thread ◀── target
//! ```
//!
//! Where each broker is known by the address of a relay of its own, what goes between two of them passes
//! the relay of the one that was dialled, and comes from the other's own socket. Datagrams are drawn for
//! by a seed; which of them meets which draw is the machine's.

use std::collections::{BTreeMap, BinaryHeap};
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Ends with the test.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    line: Arc<Line>,
    threads: Vec<JoinHandle<()>>,
}

/// Of what a client and the target say to each other.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Way {
    /// What the client sends.
    There,
    /// What the target answers.
    Back,
}

/// What becomes of datagrams.
#[derive(Clone, Copy, Debug, Default)]
pub struct Weather {
    /// So many of a thousand are lost.
    pub lost: u32,
    /// So many of a thousand come twice.
    pub twice: u32,
    /// Each is this late.
    pub delay: Duration,
    /// And up to so much later, each by itself, which changes their order.
    pub jitter: Duration,
    /// The line takes so much a second, keeps what is up to [`CLOG`] late, and loses the rest; 0: any.
    pub bytes_per_second: u32,
}

/// What the threads of a relay share.
#[derive(Debug)]
struct Line {
    state: Mutex<State>,
    posted: Condvar,
}

#[derive(Debug)]
struct State {
    weather: Weather,
    /// Other weather for some clients.
    special: BTreeMap<(SocketAddr, Way), Weather>,
    random: u64,
    /// When the narrow line has let all through that it took.
    free: BTreeMap<Way, Instant>,
    /// The next one due is on top.
    post: BinaryHeap<Letter>,
    number: u64,
    passed: u64,
    over: bool,
}

#[derive(Debug)]
struct Letter {
    due: Instant,
    number: u64,
    by: Arc<UdpSocket>,
    /// None: whom the socket is connected to.
    to: Option<SocketAddr>,
    bytes: Vec<u8>,
}

impl Weather {
    /// Nothing gets through.
    pub const CUT: Self = Self { lost: 1000, ..Self::FINE };

    /// As loopback is.
    pub const FINE: Self = Self {
        lost: 0,
        twice: 0,
        delay: Duration::ZERO,
        jitter: Duration::ZERO,
        bytes_per_second: 0,
    };
}

impl Relay {
    /// In front of `target`, with draws by `seed`.
    ///
    /// # Panics
    /// If loopback has no free port.
    #[must_use]
    pub fn start(target: SocketAddr, seed: u64) -> Self {
        let front = Arc::new(socket());
        let address = front.local_addr().expect("bound");
        let state = State {
            weather: Weather::FINE,
            special: BTreeMap::new(),
            random: seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1,
            free: BTreeMap::new(),
            post: BinaryHeap::new(),
            number: 0,
            passed: 0,
            over: false,
        };
        let line = Arc::new(Line { state: Mutex::new(state), posted: Condvar::new() });
        let (of_front, of_post) = (Arc::clone(&line), Arc::clone(&line));
        let threads = vec![
            std::thread::spawn(move || run(&front, target, &of_front)),
            std::thread::spawn(move || deliver(&of_post)),
        ];
        Self { address, line, threads }
    }

    /// Where clients send to.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Cuts these clients off.
    pub fn cut(&self, clients: &[SocketAddr]) {
        for &client in clients {
            self.cut_way(client, Way::There);
            self.cut_way(client, Way::Back);
        }
    }

    /// Cuts a client off, one way.
    pub fn cut_way(&self, client: SocketAddr, way: Way) {
        self.weather_of(client, way, Weather::CUT);
    }

    /// From now on, for this client and way, whatever it is for the others.
    pub fn weather_of(&self, client: SocketAddr, way: Way, weather: Weather) {
        self.line.lock().special.insert((client, way), weather);
    }

    /// Cuts everybody off.
    pub fn cut_all(&self) {
        let mut state = self.line.lock();
        (state.weather, state.special) = (Weather::CUT, BTreeMap::new());
    }

    /// From now on, for everybody.
    pub fn weather(&self, weather: Weather) {
        self.line.lock().weather = weather;
    }

    /// All is well again.
    pub fn heal(&self) {
        let mut state = self.line.lock();
        (state.weather, state.special) = (Weather::FINE, BTreeMap::new());
    }

    /// Datagrams that got through so far.
    #[must_use]
    pub fn passed(&self) -> u64 {
        self.line.lock().passed
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.line.lock().over = true;
        self.line.posted.notify_all();
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
    }
}

impl Line {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a datagram that `client` sent or is to get.
    fn post(&self, (client, way): (SocketAddr, Way), by: &Arc<UdpSocket>, bytes: &[u8]) {
        let mut state = self.lock();
        let weather = *state.special.get(&(client, way)).unwrap_or(&state.weather);
        if state.draw() % 1000 < u64::from(weather.lost) {
            return;
        }
        let mut due = crate::now() + weather.delay;
        if let Some(us) = bytes_us(bytes.len(), weather.bytes_per_second) {
            let free = state.free.get(&way).copied().filter(|free| due < *free).unwrap_or(due);
            if due + CLOG < free {
                return;
            }
            due = free + Duration::from_micros(us);
            state.free.insert(way, due);
        }
        let copies = 1 + u64::from(state.draw() % 1000 < u64::from(weather.twice));
        for _ in 0..copies {
            let jitter_us = u64::try_from(weather.jitter.as_micros()).unwrap_or(u64::MAX);
            let late = Duration::from_micros(state.draw() % jitter_us.saturating_add(1).max(1));
            state.number += 1;
            let (number, to) = (state.number, (way == Way::Back).then_some(client));
            let (by, bytes) = (Arc::clone(by), bytes.to_vec());
            state.post.push(Letter { due: due + late, number, by, to, bytes });
        }
        drop(state);
        self.posted.notify_one();
    }
}

impl State {
    /// xorshift64.
    fn draw(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random >> 11
    }
}

impl PartialEq for Letter {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Letter {}

impl PartialOrd for Letter {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// The one that is due first is the greatest.
impl Ord for Letter {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.due, other.number).cmp(&(self.due, self.number))
    }
}

fn run(front: &Arc<UdpSocket>, target: SocketAddr, line: &Arc<Line>) {
    let mut clients: BTreeMap<SocketAddr, Arc<UdpSocket>> = BTreeMap::new();
    let mut buffer = vec![0; BUFFER];
    while !line.lock().over {
        let Ok((length, client)) = front.recv_from(&mut buffer) else { continue };
        let back = clients.entry(client).or_insert_with(|| {
            let back = socket();
            back.connect(target).expect("an address of loopback");
            let back = Arc::new(back);
            let (from, front, line) = (Arc::clone(&back), Arc::clone(front), Arc::clone(line));
            std::thread::spawn(move || answer(&from, &front, client, &line));
            back
        });
        line.post((client, Way::There), back, buffer.get(..length).unwrap_or(&[]));
    }
}

fn answer(back: &UdpSocket, front: &Arc<UdpSocket>, client: SocketAddr, line: &Line) {
    let mut buffer = vec![0; BUFFER];
    while !line.lock().over {
        match back.recv(&mut buffer) {
            Ok(length) => {
                line.post((client, Way::Back), front, buffer.get(..length).unwrap_or(&[]));
            }
            // Nobody listens there for a while.
            Err(why) if why.kind() == ErrorKind::ConnectionRefused => crate::pause(10),
            Err(_) => {}
        }
    }
}

/// Sends what is due.
fn deliver(line: &Line) {
    let mut state = line.lock();
    while !state.over {
        let now = crate::now();
        let wait = state.post.peek().map_or(LOOK_EVERY, |next| next.due - now.min(next.due));
        if !wait.is_zero() {
            let waited = line.posted.wait_timeout(state, wait);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            continue;
        }
        let Some(letter) = state.post.pop() else { continue };
        state.passed += 1;
        drop(state);
        // A target that is gone loses it, as a network does.
        drop(match letter.to {
            Some(client) => letter.by.send_to(&letter.bytes, client),
            None => letter.by.send(&letter.bytes),
        });
        state = line.lock();
    }
}

fn socket() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("loopback has a free port");
    socket.set_read_timeout(Some(LOOK_EVERY)).expect("it can be set");
    socket
}

/// How long a narrow line takes for so many bytes.
fn bytes_us(bytes: usize, per_second: u32) -> Option<u64> {
    (bytes as u64 * 1_000_000).checked_div(u64::from(per_second))
}

/// What waits longer than this for a narrow line is lost.
pub const CLOG: Duration = Duration::from_millis(300);
const LOOK_EVERY: Duration = Duration::from_millis(100);
const BUFFER: usize = 65_536;

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends numbers through, and says which came, in their order, until nothing more comes.
    fn through(weather: Weather, count: u32) -> (Vec<u32>, Duration) {
        let target = socket();
        target.set_read_timeout(Some(Duration::from_millis(600))).unwrap();
        let relay = Relay::start(target.local_addr().unwrap(), 7);
        relay.weather(weather);
        let (client, begun) = (socket(), crate::now());
        for number in 0..count {
            client
                .send_to(&[&number.to_le_bytes()[..], &[0; 96]].concat(), relay.address())
                .unwrap();
        }
        let (mut came, mut last, mut buffer) = (Vec::new(), begun, [0; 200]);
        while target.recv(&mut buffer).is_ok() {
            came.push(u32::from_le_bytes(buffer[..4].try_into().unwrap()));
            last = crate::now();
        }
        assert_eq!(relay.passed(), came.len() as u64);
        (came, last - begun)
    }

    #[test]
    fn each_weather_is_as_it_says() {
        let all: Vec<u32> = (0..200).collect();
        assert_eq!(through(Weather::FINE, 200).0, all);
        assert!(through(Weather::CUT, 200).0.is_empty());
        let lost = through(Weather { lost: 300, ..Weather::FINE }, 200).0;
        assert!((100..180).contains(&lost.len()) && lost.is_sorted(), "{lost:?}");
        let mut twice = through(Weather { twice: 300, ..Weather::FINE }, 200).0;
        assert!((220..300).contains(&twice.len()), "{twice:?}");
        twice.dedup();
        assert_eq!(twice, all);
        let delay = Duration::from_millis(300);
        let (late, took) = through(Weather { delay, ..Weather::FINE }, 200);
        assert!(late == all && delay <= took, "{took:?}: {late:?}");
        let (delay, jitter) = (Duration::from_millis(50), Duration::from_millis(100));
        let (mut mixed, took) = through(Weather { delay, jitter, ..Weather::FINE }, 200);
        assert!(!mixed.is_sorted() && Duration::from_millis(100) < took, "{took:?}: {mixed:?}");
        mixed.sort_unstable();
        assert_eq!(mixed, all);
        // 100 bytes each: a hundred a second, and about thirty wait.
        let narrow = through(Weather { bytes_per_second: 10_000, ..Weather::FINE }, 200).0;
        assert!((25..60).contains(&narrow.len()) && narrow[..20] == all[..20], "{narrow:?}");
    }

    #[test]
    fn one_way_is_cut_and_the_other_is_not() {
        let (target, client) = (socket(), socket());
        let relay = Relay::start(target.local_addr().unwrap(), 1);
        let own = client.local_addr().unwrap();
        let mut buffer = [0; 8];
        client.send_to(b"a", relay.address()).unwrap();
        let (_, by) = target.recv_from(&mut buffer).unwrap();
        relay.cut_way(own, Way::Back);
        target.send_to(b"b", by).unwrap();
        client.send_to(b"c", relay.address()).unwrap();
        assert_eq!(target.recv(&mut buffer).unwrap(), 1);
        assert!(client.recv(&mut buffer).is_err(), "the way back is cut");
        relay.heal();
        relay.cut_way(own, Way::There);
        target.send_to(b"d", by).unwrap();
        assert_eq!(client.recv(&mut buffer).unwrap(), 1);
        client.send_to(b"e", relay.address()).unwrap();
        assert!(target.recv(&mut buffer).is_err(), "the way there is cut");
    }
}
