//! Whose certificate is believed, for how long, and what the other side is told.

use super::*;

#[test]
fn enrolling_needs_no_certificate_but_the_right_fingerprint() {
    let (ca, foreign) = (authority(), authority());
    let mut pair = Pair::new(&server(&ca), &config(Side::Agent, None));
    pair.connect(&Dial::Enrol {
        fingerprint: Token::create(ca.fingerprint()).unwrap().fingerprint,
    });
    let (_, alpn, who) = pair.connected_at_server();
    assert_eq!((alpn, who), (Alpn::Enrol, None));

    let mut pair = Pair::new(&server(&ca), &config(Side::Agent, None));
    pair.connect(&Dial::Enrol { fingerprint: foreign.fingerprint() });
    let why = pair.closed_at_client();
    assert!(why.contains("not signed by this fleet's authority"), "{why}");
    let none = pair.client.connect(pair.now, Pair::server_addr(), &Dial::With(Alpn::Agent));
    assert!(matches!(none, Err(LinkError::NoIdentity(_))));
}

#[test]
fn a_server_whose_ca_is_only_named_and_not_shown_cannot_enrol_anyone() {
    // The fingerprint's certificate is in the chain, but did not sign the server's.
    let (ca, foreign) = (authority(), authority());
    let mut fake = foreign.issue(&subject(Role::Broker), NOW_S, LIFETIME_S).unwrap();
    fake.ca_der = ca.certificate_der().to_vec();
    let mut pair = Pair::new(&config(Side::Broker, Some(fake)), &config(Side::Agent, None));
    pair.connect(&Dial::Enrol { fingerprint: ca.fingerprint() });
    let why = pair.closed_at_client();
    assert!(why.contains("not signed by this fleet's authority"), "{why}");
}

#[test]
fn strangers_are_refused_with_the_reason() {
    let (ca, foreign) = (authority(), authority());
    let issue = |ca: &Authority, role| ca.issue(&subject(role), NOW_S, LIFETIME_S).unwrap();
    let ended = |role, ago_s| ca.issue(&subject(role), NOW_S - LIFETIME_S - ago_s, LIFETIME_S);
    let expired = |role| ended(role, GRACE_S + 1).unwrap();
    // (server's identity, client's identity, dialled as, words of the reason)
    let cases = [
        (issue(&foreign, Role::Broker), issue(&ca, Role::Agent), Alpn::Agent, "fleet's authority"),
        (
            expired(Role::Broker),
            issue(&ca, Role::Agent),
            Alpn::Agent,
            "broker's certificate has expired",
        ),
        (issue(&ca, Role::Agent), issue(&ca, Role::Agent), Alpn::Agent, "not a broker"),
        (server_for(&ca, Role::Agent), issue(&ca, Role::Agent), Alpn::Agent, "not a broker"),
        (
            issue(&ca, Role::Broker),
            expired(Role::Agent),
            Alpn::Agent,
            "certificate, which has expired: enrol anew with a token of `strobe token create`",
        ),
        (issue(&ca, Role::Broker), ended(Role::Broker, 1).unwrap(), Alpn::Peer, "expired"),
        (issue(&ca, Role::Broker), issue(&ca, Role::Agent), Alpn::Viz, "cannot act as viz"),
        (issue(&ca, Role::Broker), issue(&ca, Role::Viz), Alpn::Agent, "cannot act as agent"),
        (issue(&ca, Role::Broker), issue(&ca, Role::Agent), Alpn::Peer, "cannot act as broker"),
        (issue(&ca, Role::Broker), issue(&ca, Role::Broker), Alpn::Agent, "cannot act as agent"),
    ];
    for (server, client, alpn, words) in cases {
        let mut pair =
            Pair::new(&config(Side::Broker, Some(server)), &config(Side::Agent, Some(client)));
        pair.connect(&Dial::With(alpn));
        let why = pair.closed_at_client();
        assert!(why.to_lowercase().contains(&words.to_lowercase()), "{words}: {why}");
    }
    // A client that believes the server, but whose own certificate is another CA's.
    let mut client = issue(&foreign, Role::Agent);
    client.ca_der = ca.certificate_der().to_vec();
    let mut pair = Pair::new(&server(&ca), &config(Side::Agent, Some(client)));
    pair.connect(&Dial::With(Alpn::Agent));
    let why = pair.closed_at_client();
    assert!(why.contains("its authority did not sign") && why.contains("strobe token"), "{why}");
    assert_eq!(pair.server.counters().handshakes_failed, 1);
}

/// An identity that TLS lets serve, but whose subject has another role. The authority never makes
/// one; only the subject's check stands between it and clients.
fn server_for(ca: &Authority, role: Role) -> Identity {
    let mut identity = ca.issue(&subject(Role::Broker), NOW_S, LIFETIME_S).unwrap();
    let key = rcgen::KeyPair::try_from(identity.key_der.as_slice()).unwrap();
    let mut params = rcgen::CertificateParams::new([subject(role).to_string()]).unwrap();
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    identity.certificate_der = ca.sign_as_is(&params, &key);
    identity
}

