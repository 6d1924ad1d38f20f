//! Who may speak: the fleet's certificate authority, identities signed by it, enrolment tokens.
//!
//! ```text
//! Authority (first broker, authority.pem)  --fingerprint + secret-->  Token (operator's hands)
//!     |  sign(csr, Subject)                                              |
//!     v                                                                  v
//! Identity { key, certificate, ca }  <------- enrolment (wire::link) ---- key + CSR
//! ```
//!
//! A certificate's only name is the DNS name `<32 hex digits>.<role>.strobe`: its [`Subject`].
//! What a CSR asks for beside its public key is ignored; the broker decides the subject.
//! Certificates are valid from 1970 on, so that a host whose clock was never set can connect;
//! the end of their life is enforced. Files are PEM, mode 0600, replaced atomically: a crash
//! leaves the old or the new one, never a key of one with the certificate of another.

mod file;
mod subject;
mod token;

pub use file::write_private;
pub use subject::{Role, Subject};
pub use token::Token;

use file::{pem, read_pem};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer};
use sha2::{Digest, Sha256};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The fleet's certificate authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    key_der: Vec<u8>,
    certificate_der: Vec<u8>,
}

/// A private key with the certificate for it and the CA that signed it.
#[derive(Clone, PartialEq, Eq)]
pub struct Identity {
    /// PKCS#8.
    pub key_der: Vec<u8>,
    /// Signed by the CA.
    pub certificate_der: Vec<u8>,
    /// The CA's.
    pub ca_der: Vec<u8>,
}

/// What went wrong with keys and certificates.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// Making a key, signing or parsing.
    #[error("cannot {what}: {why}")]
    Crypto {
        /// What was being done.
        what: &'static str,
        /// The library's words.
        why: String,
    },
    /// A file.
    #[error("cannot {what} {}: {source}", path.display())]
    File {
        /// What was being done.
        what: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A file that does not hold what it should.
    #[error("{} holds no {wanted}; restore it from a copy, or remove it to start anew", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is missing.
        wanted: &'static str,
    },
    /// A text that is no token.
    #[error(
        "not an enrolment token: `strobe1.` and 86 characters are wanted, as printed by `strobe token \
         create`, or `strobe cluster token` for a broker"
    )]
    Token,
    /// A renewal that changes more than key and dates.
    #[error("the renewed certificate is another subject's or another authority's: not used")]
    Renewal,
    /// A certificate without a Strobe name.
    #[error("the certificate names no Strobe subject (<32 hex digits>.<agent|viz|broker>.strobe)")]
    Subject,
}

impl Authority {
    /// A new one, valid for twenty years.
    ///
    /// # Errors
    /// The system gives no randomness.
    pub fn create(now_s: u64) -> Result<Self, PkiError> {
        let key = KeyPair::generate().map_err(crypto("make the authority's key"))?;
        let mut params = params(now_s, AUTHORITY_LIFETIME_S);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        // Two authorities differ in name, so that a foreign one is told from a forged one.
        let mark = fingerprint(key.public_key_raw());
        let mark = u32::from_be_bytes([mark[0], mark[1], mark[2], mark[3]]);
        params.distinguished_name = name(&format!("Strobe fleet authority {mark:08x}"));
        let certificate =
            params.self_signed(&key).map_err(crypto("sign the authority's certificate"))?;
        let key_der = key.serialize_der();
        let certificate_der = certificate.der().to_vec();
        Ok(Self { issuer: Issuer::new(params, key), key_der, certificate_der })
    }

