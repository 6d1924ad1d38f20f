//! A dashboard and a broker: in one process, and over QUIC with an enrolment.

#![expect(clippy::unwrap_used, reason = "tests may panic")]

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use strobe_broker::Broker;
use strobe_viz::backend::{Backend, Caller};
use strobe_viz::link_run::{BrokerLink, Enrolment, LinkSettings};
use strobe_viz::{Config, Viz};
use strobe_wire::message::ApiRequest;
use strobe_wire::pki::{Identity, Role};
use strobe_wire::settings::Settings;

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("viz-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
    fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

fn broker(folder: &Folder, more: &[&str]) -> Broker {
    let dir = folder.join("broker").display().to_string();
    let args = [&["--dir", &dir, "--broker-listen", "127.0.0.1:0"], more].concat();
    let args: Vec<String> = args.into_iter().map(str::to_owned).collect();
    let settings = Settings::load(strobe_broker::config::KEYS, None, &|_| None, &args).unwrap();
    Broker::start(strobe_broker::Config::of(&settings, None, false).unwrap()).unwrap()
}

fn viz(folder: &Folder, backend: Backend) -> Viz {
    let config = Config::plain("127.0.0.1:0".parse().unwrap(), folder.join("viz"));
    Viz::start(config, backend).unwrap()
}

fn get(addr: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_broker_in_the_same_process_answers() {
    let folder = Folder::new("local");
    let broker = broker(&folder, &[]);
    let viz = viz(&folder, Backend::Local(broker.clone()));
    let hosts = get(viz.addr(), "/api/strobe/v1/hosts");
    assert!(hosts.starts_with("HTTP/1.1 200 OK\r\n") && hosts.ends_with("[]"), "{hosts}");
    assert!(get(viz.addr(), "/-/ready").starts_with("HTTP/1.1 200 "));
    viz.stop();
    broker.stop();
}

#[test]
fn a_dashboard_enrols_asks_over_quic_and_says_when_the_broker_is_gone() {
    let folder = Folder::new("remote");
    let broker = broker(&folder, &[]);
    let token = broker.enrolment_token(Duration::from_secs(60)).unwrap();
    let dir = folder.join("link");
    std::fs::create_dir_all(&dir).unwrap();
    let address = broker.quic_addr().to_string();
    let settings = LinkSettings { broker: address, token: Some(token), dir };
    let (link, remote) = BrokerLink::start(settings.clone()).unwrap();
    let viz = viz(&folder, Backend::Remote(remote));
    let ready = (0..2000).any(|_| get(viz.addr(), "/-/ready").starts_with("HTTP/1.1 200 "));
    assert!(ready, "it enrols and connects");
    let hosts = get(viz.addr(), "/api/strobe/v1/hosts");
    assert!(hosts.starts_with("HTTP/1.1 200 OK\r\n") && hosts.ends_with("[]"), "{hosts}");
    broker.stop();
    let gone = (0..20_000).any(|_| get(viz.addr(), "/-/ready").starts_with("HTTP/1.1 503 "));
    assert!(gone, "it sees the end");
    assert!(get(viz.addr(), "/api/strobe/v1/hosts").starts_with("HTTP/1.1 503 "));
    viz.stop();
    drop(link);
    // The identity is kept: no token is needed again.
    drop(BrokerLink::start(LinkSettings { token: None, ..settings }).unwrap());
}

/// It went on trying for ever, and nobody was told.
#[test]
fn a_token_of_another_broker_is_no_secret_and_no_loop() {
    let folder = Folder::new("foreign");
    let broker = broker(&folder, &[]);
    let token = broker.enrolment_token(Duration::from_secs(60)).unwrap();
    let foreign = strobe_wire::pki::Token { fingerprint: [7; 32], ..token };
    let dir = folder.join("link");
    std::fs::create_dir_all(&dir).unwrap();
    let address = broker.quic_addr().to_string();
    let settings = LinkSettings { broker: address, token: Some(foreign), dir };
    let (link, remote) = BrokerLink::start(settings).unwrap();
    assert_eq!(link.enrolment(Duration::from_secs(20)), Enrolment::Refused);
    let viz = viz(&folder, Backend::Remote(remote));
    let ready = get(viz.addr(), "/-/ready");
    assert!(ready.contains("the token is not of the broker at this address"), "{ready}");
    viz.stop();
    drop(link);
    broker.stop();
}

/// What `/metrics` of the broker says.
fn metric(broker: &Broker, name: &str) -> u64 {
    let request = ApiRequest { path: "/metrics".to_owned(), ..ApiRequest::default() };
    let text = String::from_utf8(broker.api(request).body).unwrap();
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("{name} in {text}")).parse().unwrap()
}

#[test]
fn certificates_of_both_sides_change_every_second_and_no_call_is_lost() {
    let folder = Folder::new("renew");
    let broker = broker(&folder, &["--certificate-life", "3s"]);
    let token = broker.enrolment_token(Duration::from_secs(60)).unwrap();
    let dir = folder.join("link");
    std::fs::create_dir_all(&dir).unwrap();
    let address = broker.quic_addr().to_string();
    let settings = LinkSettings { broker: address, token: Some(token), dir: dir.clone() };
    let (link, remote) = BrokerLink::start(settings).unwrap();
    wait("it enrols and connects", &|| remote.is_connected());
    let first = Identity::load(&dir, Role::Viz).unwrap().unwrap();
    let ask = || ApiRequest { path: "/api/strobe/v1/hosts".to_owned(), ..ApiRequest::default() };
    let mut calls = 0;
    while metric(&broker, "strobe_broker_certificates_renewed_total") < 4 {
        calls += 1;
        assert!(calls < 10_000, "renewals go on");
        let answer = remote.api(ask(), &Caller::default());
        assert_eq!(answer.status, 200, "call {calls}: {}", String::from_utf8_lossy(&answer.body));
        pause(5);
    }
    assert_eq!(metric(&broker, "strobe_broker_certificates_expired_total"), 0);
    wait("the connection before is left", &|| metric(&broker, "strobe_broker_subscribers") == 1);
    assert_ne!(Identity::load(&dir, Role::Viz).unwrap().unwrap(), first, "the newest is kept");
    drop(link);
    broker.stop();
}

#[test]
fn the_broker_stops_working_for_a_caller_that_hung_up() {
    let folder = Folder::new("hang-up");
    let broker = broker(&folder, &[]);
    let token = broker.enrolment_token(Duration::from_secs(60)).unwrap();
    let dir = folder.join("link");
    std::fs::create_dir_all(&dir).unwrap();
    let address = broker.quic_addr().to_string();
    let settings = LinkSettings { broker: address, token: Some(token), dir };
    let (link, remote) = BrokerLink::start(settings).unwrap();
    wait("it enrols and connects", &|| remote.is_connected());
    let caller = Caller::default();
    let call = std::thread::spawn({
        let caller = caller.clone();
        // A billion additions, on an empty store: seconds.
        let query = "query=sum_over_time(vector(1)[25h:1s])&start=1&end=11000&step=1";
        let path = "/api/v1/query_range".to_owned();
        let request = ApiRequest { path, query: query.to_owned(), ..ApiRequest::default() };
        let request = ApiRequest { method: "GET".to_owned(), ..request };
        move || remote.api(request, &caller)
    });
    pause(200);
    assert!(!call.is_finished(), "the query is a long one");
    caller.leave();
    assert_eq!(call.join().unwrap().status, 503);
    wait("the broker notices", &|| metric(&broker, "strobe_broker_queries_abandoned_total") == 1);
    drop(link);
    broker.stop();
}

fn wait(what: &str, ready: &dyn Fn() -> bool) {
    let mut patience = 4_000;
    while !ready() {
        patience -= 1;
        assert!(0 < patience, "not in 20 s: {what}");
        pause(5);
    }
}

#[expect(clippy::disallowed_methods, reason = "certificates end on the real clock")]
fn pause(ms: u64) {
    std::thread::sleep(Duration::from_millis(ms));
}
