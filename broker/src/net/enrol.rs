//! Enrolment: a token is turned into a certificate, once.

use super::Net;
use super::streams::{End, Place};
use crate::registry::Registry;
use strobe_wire::ids::HostId;
use strobe_wire::message::{Message, encode};
use strobe_wire::pki::{Authority, Role, Subject};

/// What one that enrols asks for.
pub(super) struct Enrolment {
    pub(super) secret: Vec<u8>,
    pub(super) host: HostId,
    pub(super) role: String,
    pub(super) csr: Vec<u8>,
}

impl Net {
    pub(super) fn on_enrol(
        &mut self,
        place: Place,
        ask: &Enrolment,
        now_ms: i64,
    ) -> Result<(), String> {
        let reply = match enrol(&self.registry, &self.authority, ask, now_ms) {
            Ok(certificate) => {
                self.enrolled += 1;
                log::info!("enrolled {} {}", ask.role, ask.host);
                let ca = self.authority.certificate_der().to_vec();
                Message::Enrolled { certificate, ca }
            }
            Err(why) => {
                self.enrolments_refused += 1;
                log::warn!("enrolment from {:?} refused: {why}", self.link.remote(place.conn));
                Message::Refused { why }
            }
        };
        let stream = self.streams.get_mut(&place).ok_or("the stream is gone")?;
        stream.out.push_back(encode(&reply));
        stream.end = End::AfterOut;
        self.flush(place);
        Ok(())
    }
}

/// The certificate, if the token is good. The token is used up on disk before anything is signed.
fn enrol(
    registry: &Registry,
    authority: &Authority,
    ask: &Enrolment,
    now_ms: i64,
) -> Result<Vec<u8>, String> {
    let role = match ask.role.as_str() {
        "agent" if ask.host.0 != 0 => Role::Agent,
        "agent" => return Err("an agent enrols with its host id".to_owned()),
        "viz" => Role::Viz,
        _ => return Err("only agents and dashboards enrol".to_owned()),
    };
    registry.redeem_token(&ask.secret, now_ms).map_err(|why| why.to_string())?;
    let now_s = u64::try_from(now_ms / 1000).map_err(|_| "the broker's clock is wrong")?;
    authority
        .sign(&ask.csr, &Subject { role, host: ask.host }, now_s, CERTIFICATE_S)
        .map_err(|why| why.to_string())
}

/// Lifetime of a certificate: a year.
const CERTIFICATE_S: u64 = 365 * 24 * 3600;
