//! Disks that are copied, and hardware that changes.

use super::*;
use crate::machine::Part;

fn fresh_dir(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("strobe-state-{}-{name}", std::process::id()));
    let _ = fs::remove_dir_all(&dir);
    dir
}

fn machine(id: Option<&str>) -> Machine {
    Machine { id: id.map(str::to_owned), hardware: Vec::new() }
}

/// With a machine-id that is always the same, as on a copied disk.
fn with(hardware: &[(Part, &str)]) -> Machine {
    let fact = |(part, text): &(Part, &str)| Fact { part: *part, text: (*text).to_owned() };
    Machine { hardware: hardware.iter().map(fact).collect(), ..machine(Some("m1")) }
}

fn text(dir: &Path) -> String {
    fs::read_to_string(dir.join(HOST_FILE)).unwrap()
}

#[test]
fn the_id_stays_and_the_boot_changes() {
    let dir = fresh_dir("stays");
    let first = State::open(&dir, &machine(Some("m1"))).unwrap();
    assert!(matches!(State::open(&dir, &machine(Some("m1"))), Err(StateError::Locked(_))));
    let (host, boot) = (first.host, first.boot);
    drop(first);
    for id in [Some("m1"), None] {
        let again = State::open(&dir, &machine(id)).unwrap();
        assert_eq!((again.host, again.cloned_from), (host, None));
        assert_ne!(again.boot, boot);
    }
    assert!(!text(&dir).contains("m1"));
    fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn a_cloned_disk_gets_an_id_of_its_own_once() {
    let dir = fresh_dir("clone");
    let original = State::open(&dir, &machine(Some("m1"))).unwrap().host;
    fs::write(dir.join("identity.pem"), "the original's").unwrap();
    let clone = State::open(&dir, &machine(Some("m2"))).unwrap();
    assert_ne!(clone.host, original);
    assert_eq!(clone.cloned_from, Some(original));
    assert!(clone.identity().unwrap().is_none());
    let host = clone.host;
    drop(clone);
    let again = State::open(&dir, &machine(Some("m2"))).unwrap();
    assert_eq!((again.host, again.cloned_from), (host, Some(original)));
    fs::remove_dir_all(&dir).unwrap();
}

/// An image with the machine-id in it, started on many machines: all had one id, and were told apart
/// only while two of them were there at once.
#[test]
fn a_copy_on_other_hardware_is_a_clone_though_its_machine_id_is_the_same() {
    let (here, there) = (fresh_dir("here"), fresh_dir("there"));
    let first = with(&[(Part::Board, "uuid-1"), (Part::Link, "02:01"), (Part::Link, "02:02")]);
    let original = State::open(&here, &first).unwrap().host;
    fs::create_dir_all(&there).unwrap();
    fs::copy(here.join(HOST_FILE), there.join(HOST_FILE)).unwrap();
    fs::write(there.join("identity.pem"), "the original's").unwrap();
    let second = with(&[(Part::Board, "uuid-2"), (Part::Link, "02:03")]);
    let clone = State::open(&there, &second).unwrap();
    assert_eq!(clone.cloned_from, Some(original));
    assert_ne!(clone.host, original);
    assert!(clone.identity().unwrap().is_none(), "it has to enrol for itself");
    let host = clone.host;
    drop(clone);
    // Each stays what it is.
    assert_eq!(State::open(&there, &second).unwrap().host, host);
    assert_eq!(State::open(&here, &first).unwrap().host, original);
    for secret in ["uuid-1", "02:01"] {
        assert!(!text(&here).contains(secret), "the file tells nobody the hardware");
    }
    fs::remove_dir_all(&here).unwrap();
    fs::remove_dir_all(&there).unwrap();
}

#[test]
fn hardware_that_changes_by_parts_is_the_same_host() {
    let dir = fresh_dir("parts");
    let start = with(&[(Part::Board, "uuid-1"), (Part::Link, "02:01")]);
    let host = State::open(&dir, &start).unwrap().host;
    let steps: [&[(Part, &str)]; 7] = [
        // The card is replaced, then another comes.
        &[(Part::Board, "uuid-1"), (Part::Link, "02:02")],
        &[(Part::Board, "uuid-1"), (Part::Link, "02:03"), (Part::Link, "02:02")],
        // Not as root: the board cannot be read, and is still known.
        &[(Part::Link, "02:03")],
        // Nothing can be seen, as in a container.
        &[],
        &[(Part::Board, "uuid-1")],
        // Another board with a card of before.
        &[(Part::Board, "uuid-2"), (Part::Link, "02:03")],
        &[(Part::Board, "uuid-2"), (Part::Link, "02:04")],
    ];
    for hardware in steps {
        let state = State::open(&dir, &with(hardware)).unwrap();
        assert_eq!((state.host, state.cloned_from), (host, None), "{hardware:?}");
    }
    // What was replaced counts no more.
    let former = State::open(&dir, &start).unwrap();
    assert_eq!(former.cloned_from, Some(host));
    fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn a_state_of_before_hardware_was_known_learns_it() {
    let dir = fresh_dir("before");
    let host = State::open(&dir, &machine(Some("m1"))).unwrap().host;
    let lines: String = text(&dir)
        .lines()
        .filter(|line| !line.starts_with("hardware"))
        .map(|line| format!("{line}\n"))
        .collect();
    fs::write(dir.join(HOST_FILE), lines).unwrap();
    assert_eq!(State::open(&dir, &with(&[(Part::Link, "02:01")])).unwrap().host, host);
    let other = State::open(&dir, &with(&[(Part::Link, "02:02")])).unwrap();
    assert_eq!(other.cloned_from, Some(host));
    fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn a_broken_file_is_named_and_never_replaced() {
    let dir = fresh_dir("broken");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join(HOST_FILE), "id = \"x\"\n").unwrap();
    assert!(matches!(State::open(&dir, &Machine::default()), Err(StateError::Content(_))));
    assert_eq!(text(&dir), "id = \"x\"\n");
    fs::remove_dir_all(&dir).unwrap();
}
