//! Prometheus remote-write 1.0: a snappy block around one protobuf message.
//!
//! The message is written down here by hand, so that no protobuf compiler is needed. Metadata,
//! exemplars and native histograms are skipped; everything kept is bounded and checked.

use crate::store::RemoteSeries;
use prost::Message;
use strobe_wire::limits::{
    LABEL_NAME_BYTES_MAX, LABEL_VALUE_BYTES_MAX, LABELS_MAX, TIME_AHEAD_MAX_MS, TIME_BEHIND_MAX_MS,
};
use strobe_wire::schema::Labels;

/// Bytes of a request once decompressed.
pub const BODY_BYTES_MAX: usize = 32 << 20;

/// Why a request is refused; the sender should not repeat it.
#[derive(Debug, thiserror::Error)]
pub enum RemoteWriteError {
    /// The body decompresses to too much.
    #[error(
        "remote-write: the body has {found} bytes decompressed; at most {BODY_BYTES_MAX} are allowed"
    )]
    Large {
        /// What its header says.
        found: usize,
    },
    /// Not snappy's block format.
    #[error("remote-write: the body is not snappy: {0}")]
    Snappy(#[from] snap::Error),
    /// Not the message.
    #[error("remote-write: the body is not a WriteRequest: {0}")]
    Protobuf(#[from] prost::DecodeError),
    /// A series that the data model does not allow.
    #[error("remote-write: series {index}: {why}")]
    Series {
        /// Which, from 0.
        index: usize,
        /// What is wrong with it.
        why: String,
    },
}

/// Decodes a request's body.
///
/// # Errors
/// See [`RemoteWriteError`]; nothing of a bad request is kept.
pub fn decode(body: &[u8]) -> Result<Vec<RemoteSeries>, RemoteWriteError> {
    let found = snap::raw::decompress_len(body)?;
    if BODY_BYTES_MAX < found {
        return Err(RemoteWriteError::Large { found });
    }
    let plain = snap::raw::Decoder::new().decompress_vec(body)?;
    let request = WriteRequest::decode(&plain[..])?;
    let series = request.series.into_iter().enumerate();
    series
        .map(|(index, one)| checked(one).map_err(|why| RemoteWriteError::Series { index, why }))
        .collect()
}

/// Takes out what a frame might not claim either: samples of more than a week ago, which nothing
/// would keep, and of more than ten minutes ahead. Returns how many those were.
pub fn keep_in_time(series: &mut Vec<RemoteSeries>, now_ms: i64) -> u64 {
    let mut refused = 0;
    series.retain_mut(|one| {
        let before = one.samples.len();
        one.samples.retain(|(at_ms, _)| {
            let ahead_ms = at_ms.saturating_sub(now_ms);
            (-TIME_BEHIND_MAX_MS..=TIME_AHEAD_MAX_MS).contains(&ahead_ms)
        });
        refused += u64::try_from(before - one.samples.len()).unwrap_or(0);
        !one.samples.is_empty() || before == 0
    });
    refused
}

/// Encodes series as a request's body (for tests and for sending on).
#[must_use]
pub fn encode(series: &[RemoteSeries]) -> Vec<u8> {
    let one = |series: &RemoteSeries| TimeSeries {
        labels: series
            .labels
            .0
            .iter()
            .cloned()
            .map(|(name, value)| Label { name, value })
            .collect(),
        samples: series.samples.iter().map(|&(at_ms, value)| Sample { value, at_ms }).collect(),
    };
    let plain = WriteRequest { series: series.iter().map(one).collect() }.encode_to_vec();
    snap::raw::Encoder::new()
        .compress_vec(&plain)
        .expect("only more than 4 GiB cannot be compressed")
}

fn checked(series: TimeSeries) -> Result<RemoteSeries, String> {
    if LABELS_MAX < series.labels.len() {
        return Err(format!("{} labels; at most {LABELS_MAX} are allowed", series.labels.len()));
    }
    let mut pairs: Vec<(String, String)> =
        series.labels.into_iter().map(|label| (label.name, label.value)).collect();
    pairs.retain(|(_, value)| !value.is_empty());
    pairs.sort();
    for (name, value) in &pairs {
        if !is_name(name) || LABEL_NAME_BYTES_MAX < name.len() {
            return Err(format!("{name:?} is no label name"));
        }
        if LABEL_VALUE_BYTES_MAX < value.len() {
            return Err(format!(
                "the value of {name:?} has {} bytes; at most {LABEL_VALUE_BYTES_MAX} are allowed",
                value.len()
            ));
        }
    }
    if let Some([first, _]) = pairs.array_windows().find(|[a, b]| a.0 == b.0) {
        return Err(format!("label {:?} is there twice", first.0));
    }
    if !pairs.iter().any(|(name, _)| name == "__name__") {
        return Err("it has no __name__".to_owned());
    }
    let samples = series.samples.into_iter().map(|sample| (sample.at_ms, sample.value)).collect();
    Ok(RemoteSeries { labels: Labels(pairs), samples })
}

fn is_name(name: &str) -> bool {
    let mut letters = name.chars();
    letters.next().is_some_and(|first| first.is_ascii_alphabetic() || first == '_')
        && letters.all(|letter| letter.is_ascii_alphanumeric() || letter == '_')
}

/// `prometheus.WriteRequest`; metadata (3) is skipped.
#[derive(Clone, PartialEq, Message)]
struct WriteRequest {
    #[prost(message, repeated, tag = "1")]
    series: Vec<TimeSeries>,
}

/// `prometheus.TimeSeries`; exemplars (3) and histograms (4) are skipped.
#[derive(Clone, PartialEq, Message)]
struct TimeSeries {
    #[prost(message, repeated, tag = "1")]
    labels: Vec<Label>,
    #[prost(message, repeated, tag = "2")]
    samples: Vec<Sample>,
}

#[derive(Clone, PartialEq, Message)]
struct Label {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    value: String,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct Sample {
    #[prost(double, tag = "1")]
    value: f64,
    #[prost(int64, tag = "2")]
    at_ms: i64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn series(pairs: &[(&str, &str)]) -> RemoteSeries {
        let pairs = pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned()));
        RemoteSeries {
            labels: Labels(pairs.collect()),
            samples: vec![(5, 1.5), (-7, f64::INFINITY)],
        }
    }

    #[test]
    fn requests_come_back() {
        let sent = vec![series(&[("__name__", "up"), ("job", "x")])];
        assert_eq!(decode(&encode(&sent)).unwrap(), sent);
        let stale = f64::from_bits(0x7ff0_0000_0000_0002);
        let sent = RemoteSeries { samples: vec![(1, stale)], ..series(&[("__name__", "up")]) };
        let got = decode(&encode(&[sent])).unwrap();
        assert_eq!(got[0].samples[0].1.to_bits(), stale.to_bits());
    }

    /// A sample of 1970 let the housekeeping roll up every hour since, and nothing else.
    #[test]
    fn samples_far_off_are_left_out() {
        const NOW: i64 = 1_700_000_000_000;
        let times = [0, i64::MIN, NOW - TIME_BEHIND_MAX_MS - 1, NOW, NOW + 600_001, i64::MAX];
        let one = series(&[("__name__", "up")]);
        let of = |times: &[i64]| RemoteSeries {
            samples: times.iter().map(|at| (*at, 1.0)).collect(),
            ..one.clone()
        };
        let mut all = vec![of(&times), of(&[5]), of(&[NOW - TIME_BEHIND_MAX_MS])];
        assert_eq!(keep_in_time(&mut all, NOW), 6);
        assert_eq!(all, [of(&[NOW]), of(&[NOW - TIME_BEHIND_MAX_MS])]);
    }

    #[test]
    fn bad_requests_are_named() {
        let check = |body: &[u8], wanted: &str| {
            let got = decode(body).unwrap_err().to_string();
            assert!(got.contains(wanted), "{got}");
        };
        check(b"", "snappy");
        check(&[0xff, 0xff, 0xff, 0x7f, 0], "bytes decompressed");
        check(&snap::raw::Encoder::new().compress_vec(b"\xff\xff").unwrap(), "WriteRequest");
        check(&encode(&[series(&[("job", "x")])]), "no __name__");
        check(&encode(&[series(&[("__name__", "a"), ("a", "1"), ("a", "2")])]), "twice");
        check(&encode(&[series(&[("__name__", "a"), ("a-b", "1")])]), "no label name");
    }

    proptest! {
        #[test]
        fn no_bytes_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&body);
            let _ = decode(&snap::raw::Encoder::new().compress_vec(&body).unwrap());
        }
    }
}
