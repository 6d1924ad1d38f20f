//! Where Redis is, as its URL says: one server, what Sentinels watch, or a Cluster.
//!
//! | URL | |
//! |---|---|
//! | `redis://[USER:PASSWORD@]HOST:PORT/DB`, `unix://PATH` | a server; a Cluster's node or a Sentinel is recognised |
//! | `redis+sentinel://[USER:PASSWORD@]HOST:PORT,…/NAME[/DB]` | the primary that these Sentinels call NAME |
//! | `redis+cluster://[USER:PASSWORD@]HOST:PORT,…` | a Cluster, found by any of these nodes |
//!
//! `rediss` instead of `redis`: by TLS, to the Sentinels too. User and password are the servers';
//! Sentinels that want some have them in `?sentinel_user=` and `?sentinel_password=`.

use super::{RedisConfig, RedisError};
use redis::{ClientTlsConfig, IntoConnectionInfo, RedisResult, TlsCertificates};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// One Redis, however many servers it is.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) kind: Kind,
    /// Without user and password: for people.
    pub(super) address: String,
    /// Who is asked first; one that does not answer goes to the end, nodes of a Cluster come in.
    seeds: Mutex<Vec<String>>,
    scheme: &'static str,
    /// With `@`, or empty.
    user: String,
    sentinel_user: String,
    db: String,
    tls: Option<TlsCertificates>,
}

/// What the URL says it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// To be found out.
    Probe,
    /// The path of a socket.
    Unix(String),
    /// The name of what they watch.
    Sentinel(String),
    Cluster,
}

impl Target {
    /// # Errors
    /// A URL that is none, or certificates that cannot be read.
    pub(super) fn of(config: &RedisConfig) -> Result<Self, RedisError> {
        let wrong = |why: &str| RedisError::Url(why.to_owned());
        let (scheme, rest) = config.url.split_once("://").ok_or_else(|| wrong("no scheme"))?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (user, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (scheme, mut kind) = match scheme {
            "unix" => ("unix", Kind::Unix(format!("unix://{rest}?{query}"))),
            "redis" => ("redis", Kind::Probe),
            "rediss" => ("rediss", Kind::Probe),
            "redis+sentinel" => ("redis", Kind::Sentinel(String::new())),
            "rediss+sentinel" => ("rediss", Kind::Sentinel(String::new())),
            "redis+cluster" => ("redis", Kind::Cluster),
            "rediss+cluster" => ("rediss", Kind::Cluster),
            _ => return Err(wrong("unknown scheme")),
        };
        let mut db = path.trim_end_matches('/');
        if let Kind::Sentinel(name) = &mut kind {
            let (master, of) = db.split_once('/').unwrap_or((db, ""));
            if master.is_empty() {
                return Err(wrong("the name that the Sentinels watch is missing"));
            }
            (*name, db) = (master.to_owned(), of);
        }
        if kind == Kind::Cluster && !matches!(db, "" | "0") {
            return Err(wrong("a Cluster has no databases but 0"));
        }
        let port = if matches!(kind, Kind::Sentinel(_)) { 26379 } else { 6379 };
        let seeds: Vec<String> = hosts.split(',').map(|host| with_port(host, port)).collect();
        let at = |user: &str| if user.is_empty() { String::new() } else { format!("{user}@") };
        let address = match &kind {
            Kind::Unix(_) => rest.to_owned(),
            Kind::Sentinel(name) => format!("{} ({name})", seeds.join(",")),
            Kind::Probe | Kind::Cluster => seeds.join(","),
        };
        let target = Self {
            address,
            sentinel_user: at(&sentinel_user(query, &kind)?),
            kind,
            scheme,
            user: at(user),
            db: db.to_owned(),
            tls: if scheme == "rediss" { Some(certificates(config)?) } else { None },
            seeds: Mutex::new(seeds),
        };
        for seed in target.seeds() {
            target.server(&seed).map_err(|why| RedisError::Url(why.to_string()))?;
        }
        Ok(target)
    }

    /// Who may be asked, the last that answered first.
    pub(super) fn seeds(&self) -> Vec<String> {
        self.seeds.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// It did not answer: the others are asked before it.
    pub(super) fn put_back(&self, seed: &str) {
        let mut seeds = self.seeds.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = seeds.iter().position(|of| of == seed) {
            let seed = seeds.remove(at);
            seeds.push(seed);
        }
    }

    /// Nodes of the Cluster that a seed told of.
    pub(super) fn learn(&self, nodes: impl Iterator<Item = String>) {
        let mut seeds = self.seeds.lock().unwrap_or_else(PoisonError::into_inner);
        for node in nodes {
            if seeds.len() < SEEDS_MAX && !seeds.contains(&node) {
                seeds.push(node);
            }
        }
    }

    pub(super) fn server(&self, address: &str) -> RedisResult<::redis::Client> {
        if let Kind::Unix(url) = &self.kind {
            return ::redis::Client::open(url.as_str());
        }
        let db = if self.db.is_empty() { "0" } else { &self.db };
        self.client(format!("{}://{}{address}/{db}", self.scheme, self.user))
    }

    pub(super) fn sentinel(&self, address: &str) -> RedisResult<::redis::Client> {
        self.client(format!("{}://{}{address}", self.scheme, self.sentinel_user))
    }

    fn client(&self, url: String) -> RedisResult<::redis::Client> {
        let info = url.into_connection_info()?;
        match &self.tls {
            Some(tls) => ::redis::Client::build_with_tls(info, tls.clone()),
            None => ::redis::Client::open(info),
        }
    }
}

/// `HOST:PORT` as a URL has it; an IPv6 address in brackets.
pub(super) fn with_port(host: &str, port: u16) -> String {
    match host.rsplit_once(':') {
        Some((_, port)) if port.parse::<u16>().is_ok() && !host.ends_with(']') => host.to_owned(),
        _ => format!("{host}:{port}"),
    }
}

fn sentinel_user(query: &str, kind: &Kind) -> Result<String, RedisError> {
    let (mut user, mut password) = ("", None);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=') {
            Some(("sentinel_user", value)) if matches!(kind, Kind::Sentinel(_)) => user = value,
            Some(("sentinel_password", value)) if matches!(kind, Kind::Sentinel(_)) => {
                password = Some(value);
            }
            _ if matches!(kind, Kind::Unix(_)) => {}
            _ => {
                let name = pair.split('=').next().unwrap_or_default();
                return Err(RedisError::Url(format!("unknown parameter {name:?}")));
            }
        }
    }
    Ok(password.map_or_else(String::new, |password| format!("{user}:{password}")))
}

