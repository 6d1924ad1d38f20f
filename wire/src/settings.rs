//! Where a setting comes from: the file, then the environment, then the command line; one table
//! of keys says all three names, the default and what the key is for.
//!
//! This module turns text into text: it knows which keys exist, who set each and refuses what it
//! does not know. Each part's `config.rs` parses the texts into typed values, once.

use crate::schema::{Labels, is_label_name};
use std::collections::BTreeMap;

/// One key of the configuration.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Name in the file, with its table: `agent.interval`. `agent.intervals.*` is a table of names
    /// that the program knows: its text is `name=value,…`.
    pub name: &'static str,
    /// Flag without the dashes: `interval`. A flag whose default is `false` takes no value. Nor
    /// does `collector.*` of a plain key: what stands for the star is added to the key's list.
    pub flag: &'static str,
    /// Environment variable: `STROBE_INTERVAL`.
    pub env: &'static str,
    /// Default, as it would be written.
    pub default: &'static str,
    /// A sentence: what it does, in which unit, within which bounds.
    pub help: &'static str,
}

/// Who set a value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Source {
    /// Nobody.
    Default,
    /// The file with this path.
    File(String),
    /// This environment variable.
    Env(&'static str),
    /// This flag.
    Flag(&'static str),
    /// This version of the fleet's configuration.
    Fleet(u64),
}

/// Every key with its text and who set it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    values: BTreeMap<&'static str, (String, Source)>,
}

/// What is wrong with the configuration, where, and what to do.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SettingsError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}: {why}")]
    File {
        /// The file.
        path: String,
        /// The system's words.
        why: String,
    },
    /// The file is not TOML.
    #[error("{path}: not TOML: {why}")]
    Toml {
        /// The file.
        path: String,
        /// The parser's words, with line and column.
        why: String,
    },
    /// A key nobody knows.
    #[error("{place}: unknown key `{key}`{}", hint(.nearest))]
    Unknown {
        /// File or command line.
        place: String,
        /// The key.
        key: String,
        /// The nearest known one.
        nearest: Option<String>,
    },
    /// A flag without its value.
    #[error("--{0} needs a value")]
    NoValue(String),
    /// A value of the wrong form.
    #[error("{place}: `{key}` is {value:?}: {why}")]
    Value {
        /// Who set it.
        place: String,
        /// The key.
        key: &'static str,
        /// What was set.
        value: String,
        /// What is wanted.
        why: String,
    },
}

impl Settings {
    /// Defaults, then `file` (path and text), then `env` (a look-up), then `args` (without the
    /// program's name).
    ///
    /// # Errors
    /// The first key that is unknown or has no value.
    pub fn load(
        keys: &[Key],
        file: Option<(&str, &str)>,
        env: &dyn Fn(&str) -> Option<String>,
        args: &[String],
    ) -> Result<Self, SettingsError> {
        let mut values: BTreeMap<_, _> =
            keys.iter().map(|k| (k.name, (k.default.to_owned(), Source::Default))).collect();
        if let Some((path, text)) = file {
            for (name, value) in read_file(path, text)? {
                let key = known(keys, path, &name, |k| k.name)?;
                let value = joined(&values, key, rest_of(key.name, &name), value);
                values.insert(key.name, (value, Source::File(path.to_owned())));
            }
        }
        for key in keys {
            if let Some(value) = env(key.env) {
                values.insert(key.name, (value, Source::Env(key.env)));
            }
        }
        let mut rest = args.iter();
        while let Some(arg) = rest.next() {
            let (name, inline) = match arg.strip_prefix("--").map(|a| a.split_once('=')) {
                Some(Some((name, value))) => (name, Some(value.to_owned())),
                Some(None) => (arg.trim_start_matches('-'), None),
                None => (arg.as_str(), None),
            };
            let key = known(keys, "command line", name, |k| k.flag)?;
            let rest_of_flag = rest_of(key.flag, name);
            let listed = rest_of_flag.is_some() && !key.name.ends_with(".*");
            let value = match inline {
                _ if listed => rest_of_flag.unwrap_or_default().to_owned(),
                Some(value) => value,
                None if key.default == "false" => "true".to_owned(),
                None => {
                    rest.next().cloned().ok_or_else(|| SettingsError::NoValue(name.to_owned()))?
                }
            };
            let value = joined(&values, key, rest_of_flag, value);
            values.insert(key.name, (value, Source::Flag(key.flag)));
        }
        Ok(Self { values })
    }

