//! Tells somebody something by HTTP, in the caller's thread, for a bounded time.

use crate::probe::status_of;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Where a webhook is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Url<'a> {
    tls: bool,
    /// With its port, if it has one.
    host: &'a str,
    path: &'a str,
}

/// Posts a body to an `http://` or `https://` URL; 200 to 299 is wanted. Who answers https has to have a
/// certificate that the system's authorities signed (`SSL_CERT_FILE` names others).
///
/// # Errors
/// What is wrong with the URL, or with the answer.
pub fn post(
    url: &str,
    kind: &str,
    body: &str,
    patience: Duration,
    clock: fn() -> Instant,
) -> Result<(), String> {
    post_to(url, &format!("Content-Type: {kind}\r\n"), body, (patience, clock), roots)
}

fn post_to(
    url: &str,
    header: &str,
    body: &str,
    (patience, clock): (Duration, fn() -> Instant),
    roots: impl FnOnce() -> Result<RootCertStore, String>,
) -> Result<(), String> {
    let url = Url::of(url)?;
    let Url { host, path, .. } = &url;
    let mut found = url.place().to_socket_addrs().map_err(|why| format!("{host}: {why}"))?;
    let to = found.next().ok_or_else(|| format!("{host} has no address"))?;
    let until = clock() + patience;
    let mut stream = TcpStream::connect_timeout(&to, patience).map_err(|why| why.to_string())?;
    let length = body.len();
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: strobe\r\n{header}\
         Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    );
    let socket = stream.try_clone().map_err(|why| why.to_string())?;
    let status = if url.tls {
        let mut tls = secure(url.name(), stream, roots()?)?;
        status_of((&mut tls, &socket), &request, until, clock)
    } else {
        status_of((&mut stream, &socket), &request, until, clock)
    };
    match status? {
        200..=299 => Ok(()),
        status => Err(format!("the answer is {status}")),
    }
}

impl<'a> Url<'a> {
    /// # Errors
    /// What is wanted.
    pub fn of(url: &'a str) -> Result<Self, String> {
        let wanted = "http://HOST:PORT/PATH or https://HOST:PORT/PATH is wanted";
        let (scheme, rest) = url.split_once("://").ok_or(wanted)?;
        let tls = match scheme {
            "http" => false,
            "https" => true,
            _ => return Err(wanted.to_owned()),
        };
        let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        // What ends a line would begin another header.
        if host.is_empty() || url.chars().any(|c| c.is_control() || c == ' ') {
            return Err(wanted.to_owned());
        }
        Ok(Self { tls, host, path: if path.is_empty() { "/" } else { path } })
    }

    /// Host and port.
    fn place(&self) -> String {
        let port = if self.tls { 443 } else { 80 };
        match self.host.rsplit_once(':') {
            // An IPv6 address without a port has colons too.
            Some((_, after)) if !after.ends_with(']') => self.host.to_owned(),
            _ => format!("{}:{port}", self.host),
        }
    }

    /// The host alone, as its certificate names it.
    fn name(&self) -> &'a str {
        let port = self.host.rsplit_once(':').filter(|(_, after)| !after.ends_with(']'));
        let name = port.map_or(self.host, |(name, _)| name);
        name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name)
    }
}

/// TLS to who is called `name`; the handshake is with the first byte that is written.
fn secure(
    name: &str,
    stream: TcpStream,
    roots: RootCertStore,
) -> Result<StreamOwned<ClientConnection, TcpStream>, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|why| why.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(name.to_owned()).map_err(|why| format!("{name}: {why}"))?;
    let tls = ClientConnection::new(Arc::new(config), name).map_err(|why| why.to_string())?;
    Ok(StreamOwned::new(tls, stream))
}

/// Whom this machine trusts.
fn roots() -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let why = found.errors.first().map(|why| format!(": {why}")).unwrap_or_default();
        return Err(format!("no authority is known on this machine (SSL_CERT_FILE){why}"));
    }
    Ok(roots)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use rustls::{ServerConfig, ServerConnection};
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::thread::JoinHandle;

    #[expect(clippy::disallowed_methods, reason = "a test of what runs in real time")]
    fn clock() -> Instant {
        Instant::now()
    }

    /// Answers one https connection with 204, and returns what it was told.
    fn listening() -> (u16, RootCertStore, JoinHandle<String>) {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let certificate = CertificateDer::from(made.cert.der().to_vec());
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(certificate.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let thread = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let tls = ServerConnection::new(Arc::new(config)).unwrap();
            let mut stream = StreamOwned::new(tls, stream);
            let (mut told, mut some) = (Vec::new(), [0; 1024]);
            while !told.ends_with(b"}") {
                match stream.read(&mut some) {
                    Ok(read) if 0 < read => told.extend_from_slice(&some[..read]),
                    _ => break,
                }
            }
            drop(stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n"));
            String::from_utf8(told).unwrap()
        });
        (port, roots, thread)
    }

    fn post(port: u16, roots: RootCertStore) -> Result<(), String> {
        let (url, within) = (format!("https://127.0.0.1:{port}/x"), Duration::from_secs(5));
        post_to(&url, "A: b\r\n", "{1}", (within, clock), || Ok(roots))
    }

    #[test]
    fn https_is_spoken_to_whom_an_authority_names() {
        let (port, roots, told) = listening();
        assert_eq!(post(port, roots), Ok(()));
        let told = told.join().unwrap();
        assert!(told.starts_with("POST /x HTTP/1.1\r\nHost: 127.0.0.1:"), "{told}");
        assert!(told.ends_with("\r\n\r\n{1}"), "{told}");

        let ((port, _, told), (_, others, _)) = (listening(), listening());
        let why = post(port, others).unwrap_err();
        assert!(why.contains("certificate"), "{why}");
        assert_eq!(told.join().unwrap(), "", "nothing is told to a stranger");
    }

    #[test]
    fn urls_are_read() {
        let check = |url: &str, place: &str, name: &str, path: &str| {
            let read = Url::of(url).unwrap();
            assert_eq!((read.place().as_str(), read.name(), read.path), (place, name, path));
        };
        check("http://a", "a:80", "a", "/");
        check("https://a.b/c?d=e:f", "a.b:443", "a.b", "/c?d=e:f");
        check("https://a:8443/c", "a:8443", "a", "/c");
        check("https://[::1]/c", "[::1]:443", "::1", "/c");
        check("http://[::1]:81", "[::1]:81", "::1", "/");
        for bad in ["", "a", "ftp://a", "http://", "https:///x", "http://a/\r\nX: y", "http://a b"]
        {
            assert!(Url::of(bad).unwrap_err().contains("https://HOST:PORT"), "{bad:?}");
        }
    }
}
