//! StatsD, as it comes in datagrams, and what is told of it at every flush.
//!
//! ```text
//! name:value|type[|@rate][|#tag:value,…]        and more, a line each; name:1:2:3|ms is three values
//! ```
//!
//! | type | series |
//! |---|---|
//! | `c` | a counter, the sum since the start, each value divided by its rate |
//! | `g` | a gauge; `+1` and `-1` change it |
//! | `ms`, `h`, `d` | a summary: `_count`, `_sum` since the start, quantiles of this interval; `ms` in seconds |
//! | `s` | a gauge: how many different values this interval had |
//!
//! Names are made Prometheus's: what is no letter, digit, `_` or `:` is `_`. Tags are labels. A series
//! that nobody wrote for [`IDLE_NS`] ends. At most `agent.inputs.series`; what is over is counted.

use super::board::{Absent, Board, Put, Room};
use super::outbox::Outbox;
use crate::readers::text::lines;
use crate::sampler::Tick;
use crate::schemas::Table;
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use strobe_wire::limits::LABEL_VALUE_BYTES_MAX;
use strobe_wire::schema::{Labels, is_label_name, is_metric_name};

/// Everything that came in.
#[derive(Debug)]
pub(crate) struct Statsd {
    series: HashMap<(String, Labels), Series>,
    series_max: usize,
    board: Board,
    hasher: RandomState,
    /// Which of a timer's values are kept is drawn from this.
    dice: u64,
    pub(crate) numbers: Numbers,
}

/// What became of lines.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Numbers {
    pub(crate) taken: u64,
    pub(crate) bad: u64,
    /// Of series beyond the bound.
    pub(crate) refused: u64,
    pub(crate) dropped: u64,
}

#[derive(Debug)]
struct Series {
    last_ns: u64,
    state: State,
}

#[derive(Debug)]
enum State {
    Counter(f64),
    Gauge(f64),
    Set(HashSet<u64>),
    Timer(Box<Timer>),
}

#[derive(Debug, Default)]
struct Timer {
    count: f64,
    sum: f64,
    /// Of this interval: a fair choice of them where there are more than [`VALUES_MAX`].
    values: Vec<f64>,
    seen: u64,
}

/// One line.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Metric<'l> {
    pub(crate) name: String,
    pub(crate) labels: Labels,
    pub(crate) kind: Kind,
    values: &'l str,
    rate: f64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Counter,
    Gauge,
    Set,
    /// In milliseconds.
    Timer,
    Histogram,
}

impl Statsd {
    pub(crate) fn new(series_max: usize, room: Room, table: Arc<Table>) -> Self {
        Self {
            series: HashMap::new(),
            series_max,
            // A summary is five series.
            board: Board::new("statsd".to_owned(), series_max, room, table),
            hasher: RandomState::new(),
            dice: 0x9e37_79b9_7f4a_7c15,
            numbers: Numbers::default(),
        }
    }

    /// A datagram has come.
    pub(crate) fn heard(&mut self, now_ns: u64, datagram: &[u8]) {
        for line in lines(datagram).filter(|line| !line.trim_ascii().is_empty()) {
            match parse(line) {
                // An event or a service check of DogStatsD is nobody's series.
                None => self.numbers.bad += 1,
                Some(metric) => self.take(now_ns, metric),
            }
        }
    }

    /// Tells all that there is.
    pub(crate) fn flush(&mut self, at: Tick, outbox: &Outbox) {
        let idle = |series: &Series| IDLE_NS <= at.boottime_ns.saturating_sub(series.last_ns);
        self.series.retain(|_, series| !idle(series));
        self.board.begin();
        let Self { series, board, numbers, .. } = self;
        for ((name, labels), one) in series {
            one.state.tell(name, labels, &mut |name, more, value| {
                if tell(board, name, labels, more, value) == Put::Full {
                    numbers.refused += 1;
                }
            });
        }
        self.numbers.dropped += self.board.finish(at, Absent::Stale, outbox);
    }

    fn take(&mut self, now_ns: u64, metric: Metric<'_>) {
        let Metric { name, labels, kind, values, rate } = metric;
        let key = (name, labels);
        if !self.series.contains_key(&key) && self.series_max <= self.series.len() {
            self.numbers.refused += 1;
            return;
        }
        let series = self
            .series
            .entry(key)
            .or_insert_with(|| Series { last_ns: now_ns, state: State::new(kind) });
        if !series.state.is(kind) {
            self.numbers.bad += 1;
            return;
        }
        series.last_ns = now_ns;
        for text in values.split(':') {
            let number = text.parse::<f64>().ok().filter(|number| number.is_finite());
            let taken = match (&mut series.state, number) {
                (State::Set(known), _) => {
                    if known.len() < SET_MAX {
                        known.insert(self.hasher.hash_one(text));
                    }
                    true
                }
                (_, None) => false,
                (State::Counter(sum), Some(value)) => {
                    *sum += value / rate;
                    true
                }
                (State::Gauge(now), Some(value)) => {
                    let relative = text.starts_with(['+', '-']);
                    *now = if relative { *now + value } else { value };
                    true
                }
                (State::Timer(timer), Some(value)) => {
                    let value = if kind == Kind::Timer { value / 1000.0 } else { value };
                    timer.take(value, rate, &mut self.dice);
                    true
                }
            };
            let count = if taken { &mut self.numbers.taken } else { &mut self.numbers.bad };
            *count += 1;
        }
    }
}

