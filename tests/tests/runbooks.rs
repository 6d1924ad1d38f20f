//! Whatever Strobe finds wrong with itself has a place that says what to do.

use std::path::Path;
use strobe_broker::cluster::findings::CODES;

/// Each finding's heading stands once in `docs/runbooks.md`, with something to do under it; and links
/// between the documents lead somewhere.
#[test]
fn every_finding_has_a_runbook() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    let read = |name: &str| std::fs::read_to_string(docs.join(name)).expect("a document");
    let text = read("runbooks.md");
    let sections: Vec<&str> = text.split("\n### ").skip(1).collect();
    for code in CODES {
        let of: Vec<&&str> =
            sections.iter().filter(|section| section.lines().next() == Some(code)).collect();
        assert_eq!(of.len(), 1, "docs/runbooks.md: `### {code}` stands {} times", of.len());
        assert!(of[0].contains("*Do:*"), "{code}: nothing to do");
    }
    for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
        let (file, anchor) = link.split_once('#').expect("a link to a heading");
        let there = if file.is_empty() { text.clone() } else { read(file) };
        let found = there.lines().filter(|line| line.starts_with('#')).any(|line| {
            let title = line.trim_start_matches(['#', ' ']).to_lowercase();
            let kept = title.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
            kept.collect::<String>().replace(' ', "-") == anchor
        });
        assert!(found, "docs/runbooks.md links to {link}, which is not there");
    }
}
