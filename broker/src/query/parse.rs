//! Text to syntax tree, with bounds that keep every later recursion shallow.

use crate::query::engine::QueryError;
use crate::store::{MatchOp, Matcher};
use promql_parser::label::MatchOp as ParsedOp;
use promql_parser::parser::value::ValueType;
use promql_parser::parser::{Expr, Function, VectorSelector, register_extra_functions};
use std::sync::Once;

/// Bytes of a query.
const QUERY_BYTES_MAX: usize = 64 << 10;
/// Brackets and operators of a query: each may nest the tree by one.
const OPERATORS_MAX: usize = 1000;
static HOLT_WINTERS: Once = Once::new();

/// Parses a query.
///
/// # Errors
/// What is wrong, and where if that can be told.
pub fn parse(text: &str) -> Result<Expr, QueryError> {
    if QUERY_BYTES_MAX < text.len() {
        let found = text.len();
        return Err(QueryError::Parse(format!(
            "the query has {found} bytes; at most {QUERY_BYTES_MAX} are allowed"
        )));
    }
    check_brackets(text)?;
    // What Prometheus 3 calls double_exponential_smoothing; the parser knows only that name.
    HOLT_WINTERS.call_once(|| {
        let args = vec![ValueType::Matrix, ValueType::Scalar, ValueType::Scalar];
        let function = Function::new("holt_winters", args, 0, ValueType::Vector, false);
        // Refused only if the parser learns the name itself, and then it is known.
        let _ = register_extra_functions(vec![function]);
    });
    promql_parser::parser::parse(text)
        .map_err(|why| QueryError::Parse(format!("parse error: {why}")))
}

/// The conditions of a series selector such as `match[]` takes.
///
/// # Errors
/// Text that is no selector.
pub fn selector(text: &str) -> Result<Vec<Matcher>, QueryError> {
    match parse(text)? {
        Expr::VectorSelector(selector) if selector.offset.is_none() && selector.at.is_none() => {
            matchers(&selector)
        }
        _ => Err(QueryError::Parse(format!("{text:?} is not a series selector"))),
    }
}

/// The conditions of a selector, the metric name among them.
///
/// # Errors
/// `or` between matchers, which PromQL does not have.
pub(super) fn matchers(selector: &VectorSelector) -> Result<Vec<Matcher>, QueryError> {
    if !selector.matchers.or_matchers.is_empty() {
        return Err(QueryError::Unsupported("`or` between label matchers".to_owned()));
    }
    let name = selector.name.as_ref().map(|name| Matcher {
        name: super::NAME.to_owned(),
        op: MatchOp::Equal,
        value: name.clone(),
    });
    let rest = selector.matchers.matchers.iter().map(|matcher| Matcher {
        name: matcher.name.clone(),
        op: match matcher.op {
            ParsedOp::Equal => MatchOp::Equal,
            ParsedOp::NotEqual => MatchOp::NotEqual,
            ParsedOp::Re(_) => MatchOp::Regex,
            ParsedOp::NotRe(_) => MatchOp::NotRegex,
        },
        value: matcher.value.clone(),
    });
    Ok(name.into_iter().chain(rest).collect())
}