    /// Writes `authority.pem` into `dir`, which is made if it is missing.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, dir: &Path) -> Result<(), PkiError> {
        let text = pem("PRIVATE KEY", &self.key_der) + &pem("CERTIFICATE", &self.certificate_der);
        write_private(dir, AUTHORITY_FILE, text.as_bytes())
    }

    /// Reads `authority.pem`; `None` if there is none.
    ///
    /// # Errors
    /// The file cannot be read, or is not an authority.
    pub fn load(dir: &Path) -> Result<Option<Self>, PkiError> {
        let Some(file) = read_pem(dir, AUTHORITY_FILE)? else { return Ok(None) };
        Self::of_parts(file.key()?, file.certificate(0)?).map(Some)
    }

    /// From what [`Self::to_parts`] gave.
    ///
    /// # Errors
    /// It is no authority.
    pub fn of_parts(key_der: Vec<u8>, certificate_der: Vec<u8>) -> Result<Self, PkiError> {
        let private =
            PrivateKeyDer::try_from(key_der.as_slice()).map_err(crypto("read the key"))?;
        let key = KeyPair::try_from(&private).map_err(crypto("read the authority's key"))?;
        let issuer =
            Issuer::from_ca_cert_der(&CertificateDer::from(certificate_der.as_slice()), key)
                .map_err(crypto("read the authority's certificate"))?;
        Ok(Self { issuer, key_der, certificate_der })
    }

    /// Private key (PKCS#8) and certificate (DER), for another broker of the same fleet.
    #[must_use]
    pub fn to_parts(&self) -> (Vec<u8>, Vec<u8>) {
        (self.key_der.clone(), self.certificate_der.clone())
    }

    /// A certificate (DER) for the public key of `csr_der`, if its signature proves that the
    /// asker has the private key.
    ///
    /// # Errors
    /// The request is malformed or not signed by its own key.
    pub fn sign(
        &self,
        csr_der: &[u8],
        subject: &Subject,
        now_s: u64,
        lifetime_s: u64,
    ) -> Result<Vec<u8>, PkiError> {
        let mut request =
            CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(csr_der))
                .map_err(crypto("read the certificate request"))?;
        let mut params = params(now_s, lifetime_s);
        let dns = subject.to_string().try_into().map_err(crypto("name the certificate"))?;
        params.subject_alt_names = vec![SanType::DnsName(dns)];
        params.distinguished_name = name(subject.role.word());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = match subject.role {
            Role::Agent | Role::Viz => vec![ExtendedKeyUsagePurpose::ClientAuth],
            Role::Broker => {
                vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth]
            }
        };
        request.params = params;
        let signed = request.signed_by(&self.issuer).map_err(crypto("sign the certificate"))?;
        Ok(signed.der().to_vec())
    }

    /// Key, request and certificate in one go, for a part that runs beside the authority.
    ///
    /// # Errors
    /// As [`request`] and [`Self::sign`].
    pub fn issue(
        &self,
        subject: &Subject,
        now_s: u64,
        lifetime_s: u64,
    ) -> Result<Identity, PkiError> {
        let (key_der, csr_der) = request()?;
        let certificate_der = self.sign(&csr_der, subject, now_s, lifetime_s)?;
        Ok(Identity { key_der, certificate_der, ca_der: self.certificate_der.clone() })
    }

    /// Signs what no request may ask for.
    #[cfg(test)]
    pub(crate) fn sign_as_is(&self, params: &CertificateParams, key: &KeyPair) -> Vec<u8> {
        params.signed_by(key, &self.issuer).unwrap().der().to_vec()
    }

    /// A secret of this authority for the use `what`, the same in every life of the broker.
    #[must_use]
    pub fn derive(&self, what: &str) -> [u8; 32] {
        derive(&self.key_der, what)
    }

    /// Its certificate, DER.
    #[must_use]
    pub fn certificate_der(&self) -> &[u8] {
        &self.certificate_der
    }

    /// SHA-256 of its certificate.
    #[must_use]
    pub fn fingerprint(&self) -> [u8; 32] {
        fingerprint(&self.certificate_der)
    }
}

/// A new private key (PKCS#8 DER) and a certificate request for it (DER).
///
/// # Errors
/// The system gives no randomness.
pub fn request() -> Result<(Vec<u8>, Vec<u8>), PkiError> {
    let key = KeyPair::generate().map_err(crypto("make a key"))?;
    let mut params = CertificateParams::default();
    params.distinguished_name = name("strobe");
    let csr = params.serialize_request(&key).map_err(crypto("make a certificate request"))?;
    Ok((key.serialize_der(), csr.der().to_vec()))
}

/// When a certificate (DER) ends, in seconds since 1970; it is good in that second still.
///
/// # Errors
/// It is no certificate.
pub fn expires_s(certificate_der: &[u8]) -> Result<u64, PkiError> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate_der)
        .map_err(crypto("read a certificate's end"))?;
    // One that ended before 1970 has ended at any time.
    Ok(u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0))
}

