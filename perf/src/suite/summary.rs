//! One page of all results that are there: what was asked for, what was found, and how.

use super::shown;
use crate::report::Table;
use serde_json::Value;
use std::fs;
use std::io;
use std::path::Path;

/// A number that was asked for.
struct Wanted {
    what: &'static str,
    bar: &'static str,
    aim: &'static str,
    /// The result's file, without its ending.
    file: &'static str,
    /// Where in it.
    pointer: &'static str,
    digits: usize,
}

/// Writes `README.md` into `dir` from the results in it.
///
/// # Errors
/// The directory cannot be read or written.
pub fn write(dir: &Path) -> io::Result<()> {
    let mut results = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        if path.extension().is_some_and(|ending| ending == "json")
            && let Ok(value) = serde_json::from_str::<Value>(&fs::read_to_string(&path)?)
        {
            results.push((name, value));
        }
    }
    results.sort_by(|a, b| a.0.cmp(&b.0));
    fs::write(dir.join("README.md"), page(&results, dir))
}

fn page(results: &[(String, Value)], dir: &Path) -> String {
    let mut out = String::from(
        "# Results\n\nMade by `make perf`; a part alone by `scripts/perf PART`. Each number is of one \
         run on one machine, and peers were measured in the same run: ratios travel, absolute \
         numbers do not.\n\n",
    );
    out += &wanted_table(results).markdown();
    for (name, value) in results {
        out += &format!("\n## {name}\n\n");
        if let Some(command) = value["command"].as_str() {
            out += &format!("`{command}`\n\n");
        }
        out += &format!("{}\n\n", on_what(value));
        if let Some(why) = value["failed"].as_str() {
            out += &format!("**Failed:** {why}\n\n");
        }
        out += &fs::read_to_string(dir.join(format!("{name}.md"))).unwrap_or_default();
    }
    out
}

fn wanted_table(results: &[(String, Value)]) -> Table {
    let head = ["what", "bar", "aim", "found", "in"].map(String::from).to_vec();
    let row = |wanted: &Wanted| {
        let value = results.iter().find(|(name, _)| name == wanted.file);
        let number = value.and_then(|(_, value)| value.pointer(wanted.pointer)?.as_f64());
        vec![
            wanted.what.into(),
            wanted.bar.into(),
            wanted.aim.into(),
            shown(number, wanted.digits),
            wanted.file.into(),
        ]
    };
    Table { head, rows: WANTED.iter().map(row).collect() }
}

