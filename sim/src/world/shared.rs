//! The Redis of a run: what goes wrong with it, and what has to be there in the end.

use super::World;
use crate::mirror::{Place, Sharing, stranger};
use crate::plan::{Shared, Trouble, What};
use crate::redis::{Failure, LEFT, Redis};
use crate::{dice::Die, ledger::visible};
use strobe_cluster::kinds::members::{self, Stage};

/// What a plan wants.
pub(super) fn redis(seed: u64, shared: Shared) -> Option<Place> {
    let servers = match shared {
        Shared::Nothing => return None,
        Shared::Server | Shared::Log => 1,
        Shared::Cluster => 3,
    };
    let redis = Redis::new(Die::new(seed, 4), servers);
    redis.take_the_door();
    Some(Place { redis, log: shared == Shared::Log })
}

impl World<'_> {
    /// A trouble with it comes; false: it is none of those.
    pub(super) fn suffer_redis(&mut self, trouble: &Trouble) -> bool {
        let Some(Place { redis, .. }) = &self.shared else { return false };
        let (who, until) = (trouble.who, self.now + 1_000 * trouble.for_ms);
        let soon = trouble.much % 1_500;
        let (count, what) = match trouble.what {
            What::LagRedis => {
                redis.fail_in(who, soon, Failure::Failover);
                ("Redis failovers planned", "will fail over")
            }
            What::EmptyRedis => {
                redis.fail_in(who, soon, Failure::Empty);
                ("Redis restarts planned", "will start again, empty")
            }
            What::CutRedis => {
                redis.fail_in(who, soon, Failure::Cut);
                ("Redis connections cut", "will cut its connections")
            }
            What::HangRedis => {
                redis.hang(who, until);
                ("hung Redis", "hangs")
            }
            What::FullRedis => {
                redis.fill(who, until);
                ("full Redis", "is out of memory")
            }
            _ => return false,
        };
        self.tally.count(count, 1);
        let ms = trouble.for_ms;
        self.trace.say(self.now, || format!("Redis {what} ({who}, {soon} commands, {ms} ms)"));
        true
    }

    /// After a broker's turn: what it wrote, it wrote by an epoch that was agreed on.
    pub(super) fn look_at_redis(&mut self, id: u64) {
        let Some(Place { redis, .. }) = &self.shared else { return };
        let (written, said) = redis.turned();
        for what in said {
            if let Some(count) = TOLD.iter().find(|count| what.contains(**count)) {
                self.tally.count(count, 1);
            }
            self.trace.say(self.now, || what);
        }
        for (shard, epoch) in written {
            if epoch == LEFT {
                assert!(self.has_left(id), "broker {id} writes as if it had left");
                continue;
            }
            assert!(
                epoch == 0 || self.agreed.is_epoch(shard, epoch),
                "broker {id} wrote by an epoch of nobody"
            );
        }
        let Some(broker) = self.machines.get(&id).and_then(|machine| machine.broker.as_ref())
        else {
            return;
        };
        let counts = broker.sharing.as_ref().map(Sharing::counts).unwrap_or_default();
        // What is not there is shown, whether Redis answers or not.
        let shown = counts.connected || counts.failures.iter().any(|&times| 0 < times);
        assert!(shown || counts.segments == 0, "broker {id} does not say that Redis is away");
    }

    fn has_left(&self, id: u64) -> bool {
        let known = self.newest().map(members::members).unwrap_or_default();
        known.iter().any(|member| member.id == id && member.stage() == Stage::Left)
    }

    /// What is not yet in Redis, or is refused there: whoever is there or has left knows by what to write.
    pub(super) fn unshared(&self) -> Option<String> {
        let brokers = self.machines.iter().filter_map(|(id, m)| Some((id, m.broker.as_ref()?)));
        let mut sharing = brokers.filter_map(|(id, b)| Some((id, b.sharing.as_ref()?.counts())));
        let lags = sharing.find(|(_, c)| !c.connected || 0 < c.lag_segments + c.fenced_shards)?;
        Some(format!("Redis lacks segments of broker {}: {:?}", lags.0, lags.1))
    }

    /// All is healed: whoever has nothing but Redis finds every acknowledged row there, once.
    pub(super) fn judge_redis(&mut self) {
        let Some(place) = self.shared.clone() else { return };
        if place.log {
            self.judge_stranger(&place, "restored");
        }
        // Every row is in a block, and every block is there.
        let until = self.now + MIRRORED_US_MAX;
        for _ in 0..2 {
            self.sleep();
            self.go_until(self.now + SEALED_US);
        }
        while let Some(why) = self.unshared() {
            assert!(
                self.now < until,
                "{} s without faults, and {why}",
                MIRRORED_US_MAX / 1_000_000
            );
            self.go_until(self.now + 1_000_000);
        }
        self.judge_stranger(&Place { log: false, ..place.clone() }, "read");
        for machine in self.machines.values() {
            let Some(broker) = &machine.broker else { continue };
            let counts = broker.sharing.as_ref().map(Sharing::counts).unwrap_or_default();
            self.tally.count("blocks in Redis", counts.blocks);
            self.tally.count("shards fenced off", counts.fenced_shards);
            self.tally.count("Redis failures seen", counts.failures.iter().sum());
        }
        self.tally.count("Redis commands", place.redis.commands());
    }

    fn judge_stranger(&mut self, place: &Place, how: &str) {
        self.trace.say(self.now, || format!("what Redis has is {how} by somebody new"));
        let now_ms =
            self.base_ns.div_euclid(1_000_000) + i64::try_from(self.now / 1_000).expect("small");
        place.redis.set_time(self.now, now_ms);
        let dir = self.root.join(how);
        let now = self.machines[&1].clock.at(self.now);
        // The logs of those who live are not touched, so they are dead for a while.
        let now_ms = if self.ledger.takes_in() { now_ms + QUIET_MS } else { now_ms };
        let (store, writer, sharing) = stranger(place, &dir, now, now_ms);
        let store = store.for_query();
        let seen = visible(&store);
        assert_eq!(store.warnings(), Vec::<String>::new(), "Redis is well");
        for (id, samples) in self.ledger.owed() {
            for sample in samples {
                assert!(
                    seen.contains(&sample),
                    "{id:?} was acknowledged, and {sample:?} is not {how} from Redis"
                );
            }
        }
        let said = self.ledger.said();
        let extra = seen.iter().find(|sample| !said.contains(*sample));
        assert_eq!(extra, None, "Redis has what nobody said");
        self.tally.count("samples found in Redis", seen.len() as u64);
        drop((store, writer, sharing));
    }
}

/// What servers say that happens to them.
const TOLD: &[&str] = &["fails over", "starts again and is empty", "cuts its connections"];
/// What is due is sealed by then, and the mirror has seen it.
const SEALED_US: u64 = 10_000_000;
const MIRRORED_US_MAX: u64 = 300_000_000;
/// Longer than a broker that lives says nothing of its log.
const QUIET_MS: i64 = 31_000;
