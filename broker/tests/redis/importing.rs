//! What was in the store before Redis was given to it moves there behind what is new, once.

use crate::support::{Server, base_ms, counts, dir, fill, free_port, mirror, open, query, wall_ms};
use std::sync::Arc;
use std::time::Duration;
use strobe_broker::store::redis::{Epochs, Import, Mirror};

fn importing(mirror: Mirror, until: u64, wanted: bool) -> Mirror {
    mirror.attached(Import { until, wanted }, &Arc::new(Epochs::none()))
}

/// What is new goes first, and what was before follows, over a restart in the middle: no block is sent twice.
/// Without `--import` it stays. An empty Redis gets all of it again.
#[test]
fn older_segments_follow_and_are_marked() {
    let server = Server::start(free_port(), &[]);
    let (dir, base, now) = (dir("importing"), base_ms(), wall_ms());
    let (store, mut writer) = open(&dir, base);
    for back in (1..=3).rev() {
        fill(&mut writer, base - back * 600_000);
    }
    let (before, until) = segments(&dir);
    fill(&mut writer, base);
    let fresh = segments(&dir).0 - before;
    let pass = |mirror: &mut Mirror, times: usize| {
        for _ in 0..times {
            let _: Duration = mirror.pass(now);
        }
        counts(mirror)
    };

    let stays = pass(&mut importing(mirror(&store, &server.url(), now), until, false), 4);
    assert_eq!((stays.segments, stays.import_left), (fresh, 0), "{stays:?}");
    server.tell(&["FLUSHALL"]);

    let mut first = importing(mirror(&store, &server.url(), now), until, true);
    let new = pass(&mut first, usize::try_from(fresh).unwrap());
    assert_eq!((new.segments, new.import_done), (fresh, 0), "what is new goes first: {new:?}");
    let one = pass(&mut first, 1);
    assert_eq!((one.import_done, one.import_left), (1, before - 1), "{one:?}");
    drop(first);
    let mut second = importing(mirror(&store, &server.url(), now), until, true);
    let all = pass(&mut second, 10);
    assert_eq!((all.segments, all.import_done, all.import_left), (0, before - 1, 0), "{all:?}");
    let blocks = u64::try_from(server.blocks().len()).unwrap();
    assert_eq!(blocks, 4 * 20, "a block of each source and window, each once");
    server.tell(&["FLUSHALL"]);
    let again = pass(&mut second, 10);
    let moved = (again.segments, again.import_done);
    assert_eq!(moved, (fresh, 2 * before - 1), "an empty Redis gets all again: {again:?}");

    drop((second, writer, store));
    std::fs::remove_dir_all(&dir).unwrap();
    let (store, _writer) = open(&dir, now);
    let mut other = mirror(&store, &server.url(), now);
    pass(&mut other, 2);
    assert_eq!(query(&store, "x[1h]", base), (4 * 20 * 60, vec![]));
    std::fs::remove_dir_all(dir).unwrap();
}

/// How many segment files there are, and the newest's number.
fn segments(dir: &std::path::Path) -> (u64, u64) {
    let files = std::fs::read_dir(dir.join("segments")).unwrap().flatten();
    let number =
        |name: String| u64::from_str_radix(name.strip_suffix(".seg")?.split_once('-')?.1, 16).ok();
    let numbers: Vec<u64> =
        files.filter_map(|file| number(file.file_name().into_string().unwrap())).collect();
    (u64::try_from(numbers.len()).unwrap(), numbers.into_iter().max().unwrap())
}
