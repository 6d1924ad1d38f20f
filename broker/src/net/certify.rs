//! Conversations about certificates: enrolments, renewals, and the broker's own.

use super::Net;
use super::streams::{End, Place};
use crate::certificates::{Due, Enrolment};
use crate::trust::REVOKED;
use std::time::Instant;
use strobe_wire::link::{ConnId, Distrust, LinkError};
use strobe_wire::message::Message;

impl Net {
    pub(super) fn on_enrol(
        &mut self,
        place: Place,
        ask: Enrolment,
        now_ms: i64,
    ) -> Result<(), String> {
        // In a cluster only what was made before it was one is known here.
        let elsewhere = self.seat.is_some() && !self.registry.knows_token(&ask.secret);
        if elsewhere {
            return self.enrol_by_agreement(place, ask, now_ms);
        }
        let answer = self.certificates.enrol(&self.registry, &ask, now_ms);
        match &answer {
            Message::Refused { why } => {
                log::warn!("enrolment from {:?} refused: {why}", self.link.remote(place.conn));
            }
            _ => log::info!("enrolled {} {}", ask.role, ask.host),
        }
        let stream = self.streams.get_mut(&place).ok_or("the stream is gone")?;
        stream.end = End::AfterOut;
        self.say(place, &answer)
    }

    /// From its first word on, a conversation's certificate is watched.
    pub(super) fn watch(&mut self, place: Place, now_s: u64) -> Result<(), String> {
        let conn = self.conns.get(&place.conn).ok_or("the connection is gone")?;
        let subject = conn.subject.ok_or("no certificate")?;
        self.certificates.watch(place, subject, conn.expires_s, now_s);
        self.registry.certificate(subject.host, conn.expires_s);
        Ok(())
    }

    /// Whoever was revoked since the last look is closed, and told.
    pub(super) fn close_revoked(&mut self, now: Instant) {
        let revocations = self.registry.revocations();
        if std::mem::replace(&mut self.revocations, revocations) == revocations {
            return;
        }
        let conns: Vec<ConnId> = self.conns.keys().copied().collect();
        conns.into_iter().for_each(|conn| self.close_if_revoked(conn, now));
    }

    pub(super) fn close_if_revoked(&mut self, conn: ConnId, now: Instant) {
        let Some(known) = self.conns.get(&conn) else { return };
        let Some(subject) = known.subject else { return };
        if self.registry.is_refused(subject.host, known.expires_s) {
            log::warn!("connection of {subject} closed: its certificate was revoked");
            self.certificates.count_revoked();
            self.refuse(conn, REVOKED, now);
        }
    }

    /// Certificates that near their end, or are past it, and the broker's own.
    pub(super) fn certify(&mut self, now: Instant, now_s: u64) {
        if let Some(own) = self.certificates.own(now_s) {
            let set = own.map_err(LinkError::from).and_then(|own| self.link.set_identity(own));
            if let Err(why) = set {
                log::error!("this broker's certificate is not renewed: {why}");
            }
        }
        while let Some((place, due)) = self.certificates.due(now_s) {
            let said = match due {
                Due::Ask => self.say(place, &Message::RenewDue),
                Due::Close => Err(Distrust::Expired.to_string()),
            };
            if let Err(why) = said {
                self.refuse(place.conn, &why, now);
            }
        }
    }
}
