//! The state directory, and the spool in it.

use super::Finding;
use crate::config::Config;
use crate::sampler::Tick;
use nix::fcntl::{Flock, FlockArg};
use std::fs::{self, File};
use std::path::Path;
use strobe_journal::Journal;
use strobe_wire::pki::{Identity, Role, expires_s};

pub(super) fn look(config: &Config, now: Tick) -> Vec<Finding> {
    let dir = &config.dir;
    let mut found = vec![directory(dir), identity(config, now)];
    found.extend(spool(config));
    found
}

fn directory(dir: &Path) -> Finding {
    let finding = |found: &str| Finding::new("state", dir.display().to_string(), found);
    if !dir.is_dir() {
        return finding("is not there").less("the first start makes it");
    }
    let lock = File::open(dir.join("agent.lock"));
    let is_free =
        lock.ok().is_none_or(|file| Flock::lock(file, FlockArg::LockSharedNonblock).is_ok());
    let access = nix::unistd::access(dir, nix::unistd::AccessFlags::W_OK);
    match (is_free, access) {
        (_, Err(why)) => finding(&format!("cannot be written: {}", why.desc()))
            .less("make it writable: a certificate is renewed there, and frames wait there"),
        (false, Ok(())) => finding("an agent runs on it"),
        (true, Ok(())) => finding("writable, and no agent runs on it"),
    }
}

fn identity(config: &Config, now: Tick) -> Finding {
    let finding = |found: &str| Finding::new("state", "identity", found);
    match Identity::load(&config.dir, Role::Agent) {
        Ok(None) if config.broker.is_none() => finding("none, and no broker that it would be for"),
        Ok(None) => finding("this host has not enrolled").bad("start it with --token once"),
        Err(why) => {
            finding(&why.to_string()).bad("remove it and start the agent with --token once")
        }
        Ok(Some(identity)) => match expires_s(&identity.certificate_der) {
            Ok(end_s) => {
                let now_s = u64::try_from(now.wall_ns / 1_000_000_000).unwrap_or(0);
                let days = end_s.saturating_sub(now_s) / 86_400;
                let finding = finding(&format!("enrolled, good for {days} more days"));
                if now_s < end_s { finding } else { finding.bad("start it with --token once") }
            }
            Err(why) => finding(&why.to_string()).bad("start the agent with --token once"),
        },
    }
}

fn spool(config: &Config) -> Vec<Finding> {
    let Some(spool) = config.spool() else {
        return vec![
            Finding::new("spool", "none", "what the ring cannot hold is lost")
                .less("--spool-size says how much may wait on the disk"),
        ];
    };
    let mut found = Vec::new();
    let size = format!("up to {} MiB on the disk", spool.disk_bytes_max >> 20);
    let aside = spool.dir.with_extension("aside");
    let bytes = |path: &Path| -> u64 {
        let files = fs::read_dir(path).into_iter().flatten().flatten();
        files.filter_map(|file| Some(file.metadata().ok()?.len())).sum()
    };
    if spool.dir.try_exists().unwrap_or(true) {
        let name = spool.dir.display().to_string();
        found.push(match Journal::check(&spool.dir) {
            Err(why) => Finding::new("spool", name, why.to_string())
                .less("the agent puts it aside when it starts, or keeps frames in memory"),
            Ok((records, damage)) => {
                let held = bytes(&spool.dir) >> 10;
                let said = format!("{records} records wait, {held} KiB, {size}");
                let finding = Finding::new("spool", name, said);
                match damage.first() {
                    None => finding,
                    Some(first) => finding.less(format!(
                        "{} broken places, the first {} at byte {}: {}; the rest is sent",
                        damage.len(),
                        first.path.display(),
                        first.offset,
                        first.why
                    )),
                }
            }
        });
    } else {
        found.push(Finding::new(
            "spool",
            spool.dir.display().to_string(),
            format!("empty, {size}"),
        ));
    }
    if aside.exists() {
        let name = aside.display().to_string();
        let said = "what could not be read at a start, or is another version's";
        found.push(Finding::new("spool", name, said).less("nothing reads it: look, and delete it"));
    }
    found
}
