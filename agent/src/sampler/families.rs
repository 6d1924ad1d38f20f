//! The families that are read less often than the rest: each group of them on its own interval.
//!
//! ```text
//! group (a section, an interval) ─ due? ─▶ members: walk anew?  read  ─▶ one row a part
//! ```
//!
//! A family is walked (directories listed, columns named) at first, when a watched directory lists
//! other names, when a file of it is gone, and every [`WALK_NS`] in any case; one with nothing on
//! this host is looked for again every [`ABSENT_NS`] and costs nothing between. Between walks a
//! reading allocates nothing. Members of a group are due together, so their rows have no gaps; groups
//! are staggered by a second each so that no tick pays for all of them.

use super::catalog::{Collector, Nothing, Pick, Source};
use super::governor::{Governor, Thread};
use super::patient::{Patient, Standing};
use super::scores::{Judging, Scoring};
use super::section::Section;
use super::source::files;
use super::{Cost, Roots, SectionRow};
use crate::readers::kept::Buffer;
use crate::readers::leaf::{Found, Reader};
use crate::readers::names::Names;
use crate::readers::{COUNTER, GAUGE, column};
use crate::schemas::Table;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use strobe_wire::schema::{Column, Kind};

/// All of them.
#[derive(Debug)]
pub(super) struct Families {
    roots: Roots,
    clock: fn() -> u64,
    table: Arc<Table>,
    reader: Reader,
    groups: Vec<Group>,
    /// Those that may hang, each a section.
    patients: Vec<Slow>,
    /// What all cost, those of each tick too.
    costs: Section,
    costs_next_ns: u64,
    /// Which of those of each tick had failed when it was told, a bit each.
    failed: u32,
    rebuilt: u64,
    /// Whether each tick has the rows of all, those that are not due as they were the last time.
    pub(super) whole: bool,
}

#[derive(Debug)]
struct Group {
    section: Section,
    interval_ns: u64,
    next_ns: u64,
    members: Vec<Family>,
}

/// A family on a thread of its own.
#[derive(Debug)]
struct Slow {
    section: Section,
    collector: &'static Collector,
    interval_ns: u64,
    next_ns: u64,
    patient: Patient,
    /// Without it there is nothing to read.
    base: PathBuf,
    cost_ns: u64,
    spent_ns: u64,
    succeeded: bool,
    /// As its governor tells.
    stretched: Option<(u64, u64)>,
}

/// One collector's files.
#[derive(Debug)]
pub(super) struct Family {
    collector: &'static Collector,
    walk: Walk,
    found: Found,
    watches: Vec<Watch>,
    walk_ns: u64,
    read_ns: u64,
    interval_ns: u64,
    governor: Governor,
    walked: bool,
    /// As of the last walk.
    nothing_is_fine: bool,
    cost_ns: u64,
    spent_ns: u64,
}

/// How a family is found.
#[derive(Clone, Copy, Debug)]
enum Walk {
    Call(fn(&Roots, &mut Found)),
    /// The files that are read every tick otherwise.
    Files(&'static str),
}

/// A directory whose names are watched.
#[derive(Debug)]
struct Watch {
    dir: Names,
    names: u64,
}

impl Families {
    pub(super) fn new(
        roots: Roots,
        picks: &[Pick],
        (clock, scoring): (fn() -> u64, Scoring),
        table: Arc<Table>,
    ) -> Self {
        let mut groups: Vec<Group> = Vec::new();
        let mut patients = Vec::new();
        for pick in picks {
            let (watch, walk): (&[&str], _) = match pick.collector.source {
                Source::Walk { watch, walk } => (watch, Walk::Call(walk)),
                Source::Tick if pick.interval_ms == 0 => continue,
                Source::Tick => (&[], Walk::Files(pick.collector.name)),
            };
            let interval_ns = pick.interval_ms.saturating_mul(1_000_000);
            // On an interval of its own it is a section of its own.
            let shared = pick.interval_ms == pick.collector.interval_ms;
            let name = if shared { pick.collector.section } else { pick.collector.name };
            let is_patient = pick.collector.patient.is_some();
            let thread = if is_patient { Thread::Own } else { Thread::Sampler };
            let family = Family {
                collector: pick.collector,
                walk,
                found: Found::default(),
                watches: watch.iter().map(|path| Watch::new(&roots.sysfs.join(path))).collect(),
                walk_ns: 0,
                read_ns: 0,
                interval_ns,
                governor: Governor::new(interval_ns, thread),
                walked: false,
                nothing_is_fine: false,
                cost_ns: 0,
                spent_ns: 0,
            };
            if pick.collector.name == "textfile" && roots.textfiles.is_none() {
                continue;
            }
            if let Some(base) = pick.collector.patient {
                patients.push(Slow {
                    section: Section::new(pick.collector.name, pick.collector.scoring(scoring)),
                    collector: pick.collector,
                    interval_ns,
                    next_ns: 0,
                    patient: Patient::new(family, roots.clone(), clock),
                    base: roots.sysfs.join(base),
                    cost_ns: 0,
                    spent_ns: 0,
                    succeeded: pick.collector.nothing.is_fine(&roots),
                    stretched: None,
                });
                continue;
            }
            match groups.iter_mut().find(|group| group.section.name == name) {
                Some(group) => group.members.push(family),
                None => groups.push(Group {
                    section: Section::new(name, pick.collector.scoring(scoring)),
                    interval_ns: interval_ns.min(ROW_NS_MAX),
                    next_ns: 0,
                    members: vec![family],
                }),
            }
        }
        let costs = Section::new("collectors", Scoring::Off);
        Self {
            roots,
            clock,
            table,
            reader: Reader::new(),
            groups,
            patients,
            costs,
            costs_next_ns: 0,
            failed: 0,
            rebuilt: 0,
            whole: false,
        }
    }

