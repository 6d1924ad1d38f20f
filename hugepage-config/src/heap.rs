//! The allocator's own memory.

/// Gives back to the kernel what the allocator holds and nobody uses, in whole pages. Takes about as
/// long as touching those pages did; only glibc's keeps any.
pub fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it takes the allocator's own locks and moves nothing that is in use.
    unsafe {
        libc::malloc_trim(0);
    }
}
