//! `strobe-hugepages show`: what pages this host has, and what a region would get.

use hugepage_config::{Region, Want, host};
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    match (arguments.next().as_deref(), arguments.next()) {
        (Some("show"), None) => {
            say(&show());
            ExitCode::SUCCESS
        }
        (Some("-h" | "--help" | "help"), None) => {
            say(USAGE);
            ExitCode::SUCCESS
        }
        _ => {
            complain(USAGE);
            ExitCode::from(2)
        }
    }
}

fn show() -> String {
    let mut out = String::new();
    for name in ["enabled", "defrag", "shmem_enabled"] {
        let setting = host::transparent_setting(name).unwrap_or_else(|| "absent".into());
        line(&mut out, &format!("transparent {name:<14} {setting}"));
    }
    line(&mut out, &format!("transparent page size      {}", host::transparent_page_bytes()));
    for pool in host::pools() {
        let (page, total, free) = (pool.page_bytes, pool.total, pool.free);
        let reserved = pool.reserved;
        line(
            &mut out,
            &format!("hugetlb pool of {page}: {total} pages, {free} free, {reserved} reserved"),
        );
    }
    for want in [Want::Hugetlb, Want::Transparent, Want::Plain] {
        line(&mut out, &tried(want));
    }
    out
}

/// What a ring of 2 MiB gets when it wants `want`.
fn tried(want: Want) -> String {
    match Region::map(RING_BYTES, want) {
        Ok(mut region) => {
            region.prefault();
            let mut text = format!(
                "a ring of {RING_BYTES} bytes wanting {want:?} gets {} ({} bytes huge)",
                region.got(),
                region.huge_bytes()
            );
            for refusal in region.refusals() {
                text += &format!("\n    {:?} refused: {}", refusal.wanted, refusal.why);
            }
            text
        }
        Err(error) => format!("a ring of {RING_BYTES} bytes wanting {want:?}: {error}"),
    }
}

fn line(out: &mut String, text: &str) {
    // Writing into a String does not fail.
    let _ = writeln!(out, "{text}");
}

fn say(text: &str) {
    // Who reads it may have heard enough.
    let _ = std::io::stdout().write_all(text.as_bytes());
}

fn complain(text: &str) {
    let _ = std::io::stderr().write_all(text.as_bytes());
}

const RING_BYTES: usize = 2 << 20;
const USAGE: &str = "usage: strobe-hugepages show\n";