    /// The text of `name`, which must be in the table.
    #[must_use]
    pub fn text(&self, name: &str) -> &str {
        &self.values.get(name).expect("config.rs asks only for keys of its table").0
    }

    /// Who set `name`.
    #[must_use]
    pub fn source(&self, name: &str) -> &Source {
        &self.values.get(name).expect("config.rs asks only for keys of its table").1
    }

    /// With what a version of the fleet's configuration says of keys that this program has; those in
    /// `locked` (`*` is all) stay as they are, and come back.
    #[must_use]
    pub fn with_fleet(
        &self,
        version: u64,
        values: &[(String, String)],
        locked: &[String],
    ) -> (Self, Vec<String>) {
        let (mut with, mut stayed) = (self.clone(), Vec::new());
        for (name, text) in values {
            let Some((key, value)) = with.values.iter_mut().find(|(key, _)| *key == name) else {
                stayed.push(name.clone());
                continue;
            };
            let is_locked = |lock: &String| {
                lock == "*" || lock == key || key.strip_suffix(".*") == Some(lock.as_str())
            };
            if locked.iter().any(is_locked) {
                stayed.push(name.clone());
            } else {
                *value = (text.clone(), Source::Fleet(version));
            }
        }
        (with, stayed)
    }

    /// Parses the text of `name`.
    ///
    /// # Errors
    /// [`SettingsError::Value`] with who set it and `parse`'s reason.
    pub fn parse<T>(
        &self,
        name: &'static str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<T, SettingsError> {
        let text = self.text(name);
        parse(text).map_err(|why| SettingsError::Value {
            place: match self.source(name) {
                Source::Default => "default".to_owned(),
                Source::File(path) => path.clone(),
                Source::Env(variable) => (*variable).to_owned(),
                Source::Flag(flag) => format!("--{flag}"),
                Source::Fleet(version) => format!("version {version} of the fleet"),
            },
            key: name,
            value: text.to_owned(),
            why,
        })
    }
}

/// `500ms`, `1s`, `5m`, `2h`, `7d` in milliseconds.
///
/// # Errors
/// A sentence that says the form.
pub fn duration_ms(text: &str) -> Result<u64, String> {
    let wanted = || "a number and one of ms, s, m, h, d is wanted, as in 500ms or 7d".to_owned();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits).ok_or_else(wanted)?;
    let factor = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(wanted()),
    };
    number.parse::<u64>().ok().and_then(|n| n.checked_mul(factor)).ok_or_else(wanted)
}

/// `512`, `64KiB`, `10MiB`, `2GiB` in bytes.
///
/// # Errors
/// A sentence that says the form.
pub fn size_bytes(text: &str) -> Result<u64, String> {
    let wanted = || "a number and nothing, KiB, MiB or GiB is wanted, as in 64MiB".to_owned();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits).ok_or_else(wanted)?;
    let shift = match unit {
        "" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        _ => return Err(wanted()),
    };
    number.parse::<u64>().ok().and_then(|n| n.checked_mul(1 << shift)).ok_or_else(wanted)
}

/// The names and texts of a key that ends in `.*`: `name=text,…`, a comma of a text's own behind a
/// backslash.
///
/// # Errors
/// A sentence that says the form.
pub fn pairs(text: &str) -> Result<Vec<(String, String)>, String> {
    let (mut all, mut one, mut characters) = (Vec::new(), String::new(), text.chars());
    let mut end = |one: &mut String| {
        let pair = std::mem::take(one);
        if pair.trim().is_empty() {
            return Ok(());
        }
        let (name, text) = pair.split_once('=').ok_or("name=value is wanted")?;
        all.push((name.trim().to_owned(), text.trim().to_owned()));
        Ok::<(), String>(())
    };
    while let Some(character) = characters.next() {
        match character {
            ',' => end(&mut one)?,
            '\\' => one.extend(characters.next()),
            other => one.push(other),
        }
    }
    end(&mut one)?;
    Ok(all)
}

