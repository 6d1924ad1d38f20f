//! Questions to a running broker, by the control socket of its state directory or by HTTP.

use crate::http;
use crate::settings::state_dir;
use serde_json::Value;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use strobe_broker::control;
use strobe_wire::message::{ApiRequest, ApiResponse};
use strobe_wire::settings::duration_ms;

/// Which broker.
#[derive(Debug, clap::Args)]
pub(crate) struct To {
    /// State directory of the running broker (or `strobe up`).
    #[arg(long, value_name = "PATH", env = "STROBE_DIR")]
    dir: Option<PathBuf>,
    /// Ask over HTTP instead of --dir, as in http://127.0.0.1:7800.
    #[arg(long, value_name = "URL", env = "STROBE_URL")]
    url: Option<String>,
}

impl To {
    /// By the control socket, for what is asked nowhere else.
    pub(crate) fn of_dir(dir: Option<PathBuf>) -> Self {
        Self { dir, url: None }
    }
}

/// The body of a good answer.
pub(crate) fn get(to: &To, method: &str, path: &str, query: &str) -> Result<String, String> {
    send(to, (method, path, query), "")
}

/// The same with a text in the request's body.
pub(crate) fn send(
    to: &To,
    (method, path, query): (&str, &str, &str),
    body: &str,
) -> Result<String, String> {
    let request = ApiRequest {
        method: method.to_owned(),
        path: path.to_owned(),
        query: query.to_owned(),
        body: body.as_bytes().to_vec(),
        ..ApiRequest::default()
    };
    let answer = match &to.url {
        Some(url) => http::ask(url, &request, WAIT)?,
        None => by_socket(to, request)?,
    };
    let body = String::from_utf8_lossy(&answer.body).trim_end().to_owned();
    if answer.status == 200 {
        return Ok(body);
    }
    let said: Option<Value> = serde_json::from_str(&body).ok();
    let why = said.as_ref().and_then(|v| v.get("error")).and_then(Value::as_str);
    Err(why.map_or_else(|| body.clone(), str::to_owned))
}

fn by_socket(to: &To, request: ApiRequest) -> Result<ApiResponse, String> {
    let dir = state_dir(to.dir.as_deref())?;
    control::ask(&dir, request, WAIT).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            format!(
                "no broker runs on {}; start one with `strobe up`, or name its --dir",
                dir.display()
            )
        }
        _ => format!("the broker on {} does not answer: {error}", dir.display()),
    })
}

/// `strobe token create`.
pub(crate) fn token(to: &To, lifetime: &str) -> Result<String, String> {
    let ms = duration_ms(lifetime).map_err(|why| format!("--lifetime: {why}"))?;
    get(to, "POST", "/api/strobe/v1/tokens", &format!("lifetime_ms={ms}"))
}

/// `strobe hosts revoke`.
pub(crate) fn revoke(to: &To, host: &str) -> Result<String, String> {
    get(to, "POST", "/api/strobe/v1/revoke", &format!("host={}", encoded(host)))
}

/// `strobe host`, `strobe burst`.
pub(crate) fn host(to: &To, what: &str, host: &str) -> Result<String, String> {
    get(to, "POST", "/api/strobe/v1/ask", &format!("what={what}&host={}", encoded(host)))
}

/// The lines of `strobe hosts`.
pub(crate) fn host_rows(hosts: &[Value]) -> Vec<Vec<String>> {
    let now_s = now_s();
    hosts.iter().map(|host| row(host, now_s)).collect()
}

/// What stands above them.
pub(crate) const HOSTS_HEAD: [&str; 11] = [
    "INSTANCE",
    "STATE",
    "CHECKS",
    "GROUP",
    "TAGS",
    "VERSION",
    "KERNEL",
    "CONFIG",
    "CERTIFICATE",
    "LABELS",
    "ID",
];

/// `2 up, tcp:22 down`.
fn checks(host: &Value) -> String {
    let all = host.get("checks").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let is = |state: &'static str| {
        all.iter().filter(move |one| one.get("state").and_then(Value::as_str) == Some(state))
    };
    let down = is("down").filter_map(|one| one.get("check").and_then(Value::as_str));
    let down: Vec<String> = down.map(|check| format!("{check} down")).collect();
    let counted = [(is("up").count(), "up"), (is("failing").count(), "failing")];
    let counted = counted.iter().filter(|(count, _)| 0 < *count);
    let parts = counted.map(|(count, word)| format!("{count} {word}")).chain(down);
    let parts: Vec<String> = parts.collect();
    if parts.is_empty() { "-".to_owned() } else { parts.join(", ") }
}

