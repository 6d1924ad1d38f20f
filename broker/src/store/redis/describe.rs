//! Hosts and schemas in Redis: written with their blocks, and read back once by a broker that may
//! not know them.

use super::RedisConfig;
use super::batch::{Batch, Writes};
use super::keys::{Keys, SHARDS, jittered, shard};
use super::link::Link;
use crate::registry::Registry;
use crate::store::segment::Entry;
use crate::store::shared::Shared;
use redis::RedisResult;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use strobe_wire::ids::HostId;
use strobe_wire::limits::SECTION_COLUMNS_MAX;
use strobe_wire::message::{Hello, HostInfo};
use strobe_wire::schema::{Column, Kind, Labels, Schema};

/// Who and what is known, here and there.
#[derive(Clone, Debug)]
pub(super) struct Catalog {
    shared: Arc<Shared>,
    registry: Option<Registry>,
    keys: Keys,
    life_s: u64,
    /// The longest that any block is kept.
    keep_ms: i64,
}

/// Whose hosts are read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Hosts {
    /// A directory's that was lost: this broker lists them again.
    Ours,
    /// Other brokers': they list them themselves, here they are but found by queries.
    OfOthers,
}

/// A host as Redis has it.
struct Host {
    source: u128,
    fields: BTreeMap<String, String>,
    sections: Vec<(u64, i64)>,
}

impl Catalog {
    pub(super) fn new(
        shared: &Arc<Shared>,
        registry: Option<Registry>,
        config: &RedisConfig,
    ) -> Self {
        let store = shared.config();
        let keep_ms = config.raw_ms.max(store.minute_retention_ms).max(store.hour_retention_ms);
        Self {
            shared: Arc::clone(shared),
            registry,
            keys: Keys::new(&config.prefix),
            life_s: u64::try_from(config.metadata_ms / 1000).unwrap_or(0).max(LIFE_LEAST_S),
            keep_ms,
        }
    }

    /// The hosts and the schemas of these blocks, which stand by source; `send` carries out some.
    pub(super) fn write(
        &self,
        entries: &[Entry],
        now_ms: i64,
        send: &mut dyn FnMut(Writes) -> RedisResult<()>,
    ) -> RedisResult<()> {
        let mut written = BTreeSet::new();
        let mut pipe = Writes::default();
        for of_source in entries.chunk_by(|a, b| a.source == b.source) {
            let Some(first) = of_source.first() else { continue };
            let source = self.shared.source(first.source);
            let (labels, schemas): (_, Vec<Arc<Schema>>) = {
                let state = source.read();
                let fresh = of_source.iter().filter(|entry| written.insert(entry.schema));
                let sections = fresh.filter_map(|entry| state.sections.get(&entry.schema));
                (Arc::clone(&state.labels), sections.map(|s| Arc::clone(&s.schema)).collect())
            };
            for schema in schemas {
                self.add_schema(&mut pipe, &schema);
            }
            self.add_host(&mut pipe, of_source, &labels, now_ms);
            if PIPELINE_COMMANDS < pipe.len() {
                send(std::mem::take(&mut pipe))?;
            }
        }
        send(pipe)
    }

    /// Every schema that is known here.
    pub(super) fn write_schemas(
        &self,
        send: &mut dyn FnMut(Writes) -> RedisResult<()>,
    ) -> RedisResult<()> {
        let mut written = BTreeSet::new();
        let mut pipe = Writes::default();
        for source in self.shared.sources() {
            let schemas: Vec<Arc<Schema>> = {
                let state = source.read();
                let fresh = state.sections.iter().filter(|(id, _)| written.insert(**id));
                fresh.map(|(_, section)| Arc::clone(&section.schema)).collect()
            };
            for schema in schemas {
                self.add_schema(&mut pipe, &schema);
            }
            if PIPELINE_COMMANDS < pipe.len() {
                send(std::mem::take(&mut pipe))?;
            }
        }
        send(pipe)
    }

    pub(super) fn add_schema(&self, pipe: &mut Writes, schema: &Schema) {
        let key = self.keys.schema(schema.id().0);
        let life_s = jittered(self.life_s, &key);
        pipe.free("SET", &key).arg(schema_text(schema)).arg("EX").arg(life_s);
    }

