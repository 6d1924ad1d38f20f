//! Tables of the kernel that are read on request: interrupts, softirqs, buddyinfo, zoneinfo, slabinfo,
//! cgroups; and those of software RAID and of IPVS.

use super::net_tables::hexadecimal;
use super::sheet::{Repair, Sheet};
use super::text::{lines, next, number, signed, words};
use super::{COUNTER, GAUGE, column};
use strobe_wire::schema::{Column, Kind};

/// `CPU0 CPU1` above, ` 24: 1 0 IO-APIC 5-edge ACPI:Ged` or `TIMER: 637760 753265` below. The heading
/// names the CPUs that are on line, so a value keeps its CPU when others go. With more than
/// [`CPUS_MAX`] a line is told as its sum.
pub(super) fn parse_by_cpu(bytes: &[u8], sheet: &mut Sheet) {
    let mut lines = lines(bytes);
    let heading = lines.next().unwrap_or(&[]).trim_ascii();
    let cpus = words(heading).count();
    for line in lines {
        let mut words = words(line);
        let Some(name) = words.next().and_then(|word| word.strip_suffix(b":")) else { continue };
        let mut values = [None; CPUS_MAX];
        let (mut found, mut sum) = (0, 0_u64);
        for place in 0..cpus {
            let Some(value) = words.next().and_then(number) else { break };
            if let Some(slot) = values.get_mut(place) {
                *slot = Some(value);
            }
            sum = sum.saturating_add(value);
            found += 1;
        }
        // ERR and MIS have one number for all.
        if cpus == 0 || found < cpus {
            continue;
        }
        let rest = words.rest().trim_ascii();
        let mut key = Key::new();
        let each = cpus <= CPUS_MAX;
        let whole = if each {
            key.all(&[name, b"\n", heading, b"\n", rest])
        } else {
            key.all(&[name, b"\n", rest])
        };
        match values.get(..cpus) {
            // A kernel's line of 64 CPUs has 700 bytes of heading.
            _ if !whole => sheet.refuse(),
            Some(values) if each => sheet.put(EACH, key.bytes(), values, Repair::None),
            _ => sheet.put(SUM, key.bytes(), &[Some(sum)], Repair::None),
        }
    }
}

/// `metric{cpu,type}`, and what an interrupt line has behind its numbers.
pub(super) fn by_cpu_columns(metric: &str, shape: u8, key: &str) -> Vec<Column> {
    let mut parts = key.split('\n');
    let name = parts.next().unwrap_or("");
    let heading = if shape == EACH { parts.next().unwrap_or("") } else { "CPUall" };
    let words: Vec<&str> = parts.next().unwrap_or("").split_whitespace().collect();
    // Of a numbered interrupt the first word is its controller.
    let numbered = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit());
    let (info, devices) = words.split_at(if numbered { 1.min(words.len()) } else { words.len() });
    let (info, devices) = (info.join(" "), devices.join(" "));
    // Parted as the parser parts it, whatever the bytes: as many names as values.
    let cpus = heading.split(|c: char| c <= ' ').filter(|cpu| !cpu.is_empty());
    let cpus = cpus.map(|cpu| cpu.trim_start_matches("CPU"));
    cpus.map(|cpu| {
        let labels = [("cpu", cpu), ("type", name), ("info", &*info), ("devices", &*devices)];
        column(metric, &labels, COUNTER)
    })
    .collect()
}

/// `Node 0, zone   Normal   1024   512 …`: free blocks of 2^0, 2^1, … pages.
pub(super) fn parse_buddy(bytes: &[u8], sheet: &mut Sheet) {
    for line in lines(bytes) {
        let Some((zone, rest)) = zone_of(line) else { continue };
        let mut values = [None; ORDERS_MAX];
        let mut count = 0;
        for (value, word) in values.iter_mut().zip(words(rest)) {
            *value = signed(word);
            count += 1;
        }
        sheet.put(0, zone, values.get(..count).unwrap_or(&[]), Repair::None);
    }
}

