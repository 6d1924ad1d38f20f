//! A redis-server of a test, and history that was sealed before a broker starts.

use bytes::Bytes;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use strobe_broker::store::{Store, StoreConfig};
use strobe_tests::{Folder, wait};
use strobe_wire::frame::{FrameKind, Header, Row, seal_row};
use strobe_wire::ids::{BootId, HostId, Seq};
use strobe_wire::limits::FRAME_BYTES_MAX;
use strobe_wire::schema::{Column, Kind, Labels, Schema};

/// A server without a file, ended with the test.
pub(crate) struct Server {
    child: Child,
    port: u16,
    _folder: Folder,
}

impl Server {
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// With more arguments.
    pub(crate) fn start_with(more: &[&str]) -> Self {
        let free = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
        let port = free.local_addr().expect("bound").port();
        drop(free);
        Self::start_at(port, more)
    }

    /// At a port that another one had.
    pub(crate) fn start_at(port: u16, more: &[&str]) -> Self {
        let folder = Folder::new(&format!("redis-{port}"));
        let child = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""])
            .args(["--dir", folder.text()])
            .args(more)
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is installed (Debian: apt-get install redis-server)");
        let server = Self { child, port, _folder: folder };
        wait("redis-server's port", 15, || TcpStream::connect(("127.0.0.1", port)).is_ok());
        server
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port())
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Sends its process this signal.
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("a pid fits i32");
        kill(Pid::from_raw(pid), signal).expect("our own child can be signalled");
    }

    /// What it answers.
    pub(crate) fn tell(&self, command: &[&str]) -> String {
        tell(self.port, command)
    }

    /// How often it was given a command.
    pub(crate) fn calls(&self, name: &str) -> u64 {
        let text = self.tell(&["info", "commandstats"]);
        let line = text.lines().find_map(|l| l.strip_prefix(&format!("cmdstat_{name}:calls=")));
        line.and_then(|rest| rest.split(',').next()?.parse().ok()).unwrap_or(0)
    }
}

/// What the server at a port of this machine answers; nothing if there is none, or it hangs.
pub(crate) fn tell(port: u16, command: &[&str]) -> String {
    let port = port.to_string();
    let out = Command::new("timeout").args(["1", "redis-cli", "-p", &port]).args(command).output();
    String::from_utf8(out.expect("redis-cli is installed").stdout).expect("text")
}

impl Drop for Server {
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
        drop(self.child.wait());
    }
}

/// The last whole hour that is over for half an hour at least: nothing before it is still to be sealed.
pub(crate) fn whole_hour_ms() -> i64 {
    (now_ms() - 1_800_000) / 3_600_000 * 3_600_000
}

pub(crate) fn now_ms() -> i64 {
    let now = std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_millis();
    i64::try_from(now).expect("small")
}

/// Rows of host `old<number>` at these times, sealed and rolled up as at `now_ms`.
pub(crate) fn fill(dir: &Path, host: u128, times: impl Iterator<Item = i64>, now_ms: i64) {
    let config = StoreConfig { free_bytes_min: 0, ..StoreConfig::at(dir.join("store")) };
    let (_store, mut writer, _) = Store::open(config, now_ms).expect("it opens");
    let (labels, name) = (Labels::default(), "node_load1".to_owned());
    let column = Column { name, labels: labels.clone(), kind: Kind::Gauge { scale: 2 } };
    let schema = Schema { section: "load".to_owned(), columns: vec![column] };
    writer.schema(&schema).expect("a good one");
    writer.host(HostId(host), "node", &format!("old{host}"), &labels).expect("it is written");
    for time_ms in times {
        let seq = u64::try_from(time_ms / 1000).expect("after 1970");
        let header = Header {
            kind: FrameKind::Row,
            host: HostId(host),
            boot: BootId(1),
            seq: Seq(seq),
            wall_ns: time_ms * 1_000_000,
            boottime_ns: 0,
            schema: schema.id(),
        };
        let mut slot = [0; FRAME_BYTES_MAX];
        let row = Row { values: &[150], valid: &[1], scores: &[] };
        let length = seal_row(&mut slot, &header, &row).expect("it fits");
        writer.frame(&Bytes::copy_from_slice(&slot[..length])).expect("it is written");
    }
    writer.commit(now_ms).expect("it is written");
    writer.settle(now_ms + 3_600_000).expect("it is sealed");
}