#[test]
fn a_certificate_past_its_end_is_let_in_for_a_while_and_says_so() {
    let ca = authority();
    let ended_s = NOW_S - GRACE_S;
    let identity = ca.issue(&subject(Role::Agent), ended_s - LIFETIME_S, LIFETIME_S).unwrap();
    let mut pair = Pair::new(&server(&ca), &config(Side::Agent, Some(identity)));
    pair.connect(&Dial::With(Alpn::Agent));
    let expires_s = pair.until(10, |pair| match pair.server.poll()? {
        Event::Connected { expires_s, .. } => Some(expires_s),
        other => panic!("{other:?}"),
    });
    assert_eq!(expires_s, Some(ended_s));
}

#[test]
fn a_resumed_session_does_not_outlive_its_certificate() {
    // TLS looks at a certificate when it is shown; a resumed session only remembers it.
    let ca = authority();
    let mut pair = Pair::new(&server(&ca), &agent(&ca));
    let conn = pair.connect(&Dial::With(Alpn::Agent));
    pair.connected_at_server();
    let end = pair.now + Duration::from_secs(1);
    pair.until(10, |pair| (end <= pair.now).then_some(()));
    let now = pair.now;
    pair.client.close(now, conn, "again");
    pair.until(10, |pair| (pair.server.connections() == 0).then_some(()));
    while pair.server.poll().is_some() {}
    // Only the broker's clock counts: the ticket is as old as before by its own.
    pair.server_ahead_s = LIFETIME_S + GRACE_S + 1;
    pair.server.set_wall_s(NOW_S + pair.server_ahead_s);
    pair.connect(&Dial::With(Alpn::Agent));
    let why = pair.closed_at_client();
    assert!(why.contains("has expired") && why.contains("strobe token create"), "{why}");
}

#[test]
fn identities_change_under_living_connections() {
    let ca = authority();
    let mut pair = Pair::new(&server(&ca), &agent(&ca));
    let mut ends = Vec::new();
    for lifetime_s in [LIFETIME_S, LIFETIME_S + 7, LIFETIME_S + 14] {
        for (link, role) in [(&mut pair.server, Role::Broker), (&mut pair.client, Role::Agent)] {
            link.set_identity(ca.issue(&subject(role), NOW_S, lifetime_s).unwrap()).unwrap();
        }
        let conn = pair.connect(&Dial::With(Alpn::Agent));
        let (at_server, expires_s) = pair.until(10, |pair| match pair.server.poll()? {
            Event::Connected { conn, expires_s, .. } => Some((conn, expires_s)),
            other => panic!("{other:?}"),
        });
        assert_eq!(expires_s, Some(NOW_S + lifetime_s), "it is the new certificate that counts");
        ends.push((conn, at_server));
    }
    // All of them still carry data.
    for (conn, at_server) in ends {
        let stream = pair.client.open(conn).unwrap();
        pair.client.send(conn, stream, &mut [encode(&Message::Subscribe)]).unwrap();
        let mut reader = Reader::default();
        pair.until(10, |pair| {
            let _ = pair.server.recv(at_server, stream, &mut reader);
            reader.pull().unwrap()
        });
    }
    // A key that does not fit changes nothing.
    let mut wrong = ca.issue(&subject(Role::Agent), NOW_S, LIFETIME_S).unwrap();
    wrong.key_der = ca.issue(&subject(Role::Agent), NOW_S, LIFETIME_S).unwrap().key_der;
    assert!(matches!(pair.client.set_identity(wrong), Err(LinkError::Tls(_))));
    assert!(pair.client.tls.client(&Dial::With(Alpn::Agent)).is_ok());
}

#[test]
fn without_a_certificate_one_may_only_enrol() {
    // A client made to break the rule: its TLS asks for another ALPN than its dial says.
    let ca = authority();
    let mut pair = Pair::new(&server(&ca), &config(Side::Agent, None));
    let rogue = pair.client.tls.rogue(Alpn::Agent, ca.fingerprint());
    let (handle, quic) = pair
        .client
        .endpoint
        .connect(pair.now, rogue, Pair::server_addr(), tls::SERVER_NAME)
        .unwrap();
    let now = pair.now;
    pair.client.insert(now, handle, quic);
    let why = pair.closed_at_client();
    assert!(why.contains("needs a certificate"), "{why}");
    assert_eq!(pair.server.counters().refused_role, 1);
}

/// A rolling upgrade: a program of before is an agent all the same, and is told nothing that it does not know.
#[test]
fn both_ends_know_whether_both_are_new() {
    for old in [false, true] {
        let ca = authority();
        let mut pair = Pair::new(&server(&ca), &agent(&ca));
        if old {
            pair.client.tls.be_old();
        }
        let conn = pair.connect(&Dial::With(Alpn::Agent));
        let (at_server, alpn, _) = pair.connected_at_server();
        assert_eq!(alpn, Alpn::Agent);
        assert_eq!(pair.server.is_newest(at_server), !old);
        assert_eq!(pair.client.is_newest(conn), !old);
    }
}
