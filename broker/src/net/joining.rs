//! What needs the cluster's agreement before it is answered: enrolments for a token that was made at
//! another broker, and brokers that join.
//!
//! A token is used up in the agreed state before anything is given for it. When nobody knows whether it
//! was, that is said: it may be good still, or not.

use super::Net;
use super::streams::{End, Place};
use crate::certificates::Enrolment;
use crate::cluster::{Order, join_hash};
use crate::tokens::TokenHash;
use std::collections::BTreeMap;
use strobe_cluster::Outcome;
use strobe_cluster::kinds::{Command, members, tokens};
use strobe_wire::message::Message;

/// Who waits for what; at most [`WAITING_MAX`].
#[derive(Debug, Default)]
pub(super) struct Waiting {
    errands: BTreeMap<u64, (Place, Errand)>,
    next: u64,
}

#[derive(Debug)]
enum Errand {
    /// A host or dashboard; its token is being used up.
    Enrol(Enrolment),
    /// A broker; its token is being used up.
    Redeem { address: String, disk: u64 },
    /// A broker is being added.
    Add,
}

impl Net {
    /// Asks the cluster whether the token is good.
    pub(super) fn enrol_by_agreement(
        &mut self,
        place: Place,
        ask: Enrolment,
        now_ms: i64,
    ) -> Result<(), String> {
        let command = tokens::Change::redeem(TokenHash::of(&ask.secret).0, now_ms);
        self.propose(place, Errand::Enrol(ask), command)
    }

    /// A broker wants to join.
    pub(super) fn on_join(
        &mut self,
        place: Place,
        secret: &[u8],
        (address, disk): (String, u64),
        now_ms: i64,
    ) -> Result<(), String> {
        if self.seat.is_none() {
            let why = "that broker belongs to no cluster: run `strobe cluster init` there first";
            return self.last_word(place, &Message::Refused { why: why.to_owned() });
        }
        let command = tokens::Change::redeem(join_hash(secret), now_ms);
        self.propose(place, Errand::Redeem { address, disk }, command)
    }

    pub(super) fn on_outcome(&mut self, ticket: u64, outcome: Outcome, now_ms: i64) {
        let Some((place, errand)) = self.joining.errands.remove(&ticket) else { return };
        let said = match (errand, outcome) {
            (Errand::Enrol(ask), Outcome::Applied(_)) => {
                let answer = self.certificates.grant(&self.registry, &ask, now_ms);
                log::info!("enrolled {} {}", ask.role, ask.host);
                self.last_word(place, &answer)
            }
            (Errand::Redeem { address, disk }, Outcome::Applied(_)) => {
                self.propose(place, Errand::Add, members::Change::add(&address, disk))
            }
            (Errand::Add, Outcome::Applied(broker)) => match &self.seat {
                Some(seat) => {
                    log::info!("broker {broker} joins");
                    let (key, ca) = seat.authority.to_parts();
                    let cluster = seat.cluster;
                    self.last_word(place, &Message::Joined { cluster, broker, key, ca })
                }
                None => Ok(()),
            },
            (errand, Outcome::Refused(refusal)) => {
                let why = match errand {
                    Errand::Enrol(_) => format!(
                        "the token is not good at this cluster ({refusal}); make one with `strobe \
                         token create`"
                    ),
                    Errand::Redeem { .. } => format!(
                        "the token is not good for joining ({refusal}); make one with `strobe \
                         cluster token` on a broker of the cluster"
                    ),
                    Errand::Add => format!("the cluster does not take the broker: {refusal}"),
                };
                log::warn!("{why}");
                self.certificates.count_refused();
                self.last_word(place, &Message::Refused { why })
            }
            (_, Outcome::Unknown) => {
                self.last_word(place, &Message::Refused { why: UNKNOWN.to_owned() })
            }
        };
        if let Err(why) = said {
            log::debug!("an enrolment is not answered: {why}");
        }
    }

    fn propose(&mut self, place: Place, errand: Errand, command: Command) -> Result<(), String> {
        let seat = self.seat.as_mut().ok_or("this broker belongs to no cluster")?;
        let ticket = self.joining.next;
        let full = WAITING_MAX <= self.joining.errands.len();
        if full || !seat.tell(Order::Propose(ticket, command)) {
            return Err("too many enrolments are waiting; try again later".to_owned());
        }
        self.joining.next += 1;
        self.joining.errands.insert(ticket, (place, errand));
        Ok(())
    }

    fn last_word(&mut self, place: Place, message: &Message) -> Result<(), String> {
        let stream = self.streams.get_mut(&place).ok_or("the stream is gone")?;
        stream.end = End::AfterOut;
        self.say(place, message)
    }
}

/// Enrolments that wait for the cluster.
const WAITING_MAX: usize = 48;
const UNKNOWN: &str = "the cluster did not agree in time, so the outcome is unknown: the token may be \
     used up. Look at `strobe cluster status`, and try again with another token if this one is refused";
