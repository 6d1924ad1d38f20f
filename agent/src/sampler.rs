//! One reading of the host: every file once, every section's row.
//!
//! ```text
//! files ──pread──▶ one buffer ──parse──▶ sheets (a source's columns) ──gather──▶ rows ──▶ sink
//! ```
//!
//! [`Sampler::tick`] allocates nothing while the sets of cores, disks, links and mounts stay as
//! they are (a test with a counting allocator holds this). A source that cannot be read gives
//! columns without values and `node_scrape_collector_success` 0, never a zero. A set that changes
//! gives its section, and no other, a new schema. A section of more than
//! [`SECTION_COLUMNS_MAX`] columns is cut into `name`, `name.1`, …, [`PARTS_MAX`] at most; columns
//! beyond that are left out and counted in `strobe_sampler_columns_refused`.

mod catalog;
mod families;
mod governor;
mod mounts;
mod name;
mod patient;
mod scores;
mod section;
mod source;

use crate::config::SMALL;
use crate::readers::disk;
use crate::readers::filesystem::Mount;
pub use crate::readers::host::Uname;
use crate::readers::kept::{Buffer, Kept};
use crate::readers::link_stats::LinkStats;
use crate::readers::sheet::{Entry, Outcome, Repair, Sheet, Vanish};
use crate::readers::{Format, GAUGE, Roots, column};
use crate::schemas::Table;
pub use catalog::{COLLECTORS as CATALOG, Choice, Collector, known as collector};
use families::Families;
use mounts::Mounts;
use name::KernelName;
use scores::Judging;
pub use scores::Scoring;
pub use section::PARTS_MAX;
use section::Section;
pub use source::kept_files;
use source::{COLLECTORS, SECTIONS, files};
use std::collections::HashSet;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use strobe_wire::ids::SchemaId;
use strobe_wire::limits::SECTION_COLUMNS_MAX;
use strobe_wire::schema::{Column, Kind, Schema};

/// Which trees are read, and how often what is slow.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Trees {
    /// `/proc`, or another tree of the same form.
    pub procfs: PathBuf,
    /// `/sys`, or another tree of the same form.
    pub sysfs: PathBuf,
    /// Where the host's `/` is, for statfs.
    pub rootfs: PathBuf,
    /// How often file systems are asked for their space.
    pub filesystem_interval_ms: u64,
    /// Which collectors are read.
    pub choice: Choice,
}

/// When a reading is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tick {
    /// Wall time in ns since the epoch.
    pub wall_ns: i64,
    /// Time since the machine started in ns.
    pub boottime_ns: u64,
}

/// One section's values of one tick.
#[derive(Clone, Copy, Debug)]
pub struct SectionRow<'a> {
    /// Its columns.
    pub schema: &'a Arc<Schema>,
    /// Their name.
    pub id: SchemaId,
    /// 64 bits a column; 0 where it has no value.
    pub values: &'a [u64],
    /// Bit `i % 8` of byte `i / 8` is set where column `i` has a value.
    pub valid: &'a [u8],
    /// An anomaly score a column, or none at all ([`strobe_wire::score`]).
    pub scores: &'a [u8],
}

/// Reads the host.
#[derive(Debug)]
pub struct Sampler {
    clock: fn() -> u64,
    table: Arc<Table>,
    buffer: Buffer,
    files: Vec<SourceFile>,
    sources: Vec<Source>,
    sections: Vec<Section>,
    costs: [Cost; COLLECTORS.len()],
    name: KernelName,
    mounts: Mounts,
    families: Families,
    scoring: Scoring,
    /// The anomaly rate of each tick.
    edge: Section,
    /// Which of [`COLLECTORS`] are read here, at each tick.
    here: [bool; COLLECTORS.len()],
    rebuilt: u64,
}

/// A file and those who parse it.
#[derive(Debug)]
struct SourceFile {
    kept: Kept,
    sources: Range<usize>,
    /// Of the links' text: another way to the same, which the small build has no code of.
    links: Option<LinkStats>,
}