fn certificates(config: &RedisConfig) -> Result<TlsCertificates, RedisError> {
    let read = |path: &Path| {
        std::fs::read(path)
            .map_err(|source| RedisError::Certificate { path: path.to_owned(), source })
    };
    let client_tls = match &config.identity {
        None => None,
        Some((certificate, key)) => {
            Some(ClientTlsConfig { client_cert: read(certificate)?, client_key: read(key)? })
        }
    };
    let root_cert = config.ca.as_deref().map(read).transpose()?;
    Ok(TlsCertificates { client_tls, root_cert })
}

const SEEDS_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn of(url: &str) -> Result<Target, RedisError> {
        Target::of(&RedisConfig::at(url.to_owned()))
    }

    fn strings(of: &[&str]) -> Vec<String> {
        of.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn urls_are_told_apart() {
        let check = |url: &str, kind: Kind, seeds: &[&str], server: &str| {
            let target = of(url).unwrap();
            assert_eq!((&target.kind, target.seeds()), (&kind, strings(seeds)), "{url}");
            let info = target.server("h:9").unwrap();
            let info = info.get_connection_info();
            let redis = info.redis_settings();
            let user = redis.username().unwrap_or("-");
            let found = format!("{} {user} {}", info.addr(), redis.db());
            assert_eq!(found, server, "{url}");
        };
        check("redis://a", Kind::Probe, &["a:6379"], "h:9 - 0");
        check("rediss://u:p%40@a:1/3", Kind::Probe, &["a:1"], "h:9 u 3");
        let name = || Kind::Sentinel("main".into());
        check("redis+sentinel://u:p@a,b:2/main/4", name(), &["a:26379", "b:2"], "h:9 u 4");
        check("redis+sentinel://a/main?sentinel_password=x", name(), &["a:26379"], "h:9 - 0");
        check("redis+cluster://a:1,[::1]:2", Kind::Cluster, &["a:1", "[::1]:2"], "h:9 - 0");
        assert_eq!(of("redis+sentinel://u:p@a/main").unwrap().address, "a:26379 (main)");
    }

    #[test]
    fn wrong_urls_say_why_and_no_secret() {
        let check = |url: &str, wanted: &str| {
            let said = of(url).unwrap_err().to_string();
            assert!(said.contains(wanted) && !said.contains("secret"), "{said}");
        };
        check("a:1", "no scheme");
        check("http://u:secret@a", "unknown scheme");
        check("redis+sentinel://u:secret@a", "the name that the Sentinels watch");
        check("redis+cluster://a/3", "no databases but 0");
        check("redis://u:secret@a?x=secret", "unknown parameter \"x\"");
        check("redis://u:secret@a:1/secret", "is not understood");
        let ca = Some("/nowhere/ca.pem".into());
        let config = RedisConfig { ca, ..RedisConfig::at("rediss://a".to_owned()) };
        let said = Target::of(&config).unwrap_err().to_string();
        assert!(said.contains("/nowhere/ca.pem"), "{said}");
    }

    #[test]
    fn one_that_does_not_answer_is_asked_last() {
        let target = of("redis+cluster://a:1,b:2").unwrap();
        target.learn(["b:2".to_owned(), "c:3".to_owned()].into_iter());
        target.put_back("a:1");
        assert_eq!(target.seeds(), ["b:2", "c:3", "a:1"]);
    }
}
