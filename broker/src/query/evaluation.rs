//! Walks a syntax tree and evaluates it over all steps at once.

use crate::peers::{Found, Reach, Selection};
use crate::query::aggregate::{Aggregation, aggregate, count_values};
use crate::query::binary::{self, Compare, Operator};
use crate::query::deadline::{Deadline, Meter};
use crate::query::engine::{Limits, QueryError, unwrapped};
use crate::query::functions;
use crate::query::parse;
use crate::query::rolled::Plan;
use crate::query::selectors::{Leaf, Raw, Reduce};
use crate::query::value::{Labels, NAME, Series, Steps, Value, Vector, is_absent};
use crate::query::window::WindowFunction;
use crate::store::{Depth, MatchOp, Part, Store, TimeRange};
use promql_parser::parser::token::{T_COUNT_VALUES, T_LAND, T_LOR, T_LUNLESS};
use promql_parser::parser::value::ValueType;
use promql_parser::parser::{
    AggregateExpr, AtModifier, BinaryExpr, Call, Expr, Offset, SubqueryExpr, VectorSelector,
};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

/// One query being evaluated.
pub(super) struct Evaluation<'a> {
    pub(super) store: &'a Store,
    /// To other brokers.
    reach: Option<&'a Reach>,
    pub(super) limits: &'a Limits,
    pub(super) meter: Meter<'a>,
    /// The query's own range, which `@ start()` and `@ end()` mean even inside a subquery.
    start_ms: i64,
    end_ms: i64,
    samples: AtomicU64,
}

impl<'a> Evaluation<'a> {
    /// Over `range`; the time runs already.
    pub(super) fn new(
        (store, reach): (&'a Store, Option<&'a Reach>),
        range: TimeRange,
        limits: &'a Limits,
        deadline: Deadline<'a>,
    ) -> Result<Self, QueryError> {
        deadline.check()?;
        let (start_ms, end_ms) = (range.start_ms, range.end_ms);
        let meter = Meter::new(deadline, limits.values_max);
        let samples = AtomicU64::new(0);
        Ok(Self { store, reach, limits, meter, start_ms, end_ms, samples })
    }

    pub(super) fn eval(&self, expr: &Expr, steps: Steps) -> Result<Value, QueryError> {
        Ok(match expr {
            Expr::Paren(paren) => self.eval(&paren.expr, steps)?,
            Expr::NumberLiteral(number) => Value::Scalar(vec![number.val; steps.count]),
            Expr::StringLiteral(text) => Value::Text(text.val.clone()),
            Expr::VectorSelector(selector) => {
                Value::Vector(self.newest(selector, steps, Reduce::Newest)?)
            }
            Expr::Unary(unary) => self.negate(&unary.expr, steps)?,
            Expr::Binary(binary) => self.binary(binary, steps)?,
            Expr::Aggregate(aggregate) => Value::Vector(self.aggregate(aggregate, steps)?),
            Expr::Call(call) => self.call(call, steps)?,
            Expr::MatrixSelector(_) | Expr::Subquery(_) => {
                return Err(QueryError::Parse("a range vector can only be an argument".to_owned()));
            }
            Expr::Extension(_) => return Err(QueryError::Unsupported("an extension".to_owned())),
        })
    }

    fn vector(&self, expr: &Expr, steps: Steps) -> Result<Vector, QueryError> {
        match self.eval(expr, steps)? {
            Value::Vector(vector) => Ok(vector),
            _ => Err(QueryError::Parse("expected an instant vector".to_owned())),
        }
    }

    pub(super) fn scalar(&self, expr: &Expr, steps: Steps) -> Result<Vec<f64>, QueryError> {
        match self.eval(expr, steps)? {
            Value::Scalar(values) => Ok(values),
            _ => Err(QueryError::Parse("expected a scalar".to_owned())),
        }
    }

    fn negate(&self, expr: &Expr, steps: Steps) -> Result<Value, QueryError> {
        Ok(match self.eval(expr, steps)? {
            Value::Scalar(values) => Value::Scalar(values.into_iter().map(|v| -v).collect()),
            Value::Vector(vector) => {
                Value::Vector(binary::unique(functions::map(vector, |v, _, _| -v, [&[], &[]]))?)
            }
            Value::Text(_) => return Err(QueryError::Parse("a string has no sign".to_owned())),
        })
    }

