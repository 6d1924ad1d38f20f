//! What the kernel's clock discipline says: adjtimex(2), asked and never set.

use std::mem::MaybeUninit;

/// The clock's state (`TIME_OK` … `TIME_ERROR`) and its parameters; `None` where they are denied.
pub(crate) fn adjustment() -> Option<(i32, libc::timex)> {
    // SAFETY: `timex` is a C struct of integers, for which all zeroes are values; no mode bit set
    // means that nothing is changed.
    let mut time: libc::timex = unsafe { MaybeUninit::zeroed().assume_init() };
    // SAFETY: the pointer is to a whole `timex` of ours that outlives the call.
    let state = unsafe { libc::adjtimex(&raw mut time) };
    (0 <= state).then_some((state, time))
}
