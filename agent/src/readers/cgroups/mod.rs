//! Control groups, versions 1 and 2 and both at once: what the busiest and largest use, and all
//! others together.
//!
//! ```text
//! /sys/fs/cgroup ─ visit, some at each reading, all within TURN_NS ─▶ tree: what each uses, new ones
//! told (Ranks)   ─ read each time, files kept open below KEEP_NS   ─▶ a name each
//! root           ─ read each time                                  ─▶ `other`: root − told
//! ```
//!
//! Only groups without groups below them are told, so nothing is told twice; what an inner group
//! uses itself is in `other`, as is what ended. A group that appears is found when its parent is
//! visited: a directory's link count says whether another is below it. What the root does not count
//! (memory and processors of version 2 have no file there, version 1 no disks) is the sum of the
//! groups below the root.
//!
//! Bounds: [`NODES_MAX`] groups, [`DEPTH_MAX`] deep; what is over is counted and not looked at.

mod eyes;
mod files;

use super::ranks::{Candidate, MEASURES, Ranks, Remainder, Rule, follow, growth, rate};
use super::sheet::{Repair, Sheet};
use super::{GAUGE, column};
use eyes::{Eyes, Told};
#[cfg(fuzzing)]
pub(super) use files::fuzz;
use files::{BASES, COUNTERS, CPU, FIELDS, Fields, IO, LEVELS, MEMORY};
use std::collections::HashMap;
use std::path::Path;
use strobe_wire::schema::Column;

/// The tree and who is told of it.
#[derive(Debug)]
pub(crate) struct Groups {
    eyes: Eyes,
    nodes: Vec<Option<Node>>,
    /// Where in `nodes` each path is.
    places: HashMap<Box<[u8]>, usize>,
    refused: u64,
    /// The next to be visited.
    cursor: usize,
    keys: u64,
    ranks: Ranks,
    root: Told,
    told: Vec<Told>,
    others: [Remainder; COUNTERS.len()],
    /// Whether the root counts it itself; as it was at the first reading.
    by_root: Option<[bool; COUNTERS.len()]>,
    /// What the groups below the root used of each counter.
    sums: [u64; COUNTERS.len()],
    /// Of all who are not told.
    other: Fields,
    other_mask: u32,
    read_ns: Option<u64>,
    choose_ns: u64,
    readings: u64,
    /// Found and not visited yet.
    todo: Vec<usize>,
}

/// One control group.
#[derive(Debug)]
struct Node {
    /// Below the root, without a `/` at its beginning; the root's is empty.
    path: Box<[u8]>,
    depth: usize,
    parent: usize,
    children: usize,
    /// Link counts of its directories when they were listed; none is not listed.
    links: [Option<u64>; BASES.len()],
    uses: Fields,
    scores: [u64; MEASURES],
    visited_ns: Option<u64>,
    /// A later group of this place has another.
    key: u64,
}

impl Groups {
    pub(crate) fn new(sysfs: &Path) -> Self {
        let mut groups = Self {
            eyes: Eyes::new(&sysfs.join("fs/cgroup")),
            nodes: Vec::new(),
            places: HashMap::new(),
            refused: 0,
            cursor: 0,
            keys: 0,
            ranks: Ranks::new(RULES),
            root: Told::of(0, b""),
            told: Vec::new(),
            others: [Remainder::default(); COUNTERS.len()],
            by_root: None,
            sums: [0; COUNTERS.len()],
            other: Fields::NONE,
            other_mask: 0,
            read_ns: None,
            choose_ns: 0,
            readings: 0,
            todo: Vec::new(),
        };
        groups.add(b"", 0, 0);
        groups
    }

    /// Whether there is a hierarchy at all.
    pub(super) fn is_there(&self) -> bool {
        self.eyes.is_there()
    }

