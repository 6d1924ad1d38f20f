//! What series there are: names and values of labels.

use super::head::NAME;
use super::local::Store;
use super::{Limits, Matcher, StoreError, TimeRange};
use std::collections::BTreeSet;
use strobe_wire::schema::Labels;

impl Store {
    /// Label names of the series that satisfy all matchers, sorted.
    ///
    /// # Errors
    /// As [`Store::select`].
    pub fn label_names(
        &self,
        matchers: &[Matcher],
        range: TimeRange,
        limits: &Limits,
    ) -> Result<Vec<String>, StoreError> {
        let mut names = BTreeSet::new();
        for part in self.select(matchers, range, limits)? {
            let own = part.places.iter().flat_map(|place| &place.name.labels.0);
            for name in own.chain(&part.owner.0).map(|(name, _)| name.as_str()).chain([NAME]) {
                if !names.contains(name) {
                    names.insert(name.to_owned());
                }
            }
        }
        Ok(names.into_iter().collect())
    }

    /// Values of one label among the series that satisfy all matchers, sorted.
    ///
    /// # Errors
    /// As [`Store::select`].
    pub fn label_values(
        &self,
        name: &str,
        matchers: &[Matcher],
        range: TimeRange,
        limits: &Limits,
    ) -> Result<Vec<String>, StoreError> {
        let mut values = BTreeSet::new();
        for part in self.select(matchers, range, limits)? {
            for value in (0..part.len()).filter_map(|series| part.label(series, name)) {
                if !values.contains(value) {
                    values.insert(value.to_owned());
                }
            }
        }
        Ok(values.into_iter().collect())
    }

    /// Labels of the series that satisfy all matchers.
    ///
    /// # Errors
    /// As [`Store::select`].
    pub fn series(
        &self,
        matchers: &[Matcher],
        range: TimeRange,
        limits: &Limits,
    ) -> Result<Vec<Labels>, StoreError> {
        let parts = self.select(matchers, range, limits)?;
        Ok(parts.iter().flat_map(|part| (0..part.len()).map(|at| part.labels(at))).collect())
    }
}
