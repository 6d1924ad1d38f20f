//! One anonymous, private, zeroed mapping and its end.
//!
//! ```text
//! Want::Hugetlb      mmap(MAP_HUGETLB) + MADV_POPULATE_WRITE   ─ refused ─┐
//! Want::Transparent  aligned mmap + madvise(MADV_HUGEPAGE)     ─ refused ─┤
//! Want::Plain        mmap                                       the floor ┘
//! ```
//!
//! Invariants: `address .. address + mapped` is one mapping which only this `Region` knows of,
//! readable and writable, until `Drop` unmaps it; `bytes <= mapped`; the address is page-aligned.
//!
//! Hugetlb pages are populated at once, because a hugetlb fault that fails later (a cgroup's
//! limit, a poisoned page) is a SIGBUS and not an error. `MADV_POPULATE_WRITE` is Linux 5.14;
//! an older kernel says EINVAL and the reservation made by mmap has to do.

use crate::host;
use nix::errno::Errno;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};
use std::ffi::c_void;
use std::fmt;
use std::num::NonZeroUsize;
use std::ptr::NonNull;

/// The best pages to try for; what is refused falls through to the next.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Want {
    /// Pages of 4 KiB (or whatever the machine's size is).
    Plain,
    /// Transparent huge pages, where the kernel finds some.
    Transparent,
    /// Pages of the host's hugetlb pool, reserved and populated.
    Hugetlb,
}

/// What the region lies on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Got {
    /// Ordinary pages.
    Plain,
    /// Ordinary pages which the kernel was asked, and is allowed, to make huge. How many it
    /// did is known after the first touch: [`Region::huge_bytes`].
    Transparent,
    /// Pages of the hugetlb pool.
    Hugetlb,
}

/// Why a better kind of page was not had.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// What was tried.
    pub wanted: Want,
    /// What the kernel said, and what to do about it.
    pub why: String,
}

/// A region of zeroed memory. `Drop` unmaps it.
pub struct Region {
    address: NonNull<c_void>,
    bytes: usize,
    mapped: usize,
    got: Got,
    refusals: Vec<Refusal>,
}

/// A region that could not be mapped at all.
#[derive(Debug, thiserror::Error)]
pub enum RegionError {
    /// Nothing, or more than the address space, was asked for.
    #[error("a region of {0} bytes cannot be mapped: ask for 1 byte to half the address space")]
    Size(usize),
    /// Not even plain pages.
    #[error("mapping {bytes} bytes failed: {why}; free memory or raise the address-space limit")]
    Map {
        /// Bytes asked for, rounded up.
        bytes: usize,
        /// The kernel's reason.
        why: Errno,
    },
}

// SAFETY: a Region is an address and its length; the memory belongs to the process, not to a
// thread, and safe code reaches it only through `&mut self`.
unsafe impl Send for Region {}
// SAFETY: as above: `&Region` gives out a raw pointer at most.
unsafe impl Sync for Region {}

impl Region {
    /// Maps at least `bytes` bytes of zeroes on the best pages up to `want`.
    ///
    /// # Errors
    /// [`RegionError`] if plain pages are refused too, or the size is none.
    pub fn map(bytes: usize, want: Want) -> Result<Self, RegionError> {
        if bytes == 0 || usize::MAX / 4 < bytes {
            return Err(RegionError::Size(bytes));
        }
        let mut refusals = Vec::new();
        if want == Want::Hugetlb {
            match map_hugetlb(bytes) {
                Ok((address, mapped)) => {
                    return Ok(Self { address, bytes, mapped, got: Got::Hugetlb, refusals });
                }
                Err(why) => refusals.push(Refusal { wanted: Want::Hugetlb, why }),
            }
        }
        if Want::Transparent <= want {
            match map_transparent(bytes) {
                Ok((address, mapped)) => {
                    return Ok(Self { address, bytes, mapped, got: Got::Transparent, refusals });
                }
                Err(why) => refusals.push(Refusal { wanted: Want::Transparent, why }),
            }
        }
        let mapped = bytes.next_multiple_of(PAGE_BYTES_MAX);
        let address =
            anonymous(mapped, MapFlags::empty()).map_err(|why| RegionError::Map { bytes, why })?;
        Ok(Self { address, bytes, mapped, got: Got::Plain, refusals })
    }

