//! Two that think they own a shard: the one of the older epoch is refused.

use crate::support::{
    Server, counts, dir, drive, fill, free_port, mirror, open, query, whole_hour_ms,
};

const SHARDS: usize = 256;

#[test]
fn an_older_owner_is_fenced_shard_by_shard() {
    let (dir, base) = (dir("fenced"), whole_hour_ms());
    let (store, mut writer) = open(&dir, base);
    let server = Server::start(free_port(), &[]);
    let mut mirror = mirror(&store, &server.url(), base);
    (0..SHARDS).for_each(|shard| mirror.epochs().set(shard, 5));
    fill(&mut writer, base);
    drive(&mut mirror, base);
    let shard_of = |key: &str| key.split(['{', '}']).nth(1).unwrap().to_owned();
    let first = server.blocks();
    let lost = shard_of(first.keys().next().unwrap());
    let theirs = |blocks: &std::collections::BTreeMap<String, Vec<u8>>| {
        blocks.keys().filter(|key| shard_of(key) == lost).count()
    };
    assert_eq!(first.len(), 20);

    // Another broker has taken one shard over, and has written there.
    let key = format!("monitor:epoch:{{{lost}}}");
    assert_eq!(server.say(&["GET", &key]), "5");
    server.tell(&["SET", &key, "6"]);
    fill(&mut writer, base + 600_000);
    drive(&mut mirror, base + 600_000);
    let second = server.blocks();
    assert_eq!(second.len(), 40 - theirs(&first), "the other shards go on");
    assert_eq!(theirs(&second), theirs(&first), "nothing was written behind the fence");
    let found = counts(&mirror);
    assert_eq!(
        (found.fenced_shards, found.failures, found.connected),
        (1, [0, 0, 0, 0, 0, 1], true)
    );

    // It is ours again: what was held back follows.
    let number = lost.trim_start_matches(|c: char| !c.is_ascii_digit()).parse().unwrap();
    mirror.epochs().set(number, 7);
    drive(&mut mirror, base + 600_000);
    assert_eq!((server.blocks().len(), counts(&mirror).fenced_shards), (40, 0));
    assert_eq!(server.say(&["GET", &key]), "7");
    assert_eq!(query(&store, "x[2h]", base + 600_000), (20 * 120, vec![]));
    drop((writer, store));
    std::fs::remove_dir_all(dir).unwrap();
}
