//! TLS with certificates made here, a server that wants ours too, and a user of few rights.

use crate::support::{
    Server, counts, dir, drive, fill, free_port, mirror_with, open, query, whole_hour_ms,
};
use rcgen::{CertificateParams, IsCa, Issuer, KeyPair};
use std::path::{Path, PathBuf};
use strobe_broker::store::redis::RedisConfig;

/// An authority, and what it signed for this machine.
fn certificates(dir: &Path, name: &str) -> [PathBuf; 3] {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let ca = params.self_signed(&key).unwrap();
    let issuer = Issuer::new(params, key);
    let own = KeyPair::generate().unwrap();
    let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
    let mut params = CertificateParams::new(names).unwrap();
    // One that is called like its authority would be taken for its own.
    params.distinguished_name.push(rcgen::DnType::CommonName, "redis");
    let signed = params.signed_by(&own, &issuer).unwrap();
    let file = |what: &str, text: String| {
        let path = dir.join(format!("{name}-{what}.pem"));
        std::fs::write(&path, text).unwrap();
        path
    };
    [file("ca", ca.pem()), file("cert", signed.pem()), file("key", own.serialize_pem())]
}

#[test]
fn a_user_comes_in_by_tls_on_both_sides() {
    let (dir, base) = (dir("tls"), whole_hour_ms());
    std::fs::create_dir_all(&dir).unwrap();
    let [ca, certificate, key] = certificates(&dir, "ours");
    let [other_ca, ..] = certificates(&dir, "theirs");
    let text = |path: &PathBuf| path.to_str().unwrap().to_owned();
    let (port, files) = (free_port().to_string(), [&ca, &certificate, &key].map(text));
    let tls = ["--tls-port", &port, "--tls-ca-cert-file", &files[0], "--tls-cert-file", &files[1]];
    let more = ["--tls-key-file", &files[2], "--tls-auth-clients", "yes"];
    let user = ["--user", "strobe", "on", ">p@ss", "~monitor:*", "+@all", "-@dangerous"];
    let server = Server::start(free_port(), &[&tls[..], &more, &user].concat());
    let url = format!("rediss://strobe:p%40ss@127.0.0.1:{port}/2");
    let store_dir = dir.join("store");
    let (store, mut writer) = open(&store_dir, base);
    fill(&mut writer, base);

    let plain = || RedisConfig::at(url.clone());
    let identity = || Some((certificate.clone(), key.clone()));
    let wrong = [
        ("another authority", RedisConfig { ca: Some(other_ca), identity: identity(), ..plain() }),
        ("no certificate", RedisConfig { ca: Some(ca.clone()), ..plain() }),
        ("no TLS", RedisConfig { url: url.replace("rediss", "redis"), ..plain() }),
    ];
    for (what, config) in wrong {
        let mut mirror = mirror_with(&store, config, base);
        mirror.pass(base);
        assert!(!counts(&mirror).connected, "{what}");
    }
    let right = RedisConfig { ca: Some(ca), identity: identity(), ..plain() };
    drop((writer, store));
    // Nobody asked before: the first mirror of a store is the one that queries go by.
    let (store, _writer) = open(&store_dir, base);
    let mut mirror = mirror_with(&store, right.clone(), base);
    drive(&mut mirror, base);
    assert_eq!(counts(&mirror).blocks, 20);
    assert_eq!(counts(&mirror).failures, [0; 6]);
    assert_eq!(server.info("keyspace").lines().filter(|l| l.starts_with("db2:")).count(), 1);

    let found = dir.join("found");
    let (other, _writer) = open(&found, base + 1);
    mirror_with(&other, right, base + 1).pass(base + 1);
    assert_eq!(query(&other, "x[2h]", base), (20 * 60, vec![]));
    std::fs::remove_dir_all(dir).unwrap();
}
