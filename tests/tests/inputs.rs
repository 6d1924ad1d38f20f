//! Other inputs from end to end: a real node_exporter that is scraped and dies, commands that hang, StatsD,
//! remote-write and a collector of the user's own, through an agent into a broker, and out by PromQL.

use std::io::Write;
use std::net::{TcpStream, UdpSocket};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::process::{Child, Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};
use strobe_broker::remote_write::encode;
use strobe_broker::store::RemoteSeries;
use strobe_tests::{Folder, Process, free_address, query, run, wait};
use strobe_wire::schema::Labels;

/// node_exporter, ended by its own pid.
struct Exporter(Child);

impl Exporter {
    fn start(address: &str) -> Self {
        let listen = format!("--web.listen-address={address}");
        let mut command = Command::new("prometheus-node-exporter");
        command.arg(listen).stdout(Stdio::null()).stderr(Stdio::null());
        Self(command.spawn().expect("prometheus-node-exporter is installed (scripts/setup test)"))
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The value of the only series of an instant query.
fn value(viz: &str, expression: &str) -> Option<f64> {
    let all = query(viz, expression);
    let [one] = &all[..] else { return None };
    one["value"][1].as_str()?.parse().ok()
}

/// Processes with this word on their command line.
fn processes(word: &str) -> usize {
    let all = std::fs::read_dir("/proc").expect("there is /proc").flatten();
    let lines = all.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    lines.filter(|line| line.split(|byte| *byte == 0).any(|part| part == word.as_bytes())).count()
}

#[expect(clippy::disallowed_methods, reason = "a real broker stores real times")]
fn now_ms() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    i64::try_from(now.as_millis()).expect("before the end of time")
}

fn write_remotely(address: &str, at_ms: i64) -> String {
    let pairs = [("__name__", "pushed"), ("instance", "far:1"), ("job", "app"), ("x", "y")];
    let (labels, samples) = (Labels::of(&pairs), vec![(at_ms - 1000, 4.0), (at_ms, 4.5)]);
    let body = encode(&[RemoteSeries { labels, samples }]);
    let head = format!(
        "POST /api/v1/write HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/x-protobuf\r\n\
         Content-Encoding: snappy\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.write_all(&[head.into_bytes(), body].concat()).expect("it reads");
    let mut answer = [0; 12];
    std::io::Read::read_exact(&mut stream, &mut answer).expect("it answers");
    String::from_utf8_lossy(&answer).into_owned()
}

fn scraped(viz: &str, exporter_at: &str) {
    let cores = "count(node_cpu_seconds_total{mode=\"idle\",job=\"JOB\"})";
    let of = |job: &str| value(viz, &cores.replace("JOB", job));
    assert_eq!(of("web"), of("node"), "the same machine, twice");
    let by = query(viz, "count by (instance) (node_load1)");
    assert_eq!(by.len(), 2, "two instances of one series: {by:?}");
    let (host, guest) = ("up{instance=\"watched\"}", format!("up{{instance=\"{exporter_at}\"}}"));
    assert_eq!((query(viz, host).len(), query(viz, &guest).len()), (0, 1));
}

fn commands(viz: &str) {
    wait("commands are read", 20, || value(viz, "from_exec{instance=\"watched\"}") == Some(7.0));
    wait("a plugin is read", 20, || {
        let used = value(viz, "strobe_exec_value{command=\"disk\",label=\"used\",unit=\"%\"}");
        used == Some(12.0) && value(viz, "strobe_exec_status{command=\"disk\"}") == Some(1.0)
    });
    wait("a command that hangs is told", 20, || {
        value(viz, "strobe_exec_up{command=\"hang\"}") == Some(0.0)
    });
    assert!(query(viz, "a{instance=\"watched\"}").is_empty(), "half a reading is none");
}

fn statsd(viz: &str, address: &str, door: &str) {
    let udp = UdpSocket::bind("127.0.0.1:0").expect("loopback");
    let unix = UnixDatagram::unbound().expect("a socket");
    wait("StatsD is heard", 20, || {
        udp.send_to(b"web.hits:2|c|#env:prod\nweb.time:300|ms\nbroken", address).expect("loopback");
        let sent = unix.send_to(b"depth:5|g\ndepth:-1|g", door);
        let hits = value(viz, "web_hits{env=\"prod\",instance=\"watched\"}");
        sent.is_ok()
            && hits.is_some_and(|hits| 2.0 <= hits)
            && value(viz, "web_time{quantile=\"0.99\"}") == Some(0.3)
            && value(viz, "depth") == Some(4.0)
    });
}

fn pushed_and_collected(viz: &str, address: &str, socket: &str) {
    let at_ms = now_ms();
    assert_eq!(write_remotely(address, at_ms), "HTTP/1.1 204");
    wait("what was pushed is there", 20, || {
        let all = query(viz, "pushed{instance=\"far:1\",job=\"app\"}[1m]");
        let [one] = &all[..] else { return false };
        let times: Vec<_> = one["values"].as_array().into_iter().flatten().collect();
        times.len() == 2 && times[1][0].as_f64() == Some(at_ms as f64 / 1000.0)
    });

    let mut collector = UnixStream::connect(socket).expect("it listens");
    collector
        .write_all(b"mine{job=\"batch\",a=\"1\"} 3\nmine{a=\"2\"} 4\n# EOF\n")
        .expect("it reads");
    wait("a collector is heard", 20, || {
        value(viz, "mine{job=\"batch\",instance=\"watched\"}") == Some(3.0)
    });
    assert_eq!(value(viz, "mine{job=\"node\",a=\"2\"}"), Some(4.0));
}

#[test]
fn every_input_is_stored_with_labels_of_its_own() {
    let (dir, viz, broker) = (Folder::new("inputs"), free_address(), free_address());
    let base = dir.path().join("strobe").display().to_string();
    let args = ["up", "--no-agent", "--dir", &base, "--listen", &viz, "--broker-listen", &broker];
    let mut strobe = Process::start("strobe", &args);
    strobe.line();
    let (ok, token, error) = run("strobe", &["token", "create", "--dir", &base]);
    assert!(ok, "{error}");

    let (exporter_at, statsd_at, write_at) = (free_address(), free_address(), free_address());
    let exporter = Exporter::start(&exporter_at);
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (own, socket, door) = (path("agent"), path("socket"), path("statsd"));
    let scrape = format!("http://{exporter_at}/metrics interval=1s timeout=900ms label.site=b");
    // It hangs, and so does what it starts, which holds its output open.
    let nap = format!("98765.{}", std::process::id());
    let hang =
        format!("interval=1s timeout=300ms /bin/sh -c 'echo a 1; sleep {nap} & sleep {nap}'");
    // Signals reach what a command starts.
    let good = "interval=1s /bin/sh -c 'sleep 60 & kill $!; wait; echo \"from_exec{a=\\\"b\\\"} 7\"; echo $STROBE_TOKEN'";
    let plugin = "interval=1s format=nagios /bin/sh -c \"echo 'DISK | used=12%;80,9;90'; exit 1\"";
    let env = format!("udp://{statsd_at},unix://{door}");
    let mut agent = Process::start_with(
        "strobe-agent",
        &[("STROBE_TOKEN", token.trim()), ("STROBE_STATSD", &env)],
        &[
            "--dir",
            &own,
            "--broker",
            &broker,
            "--instance",
            "watched",
            "--interval",
            "500ms",
            "--scrape.web",
            &scrape,
            "--exec.hang",
            &hang,
            "--exec.good",
            good,
            "--exec.disk",
            plugin,
            "--statsd-interval",
            "1s",
            "--remote-write",
            &write_at,
            "--socket",
            &socket,
        ],
    );
    wait("the host is there", 20, || !query(&viz, "node_load1{job=\"node\"}").is_empty());

    let web = format!("job=\"web\",instance=\"{exporter_at}\",site=\"b\"");
    wait("the exporter is up", 20, || value(&viz, &format!("up{{{web}}}")) == Some(1.0));
    scraped(&viz, &exporter_at);
    commands(&viz);
    statsd(&viz, &statsd_at, &door);
    pushed_and_collected(&viz, &write_at, &socket);

    drop(exporter);
    wait("the exporter is down", 20, || value(&viz, &format!("up{{{web}}}")) == Some(0.0));
    wait("its series have ended", 10, || query(&viz, "node_load1{job=\"web\"}").is_empty());
    assert_eq!(query(&viz, "node_load1{job=\"node\"}").len(), 1);
    wait("what was refused is told", 40, || {
        let bad = value(&viz, "strobe_input_refused_total{input=\"statsd\",why=\"malformed\"}");
        let failed = value(&viz, "strobe_input_refused_total{input=\"exec/hang\",why=\"failed\"}");
        bad.is_some_and(|bad| 1.0 <= bad) && failed.is_some_and(|failed| 5.0 <= failed)
    });
    let left = processes(&nap);
    assert!(left <= 2, "{left} of a command's processes outlived it");
    assert!(agent.terminate() && strobe.terminate(), "SIGTERM ends both well");
    wait("nothing is left of the commands", 5, || processes(&nap) == 0);
}
