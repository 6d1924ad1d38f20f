//! The forms of an agent's values: each makes one of a text, or says what is wanted.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use strobe_wire::message::Question;
use strobe_wire::settings::size_bytes;

pub(super) fn names(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|name| !name.is_empty())
}

pub(super) fn commands(text: &str) -> Result<Vec<Question>, String> {
    let known = |name| {
        Question::of(name).ok_or_else(|| {
            let words = Question::ALL.map(Question::word).join(", ");
            format!("{name:?} is none of {words}")
        })
    };
    names(text).map(known).collect()
}

/// `0.5` percent in millionths.
pub(super) fn cost_max_ppm(text: &str) -> Result<u32, String> {
    let wanted = || "a number of percent from 0.01 to 100 is wanted".to_owned();
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    if 4 < part.len() || !part.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(wanted());
    }
    let part: u32 = format!("{part:0<4}").parse().map_err(|_| wanted())?;
    let whole: u32 = whole.parse().ok().filter(|whole| *whole <= 100).ok_or_else(wanted)?;
    let ppm = whole * 10_000 + part;
    if (100..=1_000_000).contains(&ppm) { Ok(ppm) } else { Err(wanted()) }
}

pub(super) fn path(text: &str) -> Result<PathBuf, String> {
    if text.starts_with('/') {
        return Ok(PathBuf::from(text));
    }
    match std::path::absolute(text) {
        Ok(path) if !text.is_empty() => Ok(path),
        _ => Err("a path is wanted".to_owned()),
    }
}

pub(super) fn dir(text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<PathBuf, String> {
    if !text.is_empty() {
        return path(text);
    }
    if nix::unistd::geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/strobe"));
    }
    let home = env("HOME").filter(|home| !home.is_empty());
    home.map(|home| PathBuf::from(home).join(".local/share/strobe"))
        .ok_or_else(|| "HOME is not set: name a directory".to_owned())
}

pub(super) fn broker(text: &str) -> Result<Option<String>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let parts = text.rsplit_once(':').filter(|(host, _)| !host.is_empty());
    match parts.map(|(_, port)| port.parse::<u16>()) {
        Some(Ok(port)) if 0 < port => Ok(Some(text.to_owned())),
        _ => Err("host:port is wanted, as in broker.example:7801".to_owned()),
    }
}

pub(super) fn listen(text: &str) -> Result<Option<SocketAddr>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| "address:port is wanted, as in 127.0.0.1:7802".to_owned())
}

/// An interface, by its address.
pub(super) fn interface(text: &str) -> Result<Option<Ipv4Addr>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| "an IPv4 address is wanted, as in 0.0.0.0".to_owned())
}

pub(super) fn job(text: &str) -> Result<String, String> {
    if text.is_empty() || 256 < text.len() {
        return Err("1 to 256 bytes are wanted".to_owned());
    }
    Ok(text.to_owned())
}

pub(super) fn spool_bytes(text: &str) -> Result<u64, String> {
    let found =
        size_bytes(text).ok().filter(|found| *found == 0 || (1 << 20..=64 << 30).contains(found));
    found.ok_or_else(|| "0, or 1MiB to 64GiB is wanted".to_owned())
}

pub(super) fn spool_memory_bytes(text: &str) -> Result<usize, String> {
    let found = size_bytes(text).ok().filter(|found| (64 << 10..=1 << 30).contains(found));
    found
        .and_then(|found| usize::try_from(found).ok())
        .ok_or_else(|| "64KiB to 1GiB is wanted".to_owned())
}

pub(super) fn ring_slots(text: &str) -> Result<usize, String> {
    let found = text.parse().ok().filter(|slots: &usize| slots.is_power_of_two());
    found
        .filter(|slots| (16..=65_536).contains(slots))
        .ok_or_else(|| "a power of two from 16 to 65536 is wanted".to_owned())
}
