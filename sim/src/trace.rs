//! What a person reads of a run, as it happens.

/// Where it goes, if anywhere.
#[derive(Clone, Copy, Default)]
pub struct Trace(Option<fn(&str)>);

impl Trace {
    /// Each line goes there.
    #[must_use]
    pub fn to(sink: fn(&str)) -> Self {
        Self(Some(sink))
    }

    pub(crate) fn is_on(self) -> bool {
        self.0.is_some()
    }

    pub(crate) fn say(self, now_us: u64, line: impl FnOnce() -> String) {
        if let Some(sink) = self.0 {
            let (s, ms) = (now_us / 1_000_000, now_us / 1_000 % 1_000);
            sink(&format!("{s:>6}.{ms:03} s  {}", line()));
        }
    }
}

impl std::fmt::Debug for Trace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Trace").field(&self.is_on()).finish()
    }
}
