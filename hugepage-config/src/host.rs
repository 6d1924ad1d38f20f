//! What the host says about its pages. Absent files and odd text are "none", never an error.

use std::fs;
use std::path::Path;

/// One pool of hugetlb pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pool {
    /// Bytes of a page.
    pub page_bytes: usize,
    /// Pages in the pool.
    pub total: usize,
    /// Pages nobody uses.
    pub free: usize,
    /// Free pages that are promised to somebody.
    pub reserved: usize,
}

/// The pools of /sys/kernel/mm/hugepages, smallest pages first.
#[must_use]
pub fn pools() -> Vec<Pool> {
    let Ok(entries) = fs::read_dir("/sys/kernel/mm/hugepages") else { return Vec::new() };
    let mut pools: Vec<Pool> = entries.flatten().filter_map(|entry| pool(&entry.path())).collect();
    pools.sort_by_key(|pool| pool.page_bytes);
    pools
}

/// Bytes of the default hugetlb page (`Hugepagesize` of /proc/meminfo).
#[must_use]
pub fn hugetlb_page_bytes() -> Option<usize> {
    let meminfo = fs::read_to_string("/proc/meminfo").ok()?;
    kib_field(&meminfo, "Hugepagesize:")
}

/// Bytes of a transparent huge page; 2 MiB where the kernel does not say.
#[must_use]
pub fn transparent_page_bytes() -> usize {
    let said = number(Path::new("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size"));
    said.filter(|bytes| bytes.is_power_of_two()).unwrap_or(2 << 20)
}

/// The chosen word of /sys/kernel/mm/transparent_hugepage/`name` (the one in brackets).
#[must_use]
pub fn transparent_setting(name: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/sys/kernel/mm/transparent_hugepage/{name}")).ok()?;
    chosen(&text).map(str::to_owned)
}

/// Whether a region that asks for transparent huge pages may have some.
#[must_use]
pub fn transparent_allowed() -> bool {
    matches!(transparent_setting("enabled").as_deref(), Some("always" | "madvise"))
}

/// `AnonHugePages` of the mapping that holds `address`, in bytes.
pub(crate) fn anon_huge_bytes(address: usize) -> Option<usize> {
    let smaps = fs::read_to_string("/proc/self/smaps").ok()?;
    let mut lines = smaps.lines().skip_while(|line| !holds(line, address));
    lines.next()?;
    lines.find_map(|line| kib_field(line, "AnonHugePages:"))
}

/// Whether `address` lies in any mapping of this process.
#[cfg(test)]
pub(crate) fn is_mapped(address: usize) -> bool {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().any(|line| holds(line, address))
}

/// Whether a line of maps or smaps (`from-to perms …`) is the head of a mapping over `address`.
fn holds(line: &str, address: usize) -> bool {
    let range = line.split(' ').next().and_then(|range| range.split_once('-'));
    let Some((from, to)) = range else { return false };
    match (usize::from_str_radix(from, 16), usize::from_str_radix(to, 16)) {
        (Ok(from), Ok(to)) => from <= address && address < to,
        _ => false,
    }
}

fn pool(path: &Path) -> Option<Pool> {
    let name = path.file_name()?.to_str()?;
    let kib: usize = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
    Some(Pool {
        page_bytes: kib.checked_mul(1024)?,
        total: number(&path.join("nr_hugepages"))?,
        free: number(&path.join("free_hugepages"))?,
        reserved: number(&path.join("resv_hugepages"))?,
    })
}

fn number(path: &Path) -> Option<usize> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn chosen(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once('[')?;
    rest.split_once(']').map(|(word, _)| word)
}

fn kib_field(text: &str, name: &str) -> Option<usize> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse::<usize>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_and_fields_are_read_as_the_kernel_writes_them() {
        assert_eq!(chosen("always [madvise] never\n"), Some("madvise"));
        assert_eq!(chosen("always madvise never"), None);
        assert_eq!(
            kib_field("A: 1 kB\nHugepagesize:    2048 kB\n", "Hugepagesize:"),
            Some(2 << 20)
        );
        assert_eq!(kib_field("Hugepagesize: lots\n", "Hugepagesize:"), None);
        assert_eq!(kib_field("Hugepagesize: 18446744073709551615 kB", "Hugepagesize:"), None);
    }

    #[test]
    fn a_mapping_holds_its_first_byte_and_not_its_end() {
        let line = "7f00-8000 rw-p 00000000 00:00 0";
        assert!(holds(line, 0x7f00) && holds(line, 0x7fff));
        assert!(!holds(line, 0x8000) && !holds(line, 0x7eff));
        assert!(!holds("AnonHugePages:         0 kB", 0) && !holds("", 0));
    }
}
