//! `strobe-hugepages`: what pages this host has, whether huge ones pay here, and how it would be told to
//! have some.

use hugepage_config::measure::{Measured, measure};
use hugepage_config::plan::{Made, Plan, apply, plan};
use hugepage_config::{Region, Want, host};
use nix::time::{ClockId, clock_gettime};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (words, options): (Vec<_>, Vec<_>) =
        arguments.iter().map(String::as_str).partition(|word| !word.starts_with("--"));
    let Some((bytes, root)) = read(&options) else {
        complain(USAGE);
        return ExitCode::from(2);
    };
    match words[..] {
        ["show"] => say(&show()),
        ["plan"] => {
            say(&pays(bytes));
            say(&found(bytes, &root).text());
        }
        ["apply"] => return change(bytes, &root),
        ["help"] => say(USAGE),
        _ if options.contains(&"--help") => say(USAGE),
        _ => {
            complain(USAGE);
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}

/// `--bytes=N` and `--root=DIR`; nothing if there is another one.
fn read(options: &[&str]) -> Option<(usize, PathBuf)> {
    let (mut bytes, mut root) = (LARGE_BYTES, PathBuf::from("/"));
    for option in options {
        match option.split_once('=') {
            Some(("--bytes", text)) => {
                bytes = text.parse().ok().filter(|bytes| (1..=1 << 40).contains(bytes))?;
            }
            Some(("--root", path)) => root = PathBuf::from(path),
            None if *option == "--help" => {}
            _ => return None,
        }
    }
    Some((bytes, root))
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

/// The plain answer: measured here and now, for the default ring and for one of `bytes`.
fn pays(bytes: usize) -> String {
    let mut out = String::new();
    let mut best = None;
    for size in [RING_BYTES, bytes.min(MEASURED_BYTES_MAX)] {
        match measure(size, monotonic_ns) {
            Ok(measured) => {
                line(&mut out, &told(&measured));
                best = measured.gain();
            }
            Err(why) => line(&mut out, &why.to_string()),
        }
    }
    let answer = match best {
        None => "no huge page could be had to measure with: not known",
        Some(gain) if WORTH <= gain => "yes, for a ring of this size, if it is read at random",
        Some(_) => "no",
    };
    line(&mut out, &format!("do huge pages pay on this host? {answer}"));
    out
}

fn told(of: &Measured) -> String {
    let size =
        format!("{} KiB, a random step: {:.2} ns on plain pages", of.bytes >> 10, of.plain_ns);
    let also = if of.plain_is_huge { " (which the kernel made huge by itself)" } else { "" };
    match (of.huge_ns, of.gain()) {
        (Some(huge_ns), Some(gain)) => {
            format!("{size}{also}, {huge_ns:.2} ns on {}: {:+.0} %", of.got, -100.0 * gain)
        }
        _ => format!("{size}{also}; no huge pages were had"),
    }
}

fn found(bytes: usize, root: &Path) -> Plan {
    plan(bytes, &host::pools(), host::hugetlb_page_bytes()).without_what_is_so(root)
}

fn change(bytes: usize, root: &Path) -> ExitCode {
    if root == Path::new("/") && !nix::unistd::geteuid().is_root() {
        complain(
            "strobe-hugepages: apply writes below /etc and /proc/sys: run it as root (plan changes nothing)\n",
        );
        return ExitCode::FAILURE;
    }
    let plan = found(bytes, root);
    if plan.steps.is_empty() {
        say("nothing was changed: all is so already\n");
        return ExitCode::SUCCESS;
    }
    let (made, ended) = apply(&plan, root);
    let mut whole = true;
    for one in &made {
        whole &= one.whole;
        say(&changed(one));
    }
    match ended {
        Ok(()) if whole => ExitCode::SUCCESS,
        Ok(()) => ExitCode::FAILURE,
        Err((path, why)) => {
            complain(&format!("strobe-hugepages: cannot write {}: {why}\n", path.display()));
            ExitCode::FAILURE
        }
    }
}

fn changed(made: &Made) -> String {
    let path = made.path.display();
    match &made.before {
        None => format!("wrote {path}, which was not there\n"),
        Some(before) if made.whole => {
            format!("wrote {path}: was {:?}, is {:?}\n", before.trim(), made.after.trim())
        }
        Some(before) => format!(
            "wrote {path}: was {:?}, is {:?}: memory is too scattered for more; try after a boot\n",
            before.trim(),
            made.after.trim()
        ),
    }
}

fn monotonic_ns() -> u64 {
    let Ok(now) = clock_gettime(ClockId::CLOCK_MONOTONIC) else { return 0 };
    u64::try_from(std::time::Duration::from(now).as_nanos()).unwrap_or(u64::MAX)
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
/// `--ring-slots 8192`: from here on the agent asks for huge pages.
const LARGE_BYTES: usize = 32 << 20;
const MEASURED_BYTES_MAX: usize = 256 << 20;
/// Less is noise.
const WORTH: f64 = 0.05;
const USAGE: &str = "usage: strobe-hugepages show | plan | apply [--bytes=N] [--root=DIR]\n\
  show   what pages this host has, and what a ring of 2 MiB would get\n\
  plan   whether huge pages pay here, measured, and what apply would change for a ring of N bytes (32 MiB)\n\
  apply  changes that, as root: sysctl.d, a systemd drop-in, the kernel's pool\n";
