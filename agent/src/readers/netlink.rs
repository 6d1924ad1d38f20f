//! What all readers of netlink have in common: numbers in the machine's own byte order, and the header
//! (`struct nlmsghdr`, include/uapi/linux/netlink.h).
#![expect(clippy::host_endian_bytes, reason = "netlink speaks the host's own order")]

/// `None` behind the end.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

/// `None` behind the end.
pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at + 2)?;
    Some(u16::from_ne_bytes(bytes.try_into().ok()?))
}

/// `NLM_F_REQUEST | NLM_F_DUMP`.
pub(super) const REQUEST_DUMP: u16 = 0x301;
pub(super) const HEADER_BYTES: usize = 16;
