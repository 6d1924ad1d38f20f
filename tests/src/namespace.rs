//! Machines of a test: network namespaces on one bridge, from which nothing else can be reached.
//!
//! ```text
//!  the test's thread, 10.83.0.1 ── bridge ──┬── machine 2, 10.83.0.2, its own nftables
//!                                           ├── machine 3, 10.83.0.3, its own nftables
//!                                           …
//! ```
//!
//! They have no names, so nothing of them is left when the test's process ends, however it does. It takes
//! root, iproute2 and nftables, and a kernel that has all three; where one is missing the test says so and
//! fails.

use nix::sched::{CloneFlags, setns, unshare};
use std::fs::File;
use std::io::Write;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};

/// The bridge, and the machine of the test itself.
#[derive(Debug)]
pub struct Segment(());

/// One machine.
#[derive(Debug)]
pub struct Machine {
    address: Ipv4Addr,
    /// Holds the namespace while nothing runs in it.
    namespace: File,
}

impl Segment {
    /// Runs `test` on a thread in a namespace of its own; what it starts is there too.
    ///
    /// # Panics
    /// If namespaces cannot be made here, or `test` panics.
    pub fn with<T: Send>(test: impl FnOnce(&Self) -> T + Send) -> T {
        on_a_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("root may make a network namespace");
            ip("link add bridge type bridge forward_delay 0");
            ip(&format!("address add {}/24 dev bridge", address(1)));
            ip("link set bridge up");
            ip("link set lo up");
            test(&Self(()))
        })
    }

    /// The machine of this number, 2 to 254, on the bridge.
    ///
    /// # Panics
    /// If there is one of this number already.
    #[must_use]
    pub fn machine(&self, number: u8) -> Machine {
        assert!(1 < number && number < 255);
        let namespace = on_a_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("root may make a network namespace");
            File::open("/proc/thread-self/ns/net").expect("/proc is there")
        });
        let machine = Machine { address: address(number), namespace };
        let (pid, fd) = (std::process::id(), machine.namespace.as_raw_fd());
        let there = format!("netns /proc/{pid}/fd/{fd}");
        ip(&format!("link add port{number} type veth peer name eth0 {there}"));
        ip(&format!("link set port{number} master bridge up"));
        machine.run(|| {
            ip(&format!("address add {}/24 dev eth0", machine.address));
            ip("link set eth0 up");
            ip("link set lo up");
        });
        machine
    }
}

impl Machine {
    /// Where the others reach it.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Does this there; a process that it starts stays there.
    ///
    /// # Panics
    /// If `work` does.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        on_a_thread(|| {
            setns(&self.namespace, CloneFlags::CLONE_NEWNET).expect("root may enter its own");
            work()
        })
    }

    /// From now on this nftables rule for what comes in, and no other; an empty one lets all in.
    ///
    /// # Panics
    /// If it is no good rule.
    pub fn rule(&self, rule: &str) {
        let chain = format!("chain in {{ type filter hook input priority 0; {rule}\n}}");
        let text = format!("flush ruleset\ntable inet weather {{\n{chain}\n}}\n");
        self.run(|| {
            let mut nft = Command::new("nft")
                .args(["-f", "-"])
                .stdin(Stdio::piped())
                .spawn()
                .expect("nft is installed (Debian: apt-get install nftables)");
            let mut stdin = nft.stdin.take().expect("piped");
            stdin.write_all(text.as_bytes()).expect("it reads");
            drop(stdin);
            assert!(nft.wait().expect("our own child").success(), "{text}");
        });
    }

    /// How many packets met the `counter` of the rule.
    ///
    /// # Panics
    /// If the rule has none.
    #[must_use]
    pub fn met(&self) -> u64 {
        let out = self.run(|| Command::new("nft").args(["list", "ruleset"]).output());
        let text = String::from_utf8(out.expect("nft is installed").stdout).expect("text");
        let rest = text.split_once("counter packets ").expect("a counter").1;
        rest.split(' ').next().and_then(|n| n.parse().ok()).expect("a number")
    }
}

fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 83, 0, number)
}

/// In the namespace of the thread that calls it.
fn ip(arguments: &str) {
    let out = Command::new("ip").args(arguments.split(' ')).output();
    let out = out.expect("ip is installed (Debian: apt-get install iproute2)");
    assert!(out.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&out.stderr));
}

/// A thread that enters a namespace must not be anybody else's afterwards.
fn on_a_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| match scope.spawn(work).join() {
        Ok(done) => done,
        Err(why) => std::panic::resume_unwind(why),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::ErrorKind;
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::time::Duration;

    /// Each rule does what it is for, to whom it is for, and to nobody else; and nothing outside is reached.
    #[test]
    fn rules_lose_cut_and_reset() {
        Segment::with(|segment| {
            let (one, other) = (segment.machine(2), segment.machine(3));
            let udp = |machine: &Machine| {
                let socket = machine.run(|| UdpSocket::bind((machine.address(), 7)).unwrap());
                socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
                socket
            };
            let (at_one, at_other) = (udp(&one), udp(&other));
            let (to_one, to_other) = ((one.address(), 7), (other.address(), 7));
            let mut buffer = [0; 8];
            one.rule(&format!("ip saddr {} counter drop", other.address()));
            at_other.send_to(b"lost", to_one).unwrap();
            assert!(at_one.recv(&mut buffer).is_err(), "cut this way");
            at_one.send_to(b"kept", to_other).unwrap();
            assert_eq!(at_other.recv(&mut buffer).unwrap(), 4, "not that way");
            assert_eq!(one.met(), 1);
            one.rule("udp dport 7 numgen random mod 1000 < 300 counter drop");
            (0..200).for_each(|_| assert_eq!(at_other.send_to(b"some", to_one).unwrap(), 4));
            let came = (0..200).take_while(|_| at_one.recv(&mut buffer).is_ok()).count() as u64;
            assert!((100..180).contains(&came), "{came}");
            assert_eq!(one.met(), 200 - came);

            let listener = one.run(|| TcpListener::bind((one.address(), 7)).unwrap());
            let mut client = other.run(|| TcpStream::connect(to_one).unwrap());
            let _taken = listener.accept().unwrap();
            one.rule("tcp dport 7 counter reject with tcp reset");
            client.write_all(b"text").unwrap();
            crate::wait("it is reset", 2, || {
                client.write_all(b"text").is_err_and(|why| why.kind() == ErrorKind::BrokenPipe)
                    || client.take_error().unwrap().is_some()
            });
            let refused = other.run(|| TcpStream::connect(to_one)).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
            one.rule("");
            assert!(other.run(|| TcpStream::connect(to_one)).is_ok());
            let outside =
                other.run(|| UdpSocket::bind("0.0.0.0:0").unwrap().connect("192.0.2.1:9"));
            assert_eq!(outside.unwrap_err().kind(), ErrorKind::NetworkUnreachable);
        });
    }
}