/// The machine and the versions, on one line.
fn on_what(value: &Value) -> String {
    let machine = &value["machine"];
    let text = |field: &Value| match field {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let mut parts = vec![
        format!("{} cores of {}", text(&machine["cores"]), text(&machine["processor"])),
        format!("{} MiB", text(&machine["memory_mib"])),
        format!("Linux {}", text(&machine["kernel"])),
        format!("load {} at the end", text(&machine["load_1m"])),
    ];
    let versions = value["versions"].as_object().into_iter().flatten();
    parts.extend(versions.filter_map(|(name, said)| Some(format!("{name}: {}", said.as_str()?))));
    parts.join(" · ")
}

const WANTED: &[Wanted] = &[
    Wanted {
        what: "1,000 agents × 175 series at 1 Hz: broker CPU, µs a sample",
        bar: "0.7",
        aim: "0.2",
        file: "load-1000x175",
        pointer: "/broker_cpu_us_per_sample",
        digits: 3,
    },
    Wanted {
        what: "the same: broker PSS at its peak, MiB",
        bar: "128",
        aim: "64",
        file: "load-1000x175",
        pointer: "/broker_pss_mib_peak",
        digits: 0,
    },
    Wanted {
        what: "the same: sent → acknowledged p99, ms",
        bar: "150",
        aim: "–",
        file: "load-1000x175",
        pointer: "/ack_ms_p99",
        digits: 1,
    },
    Wanted {
        what: "the same: frames lost",
        bar: "0",
        aim: "0",
        file: "load-1000x175",
        pointer: "/frames_lost",
        digits: 0,
    },
    Wanted {
        what: "victoria-metrics, the same samples: CPU × Strobe's",
        bar: "–",
        aim: "–",
        file: "load-1000x175",
        pointer: "/victoria_metrics/cpu_over_strobe",
        digits: 1,
    },
    Wanted {
        what: "prometheus, the same samples: CPU × Strobe's",
        bar: "–",
        aim: "–",
        file: "load-1000x175",
        pointer: "/prometheus/cpu_over_strobe",
        digits: 1,
    },
    Wanted {
        what: "control plane of three brokers, with fsync: proposals a second",
        bar: "200",
        aim: "1000",
        file: "proposals-3",
        pointer: "/proposals_per_s",
        digits: 0,
    },
    Wanted {
        what: "1,000 control groups and 5,000 processes at 1 Hz: % of a core",
        bar: "≤ 3",
        aim: "1.5",
        file: "families",
        pointer: "/percent",
        digits: 2,
    },
    Wanted {
        what: "an hour of churn: agent's anonymous memory, KiB more in its second half",
        bar: "0",
        aim: "0",
        file: "churn",
        pointer: "/grown_kib",
        digits: 0,
    },
    Wanted {
        what: "10,000 agents × 1 KiB at 1 Hz: broker CPU, % of one core",
        bar: "70",
        aim: "40",
        file: "load-10000x112-row",
        pointer: "/broker_cpu_percent_of_core",
        digits: 1,
    },
    Wanted {
        what: "the same: broker PSS at its peak, MiB",
        bar: "–",
        aim: "400",
        file: "load-10000x112-row",
        pointer: "/broker_pss_mib_peak",
        digits: 0,
    },
    Wanted {
        what: "the same: frames lost",
        bar: "0",
        aim: "0",
        file: "load-10000x112-row",
        pointer: "/frames_lost",
        digits: 0,
    },
    Wanted {
        what: "real /proc data: stored bytes a sample, all files",
        bar: "0.6",
        aim: "0.45",
        file: "bytes",
        pointer: "/strobe_bytes_per_sample",
        digits: 3,
    },
    Wanted {
        what: "victoria-metrics on the same data, all files: bytes × Strobe's",
        bar: "1",
        aim: "–",
        file: "bytes",
        pointer: "/victoria_metrics_over_strobe",
        digits: 2,
    },
    Wanted {
        what: "100 dashboards: sent → browser p99, ms",
        bar: "50",
        aim: "5",
        file: "live",
        pointer: "/row_ms_p99",
        digits: 1,
    },
    Wanted {
        what: "3 brokers, 5,000 × 200 and a Redis: acknowledged, p99 ms",
        bar: "500",
        aim: "",
        file: "cluster-3x5000x200",
        pointer: "/ack_ms_p99",
        digits: 0,
    },
    Wanted {
        what: "3 brokers, 5,000 × 200 and a Redis: frames lost",
        bar: "0",
        aim: "0",
        file: "cluster-3x5000x200",
        pointer: "/frames_lost",
        digits: 0,
    },
    Wanted {
        what: "Brokers killed and held still: rows twice on disk, of which queries see one",
        bar: "",
        aim: "",
        file: "cluster-3x1000x200-hurt",
        pointer: "/rows_twice",
        digits: 0,
    },
    Wanted {
        what: "Brokers killed and held still: longest gap of a host in all of the run, p99 s",
        bar: "",
        aim: "",
        file: "cluster-3x1000x200-hurt",
        pointer: "/gap_s_p99",
        digits: 2,
    },
    Wanted {
        what: "A broker killed, alone: gaps of its 333 agents, p99 s",
        bar: "3",
        aim: "1.5",
        file: "cluster-3x1000x200-kills",
        pointer: "/single/gap_s_p99",
        digits: 2,
    },
    Wanted {
        what: "The leader killed, alone: until another one leads, the longest of all, s",
        bar: "2",
        aim: "1.2",
        file: "cluster-3x1000x200-kills",
        pointer: "/single/elected_s_max",
        digits: 2,
    },
    Wanted {
        what: "1,000 blows at brokers and their Redis, several down at once: frames lost",
        bar: "0",
        aim: "0",
        file: "cluster-3x200x200-blows",
        pointer: "/frames_lost",
        digits: 0,
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_missing_is_a_dash_and_what_failed_says_so() {
        let value =
            json!({ "row_ms_p99": 3.25, "failed": "2 lost", "command": "strobe-perf live" });
        let page = page(&[("live".into(), value)], Path::new("/nonexistent"));
        assert!(page.contains("sent → browser p99, ms | 50 | 5 | 3.2 | live |"), "{page}");
        assert!(page.contains("**Failed:** 2 lost"), "{page}");
        assert!(page.contains("| 70 | 40 | – | load-10000x112-row |"), "{page}");
    }
}