    fn binary(&self, expr: &BinaryExpr, steps: Steps) -> Result<Value, QueryError> {
        let token = expr.op.id();
        let modifier = expr.modifier.as_ref();
        if modifier.is_some_and(|m| m.fill_values.lhs.is_some() || m.fill_values.rhs.is_some()) {
            return Err(QueryError::Unsupported("the `fill` modifier".to_owned()));
        }
        let (left, right) = (self.eval(&expr.lhs, steps)?, self.eval(&expr.rhs, steps)?);
        self.meter.spend(left.size() + right.size())?;
        let compare = if expr.return_bool() { Compare::Bool } else { Compare::Filter };
        if matches!(token, T_LAND | T_LOR | T_LUNLESS) {
            let (Value::Vector(left), Value::Vector(right)) = (left, right) else {
                return Err(QueryError::Parse("set operators take instant vectors".to_owned()));
            };
            return binary::sets(token, left, &right, modifier).map(Value::Vector);
        }
        let Some(operator) = Operator::named(token) else {
            return Err(QueryError::Unsupported(format!("the operator {}", expr.op)));
        };
        let vector = match (left, right) {
            (Value::Scalar(left), Value::Scalar(right)) => {
                return Ok(Value::Scalar(binary::scalars(operator, &left, &right)));
            }
            (Value::Vector(vector), Value::Scalar(number)) => {
                let order = binary::Order::VectorFirst;
                binary::with_scalar(operator, vector, &number, order, compare)
            }
            (Value::Scalar(number), Value::Vector(vector)) => {
                let order = binary::Order::ScalarFirst;
                binary::with_scalar(operator, vector, &number, order, compare)
            }
            (Value::Vector(left), Value::Vector(right)) => {
                binary::vectors(operator, [&left, &right], modifier, &self.meter)?
            }
            _ => return Err(QueryError::Parse("a string is no operand".to_owned())),
        };
        Ok(Value::Vector(binary::unique(binary::drop_empty(vector))?))
    }

    fn aggregate(&self, expr: &AggregateExpr, steps: Steps) -> Result<Vector, QueryError> {
        let modifier = expr.modifier.as_ref();
        if expr.op.id() == T_COUNT_VALUES {
            let Some(Expr::StringLiteral(name)) = expr.param.as_deref().map(unwrapped) else {
                return Err(QueryError::Parse("count_values needs a label name".to_owned()));
            };
            if !functions::is_label_name(&name.val) {
                return Err(QueryError::Execution(format!("invalid label name {:?}", name.val)));
            }
            let vector = self.vector(&expr.expr, steps)?;
            return count_values(&name.val, &vector, modifier, &self.meter);
        }
        let Some(aggregation) = Aggregation::named(expr.op.id()) else {
            return Err(QueryError::Unsupported(format!("the aggregation {}", expr.op)));
        };
        let parameter = match &expr.param {
            Some(parameter) => self.scalar(parameter, steps)?,
            None => Vec::new(),
        };
        if let Some(vector) = self.scan_aggregated(aggregation, expr, steps, &parameter)? {
            return Ok(binary::drop_empty(vector));
        }
        let vector = self.vector(&expr.expr, steps)?;
        Ok(binary::drop_empty(aggregate(aggregation, vector, modifier, &parameter, &self.meter)?))
    }