impl State {
    fn new(kind: Kind) -> Self {
        match kind {
            Kind::Counter => Self::Counter(0.0),
            Kind::Gauge => Self::Gauge(0.0),
            Kind::Set => Self::Set(HashSet::new()),
            Kind::Timer | Kind::Histogram => Self::Timer(Box::default()),
        }
    }

    fn is(&self, kind: Kind) -> bool {
        match self {
            Self::Counter(_) => kind == Kind::Counter,
            Self::Gauge(_) => kind == Kind::Gauge,
            Self::Set(_) => kind == Kind::Set,
            Self::Timer(_) => matches!(kind, Kind::Timer | Kind::Histogram),
        }
    }

    /// Its series now: name, one label more, value.
    fn tell(
        &mut self,
        name: &str,
        labels: &Labels,
        each: &mut dyn FnMut(&str, Option<&'static str>, f64),
    ) {
        debug_assert!(labels.value("quantile").is_none(), "parse leaves it out");
        match self {
            Self::Counter(value) | Self::Gauge(value) => each(name, None, *value),
            Self::Set(known) => {
                each(name, None, f64::from(u32::try_from(known.len()).unwrap_or(u32::MAX)));
                known.clear();
            }
            Self::Timer(timer) => {
                timer.values.sort_by(f64::total_cmp);
                for (quantile, parts) in QUANTILES {
                    // Nearest rank; of an interval without values there is none.
                    let rank = (timer.values.len() * parts).div_ceil(100).saturating_sub(1);
                    if let Some(value) = timer.values.get(rank) {
                        each(name, Some(quantile), *value);
                    }
                }
                each(&format!("{name}_count"), None, timer.count);
                each(&format!("{name}_sum"), None, timer.sum);
                timer.values.clear();
                timer.seen = 0;
            }
        }
    }
}

impl Timer {
    fn take(&mut self, value: f64, rate: f64, dice: &mut u64) {
        self.count += 1.0 / rate;
        self.sum += value / rate;
        self.seen += 1;
        if self.values.len() < VALUES_MAX {
            self.values.push(value);
            return;
        }
        // xorshift: the n-th value takes a place with the chance that all others have.
        *dice ^= *dice << 13;
        *dice ^= *dice >> 7;
        *dice ^= *dice << 17;
        let place = usize::try_from(*dice % self.seen).unwrap_or(usize::MAX);
        if let Some(kept) = self.values.get_mut(place) {
            *kept = value;
        }
    }
}

fn tell(
    board: &mut Board,
    name: &str,
    labels: &Labels,
    quantile: Option<&'static str>,
    value: f64,
) -> Put {
    let mut key = format!("{name} {}", quantile.unwrap_or(""));
    for (label, value) in &labels.0 {
        key.push('\0');
        key.push_str(label);
        key.push('\0');
        key.push_str(value);
    }
    board.put(&key, value, |_| {
        let mut pairs = labels.0.clone();
        pairs.extend(quantile.map(|value| ("quantile".to_owned(), value.to_owned())));
        Some((name.to_owned(), Labels::new(pairs)))
    })
}

/// `None` if it is no metric.
pub(crate) fn parse(line: &[u8]) -> Option<Metric<'_>> {
    let text = std::str::from_utf8(line).ok()?.trim_ascii();
    let (head, rest) = text.split_once('|')?;
    let (name, values) = head.split_once(':')?;
    let mut parts = rest.split('|');
    let kind = match parts.next()? {
        "c" => Kind::Counter,
        "g" => Kind::Gauge,
        "s" => Kind::Set,
        "ms" => Kind::Timer,
        "h" | "d" => Kind::Histogram,
        _ => return None,
    };
    let (mut rate, mut tags) = (1.0, "");
    for part in parts {
        if let Some(text) = part.strip_prefix('@') {
            rate = text.parse().ok().filter(|rate| 0.0 < *rate && *rate <= 1.0)?;
        } else if let Some(text) = part.strip_prefix('#') {
            tags = text;
        }
        // DogStatsD's container (c:) and time (T) say nothing that is kept.
    }
    let name = plain(name);
    if values.is_empty() || !is_metric_name(&name) {
        return None;
    }
    Some(Metric { name, labels: labels(tags), kind, values, rate })
}

/// A tag without a value is `true`; those that can be no label are left out.
fn labels(tags: &str) -> Labels {
    let tags = tags.split(',').filter(|tag| !tag.is_empty()).take(TAGS_MAX);
    let pairs = tags.map(|tag| {
        let (name, value) = tag.split_once(':').unwrap_or((tag, "true"));
        (plain(name).replace(':', "_"), value.to_owned())
    });
    Labels::new(
        pairs
            .filter(|(name, value)| {
                let reserved = name.starts_with("__") || name == "quantile";
                is_label_name(name) && !reserved && value.len() <= LABEL_VALUE_BYTES_MAX
            })
            .collect(),
    )
}

