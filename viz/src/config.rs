//! Viz's settings: the table of keys, and the one place where their texts become typed values.

use std::net::SocketAddr;
use std::path::PathBuf;
use strobe_wire::settings::{Key, Settings, SettingsError};

use crate::front::{FrontLimits, HEADERS_MAX};
use crate::live::LiveLimits;

/// Everything viz needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where browsers connect.
    pub listen: SocketAddr,
    /// Certificate and key; without them plain HTTP is spoken, on loopback only.
    pub tls: Option<TlsFiles>,
    /// Host names that requests may carry besides localhost and IP addresses, lower case.
    pub names: Vec<String>,
    /// State directory: the workers' socket lies in it.
    pub dir: PathBuf,
    /// Connections at once; more get 503.
    pub connections_max: usize,
    /// WebSockets at once; more get 503.
    pub web_sockets_max: usize,
    /// Requests answered at once; more wait.
    pub workers: usize,
    /// Bytes of unsent answers and unfinished bodies of all connections together.
    pub memory_bytes_max: usize,
    /// Bounds of one connection.
    pub front: FrontLimits,
    /// Bounds of the live view.
    pub live: LiveLimits,
}

/// PEM files.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TlsFiles {
    /// The certificate chain.
    pub certificate: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// Why viz cannot be run this way.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A setting's text is wrong.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// Others could read along.
    #[error(
        "{0} can be reached from other machines: set viz.tls_cert and viz.tls_key, or listen on \
         127.0.0.1 and put a TLS proxy before it"
    )]
    PlainText(SocketAddr),
    /// A certificate without a key or a key without a certificate.
    #[error("viz.tls_cert and viz.tls_key belong together: only one is set")]
    HalfTls,
}

/// Every key of viz.
pub const KEYS: &[Key] = &[
    Key {
        name: "viz.listen",
        flag: "listen",
        env: "STROBE_VIZ_LISTEN",
        default: "127.0.0.1:7800",
        help: "Address and port for browsers and the HTTP API.",
    },
    Key {
        name: "viz.tls_cert",
        flag: "tls-cert",
        env: "STROBE_VIZ_TLS_CERT",
        default: "",
        help: "PEM file of the certificate chain; needed to listen beyond loopback.",
    },
    Key {
        name: "viz.tls_key",
        flag: "tls-key",
        env: "STROBE_VIZ_TLS_KEY",
        default: "",
        help: "PEM file of the certificate's private key.",
    },
    Key {
        name: "viz.names",
        flag: "names",
        env: "STROBE_VIZ_NAMES",
        default: "",
        help: "Host names browsers may use, separated by commas; localhost and IPs always work.",
    },
    Key {
        name: "viz.broker",
        flag: "broker",
        env: "STROBE_VIZ_BROKER",
        default: "127.0.0.1:7801",
        help: "host:port of the broker; of several of one cluster, by commas.",
    },
    Key {
        name: "viz.token",
        flag: "token",
        env: "STROBE_VIZ_TOKEN",
        default: "",
        help: "Enrolment token (`strobe token create`), needed once.",
    },
    Key {
        name: "viz.dir",
        flag: "dir",
        env: "STROBE_DIR",
        default: "auto",
        help: "State directory. auto: /var/lib/strobe/viz for root, else ~/.local/share/strobe/viz.",
    },
    Key {
        name: "viz.connections_max",
        flag: "connections-max",
        env: "STROBE_VIZ_CONNECTIONS_MAX",
        default: "512",
        help: "Connections at once, 1 to 65536; more are answered with 503.",
    },
    Key {
        name: "viz.web_sockets_max",
        flag: "web-sockets-max",
        env: "STROBE_VIZ_WEB_SOCKETS_MAX",
        default: "256",
        help: "Live dashboards at once, 0 to 65536; more are answered with 503.",
    },
    Key {
        name: "viz.workers",
        flag: "workers",
        env: "STROBE_VIZ_WORKERS",
        default: "8",
        help: "Requests answered at once, 1 to 64; more wait.",
    },
    Key {
        name: "viz.hosts_max",
        flag: "hosts-max",
        env: "STROBE_VIZ_HOSTS_MAX",
        default: "20000",
        help: "Hosts of the fleet table, 1 to 1000000.",
    },
];