/// SHA-256 of a certificate.
#[must_use]
pub fn fingerprint(certificate_der: &[u8]) -> [u8; 32] {
    Sha256::digest(certificate_der).into()
}

impl Identity {
    /// Writes it into its role's file in `dir`, which is made if it is missing: an agent and a
    /// dashboard may have one directory.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, dir: &Path) -> Result<(), PkiError> {
        let text = pem("PRIVATE KEY", &self.key_der)
            + &pem("CERTIFICATE", &self.certificate_der)
            + &pem("CERTIFICATE", &self.ca_der);
        write_private(dir, identity_file(self.subject()?.role), text.as_bytes())
    }

    /// Reads a role's; `None` if there is none.
    ///
    /// # Errors
    /// The file cannot be read, or is not an identity.
    pub fn load(dir: &Path, role: Role) -> Result<Option<Self>, PkiError> {
        let Some(file) = read_pem(dir, identity_file(role))? else { return Ok(None) };
        let (key_der, certificate_der) = (file.key()?, file.certificate(0)?);
        Ok(Some(Self { key_der, certificate_der, ca_der: file.certificate(1)? }))
    }

    /// What its certificate says.
    ///
    /// # Errors
    /// [`PkiError::Subject`].
    pub fn subject(&self) -> Result<Subject, PkiError> {
        Subject::of_certificate(&self.certificate_der)
    }

    /// The identity of a renewal: the new key with what the broker signed for it.
    ///
    /// # Errors
    /// Another subject or another authority than this one's: it would not work.
    pub fn renewed(
        &self,
        key_der: Vec<u8>,
        certificate_der: Vec<u8>,
        ca_der: &[u8],
    ) -> Result<Self, PkiError> {
        let renewed = Self { key_der, certificate_der, ca_der: self.ca_der.clone() };
        if ca_der != self.ca_der || renewed.subject()? != self.subject()? {
            return Err(PkiError::Renewal);
        }
        Ok(renewed)
    }
}

// Secrets stay out of logs.

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("subject", &self.subject().ok()).finish_non_exhaustive()
    }
}

/// A secret for the use `what`, made of a private key.
pub(crate) fn derive(key_der: &[u8], what: &str) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(what.as_bytes());
    hash.update(key_der);
    hash.finalize().into()
}

fn params(now_s: u64, lifetime_s: u64) -> CertificateParams {
    let mut params = CertificateParams::default();
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let end_s = now_s.saturating_add(lifetime_s).min(YEAR_4000_S);
    params.not_before = epoch;
    params.not_after = epoch + Duration::from_secs(end_s);
    params
}

fn name(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    name
}

fn crypto<E: fmt::Display>(what: &'static str) -> impl FnOnce(E) -> PkiError {
    move |why| PkiError::Crypto { what, why: why.to_string() }
}

const AUTHORITY_FILE: &str = "authority.pem";
fn identity_file(role: Role) -> &'static str {
    match role {
        Role::Viz => "viz.pem",
        Role::Agent | Role::Broker => "identity.pem",
    }
}

