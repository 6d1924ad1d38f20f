//! One table of all parts' keys: one file and one environment configure everything.

use std::path::{Path, PathBuf};
use strobe_agent::config as agent;
use strobe_broker::config as broker;
use strobe_viz::config as viz;
use strobe_wire::fleet::{Document, Scope, Section};
use strobe_wire::message::Hello;
use strobe_wire::settings::{Key, Settings, Source, nearest};

/// The settings of all parts.
#[derive(Debug)]
pub(crate) struct Loaded {
    settings: Settings,
}

impl Loaded {
    /// From the file, the environment, and `args` (`--broker.listen=…`; flags are the keys' names,
    /// because two parts may have a flag of one name).
    pub(crate) fn of(file: Option<&Path>, args: &[String]) -> Result<Self, String> {
        let text = file
            .map(|path| {
                std::fs::read_to_string(path)
                    .map_err(|why| format!("cannot read {}: {why}", path.display()))
            })
            .transpose()?;
        let path = file.map(|path| path.display().to_string());
        let file = path.as_deref().zip(text.as_deref());
        let settings = Settings::load(&keys(), file, &|name| std::env::var(name).ok(), args)
            .map_err(|why| why.to_string())?;
        Ok(Self { settings })
    }

    /// The broker's part.
    pub(crate) fn broker(&self) -> Result<broker::Config, String> {
        let root = nix::unistd::geteuid().is_root();
        broker::Config::of(&self.settings, home().as_deref(), root).map_err(|why| why.to_string())
    }

    /// The agent's part.
    pub(crate) fn agent(&self) -> Result<agent::Config, String> {
        let env = |name: &str| std::env::var(name).ok();
        agent::Config::new(&self.settings, &env).map_err(|why| why.to_string())
    }

    /// The dashboard's part; its state lies in `dir`.
    pub(crate) fn viz(&self, dir: PathBuf) -> Result<viz::Config, String> {
        viz::Config::from_settings(&self.settings, dir).map_err(|why| why.to_string())
    }

    /// Every value of every part.
    pub(crate) fn check(&self) -> Result<(), String> {
        let dir = self.broker()?.dir;
        self.agent()?;
        self.viz(dir)?;
        Ok(())
    }
}

/// Whether every agent could run what a configuration of the fleet says of it: what only an agent knows,
/// as the names of collectors.
pub(crate) fn check_fleet(document: &Document) -> Result<(), String> {
    let settings = Settings::load(agent::KEYS, None, &|_| None, &[]).map_err(|w| w.to_string())?;
    let home = |_: &str| Some("/".to_owned());
    for section in document.sections.iter().filter(|section| section.scope != Scope::Brokers) {
        let alone = Document { sections: vec![Section { scope: Scope::Hosts, ..section.clone() }] };
        let values = alone.of_host(&Hello::default());
        let (settings, _) = settings.with_fleet(0, &values, &[]);
        agent::Config::new(&settings, &home).map_err(|why| format!("{}: {why}", section.scope))?;
    }
    Ok(())
}

/// What a key is for, its three names and its value; all keys if none is named.
pub(crate) fn explain(name: Option<&str>, file: Option<&Path>) -> Result<String, String> {
    let settings = Loaded::of(file, &[])?.settings;
    let about = |key: &Key| {
        let set = match settings.source(key.name) {
            Source::Default => "the default".to_owned(),
            Source::File(path) => format!("set in {path}"),
            Source::Env(variable) => format!("set by {variable}"),
            Source::Flag(flag) => format!("set by --{flag}"),
            Source::Fleet(version) => format!("set by version {version} of the fleet"),
        };
        format!(
            "{}\n  {}\n  flag --{}, variable {}, default {:?}\n  now {:?}, {set}",
            key.name,
            key.help,
            flag_of(key.name),
            key.env,
            key.default,
            settings.text(key.name),
        )
    };
    let keys = keys();
    let Some(name) = name else {
        return Ok(keys.iter().map(about).collect::<Vec<_>>().join("\n\n"));
    };
    keys.iter().find(|key| key.name == name).map(about).ok_or_else(|| {
        let tail = name.rsplit('.').next().unwrap_or(name);
        let same = keys.iter().map(|key| key.name).filter(|key| key.ends_with(&format!(".{tail}")));
        let near: Vec<_> = same.take(3).collect();
        let near = if near.is_empty() {
            nearest(keys.iter().map(|key| key.name), name).into_iter().collect()
        } else {
            near
        };
        let hint =
            if near.is_empty() { String::new() } else { format!("; see {}", near.join(", ")) };
        format!("there is no key {name:?}{hint}")
    })
}

/// The state directory that is meant without reading a configuration.
pub(crate) fn state_dir(named: Option<&Path>) -> Result<PathBuf, String> {
    if let Some(dir) = named {
        return Ok(dir.to_owned());
    }
    broker::state_dir("auto", home().as_deref(), nix::unistd::geteuid().is_root())
}

fn home() -> Option<PathBuf> {
    std::env::var_os("HOME").map(PathBuf::from)
}

/// All keys; their flags are their names here.
fn keys() -> Vec<Key> {
    all().map(|key| Key { flag: key.name, ..*key }).collect()
}

/// The flag of the part's own program.
fn flag_of(name: &str) -> &'static str {
    all().find(|key| key.name == name).map_or("", |key| key.flag)
}

fn all() -> impl Iterator<Item = &'static Key> {
    broker::KEYS.iter().chain(agent::KEYS).chain(viz::KEYS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_explained_and_wrong_ones_hinted_at() {
        let text = explain(Some("broker.retention"), None).unwrap();
        assert!(text.contains("STROBE_RETENTION") && text.contains("\"7d\""), "{text}");
        let why = explain(Some("agent.retention"), None).unwrap_err();
        assert!(why.contains("broker.retention"), "{why}");
        let why = explain(Some("viz.lisen"), None).unwrap_err();
        assert!(why.contains("viz.listen"), "{why}");
    }

    #[test]
    fn no_key_stands_twice() {
        let mut names: Vec<_> = keys().iter().map(|key| key.name).collect();
        names.sort_unstable();
        let all = names.len();
        names.dedup();
        assert_eq!(names.len(), all);
    }
}
