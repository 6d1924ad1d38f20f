//! HTTPS over real sockets; the certificate is made by the fleet's own authority.

#![expect(clippy::unwrap_used, reason = "tests may panic")]

use base64::Engine as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use strobe_viz::backend::Backend;
use strobe_viz::config::TlsFiles;
use strobe_viz::remote::pair;
use strobe_viz::{Config, Viz};
use strobe_wire::ids::HostId;
use strobe_wire::pki::{Authority, Role, Subject};

fn pem(name: &str, der: &[u8]) -> String {
    let mut text = format!("-----BEGIN {name}-----\n");
    let body = base64::engine::general_purpose::STANDARD.encode(der);
    for line in body.as_bytes().chunks(64) {
        writeln!(text, "{}", std::str::from_utf8(line).unwrap()).unwrap();
    }
    text + &format!("-----END {name}-----\n")
}

#[test]
fn pages_are_served_over_tls_and_plain_text_is_not() {
    #[expect(clippy::disallowed_methods, reason = "certificates are judged by the real clock")]
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let authority = Authority::create(now_s).unwrap();
    let subject = Subject { role: Role::Broker, host: HostId(5) };
    let identity = authority.issue(&subject, now_s, 3600).unwrap();
    let dir = std::env::temp_dir().join(format!("viz-tls-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let files = TlsFiles { certificate: dir.join("c.pem"), key: dir.join("k.pem") };
    std::fs::write(&files.certificate, pem("CERTIFICATE", &identity.certificate_der)).unwrap();
    std::fs::write(&files.key, pem("PRIVATE KEY", &identity.key_der)).unwrap();
    let (remote, _end) = pair();
    let mut config = Config::plain("127.0.0.1:0".parse().unwrap(), dir.clone());
    config.tls = Some(files);
    let viz = Viz::start(config, Backend::Remote(remote)).unwrap();

    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from(identity.ca_der.clone())).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(
            vec![CertificateDer::from(identity.certificate_der.clone())],
            PrivateKeyDer::try_from(identity.key_der).unwrap(),
        )
        .unwrap();
    let name = ServerName::try_from(format!("{:032x}.broker.strobe", 5)).unwrap();
    let session = rustls::ClientConnection::new(Arc::new(client), name).unwrap();
    let mut stream = rustls::StreamOwned::new(session, TcpStream::connect(viz.addr()).unwrap());
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");

    let mut plain = TcpStream::connect(viz.addr()).unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    drop(plain.read_to_end(&mut answer));
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    viz.stop();
    std::fs::remove_dir_all(&dir).unwrap();
}
