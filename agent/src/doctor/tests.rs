//! A report's words.

use super::*;

#[test]
fn a_report_is_text_and_json() {
    let findings = vec![
        Finding::new("files", "/proc/stat", "read"),
        Finding::new("sight", "a \"b\"", "tab\t").less("do"),
    ];
    let costs = vec![Cost { name: "cpu", interval_ms: 0, reading_us: Some(2.5), success: true }];
    let mut report = Report { findings, costs };
    assert_eq!(report.worst(), Health::Less);
    let wanted = r#"{"worst":"less","findings":[{"state":"ok","area":"files","name":"/proc/stat","found":"read","advice":null},{"state":"less","area":"sight","name":"a \"b\"","found":"tab\u0009","advice":"do"}],"collectors":[{"name":"cpu","interval_ms":0,"reading_us":2.50,"second_us":2.50,"success":true}]}"#;
    assert_eq!(report.json().trim_end(), wanted);
    assert!(report.text().starts_with("ok   files     /proc/stat"), "{}", report.text());
    report.findings.push(Finding::new("broker", "x:1", "silence").bad("look"));
    assert_eq!(report.worst(), Health::Bad);
}