/// What fills some columns of a section.
#[derive(Debug)]
struct Source {
    feed: Feed,
    sheet: Sheet,
    section: usize,
    collector: usize,
    /// Whether the collector fails without it.
    needed: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Feed {
    File(Format),
    Time,
    Uname,
    Filesystem,
    Totals,
}

/// What a collector of each tick cost when that was last measured, and whether it could be read now.
#[derive(Clone, Copy, Debug)]
struct Cost {
    collector: &'static str,
    ns: u64,
    spent_ns: u64,
    success: bool,
}

impl Sampler {
    /// `clock` is a monotonic clock in ns, for the cost of each source.
    #[must_use]
    pub fn new(trees: &Trees, clock: fn() -> u64, table: Arc<Table>) -> Self {
        let (procfs, sysfs) = (trees.procfs.clone(), trees.sysfs.clone());
        let (rootfs, textfiles) = (trees.rootfs.clone(), trees.choice.textfiles.clone());
        let roots = Roots { procfs, sysfs, rootfs, textfiles };
        let (picks, scoring) = (trees.choice.picks(), trees.choice.scoring);
        let families = Families::new(roots, &picks, (clock, scoring), Arc::clone(&table));
        let mut sampler = Self {
            clock,
            table,
            buffer: Buffer::new(),
            files: Vec::new(),
            sources: Vec::new(),
            sections: SECTIONS.map(|name| Section::new(name, scoring)).into(),
            costs: COLLECTORS.map(|collector| Cost {
                collector,
                ns: 0,
                spent_ns: 0,
                success: true,
            }),
            name: KernelName::new(&trees.procfs),
            mounts: Mounts::new(trees),
            families,
            scoring,
            edge: Section::new("edge", Scoring::Off),
            here: COLLECTORS.map(|name| picks.iter().any(|pick| pick.is_each_tick(name))),
            rebuilt: 0,
        };
        let is_here = |name: &str| picks.iter().any(|pick| pick.is_each_tick(name));
        for (path, shape, mut feeds) in files() {
            let first = sampler.sources.len();
            feeds.retain(|feed| is_here(feed.collector));
            if feeds.is_empty() {
                continue;
            }
            for feed in feeds {
                sampler.add(Feed::File(feed.format), feed.section, feed.collector, feed.needed);
            }
            let kept = match path {
                "diskstats" => disk::kept(&trees.procfs, &trees.sysfs, LIST_READS),
                _ => Kept::new(trees.procfs.join(path), shape),
            };
            let links = (path == "net/dev").then(LinkStats::default);
            sampler.files.push(SourceFile { kept, sources: first..sampler.sources.len(), links });
        }
        let others = [
            (Feed::Time, "host", "time"),
            (Feed::Uname, "host", "uname"),
            (Feed::Filesystem, "filesystem", "filesystem"),
        ];
        for (feed, section, collector) in others.into_iter().filter(|(_, _, name)| is_here(name)) {
            sampler.add(feed, section, collector, true);
        }
        sampler.add(Feed::Totals, "host", "", false);
        sampler
    }

    /// Reads everything once and hands each section's row to `sink`.
    pub fn tick(&mut self, now: Tick, mut sink: impl FnMut(SectionRow<'_>)) {
        // The clock is looked at between the files when what they cost is told.
        let timed = self.families.is_to_tell_costs(now.boottime_ns);
        let clock = if timed { self.clock } else { || 0 };
        for cost in &mut self.costs {
            (cost.ns, cost.success) = (if timed { 0 } else { cost.ns }, true);
        }
        for section in &mut self.sections {
            section.due = section.name != "filesystem";
        }
        self.read_files(now.boottime_ns, clock);
        self.read_name(now, clock);
        self.read_mounts(now, clock);
        self.read_totals();
        if timed {
            self.costs.iter_mut().for_each(|cost| cost.spent_ns += cost.ns);
        }
        let mut judging = Judging::new(now);
        for index in 0..self.sections.len() {
            self.emit(index, &mut judging, &mut sink);
        }
        let here =
            self.costs.iter().zip(self.here).filter(|(_, here)| *here).map(|(cost, _)| *cost);
        self.families.tick(&mut judging, &mut self.buffer, here, &mut sink);
        self.tell_edge(&judging, &mut sink);
    }

    /// Asks for the file systems' space and waits for it, for those who sample once. The next
    /// tick, at the same time, has the answers.
    pub fn settle(&mut self, now: Tick, timeout: Duration) {
        self.families.settle(now.boottime_ns, timeout);
        self.mounts.next_ns = 0;
        self.mounts.ask(now.boottime_ns, &mut self.buffer);
        self.mounts.hazard.wait(now.boottime_ns, timeout);
    }

    /// How often there was something new: a set of columns, a list of mounts, a hazard thread. Only
    /// ticks that raise this allocate.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.rebuilt + self.mounts.changes() + self.families.changes()
    }

    /// From now on each tick has the rows of all collectors, for those who are asked for all: what
    /// is not due is told as it was the last time.
    pub fn tell_all(&mut self) {
        self.families.whole = true;
    }

