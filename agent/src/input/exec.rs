//! What commands print: Prometheus text, a Nagios plugin's line with performance data, or pairs.
//!
//! A command that fails, takes too long or prints too much has `strobe_exec_up 0`, and its series end.
//! Of Nagios plugins the exit code is the status (0 to 3) and no failure.

use super::board::{Absent, Board, Put, Room};
use super::config::{ExecConfig, ExecFormat};
use super::line::Line;
use super::outbox::Outbox;
use super::text::series;
use crate::readers::text::lines;
use crate::sampler::Tick;
use crate::schemas::Table;
use std::sync::Arc;
use strobe_wire::schema::Labels;

/// A command and its series.
#[derive(Debug)]
pub(crate) struct Command {
    pub(crate) config: ExecConfig,
    board: Board,
    pub(crate) failed: u64,
    pub(crate) dropped: u64,
    pub(crate) why: Option<String>,
}

/// How it ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Ended {
    /// By itself, with this code.
    Code(i32),
    /// Another way, in words.
    Otherwise(String),
}

impl Command {
    pub(crate) fn new(config: ExecConfig, room: Room, table: Arc<Table>) -> Self {
        let board = Board::new(format!("exec.{}", config.name), usize::MAX / 4, room, table);
        Self { config, board, failed: 0, dropped: 0, why: None }
    }

    /// It has ended, having printed `output`.
    pub(crate) fn ended(
        &mut self,
        at: Tick,
        ended: &Ended,
        output: &[u8],
        took_ns: u64,
        outbox: &Outbox,
    ) {
        self.board.begin();
        let nagios = self.config.format == ExecFormat::Nagios;
        let read = match ended {
            Ended::Otherwise(why) => Err(why.clone()),
            Ended::Code(code) if *code != 0 && !(nagios && (1..=3).contains(code)) => {
                Err(format!("it ended with code {code}"))
            }
            Ended::Code(code) => self.read(*code, output),
        };
        let up = read.is_ok();
        if let Err(why) = read {
            self.board.begin();
            self.failed += 1;
            self.why = Some(why);
        } else {
            self.why = None;
        }
        let took_ms = f64::from(u32::try_from(took_ns / 1_000_000).unwrap_or(u32::MAX));
        self.own("strobe_exec_up", &[], f64::from(u8::from(up)));
        self.own("strobe_exec_duration_seconds", &[], took_ms / 1000.0);
        self.dropped += self.board.finish(at, Absent::Stale, outbox);
    }

    /// Samples refused because there were too many series.
    pub(crate) fn refused(&self) -> u64 {
        self.board.refused()
    }

    fn read(&mut self, code: i32, output: &[u8]) -> Result<(), String> {
        match self.config.format {
            ExecFormat::Prometheus => self.prometheus(output),
            ExecFormat::Pairs => self.pairs(output),
            ExecFormat::Nagios => {
                self.own("strobe_exec_status", &[], f64::from(code));
                let text = String::from_utf8_lossy(output);
                // Of plugins with more than one line, each may have data behind a bar.
                for data in text.lines().filter_map(|line| Some(line.split_once('|')?.1)) {
                    for (label, value, unit) in performance(data) {
                        let labels = [("label", label), ("unit", unit.to_owned())];
                        self.own("strobe_exec_value", &labels, value);
                    }
                }
                Ok(())
            }
        }
    }

    fn prometheus(&mut self, output: &[u8]) -> Result<(), String> {
        for (number, line) in lines(output).enumerate() {
            let taken = match Line::read(line) {
                Line::Comment | Line::End => continue,
                Line::Bad => Put::Bad,
                Line::Sample { series: text, value } => self.board.put(text, value, series),
            };
            if taken == Put::Bad {
                return Err(format!("line {} of its output is no sample", number + 1));
            }
        }
        Ok(())
    }

    fn pairs(&mut self, output: &[u8]) -> Result<(), String> {
        for (number, line) in lines(output).enumerate() {
            let text = String::from_utf8_lossy(line);
            let text = text.trim();
            if text.is_empty() || text.starts_with('#') {
                continue;
            }
            let pair = text.rsplit_once(['=', ' ', '\t', ':']);
            let read = pair.and_then(|(key, value)| {
                let key = key.trim_end_matches(['=', ' ', '\t', ':']);
                (!key.is_empty()).then_some((key, value.parse::<f64>().ok()?))
            });
            let Some((key, value)) = read else {
                return Err(format!("line {} of its output is no key and value", number + 1));
            };
            self.own("strobe_exec_value", &[("label", key.to_owned())], value);
        }
        Ok(())
    }

