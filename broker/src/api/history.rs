//! `/api/strobe/v1/history`: what a page of charts shows of a window of time, in one answer.
//!
//! A page says what it looks at: which host (or all, one line a host), which window, how many
//! pixels it has, and a list of terms: a metric, whether its rate or its value is wanted, and how
//! its series are put together. What it gets stands on one grid of at most two points a pixel:
//!
//! ```text
//! {"from":ms,"step":ms,"count":n,"interval_ms":ms,"terms":[ {"eth0":[v,…,null],…}, … ]}
//! ```
//!
//! A term is evaluated as PromQL, so that a chart says what a query says. A point is the mean over
//! its step: least and most would not add up where lines stand on one another. The grid stands on
//! multiples of the step, so that a moment has the same value in every window. Digits that no
//! chart shows (behind the sixth) are left out: half of the bytes.

use super::json::Body;
use super::{ApiError, Limits, finish};
use crate::query::{Deadline, Engine, Output, Raw};
use crate::store::TimeRange;
use serde::Deserialize;
use std::fmt::Write;
use strobe_wire::ids::HostId;
use strobe_wire::message::{ApiRequest, ApiResponse, HostInfo};

/// Where the answer is found.
pub const PATH: &str = "/api/strobe/v1/history";

/// What answering needs besides the request.
#[derive(Debug)]
pub(super) struct Source<'a> {
    pub(super) engine: &'a Engine,
    pub(super) limits: &'a Limits,
    pub(super) now_ms: i64,
    pub(super) deadline: Deadline<'a>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Ask {
    /// Without one, of all hosts.
    host: Option<String>,
    /// The last so many ms; or from and to.
    range_ms: Option<i64>,
    from_ms: Option<i64>,
    to_ms: Option<i64>,
    /// Width of a chart.
    pixels: i64,
    terms: Vec<Term>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Term {
    metric: String,
    how: How,
    agg: Aggregate,
    by: Option<String>,
    #[serde(rename = "where")]
    only: Option<Only>,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum How {
    Rate,
    Value,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum Aggregate {
    Sum,
    Avg,
    Max,
    Count,
}

/// A label and the regular expression it has to match, or must not.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Only {
    label: String,
    #[serde(default)]
    not: bool,
    pattern: String,
}

/// The moments of the answer, and over how much time each looks back.
#[derive(Clone, Copy)]
struct Grid {
    range: TimeRange,
    step_ms: i64,
    interval_ms: i64,
    lookback_ms: i64,
}

/// Answers a page; `host` is what is known of one.
pub(super) fn answer(
    source: &Source<'_>,
    request: &ApiRequest,
    host: impl FnOnce(HostId) -> Option<HostInfo>,
) -> Result<ApiResponse, ApiError> {
    if request.method != "POST" {
        return Err(ApiError::Method(format!("{PATH} takes a POST")));
    }
    let ask: Ask = serde_json::from_slice(&request.body)
        .map_err(|why| ApiError::Bad(format!("what is looked at cannot be read: {why}")))?;
    if TERMS_MAX < ask.terms.len() {
        return Err(ApiError::Bad(format!("more than {TERMS_MAX} terms")));
    }
    let info = match &ask.host {
        None => None,
        Some(text) => {
            let id = text.parse().map_err(|why| ApiError::Bad(format!("host {text:?}: {why}")))?;
            let info = host(id);
            Some(info.ok_or_else(|| ApiError::Missing(format!("no host {text} is known here")))?)
        }
    };
    let grid = Grid::of(&ask, info.as_ref(), source.now_ms)?;
    let count = (grid.range.end_ms - grid.range.start_ms) / grid.step_ms + 1;
    let mut body = Body::success(source.limits.output_bytes_max);
    body.raw(&format!(
        "{{\"from\":{},\"step\":{},\"count\":{count},\"interval_ms\":{},\"terms\":",
        grid.range.start_ms, grid.step_ms, grid.interval_ms
    ));
    let mut lines = Vec::with_capacity(ask.terms.len());
    for term in &ask.terms {
        let (limits, deadline) = (source.limits, source.deadline);
        let text = term.promql(info.as_ref(), grid)?;
        let output = source.engine.range(&text, grid.range, grid.step_ms, limits, deadline)?;
        lines.push(match output {
            Output::Matrix(series) => series,
            _ => Vec::new(),
        });
    }
    body.list(ask.terms.iter().zip(&lines), |body, (term, series)| {
        term_lines(body, term, series, grid);
    });
    body.raw("}");
    body.warnings(&source.engine.store().warnings());
    finish(body, source.limits)
}

impl Grid {
    fn of(ask: &Ask, info: Option<&HostInfo>, now_ms: i64) -> Result<Self, ApiError> {
        let (from_ms, to_ms) = match (ask.range_ms, ask.from_ms, ask.to_ms) {
            (Some(range_ms), None, None) => (now_ms.saturating_sub(range_ms), now_ms),
            (None, Some(from_ms), Some(to_ms)) => (from_ms, to_ms),
            _ => return Err(ApiError::Bad("either range_ms or from_ms and to_ms".to_owned())),
        };
        let span_ms = to_ms.saturating_sub(from_ms);
        let far = super::time::FAR_MS;
        if span_ms <= 0 || from_ms < -far || far < to_ms {
            return Err(ApiError::Bad("the window has no time in it".to_owned()));
        }
        let points = (2 * ask.pixels.clamp(1, POINTS_MAX)).clamp(POINTS_MIN, POINTS_MAX);
        let interval_ms = info.map(|info| i64::try_from(info.hello.interval_ms).unwrap_or(1000));
        let least_ms = ((span_ms + points - 1) / points).max(interval_ms.unwrap_or(0)).max(1000);
        let round = STEPS_S.iter().map(|seconds| seconds * 1000).find(|ms| least_ms <= *ms);
        let step_ms = round.unwrap_or_else(|| (least_ms + DAY_MS - 1) / DAY_MS * DAY_MS);
        // Hosts of several intervals: three samples of the slowest that such a chart still shows.
        let interval_ms = interval_ms.unwrap_or(step_ms).max(100);
        Ok(Self {
            range: TimeRange {
                start_ms: from_ms.div_euclid(step_ms) * step_ms,
                end_ms: to_ms.div_euclid(step_ms) * step_ms,
            },
            step_ms,
            interval_ms,
            lookback_ms: step_ms.max(3 * interval_ms),
        })
    }
}

impl Term {
    /// A gauge is averaged over the step and not taken as it stands, because a plain selector
    /// would bridge five minutes of silence. Where a step is one sample, the rate is that of the
    /// last two, which is what a live row gives.
    fn promql(&self, info: Option<&HostInfo>, grid: Grid) -> Result<String, ApiError> {
        for name in [Some(&self.metric), self.by.as_ref(), self.only.as_ref().map(|o| &o.label)] {
            let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
            if name.is_some_and(|name| name.is_empty() || !name.chars().all(plain)) {
                return Err(ApiError::Bad(format!("{name:?} is no name of a metric or label")));
            }
        }
        let mut matchers = Vec::new();
        if let Some(HostInfo { hello, .. }) = info {
            matchers.push(format!("instance={}", quoted(&hello.instance)));
            matchers.push(format!("job={}", quoted(&hello.job)));
        }
        if let Some(Only { label, not, pattern }) = &self.only {
            let sign = if *not { "!~" } else { "=~" };
            matchers.push(format!("{label}{sign}{}", quoted(pattern)));
        }
        let fine = 2 * grid.step_ms <= 3 * grid.interval_ms;
        let function = match self.how {
            How::Rate if fine => "irate",
            How::Rate => "rate",
            How::Value => "avg_over_time",
        };
        // File systems are asked every 5 s (agent.filesystem_interval): less would show holes.
        let least_ms = if self.metric.starts_with("node_filesystem_") { 17_500 } else { 0 };
        let aggregate = match self.agg {
            Aggregate::Sum => "sum",
            Aggregate::Avg => "avg",
            Aggregate::Max => "max",
            Aggregate::Count => "count",
        };
        let by = self.by.as_ref().map(|by| format!(" by ({by})")).unwrap_or_default();
        Ok(format!(
            "{aggregate}{by} ({function}({}{{{}}}[{}ms]))",
            self.metric,
            matchers.join(","),
            grid.lookback_ms.max(least_ms)
        ))
    }
}

/// `{"eth0":[1,2,null],…}`; the name is the value of the label it is grouped by, or empty.
fn term_lines(body: &mut Body, term: &Term, series: &[Raw], grid: Grid) {
    body.raw("{");
    for (index, raw) in series.iter().enumerate() {
        let value = |name: &String| {
            raw.labels.iter().find(|(label, _)| label == name).map_or("", |(_, value)| value)
        };
        body.raw(if index == 0 { "" } else { "," });
        body.text(term.by.as_ref().map_or("", value));
        body.raw(":");
        let mut samples = raw.times.iter().zip(&raw.values).peekable();
        let moments = (0..).map(|at| grid.range.start_ms + at * grid.step_ms);
        body.list(moments.take_while(|at| *at <= grid.range.end_ms), |body, at_ms| {
            let known = samples.next_if(|(time, _)| **time == at_ms).map(|(_, value)| *value);
            body.raw(&known.map_or_else(|| "null".to_owned(), six_digits));
        });
    }
    body.raw("}");
}

/// As JSON, to six significant digits.
fn six_digits(value: f64) -> String {
    let rounded: f64 = format!("{value:.5e}").parse().unwrap_or(value);
    let mut text = String::new();
    let wrote = match rounded.is_finite() {
        true if rounded != 0.0 && rounded.abs() < 1e-4 => write!(text, "{rounded:e}"),
        true => write!(text, "{rounded}"),
        false => write!(text, "null"),
    };
    wrote.expect("a String takes all");
    text
}

/// Text inside a PromQL string.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}

/// Terms of a page.
const TERMS_MAX: usize = 100;
const POINTS_MIN: i64 = 10;
/// Points of a line: a chart of a whole 4K screen.
const POINTS_MAX: i64 = 4_000;
const DAY_MS: i64 = 86_400_000;
/// Steps that a clock shows, s.
const STEPS_S: [i64; 16] =
    [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 21_600, 86_400];

#[cfg(test)]
mod tests {
    use super::*;
    use strobe_wire::message::Hello;

    fn ask(text: &str) -> Ask {
        serde_json::from_str(text).unwrap()
    }

    fn info(interval_ms: u64) -> HostInfo {
        let hello =
            Hello { instance: "a\"b".into(), job: "node".into(), interval_ms, ..Hello::default() };
        HostInfo { hello, ..HostInfo::default() }
    }

    #[test]
    fn a_step_is_round_within_two_points_a_pixel_and_no_finer_than_the_host() {
        let check = |range_ms: i64, pixels: i64, interval_ms: u64, wanted_ms: i64| {
            let ask = ask(&format!(
                r#"{{"host":"x","range_ms":{range_ms},"pixels":{pixels},"terms":[]}}"#
            ));
            let grid = Grid::of(&ask, Some(&info(interval_ms)), 1_700_000_000_777).unwrap();
            assert_eq!(grid.step_ms, wanted_ms, "{range_ms} on {pixels} at {interval_ms}");
            assert_eq!(grid.range.start_ms % grid.step_ms, 0);
            let count = (grid.range.end_ms - grid.range.start_ms) / grid.step_ms + 1;
            assert!(count <= 2 * pixels + 1, "{count} points on {pixels} pixels");
        };
        check(300_000, 300, 1000, 1000);
        check(3_600_000, 300, 1000, 10_000);
        check(604_800_000, 300, 1000, 1_800_000);
        check(60_000, 300, 10_000, 10_000);
        check(60_000, 300, 100, 1000);
    }

    #[test]
    fn a_term_is_promql() {
        let check = |term: &str, range_ms: i64, wanted: &str| {
            let ask = ask(&format!(r#"{{"range_ms":{range_ms},"pixels":300,"terms":[{term}]}}"#));
            let grid = Grid::of(&ask, Some(&info(1000)), 1_700_000_000_000).unwrap();
            assert_eq!(ask.terms[0].promql(Some(&info(1000)), grid).unwrap(), wanted);
        };
        let rate = r#"{"metric":"m","how":"rate","agg":"sum","by":"device",
            "where":{"label":"device","not":true,"pattern":"ram\\d+"}}"#;
        check(
            rate,
            300_000,
            r#"sum by (device) (irate(m{instance="a\"b",job="node",device!~"ram\\d+"}[3000ms]))"#,
        );
        check(
            rate,
            3_600_000,
            r#"sum by (device) (rate(m{instance="a\"b",job="node",device!~"ram\\d+"}[10000ms]))"#,
        );
        check(
            r#"{"metric":"node_filesystem_size_bytes","how":"value","agg":"max"}"#,
            300_000,
            r#"max (avg_over_time(node_filesystem_size_bytes{instance="a\"b",job="node"}[17500ms]))"#,
        );
    }

    #[test]
    fn numbers_are_short_and_json() {
        for (value, wanted) in [
            (0.123_456_789, "0.123457"),
            (8_123_456_789.0, "8123460000"),
            (0.0, "0"),
            (0.000_001_234_567_8, "1.23457e-6"),
            (f64::NAN, "null"),
            (f64::INFINITY, "null"),
        ] {
            assert_eq!(six_digits(value), wanted);
        }
    }
}