    /// Reads the told, visits some of the others, and chooses anew if it is time.
    pub(super) fn read(&mut self, now_ns: u64) {
        let passed_ns = self.read_ns.replace(now_ns).map(|before| now_ns.saturating_sub(before));
        self.eyes.keeps = passed_ns.is_some_and(|passed| passed < KEEP_NS);
        self.readings = self.readings.wrapping_add(1);
        if passed_ns.is_none() {
            self.visit_some(now_ns, TURN_NS);
        }
        // Chosen before it is read: what is read of one who is told is told.
        let chosen = self.choose_ns <= now_ns.saturating_add(SLACK_NS);
        if chosen {
            self.choose_ns = now_ns.saturating_add(CHOOSE_NS);
            self.choose();
        }
        self.read_told(chosen);
        self.visit_tops(now_ns);
        self.visit_some(now_ns, passed_ns.unwrap_or(0));
        self.tell_other();
        if chosen {
            self.other_mask |= self.other.mask();
        }
    }

    /// What was read.
    pub(super) fn put(&self, sheet: &mut Sheet) {
        let count = self.places.len().saturating_sub(1);
        let totals = [u64::try_from(count).ok(), Some(self.refused)];
        sheet.put(TOTALS, b"", &totals, Repair::None);
        put_fields(OTHER, b"other", (self.other_mask, &self.other), sheet);
        for told in &self.told {
            put_fields(GROUP, &told.path, (told.mask, &told.fields), sheet);
        }
    }

    fn node(&self, index: usize) -> Option<&Node> {
        self.nodes.get(index)?.as_ref()
    }

    fn node_mut(&mut self, index: usize) -> Option<&mut Node> {
        self.nodes.get_mut(index)?.as_mut()
    }

    fn read_told(&mut self, chosen: bool) {
        // The root first: what is told may be ahead of it, which is owed, and not behind.
        self.root.read(&mut self.eyes, self.readings);
        for told in &mut self.told {
            told.read(&mut self.eyes, self.readings);
            if chosen {
                // A field that comes later waits for the next choice: the columns are others then.
                told.mask |= told.fields.mask();
            }
            for ((other, last), field) in self.others.iter_mut().zip(&mut told.last).zip(COUNTERS) {
                let told = told.fields.field(field).filter(|_| told.mask & 1 << field != 0);
                let Some(now) = told else { continue };
                if let Some(before) = last.replace(now) {
                    other.told(growth(before, now));
                }
            }
        }
    }

    /// The groups below the root stand for what the root does not count.
    fn visit_tops(&mut self, now_ns: u64) {
        let tops = self.nodes.iter().flatten().filter(|node| node.depth == 1).count();
        if TOPS_MAX < tops {
            return;
        }
        for index in 0..self.nodes.len() {
            if self.node(index).is_some_and(|node| node.depth == 1) {
                self.measure(index, now_ns);
            }
        }
    }

    /// As many as it takes to visit all within [`TURN_NS`], and whatever is new below them.
    fn visit_some(&mut self, now_ns: u64, passed_ns: u64) {
        let all = u64::try_from(self.nodes.len()).unwrap_or(u64::MAX);
        let share = u128::from(all) * u128::from(passed_ns.min(TURN_NS));
        let share = share.div_ceil(u128::from(TURN_NS));
        for _ in 0..share {
            if self.nodes.len() <= self.cursor {
                self.cursor = 0;
            }
            self.visit(self.cursor, now_ns);
            self.cursor += 1;
        }
        while let Some(index) = self.todo.pop() {
            self.visit(index, now_ns);
        }
    }

    fn visit(&mut self, index: usize, now_ns: u64) {
        let Some(node) = self.node_mut(index) else { return };
        let (path, depth, before) = (std::mem::take(&mut node.path), node.depth, node.links);
        let mut is_there = false;
        for (base, before) in before.into_iter().enumerate() {
            let Some(links) = self.eyes.links(base, &path) else { continue };
            is_there = true;
            // Some file systems do not count: theirs is always 1.
            if before == Some(links) && 1 < links {
                continue;
            }
            if let Some(node) = self.node_mut(index)
                && let Some(place) = node.links.get_mut(base)
            {
                *place = Some(links);
            }
            if depth < DEPTH_MAX {
                self.list(base, index, &path);
            }
        }
        if !is_there && index != 0 {
            self.remove(index, &path);
            return;
        }
        if let Some(node) = self.node_mut(index) {
            node.path = path;
        }
        self.measure(index, now_ns);
    }

