//! What a sample of this very host takes on the disk: its /proc by the real agent, through a real
//! broker, sealed; and the same samples in what one would otherwise use.
//!
//! The log of the broker is kept beside it while it runs (a second link to each of its files), so
//! that one recording can be sealed again and again as the format changes: `--recorded DIR`.

use super::{Bench, Found, row, shown};
use crate::broker::{Broker, Stored, WINDOW_MS, sealed};
use crate::http::Http;
use crate::peers::{Kind, Peer};
use crate::report::Table;
use crate::run;
use serde_json::json;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use strobe_broker::remote_write;
use strobe_broker::store::{Limits, RemoteSeries, Scratch, Store, StoreConfig, TimeRange};

/// What to record, or what was recorded.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// How long this host is watched; whole windows cost less, and of 20 minutes one is whole.
    pub lasting: Duration,
    /// A recording made before, instead.
    pub recorded: Option<PathBuf>,
    /// Where the recording goes to stay.
    pub keep: Option<PathBuf>,
    /// Whether other stores get the samples too.
    pub peers: Vec<Kind>,
}

/// Records, seals and divides.
///
/// # Errors
/// What could not be started, read or written.
pub fn measure(bench: &Bench, wanted: &Wanted) -> Result<Found, String> {
    let text = |why: &dyn std::fmt::Display| why.to_string();
    let scratch = bench.scratch("bytes")?;
    let log = match (&wanted.recorded, &wanted.keep) {
        (Some(dir), _) | (None, Some(dir)) => dir.clone(),
        (None, None) => scratch.join("recording"),
    };
    if wanted.recorded.is_none() {
        record(bench, &scratch, &log, wanted.lasting)?;
    }
    let store = scratch.join("store");
    copy(&log, &store.join("wal")).map_err(|e| format!("copying {}: {e}", log.display()))?;
    let from_ms = first_ms(&store).map_err(|e| text(&e))?;
    let stored = sealed(&store, from_ms).map_err(|e| text(&e))?;
    let mut peers = Vec::new();
    for kind in &wanted.peers {
        if kind.program().is_some() {
            let peer = import(*kind, &store, &scratch);
            peers.push(peer.map_err(|e| format!("{}: {e}", kind.name()))?);
        }
    }
    Ok(tell(&stored, &peers))
}

fn record(bench: &Bench, scratch: &Path, log: &Path, lasting: Duration) -> Result<(), String> {
    let text = |why: &dyn std::fmt::Display| why.to_string();
    fs::create_dir_all(log).map_err(|e| text(&e))?;
    let broker = Broker::start(&bench.program("strobe-broker")?, scratch).map_err(|e| text(&e))?;
    let agent = Command::new(bench.program("strobe-agent")?)
        .arg("--dir")
        .arg(scratch.join("agent"))
        .args(["--broker", &broker.address.to_string()])
        .args(["--token", &broker.token().map_err(|e| text(&e))?])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| text(&e))?;
    let mut agent = Ended(agent);
    let wal = broker.dir.join("store/wal");
    let until = run::now() + lasting;
    while run::now() < until {
        run::sleep_until((run::now() + LINK_EVERY).min(until));
        link(&wal, log).map_err(|e| format!("keeping {}: {e}", wal.display()))?;
        if agent.0.try_wait().is_ok_and(|ended| ended.is_some()) {
            return Err("strobe-agent ended by itself".into());
        }
    }
    Ok(())
}

