//! A whole agent (both threads, real /proc, loopback UDP) against a broker that keeps what it
//! hears in memory: enrolment, rows, acknowledgements, a broker that dies, a clean stop.

#![expect(clippy::unwrap_used, reason = "a broken test may panic; its helpers are no tests")]

mod broker;

use broker::{Broker, config, config_with, fresh_dir, open, wall_s};
use strobe_agent::run::{Agent, AgentError};
use strobe_wire::ids::HostId;
use strobe_wire::message::{Message, encode};
use strobe_wire::pki::{Identity, Role, Subject, Token};

#[test]
fn a_host_enrols_sends_and_stops_and_the_next_start_needs_no_token() {
    let dir = fresh_dir("enrols");
    let mut broker = Broker::new();
    let unenrolled = Agent::start(&config(&dir, broker.addr(), None));
    assert!(matches!(unenrolled, Err(AgentError::NoToken)));
    for life in 1..=2 {
        broker.stored.clear();
        let token = (life == 1).then_some(broker.token);
        let agent = Agent::start(&config(&dir, broker.addr(), token.as_ref())).unwrap();
        broker.serve(|broker| 20 < broker.through());
        let status = agent.status();
        assert!(status.streaming && 0 < status.acknowledged_seq, "{status:?}");
        assert_eq!(status.unsendable, 0);
        let stopping = std::thread::spawn(|| agent.stop());
        broker.serve(|_| stopping.is_finished());
        stopping.join().unwrap().unwrap();
        assert_eq!(broker.hellos.len(), life);
        assert_eq!(broker.stored[&1], "start");
        let (last, what) = broker.stored.last_key_value().unwrap();
        assert_eq!(
            (broker.through(), what.as_str()),
            (*last, "stop"),
            "no holes, and the last word"
        );
        for section in ["host", "cpu", "net"] {
            assert!(broker.stored.values().any(|what| what == section), "{section}");
        }
    }
    assert_eq!(broker.hellos[0].host, broker.hellos[1].host);
    assert_ne!(broker.hellos[0].boot, broker.hellos[1].boot);
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn what_a_dead_broker_did_not_acknowledge_is_sent_again() {
    let dir = fresh_dir("resend");
    let mut broker = Broker::new();
    let token = broker.token;
    broker.acknowledges = false;
    let agent = Agent::start(&config(&dir, broker.addr(), Some(&token))).unwrap();
    broker.serve(|broker| 20 < broker.through());
    // It acknowledged nothing and forgets everything.
    let before = broker.through();
    let began_ns = strobe_agent::clock::monotonic_ns();
    broker.restart();
    broker.stored.clear();
    broker.acknowledges = true;
    broker.serve(|broker| before + 20 < broker.through());
    let took_ns = strobe_agent::clock::monotonic_ns() - began_ns;
    assert!(took_ns < 10_000_000_000, "the restart is noticed before the silence: {took_ns} ns");
    assert_eq!(broker.stored[&1], "start", "from the very first frame on");
    assert_eq!(agent.status().connections, 2);
    // This time it remembers what it stored and did not acknowledge: nothing comes again.
    broker.acknowledges = false;
    let before = broker.through();
    broker.serve(|broker| before + 20 < broker.through());
    broker.repeated = 0;
    let before = broker.through();
    broker.restart();
    broker.acknowledges = true;
    broker.serve(|broker| before + 20 < broker.through());
    assert_eq!(broker.repeated, 0);
    let stopping = std::thread::spawn(|| agent.stop());
    broker.serve(|_| stopping.is_finished());
    stopping.join().unwrap().unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
}

/// Serves for ten ticks, and says how many of them the sampler's thread sent itself.
fn ten_ticks(broker: &mut Broker, agent: &Agent) -> u64 {
    let (before, end) = (agent.status().quiet_ticks, broker.hellos.len());
    let until = strobe_agent::clock::monotonic_ns() + 1_000_000_000;
    broker.serve(|_| until < strobe_agent::clock::monotonic_ns());
    assert_eq!(broker.hellos.len(), end, "one connection");
    agent.status().quiet_ticks - before
}

#[test]
fn the_sampler_sends_while_all_is_well_and_the_network_thread_when_it_is_not() {
    let dir = fresh_dir("quiet");
    let mut broker = Broker::new();
    let token = broker.token;
    let agent = Agent::start(&config(&dir, broker.addr(), Some(&token))).unwrap();
    for round in 1..=2 {
        // After a silence it rests with the thirtieth good tick.
        let rested = agent.status().quiet_ticks;
        broker.serve(|_| rested + 5 < agent.status().quiet_ticks);
        let acknowledged = agent.status().acknowledged_seq;
        let quiet = ten_ticks(&mut broker, &agent);
        assert!((5..=11).contains(&quiet), "{quiet} of ten ticks");
        assert!(acknowledged + 20 < agent.status().acknowledged_seq);
        // Nobody answers: the sampler goes on, the network's thread notices and dials again.
        let (before, last) = (agent.status().quiet_ticks, broker.through());
        broker.restart();
        let until = strobe_agent::clock::monotonic_ns() + 1_000_000_000;
        while strobe_agent::clock::monotonic_ns() < until {
            std::thread::yield_now();
        }
        assert!(agent.status().quiet_ticks - before <= 7, "it is the other thread's turn");
        broker.serve(|broker| last + 20 < broker.through());
        assert_eq!(
            (broker.hellos.len(), agent.status().connections),
            (1 + round, 1 + round as u64)
        );
        assert_eq!(broker.stored.len() as u64, broker.through(), "no hole");
    }
    let stopping = std::thread::spawn(|| agent.stop());
    broker.serve(|_| stopping.is_finished());
    stopping.join().unwrap().unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn certificates_change_under_load_and_nothing_is_lost_or_doubled() {
    let dir = fresh_dir("renews");
    let mut broker = Broker::new();
    let token = broker.token;
    broker.renew_after = Some(40);
    let agent = Agent::start(&config(&dir, broker.addr(), Some(&token))).unwrap();
    broker.serve(|broker| 5 <= broker.renewed && 230 < broker.through());
    let stopping = std::thread::spawn(|| agent.stop());
    broker.serve(|_| stopping.is_finished());
    stopping.join().unwrap().unwrap();
    let last = *broker.stored.last_key_value().unwrap().0;
    assert_eq!((broker.through(), broker.repeated), (last, 0), "no hole, nothing twice");
    assert!(broker.stored.values().all(|what| what != "loss"), "and nothing was given up");
    let connections = usize::try_from(broker.renewed).unwrap() + 1;
    assert_eq!((broker.hellos.len(), broker.ends_s.len()), (connections, connections));
    assert!(broker.ends_s.is_sorted_by(|a, b| a < b), "each with the newest: {:?}", broker.ends_s);
    let kept = Identity::load(&dir, Role::Agent).unwrap().unwrap();
    let kept_s = strobe_wire::pki::expires_s(&kept.certificate_der).unwrap();
    assert!(*broker.ends_s.last().unwrap() <= kept_s, "and the newest is kept");
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn a_certificate_that_is_refused_is_replaced_with_a_token_and_a_bad_token_changes_nothing() {
    let dir = fresh_dir("anew");
    let mut broker = Broker::new();
    let token = broker.token;
    let stop = |broker: &mut Broker, agent: Agent| {
        let stopping = std::thread::spawn(|| agent.stop());
        broker.serve(|_| stopping.is_finished());
        stopping.join().unwrap().unwrap();
    };
    let agent = Agent::start(&config(&dir, broker.addr(), Some(&token))).unwrap();
    broker.serve(|broker| 5 < broker.through());
    stop(&mut broker, agent);
    // The host was away for longer than its certificate lived.
    let kept = Identity::load(&dir, Role::Agent).unwrap().unwrap();
    let subject = kept.subject().unwrap();
    let expired = broker.ca.issue(&subject, wall_s() - 10_000, 100).unwrap();
    expired.save(&dir).unwrap();
    let agent = Agent::start(&config(&dir, broker.addr(), None)).unwrap();
    broker.serve(|_| !agent.status().last_error.is_empty());
    let why = agent.status().last_error;
    assert!(why.contains("has expired") && why.contains("strobe token create"), "{why}");
    stop(&mut broker, agent);
    let wrong = Token::create(broker.ca.fingerprint()).unwrap();
    let agent = Agent::start(&config(&dir, broker.addr(), Some(&wrong))).unwrap();
    broker.serve(|_| 1 < agent.status().failures);
    assert!(!agent.is_finished(), "it goes on and says why");
    stop(&mut broker, agent);
    assert_eq!(Identity::load(&dir, Role::Agent).unwrap().unwrap(), expired);
    broker.stored.clear();
    let agent = Agent::start(&config(&dir, broker.addr(), Some(&token))).unwrap();
    broker.serve(|broker| 5 < broker.through());
    assert_eq!(broker.stored[&1], "start", "what waited while it enrolled is there");
    stop(&mut broker, agent);
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn a_redirect_is_followed() {
    let dir = fresh_dir("redirect");
    let (mut first, mut owner) = (Broker::new(), Broker::new());
    let subject = Subject { role: Role::Broker, host: HostId(2) };
    let identity = first.ca.issue(&subject, wall_s(), 3600).unwrap();
    (owner.socket, owner.link, owner.poll) = open(&identity, "127.0.0.1:0".parse().unwrap());
    first.redirect = Some(owner.addr().to_string());
    let token = first.token;
    let agent = Agent::start(&config(&dir, first.addr(), Some(&token))).unwrap();
    first.serve(|_| agent.status().broker == owner.addr().to_string());
    owner.serve(|owner| 5 < owner.through());
    assert_eq!((first.hellos.len(), owner.hellos.len()), (0, 1));
    let stopping = std::thread::spawn(|| agent.stop());
    owner.serve(|_| stopping.is_finished());
    stopping.join().unwrap().unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn a_refused_token_ends_the_agent_and_leaves_no_identity() {
    let dir = fresh_dir("refused");
    let mut broker = Broker::new();
    let wrong = Token::create(broker.ca.fingerprint()).unwrap();
    let agent = Agent::start(&config(&dir, broker.addr(), Some(&wrong))).unwrap();
    broker.serve(|_| agent.is_finished());
    let why = agent.wait().unwrap_err().to_string();
    assert!(why.contains("the token has expired"), "{why}");
    assert!(!dir.join("identity.pem").exists());
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn a_full_ring_owns_up_to_what_it_lost() {
    let dir = fresh_dir("loss");
    let mut broker = Broker::new();
    let token = broker.token;
    let mut small = config(&dir, broker.addr(), Some(&token));
    small.ring_slots = 16;
    small.spool_bytes = 0;
    broker.acknowledges = false;
    let agent = Agent::start(&small).unwrap();
    broker.serve(|broker| 16 <= broker.stored.len());
    let start = broker.stored.len();
    // A second without acknowledgements: the ring stays full and the sampler goes on.
    let end = strobe_agent::clock::monotonic_ns() + 1_000_000_000;
    broker.serve(|_| end < strobe_agent::clock::monotonic_ns());
    assert_eq!(broker.stored.len(), start);
    broker.acknowledges = true;
    let last = *broker.stored.keys().last().unwrap();
    // An acknowledgement goes out with the next word the broker hears; it must speak up itself.
    let (conn, stream) = *broker.conversations.keys().last().unwrap();
    let ack = Message::Ack { boot: broker.hellos[0].boot, seq: last };
    broker.link.send(conn, stream, &mut [encode(&ack)]).unwrap();
    broker.serve(|broker| broker.stored.values().any(|what| what == "loss"));
    let stopping = std::thread::spawn(|| agent.stop());
    broker.serve(|_| stopping.is_finished());
    stopping.join().unwrap().unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
}

fn until_ms(ms: u64) -> impl FnMut() -> bool {
    let end = strobe_agent::clock::monotonic_ns() + ms * 1_000_000;
    move || end < strobe_agent::clock::monotonic_ns()
}

/// A broker that is away for longer than the ring lasts, again and again, and an agent that is stopped and
/// started meanwhile: every frame of both lives comes, each boot's in order, and what is live comes first.
#[test]
fn what_the_ring_cannot_hold_waits_on_the_disk_and_comes_beside_what_is_live() {
    let dir = fresh_dir("spool");
    let mut broker = Broker::new();
    let token = broker.token;
    let mut small = config(&dir, broker.addr(), Some(&token));
    small.ring_slots = 128;
    let agent = Agent::start(&small).unwrap();
    broker.serve(|broker| 10 < broker.through());
    let first = broker.hellos[0].boot;
    // Gone: 128 slots are full after three seconds or four.
    let addr = broker.addr();
    let any = "127.0.0.1:0".parse().unwrap();
    (broker.socket, broker.link, broker.poll) = open(&broker.identity, any);
    let mut over = until_ms(7_000);
    while !over() {
        std::thread::yield_now();
    }
    assert!(dir.join("spool").is_dir(), "it waits on the disk");
    agent.stop().unwrap();
    let told = broker.through();
    let agent = Agent::start(&small).unwrap();
    let mut over = until_ms(3_000);
    while !over() {
        std::thread::yield_now();
    }
    broker.stored.clear();
    (broker.socket, broker.link, broker.poll) = open(&broker.identity, addr);
    broker.conversations.clear();
    broker.serve(|broker| 10 < broker.through() && !dir.join("spool").exists());
    let second = broker.hellos.last().unwrap().boot;
    let of = |boot| -> Vec<u64> {
        let seqs = broker.replayed.iter().filter(|(of, ..)| *of == boot).map(|(_, seq, _)| *seq);
        seqs.collect()
    };
    let (old, new) = (of(first), of(second));
    assert_eq!(broker.replayed.len(), old.len() + new.len());
    let whole: Vec<u64> = (told + 1..=*old.last().unwrap()).collect();
    let repeated = old.iter().filter(|seq| **seq <= told).count();
    assert_eq!(old[repeated..], whole, "the first life, in order, without a hole");
    assert!(100 < whole.len(), "{}", whole.len());
    let last = broker.replayed.iter().rfind(|(of, ..)| *of == first).unwrap();
    assert_eq!(last.2, "stop", "to its last word");
    assert_eq!(new, (1..=*new.last().unwrap()).collect::<Vec<_>>(), "and the second");
    assert!(broker.stored.values().all(|what| what != "loss"), "nothing was given up");
    assert!(broker.stored.values().any(|what| what == "spool"), "and it is told");
    let stopping = std::thread::spawn(|| agent.stop());
    broker.serve(|_| stopping.is_finished());
    stopping.join().unwrap().unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
}

/// A host whose links have other names each half second, and a broker that is away for twenty of these: each row
/// comes with the schema it was made with, whatever has been outgrown since.
#[test]
fn rows_of_sets_that_are_long_gone_come_with_their_schemas() {
    let (sets, unsendable, told) = after_churn("schemas", 60, 20, 500);
    assert!(10 < sets, "{sets} sets of links");
    assert_eq!((unsendable, told), (0, 0), "nothing was given up");
}

/// More columns than are kept for rows that wait: what cannot be told is owned up to, and what is behind it goes on.
#[test]
fn a_row_whose_schema_is_gone_is_told_as_a_loss() {
    let (_, unsendable, told) = after_churn("no-schema", 600, 12, 250);
    assert!(0 < unsendable && 0 < told, "{unsendable} rows without a schema, {told} told");
}

/// So many links that all get other names so often while the broker is away. Once all is with it: how many sets
/// it was told of, how many rows nobody had a schema for, how many losses were told.
fn after_churn(name: &str, count: usize, turns: usize, turn_ms: u64) -> (usize, u64, usize) {
    let dir = fresh_dir(name);
    let tree = fresh_dir(&format!("{name}-proc"));
    std::fs::create_dir_all(tree.join("net")).unwrap();
    let links = |turn: usize| {
        let mut text = "a|b\nc|d\n".to_owned();
        for link in 0..count {
            text += &format!("l{turn}x{link}: 1 1 0 0 0 0 0 0 2 2 0 0 0 0 0 0\n");
        }
        // In place: the file is kept open.
        std::fs::write(tree.join("net/dev"), text).unwrap();
    };
    links(0);
    let mut broker = Broker::new();
    let token = broker.token;
    // So large that it is the schemas and not the ring that run out.
    let more = [format!("--procfs={}", tree.display()), "--ring-slots=4096".to_owned()];
    let agent = Agent::start(&config_with(&dir, broker.addr(), Some(&token), &more)).unwrap();
    broker.serve(|broker| 40 < broker.through());
    let told = broker.through();
    let addr = broker.addr();
    let any = "127.0.0.1:0".parse().unwrap();
    (broker.socket, broker.link, broker.poll) = open(&broker.identity, any);
    for turn in 1..=turns {
        links(turn);
        let mut over = until_ms(turn_ms);
        while !over() {
            std::thread::yield_now();
        }
    }
    (broker.socket, broker.link, broker.poll) = open(&broker.identity, addr);
    broker.conversations.clear();
    broker.serve(|broker| told + 300 < broker.through() && !dir.join("spool").exists());
    let sets = broker.sections.values().filter(|section| *section == "net").count();
    let unsendable = agent.status().unsendable;
    let stopping = std::thread::spawn(|| agent.stop());
    broker.serve(|_| stopping.is_finished());
    stopping.join().unwrap().unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
    std::fs::remove_dir_all(&tree).unwrap();
    (sets, unsendable, broker.stored.values().filter(|what| *what == "loss").count())
}