impl Config {
    /// From texts to values; `dir` is the state directory that was chosen.
    ///
    /// # Errors
    /// The first value that is wrong, or a combination that is not safe.
    pub fn from_settings(settings: &Settings, dir: PathBuf) -> Result<Self, ConfigError> {
        let listen = settings.parse("viz.listen", |text| {
            text.parse::<SocketAddr>()
                .map_err(|_| "an address and a port are wanted, as in 127.0.0.1:7800".to_owned())
        })?;
        let tls = match (settings.text("viz.tls_cert"), settings.text("viz.tls_key")) {
            ("", "") => None,
            ("", _) | (_, "") => return Err(ConfigError::HalfTls),
            (certificate, key) => {
                Some(TlsFiles { certificate: certificate.into(), key: key.into() })
            }
        };
        let names = settings.text("viz.names").split(',').map(str::trim);
        let names = names.filter(|name| !name.is_empty()).map(str::to_ascii_lowercase).collect();
        let config = Self {
            tls,
            names,
            connections_max: settings.parse("viz.connections_max", |t| count(t, 1, 65_536))?,
            web_sockets_max: settings.parse("viz.web_sockets_max", |t| count(t, 0, 65_536))?,
            workers: settings.parse("viz.workers", |t| count(t, 1, 64))?,
            live: LiveLimits {
                hosts_max: settings.parse("viz.hosts_max", |t| count(t, 1, 1_000_000))?,
                ..LIVE
            },
            ..Self::plain(listen, dir)
        };
        config.check()?;
        Ok(config)
    }

    /// Every default, for `listen` and `dir`.
    #[must_use]
    pub fn plain(listen: SocketAddr, dir: PathBuf) -> Self {
        Self {
            listen,
            tls: None,
            names: Vec::new(),
            dir,
            connections_max: 512,
            web_sockets_max: 256,
            workers: 8,
            memory_bytes_max: 128 << 20,
            front: FRONT,
            live: LIVE,
        }
    }

    /// Refuses what would send data in the clear to other machines.
    ///
    /// # Errors
    /// [`ConfigError::PlainText`].
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.tls.is_none() && !self.listen.ip().to_canonical().is_loopback() {
            return Err(ConfigError::PlainText(self.listen));
        }
        Ok(())
    }
}

fn count(text: &str, least: usize, most: usize) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(number) if least <= number && number <= most => Ok(number),
        _ => Err(format!("a number from {least} to {most} is wanted")),
    }
}

const FRONT: FrontLimits = FrontLimits {
    head_bytes_max: 16 << 10,
    headers_max: HEADERS_MAX,
    target_bytes_max: 8 << 10,
    body_bytes_max: 16 << 20,
    head_timeout_ms: 10_000,
    body_timeout_ms: 30_000,
    idle_timeout_ms: 60_000,
    requests_max: 10_000,
};

const LIVE: LiveLimits = LiveLimits { hosts_max: 20_000, schemas_max: 200_000, sections_max: 64 };

#[cfg(test)]
mod tests {
    use super::*;

    fn load(args: &[&str]) -> Result<Config, ConfigError> {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let settings = Settings::load(KEYS, None, &|_| None, &args)?;
        Config::from_settings(&settings, PathBuf::from("/nowhere"))
    }

    #[test]
    fn the_defaults_listen_on_loopback_only() {
        let config = load(&[]).unwrap();
        assert_eq!(config.listen.to_string(), "127.0.0.1:7800");
        assert!(config.tls.is_none());
        assert_eq!(load(&["--names", "A.b, c"]).unwrap().names, ["a.b", "c"]);
    }

    #[test]
    fn what_is_not_safe_or_wrong_is_refused_with_the_reason() {
        let table = [
            (&["--listen", "0.0.0.0:7800"][..], "can be reached from other machines"),
            (&["--listen", "[::ffff:10.0.0.1]:1"], "can be reached from other machines"),
            (&["--listen", "7800"], "an address and a port are wanted"),
            (&["--tls-cert", "x"], "belong together"),
            (&["--workers", "0"], "a number from 1 to 64"),
            (&["--lisen", "x"], "did you mean `listen`"),
        ];
        for (args, wanted) in table {
            let error = load(args).unwrap_err().to_string();
            assert!(error.contains(wanted), "{args:?}: {error}");
        }
        assert!(load(&["--listen", "[::ffff:127.0.0.1]:1"]).is_ok());
        assert!(load(&["--listen", "0.0.0.0:1", "--tls-cert", "a", "--tls-key", "b"]).is_ok());
    }
}
