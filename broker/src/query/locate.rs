//! Where a query that does not parse is wrong.
//!
//! promql-parser says what, but not where. So a query it refused is read once more here, by a
//! grammar that knows only which token may follow which: the first that may not is the place. If
//! all may, a part of the query means nothing (an unknown function, a wrong type): then the smallest
//! expression that does not parse by itself is the place, and what the parser says of it the reason.

use promql_parser::parser::parse;

/// What is wrong, and the byte where it begins.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) at: usize,
    pub(super) what: String,
}

/// An expression's place, and those of the expressions in it.
#[derive(Debug)]
struct Node {
    start: usize,
    end: usize,
    parts: Vec<Self>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Word,
    /// Or a duration.
    Number,
    Text,
    Symbol,
    End,
}

#[derive(Clone, Copy, Debug)]
struct Token<'a> {
    kind: Kind,
    text: &'a str,
    at: usize,
}

struct Reader<'a> {
    tokens: Vec<Token<'a>>,
    next: usize,
    end: Token<'a>,
}

/// Where `text` is wrong, which the parser refused because of `why`.
pub(super) fn locate(text: &str, why: &str) -> Fault {
    let mut reader = Reader::new(text);
    if reader.tokens.is_empty() {
        return Fault { at: 0, what: "no expression found in input".to_owned() };
    }
    let root = reader.expression().and_then(|node| match reader.peek() {
        token if token.kind == Kind::End => Ok(node),
        token => Err(unexpected(token, "an operator or the end")),
    });
    match root {
        Ok(node) => blame(text, &node, why.to_owned()),
        Err(fault) => fault,
    }
}

/// The innermost expression that does not parse.
fn blame(text: &str, node: &Node, why: String) -> Fault {
    for part in &node.parts {
        if let Err(why) = parse(text.get(part.start..part.end).unwrap_or("")) {
            return blame(text, part, why);
        }
    }
    Fault { at: node.start, what: why }
}

impl<'a> Reader<'a> {
    fn new(text: &'a str) -> Self {
        let mut tokens = Vec::new();
        let mut at = 0;
        while let Some(rest) = text.get(at..).filter(|rest| !rest.is_empty()) {
            let (kind, length) = token(rest);
            if let (Some(kind), Some(text)) = (kind, rest.get(..length)) {
                // Inside of brackets a colon ends the duration before it.
                tokens.push(Token { kind, text, at });
            }
            at += length;
        }
        Self { tokens, next: 0, end: Token { kind: Kind::End, text: "", at: text.len() } }
    }

