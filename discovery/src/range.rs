//! Ranges of addresses, as `10.0.0.0/24` or `fd00::/120`: at most a /16 of IPv4, and no more
//! addresses of IPv6 than that.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// A block of addresses in CIDR notation (RFC 4632).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Range {
    base: IpAddr,
    prefix: u8,
}

/// Why a text is no range that is scanned.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RangeError {
    /// It is something else.
    #[error("{0:?} is no range; ADDRESS/BITS is wanted, as in 10.0.0.0/24")]
    Malformed(String),
    /// It has too many addresses.
    #[error(
        "{0} has more than 65,536 addresses; no more than a /16 (IPv6: a /112) is scanned. Name \
         smaller ranges"
    )]
    TooLarge(Range),
    /// It names one address of a range.
    #[error("{text} is not where a range begins; {wanted} is meant?")]
    NotFirst {
        /// What was said.
        text: String,
        /// The range that the address is in.
        wanted: Range,
    },
}

impl Range {
    /// The machines' addresses: without the network's own and the broadcast address of IPv4.
    pub fn addresses(self) -> impl Iterator<Item = IpAddr> {
        let bits = self.host_bits();
        let count = 1_u32 << bits;
        // RFC 3021: a /31 has two machines.
        let edges = self.base.is_ipv4() && 2 <= bits;
        let (first, end) = if edges { (1, count - 1) } else { (0, count) };
        (first..end).map(move |offset| match self.base {
            IpAddr::V4(base) => Ipv4Addr::from(u32::from(base) | offset).into(),
            IpAddr::V6(base) => Ipv6Addr::from(u128::from(base) | u128::from(offset)).into(),
        })
    }

    /// How many they are.
    #[must_use]
    pub fn count(self) -> u32 {
        let all = 1_u32 << self.host_bits();
        if self.base.is_ipv4() && 2 <= self.host_bits() { all - 2 } else { all }
    }

    fn host_bits(self) -> u8 {
        width(self.base) - self.prefix
    }
}

impl FromStr for Range {
    type Err = RangeError;

    fn from_str(text: &str) -> Result<Self, RangeError> {
        let malformed = || RangeError::Malformed(text.to_owned());
        let (address, prefix) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let base: IpAddr = address.parse().map_err(|_| malformed())?;
        let prefix = match prefix {
            Some(bits) => bits.parse().map_err(|_| malformed())?,
            None => width(base),
        };
        if width(base) < prefix {
            return Err(malformed());
        }
        let wanted = Self { base: masked(base, prefix), prefix };
        if HOST_BITS_MAX < wanted.host_bits() {
            return Err(RangeError::TooLarge(wanted));
        }
        if wanted.base != base {
            return Err(RangeError::NotFirst { text: text.to_owned(), wanted });
        }
        Ok(wanted)
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn masked(address: IpAddr, prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(u32::from(32 - prefix)).unwrap_or(0);
            Ipv4Addr::from(u32::from(address) & mask).into()
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(u32::from(128 - prefix)).unwrap_or(0);
            Ipv6Addr::from(u128::from(address) & mask).into()
        }
    }
}

const HOST_BITS_MAX: u8 = 16;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ranges_have_the_addresses_of_machines() {
        for (text, count, first, last) in [
            ("10.0.0.0/24", 254, "10.0.0.1", "10.0.0.254"),
            ("10.1.0.0/16", 65_534, "10.1.0.1", "10.1.255.254"),
            ("10.0.0.4/31", 2, "10.0.0.4", "10.0.0.5"),
            ("10.0.0.4/32", 1, "10.0.0.4", "10.0.0.4"),
            ("10.0.0.4", 1, "10.0.0.4", "10.0.0.4"),
            ("fd00::/120", 256, "fd00::", "fd00::ff"),
        ] {
            let range: Range = text.parse().unwrap();
            let all: Vec<String> = range.addresses().map(|a| a.to_string()).collect();
            assert_eq!((range.count(), all.len()), (count, count as usize), "{text}");
            let ends = (all[0].as_str(), all[all.len() - 1].as_str());
            assert_eq!(ends, (first, last), "{text}");
        }
    }

    #[test]
    fn what_is_no_range_is_refused_with_what_is_wanted() {
        let said = |text: &str| text.parse::<Range>().unwrap_err().to_string();
        assert!(said("10.0.0.0/15").starts_with("10.0.0.0/15 has more than 65,536 addresses"));
        assert!(said("0.0.0.0/0").contains("no more than a /16"));
        assert!(said("::/0").contains("a /112"));
        assert!(said("10.0.0.7/24").contains("10.0.0.0/24 is meant?"));
        for text in ["", "/", "10.0.0.0/33", "10.0.0.0/-1", "10.0.0/24", "x/8", "fd00::/129"] {
            assert!(said(text).contains("is no range"), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_range_or_refused(text in "[0-9a-f.:/]{0,24}") {
            if let Ok(range) = text.parse::<Range>() {
                prop_assert!(range.count() <= 65_536);
                prop_assert_eq!(range.to_string().parse::<Range>(), Ok(range));
            }
        }
    }
}
