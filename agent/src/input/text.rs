//! Names and labels in the Prometheus text format 0.0.4 and OpenMetrics: `name{label="value",…}`.

use strobe_wire::limits::{LABEL_VALUE_BYTES_MAX, LABELS_MAX};
use strobe_wire::schema::{Labels, is_label_name, is_metric_name};

/// The name and labels of `name{label="value",…}`; `None` if it is none, or breaks a bound.
pub(crate) fn series(text: &str) -> Option<(String, Labels)> {
    let Some((name, rest)) = text.split_once('{') else {
        return is_metric_name(text).then(|| (text.to_owned(), Labels::default()));
    };
    let mut rest = rest.strip_suffix('}')?.trim_ascii();
    let mut pairs: Vec<(String, String)> = Vec::new();
    while !rest.is_empty() {
        let (label, after) = rest.split_once('=')?;
        let label = label.trim_ascii();
        let (value, after) = quoted(after.trim_ascii_start())?;
        let twice = pairs.iter().any(|(known, _)| known == label);
        let fits = value.len() <= LABEL_VALUE_BYTES_MAX && pairs.len() < LABELS_MAX;
        if !is_label_name(label) || label.starts_with("__") || twice || !fits {
            return None;
        }
        pairs.push((label.to_owned(), value));
        rest = after.trim_ascii_start();
        rest = match rest.strip_prefix(',') {
            Some(more) => more.trim_ascii_start(),
            None if rest.is_empty() => rest,
            None => return None,
        };
    }
    let name = name.trim_ascii();
    is_metric_name(name).then(|| (name.to_owned(), Labels::new(pairs)))
}

/// A value between quotes, and what stands behind it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.strip_prefix('"')?.chars();
    loop {
        match characters.next()? {
            '"' => return Some((value, characters.as_str())),
            '\\' => match characters.next()? {
                'n' => value.push('\n'),
                other @ ('\\' | '"') => value.push(other),
                _ => return None,
            },
            other => value.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_labels() {
        let of = |pairs: &[(&str, &str)]| Some(("a".to_owned(), Labels::of(pairs)));
        for (text, wanted) in [
            ("a", of(&[])),
            ("a{}", of(&[])),
            ("a { b = \"x } \\\" \\\\ \\n\" , c=\"\", }", of(&[("b", "x } \" \\ \n")])),
            ("a{job=\"x\"}", of(&[("job", "x")])),
            ("a{b=c}", None),
            ("a{b=\"c\",b=\"d\"}", None),
            ("a{__b=\"c\"}", None),
            ("a{b=\"\\x\"}", None),
            ("a{b=\"c\"", None),
            ("1a", None),
        ] {
            assert_eq!(series(text), wanted, "{text}");
        }
    }
}