/// What is no letter of Prometheus's is `_`.
fn plain(name: &str) -> String {
    let keep = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let mut out: String = name.chars().map(|c| if keep(c) { c } else { '_' }).collect();
    if out.starts_with(|c: char| c.is_ascii_digit()) {
        out.insert(0, '_');
    }
    out
}

const QUANTILES: [(&str, usize); 3] = [("0.5", 50), ("0.9", 90), ("0.99", 99)];
/// Values of a timer in one interval: the 99th percentile is within a percent of rank.
const VALUES_MAX: usize = 1_024;
const SET_MAX: usize = 4_096;
const TAGS_MAX: usize = 32;
const IDLE_NS: u64 = 300_000_000_000;

#[cfg(test)]
mod tests {
    use super::super::scrape::tests::told;
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn tick(second: u64) -> Tick {
        Tick { wall_ns: 1, boottime_ns: second * SECOND }
    }

    fn statsd(series_max: usize) -> (Statsd, Outbox) {
        (Statsd::new(series_max, Room::new(1000), Arc::new(Table::new())), Outbox::default())
    }

    #[test]
    fn every_type_is_what_it_says() {
        let (mut statsd, outbox) = statsd(100);
        let flush = |statsd: &mut Statsd, second| {
            statsd.flush(tick(second), &outbox);
            told(&outbox)
        };
        statsd.heard(0, b"web.hits:2|c\nweb.hits:3|c|@0.1\n9a:1|c|#env:prod,cold,quantile:x\n");
        statsd.heard(0, b"q:5|g\nq:+3|g\nq:-1|g\nu:a:b|s\nu:a|s");
        statsd.heard(0, b"t:100:200:300|ms|#a:b\nh:4|h|@0.5\nd:7|d|T1656581400|c:id");
        let rows = flush(&mut statsd, 0);
        let wanted = [
            ("web_hits{}", "32"),
            ("_9a{cold=true,env=prod}", "1"),
            ("q{}", "7"),
            ("u{}", "2"),
            ("t{a=b,quantile=0.5}", "0.2"),
            ("t{a=b,quantile=0.99}", "0.3"),
            ("t_count{a=b}", "3"),
            ("t_sum{a=b}", "0.6000000000000001"),
            ("h_count{}", "2"),
            ("h_sum{}", "8"),
            ("d{quantile=0.9}", "7"),
        ];
        for (series, value) in wanted {
            assert_eq!(rows.get(series).map(String::as_str), Some(value), "{series} in {rows:?}");
        }
        assert_eq!(statsd.numbers.bad, 0);
        // Counters go on, a set begins anew, quantiles of nothing end.
        statsd.heard(9 * SECOND, b"web.hits:1|c");
        let rows = flush(&mut statsd, 10);
        assert_eq!((&*rows["web_hits{}"], &*rows["u{}"], &*rows["q{}"]), ("33", "0", "7"));
        assert_eq!((&*rows["t_count{a=b}"], &*rows["t{a=b,quantile=0.5}"]), ("3", "stale"));
        // What nobody writes any more ends.
        let rows = flush(&mut statsd, 301);
        assert_eq!((&*rows["q{}"], &*rows["web_hits{}"]), ("stale", "33"));
    }

    #[test]
    fn what_is_wrong_or_too_much_is_counted() {
        let (mut statsd, outbox) = statsd(2);
        for bad in [
            "",
            "a",
            "a:1",
            "a:|c",
            "a:x|c",
            "a:1|z",
            "a:1|c|@0",
            "a:1|c|@2",
            "_sc|x|0",
            "\u{0}:1|c",
        ] {
            statsd.heard(0, bad.as_bytes());
        }
        statsd.heard(0, b"\xff:1|c");
        assert_eq!((statsd.numbers.bad, statsd.numbers.taken), (9, 1), "NUL is an underscore");
        statsd.heard(0, b"a:1|c\nb:1|c\nc:1|c\na:1|g\na:nan|c");
        // `a:x|c` made the series, without a value.
        assert_eq!((statsd.numbers.bad, statsd.numbers.refused), (11, 2));
        statsd.flush(tick(0), &outbox);
        assert_eq!(told(&outbox).len(), 2);
    }

    #[test]
    fn a_timer_keeps_a_fair_choice() {
        let (mut timer, mut dice) = (Timer::default(), 88_172_645_463_325_252);
        for value in 0..100_000_u32 {
            timer.take(f64::from(value), 1.0, &mut dice);
        }
        let mean = timer.values.iter().sum::<f64>() / f64::from(1024_u32);
        assert_eq!(
            (timer.values.len(), timer.count.to_bits()),
            (VALUES_MAX, 100_000_f64.to_bits())
        );
        assert!((45_000.0..55_000.0).contains(&mean), "{mean}");
    }
}
