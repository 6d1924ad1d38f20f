//! What is checked of a machine, and when it counts as down.
//!
//! ```text
//!   text    tcp:22 | http:9100/metrics | quic:7801 | script:NAME
//!   state   up --3 failures in a row--> down --1 success--> up
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// One thing that is tried.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Check {
    /// A TCP connection can be opened.
    Tcp {
        /// Where.
        port: u16,
    },
    /// `GET` is answered with 200 to 399.
    Http {
        /// Where.
        port: u16,
        /// What is asked for, from its `/` on.
        path: String,
    },
    /// Something there speaks QUIC: it answers an unknown version as RFC 9000, 6.1 wants it.
    Quic {
        /// Where.
        port: u16,
    },
    /// A program of the scripts' directory, given name and address, ends with 0.
    Script {
        /// Its file name.
        name: String,
    },
}

/// Why a text is no check.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "{text:?} is no check: {why}; tcp:PORT, http:PORT/PATH, quic:PORT or script:NAME is wanted"
)]
pub struct CheckError {
    text: String,
    why: &'static str,
}

impl FromStr for Check {
    type Err = CheckError;

    fn from_str(text: &str) -> Result<Self, CheckError> {
        let refuse = |why| CheckError { text: text.to_owned(), why };
        let (kind, rest) = text.split_once(':').ok_or_else(|| refuse("it has no colon"))?;
        let port = |text: &str| match text.parse::<u16>() {
            Ok(port) if 0 < port => Ok(port),
            _ => Err(refuse("a port is 1 to 65535")),
        };
        match kind {
            "tcp" => Ok(Self::Tcp { port: port(rest)? }),
            "quic" => Ok(Self::Quic { port: port(rest)? }),
            "http" => {
                let (number, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
                let path = if path.is_empty() { "/" } else { path };
                let plain = path.bytes().all(|byte| byte.is_ascii_graphic());
                if PATH_BYTES_MAX < path.len() || !plain {
                    return Err(refuse("a path has at most 1,024 printable characters"));
                }
                Ok(Self::Http { port: port(number)?, path: path.to_owned() })
            }
            "script" => {
                let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
                let good = !rest.is_empty() && rest.len() <= SCRIPT_BYTES_MAX;
                if !good || rest.starts_with('.') || !rest.chars().all(plain) {
                    return Err(refuse("a script is a file's name, without its directory"));
                }
                Ok(Self::Script { name: rest.to_owned() })
            }
            _ => Err(refuse("that kind is not known")),
        }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { port } => write!(f, "tcp:{port}"),
            Self::Http { port, path } => write!(f, "http:{port}{path}"),
            Self::Quic { port } => write!(f, "quic:{port}"),
            Self::Script { name } => write!(f, "script:{name}"),
        }
    }
}

/// Checks of machines, each at a moment of its own within the interval.
///
/// At most [`JOBS_MAX`]; what is more is refused. One that is still under way when it is due again
/// is passed over and counted.
#[derive(Debug)]
pub struct Rounds {
    interval_ms: u64,
    strikes_max: u32,
    jobs: BTreeMap<(String, Check), Job>,
    refused: u64,
    passed_over: u64,
}

/// How a check stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// Nothing is known yet.
    Untried,
    /// It succeeded lately.
    Up,
    /// It failed, not yet often enough.
    Failing(u32),
    /// It failed so often that it is told as down.
    Down,
}

/// A change that is worth a sentence.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Turn {
    /// It is down from now on.
    Down,
    /// It is up again.
    Up,
}

#[derive(Debug)]
struct Job {
    due_ms: u64,
    under_way: bool,
    standing: Standing,
}

impl Rounds {
    /// None yet.
    #[must_use]
    pub fn new(interval_ms: u64, strikes_max: u32) -> Self {
        let interval_ms = interval_ms.max(1);
        Self { interval_ms, strikes_max, jobs: BTreeMap::new(), refused: 0, passed_over: 0 }
    }

    /// These are to be checked from now on, and no others. What is known of those that stay is kept.
    pub fn set(&mut self, wanted: impl IntoIterator<Item = (String, Check)>, now_ms: u64) {
        let mut before = std::mem::take(&mut self.jobs);
        self.refused = 0;
        for key in wanted {
            if JOBS_MAX <= self.jobs.len() {
                self.refused += 1;
                continue;
            }
            let job = before.remove(&key).unwrap_or_else(|| Job {
                due_ms: now_ms + spread(&key) % self.interval_ms,
                under_way: false,
                standing: Standing::Untried,
            });
            self.jobs.insert(key, job);
        }
    }

    /// At most so many that are due, each of which is to be [`Rounds::done`] some time.
    pub fn due(&mut self, now_ms: u64, most: usize) -> Vec<(String, Check)> {
        let mut due = Vec::new();
        for (key, job) in &mut self.jobs {
            if now_ms < job.due_ms || due.len() == most {
                continue;
            }
            // On its own grid, however late this was.
            let missed = (now_ms - job.due_ms) / self.interval_ms;
            job.due_ms += (missed + 1) * self.interval_ms;
            if job.under_way {
                self.passed_over += 1;
                continue;
            }
            job.under_way = true;
            due.push(key.clone());
        }
        due
    }

    /// When the next one is due.
    #[must_use]
    pub fn timeout_ms(&self) -> Option<u64> {
        self.jobs.values().map(|job| job.due_ms).min()
    }