    /// What collectors have cost so far, in ns: those of each tick in the ticks that told of it.
    pub fn spent(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let here = self.costs.iter().zip(self.here).filter(|(_, here)| *here);
        here.map(|(cost, _)| (cost.collector, cost.spent_ns)).chain(self.families.spent())
    }

    /// What the kernel calls itself and the host.
    #[must_use]
    pub fn uname(&self) -> &Uname {
        &self.name.uname
    }

    fn add(&mut self, feed: Feed, section: &str, collector: &str, needed: bool) {
        let found = |list: &[&str], name: &str| list.iter().position(|known| *known == name);
        let section = found(&SECTIONS, section).expect("files() names sections of SECTIONS");
        // What belongs to no collector is booked on the last, which is not published.
        let collector = found(&COLLECTORS, collector).unwrap_or(COLLECTORS.len() - 1);
        let vanish = if SECTIONS.get(section) == Some(&"host") { Vanish::Stay } else { Vanish::Go };
        self.sources.push(Source { feed, sheet: Sheet::new(vanish), section, collector, needed });
    }

    fn read_files(&mut self, now_ns: u64, clock: fn() -> u64) {
        for file in &mut self.files {
            let mut before = clock();
            if let Some(links) = file.links.as_mut().filter(|_| !SMALL)
                && links.is_chosen()
                && links.read(now_ns)
            {
                let Some(source) = self.sources.get_mut(file.sources.start) else { continue };
                let changed = source.fill(|sheet| links.put(sheet));
                mark(&mut self.sections, source.section, changed);
                if let Some(cost) = self.costs.get_mut(source.collector) {
                    cost.ns += clock().saturating_sub(before);
                }
                continue;
            }
            let found = file.kept.read(&mut self.buffer).is_some();
            for source in self.sources.get_mut(file.sources.clone()).unwrap_or(&mut []) {
                let Feed::File(format) = source.feed else { continue };
                let read = match file.kept.last(&self.buffer).filter(|_| found) {
                    Some(bytes) => {
                        let mut changed = source.fill(|sheet| format.parse(bytes, sheet));
                        if source.sheet.has_all() {
                            file.kept.suffices(source.sheet.reach);
                        } else if let Some(whole) = file.kept.read_on(&mut self.buffer) {
                            changed |= source.fill(|sheet| format.parse(whole, sheet));
                        }
                        mark(&mut self.sections, source.section, changed);
                        source.sheet.has_any()
                    }
                    None => {
                        source.sheet.begin();
                        false
                    }
                };
                let after = clock();
                if let Some(cost) = self.costs.get_mut(source.collector) {
                    cost.ns += after.saturating_sub(before);
                    cost.success &= read || !source.needed;
                }
                before = after;
            }
            if let Some(links) = file.links.as_mut().filter(|_| !SMALL)
                && let Some(source) = self.sources.get(file.sources.start)
                && links.is_due(source.sheet.entries().len(), now_ns)
            {
                let (kept, buffer) = (&mut file.kept, &mut self.buffer);
                links.try_out(now_ns, self.clock, |sheet| {
                    if let Some(bytes) = kept.read(buffer) {
                        Format::Devices.parse(bytes, sheet);
                    }
                });
            }
        }
    }

    fn read_name(&mut self, now: Tick, clock: fn() -> u64) {
        let mut before = clock();
        let renamed = self.name.refresh(now.boottime_ns, &mut self.buffer);
        for source in &mut self.sources {
            let value = match source.feed {
                Feed::Time => now.wall_ns.cast_unsigned(),
                Feed::Uname => 1,
                _ => continue,
            };
            let changed = source.fill(|sheet| sheet.put(0, b"", &[Some(value)], Repair::None));
            mark(&mut self.sections, source.section, changed || renamed);
            if let Some(cost) = self.costs.get_mut(source.collector) {
                let after = clock();
                cost.ns += after.saturating_sub(before);
                before = after;
            }
        }
    }

    fn read_mounts(&mut self, now: Tick, clock: fn() -> u64) {
        let before = clock();
        let asked = self.mounts.ask(now.boottime_ns, &mut self.buffer);
        let ready = self.mounts.is_ready(now.boottime_ns);
        let source = self.sources.iter_mut().find(|source| source.feed == Feed::Filesystem);
        let Some(source) = source else { return };
        if ready {
            let mounts = &mut self.mounts;
            let changed = source.fill(|sheet| mounts.put(now.boottime_ns, sheet));
            mark(&mut self.sections, source.section, changed);
            mounts.asked_ns = None;
            if let Some(section) = self.sections.get_mut(source.section) {
                section.due = true;
            }
        }
        if let Some(cost) = self.costs.get_mut(source.collector) {
            cost.ns += clock().saturating_sub(before);
            cost.success = asked;
        }
    }