/// A second name for each file of the log, which the broker removes when it has sealed it.
fn link(wal: &Path, log: &Path) -> io::Result<()> {
    for entry in fs::read_dir(wal)? {
        let entry = entry?;
        let to = log.join(entry.file_name());
        if entry.file_name() != "lock" && !to.exists() {
            match fs::hard_link(entry.path(), &to) {
                Err(why) if why.kind() == io::ErrorKind::CrossesDevices => {
                    return Err(io::Error::other("keep it on the disk of the scratch directory"));
                }
                done => done?,
            }
        }
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}

/// When the recording began, as its samples have it.
fn first_ms(store: &Path) -> Result<i64, String> {
    let mut first = i64::MAX;
    each(store, &mut |series| {
        first = series.samples.first().map_or(first, |sample| sample.0.min(first));
        Ok(())
    })?;
    if first == i64::MAX {
        return Err("nothing was recorded".into());
    }
    Ok(first)
}

/// Every series with its samples.
fn each(
    store: &Path,
    visit: &mut dyn FnMut(RemoteSeries) -> Result<(), String>,
) -> Result<(), String> {
    let limits = Limits { series_max: usize::MAX, samples_max: u64::MAX };
    let range = TimeRange { start_ms: 0, end_ms: i64::MAX };
    let config = StoreConfig { head_bytes_max: usize::MAX, ..StoreConfig::at(store.to_owned()) };
    // Read as of its beginning, so that nothing is too old.
    let (store, writer, _) = Store::open(config, 0).map_err(|why| why.to_string())?;
    let mut scratch = Scratch::new(&limits);
    let mut said = Ok(());
    for part in store.select(&[], range, &limits).map_err(|why| why.to_string())? {
        let scanned = store.scan(&part, range, &mut scratch, &mut |labels, times, values| {
            let samples = times.iter().copied().zip(values.iter().copied()).collect();
            if said.is_ok() {
                said = visit(RemoteSeries { labels: labels.clone(), samples });
            }
            Ok(())
        });
        scanned.map_err(|why| why.to_string())?;
    }
    drop(writer);
    said
}

/// Bytes that the same samples take elsewhere.
struct Elsewhere {
    kind: Kind,
    /// Samples, and for prometheus the index, which is in each of its blocks.
    data: u64,
    /// The index of series, where it stands apart.
    index: u64,
}

fn import(kind: Kind, store: &Path, scratch: &Path) -> Result<Elsewhere, String> {
    let text = |why: &dyn std::fmt::Display| why.to_string();
    let mut peer = Peer::start(kind, scratch).map_err(|e| text(&e))?;
    let mut http = Http::connect(peer.port).map_err(|e| text(&e))?;
    each(store, &mut |series| {
        let body = remote_write::encode(&[series]);
        http.must(&Peer::write(&body)).map(|_| ()).map_err(|e| text(&e))
    })?;
    drop(http);
    let data = peer.stored_bytes().map_err(|e| text(&e))?;
    Ok(Elsewhere { kind, data, index: peer.index_bytes() })
}

fn tell(stored: &Stored, peers: &[Elsewhere]) -> Found {
    let (best, samples) = (&stored.best, stored.raw.samples);
    let each = |bytes: u64| (samples != 0).then(|| bytes as f64 / samples as f64);
    let (files, blocks) = (each(stored.raw.bytes), each(stored.raw.block_bytes));
    let mut rows = vec![
        row("samples recorded, in the fullest segment", format!("{samples}, {}", best.samples)),
        row("strobe: bytes a sample, whole files: blocks, lists of series, places", {
            shown(files, 3)
        }),
        row("strobe: of these blocks", shown(blocks, 3)),
        row("strobe: the fullest segment, whole file", shown(stored.bytes_per_sample(), 3)),
        row("strobe: of these blocks", shown(stored.block_bytes_per_sample(), 3)),
    ];
    let mut value = json!({
        "what": "bytes", "window_ms": WINDOW_MS, "samples": samples,
        "strobe_bytes_per_sample": files,
        "strobe_block_bytes_per_sample": blocks,
        "strobe_full_bytes_per_sample": stored.bytes_per_sample(),
        "strobe_full_block_bytes_per_sample": stored.block_bytes_per_sample(),
        "damage": stored.damage,
    });
    for Elsewhere { kind, data, index } in peers {
        let (name, key) = (kind.name(), kind.name().replace('-', "_"));
        let (all, data) = (each(data + index), each(*data));
        let ratio = |theirs: Option<f64>, ours| theirs.zip(ours).map(|(a, b): (f64, f64)| a / b);
        rows.push(row(&format!("{name}: bytes a sample, data and index (× strobe's files)"), {
            format!("{} ({})", shown(all, 3), shown(ratio(all, files), 2))
        }));
        if 0 < *index {
            rows.push(row(&format!("{name}: without its index (× strobe's files)"), {
                format!("{} ({})", shown(data, 3), shown(ratio(data, files), 2))
            }));
        }
        value[format!("{key}_bytes_per_sample")] = json!(all);
        value[format!("{key}_data_bytes_per_sample")] = json!(data);
        value[format!("{key}_over_strobe")] = json!(ratio(all, files));
        value[format!("{key}_data_over_strobe")] = json!(ratio(data, files));
    }
    let failed = (!stored.damage.is_empty()).then(|| format!("{:?}", stored.damage));
    let table = Table { head: vec!["bytes".into(), "found".into()], rows };
    Found { name: "bytes".into(), value, table, failed }
}

/// A process that is ended, by its id, when this is dropped.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // It may have ended already; either way its exit is waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const LINK_EVERY: Duration = Duration::from_secs(5);