    /// Takes in what is below a directory and not known.
    fn list(&mut self, base: usize, parent: usize, path: &[u8]) {
        let mut found = std::mem::take(&mut self.eyes.found);
        self.eyes.list(base, path, &mut found);
        let depth = self.node(parent).map_or(0, |node| node.depth);
        for child in found.drain(..) {
            if self.places.contains_key(&child) {
                continue;
            }
            if NODES_MAX <= self.places.len() {
                self.refused = self.refused.saturating_add(1);
                continue;
            }
            let index = self.add(&child, depth + 1, parent);
            self.todo.push(index);
        }
        self.eyes.found = found;
    }

    fn add(&mut self, path: &[u8], depth: usize, parent: usize) -> usize {
        self.keys += 1;
        let node = Node {
            path: path.into(),
            depth,
            parent,
            children: 0,
            links: [None; BASES.len()],
            uses: Fields::NONE,
            scores: [0; MEASURES],
            visited_ns: None,
            key: self.keys,
        };
        if depth != 0
            && let Some(parent) = self.node_mut(parent)
        {
            parent.children += 1;
        }
        let free = self.nodes.iter().position(Option::is_none);
        let index = free.unwrap_or(self.nodes.len());
        if let Some(place) = self.nodes.get_mut(index) {
            *place = Some(node);
        } else {
            self.nodes.push(Some(node));
        }
        self.places.insert(path.into(), index);
        index
    }

    /// Forgets a group and all below it.
    fn remove(&mut self, gone: usize, path: &[u8]) {
        self.places.remove(path);
        for index in 0..self.nodes.len() {
            let rest = |node: &Node| node.path.strip_prefix(path)?.first().copied();
            let below = |node: &mut Node| index == gone || rest(node) == Some(b'/');
            let Some(node) = self.nodes.get_mut(index).and_then(|place| place.take_if(below))
            else {
                continue;
            };
            self.places.remove(&node.path);
            if let Some(parent) = self.node_mut(node.parent) {
                parent.children = parent.children.saturating_sub(1);
            }
        }
    }

    /// What a group uses now.
    fn measure(&mut self, index: usize, now_ns: u64) {
        let Some(node) = self.nodes.get_mut(index).and_then(Option::as_mut) else { return };
        let mut uses = Fields::NONE;
        self.eyes.measure(&node.path, &mut uses);
        let before = node.visited_ns.replace(now_ns);
        if before == Some(now_ns) {
            return;
        }
        if node.depth == 1 && before.is_some() {
            for (sum, field) in self.sums.iter_mut().zip(COUNTERS) {
                if let (Some(before), Some(now)) = (node.uses.field(field), uses.field(field)) {
                    *sum = sum.saturating_add(growth(before, now));
                }
            }
        }
        // Of one that is new: what it used so far, as if it did since the host started.
        let passed_ns = before.map_or(now_ns, |before| now_ns.saturating_sub(before));
        let cpu = growth(node.uses.field(CPU).unwrap_or(0), uses.field(CPU).unwrap_or(0));
        let io = growth(node.uses.io_bytes(), uses.io_bytes());
        let [of_cpu, of_memory, of_io] = &mut node.scores;
        follow(of_cpu, rate(cpu, passed_ns), passed_ns);
        *of_memory = uses.field(MEMORY).unwrap_or(0);
        follow(of_io, rate(io, passed_ns), passed_ns);
        node.uses = uses;
    }

