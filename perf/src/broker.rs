//! A real `strobe-broker` process of its own, on a state directory of its own, and what it leaves
//! on the disk.

use crate::run;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use strobe_broker::control;
use strobe_broker::store::{SegmentReport, Store, StoreConfig, StoreError, check};
use strobe_wire::message::ApiRequest;
use strobe_wire::pki::Authority;

/// A broker that runs. Dropping it ends it, by its id, and removes its directory.
#[derive(Debug)]
pub struct Broker {
    child: Child,
    /// Its state directory.
    pub dir: PathBuf,
    /// Where it listens.
    pub address: SocketAddr,
    log: PathBuf,
    program: PathBuf,
    args: Vec<String>,
}

/// What lies on the disk after a run, when everything is sealed.
#[derive(Clone, Debug, Default)]
pub struct Stored {
    /// Bytes of the write-ahead log before that.
    pub wal_bytes: u64,
    /// Of all raw segments together.
    pub raw: SegmentReport,
    /// The raw segment with the longest blocks: those of full windows cost the least a sample.
    pub best: SegmentReport,
    /// Of all rollup segments together.
    pub rollups: SegmentReport,
    /// Places that do not check.
    pub damage: Vec<String>,
}

/// Why a broker could not be run.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// The system refused.
    #[error("{doing} {path}: {why}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        why: io::Error,
    },
    /// It ended, or said nothing.
    #[error("{path} does not start: {said}")]
    Start {
        /// The program.
        path: PathBuf,
        /// What it said.
        said: String,
    },
    /// What it left cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Its certificates.
    #[error("the broker's certificates: {0}")]
    Pki(String),
}

impl Broker {
    /// Starts `program` with a fresh directory below `scratch`.
    ///
    /// # Errors
    /// It does not say where it listens within 20 s.
    pub fn start(program: &Path, scratch: &Path) -> Result<Self, BrokerError> {
        Self::start_with(program, scratch, &[])
    }

    /// The same, with more arguments.
    ///
    /// # Errors
    /// It does not say where it listens within 20 s.
    pub fn start_with(program: &Path, scratch: &Path, more: &[&str]) -> Result<Self, BrokerError> {
        let dir = scratch.join("broker");
        let log = scratch.join("broker.log");
        // What an earlier run left that was killed; a fresh one has none.
        let _ = fs::remove_dir_all(&dir);
        let _ = fs::remove_file(&log);
        fs::create_dir_all(&dir).map_err(io("make", &dir))?;
        let mut args: Vec<String> = more.iter().map(|arg| (*arg).to_owned()).collect();
        args.extend(["--broker-listen".to_owned(), "127.0.0.1:0".to_owned()]);
        let mut child = spawn(program, &dir, &log, &args)?;
        let until = run::now() + START;
        loop {
            let said = fs::read_to_string(&log).unwrap_or_default();
            if let Some(address) = listening(&said) {
                args.pop();
                args.push(address.to_string());
                return Ok(Self { child, dir, address, log, program: program.to_owned(), args });
            }
            let ended = child.try_wait().is_ok_and(|ended| ended.is_some());
            if ended || until < run::now() {
                let _ = child.kill();
                let _ = child.wait();
                return Err(BrokerError::Start { path: program.to_owned(), said });
            }
            run::sleep_until(run::now() + Duration::from_millis(20));
        }
    }

