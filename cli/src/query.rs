//! `strobe query`: a PromQL expression now or over a range, as a table, sparklines or JSON.

use crate::ask::{To, encoded, get};
use crate::output::{sparkline, table};
use serde_json::Value;
use strobe_wire::settings::duration_ms;

/// A question.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    to: To,
    /// The expression, as in `sum by (mode) (rate(node_cpu_seconds_total[1m]))`.
    expression: String,
    /// Print the API's JSON.
    #[arg(long)]
    json: bool,
    /// Over this long until now, a sparkline a series, as in 15m.
    #[arg(long, value_name = "DURATION")]
    range: Option<String>,
}

/// Asks and formats.
pub(crate) fn run(args: &Args) -> Result<String, String> {
    let expression = encoded(&args.expression);
    let body = match &args.range {
        None => get(&args.to, "GET", "/api/v1/query", &format!("query={expression}"))?,
        Some(range) => {
            let ms = duration_ms(range).map_err(|why| format!("--range: {why}"))?;
            let (end_ms, step_ms) = (crate::up::wall_ms(), (ms / SPARKS).max(1_000));
            let start_ms = end_ms.saturating_sub(i64::try_from(ms).unwrap_or(i64::MAX));
            let (start, end, step) = (seconds(start_ms), seconds(end_ms), seconds_of(step_ms));
            let query = format!("query={expression}&start={start}&end={end}&step={step}");
            get(&args.to, "GET", "/api/v1/query_range", &query)?
        }
    };
    if args.json {
        return Ok(body);
    }
    let answer: Value = serde_json::from_str(&body).map_err(|why| why.to_string())?;
    let data = answer.get("data").ok_or("the broker's answer has no data")?;
    Ok(format_data(data))
}

fn format_data(data: &Value) -> String {
    let result = data.get("result");
    let series = result.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    match data.get("resultType").and_then(Value::as_str) {
        Some("scalar" | "string") => {
            series.get(1).and_then(Value::as_str).unwrap_or_default().to_owned()
        }
        _ if series.is_empty() => "No series match.".to_owned(),
        Some("matrix") => {
            let rows: Vec<_> = series.iter().map(range_row).collect();
            table(&["SERIES", "LOW", "HIGH", "LAST", "COURSE"], &rows)
        }
        _ => {
            let rows: Vec<_> = series.iter().map(instant_row).collect();
            table(&["SERIES", "VALUE"], &rows)
        }
    }
}

fn instant_row(series: &Value) -> Vec<String> {
    let value = series.get("value").and_then(|v| v.get(1)).and_then(Value::as_str);
    vec![name(series), value.unwrap_or_default().to_owned()]
}

fn range_row(series: &Value) -> Vec<String> {
    let points = series.get("values").and_then(Value::as_array);
    let value = |point: &Value| point.get(1)?.as_str()?.parse::<f64>().ok();
    let values: Vec<_> = points.into_iter().flatten().map(value).collect();
    let known = || values.iter().flatten().copied();
    vec![
        name(series),
        short(known().fold(f64::INFINITY, f64::min)),
        short(known().fold(f64::NEG_INFINITY, f64::max)),
        known().last().map(short).unwrap_or_default(),
        sparkline(&values),
    ]
}

/// `name{label="value", …}`.
fn name(series: &Value) -> String {
    let labels = series.get("metric").and_then(Value::as_object);
    let pairs =
        |(key, value): (&String, &Value)| (key != "__name__").then(|| format!("{key}={value}"));
    let inner: Vec<String> = labels.into_iter().flatten().filter_map(pairs).collect();
    let own = labels.and_then(|l| l.get("__name__")).and_then(Value::as_str).unwrap_or_default();
    if inner.is_empty() && !own.is_empty() {
        own.to_owned()
    } else {
        format!("{own}{{{}}}", inner.join(", "))
    }
}

fn short(value: f64) -> String {
    if value.abs() < 1e6 && (1e-3 <= value.abs() || value.abs() <= 0.0) {
        let text = format!("{value:.3}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        format!("{value:.3e}")
    }
}

fn seconds(ms: i64) -> String {
    format!("{}.{:03}", ms.div_euclid(1000), ms.rem_euclid(1000))
}

fn seconds_of(ms: u64) -> String {
    format!("{}.{:03}", ms / 1000, ms % 1000)
}

/// Points of a sparkline.
const SPARKS: u64 = 60;

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn answers_as_people_read_them() {
        let check = |data: Value, wanted: &str| assert_eq!(format_data(&data), wanted);
        check(json!({"resultType": "scalar", "result": [1.0, "42"]}), "42");
        check(json!({"resultType": "vector", "result": []}), "No series match.");
        let metric = json!({"__name__": "up", "job": "node"});
        check(
            json!({"resultType": "vector", "result": [{"metric": metric, "value": [1.0, "1"]}]}),
            "SERIES          VALUE\nup{job=\"node\"}  1",
        );
        let values = json!([[1, "0"], [2, "5"], [3, "10.5"]]);
        check(
            json!({"resultType": "matrix", "result": [{"metric": {}, "values": values}]}),
            "SERIES  LOW  HIGH  LAST  COURSE\n{}      0    10.5  10.5  ▁▄█",
        );
    }

    #[test]
    fn numbers_are_short() {
        for (value, wanted) in [(0.0, "0"), (12.5, "12.5"), (1.0e9, "1.000e9"), (1e-5, "1.000e-5")]
        {
            assert_eq!(short(value), wanted);
        }
    }
}