/// `true` or `false`.
///
/// # Errors
/// A sentence that says the form.
pub fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "true" | "1" => Ok(true),
        "false" | "0" | "" => Ok(false),
        _ => Err("true or false is wanted".to_owned()),
    }
}

/// `site=berlin,rack=7`: labels for every series of a host.
///
/// # Errors
/// The pair that is wrong, and what is wanted.
pub fn labels(text: &str) -> Result<Labels, String> {
    let mut pairs = Vec::new();
    for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
        let (name, value) =
            pair.split_once('=').ok_or_else(|| format!("{pair:?} is not name=value"))?;
        let reserved = matches!(name, "job" | "instance") || name.starts_with("__");
        if !is_label_name(name) || reserved || value.is_empty() || 1024 < value.len() {
            return Err(format!(
                "{pair:?}: a name of [a-zA-Z_][a-zA-Z0-9_]* (not job, instance or __…) and a value \
                 of 1 to 1024 bytes are wanted"
            ));
        }
        if pairs.iter().any(|(known, _)| known == name) {
            return Err(format!("{name:?} stands twice"));
        }
        pairs.push((name.to_owned(), value.to_owned()));
    }
    if 32 < pairs.len() {
        return Err(format!("{} labels; at most 32 are allowed", pairs.len()));
    }
    Ok(Labels::new(pairs))
}

/// The one of `known` that was probably meant by `name`, if any is near.
pub fn nearest<'k>(known: impl Iterator<Item = &'k str>, name: &str) -> Option<&'k str> {
    let (distance, nearest) = known.map(|known| (strsim::levenshtein(known, name), known)).min()?;
    (distance <= 1 + name.len() / 3).then_some(nearest)
}

fn read_file(path: &str, text: &str) -> Result<Vec<(String, String)>, SettingsError> {
    let table: toml::Table = text.parse().map_err(|e: toml::de::Error| SettingsError::Toml {
        path: path.to_owned(),
        why: e.to_string(),
    })?;
    let mut out = Vec::new();
    flatten("", &table, &mut out);
    Ok(out)
}

fn flatten(before: &str, table: &toml::Table, out: &mut Vec<(String, String)>) {
    for (key, value) in table {
        let name = if before.is_empty() { key.clone() } else { format!("{before}.{key}") };
        match value {
            toml::Value::Table(inner) => flatten(&name, inner, out),
            toml::Value::Array(items) => {
                out.push((name, items.iter().map(plain).collect::<Vec<_>>().join(",")));
            }
            other => out.push((name, plain(other))),
        }
    }
}

fn plain(value: &toml::Value) -> String {
    match value {
        toml::Value::String(text) => text.clone(),
        toml::Value::Integer(number) => number.to_string(),
        toml::Value::Float(number) => number.to_string(),
        toml::Value::Boolean(truth) => truth.to_string(),
        toml::Value::Datetime(time) => time.to_string(),
        toml::Value::Array(_) | toml::Value::Table(_) => String::new(),
    }
}

/// What stands for the star of `pattern` in `name`.
fn rest_of<'n>(pattern: &str, name: &'n str) -> Option<&'n str> {
    let rest = name.strip_prefix(pattern.strip_suffix('*')?)?;
    (!rest.is_empty()).then_some(rest)
}

/// `value`, behind what the key's list has already if it is one of a list.
fn joined(
    values: &BTreeMap<&'static str, (String, Source)>,
    key: &Key,
    rest: Option<&str>,
    value: String,
) -> String {
    let Some(rest) = rest else { return value };
    let value = if key.name.ends_with(".*") {
        format!("{rest}={}", value.replace('\\', "\\\\").replace(',', "\\,"))
    } else {
        value
    };
    match values.get(key.name) {
        Some((before, _)) if !before.is_empty() => format!("{before},{value}"),
        _ => value,
    }
}

