//! The agent's configuration: the table of keys, and the texts made into values, once.

mod forms;
mod keys;

#[cfg(feature = "inputs")]
use crate::input::{Inputs, config::INPUT_KEYS};
use crate::sampler::{Choice, Scoring, Trees, collector};
use crate::spool::SpoolConfig;
use forms::{
    broker, commands, cost_max_ppm, dir, interface, job, listen, names, path, ring_slots,
    spool_bytes, spool_memory_bytes,
};
use keys::HOST_KEYS;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use strobe_wire::message::Question;
use strobe_wire::schema::Labels;
use strobe_wire::settings::{Key, Settings, SettingsError, boolean, duration_ms, labels};

/// How a host is watched.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// Time between two samples.
    pub interval_ms: u64,
    /// Time between two readings of the file systems' space.
    pub filesystem_interval_ms: u64,
    /// The state directory: identity, certificate, key.
    pub dir: PathBuf,
    /// `host:port` of a broker; none means that nothing is sent.
    pub broker: Option<String>,
    /// The enrolment token, for the first start.
    pub token: Option<String>,
    /// Where `/metrics` is served, if anywhere.
    pub listen: Option<SocketAddr>,
    /// On which interface this host says that it is here, if anywhere.
    pub announce: Option<Ipv4Addr>,
    /// The tree that stands for `/proc`.
    pub procfs: PathBuf,
    /// The tree that stands for `/sys`.
    pub sysfs: PathBuf,
    /// Where the host's `/` is.
    pub rootfs: PathBuf,
    /// Which collectors are read, and how often.
    pub choice: Choice,
    /// The flight recorder, if there is to be one.
    pub recorder: Option<Pace>,
    /// Other inputs.
    #[cfg(feature = "inputs")]
    pub inputs: Inputs,
    /// The `instance` label; none means the host's name.
    pub instance: Option<String>,
    /// The `job` label.
    pub job: String,
    /// Labels for every series of this host.
    pub labels: Labels,
    /// Slots of the ring between sampler and uplink.
    pub ring_slots: usize,
    /// Bytes that frames may take on the disk while no broker takes them; 0 is no spool.
    pub spool_bytes: u64,
    /// Bytes that they may take in memory while no disk takes them either.
    pub spool_memory_bytes: usize,
    /// What may be asked of this host by its broker's operators.
    pub commands: Vec<Question>,
    /// Keys that the fleet's configuration does not change here.
    pub locked: Vec<String>,
    /// What sampling may cost where the fleet's configuration changes it, in millionths of a core.
    pub cost_max_ppm: u32,
    /// What all of this was read from, for what the fleet's configuration puts above it.
    pub settings: Settings,
    /// Print one sample and end.
    pub once: bool,
    /// Print what each collector costs and end.
    pub costs: bool,
}

/// The flight recorder's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pace {
    /// Time between two samples.
    pub interval_ms: u64,
    /// How much of the past is kept.
    pub window_ms: u64,
}

/// Every key; `--config FILE` (`STROBE_CONFIG`) names the file they may stand in.
pub const KEYS: &[Key] = &{
    let mut all = [HOST_KEYS[0]; HOST_KEYS.len() + INPUT_KEYS.len()];
    let mut at = 0;
    while at < all.len() {
        let own = at < HOST_KEYS.len();
        all[at] = if own { HOST_KEYS[at] } else { INPUT_KEYS[at - HOST_KEYS.len()] };
        at += 1;
    }
    all
};

#[cfg(not(feature = "inputs"))]
const INPUT_KEYS: &[Key] = &[];

