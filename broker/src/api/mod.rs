//! The Prometheus HTTP API, `/api/v1/…`, and history for pages of charts: requests in, JSON out;
//! no socket, no clock.
//!
//! `resultType` stands before `result`, numbers are strings, errors are
//! `{"status":"error","errorType":…,"error":…}` with 400 (the request is wrong), 422 (the query
//! cannot be executed) or 503 (`timeout`, `canceled`, or the store could not). Whatever is not known here is a 404.

mod bursts;
mod form;
mod history;
mod json;
mod metadata;
mod time;
pub use time::{moment, moment_ms};

pub use bursts::PATH as BURSTS;
pub use form::Form;
pub use history::PATH as HISTORY;

use crate::query::{Deadline, Engine, Limits, QueryError, parse, selector};
use crate::remote_write;
use crate::store::{Depth, Matcher, RemoteSeries, Store, TimeRange};
use history::Source;
use json::Body;
use std::collections::BTreeSet;
use strobe_wire::ids::HostId;
use strobe_wire::message::{ApiRequest, ApiResponse, HostInfo};

/// What a request asks its caller to do.
#[derive(Clone, PartialEq, Debug)]
pub enum Answer {
    /// Send this.
    Response(ApiResponse),
    /// Write these samples, commit, and send what [`written`] makes of the result.
    Write(Vec<RemoteSeries>),
}

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    #[error("{0}")]
    Bad(String),
    #[error("{0}")]
    Missing(String),
    #[error("{0}")]
    Method(String),
    #[error(transparent)]
    Query(#[from] QueryError),
}

/// Answers one request. `now_ms` is the default evaluation time.
#[must_use]
pub fn handle(
    engine: &Engine,
    limits: &Limits,
    request: &ApiRequest,
    now_ms: i64,
    deadline: Deadline<'_>,
) -> Answer {
    let engine = &engine.for_query();
    let call = Call { engine, limits, now_ms, deadline };
    let answer = match request.path.as_str() {
        "/api/v1/write" => return write(engine, request, now_ms),
        _ => Form::of(request).map_err(ApiError::Bad).and_then(|form| call.route(request, &form)),
    };
    let finished = answer.and_then(|mut body| {
        body.warnings(&engine.store().warnings());
        finish(body, limits)
    });
    Answer::Response(finished.unwrap_or_else(|e| failure(&e)))
}