    pub(super) fn add_labels(&self, pipe: &mut Writes, source: u128, labels: &Labels) {
        let host = self.keys.host(source);
        let known = self.registry.as_ref().and_then(|registry| registry.host(HostId(source)));
        let fields = host_fields(labels, known.as_ref());
        if !fields.is_empty() {
            let shard = shard(source);
            pipe.cmd(shard, "DEL", &host);
            pipe.cmd(shard, "HSET", &host).arg(&fields);
            pipe.cmd(shard, "EXPIRE", &host).arg(jittered(self.life_s, &host));
        }
    }

    fn add_host(&self, pipe: &mut Writes, of: &[Entry], labels: &Labels, now_ms: i64) {
        let Some(&Entry { source, .. }) = of.first() else { return };
        self.add_labels(pipe, source, labels);
        let shard = shard(source);
        let sections = self.keys.sections(source);
        for of_schema in of.chunk_by(|a, b| a.schema == b.schema) {
            let last_ms = of_schema.iter().map(|entry| entry.last_ms).max();
            let id = of_schema.first().map(|entry| format!("{:016x}", entry.schema));
            pipe.cmd(shard, "ZADD", &sections).arg("GT").arg(last_ms).arg(id);
        }
        let hosts = self.keys.hosts(shard);
        let last_ms = of.iter().map(|entry| entry.last_ms).max();
        let host = HostId(source).to_string();
        pipe.cmd(shard, "ZADD", &hosts).arg("GT").arg(last_ms).arg(host);
        let gone = format!("({}", now_ms.saturating_sub(self.keep_ms + self.keep_ms / 20));
        for key in [&sections, &hosts] {
            pipe.cmd(shard, "ZREMRANGEBYSCORE", key).arg("-inf").arg(&gone);
        }
        for key in [&sections, &hosts] {
            pipe.cmd(shard, "EXPIRE", key).arg(jittered(self.life_s, key));
        }
    }

    /// Makes everything known that Redis has; returns the number of its hosts.
    pub(super) fn read(&self, link: &mut Link, whose: Hosts) -> RedisResult<usize> {
        let mut pipe = Batch::default();
        for shard in 0..SHARDS {
            pipe.cmd("ZRANGE", &self.keys.hosts(shard)).arg(0).arg(HOSTS_MAX - 1).arg("REV");
        }
        let mut sources: Vec<u128> = Vec::new();
        for answer in link.query(&pipe)? {
            let names: Vec<String> = ::redis::from_redis_value(answer)?;
            sources.extend(names.iter().filter_map(|n| n.parse::<HostId>().ok()).map(|id| id.0));
        }
        let mut schemas = HashMap::new();
        for chunk in sources.chunks(HOSTS_A_TIME) {
            let hosts = self.read_hosts(link, chunk)?;
            self.read_schemas(link, &hosts, &mut schemas)?;
            for host in &hosts {
                self.learn(host, &schemas, whose);
            }
        }
        Ok(sources.len())
    }

    /// A source's labels, as far as they are there.
    pub(super) fn labels(&self, link: &mut Link, source: u128) -> RedisResult<Labels> {
        let mut pipe = Batch::default();
        pipe.cmd("HGETALL", &self.keys.host(source));
        let answer = link.query(&pipe)?.into_iter().next().unwrap_or(::redis::Value::Nil);
        Ok(labels_of(&::redis::from_redis_value(answer)?))
    }

    pub(super) fn schema(&self, link: &mut Link, id: u64) -> RedisResult<Option<Schema>> {
        let mut pipe = Batch::default();
        pipe.cmd("GET", &self.keys.schema(id));
        let answer = link.query(&pipe)?.into_iter().next().unwrap_or(::redis::Value::Nil);
        let text: Option<Vec<u8>> = ::redis::from_redis_value(answer)?;
        Ok(text.and_then(|text| schema_of(&text)).filter(|schema| schema.id().0 == id))
    }