impl Config {
    /// Makes values of texts. `env` is asked for `HOME` if `agent.dir` is not set.
    ///
    /// # Errors
    /// The first value of the wrong form: who set it, to what, and what is wanted.
    pub fn new(
        settings: &Settings,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, SettingsError> {
        let path = |name| settings.parse(name, path);
        let optional = |name| {
            let text = settings.text(name);
            (!text.is_empty()).then(|| text.to_owned())
        };
        let between = |name, min_ms: u64, max_ms: u64| {
            settings.parse(name, |text| {
                let found = duration_ms(text)?;
                let fits = min_ms <= found && found <= max_ms;
                fits.then_some(found).ok_or_else(|| format!("{min_ms}ms to {max_ms}ms is wanted"))
            })
        };
        let pace = Pace {
            interval_ms: between("agent.recorder.interval", 10, 1000)?,
            window_ms: between("agent.recorder.window", 1000, 60_000)?,
        };
        let is_on = settings.parse("agent.recorder.on", boolean)?;
        Ok(Self {
            recorder: is_on.then_some(pace),
            #[cfg(feature = "inputs")]
            inputs: Inputs::new(settings)?,
            interval_ms: between("agent.interval", 100, 300_000)?,
            filesystem_interval_ms: between("agent.filesystem_interval", 100, 3_600_000)?,
            dir: settings.parse("agent.dir", |text| dir(text, env))?,
            broker: settings.parse("agent.broker", broker)?,
            token: optional("agent.token"),
            listen: settings.parse("agent.listen", listen)?,
            announce: settings.parse("agent.announce", interface)?,
            procfs: path("agent.procfs")?,
            sysfs: path("agent.sysfs")?,
            rootfs: path("agent.rootfs")?,
            choice: choice(settings)?,
            instance: optional("agent.instance"),
            job: settings.parse("agent.job", job)?,
            labels: settings.parse("agent.labels", labels)?,
            ring_slots: settings.parse("agent.ring_slots", ring_slots)?,
            spool_bytes: settings.parse("agent.spool.size", spool_bytes)?,
            spool_memory_bytes: settings.parse("agent.spool.memory", spool_memory_bytes)?,
            commands: settings.parse("agent.commands", commands)?,
            locked: names(settings.text("agent.locked")).map(str::to_owned).collect(),
            cost_max_ppm: settings.parse("agent.cost_max", cost_max_ppm)?,
            settings: settings.clone(),
            once: settings.parse("agent.once", boolean)?,
            costs: settings.parse("agent.costs", boolean)?,
        })
    }

    /// With what a version of the fleet's configuration says above it, and the keys that it says in vain,
    /// because they are locked here.
    ///
    /// # Errors
    /// The first value that is wrong.
    pub fn with_fleet(
        &self,
        version: u64,
        values: &[(String, String)],
    ) -> Result<(Self, Vec<String>), SettingsError> {
        let (settings, stayed) = self.settings.with_fleet(version, values, &self.locked);
        let home = |_: &str| Some("/".to_owned());
        let read = Self::new(&settings, &home)?;
        let spool = values.iter().any(|(key, _)| key == "agent.spool.size");
        // Only what a fleet may decide: the rest is this life's, whoever set it.
        let with = Self {
            interval_ms: read.interval_ms,
            filesystem_interval_ms: read.filesystem_interval_ms,
            choice: read.choice,
            recorder: read.recorder,
            labels: read.labels,
            spool_bytes: if spool { read.spool_bytes } else { self.spool_bytes },
            ..self.clone()
        };
        Ok((with, stayed))
    }

    /// Where frames go that the ring cannot hold, if anywhere.
    #[must_use]
    pub fn spool(&self) -> Option<SpoolConfig> {
        (0 < self.spool_bytes).then(|| SpoolConfig {
            dir: self.dir.join("spool"),
            disk_bytes_max: self.spool_bytes,
            memory_bytes_max: self.spool_memory_bytes,
        })
    }

    /// What the sampler reads.
    #[must_use]
    pub fn trees(&self) -> Trees {
        Trees {
            procfs: self.procfs.clone(),
            sysfs: self.sysfs.clone(),
            rootfs: self.rootfs.clone(),
            choice: self.choice.clone(),
            filesystem_interval_ms: self.filesystem_interval_ms,
        }
    }
}

/// The text of `--help`, from the table.
#[must_use]
pub fn help() -> String {
    "Watches this host: reads /proc and sends it to a Strobe broker, or serves it to Prometheus.\n\n\
     Usage: strobe-agent [doctor [--json]] [--config FILE] [FLAGS]\n\n     doctor says what the agent finds on this host, what is denied and what would change that.\n\n"
        .to_owned()
        + &strobe_wire::program::help(KEYS)
}

/// Which collectors are read: each key's own mistakes are named as that key's.
fn choice(settings: &Settings) -> Result<Choice, SettingsError> {
    let list = |text: &str| {
        let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
        names.map(|name| collector(name).map(|known| known.name.to_owned())).collect()
    };
    let intervals = |text: &str| {
        let pairs = text.split(',').map(str::trim).filter(|pair| !pair.is_empty());
        pairs.map(interval).collect::<Result<Vec<_>, _>>()
    };
    let enable: Vec<String> = settings.parse("agent.collectors.enable", list)?;
    let disable = settings.parse("agent.collectors.disable", |text| {
        let disable: Vec<String> = list(text)?;
        match disable.iter().find(|name| enable.contains(name)) {
            Some(both) => Err(format!("{both:?} is enabled as well")),
            None => Ok(disable),
        }
    })?;
    let intervals = settings.parse("agent.intervals.*", intervals)?;
    let named = !settings.text("agent.textfiles").is_empty();
    let textfiles = named.then(|| settings.parse("agent.textfiles", path)).transpose()?;
    let scores = settings.parse("agent.scores", boolean)?;
    let scoring = if scores { Scoring::On } else { Scoring::Off };
    Ok(Choice { enable, disable, intervals, textfiles, scoring })
}

/// `netclass=1m`.
fn interval(pair: &str) -> Result<(String, u64), String> {
    let (name, text) = pair.split_once('=').ok_or("name=time is wanted, as in netclass=1m")?;
    let interval_ms = duration_ms(text)?;
    if !(100..=86_400_000).contains(&interval_ms) {
        return Err(format!("{name}: 100ms to 24h is wanted"));
    }
    let collector = collector(name)?;
    if !collector.has_interval() {
        return Err(format!(
            "{name} has no interval of its own (filesystems: agent.filesystem_interval)"
        ));
    }
    Ok((collector.name.to_owned(), interval_ms))
}

/// Whether this is an agent for small machines.
pub(crate) const SMALL: bool = cfg!(feature = "small");

#[cfg(test)]
mod tests {
    use super::*;

