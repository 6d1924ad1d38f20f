//! A request's head, from bytes to what is asked, or to the reason why it is not served.

#![deny(clippy::indexing_slicing)]

use std::net::IpAddr;

use super::{FrontLimits, HEADERS_MAX, HostPolicy, Method, Refusal, Request};

/// What a head asks for.
pub(super) enum Head {
    /// An answer, once `need` bytes of body are there; `ask`: the client waits for our go-ahead.
    Request { request: Request, need: usize, ask: bool },
    /// The live stream.
    Upgrade { key: String },
}

fn refusal<T>(status: u16, why: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal { status, why: why.into() })
}

/// Parses a whole head, with its empty line.
pub(super) fn parse(
    bytes: &[u8],
    limits: &FrontLimits,
    policy: &HostPolicy,
) -> Result<Head, Refusal> {
    let mut room = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let room = room.get_mut(..limits.headers_max.min(HEADERS_MAX)).unwrap_or_default();
    let mut head = httparse::Request::new(room);
    match head.parse(bytes) {
        Ok(httparse::Status::Complete(length)) if length == bytes.len() => {}
        Ok(_) => return refusal(400, "a line of the head does not end with CR LF"),
        Err(httparse::Error::TooManyHeaders) => {
            return refusal(431, format!("more than {} headers", limits.headers_max));
        }
        Err(httparse::Error::Version) => return refusal(505, "HTTP/1.1 is spoken here"),
        Err(error) => return refusal(400, format!("the head is malformed: {error}")),
    }
    let headers = Headers(head.headers);
    let method = match head.method {
        Some("GET") => Method::Get,
        Some("HEAD") => Method::Head,
        Some("POST") => Method::Post,
        _ => return refusal(405, "GET, HEAD and POST are served"),
    };
    let target = head.path.unwrap_or_default();
    if limits.target_bytes_max < target.len() {
        return refusal(414, format!("the target is over {} bytes", limits.target_bytes_max));
    }
    // tiny_http would refuse what is not ASCII by closing; say it here.
    if !target.starts_with('/') || !target.is_ascii() {
        return refusal(400, "the target must be a path, in ASCII");
    }
    let host = check_host(&headers, policy)?;
    check_origin(&headers, host)?;
    if method == Method::Get && is_live(target) {
        return upgrade(&headers);
    }
    let need = content_length(&headers, limits)?;
    let ask = expects_continue(&headers)?;
    let keep_alive = head.version == Some(1) && !headers.has_token("connection", "close");
    let text = |name| headers.one(name).map(str::to_owned);
    let request = Request {
        method,
        target: target.to_owned(),
        content_type: text("content-type")?,
        content_encoding: text("content-encoding")?,
        accept_encoding: headers.all("accept-encoding").collect::<Vec<_>>().join(","),
        if_none_match: text("if-none-match")?,
        body: Vec::new(),
        keep_alive,
    };
    Ok(Head::Request { request, need, ask })
}

fn is_live(target: &str) -> bool {
    target.split('?').next() == Some("/live")
}

fn upgrade(headers: &Headers<'_, '_>) -> Result<Head, Refusal> {
    let asked =
        headers.has_token("upgrade", "websocket") && headers.has_token("connection", "upgrade");
    if !asked || headers.one("sec-websocket-version")? != "13" {
        return refusal(426, "/live is a WebSocket (version 13)");
    }
    let key = headers.one("sec-websocket-key")?;
    let base64 = |b: u8| b.is_ascii_alphanumeric() || b == b'+' || b == b'/';
    let whole =
        key.len() == 24 && key.strip_suffix("==").is_some_and(|inner| inner.bytes().all(base64));
    if !whole {
        return refusal(400, "Sec-WebSocket-Key must be 16 bytes in base64");
    }
    if headers.all("content-length").any(|length| length != "0") {
        return refusal(400, "a WebSocket handshake has no body");
    }
    Ok(Head::Upgrade { key: key.to_owned() })
}