const AUTHORITY_LIFETIME_S: u64 = 20 * 365 * 86_400;
const YEAR_4000_S: u64 = 64_060_588_800;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::HostId;
    use std::fs;

    const NOW_S: u64 = 1_790_000_000;
    const SUBJECT: Subject = Subject { role: Role::Agent, host: HostId(0xabc) };

    fn fresh_dir(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("strobe-pki-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        dir
    }

    #[test]
    fn what_is_saved_is_what_is_loaded_and_only_its_owner_may_read_it() {
        use std::os::unix::fs::PermissionsExt;
        let dir = fresh_dir("files");
        assert!(
            Authority::load(&dir).unwrap().is_none()
                && Identity::load(&dir, Role::Agent).unwrap().is_none()
        );
        let authority = Authority::create(NOW_S).unwrap();
        authority.save(&dir).unwrap();
        let back = Authority::load(&dir).unwrap().unwrap();
        assert_eq!(back.fingerprint(), authority.fingerprint());
        let identity = back.issue(&SUBJECT, NOW_S, 3600).unwrap();
        identity.save(&dir).unwrap();
        identity.save(&dir).unwrap();
        assert_eq!(Identity::load(&dir, Role::Agent).unwrap().unwrap(), identity);
        assert_eq!(identity.subject().unwrap(), SUBJECT);
        for file in [AUTHORITY_FILE, identity_file(Role::Agent)] {
            let mode = fs::metadata(dir.join(file)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{file}");
        }
        fs::write(dir.join(identity_file(Role::Agent)), "garbage").unwrap();
        let error = Identity::load(&dir, Role::Agent).unwrap_err().to_string();
        assert!(error.contains("identity.pem holds no private key"), "{error}");
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_request_decides_nothing_but_its_key() {
        let authority = Authority::create(NOW_S).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(["evil.broker.strobe".to_owned()]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let csr = params.serialize_request(&key).unwrap();
        let der = authority.sign(csr.der(), &SUBJECT, NOW_S, 3600).unwrap();
        assert_eq!(Subject::of_certificate(&der).unwrap(), SUBJECT);
        let der = CertificateDer::from(der);
        let certificate = webpki::EndEntityCert::try_from(&der).unwrap();
        assert_eq!(certificate.valid_dns_names().collect::<Vec<_>>(), [SUBJECT.to_string()]);
    }

    #[test]
    fn a_changed_request_is_refused_or_changes_nothing() {
        // Some bits carry nothing (an encoding's unused bits); none may smuggle in another key.
        let authority = Authority::create(NOW_S).unwrap();
        let (_, csr) = request().unwrap();
        let key_of = |csr: &[u8]| {
            let der = authority.sign(csr, &SUBJECT, NOW_S, 3600).ok()?;
            let der = CertificateDer::from(der);
            let certificate = webpki::EndEntityCert::try_from(&der).unwrap();
            Some(certificate.subject_public_key_info().to_vec())
        };
        let (wanted, mut refused) = (key_of(&csr).unwrap(), 0);
        for at in 0..csr.len() {
            let mut changed = csr.clone();
            changed[at] ^= 1;
            match key_of(&changed) {
                None => refused += 1,
                Some(key) => assert_eq!(key, wanted, "byte {at}"),
            }
        }
        assert!(csr.len() * 9 / 10 < refused, "{refused} of {}", csr.len());
    }

    #[test]
    fn a_renewal_changes_key_and_dates_and_nothing_else() {
        let (authority, foreign) =
            (Authority::create(NOW_S).unwrap(), Authority::create(NOW_S).unwrap());
        let old = authority.issue(&SUBJECT, NOW_S, 3600).unwrap();
        assert_eq!(expires_s(&old.certificate_der).unwrap(), NOW_S + 3600);
        assert!(expires_s(b"garbage").is_err());
        let renew = |authority: &Authority, subject: &Subject| {
            let (key_der, csr) = request().unwrap();
            let certificate = authority.sign(&csr, subject, NOW_S, 7200).unwrap();
            old.renewed(key_der, certificate, authority.certificate_der())
        };
        let new = renew(&authority, &SUBJECT).unwrap();
        assert_ne!(new.key_der, old.key_der);
        assert_eq!(expires_s(&new.certificate_der).unwrap(), NOW_S + 7200);
        let other = Subject { host: HostId(0xdef), ..SUBJECT };
        assert!(matches!(renew(&authority, &other), Err(PkiError::Renewal)));
        assert!(matches!(renew(&foreign, &SUBJECT), Err(PkiError::Renewal)));
    }

    #[test]
    fn tokens_are_text() {
        let token = Token::create([7; 32]).unwrap();
        assert_eq!(token.to_string().parse::<Token>().unwrap(), token);
        assert!(!format!("{token:?}").contains(&token.to_string()));
        for bad in ["", "strobe1.", "strobe2.AAAA", "strobe1.AAAA", "strobe1.!"] {
            assert!(bad.parse::<Token>().is_err(), "{bad}");
        }
    }

    #[test]
    fn subjects_are_names_and_nothing_else_is() {
        assert_eq!(SUBJECT.to_string().parse::<Subject>().unwrap(), SUBJECT);
        let hex = "0".repeat(32);
        for bad in [
            "x.agent.strobe".to_owned(),
            format!("{hex}.root.strobe"),
            format!("{hex}.agent.strobe.com"),
            format!("{hex}.agent"),
        ] {
            assert!(bad.parse::<Subject>().is_err(), "{bad}");
        }
    }
}
