//! A report as JSON.

use super::{Finding, Report};
use crate::costs::Cost;
use std::fmt::Write as _;

pub(super) fn report(report: &Report) -> String {
    let findings: Vec<String> = report.findings.iter().map(finding).collect();
    let costs: Vec<String> = report.costs.iter().map(cost).collect();
    format!(
        "{{\"worst\":{},\"findings\":[{}],\"collectors\":[{}]}}\n",
        text(&report.worst().word().to_lowercase()),
        findings.join(","),
        costs.join(",")
    )
}

fn finding(Finding { state, area, name, found, advice }: &Finding) -> String {
    let state = state.word().to_lowercase();
    let pairs = [("state", &*state), ("area", area), ("name", name), ("found", found)];
    let mut out = String::from("{");
    for (key, value) in pairs {
        let _ = write!(out, "{}:{},", text(key), text(value));
    }
    let advice = advice.as_ref().map_or_else(|| "null".to_owned(), |advice| text(advice));
    out + "\"advice\":" + &advice + "}"
}

fn cost(cost: &Cost) -> String {
    let number = |us: Option<f64>| us.map_or_else(|| "null".to_owned(), |us| format!("{us:.2}"));
    format!(
        "{{\"name\":{},\"interval_ms\":{},\"reading_us\":{},\"second_us\":{},\"success\":{}}}",
        text(cost.name),
        cost.interval_ms,
        number(cost.reading_us),
        number(cost.second_us()),
        cost.success
    )
}

/// A string with its quotes.
fn text(text: &str) -> String {
    let mut out = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => out.extend(['\\', character]),
            control if control < ' ' => {
                let _ = write!(out, "\\u{:04x}", u32::from(control));
            }
            other => out.push(other),
        }
    }
    out + "\""
}