    fn config(args: &[&str]) -> Result<Config, String> {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let settings = Settings::load(KEYS, None, &|_| None, &args).map_err(|e| e.to_string())?;
        Config::new(&settings, &|name| (name == "HOME").then(|| "/home/me".to_owned()))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn defaults_and_bounds() {
        let plain = config(&[]).unwrap();
        assert_eq!((plain.interval_ms, plain.ring_slots, plain.once), (1000, 256, false));
        assert_eq!((plain.broker, plain.listen, &*plain.job), (None, None, "node"));
        let spool = config(&[]).unwrap().spool().unwrap();
        assert_eq!((spool.disk_bytes_max, spool.memory_bytes_max), (64 << 20, 4 << 20));
        assert_eq!(config(&["--spool-size", "0"]).unwrap().spool(), None);
        let set = config(&["--labels", "b=2, a=1", "--broker", "[::1]:7801", "--once"]).unwrap();
        assert_eq!(set.labels, Labels::of(&[("a", "1"), ("b", "2")]));
        assert_eq!((set.broker.as_deref(), set.once), (Some("[::1]:7801"), true));
        let set =
            config(&["--collector.ksmd", "--no-collector.arp", "--interval.os", "2h"]).unwrap();
        assert_eq!(
            (set.choice.enable, set.choice.disable),
            (vec!["ksmd".into()], vec!["arp".into()])
        );
        assert_eq!(set.choice.intervals, [("os".to_owned(), 7_200_000)]);
    }

    #[test]
    fn wrong_values_say_what_is_wanted() {
        for (args, wanted) in [
            (["--interval", "50ms"], "--interval: `agent.interval` is \"50ms\": 100ms to 300000ms"),
            (["--broker", "x"], "host:port is wanted"),
            (["--broker", ":1"], "host:port is wanted"),
            (["--announce", "eth0"], "an IPv4 address is wanted"),
            (["--listen", "7802"], "address:port is wanted"),
            (["--labels", "job=x"], "not job, instance"),
            (["--labels", "a=1,a=2"], "stands twice"),
            (["--ring-slots", "100"], "power of two"),
            (["--spool-size", "1KiB"], "0, or 1MiB to 64GiB is wanted"),
            (["--spool-memory", "0"], "64KiB to 1GiB is wanted"),
            (["--interva", "1s"], "did you mean `interval`?"),
            (
                ["--interval.netclas", "1m"],
                "no collector is called \"netclas\"; did you mean \"netclass\"?",
            ),
            (["--interval.netclass", "1"], "a number and one of ms, s, m, h, d is wanted"),
            (["--collector.ksmd", "--no-collector.ksmd"], "\"ksmd\" is enabled as well"),
            (["--collectr.ksmd", "--once"], "unknown key `collectr.ksmd`"),
            (["--interval.uname", "1m"], "uname has no interval of its own"),
            (["--collector.xyzzy", "--once"], "no collector is called \"xyzzy\""),
        ] {
            let error = config(&args).unwrap_err();
            assert!(error.contains(wanted), "{error}");
        }
    }
}
