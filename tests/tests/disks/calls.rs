//! System calls that fail: `strace` answers in the kernel's place.

use super::support::{Agents, Cluster};
use super::{broker, judge};
use std::path::{Path, PathBuf};
use strobe_tests::{Folder, run, wait};

/// A broker whose disk fails so: `strace`, which is no parent of it, notes what it did.
fn failing(folder: &Path, number: usize, faults: &[&str]) -> (Vec<String>, PathBuf) {
    let note = folder.join(format!("{number}.strace"));
    let mut words = vec!["/usr/bin/strace".to_owned()];
    words.extend(["-D", "-f", "-y", "--seccomp-bpf", "-qq", "-o"].map(str::to_owned));
    words.push(note.display().to_string());
    let calls = "trace=io_uring_setup,fdatasync";
    // io_uring's calls are none that could be failed one by one: it is refused, as old kernels do.
    let plain = "inject=io_uring_setup:error=ENOSYS";
    words.extend(["-e", calls, "-e", plain].map(str::to_owned));
    words.extend(faults.iter().flat_map(|fault| ["-e".to_owned(), format!("inject={fault}")]));
    (broker(&words, &[]), note)
}

fn injected(note: &Path, call: &str) -> usize {
    let text = std::fs::read_to_string(note).expect("strace notes it; run scripts/setup test");
    let is = |line: &&str| line.contains(call) && line.contains("(INJECTED)");
    text.lines().filter(is).count()
}

/// Whose sync failed first, and how often it was synced behind that.
fn failed_first(note: &Path) -> (String, usize) {
    let text = std::fs::read_to_string(note).expect("it was there");
    let lines: Vec<&str> = text.lines().collect();
    let failed =
        lines.iter().position(|line| line.contains("(INJECTED)") && line.contains("fdatasync"));
    let (before, after) = lines.split_at(failed.expect("one failed") + 1);
    // `PID fdatasync(5</its/path>) = 0`, or in two lines, of which the first has the path.
    let thread = before.last().and_then(|line| line.split(' ').next()).expect("a number");
    let path = |line: &&str| {
        let path = line.split_once("fdatasync(")?.1.split_once('<')?.1;
        path.split_once('>').map(|(path, _)| path.to_owned())
    };
    let own = before.iter().rev().filter(|line| line.split(' ').next() == Some(thread));
    let file = own.clone().find_map(path).expect("it has a path");
    let again = after.iter().filter(|line| path(line).as_ref() == Some(&file)).count();
    (file, again)
}

/// The kernel says once that a sync failed, and what it holds for written may not be on the disk: the file is
/// given up, what it covered is sent again, and goes into another one.
#[test]
fn a_sync_that_fails_is_believed() {
    let folder = Folder::new("sync-fails");
    let (program, note) = failing(folder.path(), 0, &["fdatasync:error=EIO:when=60..62"]);
    let cluster = Cluster::of_programs("sync-fails", &[program], |_, _| {});
    let agents = Agents::start(&cluster, 4);
    wait("its syncs fail", 40, || 3 <= injected(&note, "fdatasync"));
    agents.wait_until_all_are_heard(30);
    let (file, again) = failed_first(&note);
    assert!(file.contains("/store/wal/") && again == 0, "{file} was synced {again} times more");
    println!("{} frames, each once", judge(cluster, agents));
}

/// All disks of a cluster fail syncs, those of what is agreed on too: a control plane that ended lives again, on
/// a copy of what it had.
#[test]
fn syncs_that_fail_end_no_cluster() {
    let folder = Folder::new("syncs-fail");
    let faults = [["fdatasync:error=EIO:when=100..101"], ["fdatasync:error=EIO:when=140..141"]];
    let mut made: Vec<_> = (0..2).map(|n| failing(folder.path(), n, &faults[n])).collect();
    made.push((broker(&[], &[]), PathBuf::new()));
    let programs: Vec<Vec<String>> = made.iter().map(|(program, _)| program.clone()).collect();
    let cluster = Cluster::of_programs("syncs-fail", &programs, |_, _| {});
    let agents = Agents::start(&cluster, 4);
    for (at, (_, note)) in made.iter().take(2).enumerate() {
        wait("the control plane's syncs fail", 60, || {
            // Changes, to have something synced; whether they are agreed on now is not asked.
            drop(run("strobe", &["cluster", "token", "--dir", &cluster.dir(at)]));
            2 <= injected(note, "fdatasync")
        });
        wait("it is one of three again", 30, || {
            let status = cluster.brokers[at].status();
            status.is_some_and(|status| status.leader.is_some() && status.voters() == 3)
        });
    }
    cluster.wait_until_balanced(60);
    agents.wait_until_all_are_heard(30);
    println!("{} frames, each once", judge(cluster, agents));
}