    fn read_hosts(&self, link: &mut Link, sources: &[u128]) -> RedisResult<Vec<Host>> {
        let mut pipe = Batch::default();
        for &source in sources {
            pipe.cmd("HGETALL", &self.keys.host(source));
            let sections = pipe.cmd("ZRANGE", &self.keys.sections(source));
            sections.arg(0).arg(SECTIONS_MAX - 1).arg("REV").arg("WITHSCORES");
        }
        let mut answers = link.query(&pipe)?.into_iter();
        let mut hosts = Vec::with_capacity(sources.len());
        for &source in sources {
            let (Some(fields), Some(sections)) = (answers.next(), answers.next()) else { break };
            let sections: Vec<(String, i64)> = ::redis::from_redis_value(sections)?;
            let id = |text: &str| u64::from_str_radix(text, 16).ok();
            let sections = sections.iter().filter_map(|(text, last)| Some((id(text)?, *last)));
            let fields = ::redis::from_redis_value(fields)?;
            hosts.push(Host { source, fields, sections: sections.collect() });
        }
        Ok(hosts)
    }

    /// Reads the schemas that these hosts have and that are not known yet.
    fn read_schemas(
        &self,
        link: &mut Link,
        hosts: &[Host],
        schemas: &mut HashMap<u64, Arc<Schema>>,
    ) -> RedisResult<()> {
        let ids = hosts.iter().flat_map(|host| host.sections.iter().map(|section| section.0));
        let wanted: BTreeSet<u64> = ids.filter(|id| !schemas.contains_key(id)).collect();
        let wanted: Vec<u64> = wanted.into_iter().collect();
        for chunk in wanted.chunks(SCHEMAS_A_TIME) {
            let mut pipe = Batch::default();
            for id in chunk {
                pipe.cmd("GET", &self.keys.schema(*id));
            }
            for (id, answer) in chunk.iter().zip(link.query(&pipe)?) {
                let text: Option<Vec<u8>> = ::redis::from_redis_value(answer)?;
                // What is gone or is not what its name says cannot be read: its blocks stay unread.
                let schema = text.and_then(|text| schema_of(&text));
                if let Some(schema) = schema.filter(|schema| schema.id().0 == *id) {
                    schemas.insert(*id, Arc::new(schema));
                }
            }
        }
        Ok(())
    }

    fn learn(&self, host: &Host, schemas: &HashMap<u64, Arc<Schema>>, whose: Hosts) {
        let source = self.shared.source(host.source);
        if source.read().labels.0.is_empty() {
            self.shared.label(&source, labels_of(&host.fields));
        }
        for (id, _) in &host.sections {
            if let Some(schema) = schemas.get(id) {
                self.shared.welcome(&source, *id, schema);
            }
        }
        let mut state = source.write();
        for (id, last_ms) in &host.sections {
            let Some(schema) = schemas.get(id) else { continue };
            // Where it began is not written; nothing is kept longer than this.
            let first_ms = last_ms.saturating_sub(self.keep_ms);
            state.section(*id, schema).widen(first_ms, *last_ms);
        }
        drop(state);
        if let (Some(registry), Some(info)) = (&self.registry, info_of(host))
            && whose == Hosts::Ours
        {
            registry.restore(info);
        }
    }
}

fn host_fields(labels: &Labels, known: Option<&HostInfo>) -> Vec<(String, String)> {
    let own = |name: &str| name == "job" || name == "instance";
    let mut fields: Vec<(String, String)> = labels
        .0
        .iter()
        .map(|(name, value)| {
            let name = if own(name) { name.clone() } else { format!("{LABEL}{name}") };
            (name, value.clone())
        })
        .collect();
    if let Some(HostInfo { hello, first_seen_ms, last_seen_ms, .. }) = known {
        let told = [
            ("version", hello.version.clone()),
            ("kernel", hello.kernel.clone()),
            ("interval_ms", hello.interval_ms.to_string()),
            ("first_seen_ms", first_seen_ms.to_string()),
            ("last_seen_ms", last_seen_ms.to_string()),
        ];
        fields.extend(told.map(|(name, value)| (name.to_owned(), value)));
    }
    fields
}

fn labels_of(fields: &BTreeMap<String, String>) -> Labels {
    let pairs = fields.iter().filter_map(|(name, value)| {
        let own = name == "job" || name == "instance";
        let name = if own { name.as_str() } else { name.strip_prefix(LABEL)? };
        Some((name.to_owned(), value.clone()))
    });
    Labels::new(pairs.collect())
}

