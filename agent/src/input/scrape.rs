//! A target that is scraped as Prometheus does it: its answer becomes rows, and `up` says whether there
//! was one.
//!
//! A target that does not answer, or answers what cannot be taken whole (too large, too many samples,
//! no text, OpenMetrics without its end), has `up 0`, and its series end with a stale marker. Its series
//! have `job` and `instance` of the configuration; its own ones become `exported_job` and
//! `exported_instance`, unless they are honoured.

use super::board::{Absent, Board, Put, Room};
use super::config::ScrapeConfig;
use super::line::Line;
use super::outbox::Outbox;
use super::text::series;
use crate::readers::text::lines;
use crate::sampler::Tick;
use crate::schemas::Table;
use std::sync::Arc;
use strobe_wire::schema::Labels;

/// A target and its series.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) config: ScrapeConfig,
    board: Board,
    /// Answers that were refused, and rows that found no room.
    pub(crate) failed: u64,
    pub(crate) dropped: u64,
    pub(crate) why: Option<String>,
}

/// What a reading took, as Prometheus tells it.
#[derive(Clone, Copy, Debug, Default)]
struct Told {
    up: bool,
    samples: usize,
    added: usize,
}

impl Target {
    pub(crate) fn new(config: ScrapeConfig, room: Room, table: Arc<Table>) -> Self {
        let (section, most) = (format!("scrape.{}", config.name), config.samples_max + OWN);
        let board = Board::new(section, most, room, table);
        Self { config, board, failed: 0, dropped: 0, why: None }
    }

    /// What to ask.
    pub(crate) fn request(&self) -> Vec<u8> {
        let ScrapeConfig { path, authority, timeout_ms, .. } = &self.config;
        let (seconds, rest) = (timeout_ms / 1000, timeout_ms % 1000);
        format!(
            "GET {path} HTTP/1.1\r\nHost: {authority}\r\nUser-Agent: strobe-agent/{}\r\nAccept: \
             application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1\r\n\
             Accept-Encoding: identity\r\nX-Prometheus-Scrape-Timeout-Seconds: {seconds}.{rest:03}\r\n\
             Connection: close\r\n\r\n",
            env!("CARGO_PKG_VERSION")
        )
        .into_bytes()
    }

    /// An answer, or why there was none; `took_ns` from the first byte asked to the last one heard.
    pub(crate) fn answered(
        &mut self,
        at: Tick,
        answer: Result<(&str, &[u8]), String>,
        took_ns: u64,
        outbox: &Outbox,
    ) {
        self.board.begin();
        let before = self.board.len();
        let read = answer.and_then(|(content_type, body)| self.read(content_type, body));
        let mut told = Told::default();
        match read {
            Ok(samples) => {
                let added = self.board.len().saturating_sub(before);
                told = Told { up: true, samples, added };
                self.why = None;
            }
            Err(why) => {
                // Nothing of it stands.
                self.board.begin();
                self.failed += 1;
                self.why = Some(why);
            }
        }
        self.tell(told, took_ns);
        self.dropped += self.board.finish(at, Absent::Stale, outbox);
    }

    /// Samples refused because there were too many series of all inputs.
    pub(crate) fn refused(&self) -> u64 {
        self.board.refused()
    }

    /// How many samples were taken.
    fn read(&mut self, content_type: &str, body: &[u8]) -> Result<usize, String> {
        let open = content_type.starts_with("application/openmetrics-text");
        let (mut samples, mut ended) = (0, false);
        for (number, line) in lines(body).enumerate() {
            match Line::read(line) {
                Line::Comment => {}
                Line::End => ended = true,
                Line::Bad => return Err(format!("line {} is no sample", number + 1)),
                Line::Sample { .. } if ended => return Err("a sample behind # EOF".to_owned()),
                Line::Sample { series, value } => {
                    samples += 1;
                    if self.config.samples_max < samples {
                        return Err(format!("more than {} samples", self.config.samples_max));
                    }
                    let config = &self.config;
                    match self.board.put(series, value, |text| described(config, text)) {
                        // A series that stands twice keeps its first value, as in Prometheus.
                        Put::Taken | Put::Twice => {}
                        Put::Bad => return Err(format!("line {} is no series", number + 1)),
                        Put::Full => {
                            return Err("agent.inputs.series allows no more series".to_owned());
                        }
                    }
                }
            }
        }
        if open && !ended { Err("it ends without # EOF".to_owned()) } else { Ok(samples) }
    }

    fn tell(&mut self, told: Told, took_ns: u64) {
        let config = &self.config;
        let count = |count: usize| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
        let took_ms = f64::from(u32::try_from(took_ns / 1_000_000).unwrap_or(u32::MAX));
        for (name, value) in [
            ("up", f64::from(u8::from(told.up))),
            ("scrape_duration_seconds", took_ms / 1000.0),
            ("scrape_samples_scraped", count(told.samples)),
            ("scrape_samples_post_metric_relabeling", count(told.samples)),
            ("scrape_series_added", count(told.added)),
        ] {
            // A target that tells a series of this name told it first; '\0' is in no line of its own.
            let key = format!("\0{name}");
            self.board.put(&key, value, |_| described(config, name));
        }
    }
}