    fn read_totals(&mut self) {
        let refused = self.sections.iter().map(|section| section.refused).sum::<u64>()
            + self.sources.iter().map(|source| source.sheet.refused()).sum::<u64>()
            + self.families.refused();
        let totals = [Some(refused), Some(self.mounts.hung)];
        let source = self.sources.iter_mut().find(|source| source.feed == Feed::Totals);
        let Some(source) = source else { return };
        let changed = source.fill(|sheet| sheet.put(0, b"", &totals, Repair::None));
        mark(&mut self.sections, source.section, changed);
    }

    /// What is known only when everything else is.
    fn tell_edge(&mut self, judging: &Judging, sink: &mut impl FnMut(SectionRow<'_>)) {
        if self.scoring == Scoring::Off {
            return;
        }
        if self.edge.changed {
            let rate = column("strobe_agent_anomaly_rate", &[], Kind::Gauge { scale: 4 });
            self.edge.rebuild(vec![vec![rate]], &self.table);
            self.rebuilt += 1;
        }
        let rate = judging.rate();
        self.edge.emit(|_, _| rate, &mut Judging::new(judging.now), sink);
    }

    fn emit(&mut self, index: usize, judging: &mut Judging, sink: &mut impl FnMut(SectionRow<'_>)) {
        if self.sections.get(index).is_some_and(|section| section.changed) {
            self.rebuild(index);
        }
        let Some(section) = self.sections.get_mut(index).filter(|section| section.due) else {
            return;
        };
        for part in &mut section.parts {
            part.gather(|source, column| self.sources.get(source)?.sheet.value(column));
            part.judge(judging);
            sink(part.row());
        }
    }

    /// New schemas for a section whose set of columns changed.
    fn rebuild(&mut self, index: usize) {
        let mut plan = Vec::new();
        let mut columns = Vec::new();
        let mut known = HashSet::new();
        let mut refused = 0;
        for (at, source) in self.sources.iter().enumerate() {
            if source.section != index {
                continue;
            }
            let mut first = 0;
            for entry in source.sheet.entries() {
                let described = self.describe(source.feed, entry);
                debug_assert_eq!(described.len(), entry.count);
                for (offset, column) in described.into_iter().take(entry.count).enumerate() {
                    // Two keys may differ only in bytes that a name or label cannot show.
                    let unique = known.insert((column.name.clone(), column.labels.clone()));
                    if unique && plan.len() < PARTS_MAX * SECTION_COLUMNS_MAX {
                        plan.push((at, first + offset));
                        columns.push(column);
                    } else {
                        refused += 1;
                    }
                }
                first += entry.count;
            }
        }
        let Some(section) = self.sections.get_mut(index) else { return };
        section.set(columns, &plan, &self.table);
        section.refused = refused;
        self.rebuilt += 1;
    }

    fn describe(&self, feed: Feed, entry: &Entry) -> Vec<Column> {
        match feed {
            Feed::File(format) => format.columns(entry),
            Feed::Time => vec![column("node_time_seconds", &[], NANOSECONDS)],
            Feed::Uname => vec![self.name.uname.column()],
            Feed::Filesystem => {
                let key = |mount: &&Mount| *mount.key() == *entry.key;
                self.mounts.list.iter().find(key).map(Mount::columns).unwrap_or_default()
            }
            Feed::Totals => vec![
                column("strobe_sampler_columns_refused", &[], GAUGE),
                column("strobe_sampler_mounts_hung", &[], GAUGE),
            ],
        }
    }
}

impl Source {
    /// Runs `parse` over the sheet, twice if there is something to learn; whether there was.
    fn fill(&mut self, mut parse: impl FnMut(&mut Sheet)) -> bool {
        self.sheet.begin();
        parse(&mut self.sheet);
        let changed = self.sheet.end() == Outcome::Changed;
        if changed {
            self.sheet.learn();
            parse(&mut self.sheet);
            self.sheet.learned();
        }
        changed
    }
}

fn mark(sections: &mut [Section], index: usize, changed: bool) {
    if let Some(section) = sections.get_mut(index) {
        section.changed |= changed;
    }
}

const NANOSECONDS: Kind = Kind::Gauge { scale: 9 };
/// Readings of disks' own files to one of the list.
const LIST_READS: u32 = 4;

#[cfg(test)]
mod kernels;
#[cfg(test)]
mod tests;
