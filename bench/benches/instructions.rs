//! Instructions an operation takes, counted by valgrind: the same on a busy machine and on an idle
//! one, so that a change of one per cent is seen. The kernel's part is not counted.
//!
//! Each operation runs twice in a process of its own, `FEW` and `MANY` times; the difference is
//! the operations alone, without the start of the process and what they share.

#![expect(clippy::print_stdout, reason = "a benchmark's output")]

use hugepage_config::{Region, Want};
use std::hint::black_box;
use std::process::{Command, ExitCode};
use strobe_agent::ring::Ring;
use strobe_bench::{FILES, FIXTURE, Host, ROW_BYTES, SEALED_BYTES, Tree, look, seal};
use strobe_wire::limits::FRAME_BYTES_MAX;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, name, times] = args.as_slice()
        && flag == "--operate"
    {
        operate(name, times.parse().unwrap_or(0));
        return ExitCode::SUCCESS;
    }
    let wanted = args.iter().find(|arg| !arg.starts_with("--")).map_or("", String::as_str);
    let names = ["frame/seal", "frame/open", "ring/row", "tick/fixture"].map(str::to_owned);
    let files = FILES.map(|file| format!("reader/{file}"));
    println!("{:<28} {:>14}", "operation", "instructions");
    for name in names.iter().chain(&files).filter(|name| name.contains(wanted)) {
        match count(name, MANY).and_then(|many| Ok((many, count(name, FEW)?))) {
            Ok((many, few)) => {
                println!("{name:<28} {:>14}", many.saturating_sub(few) / (MANY - FEW));
            }
            Err(why) => {
                println!("{name}: {why}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}

/// Instructions of a process that does `name` so many times.
fn count(name: &str, times: u64) -> Result<u64, String> {
    let program = std::env::current_exe().map_err(|why| why.to_string())?;
    let found = Command::new("valgrind")
        .args(["--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"])
        .arg(program)
        .args(["--operate", name, &times.to_string()])
        .output()
        .map_err(|why| format!("starting valgrind: {why} (scripts/setup bench installs it)"))?;
    let said = String::from_utf8_lossy(&found.stderr);
    let line = said.lines().find_map(|line| line.split_once("refs:"));
    let digits = |text: &str| text.chars().filter(char::is_ascii_digit).collect::<String>();
    line.and_then(|(_, number)| digits(number).parse().ok())
        .ok_or_else(|| format!("valgrind counted nothing: {said}"))
}

fn operate(name: &str, times: u64) {
    match name {
        "frame/seal" => {
            let mut row = [0; ROW_BYTES];
            (0..times).for_each(|seq| assert!(black_box(seal(&mut row, seq)) == SEALED_BYTES));
        }
        "frame/open" => {
            let mut row = [0; ROW_BYTES];
            let length = seal(&mut row, 1);
            (0..times).for_each(|_| assert!(look(black_box(&row[..length])) == 2));
        }
        "ring/row" => ring(times),
        "tick/fixture" => ticks(&mut Host::new(FIXTURE.as_ref()), times),
        file => {
            let tree = Tree::of(&[file.trim_start_matches("reader/")]);
            ticks(&mut Host::new(tree.path()), times);
        }
    }
}

/// Claims, publishes, reads and releases; the row's bytes are not touched.
fn ring(times: u64) {
    let region = Region::map(64 * FRAME_BYTES_MAX, Want::Plain).expect("memory");
    let Ring { mut writer, mut reader } = Ring::new(64, region).expect("a ring");
    for _ in 0..times {
        writer.claim().expect("room").publish(SEALED_BYTES);
        let ticket = reader.next().expect("a row").ticket();
        reader.release(ticket);
    }
}

fn ticks(host: &mut Host, times: u64) {
    // The first ticks learn the host and start a thread.
    (0..20).for_each(|_| assert!(host.tick() < 100));
    (0..times).for_each(|_| assert!(black_box(host.tick()) < 100));
}

const FEW: u64 = 100;
const MANY: u64 = 600;
