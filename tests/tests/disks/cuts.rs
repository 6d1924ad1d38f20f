//! Power cuts: the file system of a broker is shut down under load, without a flush.

use super::disk::Disk;
use super::support::{Agents, Cluster};
use super::{broker, judge};
use std::cell::RefCell;
use strobe_tests::pause;

/// Whatever was acknowledged before a cut, or after it by mistake, is there when the power is back.
fn cut(name: &str, brokers: usize, cut: usize, times: usize) -> Option<u64> {
    let disk = RefCell::new(None);
    let programs = vec![broker(&[], &["--free-min", "1MiB"]); brokers];
    let mut cluster = Cluster::of_programs(name, &programs, |at, dir| {
        if at == cut {
            *disk.borrow_mut() = Disk::ext4(dir, 128);
        }
    });
    let disk = disk.into_inner()?;
    let agents = Agents::start(&cluster, 5);
    agents.wait_until_all_are_heard(30);
    for cycle in 0..times {
        pause(1100 + 170 * cycle as u64);
        cluster.keep_logs();
        disk.cut_power();
        // The machine lives for a while: what it says now is believed, too.
        pause(700);
        cluster.kill(cut);
        disk.turn_on();
        cluster.restart(cut);
        agents.wait_until_all_are_heard(30);
    }
    Some(judge(cluster, agents))
}

#[test]
fn a_power_cut_loses_nothing_that_was_acknowledged() {
    println!("{:?} frames, each once", cut("cut", 1, 0, 4));
}

#[test]
fn a_power_cut_of_one_of_three_loses_nothing_that_was_acknowledged() {
    println!("{:?} frames, each once", cut("cut-of-three", 3, 1, 3));
}
