//! The image of the agreed state, as every version wrote it: what followers are sent, and what backups keep.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use strobe_cluster::kinds::{members, shards};
use strobe_cluster::{Config, Identity, Node, Role, State, Store};

/// Made once, by `image()` of this very state; an image of another version is refused in words.
#[test]
fn the_image_of_a_state_is_what_it_was() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/v1/state-image.bin");
    let golden = fs::read(path).expect("a golden file");
    let state = members::first_state(1, "10.0.0.1:7801", 0xd15c);
    assert_eq!(
        state.image(),
        golden,
        "other bytes for the same state: raise the image's version, and keep this file"
    );
    let read = State::of_image(&golden).expect("it is read");
    assert_eq!(members::members(&read), members::members(&state));
    let mut newer = golden;
    newer[4] += 1;
    let crc = crc32c::crc32c(&newer[..newer.len() - 4]);
    let end = newer.len() - 4;
    newer[end..].copy_from_slice(&crc.to_le_bytes());
    let why = State::of_image(&newer).expect_err("it is newer").to_string();
    assert!(why.contains("upgrade it"), "{why}");
}

/// The store of a broker that led a cluster of itself: log, votes, configuration, state. A broker of another version
/// goes on with it. It lies here without its empty pages; what redb itself writes is not compared.
#[test]
fn a_brokers_store_is_read_as_it_was() {
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/v1/cluster-redb.pages");
    let dir = std::env::temp_dir().join(format!("strobe-golden-{}", std::process::id()));
    fs::create_dir_all(&dir).expect("writable");
    let identity = Identity { cluster: 0xc0ffee, broker: 3, disk: 0xd15c };
    if !Path::new(golden).exists() {
        let make = std::env::var("STROBE_GOLDEN").is_ok_and(|word| word == "make");
        assert!(make, "{golden} is missing");
        let path = dir.join("new.redb");
        let database = redb::Database::create(&path).expect("it is made");
        Store::init(&database, identity, "10.0.0.3:7801", &State::default()).expect("it is made");
        drop(lead(Store::open(database).expect("it opens")));
        fs::write(golden, packed(&fs::read(&path).expect("readable"))).expect("writable");
    }
    let path: PathBuf = dir.join("old.redb");
    fs::write(&path, unpacked(&fs::read(golden).expect("a golden file"))).expect("writable");
    let store = Store::open(redb::Database::open(&path).expect("it opens")).expect("it opens");
    assert_eq!((store.identity(), store.life()), (identity, 2));
    let member = members::member(store.state(), 3).expect("itself");
    assert_eq!((member.address.as_str(), member.stage()), ("10.0.0.3:7801", members::Stage::Voter));
    assert_eq!(shards::owned_by(store.state(), 3), 256);
    let node = lead(store);
    let status = node.status();
    assert!(2 <= status.term && 3 <= status.applied, "its term and log go on: {status:?}");
    drop(node);
    fs::remove_dir_all(dir).expect("it can be removed");
}

/// Until it leads and has given itself all shards.
fn lead(store: Store) -> Node {
    #[expect(clippy::disallowed_methods, reason = "an Instant can only be made so")]
    let mut now = Instant::now();
    let mut node = Node::new(store, Config::usual(7), now).expect("it begins");
    for _ in 0..200 {
        now += Duration::from_millis(50);
        node.on_timeout(now).expect("it goes on");
        while node.poll(now).expect("it goes on").is_some() {}
    }
    assert_eq!(node.status().role, Role::Leader);
    node
}

/// (number, bytes) of each page with anything in it, behind the count of all.
fn packed(bytes: &[u8]) -> Vec<u8> {
    let pages = || bytes.chunks(PAGE).enumerate();
    let mut out = number(pages().count()).to_vec();
    for (at, page) in pages().filter(|(_, page)| page.iter().any(|byte| *byte != 0)) {
        out.extend(number(at));
        out.extend(page);
    }
    out
}

fn unpacked(golden: &[u8]) -> Vec<u8> {
    let number = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().expect("four")) as usize;
    let (count, pages) = golden.split_at(4);
    let mut out = vec![0; number(count) * PAGE];
    for page in pages.chunks(4 + PAGE) {
        let (at, bytes) = page.split_at(4);
        out[number(at) * PAGE..][..PAGE].copy_from_slice(bytes);
    }
    out
}

fn number(at: usize) -> [u8; 4] {
    u32::try_from(at).expect("small").to_le_bytes()
}

const PAGE: usize = 512;