    fn call(&self, call: &Call, steps: Steps) -> Result<Value, QueryError> {
        let name = call.func.name;
        if let Some(function) = WindowFunction::named(name) {
            return self.windowed(function, call, steps).map(Value::Vector);
        }
        self.meter.spend(steps.count)?;
        let args: Vec<&Expr> = call.args.args.iter().map(Box::as_ref).collect();
        if let Some(function) = functions::maths(name) {
            return self.maths(name, function, &args, steps).map(Value::Vector);
        }
        let vector = match (name, &args[..]) {
            ("time", []) => return Ok(Value::Scalar(steps.seconds())),
            ("pi", []) => return Ok(Value::Scalar(vec![std::f64::consts::PI; steps.count])),
            ("scalar", [of]) => {
                let vector = self.vector(of, steps)?;
                return Ok(Value::Scalar(functions::scalar(&vector, steps.count)));
            }
            ("vector", [of]) => {
                vec![Series { labels: Labels::default(), values: self.scalar(of, steps)? }]
            }
            ("timestamp", [of]) => self.timestamp(of, steps)?,
            ("absent", [of]) => {
                let labels = absent_labels(of)?;
                functions::absent(&self.vector(of, steps)?, labels, steps.count)
            }
            ("sort", [of]) => functions::sort(self.vector(of, steps)?, functions::Order::Ascending),
            ("sort_desc", [of]) => {
                functions::sort(self.vector(of, steps)?, functions::Order::Descending)
            }
            ("histogram_quantile", [phi, of]) => {
                let phi = self.scalar(phi, steps)?;
                functions::histogram_quantile(&phi, &self.vector(of, steps)?)
            }
            ("label_replace", [of, to, template, from, pattern]) => {
                let texts = [text(to)?, text(template)?, text(from)?, text(pattern)?];
                functions::label_replace(self.vector(of, steps)?, texts)?
            }
            ("label_join", [of, to, separator, from @ ..]) => {
                let from = from.iter().map(|name| text(name).map(str::to_owned));
                let from = from.collect::<Result<Vec<_>, _>>()?;
                functions::label_join(self.vector(of, steps)?, text(to)?, text(separator)?, &from)?
            }
            _ => return Err(QueryError::Unsupported(format!("the function {name}()"))),
        };
        Ok(Value::Vector(binary::unique(vector)?))
    }

    fn maths(
        &self,
        name: &str,
        function: fn(f64, f64, f64) -> f64,
        args: &[&Expr],
        steps: Steps,
    ) -> Result<Vector, QueryError> {
        let vector = match args.first() {
            Some(of) => self.vector(of, steps)?,
            None if functions::of_time(name) => {
                vec![Series { labels: Labels::default(), values: steps.seconds() }]
            }
            None => return Err(QueryError::Parse(format!("{name}() needs an argument"))),
        };
        let default = vec![1.0; if name == "round" { steps.count } else { 0 }];
        let parameter = |at: usize| args.get(at).map(|of| self.scalar(of, steps)).transpose();
        let (p, q) = (parameter(1)?.unwrap_or(default), parameter(2)?.unwrap_or_default());
        binary::unique(functions::map(vector, function, [&p, &q]))
    }

    fn timestamp(&self, of: &Expr, steps: Steps) -> Result<Vector, QueryError> {
        let mut vector = if let Expr::VectorSelector(selector) = unwrapped(of) {
            self.newest(selector, steps, Reduce::NewestTime)?
        } else {
            let mut vector = self.vector(of, steps)?;
            let seconds = steps.seconds();
            for series in &mut vector {
                for (value, seconds) in series.values.iter_mut().zip(&seconds) {
                    *value = if is_absent(*value) { *value } else { *seconds };
                }
            }
            vector
        };
        for series in &mut vector {
            series.labels = series.labels.without_name();
        }
        Ok(vector)
    }

    fn windowed(
        &self,
        function: WindowFunction,
        call: &Call,
        steps: Steps,
    ) -> Result<Vector, QueryError> {
        let name = call.func.name;
        let args = call.args.args.iter().map(|arg| unwrapped(arg));
        let (ranges, numbers): (Vec<&Expr>, Vec<&Expr>) =
            args.partition(|arg| arg.value_type() == ValueType::Matrix);
        let [of] = ranges[..] else {
            return Err(QueryError::Parse(format!("{name}() takes one range vector")));
        };
        let numbers = numbers.iter().map(|number| self.scalar(number, steps));
        let numbers = numbers.collect::<Result<Vec<_>, _>>()?;
        let parameters =
            [0, 1].map(|at| numbers.get(at).map_or(&[][..], |numbers: &Vec<f64>| &numbers[..]));
        if function == WindowFunction::HoltWinters {
            check_smoothing(&parameters)?;
        }
        let mut vector = match of {
            Expr::MatrixSelector(matrix) => {
                let reduce =
                    Reduce::Window { function, range_ms: millis(matrix.range)?, parameters };
                self.newest(&matrix.vs, steps, reduce)?
            }
            Expr::Subquery(subquery) => {
                let range_ms = millis(subquery.range)?;
                let leaf = Leaf {
                    steps,
                    at_ms: self.at(subquery.at.as_ref())?,
                    offset_ms: offset(subquery.offset.as_ref())?,
                    reduce: Reduce::Window { function, range_ms, parameters },
                };
                let (inner, vector) = self.subquery(subquery, steps)?;
                reduce_all(&leaf, matrix(inner, vector), &self.meter)?
            }
            _ => return Err(QueryError::Parse(format!("{name}() takes a range vector"))),
        };
        if name == "absent_over_time" {
            return Ok(functions::absent(&vector, absent_labels(of)?, steps.count));
        }
        if function != WindowFunction::Last {
            for series in &mut vector {
                series.labels = series.labels.without_name();
            }
        }
        binary::unique(vector)
    }

