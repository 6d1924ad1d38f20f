//! `strobe sim`, the program.

use nix::sys::signal::Signal;
use strobe_tests::{Process, pause, run};

#[test]
fn a_seed_is_a_run_and_a_part_of_it_too() {
    let (well, said, error) = run("strobe", &["sim", "--seed", "4", "--seeds", "2", "--jobs", "2"]);
    assert!(well, "{error}");
    assert!(said.contains("2 seeds") && said.contains("rows acknowledged"), "{said}");
    let part = ["sim", "--seed", "5", "--only", "1,2", "--until-ms", "2000", "--trace"];
    let (well, said, error) = run("strobe", &part);
    assert!(well, "{error}");
    assert!(said.contains("broker 1 leads in term") && said.contains("all is healed"), "{said}");
    assert_eq!(run("strobe", &part).1, said, "the same again");
}

/// `make soak` ended by Ctrl-C said nothing of what it had done.
#[test]
fn a_soak_says_in_the_end_what_it_survived() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let mut soak = Process::start("strobe", &["sim", "--forever", "--seed", "1"]);
        // A seed takes a second or two.
        pause(8_000);
        soak.signal(signal);
        assert!(soak.line().starts_with("no further seed"));
        // It tells how far it is every ten seconds as well.
        let lines = std::iter::from_fn(|| Some(soak.line()).filter(|line| line != "faults:\n"));
        let summary = lines.last().expect("it says what it did");
        let told = ["hours simulated", "times as fast", "seeds", "faults survived"];
        assert!(told.iter().all(|word| summary.contains(word)), "{summary}");
        assert!(!summary.contains(" 0 seeds"), "{summary}");
        assert!(soak.line().trim_start().starts_with(|c: char| c.is_ascii_digit()));
        assert!(soak.ended_well(), "it was asked to end");
    }
}
