//! Text to syntax tree, with bounds that keep every later recursion shallow.

use crate::query::engine::QueryError;
use crate::query::locate::locate;
use crate::store::{MatchOp, Matcher};
use promql_parser::label::MatchOp as ParsedOp;
use promql_parser::parser::value::ValueType;
use promql_parser::parser::{Expr, Function, VectorSelector, register_extra_functions};
use std::sync::Once;

/// Bytes of a query.
const QUERY_BYTES_MAX: usize = 64 << 10;
/// Brackets and operators of a query: each may nest the tree by one.
const OPERATORS_MAX: usize = 250;
/// Levels of a query's tree: an evaluation takes some 10 KB of stack a level in a debug build.
const DEPTH_MAX: usize = 100;
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
    let expr = promql_parser::parser::parse(text).map_err(|why| {
        let fault = locate(text, &why);
        at_place(text, fault.at, &fault.what)
    })?;
    if DEPTH_MAX < depth(&expr) {
        return Err(QueryError::Parse(format!("the query nests deeper than {DEPTH_MAX} levels")));
    }
    Ok(expr)
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

fn depth(expr: &Expr) -> usize {
    let deepest = match expr {
        Expr::Aggregate(it) => depth(&it.expr).max(it.param.as_deref().map_or(0, depth)),
        Expr::Unary(it) => depth(&it.expr),
        Expr::Binary(it) => depth(&it.lhs).max(depth(&it.rhs)),
        Expr::Paren(it) => depth(&it.expr),
        Expr::Subquery(it) => depth(&it.expr),
        Expr::Call(it) => it.args.args.iter().map(|arg| depth(arg)).max().unwrap_or(0),
        _ => 0,
    };
    deepest + 1
}