    /// Waits for those that may take their time, for those who sample once. The next tick, at the
    /// same time, has their values.
    pub(super) fn settle(&mut self, now_ns: u64, timeout: Duration) {
        for slow in &mut self.patients {
            slow.ask(now_ns);
            slow.patient.wait(timeout);
        }
    }

    /// Whether this tick tells what all have cost.
    pub(super) fn is_to_tell_costs(&self, now_ns: u64) -> bool {
        self.whole || self.costs_next_ns <= now_ns.saturating_add(SLACK_NS)
    }

    /// Reads what is due and hands out its rows; `each_tick` is what the others cost.
    pub(super) fn tick(
        &mut self,
        judging: &mut Judging,
        buffer: &mut Buffer,
        each_tick: impl Iterator<Item = Cost> + Clone,
        sink: &mut impl FnMut(SectionRow<'_>),
    ) {
        let now_ns = judging.now.boottime_ns;
        for (index, group) in self.groups.iter_mut().enumerate() {
            if now_ns.saturating_add(SLACK_NS) < group.next_ns {
                if self.whole {
                    group.section.again(sink);
                }
                continue;
            }
            let stagger = if group.next_ns == 0 { index } else { 0 };
            let stagger_ns = u64::try_from(stagger).unwrap_or(0).saturating_mul(SECOND_NS);
            let wait_ns = group.interval_ns - stagger_ns % group.interval_ns.max(1);
            // From the time it was due, so that a late tick delays only itself.
            let from_ns = if group.next_ns + SECOND_NS < now_ns { now_ns } else { group.next_ns };
            group.next_ns = from_ns.saturating_add(wait_ns);
            for family in &mut group.members {
                let (roots, reader) = (&self.roots, &mut self.reader);
                group.section.changed |= family.read(roots, now_ns, self.clock, reader, buffer);
            }
            if group.section.changed {
                let columns = group.members.iter().map(|member| member.found.columns());
                group.section.rebuild(columns.collect(), &self.table);
                self.rebuilt += 1;
            }
            let members = &group.members;
            let value = |member: usize, index: usize| members.get(member)?.found.value(index);
            group.section.emit(value, judging, sink);
        }
        for slow in &mut self.patients {
            if self.whole && slow.succeeded && slow.patient.standing(now_ns) != Standing::Done {
                slow.section.again(sink);
            }
            self.rebuilt += u64::from(slow.tick(&self.table, judging, sink));
        }
        self.tell_costs(judging, each_tick, sink);
    }

    /// What each has cost so far, in ns.
    pub(super) fn spent(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let members = self.groups.iter().flat_map(|group| &group.members);
        let spent = members.map(|family| (family.collector.name, family.spent_ns));
        spent.chain(self.patients.iter().map(|slow| (slow.collector.name, slow.spent_ns)))
    }

    /// How often a set was new.
    pub(super) fn changes(&self) -> u64 {
        self.rebuilt
    }

    /// Columns left out because there were too many.
    pub(super) fn refused(&self) -> u64 {
        let of = |group: &Group| {
            let found = group.members.iter().map(|member| member.found.refused());
            group.section.refused + found.sum::<u64>()
        };
        self.groups.iter().map(of).sum()
    }

    /// A row of what each collector's last reading cost: once a minute, and when one of each tick fails or
    /// is well again.
    fn tell_costs(
        &mut self,
        judging: &mut Judging,
        each_tick: impl Iterator<Item = Cost> + Clone,
        sink: &mut impl FnMut(SectionRow<'_>),
    ) {
        let now_ns = judging.now.boottime_ns;
        let bits = each_tick.clone().map(|cost| u32::from(!cost.success));
        let failed = bits.fold(0, |failed, bit| failed << 1 | bit);
        if !self.is_to_tell_costs(now_ns) && failed == self.failed {
            return;
        }
        (self.failed, self.costs_next_ns) = (failed, now_ns.saturating_add(ROW_NS_MAX));
        if self.costs.changed {
            let each_tick = each_tick.clone().map(|cost| cost.collector);
            let members = self.groups.iter().flat_map(|group| &group.members);
            let names = each_tick.chain(members.map(|member| member.collector.name));
            let names = names.chain(self.patients.iter().map(|slow| slow.collector.name));
            self.costs.rebuild(names.map(cost_columns).collect(), &self.table);
            self.rebuilt += 1;
        }
        let members = self.groups.iter().flat_map(|group| &group.members);
        let members = members.map(|of| (of.cost_ns, of.succeeds(), of.governor.told()));
        let costs = each_tick.map(|of| (of.ns, of.success, None)).chain(members);
        let patients = self.patients.iter();
        let costs = costs.chain(patients.map(|of| (of.cost_ns, of.succeeded, of.stretched)));
        let value = |member: usize, index: usize| {
            let (cost_ns, succeeded, stretched) = costs.clone().nth(member)?;
            match index {
                0 => Some(cost_ns),
                1 => Some(u64::from(succeeded)),
                2 => stretched.map(|(factor, _)| factor),
                _ => stretched.map(|(_, times)| times),
            }
        };
        self.costs.emit(value, judging, sink);
    }
}

impl Slow {
    fn ask(&mut self, now_ns: u64) {
        // A class without a device has an empty directory, and no need of a thread.
        let has_any =
            || std::fs::read_dir(&self.base).is_ok_and(|mut names| names.next().is_some());
        if !self.patient.is_started() && !has_any() {
            self.next_ns = now_ns.saturating_add(ABSENT_NS);
            return;
        }
        self.next_ns = now_ns.saturating_add(self.interval_ns);
        self.patient.ask(now_ns);
    }

    /// Asks when it is due, tells when there is an answer; whether its columns are others.
    fn tick(
        &mut self,
        table: &Table,
        judging: &mut Judging,
        sink: &mut impl FnMut(SectionRow<'_>),
    ) -> bool {
        let now_ns = judging.now.boottime_ns;
        match self.patient.standing(now_ns) {
            Standing::Idle if now_ns.saturating_add(SLACK_NS) < self.next_ns => return false,
            Standing::Idle => self.ask(now_ns),
            Standing::Busy => {}
            Standing::Hung => self.succeeded = false,
            Standing::Done => {
                let section = &mut self.section;
                let taken = self.patient.take(|work| {
                    let changed = std::mem::take(&mut work.changed);
                    let found = &work.family.found;
                    if changed {
                        section.rebuild(vec![found.columns()], table);
                    }
                    section.emit(|_, index| found.value(index), judging, sink);
                    let stretched = work.family.governor.told();
                    (changed, work.family.cost_ns, work.family.succeeds(), stretched)
                });
                if let Some((changed, cost_ns, succeeded, stretched)) = taken {
                    (self.cost_ns, self.succeeded) = (cost_ns, succeeded);
                    self.stretched = stretched;
                    self.spent_ns = self.spent_ns.saturating_add(cost_ns);
                    return changed;
                }
            }
        }
        false
    }
}

impl Family {
    /// Walks if it has to and reads if it is time; whether its columns are others.
    pub(super) fn read(
        &mut self,
        roots: &Roots,
        now_ns: u64,
        clock: fn() -> u64,
        reader: &mut Reader,
        buffer: &mut Buffer,
    ) -> bool {
        let (before, read_ns, walk_ns) = (clock(), self.read_ns, self.walk_ns);
        let is_due = read_ns <= now_ns.saturating_add(SLACK_NS);
        let changed = self.walk_and_read(roots, now_ns, reader, buffer);
        let cost_ns = clock().saturating_sub(before);
        self.spent_ns = self.spent_ns.saturating_add(cost_ns);
        if is_due || walk_ns != self.walk_ns {
            self.cost_ns = cost_ns;
        }
        if is_due && walk_ns == self.walk_ns && !self.found.is_empty() {
            self.governor.spent(cost_ns);
        }
        changed
    }

    fn walk_and_read(
        &mut self,
        roots: &Roots,
        now_ns: u64,
        reader: &mut Reader,
        buffer: &mut Buffer,
    ) -> bool {
        let mut changed = false;
        if self.must_walk(now_ns) {
            self.found.close(reader);
            let had = !self.found.is_empty();
            self.found = std::mem::take(&mut self.found).again();
            match self.walk {
                Walk::Call(walk) => walk(roots, &mut self.found),
                Walk::Files(collector) => files_of(collector, roots, &mut self.found),
            }
            self.nothing_is_fine = self.collector.nothing.is_fine(roots);
            let pause_ns = if self.found.is_empty() { ABSENT_NS } else { WALK_NS };
            self.walk_ns = now_ns.saturating_add(pause_ns);
            self.read_ns = 0;
            changed = had || !self.found.is_empty() || !self.walked;
            self.walked = true;
        }
        if self.read_ns <= now_ns.saturating_add(SLACK_NS) && !self.found.is_empty() {
            let holds = ROW_NS_MAX < self.interval_ns || 1 < self.governor.factor();
            let wait_ns = self.governor.wait_ns();
            self.read_ns = if holds { now_ns.saturating_add(wait_ns) } else { 0 };
            let seen = self.found.read(now_ns, reader, buffer);
            if seen.gone {
                self.walk_ns = 0;
            }
            changed |= seen.relabelled;
        }
        changed
    }

    fn must_walk(&mut self, now_ns: u64) -> bool {
        if self.walk_ns <= now_ns || !self.walked {
            for watch in &mut self.watches {
                watch.changed();
            }
            return true;
        }
        // What is not there is not looked for at each reading.
        !self.found.is_empty() && self.watches.iter_mut().any(Watch::changed)
    }

    fn succeeds(&self) -> bool {
        let is_list = self.collector.nothing != Nothing::IsFine;
        let has_any = self.found.has_any() && !self.found.lacks;
        has_any || self.nothing_is_fine && (is_list || self.found.is_empty())
    }
}

impl Watch {
    fn new(path: &Path) -> Self {
        Self { dir: Names::new(path), names: 0 }
    }

    /// Whether it lists other names than the last time.
    fn changed(&mut self) -> bool {
        let mut names = 0_u64;
        self.dir.each(|name| {
            let mut hasher = DefaultHasher::new();
            name.hash(&mut hasher);
            // A sum, because the order of a directory means nothing.
            names = names.wrapping_add(hasher.finish() | 1);
        });
        names != std::mem::replace(&mut self.names, names)
    }
}

fn files_of(collector: &str, roots: &Roots, found: &mut Found) {
    for (path, shape, feeds) in files() {
        for feed in feeds.iter().filter(|feed| feed.collector == collector) {
            found.table(roots.procfs.join(path), shape, feed.format, "");
        }
    }
}

fn cost_columns(collector: &str) -> Vec<Column> {
    let labels = [("collector", collector)];
    vec![
        column("node_scrape_collector_duration_seconds", &labels, Kind::Gauge { scale: 9 }),
        column("node_scrape_collector_success", &labels, GAUGE),
        column("strobe_collector_interval_factor", &labels, GAUGE),
        column("strobe_collector_stretched_total", &labels, COUNTER),
    ]
}

const SECOND_NS: u64 = 1_000_000_000;
/// A tick this much early is in time.
const SLACK_NS: u64 = 50_000_000;
/// A series without a row for five minutes is gone to PromQL, so what is read once an hour is told
/// once a minute.
const ROW_NS_MAX: u64 = 60 * SECOND_NS;
/// How long a walk is believed that no directory contradicts.
const WALK_NS: u64 = 600 * SECOND_NS;
/// How long it is believed that there is nothing.
const ABSENT_NS: u64 = 60 * SECOND_NS;
