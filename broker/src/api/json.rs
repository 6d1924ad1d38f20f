//! JSON as Prometheus writes it, built as text in one pass and cut off at a limit.

use super::ApiError;
use crate::query::{Labels, Output, Raw, Sample, number};
use std::fmt::Write;

/// A body being written: `{"status":"success","data":` and what follows.
#[derive(Debug)]
pub(super) struct Body {
    text: String,
    bytes_max: usize,
}

impl Body {
    pub(super) fn success(bytes_max: usize) -> Self {
        Self { text: r#"{"status":"success","data":"#.to_owned(), bytes_max }
    }

    pub(super) fn length(&self) -> usize {
        self.text.len()
    }

    /// The whole text, or `None` if it is over its limit.
    pub(super) fn finish(mut self) -> Option<String> {
        self.text.push('}');
        (self.text.len() <= self.bytes_max).then_some(self.text)
    }

    /// Behind the data: what it lacks.
    pub(super) fn warnings(&mut self, warnings: &[String]) {
        if !warnings.is_empty() {
            self.raw(r#","warnings":"#);
            self.list(warnings, |body, warning| body.text(warning));
        }
    }

    pub(super) fn raw(&mut self, text: &str) {
        self.text.push_str(text);
    }

    pub(super) fn text(&mut self, text: &str) {
        quote(&mut self.text, text);
    }

    /// `[…]`; stops early when over the limit, which [`Body::finish`] then reports.
    pub(super) fn list<T>(
        &mut self,
        items: impl IntoIterator<Item = T>,
        mut each: impl FnMut(&mut Self, T),
    ) {
        self.text.push('[');
        for (index, item) in items.into_iter().enumerate() {
            if self.bytes_max < self.text.len() {
                return;
            }
            if 0 < index {
                self.text.push(',');
            }
            each(self, item);
        }
        self.text.push(']');
    }

    pub(super) fn labels<'a>(&mut self, pairs: impl IntoIterator<Item = (&'a str, &'a str)>) {
        self.text.push('{');
        for (index, (name, value)) in pairs.into_iter().enumerate() {
            if 0 < index {
                self.text.push(',');
            }
            self.text(name);
            self.text.push(':');
            self.text(value);
        }
        self.text.push('}');
    }

    /// `[1700000000.123,"4.5"]`
    fn sample(&mut self, sample: Sample) {
        self.text.push('[');
        self.time(sample.at_ms);
        self.text.push_str(",\"");
        value(&mut self.text, sample.value);
        self.text.push_str("\"]");
    }

    fn time(&mut self, ms: i64) {
        let sign = if ms < 0 { "-" } else { "" };
        let (whole, fraction) = (ms.unsigned_abs() / 1000, ms.unsigned_abs() % 1000);
        let wrote = if fraction == 0 {
            write!(self.text, "{sign}{whole}")
        } else {
            write!(self.text, "{sign}{whole}.{fraction:03}")
        };
        wrote.expect("a String takes all");
    }

    fn series(&mut self, raw: &Raw) {
        self.metric(&raw.labels);
        self.raw(r#","values":"#);
        let samples = raw.times.iter().zip(&raw.values);
        self.list(samples, |body, (&at_ms, &value)| body.sample(Sample { at_ms, value }));
        self.raw("}");
    }

    fn metric(&mut self, labels: &Labels) {
        self.raw(r#"{"metric":"#);
        self.labels(labels.iter());
    }
}

pub(super) fn output(output: &Output, bytes_max: usize) -> Result<Body, ApiError> {
    let mut body = Body::success(bytes_max);
    let kind = match output {
        Output::Scalar(_) => "scalar",
        Output::Text(..) => "string",
        Output::Vector(_) => "vector",
        Output::Matrix(_) => "matrix",
    };
    body.raw(r#"{"resultType":""#);
    body.raw(kind);
    body.raw(r#"","result":"#);
    match output {
        // Of all numbers Prometheus writes only this one never with an exponent.
        Output::Scalar(sample) => {
            body.raw("[");
            body.time(sample.at_ms);
            body.raw(",");
            body.text(&number(sample.value));
            body.raw("]");
        }
        Output::Text(at_ms, text) => {
            body.raw("[");
            body.time(*at_ms);
            body.raw(",");
            body.text(text);
            body.raw("]");
        }
        Output::Vector(series) => body.list(series, |body, (labels, sample)| {
            body.metric(labels);
            body.raw(r#","value":"#);
            body.sample(*sample);
            body.raw("}");
        }),
        Output::Matrix(series) => body.list(series, Body::series),
    }
    body.raw("}");
    Ok(body)
}

pub(super) fn error(kind: &str, why: &str) -> String {
    let mut text = format!(r#"{{"status":"error","errorType":"{kind}","error":"#);
    quote(&mut text, why);
    text.push('}');
    text
}

/// Shortest digits; an exponent below 1e-6 and from 1e21 on, with at least two digits.
fn value(out: &mut String, value: f64) {
    let size = value.abs();
    let wrote = if value.is_nan() {
        out.write_str("NaN")
    } else if value.is_infinite() {
        out.write_str(if 0.0 < value { "+Inf" } else { "-Inf" })
    } else if size != 0.0 && !(1e-6..1e21).contains(&size) {
        let text = format!("{value:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let exponent: i32 = exponent.parse().unwrap_or(0);
        let sign = if exponent < 0 { '-' } else { '+' };
        write!(out, "{digits}e{sign}{:02}", exponent.abs())
    } else {
        write!(out, "{value}")
    };
    wrote.expect("a String takes all");
}

fn quote(out: &mut String, text: &str) {
    out.push('"');
    for letter in text.chars() {
        match letter {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            // Never part of a tag, should the text land in a page.
            '<' | '>' | '&' | '\0'..='\x1f' | '\u{2028}' | '\u{2029}' => {
                write!(out, "\\u{:04x}", u32::from(letter)).expect("a String takes all");
            }
            other => out.push(other),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_shortest() {
        let check = |number: f64, wanted: &str| {
            let mut out = String::new();
            value(&mut out, number);
            assert_eq!(out, wanted);
        };
        check(0.1 + 0.2, "0.30000000000000004");
        check(1e20, "100000000000000000000");
        check(1e21, "1e+21");
        check(1.5e-7, "1.5e-07");
        check(1e-6, "0.000001");
        check(5e-324, "5e-324");
        check(f64::NEG_INFINITY, "-Inf");
        check(f64::NAN, "NaN");
    }

    #[test]
    fn texts_and_times() {
        let mut body = Body::success(1000);
        body.labels([("a", "x\"\\\n<é\u{1}")]);
        assert_eq!(
            body.finish().unwrap(),
            r#"{"status":"success","data":{"a":"x\"\\\n\u003cé\u0001"}}"#
        );
        let mut body = Body::success(1000);
        body.list([5, 1500, -1500], Body::time);
        assert!(body.finish().unwrap().ends_with("[0.005,1.500,-1.500]}"));
        let mut body = Body::success(40);
        body.list(0..1000, |body, _| body.text("xxxx"));
        assert_eq!(body.finish(), None);
    }
}