/// Finds unbalanced brackets, open strings and bad durations, with their place, and counts what
/// can nest.
///
/// Durations are checked here because promql-parser 0.11 panics on a number in their place
/// (`up[1e999]`) and takes a part above 2^32 (`1d5000000000s`) for nothing.
fn check_brackets(text: &str) -> Result<(), QueryError> {
    let mut open: Vec<(char, usize)> = Vec::new();
    let mut operators = 0;
    let mut letters = text.char_indices();
    let mut word = Word::default();
    while let Some((at, letter)) = letters.next() {
        let in_range = open.last().is_some_and(|(bracket, _)| *bracket == '[');
        if letter.is_alphanumeric() || letter == '_' || letter == ':' && !in_range {
            word.push(at, letter);
            continue;
        }
        operators += word.end(text)?;
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
        word.duration_next = match letter {
            '[' => true,
            ':' => in_range,
            '+' | '-' | '#' => word.duration_next,
            other => other.is_whitespace() && word.duration_next,
        };
        operators += usize::from("([+-*/%^<>=!@".contains(letter));
    }
    operators += word.end(text)?;
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

/// The word under the scanner, and whether the next one must be a duration.
#[derive(Default)]
struct Word {
    text: String,
    at: usize,
    duration_next: bool,
}

impl Word {
    fn push(&mut self, at: usize, letter: char) {
        if self.text.is_empty() {
            self.at = at;
        }
        self.text.push(letter);
    }

    /// Ends the word; says how many operators it is.
    fn end(&mut self, text: &str) -> Result<usize, QueryError> {
        if self.text.is_empty() {
            return Ok(0);
        }
        if self.duration_next && !is_duration(&self.text) {
            let what = format!("{:?} is no duration such as 5m or 1h30m", self.text);
            return Err(at_place(text, self.at, &what));
        }
        self.duration_next = self.text.eq_ignore_ascii_case("offset");
        let operator = ["and", "or", "unless", "atan2"]
            .iter()
            .any(|operator| self.text.eq_ignore_ascii_case(operator));
        self.text.clear();
        Ok(usize::from(operator))
    }
}

/// Numbers that fit 32 bits, each with a unit.
fn is_duration(text: &str) -> bool {
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(rest.len());
        let Some((number, tail)) = rest.split_at_checked(digits) else { return false };
        let letters = tail.find(|letter: char| letter.is_ascii_digit()).unwrap_or(tail.len());
        let Some((unit, tail)) = tail.split_at_checked(letters) else { return false };
        let known = ["y", "w", "d", "h", "m", "s", "ms"].contains(&unit);
        if !known || number.parse::<u32>().is_err() {
            return false;
        }
        rest = tail;
    }
    true
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
        check("", "1:1: parse error: no expression found in input");
        check(&"(".repeat(70_000), "bytes");
        check(&format!("{}1{}", "(".repeat(2000), ")".repeat(2000)), "brackets and operators");
        check("up{", "never closed");
        check("up[1e999]", "1:4: parse error: \"1e999\" is no duration");
        check("up offset -NaN", "1:12: parse error: \"NaN\" is no duration");
        check("up[1d5000000000s]", "is no duration");
        check("max_over_time(up[5m:0x10])", "is no duration");
    }

    /// `(query, place, what)`: the place is line and column from 1, as Prometheus has them.
    const MALFORMED: &[(&str, &str, &str)] = &[
        ("   ", "1:1", "no expression"),
        ("# nothing", "1:1", "no expression"),
        ("up up", "1:4", "unexpected \"up\", expected an operator or the end"),
        ("up 5", "1:4", "unexpected \"5\""),
        ("1 + ", "1:5", "unexpected end of input, expected an expression"),
        ("1 + * 2", "1:5", "unexpected \"*\", expected an expression"),
        ("up +\n  / up", "2:3", "unexpected \"/\""),
        ("and up", "1:1", "unexpected \"and\""),
        ("up and and up", "1:8", "unexpected \"and\""),
        ("up = up", "1:4", "unexpected \"=\""),
        ("up =~ \"x\"", "1:4", "unexpected \"=~\""),
        ("up ! up", "1:4", "unexpected \"!\""),
        ("up & up", "1:4", "unexpected \"&\""),
        ("é + up", "1:1", "unexpected \"é\""),
        ("\"é\" + $x", "1:7", "unexpected \"$\""),
        ("up{a}", "1:5", "unexpected \"}\", expected '='"),
        ("up{a=}", "1:6", "unexpected \"}\", expected a string"),
        ("up{a=b}", "1:6", "unexpected \"b\", expected a string"),
        ("up{a==\"b\"}", "1:5", "unexpected \"==\""),
        ("up{a!\"b\"}", "1:5", "unexpected \"!\""),
        ("up{a=\"b\" c=\"d\"}", "1:10", "unexpected \"c\", expected ',' or '}'"),
        ("up{,}", "1:4", "unexpected \",\", expected a label name"),
        ("up{5=\"x\"}", "1:4", "unexpected \"5\", expected a label name"),
        ("up{a=~\"(\"}", "1:1", "regex"),
        ("{}", "1:1", "non-empty matcher"),
        ("1 + {a=\"\"}", "1:5", "non-empty matcher"),
        ("sum by up", "1:8", "unexpected \"up\", expected '('"),
        ("sum by (a b) (up)", "1:11", "unexpected \"b\", expected ',' or ')'"),
        ("sum by (1) (up)", "1:9", "unexpected \"1\", expected a label name"),
        ("sum(up) by", "1:11", "unexpected end of input"),
        ("sum(up]", "1:7", "unexpected ']'"),
        ("sum()", "1:1", "argument"),
        ("sum(nope(up))", "1:5", "unknown function with name 'nope'"),
        ("1 + rate(up)", "1:5", "type matrix"),
        ("sum(rate(up[5m]) + abs(\"x\"))", "1:20", "type vector"),
        ("abs(up, up)", "1:1", "argument"),
        ("rate(up[5m],)", "1:13", "unexpected \")\", expected an expression"),
        ("max(up,, up)", "1:8", "unexpected \",\""),
        ("topk(up)", "1:1", "argument"),
        ("up + 1 == 1 + (2 > 1)", "1:16", "BOOL"),
        ("1 == 1", "1:1", "BOOL"),
        ("up and 1", "1:1", "set operator"),
        ("up + bool up", "1:1", "bool modifier"),
        ("up + on up", "1:9", "unexpected \"up\", expected '('"),
        ("up[5m][5m]", "1:1", "ranges only allowed"),
        ("rate(up[5m] offset)", "1:19", "unexpected \")\", expected a duration"),
        ("up offset 5m offset 5m", "1:1", "offset"),
        ("up @ up", "1:6", "unexpected \"up\", expected a time"),
        ("up @ start", "1:11", "expected '('"),
        ("sum(up) + -\"x\"", "1:11", "unary expression"),
        ("up[]", "1:4", "unexpected \"]\", expected a duration"),
        ("up[5m:1m:1m]", "1:9", "unexpected"),
    ];

    #[test]
    fn every_malformed_query_has_a_place() {
        let mut wrong = String::new();
        for (text, place, what) in MALFORMED {
            let got = parse(text).expect_err(text).to_string();
            if !got.starts_with(&format!("{place}: parse error: ")) || !got.contains(what) {
                wrong += &format!("{text:?}: {got}, not {place} {what}\n");
            }
        }
        assert!(wrong.is_empty(), "{wrong}");
    }

    #[test]
    fn selectors_become_matchers() {
        let got = selector(r#"up{a="1",b!~"x.*"}"#).unwrap();
        let names: Vec<&str> = got.iter().map(|matcher| matcher.name.as_str()).collect();
        assert_eq!(names, ["__name__", "a", "b"]);
        assert!(selector("rate(up[5m])").is_err());
        assert!(selector("up offset 5m").is_err());
        for fine in
            ["sum by (offset) (a:b) + 1", "up[ 1h30m : 5s ] offset - 1d", "a[5m:] OFFSET 3m"]
        {
            assert!(parse(fine).is_ok(), "{fine}");
        }
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
            for text in [&words.concat(), &words.join(" "), &text] {
                if let Err(QueryError::Parse(why)) = parse(text) {
                    let placed = why.contains(": parse error: ") || why.starts_with("the query ");
                    proptest::prop_assert!(placed, "{text:?}: {why}");
                }
            }
        }
    }
}