/// Answers [`HISTORY`]; `host` is what is known of one.
#[must_use]
pub fn history(
    engine: &Engine,
    limits: &Limits,
    request: &ApiRequest,
    host: impl FnOnce(HostId) -> Option<HostInfo>,
    (now_ms, deadline): (i64, Deadline<'_>),
) -> ApiResponse {
    let source = Source { engine: &engine.for_query(), limits, now_ms, deadline };
    history::answer(&source, request, host).unwrap_or_else(|why| failure(&why))
}

/// Answers [`BURSTS`].
#[must_use]
pub fn bursts(
    engine: &Engine,
    limits: &Limits,
    request: &ApiRequest,
    (now_ms, deadline): (i64, Deadline<'_>),
) -> ApiResponse {
    let source = Source { engine: &engine.for_query(), limits, now_ms, deadline };
    bursts::answer(&source, request).unwrap_or_else(|why| failure(&why))
}

/// The response to [`Answer::Write`] once the samples are durable, or why they are not.
#[must_use]
pub fn written(result: Result<(), String>) -> ApiResponse {
    match result {
        Ok(()) => plain(204, String::new()),
        Err(why) => plain(503, why),
    }
}

struct Call<'a> {
    engine: &'a Engine,
    limits: &'a Limits,
    now_ms: i64,
    deadline: Deadline<'a>,
}

impl Call<'_> {
    fn route(&self, request: &ApiRequest, form: &Form) -> Result<Body, ApiError> {
        let path = request.path.as_str();
        let Some(verb) = path.strip_prefix("/api/v1/") else { return Err(missing(path)) };
        let posts = matches!(verb, "query" | "query_range" | "series" | "labels" | "format_query");
        match request.method.as_str() {
            "GET" => {}
            "POST" if posts => {}
            other => return Err(ApiError::Method(format!("{other} is not allowed on {path}"))),
        }
        match verb {
            "query" => self.query(form),
            "query_range" => self.query_range(form),
            "series" => self.series(form),
            "labels" => self.labels(form),
            "format_query" => format_query(form),
            "metadata" => metadata::answer(form),
            "status/buildinfo" => Ok(buildinfo()),
            _ => match verb.strip_prefix("label/").and_then(|rest| rest.strip_suffix("/values")) {
                Some(name) => self.label_values(name, form),
                None => Err(missing(path)),
            },
        }
    }

    fn query(&self, form: &Form) -> Result<Body, ApiError> {
        refuse_unknown(form)?;
        let deadline = self.deadline(form)?;
        let at_ms = time::optional(form, "time")?.unwrap_or(self.now_ms);
        let output = self.engine.instant(form.required("query")?, at_ms, self.limits, deadline)?;
        json::output(&output, self.limits.output_bytes_max)
    }

    fn query_range(&self, form: &Form) -> Result<Body, ApiError> {
        refuse_unknown(form)?;
        let deadline = self.deadline(form)?;
        let start_ms = time::point("start", form.required("start")?)?;
        let end_ms = time::point("end", form.required("end")?)?;
        let step_ms = time::span("step", form.required("step")?)?;
        let range = TimeRange { start_ms, end_ms };
        let query = form.required("query")?;
        let output = self.engine.range(query, range, step_ms, self.limits, deadline)?;
        json::output(&output, self.limits.output_bytes_max)
    }

    /// `timeout` may make it sooner, not later.
    fn deadline(&self, form: &Form) -> Result<Deadline<'_>, ApiError> {
        let Some(timeout) = form.optional("timeout") else { return Ok(self.deadline) };
        let ms = u64::try_from(time::span("timeout", timeout)?).unwrap_or(0);
        Ok(self.deadline.within(ms))
    }

    fn series(&self, form: &Form) -> Result<Body, ApiError> {
        if form.all("match[]").next().is_none() {
            return Err(ApiError::Bad("no match[] parameter provided".to_owned()));
        }
        let range = time_range(form)?;
        let mut all = BTreeSet::new();
        for matchers in selectors(form)? {
            let store = self.reaching(&matchers, range)?;
            let found = store.series(&matchers, range, &self.limits.store());
            all.extend(found.map_err(QueryError::from)?);
        }
        let mut body = Body::success(self.limits.output_bytes_max);
        body.list(all.iter(), |body, labels| {
            body.labels(labels.0.iter().map(|(a, b)| (a.as_str(), b.as_str())));
        });
        Ok(body)
    }

    fn labels(&self, form: &Form) -> Result<Body, ApiError> {
        let range = time_range(form)?;
        let mut all = BTreeSet::new();
        for matchers in selectors(form)? {
            let store = self.reaching(&matchers, range)?;
            let found = store.label_names(&matchers, range, &self.limits.store());
            all.extend(found.map_err(QueryError::from)?);
        }
        Ok(self.texts(&all))
    }

    fn label_values(&self, name: &str, form: &Form) -> Result<Body, ApiError> {
        let mut letters = name.chars();
        let first = letters.next().is_some_and(|l| l.is_ascii_alphabetic() || l == '_');
        if !first || !letters.all(|l| l.is_ascii_alphanumeric() || l == '_') {
            return Err(ApiError::Bad(format!("invalid label name: {name:?}")));
        }
        let range = time_range(form)?;
        let mut all = BTreeSet::new();
        for matchers in selectors(form)? {
            let store = self.reaching(&matchers, range)?;
            let found = store.label_values(name, &matchers, range, &self.limits.store());
            all.extend(found.map_err(QueryError::from)?);
        }
        Ok(self.texts(&all))
    }

    fn reaching(&self, matchers: &[Matcher], range: TimeRange) -> Result<Store, QueryError> {
        self.engine.reaching((matchers, range), Depth::Names, self.limits, self.deadline)
    }

    fn texts(&self, all: &BTreeSet<String>) -> Body {
        let mut body = Body::success(self.limits.output_bytes_max);
        body.list(all.iter(), |body, text| body.text(text));
        body
    }
}

