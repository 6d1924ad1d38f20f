//! Files of keys and certificates: PEM, readable by their owner only, replaced atomically.

use super::PkiError;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Replaces `dir/file` by `bytes`, readable by its owner only, surviving a crash at any point.
///
/// # Errors
/// What could not be done, and to which file.
pub fn write_private(dir: &Path, file: &str, bytes: &[u8]) -> Result<(), PkiError> {
    let error = |what, path: &Path| {
        let path = path.to_owned();
        move |source| PkiError::File { what, path, source }
    };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(error("make directory", dir))?;
    let path = dir.join(file);
    let new = dir.join(format!("{file}.new"));
    // A leftover of a crash may have another mode: it is never written through.
    match fs::remove_file(&new) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            return Err(error("remove", &new)(source));
        }
        _ => {}
    }
    let mut out = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new)
        .map_err(error("create", &new))?;
    out.write_all(bytes).and_then(|()| out.sync_all()).map_err(error("write", &new))?;
    fs::rename(&new, &path).map_err(error("replace", &path))?;
    fs::File::open(dir).and_then(|d| d.sync_all()).map_err(error("sync directory", dir))
}

pub(super) struct PemFile {
    path: PathBuf,
    text: Vec<u8>,
}

impl PemFile {
    pub(super) fn key(&self) -> Result<Vec<u8>, PkiError> {
        let key =
            PrivateKeyDer::from_pem_slice(&self.text).map_err(|_| self.lacks("private key"))?;
        Ok(key.secret_der().to_vec())
    }

    pub(super) fn certificate(&self, index: usize) -> Result<Vec<u8>, PkiError> {
        CertificateDer::pem_slice_iter(&self.text)
            .nth(index)
            .and_then(Result::ok)
            .map(|der| der.to_vec())
            .ok_or_else(|| self.lacks(["certificate", "CA certificate"][index]))
    }

    fn lacks(&self, wanted: &'static str) -> PkiError {
        PkiError::Content { path: self.path.clone(), wanted }
    }
}

pub(super) fn read_pem(dir: &Path, file: &str) -> Result<Option<PemFile>, PkiError> {
    let path = dir.join(file);
    match fs::read(&path) {
        Ok(text) => Ok(Some(PemFile { path, text })),
        Err(source) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(PkiError::File { what: "read", path, source }),
    }
}

pub(super) fn pem(label: &str, der: &[u8]) -> String {
    let body = STANDARD.encode(der);
    let mut out = format!("-----BEGIN {label}-----\n");
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at_checked(64).unwrap_or((rest, ""));
        out.push_str(line);
        out.push('\n');
        rest = after;
    }
    out + &format!("-----END {label}-----\n")
}