    fn peek(&self) -> Token<'a> {
        self.tokens.get(self.next).copied().unwrap_or(self.end)
    }

    fn take(&mut self) -> Token<'a> {
        let token = self.peek();
        self.next += 1;
        token
    }

    fn is(&self, text: &str) -> bool {
        let token = self.peek();
        token.kind != Kind::Text && token.text.eq_ignore_ascii_case(text)
    }

    fn takes(&mut self, text: &str) -> bool {
        let found = self.is(text);
        self.next += usize::from(found);
        found
    }

    fn must(&mut self, text: &str, expected: &str) -> Result<(), Fault> {
        if self.takes(text) { Ok(()) } else { Err(unexpected(self.peek(), expected)) }
    }

    /// Where the last token taken ended.
    fn ended(&self) -> usize {
        let last = self.next.checked_sub(1).and_then(|at| self.tokens.get(at));
        last.map_or(0, |token| token.at + token.text.len())
    }

    /// Operands and operators in a row: their precedence changes no place.
    fn expression(&mut self) -> Result<Node, Fault> {
        let start = self.peek().at;
        let mut parts = vec![self.operand()?];
        while OPERATORS.iter().any(|operator| self.is(operator)) {
            self.next += 1;
            self.takes("bool");
            if self.takes("on") || self.takes("ignoring") {
                self.names()?;
                if (self.takes("group_left") || self.takes("group_right")) && self.is("(") {
                    self.names()?;
                }
            }
            parts.push(self.operand()?);
        }
        if parts.len() == 1
            && let Some(only) = parts.pop()
        {
            return Ok(only);
        }
        Ok(Node { start, end: self.ended(), parts })
    }

    fn operand(&mut self) -> Result<Node, Fault> {
        let start = self.peek().at;
        if self.takes("+") || self.takes("-") {
            let part = self.operand()?;
            return Ok(Node { start, end: part.end, parts: vec![part] });
        }
        let mut node = self.primary()?;
        loop {
            if self.takes("[") {
                self.duration()?;
                if self.takes(":") && !self.is("]") {
                    self.duration()?;
                }
                self.must("]", "']'")?;
            } else if self.takes("offset") {
                let _ = self.takes("-") || self.takes("+");
                self.duration()?;
            } else if self.takes("@") {
                self.moment()?;
            } else {
                return Ok(node);
            }
            node = Node { start, end: self.ended(), parts: vec![node] };
        }
    }

    fn primary(&mut self) -> Result<Node, Fault> {
        let token = self.peek();
        let start = token.at;
        let mut parts = Vec::new();
        match token.kind {
            Kind::Number | Kind::Text => self.next += 1,
            Kind::Symbol if self.takes("(") => {
                parts.push(self.expression()?);
                self.must(")", "an operator or ')'")?;
            }
            Kind::Symbol if self.is("{") => self.matchers()?,
            Kind::Word if !RESERVED.iter().any(|word| self.is(word)) => {
                self.next += 1;
                let known = |word: &&str| token.text.eq_ignore_ascii_case(word);
                let grouped = AGGREGATIONS.iter().any(known)
                    && (self.is("(") || self.is("by") || self.is("without"));
                if grouped {
                    self.grouping()?;
                }
                if grouped && !self.is("(") {
                    return Err(unexpected(self.peek(), "'('"));
                }
                if self.is("(") {
                    self.arguments(&mut parts)?;
                    if grouped {
                        self.grouping()?;
                    }
                } else if self.is("{") {
                    self.matchers()?;
                }
            }
            _ => return Err(unexpected(token, "an expression")),
        }
        Ok(Node { start, end: self.ended(), parts })
    }

    fn arguments(&mut self, parts: &mut Vec<Node>) -> Result<(), Fault> {
        self.must("(", "'('")?;
        if self.takes(")") {
            return Ok(());
        }
        loop {
            parts.push(self.expression()?);
            if self.takes(")") {
                return Ok(());
            }
            self.must(",", "an operator, ',' or ')'")?;
        }
    }

    fn grouping(&mut self) -> Result<(), Fault> {
        if self.takes("by") || self.takes("without") { self.names() } else { Ok(()) }
    }

    fn names(&mut self) -> Result<(), Fault> {
        self.must("(", "'('")?;
        while !self.takes(")") {
            let token = self.take();
            let plain = token.kind == Kind::Word && !token.text.contains(':');
            if !plain && token.kind != Kind::Text {
                return Err(unexpected(token, "a label name or ')'"));
            }
            if !self.is(")") {
                self.must(",", "',' or ')'")?;
            }
        }
        Ok(())
    }

    fn matchers(&mut self) -> Result<(), Fault> {
        self.must("{", "'{'")?;
        while !self.takes("}") {
            let name = self.take();
            let plain = name.kind == Kind::Word && !name.text.contains(':');
            if !plain && name.kind != Kind::Text {
                return Err(unexpected(name, "a label name or '}'"));
            }
            let quoted = name.kind == Kind::Text && (self.is(",") || self.is("}"));
            if !quoted {
                let operator = self.take();
                if !["=", "!=", "=~", "!~"].contains(&operator.text) {
                    return Err(unexpected(operator, "'=', '!=', '=~' or '!~'"));
                }
                let value = self.take();
                if value.kind != Kind::Text {
                    return Err(unexpected(value, "a string"));
                }
            }
            if !self.is("}") {
                self.must(",", "',' or '}'")?;
            }
        }
        Ok(())
    }

    fn duration(&mut self) -> Result<(), Fault> {
        let token = self.take();
        // `check_brackets` has seen that it is one.
        if token.kind == Kind::Number {
            return Ok(());
        }
        Err(unexpected(token, "a duration"))
    }

    fn moment(&mut self) -> Result<(), Fault> {
        let _ = self.takes("-") || self.takes("+");
        let token = self.take();
        let name = |name: &str| token.text.eq_ignore_ascii_case(name);
        if token.kind == Kind::Word && (name("start") || name("end")) {
            self.must("(", "'('")?;
            return self.must(")", "')'");
        }
        if token.kind == Kind::Number || name("inf") || name("nan") {
            return Ok(());
        }
        Err(unexpected(token, "a time, start() or end()"))
    }
}

