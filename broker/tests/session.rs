//! A broker on loopback and an agent made of the bare link: enrol, hello, frames, acknowledgements,
//! restarts.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

#[path = "support/peer.rs"]
mod peer;

use peer::{Peer, enrol, hello, row, wall_ms};
use std::path::{Path, PathBuf};
use std::time::Duration;
use strobe_broker::config::KEYS;
use strobe_broker::store::{Limits, MatchOp, Matcher, Scratch, TimeRange};
use strobe_broker::{Broker, Config, Update, control};
use strobe_wire::ids::HostId;
use strobe_wire::link::{Alpn, Dial};
use strobe_wire::message::{ApiRequest, Hello, Message, encode};
use strobe_wire::pki::Token;
use strobe_wire::schema::Labels;
use strobe_wire::settings::Settings;

const HOST: HostId = HostId(0xabc);

fn dir(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("strobe-session-{name}-{}", std::process::id()));
    drop(std::fs::remove_dir_all(&dir));
    dir
}

fn start(dir: &Path) -> Broker {
    let args = ["--dir", dir.to_str().unwrap(), "--broker-listen", "127.0.0.1:0"];
    let args: Vec<String> = args.iter().map(|a| (*a).to_owned()).collect();
    let settings = Settings::load(KEYS, None, &|_| None, &args).unwrap();
    Broker::start(Config::of(&settings, None, false).unwrap()).unwrap()
}

/// Times of series `x`, as a query sees them.
fn times(broker: &Broker) -> Vec<i64> {
    let limits = Limits { series_max: 100, samples_max: 100_000 };
    let range = TimeRange { start_ms: 0, end_ms: i64::MAX };
    let matcher = Matcher { name: "__name__".into(), op: MatchOp::Equal, value: "x".into() };
    let mut out = Vec::new();
    for part in broker.store().select(&[matcher], range, &limits).unwrap() {
        let mut visit = |labels: &Labels, times: &[i64], _: &[f64]| {
            assert_eq!((labels.value("job"), labels.value("instance")), (Some("node"), Some("a")));
            out.extend_from_slice(times);
            Ok(())
        };
        broker.store().scan(&part, range, &mut Scratch::new(&limits), &mut visit).unwrap();
    }
    out
}

fn operate(broker_dir: &Path, method: &str, path: &str, query: &str) -> (u16, String) {
    let request = ApiRequest {
        method: method.into(),
        path: path.into(),
        query: query.into(),
        ..ApiRequest::default()
    };
    let answer = control::ask(broker_dir, request, Duration::from_secs(5)).unwrap();
    (answer.status, String::from_utf8(answer.body).unwrap())
}

