//! How a fleet's machines are found, and whether they answer.
//!
//! ```text
//!   settings ─┐
//!   DNS SRV  ─┤
//!   mDNS     ─┼─> Found { name, address, source } ──> the broker's list of targets
//!   a scan   ─┤                                              │
//!   operator ─┘                      checks, every 30 s: tcp, http, quic, script ──> series
//! ```
//!
//! [`range`], [`dns`] and [`check`] are pure: text and bytes in, values out. [`resolver`], [`mdns`],
//! [`scan`] and [`probe`] wait for the network, each for a bounded time and in a thread of whoever
//! calls them. Nothing here sends anything that it was not told to send: the defaults are silence.

pub mod check;
pub mod dns;
pub mod mdns;
pub mod probe;
pub mod range;
pub mod resolver;
pub mod scan;
pub mod webhook;

use std::net::IpAddr;

/// A machine that was found.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Found {
    /// What it is called: at most [`NAME_BYTES_MAX`] printable bytes without blanks.
    pub name: String,
    /// Where it is, if that is known.
    pub address: Option<IpAddr>,
    /// The port by which it was found; 0: none.
    pub port: u16,
}

/// Whether people, labels and command lines can bear this as a name: what others announce may become
/// the argument of a script, and is never an option of it.
#[must_use]
pub fn is_name(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
    let begins = text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
    begins && text.len() <= NAME_BYTES_MAX && text.chars().all(plain)
}

/// As in DNS (RFC 1035, 2.3.4).
pub const NAME_BYTES_MAX: usize = 253;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_no_option_and_nothing_else_that_is_taken_for_more() {
        for name in ["web1", "_ssh._tcp.local", "fd00::1", "10.0.0.1", "a-b"] {
            assert!(is_name(name), "{name}");
        }
        let long = "a".repeat(NAME_BYTES_MAX + 1);
        for text in ["", "-rf", "--help", ".x", "a b", "a/b", "a\n", "ü", &long] {
            assert!(!is_name(text), "{text:?}");
        }
    }
}