fn unexpected(token: Token<'_>, expected: &str) -> Fault {
    let what = match token.kind {
        Kind::End => format!("unexpected end of input, expected {expected}"),
        _ => {
            let text: String = token.text.chars().take(SHOWN_MAX).collect();
            format!("unexpected {text:?}, expected {expected}")
        }
    };
    Fault { at: token.at, what }
}

/// The token at the front and its bytes; no kind for space and comments.
fn token(rest: &str) -> (Option<Kind>, usize) {
    let run = |of: &dyn Fn(char) -> bool| rest.find(|letter| !of(letter)).unwrap_or(rest.len());
    let first = rest.chars().next().unwrap_or(' ');
    let second = rest.chars().nth(1).unwrap_or(' ');
    match first {
        _ if first.is_whitespace() => (None, run(&char::is_whitespace)),
        '#' => (None, run(&|letter| letter != '\n')),
        '"' | '\'' | '`' => (Some(Kind::Text), quoted(rest, first)),
        '0'..='9' => (Some(Kind::Number), number(rest)),
        '.' if second.is_ascii_digit() => (Some(Kind::Number), number(rest)),
        // A colon is part of a metric's name, but not behind a duration.
        'a'..='z' | 'A'..='Z' | '_' => {
            (Some(Kind::Word), run(&|l| l.is_ascii_alphanumeric() || l == '_' || l == ':'))
        }
        ':' if second.is_ascii_alphabetic() || second == '_' => {
            (Some(Kind::Word), run(&|l| l.is_ascii_alphanumeric() || l == '_' || l == ':'))
        }
        _ => {
            let double = ["==", "!=", ">=", "<=", "=~", "!~"].iter().any(|s| rest.starts_with(s));
            (Some(Kind::Symbol), if double { 2 } else { first.len_utf8() })
        }
    }
}

/// Digits, letters of units and of `0x`, and the sign of an exponent.
fn number(rest: &str) -> usize {
    let mut before = ' ';
    let hex = rest.starts_with("0x") || rest.starts_with("0X");
    for (at, letter) in rest.char_indices() {
        let exponent = !hex && (before == 'e' || before == 'E') && (letter == '+' || letter == '-');
        if !letter.is_ascii_alphanumeric() && letter != '.' && letter != '_' && !exponent {
            return at;
        }
        before = letter;
    }
    rest.len()
}

fn quoted(rest: &str, quote: char) -> usize {
    let mut letters = rest.char_indices().skip(1);
    while let Some((at, letter)) = letters.next() {
        if letter == quote {
            return at + 1;
        }
        if letter == '\\' && quote != '`' {
            letters.next();
        }
    }
    rest.len()
}

const OPERATORS: [&str; 16] = [
    "+", "-", "*", "/", "%", "^", "==", "!=", "<=", "<", ">=", ">", "and", "or", "unless", "atan2",
];
const RESERVED: [&str; 9] =
    ["and", "or", "unless", "atan2", "bool", "on", "ignoring", "group_left", "group_right"];
const AGGREGATIONS: [&str; 14] = [
    "sum",
    "avg",
    "count",
    "min",
    "max",
    "group",
    "stddev",
    "stdvar",
    "topk",
    "bottomk",
    "count_values",
    "quantile",
    "limitk",
    "limit_ratio",
];
/// Letters of a token that an error shows.
const SHOWN_MAX: usize = 40;
