//! What the whole-program tests share: real processes that end with the test, free ports, a
//! plain HTTP client and fake /proc trees.
//!
//! A process started here is ended by its own pid when its [`Process`] is dropped; nothing else is
//! ever signalled, and every address is on 127.0.0.1 or in a namespace that the test made.

pub mod namespace;
pub mod relay;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// A child process that does not outlive its test.
#[derive(Debug)]
pub struct Process {
    child: Child,
    stdout: Option<BufReader<ChildStdout>>,
}

/// A folder that is removed with the test.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Process {
    /// Starts `program` of this build (`strobe`, `strobe-broker`, …) with `args`.
    ///
    /// # Panics
    /// If the program has not been built: `make test` builds it first.
    #[must_use]
    pub fn start(program: &str, args: &[&str]) -> Self {
        Self::start_with(program, &[], args)
    }

    /// The same, with these variables.
    ///
    /// # Panics
    /// If the program has not been built.
    #[must_use]
    pub fn start_with(program: &str, env: &[(&str, &str)], args: &[&str]) -> Self {
        let path = binary(program);
        let mut child = Command::new(&path)
            .args(args)
            .env_remove("STROBE_DIR")
            .envs(env.iter().copied())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap_or_else(|e| {
                panic!("{}: {e}; run `cargo build --workspace` first", path.display())
            });
        let stdout = child.stdout.take().map(BufReader::new);
        Self { child, stdout }
    }

    /// The next line it prints.
    ///
    /// # Panics
    /// If it ends without one.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        let read = self.stdout.as_mut().expect("piped at start").read_line(&mut line);
        assert!(read.expect("readable") > 0, "the program ended without a line");
        line
    }

    /// Sends SIGKILL and waits for the end.
    ///
    /// # Panics
    /// If it cannot be signalled or waited for.
    pub fn kill(&mut self) {
        kill(self.pid(), Signal::SIGKILL).expect("our own child can be killed");
        self.child.wait().expect("our own child can be waited for");
    }

    /// Sends SIGTERM, waits for the end, and says whether it ended well.
    ///
    /// # Panics
    /// If it cannot be signalled or waited for.
    pub fn terminate(&mut self) -> bool {
        kill(self.pid(), Signal::SIGTERM).expect("our own child can be signalled");
        self.child.wait().expect("our own child can be waited for").success()
    }

    /// Waits for its end, and says whether it was a good one.
    ///
    /// # Panics
    /// If it cannot be waited for.
    pub fn ended_well(&mut self) -> bool {
        self.child.wait().expect("our own child can be waited for").success()
    }

    /// Sends `signal`.
    ///
    /// # Panics
    /// If it cannot be signalled.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("our own child can be signalled");
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("a pid fits i32"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            self.kill();
        }
    }
}

