//! Lines of the Prometheus text format 0.0.4 and of OpenMetrics, as others write them.
//!
//! ```text
//! name{label="value",…} value [time] [# {exemplar} …]        # TYPE, # HELP, # EOF, comments
//! ```
//!
//! A time of a sample's own is read over, as is an exemplar: a row has one time, that of the reading.

/// What a line is.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Line<'l> {
    /// Nothing, or words for people.
    Comment,
    /// OpenMetrics' last line.
    End,
    /// Name and labels as they stand there, and the value.
    Sample { series: &'l str, value: f64 },
    /// None of these.
    Bad,
}

impl<'l> Line<'l> {
    /// Reads one; `bytes` are without the line's end.
    pub(crate) fn read(bytes: &'l [u8]) -> Self {
        let Ok(text) = std::str::from_utf8(bytes) else { return Self::Bad };
        let text = text.trim_ascii();
        if text.is_empty() {
            return Self::Comment;
        }
        if let Some(words) = text.strip_prefix('#') {
            return if words.trim_ascii() == "EOF" { Self::End } else { Self::Comment };
        }
        sample(text).unwrap_or(Self::Bad)
    }
}

fn sample(text: &str) -> Option<Line<'_>> {
    let (series, rest) = text.split_at_checked(series_end(text.as_bytes())?)?;
    let rest = rest.split_once('#').map_or(rest, |(before, _)| before);
    let mut words = rest.split_ascii_whitespace();
    let value = words.next()?.parse().ok()?;
    // The time: a whole number of milliseconds, or OpenMetrics' seconds with a point.
    if words.next().is_some_and(|time| time.parse::<f64>().is_err()) || words.next().is_some() {
        return None;
    }
    Some(Line::Sample { series, value })
}

/// Where name and labels end: behind the closing brace, which a value may hold too, or before the
/// first blank.
fn series_end(text: &[u8]) -> Option<usize> {
    let first = text.iter().position(|byte| matches!(byte, b'{' | b' ' | b'\t'))?;
    let rest = text.get(first..)?;
    let blanks = rest.iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
    if rest.get(blanks) != Some(&b'{') {
        return Some(first);
    }
    let (mut quoted, mut escaped) = (false, false);
    for (index, byte) in rest.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'}' if !quoted => return Some(first + index + 1),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_both_formats() {
        let sample = |series, value| Line::Sample { series, value };
        for (text, wanted) in [
            ("# HELP a b", Line::Comment),
            ("", Line::Comment),
            ("# EOF", Line::End),
            ("a 1", sample("a", 1.0)),
            ("a\t2.5e3 1395066363000 ", sample("a", 2500.0)),
            ("a{b=\"x } \\\" # \",} +Inf", sample("a{b=\"x } \\\" # \",}", f64::INFINITY)),
            ("a {b=\"c\"} 1", sample("a {b=\"c\"}", 1.0)),
            ("a_bucket{le=\"1\"} 9 # {trace=\"x\"} 0.5 1.7", sample("a_bucket{le=\"1\"}", 9.0)),
            ("a_total 3 1520879607.789", sample("a_total", 3.0)),
            ("a", Line::Bad),
            ("a b", Line::Bad),
            ("a 1 x", Line::Bad),
            ("a 1 2 3", Line::Bad),
            ("a{b=\"c} 1", Line::Bad),
        ] {
            assert_eq!(Line::read(text.as_bytes()), wanted, "{text}");
        }
        assert!(matches!(Line::read(b"a NaN"), Line::Sample { value, .. } if value.is_nan()));
        assert_eq!(Line::read(b"\xe9 1"), Line::Bad);
    }
}
