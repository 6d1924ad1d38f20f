//! Tries a check of one machine, in the caller's thread, for a bounded time.

use crate::check::Check;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// What a check needs besides itself.
#[derive(Clone, Copy, Debug)]
pub struct Probe<'a> {
    /// What the machine is called; scripts are given it.
    pub name: &'a str,
    /// Where it is.
    pub address: IpAddr,
    /// How long it may take in all.
    pub patience: Duration,
    /// Where scripts are; `None`: there are none.
    pub scripts: Option<&'a Path>,
    /// What time it is.
    pub clock: fn() -> Instant,
}

impl Probe<'_> {
    /// Whether the check succeeds; if not, why.
    ///
    /// # Errors
    /// It does not, in a sentence's second half.
    pub fn try_check(&self, check: &Check) -> Result<(), String> {
        let until = (self.clock)() + self.patience;
        match check {
            Check::Tcp { port } => self.connect(*port).map(drop),
            Check::Http { port, path } => self.http(*port, path, until),
            Check::Quic { port } => self.quic(*port, until),
            Check::Script { name } => self.script(name),
        }
    }

    fn connect(&self, port: u16) -> Result<TcpStream, String> {
        let to = SocketAddr::new(self.address, port);
        TcpStream::connect_timeout(&to, self.patience).map_err(|why| format!("{to}: {why}"))
    }

    fn left(&self, until: Instant) -> Result<Duration, String> {
        let left = until.saturating_duration_since((self.clock)());
        if left.is_zero() {
            return Err(format!("no answer within {} ms", self.patience.as_millis()));
        }
        Ok(left)
    }

    fn http(&self, port: u16, path: &str, until: Instant) -> Result<(), String> {
        let mut stream = self.connect(port)?;
        let socket = stream.try_clone().map_err(|why| why.to_string())?;
        let host = SocketAddr::new(self.address, port);
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: strobe\r\nAccept: */*\r\nConnection: \
             close\r\n\r\n"
        );
        match status_of((&mut stream, &socket), &request, until, self.clock)? {
            200..=399 => Ok(()),
            status => Err(format!("the answer to GET {path} is {status}")),
        }
    }

    /// A long header of a version that nobody has: RFC 9000, 6.1 wants a Version Negotiation packet
    /// back, without any state at the other end.
    fn quic(&self, port: u16, until: Instant) -> Result<(), String> {
        let any: SocketAddr = match self.address {
            IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            IpAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let mut ids = [0; 16];
        getrandom::fill(&mut ids).map_err(|why| why.to_string())?;
        let (there, here) = ids.split_at(8);
        let mut packet = Vec::with_capacity(QUIC_BYTES_MIN);
        packet.push(0xc0);
        packet.extend_from_slice(&QUIC_NO_VERSION);
        for id in [there, here] {
            packet.push(8);
            packet.extend_from_slice(id);
        }
        packet.resize(QUIC_BYTES_MIN, 0);
        let socket = UdpSocket::bind(any).map_err(|why| why.to_string())?;
        let run = || -> io::Result<()> {
            socket.connect((self.address, port))?;
            socket.send(&packet).map(drop)
        };
        run().map_err(|why| why.to_string())?;
        let mut answer = [0; 256];
        loop {
            let left = self.left(until)?.min(self.patience / TRIES);
            socket.set_read_timeout(Some(left)).map_err(|why| why.to_string())?;
            match socket.recv(&mut answer) {
                Ok(length) => {
                    let answer = answer.get(..length).unwrap_or_default();
                    if is_negotiation(answer, here, there) {
                        return Ok(());
                    }
                }
                // The question, or its answer, may be lost.
                Err(why) if why.kind() == io::ErrorKind::WouldBlock => {
                    drop(socket.send(&packet));
                }
                Err(why) => return Err(why.to_string()),
            }
        }
    }

    /// With name and address as arguments.
    fn script(&self, name: &str) -> Result<(), String> {
        let dir = self.scripts.ok_or("this broker has no directory of scripts")?;
        let address = self.address.to_string();
        run(&dir.join(name), &[self.name, &address], self.patience, self.clock)
            .map_err(|why| format!("{name} {why}"))
    }
}

/// Runs a program with an empty environment but PATH, no input and no output, and kills it with all that
/// it started when its time is over.
///
/// # Errors
/// It does not end with 0, in a sentence's second half.
pub fn run(
    program: &Path,
    args: &[&str],
    patience: Duration,
    clock: fn() -> Instant,
) -> Result<(), String> {
    let until = clock() + patience;
    let mut command = Command::new(program);
    command
        .args(args)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0);
    let mut child =
        strobe_wire::program::spawn(&mut command).map_err(|why| format!("cannot be run: {why}"))?;
    let ended = loop {
        match code_of(&child) {
            Ok(None) => {}
            Ok(Some(code)) => break Ok(code),
            Err(why) => break Err(why),
        }
        let left = until.saturating_duration_since(clock());
        if left.is_zero() {
            break Err("did not end in time and was killed".to_owned());
        }
        pause(left.min(LOOK_EVERY));
    };
    // What it started and left behind goes with it, and only then is it reaped: the group's number is
    // somebody else's after that.
    kill(&mut child);
    match ended? {
        Some(0) => Ok(()),
        Some(code) => Err(format!("ended with {code}")),
        None => Err("was killed".to_owned()),
    }
}

/// Whether a child has ended, and if by itself with which code; it is not reaped.
#[expect(clippy::option_option, reason = "not yet, by a signal, with a code")]
fn code_of(child: &Child) -> Result<Option<Option<i32>>, String> {
    let pid = i32::try_from(child.id()).map_err(|why| why.to_string())?;
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    match waitid(Id::Pid(Pid::from_raw(pid)), flags) {
        Ok(WaitStatus::Exited(_, code)) => Ok(Some(Some(code))),
        Ok(WaitStatus::Signaled(..)) => Ok(Some(None)),
        Ok(_) => Ok(None),
        Err(why) => Err(why.to_string()),
    }
}

/// Sends a request and reads the status line of its answer, and no more. `socket` is what waits: the stream,
/// or what is below it.
pub(crate) fn status_of(
    (stream, socket): (&mut (impl Read + Write), &TcpStream),
    request: &str,
    until: Instant,
    clock: fn() -> Instant,
) -> Result<u16, String> {
    let left = || {
        let left = until.saturating_duration_since(clock());
        if left.is_zero() { Err("no answer in time".to_owned()) } else { Ok(left) }
    };
    let io = |why: io::Error| match why.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "no answer in time".to_owned(),
        _ => why.to_string(),
    };
    // A handshake reads before all is written.
    socket.set_read_timeout(Some(left()?)).map_err(io)?;
    socket.set_write_timeout(Some(left()?)).map_err(io)?;
    stream.write_all(request.as_bytes()).map_err(io)?;
    let mut line = Vec::new();
    let mut some = [0; 128];
    while !line.contains(&b'\n') && line.len() < STATUS_BYTES_MAX {
        socket.set_read_timeout(Some(left()?)).map_err(io)?;
        match stream.read(&mut some).map_err(io)? {
            0 => break,
            read => line.extend_from_slice(some.get(..read).unwrap_or_default()),
        }
    }
    let text = String::from_utf8_lossy(&line);
    let mut words = text.lines().next().unwrap_or_default().split(' ');
    let speaks = words.next().is_some_and(|word| word.starts_with("HTTP/1."));
    let status = words.next().filter(|_| speaks).and_then(|word| word.parse().ok());
    status.ok_or_else(|| "what answers does not speak HTTP".to_owned())
}

/// A poll of nothing: whatever ends it early, it is looked again.
fn pause(wait: Duration) {
    let ms = u16::try_from(wait.as_millis()).unwrap_or(u16::MAX);
    if let Err(why) = nix::poll::poll(&mut [], ms) {
        log::debug!("cannot wait: {why}");
    }
}

fn kill(child: &mut Child) {
    if let Ok(group) = i32::try_from(child.id()) {
        // It may be gone: that is what is wanted.
        let gone = killpg(Pid::from_raw(group), Signal::SIGKILL).is_err();
        log::trace!("group {group} was gone: {gone}");
    }
    drop(child.wait());
}

/// RFC 9000, 17.2.1: version 0, our two ids the other way round.
fn is_negotiation(packet: &[u8], here: &[u8], there: &[u8]) -> bool {
    let Some((first, rest)) = packet.split_first() else { return false };
    let wanted = [&[0, 0, 0, 0, 8], here, &[8], there].concat();
    first & 0x80 != 0 && rest.starts_with(&wanted)
}

/// RFC 9000, 15: versions of this form are for exercising negotiation.
const QUIC_NO_VERSION: [u8; 4] = [0x1a, 0x2a, 0x3a, 0x4a];
/// RFC 9000, 14.1: smaller datagrams are dropped.
const QUIC_BYTES_MIN: usize = 1200;
const STATUS_BYTES_MAX: usize = 1024;
const TRIES: u32 = 3;
const LOOK_EVERY: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::webhook;
    use std::net::TcpListener;
    use std::os::unix::fs::PermissionsExt;

    #[expect(clippy::disallowed_methods, reason = "a test of what runs in real time")]
    fn clock() -> Instant {
        Instant::now()
    }

    fn probe(scripts: Option<&Path>) -> Probe<'_> {
        let (address, patience) = (Ipv4Addr::LOCALHOST.into(), Duration::from_millis(400));
        Probe { name: "a", address, patience, scripts, clock }
    }

    fn said(text: &str) -> Result<(), String> {
        probe(None).try_check(&text.parse().unwrap())
    }

    /// Answers one connection with these bytes.
    fn answering(bytes: &'static [u8]) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 1024];
            assert!(0 < stream.read(&mut request).unwrap());
            stream.write_all(bytes).unwrap();
            // Until the other side has seen enough.
            drop(stream.read(&mut request));
        });
        port
    }

    #[test]
    fn tcp_is_open_or_not() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert_eq!(said(&format!("tcp:{port}")), Ok(()));
        drop(listener);
        assert!(said(&format!("tcp:{port}")).unwrap_err().contains("refused"));
    }

    #[test]
    fn http_is_good_up_to_399() {
        let ask = |bytes| said(&format!("http:{}/x", answering(bytes)));
        assert_eq!(ask(b"HTTP/1.1 204 No Content\r\n\r\n"), Ok(()));
        assert_eq!(ask(b"HTTP/1.0 302 Found\r\n\r\n"), Ok(()));
        let why = "the answer to GET /x is 503".to_owned();
        assert_eq!(ask(b"HTTP/1.1 503 Busy\r\n\r\n"), Err(why));
        assert!(ask(b"SSH-2.0-OpenSSH_9.2\r\n").unwrap_err().contains("does not speak HTTP"));
        assert!(ask(b"HTTP/1.1").unwrap_err().contains("no answer in time"));
    }

    #[test]
    fn a_post_is_taken_or_not() {
        let to = |bytes| {
            let url = format!("http://127.0.0.1:{}/hook?a=b", answering(bytes));
            webhook::post(&url, "application/json", "{}", Duration::from_millis(400), clock)
        };
        assert_eq!(to(b"HTTP/1.1 202 Accepted\r\n\r\n"), Ok(()));
        assert_eq!(to(b"HTTP/1.1 301 Moved\r\n\r\n"), Err("the answer is 301".to_owned()));
    }

    #[test]
    fn a_script_is_judged_by_how_it_ends() {
        let dir = std::env::temp_dir().join(format!("strobe-probe-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let put = |name: &str, text: &str| {
            let path = dir.join(name);
            std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        };
        put("good.sh", "[ \"$1 $2\" = 'a 127.0.0.1' ] && [ -z \"$HOME\" ]");
        put("bad.sh", "exit 7");
        put("slow.sh", &format!("sleep 30 & echo $! > {}/pid; wait", dir.display()));
        let probe = probe(Some(&dir));
        let run = |name: &str| probe.try_check(&Check::Script { name: name.to_owned() });
        assert_eq!(run("good.sh"), Ok(()));
        assert_eq!(run("bad.sh"), Err("bad.sh ended with 7".to_owned()));
        assert!(run("none.sh").unwrap_err().contains("cannot be run"));
        assert!(run("slow.sh").unwrap_err().contains("did not end in time"));
        // What it had started is gone too, or about to be.
        let pid = std::fs::read_to_string(dir.join("pid")).unwrap();
        let stat = format!("/proc/{}/stat", pid.trim());
        let gone = (0..200).any(|_| {
            let text = std::fs::read_to_string(&stat).unwrap_or_default();
            pause(LOOK_EVERY);
            text.is_empty() || text.contains(") Z ")
        });
        assert!(gone, "{stat}");
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn silence_is_no_quic_and_neither_is_anything_else() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        assert!(said(&format!("quic:{port}")).unwrap_err().contains("no answer within 400 ms"));
        let (here, there) = ([1; 8], [2; 8]);
        let good = [&[0x80, 0, 0, 0, 0, 8], here.as_slice(), &[8], &there, &[0, 0, 0, 1]].concat();
        assert!(is_negotiation(&good, &here, &there));
        for length in 0..23 {
            assert!(!is_negotiation(&good[..length], &here, &there), "{length}");
        }
        assert!(!is_negotiation(&good, &there, &here));
    }
}