pub(super) fn buddy_columns(zone: &str, count: usize) -> Vec<Column> {
    let (node, zone) = node_and_zone(zone);
    let size = |size: usize| {
        let size = size.to_string();
        column("node_buddyinfo_blocks", &[("node", node), ("zone", zone), ("size", &size)], GAUGE)
    };
    (0..count).map(size).collect()
}

/// `Node 0, zone DMA` and below it `pages free 3952`, `min 33`, `protection: (0, 2877, …)`.
pub(super) fn parse_zones(bytes: &[u8], sheet: &mut Sheet) {
    let mut zone: &[u8] = b"";
    let mut values = [None; ZONE.len()];
    let mut protection = ([None; ZONES_MAX], 0);
    let mut tell =
        |zone: &[u8], values: &mut [Option<u64>], guard: &mut ([_; ZONES_MAX], usize)| {
            if !zone.is_empty() {
                sheet.put(ZONE_VALUES, zone, values, Repair::None);
                let guards = guard.0.get(..guard.1).unwrap_or(&[]);
                sheet.put(ZONE_GUARDS, zone, guards, Repair::None);
            }
            values.fill(None);
            *guard = ([None; ZONES_MAX], 0);
        };
    for line in lines(bytes) {
        if let Some((next, _)) = zone_of(line) {
            tell(zone, &mut values, &mut protection);
            zone = next;
            continue;
        }
        let mut words = words(line);
        let Some(name) = words.next() else { continue };
        if name == b"protection:" {
            for (guard, word) in protection.0.iter_mut().zip(words) {
                let digits = |byte: &u8| byte.is_ascii_digit();
                let first = word.iter().position(digits).unwrap_or(word.len());
                let last = word.iter().rposition(digits).map_or(first, |last| last + 1);
                *guard = word.get(first..last).and_then(signed);
                protection.1 += 1;
            }
        } else if let Some(place) = ZONE.iter().position(|(known, ..)| known.as_bytes() == name)
            && let Some(value) = values.get_mut(place)
        {
            *value = words.next().and_then(signed);
        }
    }
    tell(zone, &mut values, &mut protection);
}

pub(super) fn zone_columns(shape: u8, zone: &str, count: usize) -> Vec<Column> {
    let (node, zone) = node_and_zone(zone);
    let labels = [("node", node), ("zone", zone)];
    if shape == ZONE_GUARDS {
        let guard = |at| column(&format!("node_zoneinfo_protection_{at}"), &labels, GAUGE);
        return (0..count).map(guard).collect();
    }
    let named = |(_, name, kind): &(&str, &str, Kind)| {
        column(&format!("node_zoneinfo_{name}"), &labels, *kind)
    };
    ZONE.iter().map(named).collect()
}

/// `kmalloc-64 9984 9984 64 64 1 : tunables …`; readable for root alone.
pub(super) fn parse_slabs(bytes: &[u8], sheet: &mut Sheet) {
    for line in lines(bytes).filter(|line| !line.starts_with(b"#")) {
        let mut words = words(line);
        let Some(slab) = words.next() else { continue };
        let values: [Option<u64>; SLAB.len()] = std::array::from_fn(|_| next(&mut words));
        if values.iter().all(Option::is_some) {
            sheet.put(0, slab, &values, Repair::None);
        }
    }
}

pub(super) fn slab_columns(slab: &str) -> Vec<Column> {
    SLAB.map(|name| column(name, &[("slab", slab)], GAUGE)).into()
}

/// `cpu 2 110 1`: hierarchy, how many cgroups, whether on.
pub(super) fn parse_cgroups(bytes: &[u8], sheet: &mut Sheet) {
    for line in lines(bytes).filter(|line| !line.starts_with(b"#")) {
        let mut words = words(line);
        let (Some(subsystem), Some(_)) = (words.next(), words.next()) else { continue };
        let values = [next(&mut words), next(&mut words)];
        sheet.put(0, subsystem, &values, Repair::None);
    }
}