    /// What came of one; `None` if it is not wanted any more, or nothing turned.
    pub fn done(&mut self, name: &str, check: &Check, succeeded: bool) -> Option<Turn> {
        let job = self.jobs.get_mut(&(name.to_owned(), check.clone()))?;
        job.under_way = false;
        let before = job.standing;
        job.standing = match (succeeded, before) {
            (true, _) => Standing::Up,
            (false, Standing::Down) => Standing::Down,
            (false, Standing::Failing(n)) if self.strikes_max <= n + 1 => Standing::Down,
            (false, Standing::Failing(n)) => Standing::Failing(n + 1),
            (false, _) if self.strikes_max <= 1 => Standing::Down,
            (false, _) => Standing::Failing(1),
        };
        match (before, job.standing) {
            (Standing::Down, Standing::Up) => Some(Turn::Up),
            (before, Standing::Down) if before != Standing::Down => Some(Turn::Down),
            _ => None,
        }
    }

    /// How one stands, if it is wanted.
    #[must_use]
    pub fn standing(&self, name: &str, check: &Check) -> Option<Standing> {
        let job = self.jobs.get(&(name.to_owned(), check.clone()))?;
        Some(job.standing)
    }

    /// How every check stands.
    pub fn standings(&self) -> impl Iterator<Item = (&str, &Check, Standing)> {
        self.jobs.iter().map(|((name, check), job)| (name.as_str(), check, job.standing))
    }

    /// Checks that there was no room for.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// Times that a check was due while it was still under way.
    #[must_use]
    pub fn passed_over(&self) -> u64 {
        self.passed_over
    }
}

/// The same moment for the same check, whoever makes it (FNV-1a).
fn spread((name, check): &(String, Check)) -> u64 {
    let check = check.to_string();
    name.bytes().chain(check.bytes()).fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Checks of all machines.
pub const JOBS_MAX: usize = 10_000;
const PATH_BYTES_MAX: usize = 1024;
const SCRIPT_BYTES_MAX: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(text: &str) -> Check {
        text.parse().unwrap()
    }

    #[test]
    fn checks_as_text() {
        for text in ["tcp:22", "http:9100/metrics?a=b", "quic:7801", "script:disk.sh"] {
            assert_eq!(check(text).to_string(), text);
        }
        assert_eq!(check("http:80").to_string(), "http:80/");
        let said = |text: &str| text.parse::<Check>().unwrap_err().to_string();
        assert!(said("22").contains("it has no colon"));
        assert!(said("tcp:0").contains("a port is 1 to 65535"));
        assert!(said("icmp:1").contains("that kind is not known"));
        for text in ["script:", "script:../x", "script:.x", "script:a/b", "http:80/a b"] {
            said(text);
        }
    }

    #[test]
    fn three_strikes_and_one_success() {
        let mut rounds = Rounds::new(30_000, 3);
        rounds.set([("a".to_owned(), check("tcp:22"))], 0);
        let mut tell = |good: &[bool]| {
            good.iter().map(|good| rounds.done("a", &check("tcp:22"), *good)).collect::<Vec<_>>()
        };
        assert_eq!(tell(&[true, false, false, true]), [None; 4]);
        assert_eq!(tell(&[false, false, false, false]), [None, None, Some(Turn::Down), None]);
        assert_eq!(tell(&[true, true]), [Some(Turn::Up), None]);
        assert_eq!(rounds.done("b", &check("tcp:22"), false), None);
    }

    #[test]
    fn each_is_due_once_an_interval_at_a_moment_of_its_own() {
        let mut rounds = Rounds::new(30_000, 3);
        let wanted = |n: u64| (0..n).map(|n| (format!("host{n}"), check("tcp:22")));
        rounds.set(wanted(300), 1_000);
        let mut times: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        let mut most = 0;
        for now_ms in (1_000..=91_000).step_by(100) {
            let due = rounds.due(now_ms, 100);
            most = most.max(due.len());
            for (name, check) in due {
                rounds.done(&name, &check, true);
                times.entry(name).or_default().push(now_ms);
            }
        }
        assert_eq!(times.len(), 300);
        let odd = times.iter().find(|(_, at)| at.len() < 3 || at[1] - at[0] != 30_000);
        assert_eq!(odd, None);
        assert!(most <= 12, "{most} at once");
        // Who stays keeps what is known of it.
        rounds.done("host1", &check("tcp:22"), false);
        rounds.set(wanted(2), 91_000);
        let left: Vec<Standing> = rounds.standings().map(|(.., standing)| standing).collect();
        assert_eq!(left, [Standing::Up, Standing::Failing(1)]);
    }

    #[test]
    fn what_is_under_way_is_not_begun_twice() {
        let mut rounds = Rounds::new(1_000, 3);
        rounds.set([("a".to_owned(), check("tcp:22"))], 0);
        assert_eq!(rounds.due(5_000, 9).len(), 1);
        assert_eq!((rounds.due(7_000, 9).len(), rounds.passed_over()), (0, 1));
        rounds.done("a", &check("tcp:22"), true);
        assert_eq!(rounds.due(8_500, 9).len(), 1);
        rounds.set((0..=JOBS_MAX).map(|n| (n.to_string(), check("tcp:1"))), 0);
        assert_eq!((rounds.standings().count(), rounds.refused()), (JOBS_MAX, 1));
    }

    proptest! {
        #[test]
        fn any_text_is_a_check_or_refused(text in ".{0,40}") {
            if let Ok(check) = text.parse::<Check>() {
                prop_assert_eq!(check.to_string().parse::<Check>(), Ok(check));
            }
        }
    }
}
