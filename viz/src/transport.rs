//! A client's bytes: plain TCP, or TLS over it. Both non-blocking.

use mio::net::TcpStream;
use rustls::ServerConnection;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::io::{self, ErrorKind, Read as _};
use std::sync::Arc;

use crate::config::TlsFiles;

/// One of the two.
#[derive(Debug)]
pub(crate) enum Transport {
    /// Loopback.
    Plain(TcpStream),
    /// TLS 1.2 or 1.3.
    Tls(TcpStream, Box<ServerConnection>),
}

impl Transport {
    pub(crate) fn new(
        stream: TcpStream,
        tls: Option<&Arc<rustls::ServerConfig>>,
    ) -> io::Result<Self> {
        let Some(tls) = tls else { return Ok(Self::Plain(stream)) };
        let mut session = ServerConnection::new(Arc::clone(tls)).map_err(io::Error::other)?;
        session.set_buffer_limit(Some(TLS_BUFFER_BYTES_MAX));
        Ok(Self::Tls(stream, Box::new(session)))
    }

    pub(crate) fn socket(&mut self) -> &mut TcpStream {
        match self {
            Self::Plain(stream) | Self::Tls(stream, _) => stream,
        }
    }

    /// As `Read::read` on a non-blocking socket: 0 is the end.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (stream, session) = match self {
            Self::Plain(stream) => return stream.read(buffer),
            Self::Tls(stream, session) => (stream, session),
        };
        loop {
            match session.reader().read(buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(0),
                other => return other,
            }
            if session.read_tls(stream)? == 0 {
                return Ok(0);
            }
            let processed = session.process_new_packets().map_err(io::Error::other);
            // Alerts and handshake messages go out now or with the next write.
            push(stream, session)?;
            processed?;
        }
    }

    /// As `Write::write` on a non-blocking socket; may take fewer.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => some(stream, bytes),
            Self::Tls(stream, session) => {
                push(stream, session)?;
                let taken = some(&mut session.writer(), bytes)?;
                push(stream, session)?;
                if taken == 0 { Err(ErrorKind::WouldBlock.into()) } else { Ok(taken) }
            }
        }
    }

    /// Sends what TLS still holds; whether nothing is left.
    pub(crate) fn is_flushed(&mut self) -> io::Result<bool> {
        match self {
            Self::Plain(_) => Ok(true),
            Self::Tls(stream, session) => {
                push(stream, session)?;
                Ok(!session.wants_write())
            }
        }
    }

    /// Says goodbye: TLS's close_notify, then the end of our half.
    pub(crate) fn shutdown(&mut self) {
        if let Self::Tls(stream, session) = self {
            session.send_close_notify();
            if let Err(error) = push(stream, session) {
                log::debug!("closing TLS: {error}");
            }
        }
        if let Err(error) = self.socket().shutdown(std::net::Shutdown::Write) {
            log::trace!("closing: {error}");
        }
    }
}

/// A server's TLS configuration from PEM files.
pub(crate) fn tls_config(files: &TlsFiles) -> Result<Arc<rustls::ServerConfig>, String> {
    let told = |path: &std::path::Path, why: String| format!("{}: {why}", path.display());
    let chain = CertificateDer::pem_file_iter(&files.certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| told(&files.certificate, error.to_string()))?;
    if chain.is_empty() {
        return Err(told(&files.certificate, "no certificate in it".to_owned()));
    }
    let key = PrivateKeyDer::from_pem_file(&files.key)
        .map_err(|error| told(&files.key, error.to_string()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|error| told(&files.certificate, error.to_string()))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn push(stream: &mut TcpStream, session: &mut ServerConnection) -> io::Result<()> {
    while session.wants_write() {
        match session.write_tls(stream) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "short writes are what a non-blocking socket does")]
pub(crate) fn some(to: &mut impl io::Write, bytes: &[u8]) -> io::Result<usize> {
    to.write(bytes)
}

const TLS_BUFFER_BYTES_MAX: usize = 64 << 10;