    /// Touches every page now, so that no later access faults. Costs the memory at once.
    pub fn prefault(&mut self) {
        // SAFETY: the whole range is ours (module invariant); populating changes no byte.
        if unsafe { madvise(self.address, self.mapped, MmapAdvise::MADV_POPULATE_WRITE) }.is_ok() {
            return;
        }
        for byte in self.as_mut_slice().iter_mut().step_by(PAGE_BYTES_MIN) {
            // A volatile write of what is there already, so that the compiler keeps it.
            let at = std::ptr::from_mut(byte);
            // SAFETY: `at` comes from a unique reference.
            let value = unsafe { at.read_volatile() };
            // SAFETY: as above.
            unsafe { at.write_volatile(value) };
        }
    }

    /// What the region lies on.
    #[must_use]
    pub fn got(&self) -> Got {
        self.got
    }

    /// Why it lies on nothing better; empty if it got what was wanted.
    #[must_use]
    pub fn refusals(&self) -> &[Refusal] {
        &self.refusals
    }

    /// Usable bytes: as asked for.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Where it begins: page-aligned, valid for [`Region::bytes`] bytes while the region lives.
    /// Who writes through it proves for himself that nobody else does.
    #[must_use]
    pub fn address(&self) -> NonNull<u8> {
        self.address.cast()
    }

    /// All of it, exclusively.
    #[must_use]
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: mapped, readable, writable and zero-initialised (module invariants), and
        // `&mut self` keeps every other safe access out.
        unsafe { std::slice::from_raw_parts_mut(self.address.cast().as_ptr(), self.bytes) }
    }

    /// How many bytes of the region lie on huge pages right now, as /proc/self/smaps counts
    /// them (a neighbour that the kernel merged with the region is counted too).
    #[must_use]
    pub fn huge_bytes(&self) -> usize {
        match self.got {
            Got::Hugetlb => self.mapped,
            Got::Plain | Got::Transparent => {
                host::anon_huge_bytes(self.address.addr().get()).unwrap_or(0).min(self.mapped)
            }
        }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours alone, and nothing borrows from `self` any more.
        let unmapped = unsafe { munmap(self.address, self.mapped) };
        debug_assert!(unmapped.is_ok(), "munmap of a mapping that was ours: {unmapped:?}");
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Region")
            .field("bytes", &self.bytes)
            .field("mapped", &self.mapped)
            .field("got", &self.got)
            .field("refusals", &self.refusals)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for Got {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain => "plain pages",
            Self::Transparent => "transparent huge pages",
            Self::Hugetlb => "hugetlb pages",
        })
    }
}

fn map_hugetlb(bytes: usize) -> Result<(NonNull<c_void>, usize), String> {
    let page = host::hugetlb_page_bytes().ok_or("this kernel has no hugetlb pages")?;
    let mapped = bytes.next_multiple_of(page);
    let address = anonymous(mapped, MapFlags::MAP_HUGETLB).map_err(|why| {
        format!("{why}: {} pages of {page} bytes are not free in the pool", mapped / page)
    })?;
    // SAFETY: the range was mapped just now and nobody else knows it.
    match unsafe { madvise(address, mapped, MmapAdvise::MADV_POPULATE_WRITE) } {
        Ok(()) | Err(Errno::EINVAL) => Ok((address, mapped)),
        Err(why) => {
            unmap(address, mapped);
            Err(format!("{why}: the pool's pages could not be had (a hugetlb cgroup limit?)"))
        }
    }
}