    /// What all together have, without what is told.
    fn tell_other(&mut self) {
        let root = self.root.fields;
        // Of version 1 the root does not count its disks, and has zeros there.
        let counts =
            |field: usize| root.field(field).is_some() && (self.eyes.is_unified() || field < IO);
        let by_root = *self.by_root.get_or_insert_with(|| COUNTERS.map(counts));
        let sources = COUNTERS.into_iter().zip(by_root).zip(self.sums);
        for (other, ((field, by_root), sum)) in self.others.iter_mut().zip(sources) {
            let seldom_known = !self.eyes.is_unified() && IO + 1 < field;
            let total =
                if by_root { root.field(field) } else { Some(sum).filter(|_| !seldom_known) };
            self.other.set(field, other.total(total));
        }
        for field in LEVELS {
            let tops = self.nodes.iter().flatten().filter(|node| node.depth == 1);
            let sum = || tops.filter_map(|node| node.uses.field(field)).reduce(u64::saturating_add);
            let total = self.root.fields.field(field).or_else(sum);
            let told = self.told.iter().filter_map(|told| told.fields.field(field));
            let told = told.fold(0, u64::saturating_add);
            self.other.set(field, total.map(|total| total.saturating_sub(told)));
        }
    }

    fn choose(&mut self) {
        let told = &self.told;
        let candidates =
            self.nodes.iter().flatten().filter(|node| node.children == 0 && node.depth != 0);
        let candidates = candidates.map(|node| Candidate {
            key: node.key,
            scores: node.scores,
            told: told.iter().any(|told| told.key == node.key),
        });
        let chosen = self.ranks.choose(candidates);
        // Another group in a place that is told is the same series.
        for told in &mut self.told {
            let node =
                self.places.get(&told.path).and_then(|index| self.nodes.get(*index)?.as_ref());
            told.key = node.map_or(told.key, |node| node.key);
        }
        self.told.retain(|told| chosen.contains(&told.key));
        for node in self.nodes.iter().flatten().filter(|node| chosen.contains(&node.key)) {
            if !self.told.iter().any(|told| told.key == node.key) {
                self.told.push(Told::of(node.key, &node.path));
            }
        }
    }
}

fn put_fields(shape: u8, path: &[u8], told: (u32, &Fields), sheet: &mut Sheet) {
    let (mask, fields) = told;
    let mut key = [0; 4 + PATH_BYTES_MAX];
    let (first, rest) = key.split_at_mut(4);
    first.copy_from_slice(&mask.to_be_bytes());
    // A longer one was refused.
    let Some(room) = rest.get_mut(..path.len()) else { return };
    room.copy_from_slice(path);
    let mut values = [None; FIELDS];
    let told = (0..FIELDS).filter(|field| mask & 1 << field != 0);
    let count = told.zip(&mut values).map(|(field, value)| *value = fields.field(field)).count();
    let key = key.get(..4 + path.len()).unwrap_or(&[]);
    if 0 < count {
        sheet.put(shape, key, values.get(..count).unwrap_or(&[]), Repair::None);
    }
}

pub(super) fn columns(shape: u8, key: &[u8]) -> Vec<Column> {
    if shape == TOTALS {
        return ["strobe_cgroups", "strobe_cgroups_refused"].map(|n| column(n, &[], GAUGE)).into();
    }
    let (mask, path) = key.split_at_checked(4).unwrap_or((&[], &[]));
    let mask = mask.iter().fold(0, |mask, byte| mask << 8 | u32::from(*byte));
    let path = String::from_utf8_lossy(path);
    // A group at the root may call itself so: its path begins with a `/`.
    let path = if shape == OTHER { path.into_owned() } else { format!("/{path}") };
    files::columns(&path, mask)
}

const TOTALS: u8 = 0;
const OTHER: u8 = 1;
const GROUP: u8 = 2;
/// Processors in ns a second, memory in bytes, disks in bytes a second.
const RULES: [Rule; MEASURES] = [
    Rule { top: 10, least: 1_000_000 },
    Rule { top: 10, least: 1 << 20 },
    Rule { top: 5, least: 4096 },
];
/// All groups are visited within this.
const TURN_NS: u64 = 10_000_000_000;
/// Between two choices of who is told.
const CHOOSE_NS: u64 = 10_000_000_000;
const SLACK_NS: u64 = 50_000_000;
/// Files that are read again within this are kept open: each holds a page of the kernel's memory.
const KEEP_NS: u64 = 5_000_000_000;
const NODES_MAX: usize = 16_384;
const DEPTH_MAX: usize = 16;
const TOPS_MAX: usize = 32;
const PATH_BYTES_MAX: usize = 1024;

#[cfg(test)]
mod tests;