#[test]
fn what_is_acknowledged_is_there_once_after_a_restart() {
    let dir = dir("restart");
    let broker = start(&dir);
    let listening = broker.subscribe();
    let identity = enrol(&broker, &broker.enrolment_token(Duration::from_secs(60)).unwrap(), HOST);
    let identity = identity.unwrap();
    let base = wall_ms() - 60_000;
    let (mut agent, stored) = Peer::begin(&broker, &identity, hello(HOST, "a"));
    assert_eq!(stored, 0);
    for seq in 1..=20 {
        agent.frame(&row(HOST, seq, base + i64::try_from(seq).unwrap() * 1000));
    }
    agent.acked(20);
    let wanted: Vec<i64> = (1..=20).map(|n| base + n * 1000).collect();
    assert_eq!(times(&broker), wanted);
    let updates: Vec<_> =
        std::iter::from_fn(|| listening.recv_timeout(Duration::from_millis(200))).collect();
    assert!(matches!(updates.first(), Some(Update::Host(_))), "{updates:?}");
    let frames = updates.iter().filter(|u| matches!(u, Update::Frame(_))).count();
    assert_eq!(frames, 20);
    // The acknowledgement was lost: the agent comes back and sends half of it again.
    drop(agent);
    let (mut agent, stored) = Peer::begin(&broker, &identity, hello(HOST, "a"));
    assert_eq!(stored, 20);
    for seq in 11..=25 {
        agent.frame(&row(HOST, seq, base + i64::try_from(seq).unwrap() * 1000));
    }
    agent.acked(25);
    assert_eq!(broker.store().counts().samples, 2 * 25, "nothing is stored twice");
    broker.stop();
    drop(broker);

    let broker = start(&dir);
    let wanted: Vec<i64> = (1..=25).map(|n| base + n * 1000).collect();
    assert_eq!(times(&broker), wanted);
    let (mut agent, stored) = Peer::begin(&broker, &identity, hello(HOST, "a"));
    assert_eq!(stored, 25);
    for seq in 24..=26 {
        agent.frame(&row(HOST, seq, base + i64::try_from(seq).unwrap() * 1000));
    }
    agent.acked(26);
    let wanted: Vec<i64> = (1..=26).map(|n| base + n * 1000).collect();
    assert_eq!(times(&broker), wanted);
    let (status, hosts) = operate(&dir, "GET", "/api/strobe/v1/hosts", "");
    assert!(status == 200 && hosts.contains(r#""state":"fresh""#), "{hosts}");
    broker.stop();
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn a_token_is_good_once_and_only_for_agents_and_dashboards() {
    let dir = dir("token");
    let broker = start(&dir);
    let (status, text) = operate(&dir, "POST", "/api/strobe/v1/tokens", "lifetime_ms=60000");
    assert_eq!(status, 200, "{text}");
    let token: Token = text.trim().parse().unwrap();
    assert!(enrol(&broker, &token, HOST).is_ok());
    let replay = enrol(&broker, &token, HOST).unwrap_err();
    assert!(replay.contains("used before"), "{replay}");
    let guess = Token { secret: [7; 32], ..token };
    assert!(enrol(&broker, &guess, HOST).unwrap_err().contains("not known"));
    let (status, _) = operate(&dir, "POST", "/api/strobe/v1/tokens", "lifetime_ms=1");
    assert_eq!(status, 422);
    let (_, metrics) = operate(&dir, "GET", "/metrics", "");
    assert!(metrics.contains("strobe_broker_enrolled_total"), "{metrics}");
    broker.stop();
    std::fs::remove_dir_all(dir).unwrap();
}

/// Closed at once, refused with the reason, after a restart too; a token lets it in again.
#[test]
fn a_revoked_host_is_out_until_it_enrols_anew() {
    let dir = dir("revoked");
    let broker = start(&dir);
    let token = || broker.enrolment_token(Duration::from_secs(60)).unwrap();
    let (first, other) = (token(), token());
    let identity = enrol(&broker, &first, HOST).unwrap();
    let (mut agent, _) = Peer::begin(&broker, &identity, hello(HOST, "a"));
    let (_, hosts) = operate(&dir, "GET", "/api/strobe/v1/hosts", "");
    assert!(hosts.contains(r#""certificate_expires_s":1"#), "{hosts}");
    assert_eq!(operate(&dir, "POST", "/api/strobe/v1/revoke", "host=nobody").0, 404);
    let (status, said) = operate(&dir, "POST", "/api/strobe/v1/revoke", &format!("host={HOST}"));
    assert!(status == 200 && said.contains("revoked"), "{said}");
    assert_eq!(agent.message(Duration::from_secs(5)), None);
    let why = agent.closed.unwrap_or_default();
    assert!(why.contains("revoked by the operator"), "{why}");
    let (_, hosts) = operate(&dir, "GET", "/api/strobe/v1/hosts", "");
    assert!(hosts.contains(r#""revoked":true"#), "{hosts}");
    broker.stop();
    drop(broker);

    let broker = start(&dir);
    let dial = Dial::With(Alpn::Agent);
    let mut agent = Peer::dial(broker.quic_addr(), Some(identity), &dial);
    agent.send(encode(&Message::Hello(hello(HOST, "a"))));
    assert_eq!(agent.message(Duration::from_secs(5)), None);
    let why = agent.closed.unwrap_or_default();
    assert!(why.contains("revoked by the operator"), "{why}");
    let (_, metrics) = operate(&dir, "GET", "/metrics", "");
    assert!(metrics.contains("strobe_broker_certificate_expiry_seconds 1"), "{metrics}");
    let identity = enrol(&broker, &other, HOST).unwrap();
    drop(Peer::begin(&broker, &identity, hello(HOST, "a")));
    broker.stop();
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn a_liar_is_closed_and_told_why() {
    let dir = dir("liar");
    let broker = start(&dir);
    let token = broker.enrolment_token(Duration::from_secs(60)).unwrap();
    let identity = enrol(&broker, &token, HOST).unwrap();
    let dial = Dial::With(Alpn::Agent);
    let mut peer = Peer::dial(broker.quic_addr(), Some(identity), &dial);
    peer.send(encode(&Message::Hello(Hello { host: 99, ..hello(HOST, "a") })));
    assert_eq!(peer.message(Duration::from_secs(5)), None);
    let why = peer.closed.unwrap_or_default();
    assert!(why.contains("certificate"), "{why}");
    assert!(times(&broker).is_empty());
    broker.stop();
    std::fs::remove_dir_all(dir).unwrap();
}

/// A stop that knocked at the control socket by its name waited for ever once the name was gone.
#[test]
fn a_broker_stops_though_its_directory_is_gone() {
    let dir = dir("gone");
    let broker = start(&dir);
    std::fs::remove_dir_all(&dir).unwrap();
    let (done, stopped) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        broker.stop();
        done.send(()).unwrap();
    });
    stopped.recv_timeout(Duration::from_secs(20)).expect("it stops");
}