    /// Ends it without a warning.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Another life on the same directory and port; it is not waited for.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn begin_again(&mut self) -> Result<(), BrokerError> {
        self.child = spawn(&self.program, &self.dir, &self.log, &self.args)?;
        Ok(())
    }

    /// Ends it as an operator does; its directory stays until the result is dropped.
    #[must_use]
    pub fn end_and_keep(mut self) -> Self {
        self.end();
        self
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its authority: with it the simulated agents' certificates are signed here, since an
    /// enrolment token is good for one agent only.
    ///
    /// # Errors
    /// It has none, or it cannot be read.
    pub fn authority(&self) -> Result<Authority, BrokerError> {
        Authority::load(&self.dir.join("ca"))
            .map_err(|why| BrokerError::Pki(why.to_string()))?
            .ok_or_else(|| BrokerError::Pki(format!("no authority in {}", self.dir.display())))
    }

    /// The body of an answer of its API, asked for on the operator's socket.
    ///
    /// # Errors
    /// It does not answer, or not 200.
    pub fn ask(&self, path: &str, query: &str) -> Result<String, BrokerError> {
        self.request("GET", path, query)
    }

    /// The same of what an operator asks for.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn operate(&self, path: &str, form: &str) -> Result<String, BrokerError> {
        self.request("POST", path, form)
    }

    fn request(&self, method: &str, path: &str, query: &str) -> Result<String, BrokerError> {
        let request = ApiRequest {
            method: method.into(),
            path: path.into(),
            query: query.into(),
            ..ApiRequest::default()
        };
        let answer = control::ask(&self.dir, request, ANSWER).map_err(io("ask", &self.dir))?;
        let body = String::from_utf8_lossy(&answer.body).into_owned();
        if answer.status == 200 {
            return Ok(body);
        }
        Err(io("ask", &self.dir)(io::Error::other(body)))
    }

    /// One of its own counters.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn counter(&self, name: &str) -> Result<Option<u64>, BrokerError> {
        let metrics = self.ask("/metrics", "")?;
        let value = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok();
        Ok(metrics.lines().find_map(value))
    }

    /// A token with which one agent may enrol.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn token(&self) -> Result<String, BrokerError> {
        let body = self.ask("/api/strobe/v1/tokens", "lifetime_ms=60000")?;
        Ok(body.trim().to_owned())
    }

    /// Ends it as an operator does (SIGTERM), seals what is left, and counts what there is.
    ///
    /// # Errors
    /// What could not be read.
    pub fn stored(mut self, from_ms: i64) -> Result<Stored, BrokerError> {
        self.end();
        sealed(&self.dir.join("store"), from_ms)
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

impl Drop for Broker {
    fn drop(&mut self) {
        self.end();
        // Nothing in it is worth keeping.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Seals everything in the store of a broker that has ended, one window after the other from the
/// one that `from_ms` is in, as the broker would have, and counts what there is.
///
/// # Errors
/// What could not be read or written.
pub fn sealed(store: &Path, from_ms: i64) -> Result<Stored, BrokerError> {
    let mut stored = Stored { wal_bytes: bytes_of(&store.join("wal")), ..Stored::default() };
    let config = StoreConfig {
        free_bytes_min: 0,
        head_bytes_max: usize::MAX,
        ..StoreConfig::at(store.to_owned())
    };
    let now_ms = i64::try_from(run::wall_ms()).unwrap_or(0);
    let (_, mut writer, _) = Store::open(config, from_ms)?;
    let mut at_ms = from_ms.div_euclid(WINDOW_MS) * WINDOW_MS;
    while at_ms < now_ms {
        at_ms += WINDOW_MS;
        writer.settle(at_ms + SEALED_AFTER_MS)?;
    }
    drop(writer);
    let report = check(store)?;
    stored.damage = report.damage;
    for file in report.files {
        let sum = if file.step_ms == 0 { &mut stored.raw } else { &mut stored.rollups };
        sum.blocks += file.blocks;
        sum.samples += file.samples;
        sum.block_bytes += file.block_bytes;
        sum.bytes += file.bytes;
        let length = |file: &SegmentReport| file.samples.checked_div(file.blocks);
        if file.step_ms == 0 && length(&stored.best) < length(&file) {
            stored.best = file;
        }
    }
    Ok(stored)
}

impl Stored {
    /// Bytes a sample of the best segment: full windows, where the run had one.
    #[must_use]
    pub fn bytes_per_sample(&self) -> Option<f64> {
        (self.best.samples != 0).then(|| self.best.bytes as f64 / self.best.samples as f64)
    }

    /// The same of its blocks alone, without the file's lists of series and places.
    #[must_use]
    pub fn block_bytes_per_sample(&self) -> Option<f64> {
        (self.best.samples != 0).then(|| self.best.block_bytes as f64 / self.best.samples as f64)
    }
}

/// Bytes of all files below a directory.
#[must_use]
pub fn bytes_of(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    let of = |entry: fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => bytes_of(&entry.path()),
        Ok(meta) => meta.len(),
        Err(_) => 0,
    };
    entries.flatten().map(of).sum()
}

fn spawn(program: &Path, dir: &Path, log: &Path, args: &[String]) -> Result<Child, BrokerError> {
    let out = fs::OpenOptions::new().create(true).append(true).open(log);
    let out = out.map_err(io("make", log))?;
    let err = out.try_clone().map_err(io("make", log))?;
    let mut command = Command::new(program);
    command.arg("--dir").arg(dir).args(args).stdin(Stdio::null()).stdout(out).stderr(err);
    command.spawn().map_err(io("start", program))
}

fn listening(said: &str) -> Option<SocketAddr> {
    let (_, rest) = said.split_once("QUIC on ")?;
    rest.split_once(',')?.0.parse().ok()
}

fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BrokerError {
    move |why| BrokerError::Io { doing, path: path.to_owned(), why }
}

const START: Duration = Duration::from_secs(20);
const ANSWER: Duration = Duration::from_secs(20);
/// What a block covers.
pub const WINDOW_MS: i64 = 600_000;
/// A window's delay for late rows, and a little.
const SEALED_AFTER_MS: i64 = 31_000;
