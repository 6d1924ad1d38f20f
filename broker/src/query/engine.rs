//! What is asked, what is answered, and what one query may use.

use crate::peers::{Found, Peers, Reach, Selection};
use crate::query::binary;
use crate::query::deadline::Deadline;
use crate::query::evaluation::{Evaluation, matrix};
use crate::query::parse::parse;
use crate::query::rolled::Plan;
use crate::query::selectors::Raw;
use crate::query::value::{Labels, Series, Steps, Value};
use crate::store::{Depth, Limits as StoreLimits, Matcher, Store, StoreError, TimeRange};
use promql_parser::parser::Expr;
use promql_parser::parser::value::ValueType;
use std::sync::Arc;

/// Answers queries from a store. Cheap to clone; several threads may ask at once.
#[derive(Clone, Debug)]
pub struct Engine {
    store: Store,
    peers: Option<Peers>,
    reach: Option<Arc<Reach>>,
}

/// What one query may use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Steps of a range query.
    pub steps_max: usize,
    /// Series one selector matches.
    pub series_max: usize,
    /// Samples scanned in all.
    pub samples_max: u64,
    /// Series × steps that one (sub)expression holds: 8 bytes each.
    pub values_max: usize,
    /// Bytes of an answer's body.
    pub output_bytes_max: usize,
    /// Milliseconds of evaluation; a request's `timeout` may only lower it.
    pub time_ms_max: u64,
}

/// One point of a result.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Sample {
    /// Its time, ms.
    pub at_ms: i64,
    /// Its value.
    pub value: f64,
}

/// A query's result.
#[derive(Clone, PartialEq, Debug)]
pub enum Output {
    /// A number.
    Scalar(Sample),
    /// A text and the time it was asked for.
    Text(i64, String),
    /// Series at one moment.
    Vector(Vec<(Labels, Sample)>),
    /// Series over time.
    Matrix(Vec<Raw>),
}

/// Why a query has no answer.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// The text is no PromQL, or asks for what cannot be.
    #[error("{0}")]
    Parse(String),
    /// The expression cannot be evaluated over this data.
    #[error("{0}")]
    Execution(String),
    /// Valid PromQL that is not built yet.
    #[error("{0} is not supported")]
    Unsupported(String),
    /// It would use too much.
    #[error("{what}: {found}, and the limit {name} is {max}; {advice}")]
    Limit {
        /// Of what there is too much.
        what: &'static str,
        /// How much.
        found: u64,
        /// The limit's name.
        name: &'static str,
        /// The limit.
        max: u64,
        /// What to do.
        advice: &'static str,
    },
    /// It took too long.
    #[error(
        "query timed out in expression evaluation: it was not done after {ms_max} ms, the limit \
         time_ms_max or what the request's `timeout` made of it; take a shorter range or fewer series"
    )]
    Timeout {
        /// The limit.
        ms_max: u64,
    },
    /// Nobody waits for the answer.
    #[error("query was canceled in expression evaluation")]
    Abandoned,
    /// The store could not.
    #[error(transparent)]
    Store(StoreError),
    /// A bug.
    #[error("internal error: {0}")]
    Internal(&'static str),
}

impl From<StoreError> for QueryError {
    fn from(error: StoreError) -> Self {
        let limit = |what, name, max: u64| Self::Limit {
            what,
            found: max.saturating_add(1),
            name,
            max,
            advice: "make the matchers narrower or the range shorter",
        };
        match error {
            StoreError::SeriesMax { max } => {
                limit("series selected (at least)", "series_max", wide(max))
            }
            StoreError::SamplesMax { max } => {
                limit("samples scanned (at least)", "samples_max", max)
            }
            other => Self::Store(other),
        }
    }
}

impl Limits {
    /// What a default installation allows one query.
    #[must_use]
    pub fn usual() -> Self {
        Self {
            steps_max: 11_000,
            series_max: 200_000,
            samples_max: 100_000_000,
            values_max: 20_000_000,
            output_bytes_max: 15 << 20,
            time_ms_max: 30_000,
        }
    }

    pub(crate) fn store(&self) -> StoreLimits {
        StoreLimits { series_max: self.series_max, samples_max: self.samples_max }
    }
}

impl Engine {
    /// Over this store.
    #[must_use]
    pub fn new(store: Store) -> Self {
        Self { store, peers: None, reach: None }
    }

    /// Over what other brokers have as well.
    #[must_use]
    pub fn with_peers(self, peers: Peers) -> Self {
        Self { peers: Some(peers), ..self }
    }

    /// For one query: what its answer lacks is told by the [`Store::warnings`] of its store.
    #[must_use]
    pub fn for_query(&self) -> Self {
        let reach = self.peers.as_ref().and_then(Peers::reach).map(Arc::new);
        Self { store: self.store.for_query(), peers: None, reach }
    }

