//! A UDP relay on loopback that can be cut: partitions between real processes without any privilege.
//!
//! ```text
//!  client ──▶ relay's socket ──▶ a socket of that client ──▶ target
//!  client ◀── relay's socket ◀── the same, on its thread ◀── target
//! ```
//!
//! Where each broker is known by the address of a relay of its own, what goes between two of them passes
//! the relay of the one that was dialled, and comes from the other's own socket.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Ends with the test.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    rules: Arc<Mutex<Rules>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Rules {
    /// Nothing of these clients gets through, either way.
    cut: BTreeSet<SocketAddr>,
    all: bool,
    over: bool,
}

impl Relay {
    /// In front of `target`.
    ///
    /// # Panics
    /// If loopback has no free port.
    #[must_use]
    pub fn start(target: SocketAddr) -> Self {
        let front = UdpSocket::bind("127.0.0.1:0").expect("loopback has a free port");
        front.set_read_timeout(Some(LOOK_EVERY)).expect("it can be set");
        let address = front.local_addr().expect("bound");
        let rules = Arc::new(Mutex::new(Rules::default()));
        let known = Arc::clone(&rules);
        let thread = std::thread::spawn(move || run(&Arc::new(front), target, &known));
        Self { address, rules, thread: Some(thread) }
    }

    /// Where clients send to.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Cuts these clients off.
    pub fn cut(&self, clients: &[SocketAddr]) {
        lock(&self.rules).cut.extend(clients);
    }

    /// Cuts everybody off.
    pub fn cut_all(&self) {
        lock(&self.rules).all = true;
    }

    /// All is well again.
    pub fn heal(&self) {
        *lock(&self.rules) = Rules::default();
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        lock(&self.rules).over = true;
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn run(front: &Arc<UdpSocket>, target: SocketAddr, rules: &Arc<Mutex<Rules>>) {
    let mut clients: BTreeMap<SocketAddr, Arc<UdpSocket>> = BTreeMap::new();
    let mut buffer = vec![0; BUFFER];
    loop {
        let received = front.recv_from(&mut buffer);
        let now = lock(rules);
        if now.over {
            return;
        }
        let Ok((length, client)) = received else { continue };
        if now.all || now.cut.contains(&client) {
            continue;
        }
        drop(now);
        let back = clients.entry(client).or_insert_with(|| {
            let back = UdpSocket::bind("127.0.0.1:0").expect("loopback has a free port");
            back.connect(target).expect("an address of loopback");
            back.set_read_timeout(Some(LOOK_EVERY)).expect("it can be set");
            let back = Arc::new(back);
            let (from, front, rules) = (Arc::clone(&back), Arc::clone(front), Arc::clone(rules));
            std::thread::spawn(move || answer(&from, &front, client, &rules));
            back
        });
        // A target that is gone loses it, as a network does.
        drop(back.send(buffer.get(..length).unwrap_or(&[])));
    }
}

fn answer(back: &UdpSocket, front: &UdpSocket, client: SocketAddr, rules: &Mutex<Rules>) {
    let mut buffer = vec![0; BUFFER];
    loop {
        let received = back.recv(&mut buffer);
        let now = lock(rules);
        if now.over {
            return;
        }
        match received {
            Ok(length) if !now.all && !now.cut.contains(&client) => {
                drop(front.send_to(buffer.get(..length).unwrap_or(&[]), client));
            }
            Ok(_) => {}
            Err(why) if why.kind() == ErrorKind::ConnectionRefused => {
                // Nobody listens there for a while.
                drop(now);
                crate::pause(10);
            }
            Err(_) => {}
        }
    }
}

fn lock(rules: &Mutex<Rules>) -> MutexGuard<'_, Rules> {
    rules.lock().unwrap_or_else(PoisonError::into_inner)
}

const LOOK_EVERY: Duration = Duration::from_millis(100);
const BUFFER: usize = 65_536;
