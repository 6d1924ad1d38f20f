//! `make cluster`: the recipe works, and leaves nothing behind.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use strobe_tests::{http_get, wait};

/// Three brokers with Redis and Sentinels, a host and two simulated ones, seen by the dashboard; SIGINT,
/// as Ctrl-C sends it, ends every process and removes the folder.
#[test]
fn three_brokers_on_one_machine() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let programs = std::env::current_exe().expect("a path");
    let programs = programs.parent().and_then(Path::parent).expect("target/debug/deps");
    let mut recipe = Command::new(root.join("scripts/cluster"))
        .args(["--listen", "127.0.0.1:0", "--hosts", "2", "--seconds", "120", "--programs"])
        .arg(programs)
        .stdout(Stdio::piped())
        .spawn()
        .expect("bash, redis-server and node are there: `make test` sees to that");
    let out = recipe.stdout.take().expect("piped");
    let mut recipe = Ended(recipe);
    let mut lines = BufReader::new(out).lines().map(|line| line.expect("text"));
    let url = lines.find_map(|l| l.strip_prefix("Strobe is ready: http://").map(str::to_owned));
    let url = url.expect("it gets ready");
    let address = url.strip_suffix("/#/cluster").expect("the cluster's page").to_owned();
    let folder = lines.find_map(|l| Some(l.strip_prefix("State and logs: ")?.to_owned()));
    let folder = folder.expect("it says where").split(' ').next().expect("a path").to_owned();

    let overview = || -> serde_json::Value {
        let (status, body) = http_get(&address, "/api/strobe/v1/cluster").expect("it answers");
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).expect("JSON")
    };
    wait("three brokers and three hosts are well", 30, || {
        let seen = overview();
        let members = seen["members"].as_array().expect("a list").clone();
        let fresh: u64 = members.iter().filter_map(|m| m["hosts"]["fresh"].as_u64()).sum();
        let good = |m: &serde_json::Value| {
            m["stage"] == "voter" && m["vitals"]["redis"]["connected"] == true
        };
        let found = seen["findings"].as_array().expect("a list");
        members.len() == 3 && members.iter().all(good) && fresh == 3 && found.is_empty()
    });
    let seen = overview();
    assert_eq!(seen["shards"].as_array().expect("a list").len(), 256);
    assert!(
        seen["members"].as_array().expect("a list").iter().all(|m| m["vitals"]["storing"] == true)
    );

    assert_eq!(running(&folder), 13, "Redis, Sentinels, brokers, agents and a dashboard");
    kill(Pid::from_raw(recipe.0.id().try_into().expect("a pid")), Signal::SIGINT).expect("it runs");
    recipe.0.wait().expect("it ends");
    assert!(!Path::new(&folder).exists(), "{folder} is left");
    assert_eq!(running(&folder), 0, "processes are left");
}

/// A recipe that is ended with its test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            let pid = Pid::from_raw(self.0.id().try_into().expect("a pid"));
            let _ = kill(pid, Signal::SIGTERM);
            drop(self.0.wait());
        }
    }
}

/// How many processes have a path of this folder in their command line, or work in it.
fn running(folder: &str) -> usize {
    let processes = std::fs::read_dir("/proc").expect("proc").flatten();
    let of_it = |process: &std::fs::DirEntry| {
        let command = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        let at = std::fs::read_link(process.path().join("cwd")).unwrap_or_default();
        String::from_utf8_lossy(&command).contains(folder) || at.starts_with(folder)
    };
    processes.filter(of_it).count()
}