/// Which version of the fleet's configuration it runs, and whether it should run another.
pub(crate) fn configuration(of: Option<&Value>) -> String {
    let Some(of) = of.filter(|of| of.is_object()) else { return "-".to_owned() };
    if of.get("managed").and_then(Value::as_bool) != Some(true) {
        return "unmanaged".to_owned();
    }
    let number = |key: &str| of.get(key).and_then(Value::as_u64).unwrap_or_default();
    let version = number("version");
    match (of.get("lags").and_then(Value::as_bool), number("refused")) {
        (Some(true), refused) if refused == number("wanted") => {
            format!("{version} (refuses {refused})")
        }
        (Some(true), _) => format!("{version} (lags {})", number("wanted")),
        _ if of.get("proven").and_then(Value::as_bool) == Some(false) => {
            format!("{version} (trying)")
        }
        _ => version.to_string(),
    }
}

/// How long the certificate is good.
fn certificate(host: &Value, now_s: u64) -> String {
    if host.get("revoked").and_then(Value::as_bool) == Some(true) {
        return "revoked".to_owned();
    }
    let Some(end_s) = host.get("certificate_expires_s").and_then(Value::as_u64) else {
        return "-".to_owned();
    };
    match end_s.saturating_sub(now_s) {
        0 => "expired".to_owned(),
        left_s if left_s < 3_600 => format!("{}min", left_s.div_ceil(60)),
        left_s if left_s < 172_800 => format!("{}h", left_s / 3_600),
        left_s => format!("{}d", left_s / 86_400),
    }
}

#[expect(clippy::disallowed_methods, reason = "the command is where time comes from")]
fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn row(host: &Value, now_s: u64) -> Vec<String> {
    let text = |key: &str| host.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let labels = host.get("labels").and_then(Value::as_object).map(|labels| {
        let pair = |(k, v): (&String, &Value)| format!("{k}={}", v.as_str().unwrap_or_default());
        labels.iter().map(pair).collect::<Vec<_>>().join(",")
    });
    let tags = host
        .get("tags")
        .and_then(Value::as_array)
        .map(|tags| tags.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(","));
    vec![
        text("instance"),
        text("state"),
        checks(host),
        text("group"),
        tags.unwrap_or_default(),
        text("version"),
        text("kernel"),
        configuration(host.get("configuration")),
        certificate(host, now_s),
        labels.unwrap_or_default(),
        text("id"),
    ]
}

/// Percent-encoding of a query string's value.
pub(crate) fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

const WAIT: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_survive_the_query_string() {
        assert_eq!(encoded("sum(a{b=\"ü\"})+1"), "sum%28a%7Bb%3D%22%C3%BC%22%7D%29%2B1");
    }

    #[test]
    fn a_host_is_a_row() {
        let mut host = serde_json::json!({
            "id": "07", "instance": "web1", "state": "late", "version": "0.1.0", "kernel": "6.18",
            "labels": {"site": "berlin"}, "certificate_expires_s": 2_600_000, "group": "web",
            "tags": ["eu", "new"], "checks": [
                { "check": "tcp:22", "state": "down" }, { "check": "tcp:80", "state": "up" }],
        });
        let printed = |host: &Value, now_s: u64| row(host, now_s).join("|");
        assert_eq!(
            printed(&host, 0),
            "web1|late|1 up, tcp:22 down|web|eu,new|0.1.0|6.18|-|30d|site=berlin|07"
        );
        let mut of = serde_json::json!({"managed": true, "version": 3, "proven": true});
        assert_eq!(configuration(Some(&of)), "3");
        (of["wanted"], of["lags"]) = (4.into(), true.into());
        assert_eq!(configuration(Some(&of)), "3 (lags 4)");
        of["refused"] = 4.into();
        assert_eq!(configuration(Some(&of)), "3 (refuses 4)");
        assert_eq!(configuration(Some(&serde_json::json!({"managed": false}))), "unmanaged");
        assert!(
            printed(&host, 2_599_000).contains("|17min|")
                && printed(&host, 1 << 40).contains("expired")
        );
        host["revoked"] = true.into();
        assert!(printed(&host, 0).contains("|revoked|"));
    }
}