fn map_transparent(bytes: usize) -> Result<(NonNull<c_void>, usize), String> {
    if !host::transparent_allowed() {
        return Err("/sys/kernel/mm/transparent_hugepage/enabled is `never` or absent".into());
    }
    let page = host::transparent_page_bytes();
    let mapped = bytes.next_multiple_of(page);
    // One huge page more than needed, so that an aligned stretch lies within; the rest goes back.
    let address = anonymous(mapped + page, MapFlags::empty()).map_err(|why| why.to_string())?;
    let before = address.addr().get().next_multiple_of(page) - address.addr().get();
    // SAFETY: `before < page`, so the sum stays inside the mapping.
    let aligned = unsafe { address.byte_add(before) };
    if 0 < before {
        unmap(address, before);
    }
    if before < page {
        // SAFETY: `before + mapped < mapped + page`: still inside.
        unmap(unsafe { aligned.byte_add(mapped) }, page - before);
    }
    // SAFETY: the range is ours; the advice changes no byte.
    if let Err(why) = unsafe { madvise(aligned, mapped, MmapAdvise::MADV_HUGEPAGE) } {
        unmap(aligned, mapped);
        return Err(format!("madvise: {why}"));
    }
    Ok((aligned, mapped))
}

fn anonymous(bytes: usize, flags: MapFlags) -> Result<NonNull<c_void>, Errno> {
    let length = NonZeroUsize::new(bytes).ok_or(Errno::EINVAL)?;
    let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: an anonymous mapping at an address of the kernel's choice replaces nothing.
    unsafe { mmap_anonymous(None, length, access, MapFlags::MAP_PRIVATE | flags) }
}

/// Gives back a whole page range that was mapped here and that nobody uses.
fn unmap(address: NonNull<c_void>, bytes: usize) {
    // SAFETY: only called within this module on ranges it has just mapped itself.
    let unmapped = unsafe { munmap(address, bytes) };
    debug_assert!(unmapped.is_ok(), "munmap of a mapping that was ours: {unmapped:?}");
}

/// The largest base page of the machines Linux runs on (arm64, ppc64): mapped lengths are
/// multiples of it, which are multiples of every smaller one.
const PAGE_BYTES_MAX: usize = 64 << 10;
/// The smallest base page.
const PAGE_BYTES_MIN: usize = 4 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_want_ends_in_zeroed_writable_memory_and_says_what_it_is() {
        for want in [Want::Plain, Want::Transparent, Want::Hugetlb] {
            let mut region = Region::map(3 << 20, want).unwrap();
            assert_eq!(region.bytes(), 3 << 20);
            assert_eq!(region.address().addr().get() % PAGE_BYTES_MIN, 0);
            region.prefault();
            assert!(region.as_mut_slice().iter().all(|byte| *byte == 0), "{want:?}");
            region.as_mut_slice().fill(7);
            // What was refused is exactly what lies between the wish and the outcome.
            let fell = match region.got() {
                Got::Hugetlb => 2,
                Got::Transparent => 1,
                Got::Plain => 0,
            };
            let wished = want as usize;
            assert_eq!(region.refusals().len(), wished - fell, "{region:?}");
        }
    }

    #[test]
    fn no_size_is_refused_and_a_huge_one_is_an_error_not_a_crash() {
        assert!(matches!(Region::map(0, Want::Plain), Err(RegionError::Size(0))));
        assert!(matches!(Region::map(usize::MAX, Want::Hugetlb), Err(RegionError::Size(_))));
        let failed = Region::map(1 << 60, Want::Hugetlb);
        assert!(matches!(failed, Err(RegionError::Map { .. })), "{failed:?}");
    }

    #[test]
    fn dropping_unmaps() {
        // Looked at in its middle: another test's small mapping may come to stand where its ends were.
        let region = Region::map(1 << 30, Want::Plain).unwrap();
        let address = region.address().addr().get() + (1 << 29);
        assert!(host::is_mapped(address));
        drop(region);
        assert!(!host::is_mapped(address));
    }

    #[test]
    fn transparent_regions_are_aligned_so_that_huge_pages_fit() {
        let region = Region::map(1, Want::Transparent).unwrap();
        if region.got() == Got::Transparent {
            assert_eq!(region.address().addr().get() % host::transparent_page_bytes(), 0);
        }
    }
}
