//! What a host of two hundred columns says of itself, when nothing is wrong and when something is.

use super::*;

/// A host of counters, gauges and flat columns with noise from a seed, once a second.
struct Host {
    columns: Vec<Column>,
    scores: Scores,
    seed: u64,
    values: Vec<u64>,
    valid: Vec<u8>,
    now: Tick,
}

impl Host {
    fn new() -> Self {
        let kinds = [
            ("node_context_switches_total", Kind::Counter { scale: 0 }),
            ("node_load1", Kind::Gauge { scale: 2 }),
            ("node_netstat_Ip_Forwarding", Kind::Gauge { scale: 0 }),
            ("node_cpu_seconds_total", Kind::Counter { scale: 2 }),
        ];
        let column = |index: usize| {
            let (name, kind) = kinds[index % kinds.len()];
            let labels = Labels::of(&[("n", &index.to_string())]);
            Column { name: name.to_owned(), labels, kind }
        };
        let columns: Vec<Column> = (0..200).map(column).collect();
        Self {
            scores: Scores::new(&columns, &mut []),
            seed: 0x9e37_79b9_7f4a_7c15,
            values: vec![1_000_000; 200],
            valid: vec![255; 25],
            now: Tick { wall_ns: T0_NS, boottime_ns: SECOND },
            columns,
        }
    }

    fn noise(&mut self) -> u64 {
        let mut sum = 0;
        for _ in 0..8 {
            self.seed ^= self.seed << 13;
            self.seed ^= self.seed >> 7;
            self.seed ^= self.seed << 17;
            sum += self.seed >> 58;
        }
        sum
    }

    /// A second goes by; `odd` columns do something else.
    fn step(&mut self, odd: usize) -> Judging {
        self.now.boottime_ns += SECOND;
        self.now.wall_ns += 1_000_000_000;
        for index in 0..200 {
            let more = 10_000 + self.noise() + if index < odd { 20_000 } else { 0 };
            match index % 4 {
                1 => self.values[index] = more,
                // It never moves.
                2 => {}
                _ => self.values[index] = self.values[index].wrapping_add(more),
            }
        }
        let mut judging = Judging::new(self.now);
        self.scores.judge(&self.values, &self.valid, &mut judging);
        judging
    }

    /// The highest anomaly rate of so many seconds, in ten thousandths.
    fn worst(&mut self, seconds: usize) -> u64 {
        (0..seconds).filter_map(|_| self.step(0).rate()).max().unwrap_or(0)
    }
}

#[test]
fn a_start_floods_nobody() {
    let mut host = Host::new();
    assert_eq!(host.step(0).scored, 100, "counters have no rate yet");
    assert_eq!(host.step(0).scored, 200);
    assert!(host.worst(600) <= 100, "more than two columns at once");
}

#[test]
fn columns_that_are_missing_and_come_back_flood_nobody() {
    let mut host = Host::new();
    host.worst(600);
    host.valid.fill(0);
    assert_eq!((host.step(0).rate(), host.step(0).scored), (None, 0));
    // Meanwhile the counters go on.
    host.worst(100);
    host.valid.fill(255);
    assert_eq!(host.step(0).scored, 100, "a counter's rate over what was missed is not known");
    assert!(host.worst(300) <= 100);
}

#[test]
fn flat_columns_have_no_scores_and_one_small_step_is_one_alarm() {
    let mut host = Host::new();
    host.worst(1000);
    let flat = |host: &Host| (0..50).map(|n| host.scores.bits[n * 4 + 2]).collect::<Vec<_>>();
    assert_eq!(flat(&host), [0; 50]);
    host.values[2] += 1;
    host.step(0);
    assert_eq!(
        flat(&host),
        [0; 50],
        "a millionth of its size is nothing, on however flat a column"
    );
    host.values[2] *= 2;
    host.step(0);
    assert!(ODD <= flat(&host)[0], "a flat column that doubles is odd");
    let alarms = (0..60).filter(|_| {
        host.step(0);
        ODD <= flat(&host)[0]
    });
    assert!(alarms.count() <= 20);
}

#[test]
fn steps_of_the_clock_flood_nobody() {
    for step_s in [3600, -3600, 86_400, -86_400_i64] {
        let mut host = Host::new();
        host.worst(600);
        host.now.wall_ns += step_s * 1_000_000_000;
        assert!(host.worst(300) <= 100, "after {step_s} s");
    }
}

#[test]
fn counters_that_fall_and_wrap_say_nothing() {
    let mut host = Host::new();
    host.worst(600);
    for index in 0..200 {
        host.values[index] = if index % 4 == 0 || index % 4 == 3 { 5 } else { host.values[index] };
    }
    let judging = host.step(0);
    assert_eq!((judging.scored, judging.odd), (100, 0));
    assert!(host.worst(60) <= 100);
}

#[test]
fn a_fault_of_many_columns_is_a_high_rate() {
    let mut host = Host::new();
    host.worst(600);
    // A quarter of these 40 never move.
    let rate = host.step(40).rate().unwrap();
    assert!((1400..=1700).contains(&rate), "{rate}");
    assert!(host.scores.bits[..40].iter().filter(|bits| ODD <= **bits).count() == 30);
}

#[test]
fn columns_that_stay_keep_their_scorers() {
    let mut host = Host::new();
    host.worst(600);
    // The first is gone and all others move up.
    let columns = host.columns.split_off(1);
    let former = std::mem::replace(&mut host.columns, columns);
    let mut all = former;
    all.extend_from_slice(&host.columns);
    let mut old = std::mem::take(&mut host.scores);
    host.scores = Scores::new(&host.columns, &mut [(&all, &mut old)]);
    host.values.remove(0);
    host.values[0] += 100_000;
    host.now.boottime_ns += SECOND;
    let mut judging = Judging::new(host.now);
    host.scores.judge(&host.values, &host.valid, &mut judging);
    assert_eq!(judging.scored, 199, "the counters have a row before");
    assert!(ODD <= host.scores.bits[0], "and it is known what is usual");
}

#[test]
fn what_is_not_the_hosts_doing_is_not_scored() {
    for name in ["node_time_seconds", "node_scrape_collector_duration_seconds", "strobe_x"] {
        let kind = Kind::Gauge { scale: 0 };
        let column = Column { name: name.to_owned(), labels: Labels::default(), kind };
        let mut scores = Scores::new(&[column], &mut []);
        let mut judging = Judging::new(Tick { wall_ns: T0_NS, boottime_ns: 1 });
        scores.judge(&[1], &[1], &mut judging);
        assert_eq!(judging.scored, 0, "{name}");
    }
}

const SECOND: u64 = 1_000_000_000;
const T0_NS: i64 = 1_795_219_200_000_000_000;
