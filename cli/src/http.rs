//! One request to the HTTP door of a running Strobe: `--url http://HOST:PORT`.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;
use strobe_wire::message::{ApiRequest, ApiResponse};

/// Where a URL leads: host with port, and what stands before every path.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Place {
    host: String,
    port: u16,
    prefix: String,
}

/// Asks.
pub(crate) fn ask(url: &str, request: &ApiRequest, wait: Duration) -> Result<ApiResponse, String> {
    let place = Place::of(url)?;
    exchange(&place, request, wait).map_err(|why| format!("{url} does not answer: {why}"))
}

fn exchange(place: &Place, request: &ApiRequest, wait: Duration) -> io::Result<ApiResponse> {
    let Place { host, port, prefix } = place;
    let mut failed = io::Error::other("its name has no address");
    let mut stream = None;
    for address in (host.trim_matches(['[', ']']), *port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, CONNECT.min(wait)) {
            Ok(connected) => {
                stream = Some(connected);
                break;
            }
            Err(why) => failed = why,
        }
    }
    let Some(mut stream) = stream else { return Err(failed) };
    stream.set_read_timeout(Some(wait))?;
    stream.set_write_timeout(Some(wait))?;
    let (method, path, query) = (&request.method, &request.path, &request.query);
    let head = format!(
        "{method} {prefix}{path}?{query} HTTP/1.1\r\nHost: {host}:{port}\r\n\
         Content-Length: 0\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes())?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer)?;
    response(&answer).ok_or_else(|| io::Error::other("it does not speak HTTP"))
}

/// An answer that ends with its connection; Strobe never sends chunks.
fn response(answer: &[u8]) -> Option<ApiResponse> {
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n")?;
    let (head, body) = answer.split_at_checked(end)?;
    let head = str::from_utf8(head).ok()?;
    let mut lines = head.split("\r\n");
    let status = lines.next()?.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
    let field = |name: &str| {
        let lines = head.split("\r\n").skip(1).filter_map(|line| line.split_once(':'));
        lines
            .filter(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim())
            .next()
    };
    let body = body.get(4..)?;
    let length = field("content-length").and_then(|length| length.parse::<usize>().ok());
    let body = match length {
        Some(length) => body.get(..length)?,
        None => body,
    };
    let content_type = field("content-type").unwrap_or_default().to_owned();
    Some(ApiResponse { status, content_type, body: body.to_vec() })
}

impl Place {
    fn of(url: &str) -> Result<Self, String> {
        let bad = |why: &str| format!("--url {url}: {why}; it looks like http://127.0.0.1:7800");
        if url.starts_with("https://") {
            return Err(bad("https is not spoken by this command; ask on the machine itself"));
        }
        let rest =
            url.strip_prefix("http://").ok_or_else(|| bad("it does not begin with http://"))?;
        let (host, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        // Nothing that would end the request line or a head line early.
        let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
        if host.is_empty() || !plain(rest) || rest.contains(['?', '#', '@']) {
            return Err(bad("host and port are wanted"));
        }
        let (name, port) = match host.rsplit_once(':') {
            Some((name, port)) if !port.ends_with(']') => {
                (name, port.parse().map_err(|_| bad("its port is no number"))?)
            }
            _ => (host, 80),
        };
        let prefix = prefix.trim_end_matches('/');
        let prefix = if prefix.is_empty() { String::new() } else { format!("/{prefix}") };
        Ok(Self { host: name.to_owned(), port, prefix })
    }
}

const CONNECT: Duration = Duration::from_secs(5);
/// More than any answer the API gives.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn urls_are_places() {
        let check = |url: &str, wanted: Option<(&str, u16, &str)>| {
            let place = Place::of(url).ok();
            let place = place.as_ref().map(|p| (p.host.as_str(), p.port, p.prefix.as_str()));
            assert_eq!(place, wanted, "{url}");
        };
        check("http://127.0.0.1:7800", Some(("127.0.0.1", 7800, "")));
        check("http://a/strobe/", Some(("a", 80, "/strobe")));
        check("http://[::1]:7800/", Some(("[::1]", 7800, "")));
        check("http://[::1]", Some(("[::1]", 80, "")));
        for bad in [
            "",
            "a:1",
            "https://a",
            "http://",
            "http://a:x",
            "http://a b",
            "http://u@a",
            "http://a?b",
        ] {
            check(bad, None);
        }
    }

    #[test]
    fn answers_are_read_and_cut_ones_refused() {
        let whole = b"HTTP/1.1 422 X\r\nContent-Type: a/b\r\nContent-Length: 5\r\n\r\nhello";
        let got = response(whole).unwrap();
        assert_eq!(
            (got.status, got.content_type.as_str(), &got.body[..]),
            (422, "a/b", &b"hello"[..])
        );
        for cut in 0..whole.len() {
            assert!(response(&whole[..cut]).is_none(), "{cut}");
        }
        assert!(response(b"nonsense\r\n\r\n").is_none());
    }

    #[test]
    fn a_server_is_asked() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/x", listener.local_addr().unwrap());
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut buffer = [0; 500];
            let read = stream.read(&mut buffer).unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").unwrap();
            String::from_utf8_lossy(&buffer[..read]).into_owned()
        });
        let request = ApiRequest {
            method: "GET".to_owned(),
            path: "/api/v1/query".to_owned(),
            query: "query=up".to_owned(),
            ..ApiRequest::default()
        };
        assert_eq!(ask(&url, &request, CONNECT).unwrap().body, b"ok");
        assert!(server.join().unwrap().starts_with("GET /x/api/v1/query?query=up HTTP/1.1\r\n"));
    }
}