    /// A series with the command's name.
    fn own(&mut self, name: &str, more: &[(&str, String)], value: f64) {
        let pairs = more.iter().map(|(label, value)| ((*label).to_owned(), value.clone()));
        let command = [("command".to_owned(), self.config.name.clone())];
        let labels = Labels::new(pairs.chain(command).collect());
        // '\0' is in no line of a command's own.
        let key = format!("\0{name} {more:?}");
        self.board.put(&key, value, |_| Some((name.to_owned(), labels)));
    }
}

/// `'label'=value[unit];warn;crit;min;max …`: label, value and unit of each that has a value.
fn performance(data: &str) -> Vec<(String, f64, &str)> {
    let mut out = Vec::new();
    let mut rest = data.trim();
    while !rest.is_empty() && out.len() < PERFORMANCE_MAX {
        let quoted = rest.strip_prefix('\'').and_then(|rest| rest.split_once("'="));
        let Some((label, after)) = quoted.or_else(|| rest.split_once('=')) else { return out };
        let (item, next) = after.split_once(char::is_whitespace).unwrap_or((after, ""));
        let value = item.split(';').next().unwrap_or("");
        let digits = value.find(|c: char| c.is_ascii_alphabetic() || c == '%');
        let (number, unit) =
            value.split_at_checked(digits.unwrap_or(value.len())).unwrap_or((value, ""));
        let label = label.trim();
        let fits = !label.is_empty() && label.len() <= LABEL_BYTES_MAX && unit.len() <= 16;
        if let (true, Ok(number)) = (fits, number.parse()) {
            out.push((label.to_owned(), number, unit));
        }
        rest = next.trim_start();
    }
    out
}

const PERFORMANCE_MAX: usize = 1_000;
const LABEL_BYTES_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::super::scrape::tests::told;
    use super::*;

    fn run(format: ExecFormat, ended: &Ended, output: &str) -> (Vec<String>, Option<String>) {
        let config = ExecConfig {
            name: "n".into(),
            interval_ms: 1000,
            timeout_ms: 1000,
            bytes_max: 1000,
            format,
            command: vec!["/x".into()],
        };
        let outbox = Outbox::default();
        let mut command = Command::new(config, Room::new(10), Arc::new(Table::new()));
        let at = Tick { wall_ns: 1, boottime_ns: 1 };
        command.ended(at, ended, output.as_bytes(), 2_000_000_000, &outbox);
        let mut all = told(&outbox);
        assert_eq!(all.remove("strobe_exec_duration_seconds{command=n}").unwrap(), "2");
        let up = all.remove("strobe_exec_up{command=n}").unwrap();
        assert_eq!(up, if command.why.is_some() { "0" } else { "1" });
        (all.into_iter().map(|(name, value)| format!("{name}={value}")).collect(), command.why)
    }

    #[test]
    fn each_format_and_each_end() {
        let (prometheus, nagios, pairs) =
            (ExecFormat::Prometheus, ExecFormat::Nagios, ExecFormat::Pairs);
        let plugin =
            "DISK OK - free | /=2643MB;5948;5958;0;5968 'a b'=1.5%;; x=U y=-3\nmore | z=1s";
        let value = |label: &str| format!("strobe_exec_value{{command=n,label={label}}}");
        let v = |label: &str, unit: &str, value: &str| {
            let unit = if unit.is_empty() { String::new() } else { format!(",unit={unit}") };
            format!("strobe_exec_value{{command=n,label={label}{unit}}}={value}")
        };
        for (format, ended, output, wanted, why) in [
            (
                prometheus,
                Ended::Code(0),
                "a{job=\"x\"} 1\n# EOF",
                vec!["a{job=x}=1".to_owned()],
                "",
            ),
            (prometheus, Ended::Code(3), "a 1", vec![], "ended with code 3"),
            (prometheus, Ended::Code(0), "a 1\noops", vec![], "line 2"),
            (prometheus, Ended::Otherwise("killed".into()), "a 1", vec![], "killed"),
            (
                nagios,
                Ended::Code(2),
                plugin,
                vec![
                    "strobe_exec_status{command=n}=2".to_owned(),
                    v("/", "MB", "2643"),
                    v("a b", "%", "1.5"),
                    v("y", "", "-3"),
                    v("z", "s", "1"),
                ],
                "",
            ),
            (nagios, Ended::Code(127), plugin, vec![], "code 127"),
            (
                pairs,
                Ended::Code(0),
                "a b = 1\nc: 2.5\nd\t3\n\n# x\n",
                vec![
                    format!("{}=1", value("a b")),
                    format!("{}=2.5", value("c")),
                    format!("{}=3", value("d")),
                ],
                "",
            ),
            (pairs, Ended::Code(0), "a", vec![], "line 1"),
        ] {
            let (found, said) = run(format, &ended, output);
            assert_eq!(found, wanted, "{output}");
            assert!(
                said.as_deref().unwrap_or("").contains(why) && said.is_some() != why.is_empty()
            );
        }
    }
}