/// `None`: no agent's host, or one that has not said hello to whoever wrote this.
fn info_of(host: &Host) -> Option<HostInfo> {
    let text = |name: &str| host.fields.get(name).cloned();
    let number = |name: &str| host.fields.get(name).and_then(|text| text.parse::<i64>().ok());
    let labels = labels_of(&host.fields).0.into_iter();
    let hello = Hello {
        host: host.source,
        boot: 0,
        instance: text("instance")?,
        job: text("job")?,
        version: text("version")?,
        kernel: text("kernel")?,
        labels: labels.filter(|(name, _)| name != "job" && name != "instance").collect(),
        interval_ms: u64::try_from(number("interval_ms")?).ok()?,
    };
    let (first_seen_ms, last_seen_ms) = (number("first_seen_ms")?, number("last_seen_ms")?);
    Some(HostInfo { hello, first_seen_ms, last_seen_ms, connected: false })
}

fn schema_text(schema: &Schema) -> String {
    let columns = schema.columns.iter().map(|column| {
        let labels: serde_json::Map<_, _> =
            column.labels.0.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
        let (kind, scale) = match column.kind {
            Kind::Counter { scale } => ("counter", scale),
            Kind::Gauge { scale } => ("gauge", scale),
            Kind::Float => ("float", 0),
        };
        json!({ "name": column.name, "labels": labels, "kind": kind, "scale": scale })
    });
    json!({ "section": schema.section, "columns": columns.collect::<Vec<_>>() }).to_string()
}

fn schema_of(text: &[u8]) -> Option<Schema> {
    let value: Value = serde_json::from_slice(text).ok()?;
    let column = |value: &Value| {
        let scale = u8::try_from(value.get("scale")?.as_u64()?).ok()?;
        let kind = match value.get("kind")?.as_str()? {
            "counter" => Kind::Counter { scale },
            "gauge" => Kind::Gauge { scale },
            "float" => Kind::Float,
            _ => return None,
        };
        let labels = value.get("labels")?.as_object()?.iter();
        let labels = labels.map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())));
        let labels = Labels::new(labels.collect::<Option<Vec<_>>>()?);
        Some(Column { name: value.get("name")?.as_str()?.to_owned(), labels, kind })
    };
    let columns = value.get("columns")?.as_array()?;
    if SECTION_COLUMNS_MAX < columns.len() {
        return None;
    }
    let columns = columns.iter().map(column).collect::<Option<Vec<_>>>()?;
    Some(Schema { section: value.get("section")?.as_str()?.to_owned(), columns })
}

/// Before the name of an operator's label, which may be called anything.
const LABEL: &str = "label:";
/// The shortest life of a key, whatever the settings say.
pub(super) const LIFE_LEAST_S: u64 = 60;
const PIPELINE_COMMANDS: usize = 1000;
/// Hosts of a shard that are read back; the newest.
const HOSTS_MAX: usize = 4096;
/// Schemas of a host that are read back; the newest.
const SECTIONS_MAX: usize = 4096;
const HOSTS_A_TIME: usize = 64;
const SCHEMAS_A_TIME: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schema_is_read_as_it_was_written() {
        let column = |name: &str, kind| Column {
            name: name.to_owned(),
            labels: Labels::of(&[("device", "sd\"a"), ("x", "é")]),
            kind,
        };
        let columns = vec![
            column("a", Kind::Counter { scale: 2 }),
            column("b", Kind::Gauge { scale: 9 }),
            column("c", Kind::Float),
        ];
        let schema = Schema { section: "disk".to_owned(), columns };
        assert_eq!(schema_of(schema_text(&schema).as_bytes()), Some(schema));
        for wrong in ["", "{}", r#"{"section":"a","columns":[{"name":"x"}]}"#] {
            assert_eq!(schema_of(wrong.as_bytes()), None, "{wrong}");
        }
    }

    #[test]
    fn a_host_is_read_as_it_was_written() {
        let hello = Hello {
            host: 7,
            instance: "a".into(),
            job: "node".into(),
            version: "1".into(),
            kernel: "6".into(),
            labels: vec![("version".into(), "mine".into())],
            interval_ms: 1000,
            ..Hello::default()
        };
        let info = HostInfo { hello, first_seen_ms: 5, last_seen_ms: 9, connected: false };
        let labels = Labels::of(&[("job", "node"), ("instance", "a"), ("version", "mine")]);
        let fields: BTreeMap<_, _> = host_fields(&labels, Some(&info)).into_iter().collect();
        assert_eq!(labels_of(&fields), labels);
        assert_eq!(info_of(&Host { source: 7, fields, sections: Vec::new() }), Some(info));
    }
}