/// Name and labels as they are stored.
fn described(config: &ScrapeConfig, text: &str) -> Option<(String, Labels)> {
    let (name, labels) = series(text)?;
    let own = [("job", &config.job), ("instance", &config.instance)];
    let given = own
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.clone()))
        .chain(config.labels.0.iter().cloned());
    let mut pairs = labels.0;
    for (label, value) in given {
        match pairs.iter_mut().find(|(known, _)| *known == label) {
            None => pairs.push((label, value)),
            Some(_) if config.honor_labels => {}
            Some(theirs) => {
                theirs.0 = format!("exported_{label}");
                pairs.push((label, value));
            }
        }
    }
    Some((name, Labels::new(pairs)))
}

/// Series of ours beside a target's.
const OWN: usize = 5;

#[cfg(test)]
pub(crate) mod tests {
    use super::super::board::STALE;
    use super::*;
    use std::collections::BTreeMap;

    /// Everything in the outbox, as `name{labels}` and its value.
    pub(crate) fn told(outbox: &Outbox) -> BTreeMap<String, String> {
        let mut out = BTreeMap::new();
        outbox.drain(|_, row| {
            for (index, column) in row.schema.columns.iter().enumerate() {
                if row.valid[index / 8] >> (index % 8) & 1 == 1 {
                    let labels =
                        column.labels.0.iter().map(|(name, value)| format!("{name}={value}"));
                    let value = match row.values[index] {
                        STALE => "stale".to_owned(),
                        bits => f64::from_bits(bits).to_string(),
                    };
                    let labels = labels.collect::<Vec<_>>().join(",");
                    out.insert(format!("{}{{{labels}}}", column.name), value);
                }
            }
        });
        out
    }

    fn target(samples_max: usize) -> (Target, Outbox) {
        let config = ScrapeConfig {
            name: "n".into(),
            authority: "h:1".into(),
            path: "/m".into(),
            interval_ms: 1000,
            timeout_ms: 1000,
            bytes_max: 1 << 20,
            samples_max,
            job: "j".into(),
            instance: "h:1".into(),
            labels: Labels::of(&[("site", "b")]),
            honor_labels: false,
        };
        (Target::new(config, Room::new(100), Arc::new(Table::new())), Outbox::default())
    }

    const AT: Tick = Tick { wall_ns: 5, boottime_ns: 7 };

    #[test]
    fn a_target_that_goes_down_is_stale_and_comes_back() {
        let (mut target, outbox) = target(10);
        let body = "# HELP a x\na{job=\"own\",z=\"1\"} 3\nb 4 1395066363000\n";
        let (own, b) =
            ("{exported_job=own,instance=h:1,job=j,site=b,z=1}", "{instance=h:1,job=j,site=b}");
        for _ in 0..2 {
            target.answered(AT, Ok(("text/plain", body.as_bytes())), 1_500_000_000, &outbox);
            let rows = told(&outbox);
            assert_eq!(rows[&format!("a{own}")], "3");
            assert_eq!((&*rows[&format!("b{b}")], &*rows[&format!("up{b}")]), ("4", "1"));
            assert_eq!(rows[&format!("scrape_duration_seconds{b}")], "1.5");
            assert_eq!(rows[&format!("scrape_samples_scraped{b}")], "2");
            target.answered(AT, Err("refused".into()), 0, &outbox);
            let rows = told(&outbox);
            assert_eq!((&*rows[&format!("a{own}")], &*rows[&format!("b{b}")]), ("stale", "stale"));
            assert_eq!(rows[&format!("up{b}")], "0");
            target.answered(AT, Err("refused".into()), 0, &outbox);
            assert_eq!(told(&outbox).len(), 5, "stale is said once");
        }
    }

    #[test]
    fn an_answer_counts_whole_or_not_at_all() {
        let open = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        for (content_type, body, why) in [
            ("text/plain", "a 1\nb 2\nc 3\nd 4\n", Some("more than 3 samples")),
            ("text/plain", "a 1\nhello world\n", Some("line 2 is no sample")),
            ("text/plain", "a 1\n9 1\n", Some("line 2 is no series")),
            (open, "a_total 1 17.5 # {t=\"x\"} 1\n", Some("ends without # EOF")),
            (open, "a 1\n# EOF\nb 2\n", Some("behind # EOF")),
            (open, "a_total 1 17.5 # {t=\"x\"} 1\n# EOF\n", None),
            ("", "", None),
        ] {
            let (mut target, outbox) = target(3);
            target.answered(AT, Ok((content_type, body.as_bytes())), 0, &outbox);
            let rows = told(&outbox);
            assert_eq!(target.why.is_some(), why.is_some(), "{body}: {:?}", target.why);
            assert!(why.is_none_or(|why| target.why.as_ref().unwrap().contains(why)), "{body}");
            let up = if why.is_some() { "0" } else { "1" };
            assert_eq!(rows["up{instance=h:1,job=j,site=b}"], up);
            assert!(why.is_none() || rows.len() == 5, "{rows:?}");
        }
    }
}
