//! What people read: lines, tables, sparklines.

/// Standard output.
pub(crate) fn print(text: &str) {
    strobe_wire::program::say(text);
}

/// Standard error. A reason may have lines: a parser points at the place.
pub(crate) fn complain(why: &str) {
    let lines: Vec<String> = why.trim_end().lines().map(clean).collect();
    strobe_wire::program::complain(&format!("strobe: {}", lines.join("\n")));
}

/// Columns as wide as their widest cell; cells hold no control characters afterwards.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let cells: Vec<Vec<String>> = std::iter::once(head.iter().map(|h| (*h).to_owned()).collect())
        .chain(rows.iter().map(|row| row.iter().map(|cell| clean(cell)).collect::<Vec<_>>()))
        .collect();
    let mut widths = vec![0; head.len()];
    for row in &cells {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let lines = cells.iter().map(|row| {
        let padded = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// One character a value, the lowest `▁` and the highest `█`; a gap is a space.
pub(crate) fn sparkline(values: &[Option<f64>]) -> String {
    let known = values.iter().flatten().copied().filter(|v| v.is_finite());
    let (low, high) =
        known.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
    let bar = |value: f64| {
        let span = high - low;
        let part = if 0.0 < span { (value - low) / span } else { 0.5 };
        let bars = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
        let steps = [0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875];
        bars.get(steps.iter().filter(|step| **step < part).count()).copied().unwrap_or('█')
    };
    values.iter().map(|v| v.filter(|v| v.is_finite()).map_or(' ', bar)).collect()
}

/// Host names and labels come from elsewhere: no control character reaches a terminal.
fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_line_up_and_hold_no_escapes() {
        let rows = [vec!["a".into(), "1".into()], vec!["long\u{1b}[31m".into(), "22".into()]];
        let wanted = "NAME       VALUE\na          1\nlong\u{fffd}[31m  22";
        assert_eq!(table(&["NAME", "VALUE"], &rows), wanted);
    }

    #[test]
    fn sparklines_span_from_lowest_to_highest() {
        assert_eq!(sparkline(&[Some(0.0), None, Some(5.0), Some(10.0)]), "▁ ▄█");
        assert_eq!(sparkline(&[Some(3.0), Some(3.0)]), "▄▄");
        assert_eq!(sparkline(&[Some(f64::NAN)]), " ");
    }
}