pub(super) fn cgroup_columns(subsystem: &str) -> Vec<Column> {
    ["node_cgroups_cgroups", "node_cgroups_enabled"]
        .map(|name| column(name, &[("subsys_name", subsystem)], GAUGE))
        .into()
}

/// `md1 : active raid1 sdb1[1] sda1[0](F)`, a line of size and state, and one of a recovery.
pub(super) fn parse_raid(bytes: &[u8], sheet: &mut Sheet) {
    let mut lines = lines(bytes).peekable();
    while let Some(line) = lines.next() {
        let mut parts = words(line);
        let (Some(device), Some(b":"), Some(state)) = (parts.next(), parts.next(), parts.next())
        else {
            continue;
        };
        if line.starts_with(b"Personalities") || line.starts_with(b"unused") {
            continue;
        }
        let Some(status) = lines.next() else { break };
        // Until the empty line between devices: a bitmap, a recovery.
        let mut progress: &[u8] = b"";
        while let Some(more) = lines.next_if(|line| !line.trim_ascii().is_empty()) {
            if ["recovery", "resync", "check"].iter().any(|word| has(more, word)) {
                progress = more;
            }
        }
        let values = raid_values(line, state, status, progress);
        sheet.put(0, device, &values, Repair::None);
    }
}

fn raid_values(
    line: &[u8],
    state: &[u8],
    status: &[u8],
    progress: &[u8],
) -> [Option<u64>; RAID.len()] {
    let count = |text: &str| {
        let found = line.windows(text.len()).filter(|part| *part == text.as_bytes()).count();
        u64::try_from(found).unwrap_or(u64::MAX)
    };
    let size = words(status).next().and_then(number);
    // `[2/1]`: wanted and there. Stripes have neither, and lose nothing without losing all.
    let ratio = words(status).find_map(|word| {
        let inner = word.strip_prefix(b"[")?.strip_suffix(b"]")?;
        let slash = inner.iter().position(|byte| *byte == b'/')?;
        Some((number(inner.get(..slash)?)?, number(inner.get(slash + 1..)?)?))
    });
    let (total, active) = match ratio {
        _ if has(line, "raid0") || has(line, "linear") => (Some(count("[")), Some(count("["))),
        _ if state == b"inactive" => (Some(0), Some(0)),
        Some((total, active)) => (Some(total), Some(active)),
        None => (None, None),
    };
    let recovering = has(progress, "recovery");
    let checking = has(progress, "check") && !recovering;
    let resyncing = has(progress, "resync") && !recovering && !checking;
    let synced = match progress {
        b"" => size,
        _ if has(progress, "PENDING") || has(progress, "DELAYED") => Some(0),
        // `(16775552/1855870912)`
        _ => words(progress).find_map(|word| {
            let inner = word.strip_prefix(b"(")?;
            let slash = inner.iter().position(|byte| *byte == b'/')?;
            number(inner.get(..slash)?)
        }),
    };
    let busy = !progress.is_empty();
    let flag = |truth: bool| Some(u64::from(truth));
    [
        total,
        active,
        Some(count("(F)")),
        Some(count("(S)")),
        flag(state == b"active" && !busy),
        flag(state == b"inactive" && !busy),
        flag(recovering),
        flag(resyncing),
        flag(checking),
        size,
        synced,
    ]
}

pub(super) fn raid_columns(device: &str) -> Vec<Column> {
    RAID.map(|(name, state)| column(name, &[("device", device), ("state", state)], GAUGE)).into()
}

/// The third line has the totals, in hexadecimal.
pub(super) fn parse_ipvs_stats(bytes: &[u8], sheet: &mut Sheet) {
    let mut words = words(lines(bytes).nth(2).unwrap_or(&[]));
    let values: [Option<u64>; IPVS.len()] =
        std::array::from_fn(|_| words.next().and_then(hexadecimal));
    if values.iter().all(Option::is_some) {
        sheet.put(0, b"", &values, Repair::None);
    }
}

