//! The units of a real systemd, asked over a real bus, are what node_exporter has of them.
//!
//! Needs root, unshare, dbus-daemon, systemd, python3, curl and node_exporter; without one of them the test fails and
//! says which.
#![expect(clippy::unwrap_used, reason = "a test may panic")]
#![expect(clippy::disallowed_methods, reason = "processes take real time to be gone")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A directory and a control group for what runs in it, gone when dropped.
struct Place {
    dir: PathBuf,
    group: PathBuf,
}

impl Place {
    fn new() -> Self {
        let name = format!("strobe-systemd-{}", std::process::id());
        let groups = Path::new("/sys/fs/cgroup");
        let named = groups.join("systemd");
        let base = if named.is_dir() { named } else { groups.to_owned() };
        let place = Self { dir: std::env::temp_dir().join(&name), group: base.join(&name) };
        std::fs::create_dir_all(&place.dir).unwrap();
        std::fs::create_dir(&place.group)
            .unwrap_or_else(|why| panic!("{}: {why}; this test wants root", place.group.display()));
        place
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
        // What ran in it was killed with its namespace, and takes a moment to be gone.
        for _ in 0..50 {
            remove_groups(&self.group);
            if !self.group.exists() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
    }
}

fn remove_groups(group: &Path) {
    let below = std::fs::read_dir(group).into_iter().flatten().flatten();
    let below = below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    below.for_each(|entry| remove_groups(&entry.path()));
    // A group that is still busy is tried again.
    let _ = std::fs::remove_dir(group);
}

#[test]
fn units_are_those_of_node_exporter() {
    let place = Place::new();
    let text = |name: &str| std::fs::read_to_string(place.dir.join(name)).unwrap_or_default();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/systemd.sh");
    // Into the group first, so that the control group namespace begins there.
    let enter = "echo $$ > \"$0/cgroup.procs\" && exec unshare --mount --net --cgroup --pid --fork --kill-child \
                 --mount-proc timeout 60 sh \"$@\"";
    let out = Command::new("sh")
        .args(["-c", enter])
        .args([place.group.as_path(), Path::new(script), &place.dir])
        .args([env!("CARGO_BIN_EXE_strobe-agent"), "29180"])
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let (theirs, ours) = (series(&text("theirs")), series(&text("ours")));
    let wrong: Vec<_> = (theirs.iter())
        .filter(|(name, value)| ours.get(*name) != Some(value))
        .map(|(name, value)| format!("{name}: theirs {value}, ours {:?}", ours.get(name)))
        .chain(
            ours.keys()
                .filter(|name| !theirs.contains_key(*name))
                .map(|name| format!("not theirs: {name}")),
        )
        .collect();
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), theirs.len(), wrong.join("\n"));
    for (name, value) in [
        ("unit_state{name=\"simple.service\",state=\"active\",type=\"simple\"}", 1.0),
        ("unit_state{name=\"fails.service\",state=\"failed\",type=\"oneshot\"}", 1.0),
        ("unit_state{name=\"once.timer\",state=\"failed\"}", 0.0),
        ("socket_accepted_connections_total{name=\"inlet.socket\"}", 2.0),
        ("socket_current_connections{name=\"inlet.socket\"}", 2.0),
    ] {
        assert_eq!(theirs.get(name), Some(&value), "{name}: {theirs:?}");
    }
    assert!(theirs["timer_last_trigger_seconds{name=\"once.timer\"}"] > 1e9, "{theirs:?}");
    assert!(200.0 < *theirs.iter().find(|(name, _)| name.starts_with("version")).unwrap().1);
}

/// Of `node_systemd_*`, labels in their order and empty ones left out.
fn series(text: &str) -> BTreeMap<String, f64> {
    text.lines()
        .filter_map(|line| {
            let (name, value) = line.strip_prefix("node_systemd_")?.rsplit_once(' ')?;
            let name = name.replace(",type=\"\"", "");
            Some((name, value.parse().unwrap()))
        })
        .collect()
}