/// Finds unbalanced brackets and open strings, with their place, and counts what can nest.
fn check_brackets(text: &str) -> Result<(), QueryError> {
    let mut open: Vec<(char, usize)> = Vec::new();
    let mut operators = 0;
    let mut letters = text.char_indices();
    let mut word = String::new();
    while let Some((at, letter)) = letters.next() {
        if letter.is_alphanumeric() || letter == '_' || letter == ':' {
            word.push(letter);
            continue;
        }
        operators += usize::from(matches!(word.as_str(), "and" | "or" | "unless" | "atan2"));
        word.clear();
        match letter {
            '#' => drop(letters.by_ref().find(|(_, letter)| *letter == '\n')),
            '"' | '\'' | '`' => skip_string(&mut letters, letter, text, at)?,
            '(' | '[' | '{' => open.push((letter, at)),
            ')' | ']' | '}' => {
                let wanted = match letter {
                    ')' => '(',
                    ']' => '[',
                    _ => '{',
                };
                if open.pop().is_none_or(|(opened, _)| opened != wanted) {
                    return Err(at_place(text, at, &format!("unexpected {letter:?}")));
                }
            }
            _ => {}
        }
        operators += usize::from("([+-*/%^<>=!@".contains(letter));
    }
    if let Some(&(bracket, at)) = open.last() {
        return Err(at_place(text, at, &format!("{bracket:?} is never closed")));
    }
    if OPERATORS_MAX < operators {
        return Err(QueryError::Parse(format!(
            "the query has {operators} brackets and operators; at most {OPERATORS_MAX} are allowed"
        )));
    }
    Ok(())
}

fn skip_string(
    letters: &mut std::str::CharIndices<'_>,
    quote: char,
    text: &str,
    at: usize,
) -> Result<(), QueryError> {
    while let Some((_, letter)) = letters.next() {
        if letter == quote {
            return Ok(());
        }
        if letter == '\\' && quote != '`' {
            letters.next();
        }
    }
    Err(at_place(text, at, "the string is never closed"))
}

/// As Prometheus words it: `1:5: parse error: …`, line and column from 1.
fn at_place(text: &str, at: usize, what: &str) -> QueryError {
    let before = text.get(..at).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|letter| *letter != '\n').count() + 1;
    QueryError::Parse(format!("{line}:{column}: parse error: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_the_place() {
        let check = |text: &str, wanted: &str| {
            let got = parse(text).expect_err(text).to_string();
            assert!(got.contains(wanted), "{text}: {got}");
        };
        check("sum(up", "1:4: parse error: '(' is never closed");
        check("up)\n", "1:3: parse error: unexpected ')'");
        check("1 +\n up{a=\"b}", "2:7: parse error: the string is never closed");
        check("sum(nope(up))", "unknown function");
        check("", "no expression");
        check(&"(".repeat(70_000), "bytes");
        check(&format!("{}1{}", "(".repeat(2000), ")".repeat(2000)), "brackets and operators");
        check("1 == 1", "BOOL");
        check("up{", "never closed");
    }

    #[test]
    fn selectors_become_matchers() {
        let got = selector(r#"up{a="1",b!~"x.*"}"#).unwrap();
        let names: Vec<&str> = got.iter().map(|matcher| matcher.name.as_str()).collect();
        assert_eq!(names, ["__name__", "a", "b"]);
        assert!(selector("rate(up[5m])").is_err());
        assert!(selector("up offset 5m").is_err());
    }

    const SOUP: &[&str] = &[
        "up",
        "{",
        "}",
        "a=\"b\"",
        "=~",
        "\"(\"",
        "(",
        ")",
        "[",
        "]",
        "5m",
        ":",
        "99999999999999y",
        "1e999",
        "0x",
        "NaN",
        "-",
        "+",
        "^",
        "and",
        "or",
        "on",
        "(a)",
        "group_left",
        "bool",
        "by",
        "sum",
        "topk",
        "rate",
        "offset",
        "@",
        "start()",
        "end()",
        ",",
        "'",
        "`x`",
        "\\",
        "é",
        "#",
        "\n",
        " ",
        "1",
        "0.5",
        "==",
        "!~",
        "fill",
        "count_values",
        "\"\\x\"",
        "\"\\u12\"",
        "1y2w",
        "18446744073709551616ms",
        "-1e300",
        "9223372036854775807",
        "__name__",
        "label_replace",
    ];

    proptest::proptest! {
        #[test]
        fn no_text_panics(
            words in proptest::collection::vec(proptest::sample::select(SOUP), 0..12),
            text in "\\PC{0,40}",
        ) {
            let _ = parse(&words.concat());
            let _ = parse(&words.join(" "));
            let _ = parse(&text);
        }
    }
}