fn content_length(headers: &Headers<'_, '_>, limits: &FrontLimits) -> Result<usize, Refusal> {
    if headers.all("transfer-encoding").next().is_some() {
        return refusal(411, "send the body with Content-Length; chunked bodies are not taken");
    }
    let mut lengths = headers.all("content-length");
    let Some(first) = lengths.next() else { return Ok(0) };
    if lengths.any(|other| other != first) {
        return refusal(400, "two different Content-Length headers");
    }
    if first.is_empty() || !first.bytes().all(|b| b.is_ascii_digit()) {
        return refusal(400, "Content-Length is not a number");
    }
    let max = limits.body_bytes_max;
    match first.parse::<usize>() {
        Ok(length) if length <= max => Ok(length),
        _ => refusal(413, format!("the body is over {max} bytes")),
    }
}

fn expects_continue(headers: &Headers<'_, '_>) -> Result<bool, Refusal> {
    match headers.one("expect")? {
        "" => Ok(false),
        other if other.eq_ignore_ascii_case("100-continue") => Ok(true),
        _ => refusal(417, "only Expect: 100-continue is known"),
    }
}

/// DNS rebinding makes another site's page talk to us under that site's name: refused.
fn check_host<'a>(headers: &Headers<'_, 'a>, policy: &HostPolicy) -> Result<&'a str, Refusal> {
    let mut hosts = headers.all("host");
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        return refusal(400, "exactly one Host header is wanted");
    };
    let Some((name, _)) = split_authority(host) else {
        return refusal(400, "the Host header is malformed");
    };
    let bare = name.strip_prefix('[').and_then(|n| n.strip_suffix(']')).unwrap_or(name);
    let known = bare.parse::<IpAddr>().is_ok()
        || name.eq_ignore_ascii_case("localhost")
        || policy.names.iter().any(|known| name.eq_ignore_ascii_case(known));
    if !known {
        return refusal(
            421,
            "this Host is not served: use an IP address or localhost, or name it in viz.names",
        );
    }
    Ok(host)
}

/// A page of another site may not read or write here with the visitor's reach.
fn check_origin(headers: &Headers<'_, '_>, host: &str) -> Result<(), Refusal> {
    for origin in headers.all("origin") {
        let (port, authority) = match origin.split_once("://") {
            Some(("http", authority)) => (80, authority),
            Some(("https", authority)) => (443, authority),
            _ => return refusal(403, "requests of another site's pages are refused (Origin)"),
        };
        let of_origin = split_authority(authority).map(|(n, p)| (n, p.unwrap_or(port)));
        let of_host = split_authority(host).map(|(n, p)| (n, p.unwrap_or(port)));
        let same = matches!((of_origin, of_host), (Some((a, p)), Some((b, q)))
            if a.eq_ignore_ascii_case(b) && p == q);
        if !same {
            return refusal(403, "requests of another site's pages are refused (Origin)");
        }
    }
    Ok(())
}

/// `name`, `name:port`, `[v6]`, `[v6]:port`.
fn split_authority(text: &str) -> Option<(&str, Option<u16>)> {
    let after = if text.starts_with('[') {
        text.find(']')? + 1
    } else {
        text.find(':').unwrap_or(text.len())
    };
    let (name, rest) = text.split_at_checked(after)?;
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._:[]".contains(&b);
    if name.is_empty() || !name.bytes().all(plain) {
        return None;
    }
    match rest.strip_prefix(':') {
        None if rest.is_empty() => Some((name, None)),
        Some(port) if port.bytes().all(|b| b.is_ascii_digit()) => {
            Some((name, Some(port.parse().ok()?)))
        }
        _ => None,
    }
}

struct Headers<'h, 'b>(&'h [httparse::Header<'b>]);

impl<'b> Headers<'_, 'b> {
    /// Each value of `name` that is text, trimmed; what is not text counts as empty.
    fn all(&self, name: &str) -> impl Iterator<Item = &'b str> {
        self.0
            .iter()
            .filter(move |header| header.name.eq_ignore_ascii_case(name))
            .map(|header| std::str::from_utf8(header.value).unwrap_or_default().trim())
    }

    /// The one value of `name`, empty if it is not there.
    fn one(&self, name: &str) -> Result<&'b str, Refusal> {
        let mut all = self.all(name);
        let first = all.next().unwrap_or_default();
        if all.next().is_some() || !first.is_ascii() {
            return refusal(400, format!("header {name} stands twice or is not ASCII"));
        }
        Ok(first)
    }

    fn has_token(&self, name: &str, token: &str) -> bool {
        self.all(name).flat_map(|v| v.split(',')).any(|t| t.trim().eq_ignore_ascii_case(token))
    }
}
