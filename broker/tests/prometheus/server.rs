//! A Prometheus of our own: started, spoken to over HTTP/1.0, ended by its process id.

use serde_json::Value;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

#[derive(Debug)]
pub(crate) struct Prometheus {
    child: Child,
    address: String,
}

impl Prometheus {
    pub(crate) fn start(dir: &Path) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr());
        let port = port.expect("a free loopback port").port();
        let address = format!("127.0.0.1:{port}");
        std::fs::write(dir.join("prometheus.yml"), "global: {}\n").expect("a temporary file");
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", dir.join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", dir.join("theirs").display()))
            .arg(format!("--web.listen-address={address}"))
            .arg("--web.enable-remote-write-receiver")
            .arg("--log.level=error")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn();
        let child = child.unwrap_or_else(|error| {
            panic!("cannot start `prometheus` ({error}): install it, `apt-get install prometheus`")
        });
        let mut started = Self { child, address };
        started.wait();
        started
    }

    pub(crate) fn write(&self, body: &[u8]) -> (u16, String) {
        let head = format!(
            "POST /api/v1/write HTTP/1.0\r\nContent-Encoding: snappy\r\nContent-Type: \
             application/x-protobuf\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        self.exchange(&[head.as_bytes(), body].concat()).expect("Prometheus runs")
    }

    pub(crate) fn ask(&self, path: &str, query: &str) -> (u16, Value) {
        let request = format!("GET {path}?{query} HTTP/1.0\r\n\r\n");
        let (status, body) = self.exchange(request.as_bytes()).expect("Prometheus runs");
        let body = serde_json::from_str(&body).unwrap_or(Value::String(body));
        (status, body)
    }

    fn exchange(&self, request: &[u8]) -> std::io::Result<(u16, String)> {
        let mut stream = TcpStream::connect(&self.address)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        stream.write_all(request)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
        Ok((status, body.to_owned()))
    }

    #[expect(clippy::disallowed_methods, reason = "another process is waited for")]
    fn wait(&mut self) {
        for _ in 0..600 {
            if let Ok((200, _)) = self.exchange(b"GET /-/ready HTTP/1.0\r\n\r\n") {
                return;
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                panic!("prometheus ended at once: {status}");
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        panic!("prometheus was not ready within a minute");
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // `kill` and `wait` name the child by its id; nothing is left behind.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