    /// The store it reads.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The store, with what other brokers have of a selection.
    ///
    /// # Errors
    /// The query's time is over.
    pub fn reaching(
        &self,
        (matchers, range): (&[Matcher], TimeRange),
        depth: Depth,
        limits: &Limits,
        deadline: Deadline<'_>,
    ) -> Result<Store, QueryError> {
        let Some(reach) = &self.reach else { return Ok(self.store.clone()) };
        let limits = limits.store();
        let selection = Selection { matchers, range, depth, limits };
        Ok(match reach.select(selection, &self.store, deadline)? {
            Found::All(elsewhere) => self.store.with(elsewhere),
            Found::Coarser(_) => self.store.clone(),
        })
    }

    /// Evaluates at one moment.
    ///
    /// # Errors
    /// See [`QueryError`].
    pub fn instant(
        &self,
        text: &str,
        at_ms: i64,
        limits: &Limits,
        deadline: Deadline<'_>,
    ) -> Result<Output, QueryError> {
        let expr = parse(text)?;
        let range = TimeRange { start_ms: at_ms, end_ms: at_ms };
        let evaluation =
            Evaluation::new((&self.store, self.reach.as_deref()), range, limits, deadline)?;
        let steps = Steps::once(at_ms);
        match unwrapped(&expr) {
            Expr::MatrixSelector(matrix) => {
                let range = evaluation.window_range(&matrix.vs, matrix.range, steps)?;
                let parts = evaluation.select(&matrix.vs, &mut Plan::samples(range))?;
                return Ok(Output::Matrix(evaluation.scan_raw(&parts, range)?));
            }
            Expr::Subquery(subquery) => {
                let (inner, vector) = evaluation.subquery(subquery, steps)?;
                return Ok(Output::Matrix(matrix(inner, vector)));
            }
            _ => {}
        }
        Ok(match evaluation.eval(&expr, steps)? {
            Value::Scalar(values) => Output::Scalar(sample(at_ms, &values)),
            Value::Text(text) => Output::Text(at_ms, text),
            Value::Vector(vector) => {
                let vector = binary::drop_empty(vector).into_iter();
                Output::Vector(vector.map(|s| (s.labels, sample(at_ms, &s.values))).collect())
            }
        })
    }

    /// Evaluates from `start_ms` to `end_ms` every `step_ms`.
    ///
    /// # Errors
    /// See [`QueryError`].
    pub fn range(
        &self,
        text: &str,
        range: TimeRange,
        step_ms: i64,
        limits: &Limits,
        deadline: Deadline<'_>,
    ) -> Result<Output, QueryError> {
        let expr = parse(text)?;
        let steps = range_steps(range, step_ms, limits)?;
        if !matches!(expr.value_type(), ValueType::Scalar | ValueType::Vector) {
            let wanted = "must be Scalar or instant Vector";
            let found = expr.value_type();
            return Err(QueryError::Parse(format!(
                "invalid expression type {found:?} for range query, {wanted}"
            )));
        }
        let evaluation =
            Evaluation::new((&self.store, self.reach.as_deref()), range, limits, deadline)?;
        let vector = match evaluation.eval(&expr, steps)? {
            Value::Scalar(values) => vec![Series { labels: Labels::default(), values }],
            Value::Vector(vector) => vector,
            Value::Text(_) => return Err(QueryError::Internal("a text from a vector expression")),
        };
        let mut series = matrix(steps, vector);
        series.sort_by(|a, b| a.labels.cmp(&b.labels));
        Ok(Output::Matrix(series))
    }
}

fn range_steps(range: TimeRange, step_ms: i64, limits: &Limits) -> Result<Steps, QueryError> {
    if range.end_ms < range.start_ms {
        return Err(QueryError::Parse("end timestamp must not be before start time".to_owned()));
    }
    if step_ms < 1 {
        return Err(QueryError::Parse(
            "zero or negative query resolution step widths are not accepted. Try a positive integer"
                .to_owned(),
        ));
    }
    let count = range.end_ms.saturating_sub(range.start_ms) / step_ms;
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    if limits.steps_max < count {
        return Err(QueryError::Parse(format!(
            "exceeded maximum resolution of {} points per timeseries. Try decreasing the query \
             resolution (?step=XX), or raise the limit steps_max",
            limits.steps_max
        )));
    }
    Ok(Steps { start_ms: range.start_ms, step_ms, count: count + 1 })
}

fn sample(at_ms: i64, values: &[f64]) -> Sample {
    Sample { at_ms, value: values.first().copied().unwrap_or(f64::NAN) }
}

pub(super) fn unwrapped(expr: &Expr) -> &Expr {
    match expr {
        Expr::Paren(paren) => unwrapped(&paren.expr),
        other => other,
    }
}

pub(super) fn wide(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}