    /// A leaf that is read from the store.
    fn newest(
        &self,
        selector: &VectorSelector,
        steps: Steps,
        reduce: Reduce<'_>,
    ) -> Result<Vector, QueryError> {
        let leaf = Leaf {
            steps,
            at_ms: self.at(selector.at.as_ref())?,
            offset_ms: offset(selector.offset.as_ref())?,
            reduce,
        };
        let mut plan = self.plan(&leaf);
        let parts = self.select(selector, &mut plan)?;
        let series = parts.iter().map(Part::len).sum();
        self.meter.hold(series, steps.count)?;
        self.scan_leaf(&parts, &leaf, &plan)
    }

    pub(super) fn select(
        &self,
        selector: &VectorSelector,
        plan: &mut Plan,
    ) -> Result<Vec<Part>, QueryError> {
        let (matchers, limits) = (parse::matchers(selector)?, self.limits.store());
        let Some(reach) = self.reach else {
            return Ok(self.store.select(&matchers, plan.range, &limits)?);
        };
        loop {
            let depth = plan.rolled_ms.map_or(Depth::Samples(plan.window_ms), Depth::Rolled);
            let selection = Selection { matchers: &matchers, range: plan.range, depth, limits };
            match reach.select(selection, self.store, self.meter.deadline())? {
                Found::All(elsewhere) => {
                    let store = self.store.with(elsewhere);
                    return Ok(store.select(&matchers, plan.range, &limits)?);
                }
                Found::Coarser(step_ms) => plan.coarsen(step_ms),
            }
        }
    }

    /// The inner expression at all steps that the outer ones' windows need, at whole multiples of
    /// the subquery's step.
    pub(super) fn subquery(
        &self,
        subquery: &SubqueryExpr,
        outer: Steps,
    ) -> Result<(Steps, Vector), QueryError> {
        let offset_ms = offset(subquery.offset.as_ref())?;
        let range_ms = millis(subquery.range)?;
        let step_ms = subquery.step.map_or(Ok(SUBQUERY_STEP_MS), millis)?;
        if step_ms < 1 {
            return Err(QueryError::Parse("a subquery's step must be positive".to_owned()));
        }
        let at_ms = self.at(subquery.at.as_ref())?;
        let first = at_ms.unwrap_or(outer.start_ms).saturating_sub(offset_ms);
        let last = at_ms.unwrap_or_else(|| outer.end_ms()).saturating_sub(offset_ms);
        let first = first.saturating_sub(range_ms);
        let start_ms = first.saturating_add((-first).rem_euclid(step_ms));
        let count = if last < start_ms { 0 } else { (last - start_ms) / step_ms + 1 };
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let steps = Steps { start_ms, step_ms, count };
        self.meter.hold(1, count)?;
        Ok((steps, self.vector(&subquery.expr, steps)?))
    }

    pub(super) fn window_range(
        &self,
        selector: &VectorSelector,
        range: Duration,
        steps: Steps,
    ) -> Result<TimeRange, QueryError> {
        let reduce = Reduce::Window {
            function: WindowFunction::Last,
            range_ms: millis(range)?,
            parameters: [&[], &[]],
        };
        let at_ms = self.at(selector.at.as_ref())?;
        let offset_ms = offset(selector.offset.as_ref())?;
        Ok(Leaf { steps, at_ms, offset_ms, reduce }.time_range())
    }