fn write(engine: &Engine, request: &ApiRequest, now_ms: i64) -> Answer {
    if request.method != "POST" {
        return Answer::Response(plain(405, "remote-write is a POST\n".to_owned()));
    }
    if !matches!(request.content_encoding.as_str(), "snappy" | "") {
        let why = format!("remote-write takes snappy, not {:?}\n", request.content_encoding);
        return Answer::Response(plain(415, why));
    }
    let mut series = match remote_write::decode(&request.body) {
        Ok(series) => series,
        Err(error) => return Answer::Response(plain(400, format!("{error}\n"))),
    };
    let refused = remote_write::keep_in_time(&mut series, now_ms);
    engine.store().refused(refused);
    if 0 < refused && series.is_empty() {
        let why = format!("none of {refused} samples is of the last 7 days (or 10 min ahead)\n");
        return Answer::Response(plain(400, why));
    }
    Answer::Write(series)
}

fn format_query(form: &Form) -> Result<Body, ApiError> {
    let expr = parse(form.required("query")?)?;
    let mut body = Body::success(usize::MAX);
    body.text(&expr.prettify());
    Ok(body)
}

/// The version is that of the Prometheus whose dialect is spoken: clients choose features by it.
fn buildinfo() -> Body {
    let mut body = Body::success(usize::MAX);
    let revision = concat!("strobe-", env!("CARGO_PKG_VERSION"));
    let pairs = [
        ("version", "2.42.0"),
        ("revision", revision),
        ("branch", ""),
        ("buildUser", ""),
        ("buildDate", ""),
        ("goVersion", ""),
    ];
    body.labels(pairs);
    body
}

/// A parameter that would change the numbers and is not built must not be ignored.
fn refuse_unknown(form: &Form) -> Result<(), ApiError> {
    match form.optional("lookback_delta") {
        Some(_) => Err(QueryError::Unsupported("the parameter lookback_delta".to_owned()).into()),
        None => Ok(()),
    }
}

fn selectors(form: &Form) -> Result<Vec<Vec<Matcher>>, ApiError> {
    let found = form.all("match[]").map(selector).collect::<Result<Vec<_>, _>>()?;
    Ok(if found.is_empty() { vec![Vec::new()] } else { found })
}

fn time_range(form: &Form) -> Result<TimeRange, ApiError> {
    let start_ms = time::optional(form, "start")?.unwrap_or(-time::FAR_MS);
    let end_ms = time::optional(form, "end")?.unwrap_or(time::FAR_MS);
    if end_ms < start_ms {
        return Err(ApiError::Bad("end timestamp must not be before start time".to_owned()));
    }
    Ok(TimeRange { start_ms, end_ms })
}

fn missing(path: &str) -> ApiError {
    ApiError::Missing(format!("{path} is not served here"))
}

fn finish(body: Body, limits: &Limits) -> Result<ApiResponse, ApiError> {
    let found = body.length();
    match body.finish() {
        Some(text) => Ok(respond(200, text)),
        None => Err(ApiError::Query(QueryError::Limit {
            what: "bytes of the answer",
            found: u64::try_from(found).unwrap_or(u64::MAX),
            name: "output_bytes_max",
            max: u64::try_from(limits.output_bytes_max).unwrap_or(u64::MAX),
            advice: "take a larger step, a shorter range or fewer series",
        })),
    }
}

fn failure(error: &ApiError) -> ApiResponse {
    use crate::store::StoreError as E;
    let (status, kind) = match error {
        ApiError::Bad(_) | ApiError::Query(QueryError::Parse(_)) => (400, "bad_data"),
        ApiError::Missing(_) => (404, "not_found"),
        ApiError::Method(_) => (405, "bad_data"),
        ApiError::Query(
            QueryError::Execution(_)
            | QueryError::Unsupported(_)
            | QueryError::Limit { .. }
            | QueryError::Store(E::Pattern { .. }),
        ) => (422, "execution"),
        ApiError::Query(QueryError::Timeout { .. }) => (503, "timeout"),
        ApiError::Query(QueryError::Abandoned) => (503, "canceled"),
        ApiError::Query(QueryError::Store(_) | QueryError::Internal(_)) => (503, "unavailable"),
    };
    respond(status, json::error(kind, &error.to_string()))
}

fn respond(status: u16, text: String) -> ApiResponse {
    ApiResponse { status, content_type: "application/json".to_owned(), body: text.into_bytes() }
}

fn plain(status: u16, text: String) -> ApiResponse {
    ApiResponse {
        status,
        content_type: "text/plain; charset=utf-8".to_owned(),
        body: text.into_bytes(),
    }
}

#[cfg(test)]
mod tests;