impl Folder {
    /// A fresh one.
    ///
    /// # Panics
    /// If the temporary folder is not writable.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("strobe-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("the temporary folder is writable");
        Self(path)
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Its path as text.
    ///
    /// # Panics
    /// If the temporary folder's name is not UTF-8.
    #[must_use]
    pub fn text(&self) -> &str {
        self.0.to_str().expect("a UTF-8 temporary folder")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Runs `program` of this build to its end: (succeeded, stdout, stderr).
///
/// # Panics
/// If it has not been built.
#[must_use]
pub fn run(program: &str, args: &[&str]) -> (bool, String, String) {
    let (code, out, error) = run_with(program, &[], args);
    (code == 0, out, error)
}

/// Runs `program` of this build to its end with these variables: (exit code, stdout, stderr).
///
/// # Panics
/// If it has not been built, or a signal ended it.
#[must_use]
pub fn run_with(program: &str, env: &[(&str, &str)], args: &[&str]) -> (i32, String, String) {
    let path = binary(program);
    let mut command = Command::new(&path);
    command.args(args).env_remove("STROBE_DIR").envs(env.iter().copied());
    let out = command.output().unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let code = out.status.code().expect("it ends by itself");
    (code, text(&out.stdout), text(&out.stderr))
}

/// `127.0.0.1:port` with a port that is free for TCP and UDP at this moment.
///
/// # Panics
/// If loopback has no free port.
#[must_use]
pub fn free_address() -> String {
    loop {
        let tcp = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
        let address = tcp.local_addr().expect("bound");
        if UdpSocket::bind(address).is_ok() {
            return address.to_string();
        }
    }
}

/// GET `path` from `address`: (status, body).
///
/// # Errors
/// What the socket says.
pub fn http_get(address: &str, path: &str) -> std::io::Result<(u16, String)> {
    http(address, &format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"))
}

/// POST a form to `path` at `address`: (status, body).
///
/// # Errors
/// What the socket says.
pub fn http_post(address: &str, path: &str, form: &str) -> std::io::Result<(u16, String)> {
    let length = form.len();
    let kind = "application/x-www-form-urlencoded";
    let head = format!("POST {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close");
    let about = format!("Content-Type: {kind}\r\nContent-Length: {length}");
    http(address, &format!("{head}\r\n{about}\r\n\r\n{form}"))
}

fn http(address: &str, request: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(request.as_bytes())?;
    let mut text = Vec::new();
    stream.read_to_end(&mut text)?;
    let text = String::from_utf8_lossy(&text).into_owned();
    let status = text.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
    let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    Ok((status, body.to_owned()))
}

/// The `data.result` array of an instant query, or an empty one while the server is not there.
#[must_use]
pub fn query(address: &str, expression: &str) -> Vec<serde_json::Value> {
    let path = format!("/api/v1/query?query={}", escape(expression));
    let Ok((200, body)) = http_get(address, &path) else { return Vec::new() };
    let json: serde_json::Value = serde_json::from_str(&body).unwrap_or_default();
    json["data"]["result"].as_array().cloned().unwrap_or_default()
}

/// Asks `ready` every 50 ms until it is true; the seconds it took.
///
/// # Panics
/// After `seconds`, with `what`.
pub fn wait(what: &str, seconds: u64, mut ready: impl FnMut() -> bool) -> f64 {
    let start = now();
    while !ready() {
        assert!(start.elapsed() < Duration::from_secs(seconds), "{what}: not within {seconds} s");
        pause(50);
    }
    start.elapsed().as_secs_f64()
}

/// Lets real processes run for a while.
#[expect(clippy::disallowed_methods, reason = "real processes need real time to pass")]
pub fn pause(ms: u64) {
    std::thread::sleep(Duration::from_millis(ms));
}

/// A copy of the real /proc files the agent reads, for a host of its own.
///
/// # Panics
/// If the temporary folder is not writable.
pub fn fake_procfs(root: &Path) {
    for file in FILES {
        let Ok(bytes) = std::fs::read(Path::new("/proc").join(file)) else { continue };
        let to = root.join(file);
        std::fs::create_dir_all(to.parent().expect("a file has a folder")).expect("writable");
        std::fs::write(to, bytes).expect("writable");
    }
}

#[expect(clippy::disallowed_methods, reason = "bounds how long a test waits for a process")]
fn now() -> Instant {
    Instant::now()
}

/// Where `program` of this build is.
///
/// # Panics
/// If this is no test of a build.
#[must_use]
pub fn binary(program: &str) -> PathBuf {
    // target/<profile>/deps/<test> → target/<profile>/<program>
    let test = std::env::current_exe().expect("a running test has a path");
    let profile = test.parent().and_then(Path::parent).expect("target/<profile>/deps");
    profile.join(program)
}

/// For a query string.
#[must_use]
pub fn escape(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    text.bytes()
        .map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") })
        .collect()
}

const FILES: &[&str] = &[
    "stat",
    "meminfo",
    "loadavg",
    "diskstats",
    "vmstat",
    "uptime",
    "cpuinfo",
    "mounts",
    "1/mounts",
    "1/mountinfo",
    "self/mounts",
    "self/mountinfo",
    "net/dev",
    "net/sockstat",
    "net/sockstat6",
    "net/netstat",
    "net/snmp",
    "net/snmp6",
    "self/net/dev",
    "pressure/cpu",
    "pressure/io",
    "pressure/memory",
    "sys/fs/file-nr",
    "sys/kernel/osrelease",
    "sys/kernel/hostname",
];
