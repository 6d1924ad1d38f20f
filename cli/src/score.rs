//! `strobe score FILE.csv`: the agent's anomaly scores for rows of `timestamp,value`.
//!
//! The output is the input with a column more, row by row as it is read, so it may be a pipe.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::PathBuf;
use strobe_agent::score::{BriefScorer, Scorer};
use strobe_broker::api::moment_ms;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Rows of timestamp,value in order of time; - is standard input. A timestamp is Unix seconds
    /// (ms, µs and ns are told by their size), RFC 3339, or "2026-11-21 10:00:00" in UTC. Names
    /// in a first line are used to find the two columns; further columns are kept.
    #[arg(value_name = "FILE.csv")]
    file: PathBuf,
    /// Score as an agent scores what is not hot: in 64 bytes, without hours and shifts.
    #[arg(long)]
    brief: bool,
}

pub(crate) fn run(args: &Args) -> Result<(), String> {
    let name = args.file.display().to_string();
    let input: Box<dyn Read> = if name == "-" {
        Box::new(io::stdin().lock())
    } else {
        Box::new(File::open(&args.file).map_err(|why| format!("cannot read {name}: {why}"))?)
    };
    let mut out = csv::Writer::from_writer(BufWriter::new(io::stdout().lock()));
    match score(input, &mut out, args.brief) {
        Ok(()) => Ok(()),
        // A reader that went away (`| head`) is no error.
        Err(Failure::Write(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(Failure::Write(error)) => Err(format!("cannot write the scores: {error}")),
        Err(Failure::Row(line, why)) => Err(format!("{name}, line {line}: {why}")),
    }
}

enum Failure {
    Write(io::Error),
    Row(u64, String),
}

/// Which columns are the time and the value.
#[derive(Clone, Copy)]
struct Columns {
    time: usize,
    value: usize,
}

/// Either kind of scorer.
enum Scoring {
    Full(Box<Scorer>),
    Brief(BriefScorer),
}

fn score(input: impl Read, out: &mut csv::Writer<impl Write>, brief: bool) -> Result<(), Failure> {
    let mut rows = csv::ReaderBuilder::new().has_headers(false).from_reader(input);
    let mut columns = Columns { time: 0, value: 1 };
    let mut scoring =
        if brief { Scoring::Brief(BriefScorer::default()) } else { Scoring::Full(Box::default()) };
    let mut row = csv::StringRecord::new();
    let mut first = true;
    loop {
        let more = rows.read_record(&mut row);
        let line = row.position().map_or(1, csv::Position::line);
        if !more.map_err(|why| Failure::Row(line, why.to_string()))? {
            break;
        }
        if std::mem::take(&mut first) {
            strip_mark(&mut row);
            if let Some(named) = header(&row) {
                columns = named;
                row.push_field("anomaly_score");
                write(out, &row)?;
                continue;
            }
        }
        let (time_s, value) = read(&row, columns).map_err(|why| Failure::Row(line, why))?;
        let score = match &mut scoring {
            Scoring::Full(scorer) => scorer.score(time_s, value),
            Scoring::Brief(scorer) => scorer.score(value),
        };
        row.push_field(&format!("{score:.6}"));
        write(out, &row)?;
    }
    out.flush().map_err(Failure::Write)
}

fn write(out: &mut csv::Writer<impl Write>, row: &csv::StringRecord) -> Result<(), Failure> {
    out.write_record(row).map_err(|why| match why.into_kind() {
        csv::ErrorKind::Io(error) => Failure::Write(error),
        kind => Failure::Write(io::Error::other(format!("{kind:?}"))),
    })
}

/// Removes a byte order mark.
fn strip_mark(row: &mut csv::StringRecord) {
    if row.get(0).is_some_and(|field| field.starts_with('\u{feff}')) {
        *row = row.iter().map(|field| field.trim_start_matches('\u{feff}')).collect();
    }
}

/// The columns that a first line names; `None` if it holds values.
fn header(row: &csv::StringRecord) -> Option<Columns> {
    let value = row.get(1)?.trim();
    if value.is_empty() || value.parse::<f64>().is_ok() {
        return None;
    }
    let named = |names: &[&str], other: usize| {
        let is = |field: &str| names.iter().any(|name| field.trim().eq_ignore_ascii_case(name));
        row.iter().position(is).unwrap_or(other)
    };
    let time = named(&["timestamp", "time", "date", "datetime"], 0);
    Some(Columns { time, value: named(&["value"], usize::from(time == 0)) })
}

/// Time in s and value of a row; an empty value is none.
fn read(row: &csv::StringRecord, columns: Columns) -> Result<(f64, f64), String> {
    let field = |index: usize| row.get(index).map(str::trim);
    let time = field(columns.time).unwrap_or_default();
    let time_s = seconds(time).ok_or_else(|| {
        format!("{time:?} is no timestamp; give Unix seconds, RFC 3339 or 2026-11-21 10:00:00")
    })?;
    let value = field(columns.value).ok_or("there is no second column, the value")?;
    let value = match value {
        "" => f64::NAN,
        text => text.parse().map_err(|_| format!("{text:?} is no number"))?,
    };
    Ok((time_s, value))
}

#[expect(clippy::cast_precision_loss, reason = "ms since the epoch are far below 2^53")]
fn seconds(text: &str) -> Option<f64> {
    if let Ok(number) = text.parse::<f64>() {
        // Seconds up to the year 5138, then ms, µs and ns of years after 1973.
        let unit = [1e11, 1e14, 1e17].iter().filter(|bound| **bound < number.abs()).count();
        return number
            .is_finite()
            .then(|| number / 1000_f64.powi(i32::try_from(unit).unwrap_or(0)));
    }
    let mut text = text.replacen(' ', "T", 1);
    if text.len() == "2026-11-21".len() {
        text.push_str("T00:00:00");
    }
    let minutes = "2026-11-21T10:00".len();
    if text.len() == minutes {
        text.push_str(":00");
    }
    let zoned = text.ends_with(['Z', 'z'])
        || text.get(minutes..).is_some_and(|rest| rest.contains(['+', '-']));
    if !zoned {
        text.push('Z');
    }
    moment_ms(&text).map(|ms| ms as f64 / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scored(input: &str) -> Result<String, String> {
        let mut out = csv::Writer::from_writer(Vec::new());
        score(input.as_bytes(), &mut out, false).map_err(|failure| match failure {
            Failure::Write(error) => error.to_string(),
            Failure::Row(line, why) => format!("line {line}: {why}"),
        })?;
        Ok(String::from_utf8(out.into_inner().unwrap()).unwrap())
    }

    #[test]
    fn a_column_is_added_and_the_others_stay() {
        let check = |input: &str, wanted: &str| assert_eq!(scored(input).unwrap(), wanted);
        check(
            "timestamp,value\n2014-04-01 00:00:00,19.5\n2014-04-01 00:05:00,\n",
            "timestamp,value,anomaly_score\n2014-04-01 00:00:00,19.5,0.000000\n2014-04-01 00:05:00,,0.000000\n",
        );
        check("1,2\r\n2,3\r\n", "1,2,0.000000\n2,3,0.000000\n");
        check(
            "\u{feff}label,Value,Time\nx,1,5\n",
            "label,Value,Time,anomaly_score\nx,1,5,0.000000\n",
        );
        check("", "");
    }

    #[test]
    fn what_cannot_be_read_is_named_with_its_line() {
        let check = |input: &str, wanted: &str| {
            let why = scored(input).unwrap_err();
            assert!(why.contains(wanted), "{why}");
        };
        check("timestamp,value\n1,2\nx,3\n", "line 3: \"x\" is no timestamp");
        check("1,2\n2,many\n", "line 2: \"many\" is no number");
        check("1\n", "line 1: there is no second column");
        check("1,2\n3\n", "line 2");
    }

    #[test]
    fn timestamps() {
        for (text, wanted) in [
            ("1396310400", Some(1_396_310_400.0)),
            ("1396310400000", Some(1_396_310_400.0)),
            ("1396310400000000000", Some(1_396_310_400.0)),
            ("2014-04-01", Some(1_396_310_400.0)),
            ("2014-04-01 00:00", Some(1_396_310_400.0)),
            ("2014-04-01 00:00:00", Some(1_396_310_400.0)),
            ("2014-04-01T02:00:00.500+02:00", Some(1_396_310_400.5)),
            ("0", Some(0.0)),
            ("NaN", None),
            ("yesterday", None),
        ] {
            assert_eq!(seconds(text), wanted, "{text}");
        }
    }

    #[test]
    fn a_spike_in_noise_scores_highest() {
        let mut input = String::new();
        for n in 0..2000_u32 {
            let noise = f64::from(n.wrapping_mul(2_654_435_761) >> 16) / 65_536.0;
            let value = if n == 1500 { 9.0 } else { noise };
            input.push_str(&format!("{n},{value}\n"));
        }
        let out = scored(&input).unwrap();
        let score =
            |line: &str| line.rsplit(',').next().and_then(|s| s.parse::<f64>().ok()).unwrap();
        let highest = out.lines().enumerate().max_by(|a, b| score(a.1).total_cmp(&score(b.1)));
        assert_eq!(highest.map(|(line, _)| line), Some(1500));
    }
}