fn known<'a>(
    keys: &'a [Key],
    place: &str,
    name: &str,
    field: impl Fn(&Key) -> &'static str,
) -> Result<&'a Key, SettingsError> {
    let is = |key: &&Key| field(key) == name || rest_of(field(key), name).is_some();
    keys.iter().find(is).ok_or_else(|| SettingsError::Unknown {
        place: place.to_owned(),
        key: name.to_owned(),
        nearest: nearest(keys.iter().map(&field), name).map(str::to_owned),
    })
}

fn hint(nearest: &Option<String>) -> String {
    nearest.as_ref().map_or_else(String::new, |n| format!("; did you mean `{n}`?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: &[Key] = &[
        Key { name: "agent.interval", flag: "interval", env: "S_I", default: "1s", help: "" },
        Key { name: "agent.quiet", flag: "quiet", env: "S_Q", default: "false", help: "" },
    ];

    #[test]
    fn a_star_stands_for_names_that_gather() {
        let keys = [
            Key { name: "a.on", flag: "with.*", env: "S_ON", default: "", help: "" },
            Key { name: "a.every.*", flag: "every.*", env: "S_EVERY", default: "", help: "" },
        ];
        let file = Some(("f.toml", "[a]\non = [\"x\"]\n[a.every]\nx = \"1s\"\ny = \"2s\""));
        let args = ["--with.z", "--every.x", "3s", "--every.z=4s"].map(str::to_owned);
        let all = Settings::load(&keys, file, &|_| None, &args).unwrap();
        assert_eq!(all.text("a.on"), "x,z");
        assert_eq!(all.text("a.every.*"), "x=1s,y=2s,x=3s,z=4s");
        assert!(Settings::load(&keys, None, &|_| None, &["--with.".to_owned()]).is_err());
    }

    fn load(file: &str, env: Option<&str>, args: &[&str]) -> Result<Settings, SettingsError> {
        let args: Vec<String> = args.iter().map(|a| (*a).to_owned()).collect();
        let env = |name: &str| env.filter(|_| name == "S_I").map(str::to_owned);
        Settings::load(KEYS, Some(("f.toml", file)), &env, &args)
    }

    #[test]
    fn later_sources_win() {
        let file = "[agent]\ninterval = \"2s\"";
        assert_eq!(load("", None, &[]).unwrap().text("agent.interval"), "1s");
        assert_eq!(load(file, None, &[]).unwrap().text("agent.interval"), "2s");
        assert_eq!(load(file, Some("3s"), &[]).unwrap().text("agent.interval"), "3s");
        let all = load(file, Some("3s"), &["--interval", "4s", "--quiet"]).unwrap();
        assert_eq!((all.text("agent.interval"), all.text("agent.quiet")), ("4s", "true"));
        assert_eq!(*all.source("agent.interval"), Source::Flag("interval"));
    }

    #[test]
    fn wrong_keys_get_the_nearest_right_one() {
        let error = load("[agent]\nintervall = 1", None, &[]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "f.toml: unknown key `agent.intervall`; did you mean `agent.interval`?"
        );
        let error = load("", None, &["--quite"]).unwrap_err();
        assert_eq!(error.to_string(), "command line: unknown key `quite`; did you mean `quiet`?");
    }

    #[test]
    fn texts_of_a_table_keep_their_commas() {
        let keys = [Key { name: "a.run.*", flag: "run.*", env: "S_RUN", default: "", help: "" }];
        let args = ["--run.x", "ls -w a,b\\", "--run.y=c=d"].map(str::to_owned);
        let settings = Settings::load(&keys, None, &|_| None, &args).unwrap();
        let found = settings.parse("a.run.*", pairs).unwrap();
        let wanted = [("x", "ls -w a,b\\"), ("y", "c=d")];
        assert_eq!(found, wanted.map(|(name, text)| (name.to_owned(), text.to_owned())));
        assert_eq!(
            pairs("a = 1 ,, b=2"),
            Ok(vec![("a".into(), "1".into()), ("b".into(), "2".into())])
        );
        assert!(pairs("a").is_err());
    }

    #[test]
    fn units() {
        assert_eq!(duration_ms("7d"), Ok(604_800_000));
        assert!(duration_ms("7").is_err() && duration_ms("99999999999999999999s").is_err());
        assert_eq!(size_bytes("64MiB"), Ok(64 << 20));
        assert!(size_bytes("64MB").is_err());
    }
}