    pub(super) fn at(&self, at: Option<&AtModifier>) -> Result<Option<i64>, QueryError> {
        Ok(match at {
            None => None,
            Some(AtModifier::Start) => Some(self.start_ms),
            Some(AtModifier::End) => Some(self.end_ms),
            Some(AtModifier::At(time)) => Some(match time.duration_since(SystemTime::UNIX_EPOCH) {
                Ok(since) => millis(since)?,
                Err(before) => -millis(before.duration())?,
            }),
        })
    }

    pub(super) fn count_samples(&self, samples: u64) -> Result<(), QueryError> {
        // Relaxed: a sum, nothing is read through it.
        let found = self.samples.fetch_add(samples, Ordering::Relaxed) + samples;
        if self.limits.samples_max < found {
            return Err(QueryError::Limit {
                what: "samples scanned",
                found,
                name: "samples_max",
                max: self.limits.samples_max,
                advice: "take a shorter range or fewer series",
            });
        }
        Ok(())
    }
}

pub(super) fn matrix(steps: Steps, vector: Vector) -> Vec<Raw> {
    let raw = |series: Series| {
        let points = series.values.into_iter().enumerate();
        let points = points.filter(|(_, value)| !is_absent(*value));
        let (times, values) = points.map(|(step, value)| (steps.at(step), value)).unzip();
        Raw { labels: series.labels, times, values }
    };
    vector.into_iter().map(raw).filter(|raw: &Raw| !raw.times.is_empty()).collect()
}

fn reduce_all(leaf: &Leaf<'_>, series: Vec<Raw>, meter: &Meter<'_>) -> Result<Vector, QueryError> {
    let mut reduced = Vec::with_capacity(series.len());
    for raw in series {
        if let Some(values) = leaf.reduce(&raw.times, &raw.values, meter)? {
            reduced.push(Series { labels: raw.labels, values });
        }
    }
    Ok(reduced)
}

/// What `absent` knows of the series that is not there: the labels its selector fixes.
fn absent_labels(of: &Expr) -> Result<Labels, QueryError> {
    let selector = match unwrapped(of) {
        Expr::VectorSelector(selector) => selector,
        Expr::MatrixSelector(matrix) => &matrix.vs,
        _ => return Ok(Labels::default()),
    };
    let matchers = parse::matchers(selector)?;
    let mut labels = Labels::default();
    for (index, matcher) in matchers.iter().enumerate().filter(|(_, m)| m.name != NAME) {
        let again = matchers.iter().take(index).any(|before| before.name == matcher.name);
        let fixed = matcher.op == MatchOp::Equal && !again;
        labels.set(&matcher.name, if fixed { matcher.value.clone() } else { String::new() });
    }
    Ok(labels)
}

pub(super) fn check_smoothing(parameters: &[&[f64]; 2]) -> Result<(), QueryError> {
    for &factor in parameters.iter().copied().flatten() {
        if !(0.0 < factor && factor < 1.0) {
            return Err(QueryError::Execution(format!(
                "invalid smoothing or trend factor. Expected: 0 < factor < 1, got: {factor}"
            )));
        }
    }
    Ok(())
}

fn text(expr: &Expr) -> Result<&str, QueryError> {
    match unwrapped(expr) {
        Expr::StringLiteral(text) => Ok(&text.val),
        _ => Err(QueryError::Parse("expected a string".to_owned())),
    }
}

pub(super) fn offset(offset: Option<&Offset>) -> Result<i64, QueryError> {
    match offset {
        None => Ok(0),
        Some(Offset::Pos(back)) => millis(*back),
        Some(Offset::Neg(ahead)) => millis(*ahead).map(|ms| -ms),
    }
}

pub(super) fn millis(duration: Duration) -> Result<i64, QueryError> {
    i64::try_from(duration.as_millis())
        .ok()
        .filter(|ms| *ms < DURATION_MS_MAX)
        .ok_or_else(|| QueryError::Parse("a duration is too long".to_owned()))
}

/// Prometheus' default for `[range:]`: its evaluation interval.
const SUBQUERY_STEP_MS: i64 = 60_000;
/// Keeps sums of times far from the ends of 64 bits.
const DURATION_MS_MAX: i64 = 1 << 52;
