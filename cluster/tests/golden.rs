//! The image of the agreed state, as every version wrote it: what followers are sent, and what backups keep.

use strobe_cluster::State;
use strobe_cluster::kinds::members;

/// Made once, by `image()` of this very state; an image of another version is refused in words.
#[test]
fn the_image_of_a_state_is_what_it_was() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/v1/state-image.bin");
    let golden = std::fs::read(path).expect("a golden file");
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
