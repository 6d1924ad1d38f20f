//! What one would otherwise use, on loopback: victoria-metrics and prometheus, fed by remote-write.

use crate::broker::bytes_of;
use crate::http::{Ask, Http};
use crate::run;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Which.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// victoria-metrics, single node.
    VictoriaMetrics,
    /// prometheus with its remote-write receiver.
    Prometheus,
}

/// One that runs. Dropping it ends it, by its id, and removes its directory.
#[derive(Debug)]
pub struct Peer {
    kind: Kind,
    child: Child,
    /// Its data.
    pub dir: PathBuf,
    /// Where it listens.
    pub port: u16,
}

impl Kind {
    /// Both.
    pub const ALL: [Self; 2] = [Self::VictoriaMetrics, Self::Prometheus];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::VictoriaMetrics => "victoria-metrics",
            Self::Prometheus => "prometheus",
        }
    }

    /// Where it is, if it is installed.
    #[must_use]
    pub fn program(self) -> Option<PathBuf> {
        let path = Path::new("/usr/bin").join(self.name());
        path.exists().then_some(path)
    }

    fn command(self, dir: &Path, port: u16) -> io::Result<Command> {
        let mut command = Command::new(Path::new("/usr/bin").join(self.name()));
        match self {
            Self::VictoriaMetrics => {
                command
                    .arg(format!("-storageDataPath={}", dir.join("data").display()))
                    .arg(format!("-httpListenAddr=127.0.0.1:{port}"))
                    .args(["-retentionPeriod=100y", "-loggerLevel=ERROR"]);
            }
            Self::Prometheus => {
                let config = dir.join("prometheus.yml");
                fs::write(&config, "global:\n  scrape_interval: 1h\n")?;
                command
                    .arg(format!("--config.file={}", config.display()))
                    .arg(format!("--storage.tsdb.path={}", dir.join("data").display()))
                    .arg(format!("--web.listen-address=127.0.0.1:{port}"))
                    .args(["--web.enable-remote-write-receiver", "--web.enable-admin-api"])
                    .args(["--log.level=error"]);
            }
        }
        Ok(command)
    }
}

impl Peer {
    /// Starts one with its data below `scratch`.
    ///
    /// # Errors
    /// It does not listen within 20 s.
    pub fn start(kind: Kind, scratch: &Path) -> io::Result<Self> {
        let dir = scratch.join(kind.name());
        fs::create_dir_all(dir.join("data"))?;
        let port = free_port()?;
        let log = fs::File::create(dir.join("log"))?;
        let child = kind
            .command(&dir, port)?
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let mut peer = Self { kind, child, dir, port };
        let until = run::now() + START;
        while !peer.is_ready() {
            if until < run::now() || peer.child.try_wait()?.is_some() {
                let said = fs::read_to_string(peer.dir.join("log")).unwrap_or_default();
                return Err(io::Error::other(format!("{} does not start: {said}", kind.name())));
            }
            run::sleep_until(run::now() + Duration::from_millis(50));
        }
        Ok(peer)
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What a remote-write request to it looks like.
    #[must_use]
    pub fn write<'a>(body: &'a [u8]) -> Ask<'a> {
        let head = "Content-Encoding: snappy\r\nContent-Type: application/x-protobuf\r\n\
                    X-Prometheus-Remote-Write-Version: 0.1.0\r\n";
        Ask { method: "POST", path: "/api/v1/write", head, body }
    }

    /// Bytes of its samples on the disk, everything flushed and merged as far as it goes. Its index
    /// of series is not in it for victoria-metrics (a directory of its own) and is for prometheus
    /// (part of each block).
    ///
    /// # Errors
    /// It does not do what it is asked.
    pub fn stored_bytes(&mut self) -> io::Result<u64> {
        let mut http = Http::connect(self.port)?;
        let get = |path| Ask { method: "GET", path, head: "", body: &[] };
        match self.kind {
            Kind::VictoriaMetrics => {
                http.must(&get("/internal/force_flush"))?;
                http.must(&get("/internal/force_merge"))?;
                run::sleep_until(run::now() + MERGE);
                self.end();
                Ok(bytes_of(&self.dir.join("data/data")))
            }
            Kind::Prometheus => {
                http.must(&Ask { method: "POST", ..get("/api/v1/admin/tsdb/snapshot") })?;
                self.end();
                Ok(bytes_of(&self.dir.join("data/snapshots")))
            }
        }
    }

    /// Bytes of its index of series where that is a directory of its own, after [`Peer::stored_bytes`].
    #[must_use]
    pub fn index_bytes(&self) -> u64 {
        match self.kind {
            Kind::VictoriaMetrics => bytes_of(&self.dir.join("data/indexdb")),
            Kind::Prometheus => 0,
        }
    }

    fn is_ready(&self) -> bool {
        let path = match self.kind {
            Kind::VictoriaMetrics => "/health",
            Kind::Prometheus => "/-/ready",
        };
        let ask = Ask { method: "GET", path, head: "", body: &[] };
        Http::connect(self.port).and_then(|mut http| http.must(&ask)).is_ok()
    }

    fn end(&mut self) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            let pid = nix::unistd::Pid::from_raw(pid);
            // It may have ended already; either way its exit is waited for.
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        }
        let _ = self.child.wait();
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.end();
        // Nothing in it is worth keeping.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// A port that was free a moment ago.
///
/// # Errors
/// There is none.
pub fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

const START: Duration = Duration::from_secs(20);
/// A forced merge goes on behind its answer.
const MERGE: Duration = Duration::from_secs(5);
