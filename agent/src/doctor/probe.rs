//! Quirks of this kernel that decide how the agent works here.

use super::Finding;
use crate::config::Config;
use crate::sampler::kept_files;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};

/// All of them.
pub(super) fn look(config: &Config) -> Vec<Finding> {
    vec![offsets(config), uring(), sockets(), taskstats(), tickless(config)]
}

/// Whether the files of /proc can be read where they begin without being opened anew: the sampler keeps
/// them open and reads them so (`pread`), and a file that cannot be has no values.
fn offsets(config: &Config) -> Finding {
    let mut refused = Vec::new();
    let mut read = 0;
    for (path, _, _) in kept_files() {
        // Whoever left a pipe there: it is opened, and nobody waits for its other end.
        let flags = libc::O_NONBLOCK;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(config.procfs.join(path));
        match file.map(|file| file.read_at(&mut [0], 0)) {
            Ok(Ok(_)) => read += 1,
            Ok(Err(why)) if why.raw_os_error() == Some(Errno::ESPIPE as i32) => refused.push(path),
            // What is missing or denied is told of the file itself.
            Ok(Err(_)) | Err(_) => {}
        }
    }
    let finding = |found: String| Finding::new("kernel", "reading at an offset", found);
    if refused.is_empty() {
        return finding(format!("{read} files, each kept open"));
    }
    finding(format!("refused (ESPIPE) by {}", refused.join(" ")))
        .less("these have no values: --procfs names a tree of plain files, or /proc itself")
}

fn uring() -> Finding {
    let finding = |found: String| Finding::new("kernel", "io_uring", found);
    match strobe_journal::try_uring() {
        Ok(()) => finding("there; the spool takes it where a trial at start finds it faster".to_owned()),
        Err(why) => finding(format!("not to be had ({why}): the spool writes by plain calls")).less(
            "Linux 5.6, sysctl kernel.io_uring_disabled=0, and a seccomp profile that allows it; nothing is \
             lost without",
        ),
    }
}

fn sockets() -> Finding {
    netlink(
        SockProtocol::NetlinkSockDiag,
        "netlink sock_diag",
        "no queues of listening sockets (tcp_listen)",
    )
}

/// The door is open to everybody; what is behind it is for CAP_NET_ADMIN, which is told of by itself.
fn taskstats() -> Finding {
    netlink(
        SockProtocol::NetlinkGeneric,
        "netlink generic",
        "no taskstats: processes that end between two readings are not seen",
    )
}

fn netlink(protocol: SockProtocol, name: &str, without: &str) -> Finding {
    match socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol) {
        Ok(_) => Finding::new("kernel", name, "a socket is given"),
        Err(why) => Finding::new("kernel", name, format!("refused ({}): {without}", why.desc()))
            .less("RestrictAddressFamilies=AF_NETLINK in the unit, or the container's seccomp profile"),
    }
}

/// CPUs that stop their tick while one task runs: their times in /proc/stat move when they come to rest,
/// not every tick.
fn tickless(config: &Config) -> Finding {
    let list = fs::read_to_string(config.sysfs.join("devices/system/cpu/nohz_full"));
    let list = list.unwrap_or_default();
    let finding = |found: String| Finding::new("kernel", "tickless CPUs", found);
    match list.trim() {
        "" | "(null)" => finding("none".to_owned()),
        cpus => finding(format!(
            "{cpus}: their times may stand still for seconds and then move at once"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Health;
    use super::*;
    use crate::config::KEYS;
    use nix::sys::stat::Mode;
    use strobe_wire::settings::Settings;

    #[test]
    fn a_file_that_cannot_be_read_at_an_offset_and_cpus_without_a_tick_are_named() {
        let dir = std::env::temp_dir().join(format!("strobe-probe-{}", std::process::id()));
        fs::create_dir_all(dir.join("devices/system/cpu")).unwrap();
        fs::write(dir.join("devices/system/cpu/nohz_full"), "2-7\n").unwrap();
        fs::write(dir.join("stat"), "cpu 1\n").unwrap();
        let at = dir.display();
        let args = ["--procfs", "--sysfs"].map(|flag| format!("{flag}={at}"));
        let settings = Settings::load(KEYS, None, &|_| None, &args).unwrap();
        let config = Config::new(&settings, &|_| Some("/".to_owned())).unwrap();
        assert_eq!(offsets(&config).found, "1 files, each kept open");
        // Nobody is at its other end: opening it would wait for somebody.
        nix::unistd::mkfifo(&dir.join("loadavg"), Mode::S_IRWXU).unwrap();
        let found = offsets(&config);
        assert_eq!((found.state, &*found.found), (Health::Less, "refused (ESPIPE) by loadavg"));
        let found = tickless(&config);
        assert!(found.found.starts_with("2-7: ") && found.state == Health::Good);
        fs::remove_dir_all(&dir).unwrap();
        assert_eq!(tickless(&config).found, "none");
        assert_eq!(look(&config).len(), 5);
    }
}
