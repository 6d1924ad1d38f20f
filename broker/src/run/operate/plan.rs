//! What a configuration would do, tried on what is known and on the last hour of data, before anybody runs
//! it.

use super::super::Broker;
use super::super::clock::wall_ms;
use super::config::Draft;
use crate::fleet::{Changes, Concerned, changes, diff};
use crate::query::Caller;
use crate::tune::{retune, tried};
use serde_json::Value;
use std::collections::BTreeSet;
use strobe_wire::message::ApiRequest;
use strobe_wire::settings::duration_ms;

impl Broker {
    /// In words.
    pub(super) fn plan(&self, draft: &Draft) -> String {
        let mut out = diff(&draft.versions.in_force.text, &draft.text);
        let fleet = self.fleet();
        for section in &draft.after.sections {
            let whom = fleet.iter().filter(|(info, _)| section.scope.is_of(&info.hello)).count();
            if !matches!(section.scope, strobe_wire::fleet::Scope::Brokers) {
                out += &format!("{}: {whom} of {} hosts match\n", section.scope, fleet.len());
            }
        }
        out += &self.plan_of_hosts(&draft.concerned);
        let (before, after) = (draft.before.of_brokers(), draft.after.of_brokers());
        if before != after {
            out += &format!("brokers: {}\n", told(&changes(&before, &after)));
            let hot = |values| tried(&self.shared.config, 0, values).map(|(hot, _)| hot);
            if let Ok(hot) = hot(&after) {
                let gone = self.shared.store.would_remove(wall_ms(), |config| retune(config, &hot));
                out += &format!(
                    "  {} files, {:.1} MiB, of this broker's store would be removed by age or size\n",
                    gone.segments,
                    mebibytes(gone.bytes)
                );
            }
        }
        if out.is_empty() {
            return "It changes nothing for anybody.".to_owned();
        }
        out.trim_end().to_owned()
    }

    fn plan_of_hosts(&self, concerned: &[Concerned]) -> String {
        if concerned.is_empty() {
            return "no host that is known runs anything else by it\n".to_owned();
        }
        let mut out = format!("{} hosts would change:\n", concerned.len());
        for of in concerned.iter().take(TOLD_MAX) {
            out += &format!("  {}: {}\n", of.hello.instance, told(&of.changes));
        }
        if TOLD_MAX < concerned.len() {
            out += &format!("  … and {} more\n", concerned.len() - TOLD_MAX);
        }
        let asked: Vec<&Concerned> = concerned.iter().take(MEASURED_MAX).collect();
        let (mut before, mut after) = (0.0, 0.0);
        let mut collectors = BTreeSet::new();
        for of in &asked {
            let instance = &of.hello.instance;
            let series = self.number(&format!("count({{instance={instance:?}}})"));
            let now_ms = of.hello.interval_ms.max(1);
            let next = of.changes.iter().find(|(key, ..)| key == "agent.interval");
            let next_ms = match next {
                None => now_ms,
                Some((_, _, Some(text))) => duration_ms(text).unwrap_or(now_ms),
                Some((_, _, None)) => 1_000,
            };
            before += series.unwrap_or(0.0) / milliseconds(now_ms);
            after += series.unwrap_or(0.0) / milliseconds(next_ms);
            for (key, old, new) in &of.changes {
                if key.starts_with("agent.collectors.") {
                    let lists = [old, new].into_iter().flatten();
                    collectors.extend(lists.flat_map(|l| l.split(',').map(str::to_owned)));
                }
            }
        }
        if before.to_bits() != after.to_bits() {
            out += &format!(
                "  samples a second of {} of them, by the series they have now: {before:.0} -> \
                 {after:.0}\n",
                asked.len()
            );
        }
        let names: Vec<String> = asked.iter().map(|of| regex::escape(&of.hello.instance)).collect();
        for name in collectors.iter().take(TOLD_MAX) {
            let query = format!(
                "avg(avg_over_time(node_scrape_collector_duration_seconds{{collector={name:?},\
                 instance=~{:?}}}[1h]))",
                names.join("|")
            );
            out += &match self.number(&query) {
                Some(cost) => format!(
                    "  collector {name}: {:.0} µs a reading in the last hour, on average\n",
                    cost * 1e6
                ),
                None => format!("  collector {name}: not read on them in the last hour\n"),
            };
        }
        out
    }

    /// What a query answers, if that is a number.
    fn number(&self, query: &str) -> Option<f64> {
        let encode = |byte: u8| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        };
        let query: String = query.bytes().map(encode).collect();
        let (method, path) = ("GET".to_owned(), "/api/v1/query".to_owned());
        let query = format!("query={query}");
        let request = ApiRequest { method, path, query, ..ApiRequest::default() };
        let answer = self.respond(&request, &Caller::default());
        let json: Value = serde_json::from_slice(&answer.body).ok()?;
        json.pointer("/data/result/0/value/1")?.as_str()?.parse().ok()
    }
}

fn told(changes: &Changes) -> String {
    let one = |(key, old, new): &(String, Option<String>, Option<String>)| {
        let or = |text: &Option<String>| text.clone().unwrap_or_else(|| "its own".to_owned());
        format!("{key} {} -> {}", or(old), or(new))
    };
    changes.iter().map(one).collect::<Vec<_>>().join(", ")
}

#[expect(clippy::cast_precision_loss, reason = "a number for people")]
fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[expect(clippy::cast_precision_loss, reason = "an interval has few digits")]
fn milliseconds(ms: u64) -> f64 {
    ms as f64 / 1_000.0
}

const TOLD_MAX: usize = 20;
/// Hosts whose series are counted.
const MEASURED_MAX: usize = 10;