pub(super) fn ipvs_stats_columns() -> Vec<Column> {
    IPVS.map(|name| column(name, &[], COUNTER)).into()
}

/// `TCP C0A80016:0CEA wlc` is a service, `-> C0A85216:0CEA Tunnel 100 248 2` one of its servers.
pub(super) fn parse_ipvs(bytes: &[u8], sheet: &mut Sheet) {
    let (mut protocol, mut service): (&[u8], &[u8]) = (b"", b"");
    for line in lines(bytes) {
        let mut words = words(line);
        match (words.next(), words.next()) {
            (Some(kind @ (b"TCP" | b"UDP" | b"SCTP" | b"FWM")), Some(address)) => {
                (protocol, service) = (kind, address);
            }
            (Some(b"->"), Some(remote)) if remote.contains(&b':') && !protocol.is_empty() => {
                words.next();
                let (weight, active, idle) = (next(&mut words), next(&mut words), next(&mut words));
                let mut key = Key::new();
                if key.all(&[protocol, b"\n", service, b"\n", remote]) && weight.is_some() {
                    sheet.put(0, key.bytes(), &[active, idle, weight], Repair::None);
                }
            }
            _ => {}
        }
    }
}

pub(super) fn ipvs_columns(key: &str) -> Vec<Column> {
    let mut parts = key.split('\n');
    let mut part = || parts.next().unwrap_or("");
    let (protocol, service, remote) = (part(), part(), part());
    let is_mark = protocol == "FWM";
    let (address, port) = if is_mark { (String::new(), "0".to_owned()) } else { endpoint(service) };
    let (remote_address, remote_port) = endpoint(remote);
    let labels = [
        ("local_address", &*address),
        ("local_port", &*port),
        ("remote_address", &*remote_address),
        ("remote_port", &*remote_port),
        ("proto", protocol),
        ("local_mark", if is_mark { service } else { "" }),
    ];
    ["connections_active", "connections_inactive", "weight"]
        .map(|name| column(&format!("node_ipvs_backend_{name}"), &labels, GAUGE))
        .into()
}

/// `C0A80016:0CEA` or `[2620:0000:…]:0050`.
fn endpoint(text: &str) -> (String, String) {
    let Some((address, port)) = text.rsplit_once(':') else { return Default::default() };
    let port = u16::from_str_radix(port, 16).unwrap_or(0).to_string();
    let six = address.strip_prefix('[').and_then(|inner| inner.strip_suffix(']'));
    let address = match six {
        Some(inner) => inner.parse::<std::net::Ipv6Addr>().map(|a| a.to_string()).ok(),
        None => {
            u32::from_str_radix(address, 16).ok().map(|a| std::net::Ipv4Addr::from(a).to_string())
        }
    };
    (address.unwrap_or_default(), port)
}

/// `Node 0, zone   DMA32` at the beginning of a line, and what stands behind it.
fn zone_of(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let rest = line.strip_prefix(b"Node ")?;
    let mut words = words(rest);
    let (_, zone, name) = (words.next()?, words.next()?, words.next()?);
    if zone != b"zone" || name.is_empty() {
        return None;
    }
    line.split_at_checked(line.len() - words.rest().len())
}

fn node_and_zone(key: &str) -> (&str, &str) {
    let mut words = key.split_whitespace().skip(1);
    let node = words.next().unwrap_or("").trim_end_matches(',');
    (node, words.nth(1).unwrap_or(""))
}

fn has(line: &[u8], word: &str) -> bool {
    line.windows(word.len()).any(|part| part == word.as_bytes())
}

/// A key put together on the stack.
struct Key {
    bytes: [u8; 1024],
    length: usize,
}

impl Key {
    fn new() -> Self {
        Self { bytes: [0; 1024], length: 0 }
    }

    /// Whether there was room for all parts.
    fn all(&mut self, parts: &[&[u8]]) -> bool {
        for part in parts {
            let end = self.length + part.len();
            let Some(room) = self.bytes.get_mut(self.length..end) else { return false };
            room.copy_from_slice(part);
            self.length = end;
        }
        true
    }

    fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or(&[])
    }
}

const EACH: u8 = 0;
const SUM: u8 = 1;
/// CPUs told one by one: 64 of them and 100 interrupts are a family's budget of 6,400 columns.
const CPUS_MAX: usize = 64;
const ORDERS_MAX: usize = 32;
const ZONES_MAX: usize = 8;
const ZONE_VALUES: u8 = 0;
const ZONE_GUARDS: u8 = 1;
const SLAB: [&str; 5] = [
    "node_slabinfo_active_objects",
    "node_slabinfo_objects",
    "node_slabinfo_object_size_bytes",
    "node_slabinfo_objects_per_slab",
    "node_slabinfo_pages_per_slab",
];
const RAID: [(&str, &str); 11] = [
    ("node_md_disks_required", ""),
    ("node_md_disks", "active"),
    ("node_md_disks", "failed"),
    ("node_md_disks", "spare"),
    ("node_md_state", "active"),
    ("node_md_state", "inactive"),
    ("node_md_state", "recovering"),
    ("node_md_state", "resync"),
    ("node_md_state", "check"),
    ("node_md_blocks", ""),
    ("node_md_blocks_synced", ""),
];
const IPVS: [&str; 5] = [
    "node_ipvs_connections_total",
    "node_ipvs_incoming_packets_total",
    "node_ipvs_outgoing_packets_total",
    "node_ipvs_incoming_bytes_total",
    "node_ipvs_outgoing_bytes_total",
];
const ZONE: [(&str, &str, Kind); 34] = [
    ("nr_free_pages", "nr_free_pages", GAUGE),
    ("min", "min_pages", GAUGE),
    ("low", "low_pages", GAUGE),
    ("high", "high_pages", GAUGE),
    ("scanned", "scanned_pages", GAUGE),
    ("spanned", "spanned_pages", GAUGE),
    ("present", "present_pages", GAUGE),
    ("managed", "managed_pages", GAUGE),
    ("nr_active_anon", "nr_active_anon_pages", GAUGE),
    ("nr_inactive_anon", "nr_inactive_anon_pages", GAUGE),
    ("nr_isolated_anon", "nr_isolated_anon_pages", GAUGE),
    ("nr_anon_pages", "nr_anon_pages", GAUGE),
    ("nr_anon_transparent_hugepages", "nr_anon_transparent_hugepages", GAUGE),
    ("nr_active_file", "nr_active_file_pages", GAUGE),
    ("nr_inactive_file", "nr_inactive_file_pages", GAUGE),
    ("nr_isolated_file", "nr_isolated_file_pages", GAUGE),
    ("nr_file_pages", "nr_file_pages", GAUGE),
    ("nr_slab_reclaimable", "nr_slab_reclaimable_pages", GAUGE),
    ("nr_slab_unreclaimable", "nr_slab_unreclaimable_pages", GAUGE),
    ("nr_mlock_stack", "nr_mlock_stack_pages", GAUGE),
    ("nr_kernel_stack", "nr_kernel_stacks", GAUGE),
    ("nr_mapped", "nr_mapped_pages", GAUGE),
    ("nr_dirty", "nr_dirty_pages", GAUGE),
    ("nr_writeback", "nr_writeback_pages", GAUGE),
    ("nr_unevictable", "nr_unevictable_pages", GAUGE),
    ("nr_shmem", "nr_shmem_pages", GAUGE),
    ("nr_dirtied", "nr_dirtied_total", COUNTER),
    ("nr_written", "nr_written_total", COUNTER),
    ("numa_hit", "numa_hit_total", COUNTER),
    ("numa_miss", "numa_miss_total", COUNTER),
    ("numa_foreign", "numa_foreign_total", COUNTER),
    ("numa_interleave", "numa_interleave_total", COUNTER),
    ("numa_local", "numa_local_total", COUNTER),
    ("numa_other", "numa_other_total", COUNTER),
];
