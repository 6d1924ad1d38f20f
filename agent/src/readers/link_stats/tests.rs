//! Links of this kernel in a network namespace of their own, and answers that are torn.

use super::*;
use crate::readers::Format;
use crate::readers::kept::{Buffer, Kept, Shape};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

/// Set inside the namespace.
const INSIDE: &str = "STROBE_TEST_LINKS";
const PAIRS: usize = 250;
/// As many as a table has columns for: the others are refused, whoever is asked.
const TOLD: usize = 400;

/// A clock that says that text is dear and netlink is cheap, or the other way round.
static NOW: AtomicU64 = AtomicU64::new(0);

fn text() -> impl FnMut(&mut Sheet) {
    let (mut buffer, mut kept) =
        (Buffer::new(), Kept::new("/proc/net/dev".into(), Shape::Records(512)));
    move |sheet| {
        NOW.fetch_add(1_000_000, Ordering::Relaxed);
        Format::Devices.parse(kept.read(&mut buffer).unwrap(), sheet);
    }
}

fn sheet() -> Sheet {
    let mut sheet = Sheet::new(Vanish::Go);
    sheet.learn();
    sheet
}

fn ip(arguments: &str) {
    let done = Command::new("ip").args(arguments.split(' ')).status();
    assert!(done.unwrap().success(), "ip {arguments}");
}

/// Five hundred links in a network namespace of its own, real ones of this kernel: what netlink says of
/// each lies between what two readings of the text say, through names that change and links that come
/// and go.
#[test]
fn the_kernel_says_the_same_of_500_links_as_its_text() {
    let name = "readers::link_stats::tests::the_kernel_says_the_same_of_500_links_as_its_text";
    if std::env::var_os(INSIDE).is_none() {
        return in_namespace(name);
    }
    let lines = |line: &dyn Fn(usize) -> String| (0..PAIRS).map(line).collect::<String>();
    batch(&lines(&|n| format!("link add a{n} type veth peer name b{n}\n")));
    batch(&lines(&|n| format!("link set a{n} up\nlink set b{n} up\n")));
    let (mut links, mut text) = (LinkStats::default(), text());
    let mut check = |links: &mut LinkStats, wanted: usize| {
        let [mut before, mut between, mut after] = [sheet(), sheet(), sheet()];
        text(&mut before);
        assert!(links.ask());
        links.put(&mut between);
        text(&mut after);
        assert_eq!(between.entries().len(), wanted);
        assert!(is_between(&before, &between, &after));
        let sent =
            (0..between.width()).filter(|at| at % 16 == 8).filter_map(|at| between.value(at));
        assert!(0 < sent.max().unwrap(), "IPv6 asks for neighbours on each");
    };
    check(&mut links, TOLD);
    ip("link set a0 down");
    ip("link set a0 name renamed");
    check(&mut links, TOLD);
    assert!(links.names.iter().any(|name| *name.text == *b"renamed"));
    ip("link del b1");
    check(&mut links, TOLD);
    // More news than a queue holds.
    for _ in 0..4 {
        batch(
            &lines(&|n| format!("link set b{n} mtu 1400\n")).replace("link set b1 mtu 1400\n", ""),
        );
        batch(
            &lines(&|n| format!("link set b{n} mtu 1500\n")).replace("link set b1 mtu 1500\n", ""),
        );
    }
    ip("link set b7 down");
    ip("link set b7 name other");
    check(&mut links, TOLD);
    // By the real clock: which of them is cheaper here is said, not judged.
    let mut links = LinkStats::default();
    let mut real = self::text();
    links.try_out(0, crate::clock::monotonic_ns, &mut real);
    let cost = |read: &mut dyn FnMut()| {
        let start = crate::clock::monotonic_ns();
        (0..100).for_each(|_| read());
        (crate::clock::monotonic_ns() - start) / 100_000
    };
    let mut room = sheet();
    let text_us = cost(&mut || {
        room.begin();
        real(&mut room);
    });
    let netlink_us = cost(&mut || {
        room.begin();
        assert!(links.ask());
        links.put(&mut room);
    });
    println!(
        "{} links: text {text_us} us, netlink {netlink_us} us a reading; chosen: {}",
        2 * PAIRS,
        links.is_chosen()
    );
}

/// Runs the test of this name again in a user and network namespace of its own.
fn in_namespace(name: &str) {
    let outcome = Command::new("unshare")
        .arg("-Urn")
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .expect("unshare (util-linux) is needed");
    let said = String::from_utf8_lossy(&outcome.stderr);
    assert!(outcome.status.success(), "failed inside `unshare -Urn`:\n{said}");
    println!("{}", String::from_utf8_lossy(&outcome.stdout));
}

fn batch(lines: &str) {
    use std::io::Write as _;
    let mut ip = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    ip.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    assert!(ip.wait().unwrap().success());
}

#[test]
fn the_cheaper_one_that_is_sure_is_chosen_and_for_an_hour() {
    let mut links = LinkStats::default();
    assert!(!links.is_due(LINKS_MANY - 1, 0) && links.is_due(LINKS_MANY, 0));
    // Each look at the text takes 1 ms of this clock, and netlink nothing.
    links.try_out(5, || NOW.load(Ordering::Relaxed), text());
    // Other tests make links on this host at the same moment, and then nobody can be sure.
    if links.is_chosen() {
        assert!(links.read(6));
        assert!(!links.read(5 + CHOICE_NS) && !links.is_chosen(), "the text is asked again");
    }
    // Somebody else's text: other links, or other values.
    let mut links = LinkStats::default();
    links.try_out(
        5,
        || NOW.load(Ordering::Relaxed),
        |sheet| {
            NOW.fetch_add(1_000_000, Ordering::Relaxed);
            Format::Devices.parse(b"eth9: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n", sheet);
        },
    );
    assert!(!links.is_chosen() && !links.is_due(LINKS_MANY, 6));
    // Text that costs nothing.
    let mut links = LinkStats::default();
    let mut text = text();
    links.try_out(5, || 0, |sheet| text(sheet));
    assert!(!links.is_chosen());
}

#[test]
fn torn_answers_end() {
    for length in 0..300_usize {
        let mut message = vec![0xff; length];
        assert_ne!(each(&message, |_, body| assert!(row(body).is_none())), End::Done);
        if HEADER_BYTES <= length {
            message[..4].copy_from_slice(&u32::try_from(length).unwrap().to_ne_bytes());
            each(&message, |_, body| {
                row(body);
            });
            // An attribute as long as there is room.
            if let Some(room) = message.get_mut(HEADER_BYTES + STATS_BYTES..)
                && let Ok(length) = u16::try_from(room.len())
                && 4 <= length
            {
                room[..2].copy_from_slice(&length.to_ne_bytes());
                room[2..4].copy_from_slice(&STATS_LINK_64.to_ne_bytes());
                let whole = 4 + 23 * 8 <= usize::from(length);
                each(&message, |_, body| assert_eq!(row(body).is_some(), whole));
            }
        }
    }
    assert_eq!(each(&[0; 64], |_, _| ()), End::Refused, "a length of nothing would go on for ever");
}
