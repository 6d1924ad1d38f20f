//! Results as files: JSON for programs, a Markdown table for people.

use serde_json::Value;
use std::fs;
use std::io;
use std::path::Path;

/// A Markdown table.
#[derive(Clone, Debug)]
pub struct Table {
    /// Column heads.
    pub head: Vec<String>,
    /// Rows, as long as the head.
    pub rows: Vec<Vec<String>>,
}

impl Table {
    /// The table as text.
    #[must_use]
    pub fn markdown(&self) -> String {
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        let rule: Vec<String> = self.head.iter().map(|_| "---".into()).collect();
        let mut out = line(&self.head) + &line(&rule);
        for row in &self.rows {
            out += &line(row);
        }
        out
    }
}

/// Writes `name.json` and `name.md` into `dir`.
///
/// # Errors
/// The files cannot be written.
pub fn write(dir: &Path, name: &str, value: &Value, table: &Table) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    fs::write(dir.join(format!("{name}.json")), format!("{value:#}\n"))?;
    fs::write(dir.join(format!("{name}.md")), table.markdown())
}

/// The middle of `values` (the mean of the middle two); `None` of nothing.
#[must_use]
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    if sorted.len() % 2 == 1 {
        return Some(upper);
    }
    sorted.get(sorted.len() / 2 - 1).map(|lower| f64::midpoint(*lower, upper))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_tables() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        let table = Table { head: vec!["a".into()], rows: vec![vec!["1".into()]] };
        assert_eq!(table.markdown(), "| a |\n| --- |\n| 1 |\n");
    }
}
