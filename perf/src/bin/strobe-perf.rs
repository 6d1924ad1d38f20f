//! `strobe-perf`: Strobe in the large, and beside others.

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use strobe_perf::agents::{Comparison, compare};
use strobe_perf::churn;
use strobe_perf::families;
use strobe_perf::floor;
use strobe_perf::peers::Kind;
use strobe_perf::rows::Shape;
use strobe_perf::suite::load::{self, Seal};
use strobe_perf::suite::queries;
use strobe_perf::suite::{Bench, Found};
use strobe_perf::suite::{bytes, cluster, live, summary};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let bench = Bench {
        programs: cli.programs.clone(),
        results: cli.results.clone(),
        scratch: cli.scratch.clone().unwrap_or_else(std::env::temp_dir),
    };
    let done = act(&bench, &cli.command);
    bench.clean();
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            complain(&why);
            ExitCode::FAILURE
        }
    }
}

/// Measures Strobe in the large.
#[derive(Parser, Debug)]
#[command(name = "strobe-perf", version)]
struct Cli {
    /// Where strobe-broker, strobe-agent and strobe-viz are.
    #[arg(long, global = true, default_value = "target/release")]
    programs: PathBuf,
    /// Where results go.
    #[arg(long, global = true, default_value = "perf/results")]
    results: PathBuf,
    /// Where state directories go while it measures: a real disk [the system's temporary directory].
    #[arg(long, global = true)]
    scratch: Option<PathBuf>,
    #[command(subcommand)]
    command: What,
}

#[derive(Subcommand, Debug)]
enum What {
    /// Many simulated agents against a broker; fails if a frame is lost.
    Load(LoadArguments),
    /// How late a hundred dashboards are.
    Live(LiveArguments),
    /// What a sample of this host's /proc takes on the disk, and elsewhere.
    Bytes(BytesArguments),
    /// strobe-agent, node_exporter, collectd and sadc side by side on this host.
    Agents(AgentsArguments),
    /// strobe-agent on a host of many control groups and processes.
    Families(FamiliesArguments),
    /// What strobe-agent keeps of a host on which nothing stays; fails if it grows.
    Churn(ChurnArguments),
    /// The same data and questions to Strobe, victoria-metrics and prometheus (those installed).
    Queries(QueriesArguments),
    /// Many simulated agents against a cluster, whose brokers may be hurt; fails if a row is lost.
    Cluster(ClusterArguments),
    /// What three brokers agree on in a second.
    Proposals(ProposalsArguments),
    /// Makes README.md of the results that are there.
    Summary,
    /// Reads files once a second and does nothing else; `agents` starts it.
    #[command(hide = true)]
    Floor {
        /// What to read.
        files: Vec<PathBuf>,
    },
}

#[derive(Args, Debug)]
struct LoadArguments {
    /// Simulated hosts.
    #[arg(long, default_value_t = 1000)]
    agents: usize,
    /// Series a host.
    #[arg(long, default_value_t = 175)]
    series: usize,
    /// How a host's series lie in frames.
    #[arg(long, value_enum, default_value_t = ShapeArgument::Host)]
    shape: ShapeArgument,
    /// How long rows are made.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Time between two ticks of a host.
    #[arg(long, default_value_t = 1000)]
    interval_ms: u64,
    /// Wait until a minute before a window of ten is full, so that its sealing falls inside.
    #[arg(long)]
    seal_inside: bool,
    /// Seconds for which victoria-metrics and prometheus get the same samples after; 0 is not.
    #[arg(long, default_value_t = 0)]
    peers: u64,
}

#[derive(Args, Debug)]
struct ClusterArguments {
    /// Brokers.
    #[arg(long, default_value_t = 3)]
    brokers: usize,
    /// Simulated hosts.
    #[arg(long, default_value_t = 1000)]
    agents: usize,
    /// Series a host.
    #[arg(long, default_value_t = 200)]
    series: usize,
    /// How long rows are made.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// All brokers write to a redis-server of this run's own.
    #[arg(long)]
    redis: bool,
    /// Every so many seconds a broker, drawn by --seed, is killed or held still for up to 5.5 s; 0: none is.
    #[arg(long, default_value_t = 0.0)]
    blows_every: f64,
    /// So many blows, of any process (the Redis, too), however many are down already; then the run ends.
    #[arg(long, default_value_t = 0, conflicts_with = "kills")]
    blows: u64,
    /// So many times a broker is killed, the leader and another one in turn, and comes back; then the run ends.
    #[arg(long, default_value_t = 0)]
    kills: u64,
    /// Which broker, which blow, how long.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Clone, Copy, ValueEnum, Debug)]
enum ShapeArgument {
    /// Five frames a tick, as strobe-agent sends them.
    Host,
    /// As few frames as they need.
    Row,
}

#[derive(Args, Debug)]
struct FamiliesArguments {
    /// Processes that are started.
    #[arg(long, default_value_t = 5000)]
    processes: usize,
    /// Control groups that are made.
    #[arg(long, default_value_t = 1000)]
    groups: usize,
    /// How long it is measured.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Time between two readings of both families.
    #[arg(long, default_value = "1s")]
    interval: String,
}

#[derive(Args, Debug)]
struct ChurnArguments {
    /// How long.
    #[arg(long, default_value_t = 4200)]
    seconds: u64,
}

#[derive(Args, Debug)]
struct LiveArguments {
    /// Simulated hosts.
    #[arg(long, default_value_t = 1000)]
    agents: usize,
    /// Series a host.
    #[arg(long, default_value_t = 175)]
    series: usize,
    /// Browsers: half look at the fleet, half at a host.
    #[arg(long, default_value_t = 100)]
    dashboards: usize,
    /// How long it is measured.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
}

#[derive(Args, Debug)]
struct ProposalsArguments {
    /// Brokers.
    #[arg(long, default_value_t = 3)]
    brokers: usize,
    /// Operators at each broker, who ask anew when they are answered: 1 to 30.
    #[arg(long, default_value_t = 16)]
    operators: usize,
    /// How long they ask, all at once and then one alone.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
}

#[derive(Args, Debug)]
struct BytesArguments {
    /// How long this host is watched: in 20 minutes there is a whole window.
    #[arg(long, default_value_t = 1260)]
    seconds: u64,
    /// A recording made with --keep: it is sealed again, and nothing is recorded.
    #[arg(long)]
    recorded: Option<PathBuf>,
    /// Where the recording goes to stay, on the disk of --scratch.
    #[arg(long)]
    keep: Option<PathBuf>,
    /// Leave the other stores out.
    #[arg(long)]
    alone: bool,
}

#[derive(Args, Debug)]
struct QueriesArguments {
    /// Hosts of 150 series.
    #[arg(long, default_value_t = 1000)]
    hosts: usize,
    /// How long the data is.
    #[arg(long, default_value_t = 65)]
    minutes: usize,
    /// Between two samples.
    #[arg(long, default_value_t = 15_000)]
    interval_ms: i64,
    /// Turns of each question.
    #[arg(long, default_value_t = 60)]
    turns: usize,
    /// Leave the other systems out.
    #[arg(long)]
    alone: bool,
    /// How Strobe is loaded; the others take remote-write.
    #[arg(long, value_enum, default_value_t = By::Agents)]
    by: By,
    /// Seconds between loading and asking.
    #[arg(long, default_value_t = 20)]
    settle: u64,
}

#[derive(Clone, Copy, ValueEnum, Debug)]
enum By {
    Agents,
    RemoteWrite,
}

#[derive(Args, Debug)]
struct AgentsArguments {
    /// An argument more for strobe-agent (repeat it), such as `--strobe-argument=--broker=…`.
    #[arg(long, allow_hyphen_values = true)]
    strobe_argument: Vec<String>,
    /// node_exporter; left out if it is not there.
    #[arg(long, default_value = "/usr/bin/prometheus-node-exporter")]
    node_exporter: PathBuf,
    /// collectd; left out if it is not there.
    #[arg(long, default_value = "/usr/sbin/collectd")]
    collectd: PathBuf,
    /// sysstat's sadc; left out if it is not there.
    #[arg(long, default_value = "/usr/lib/sysstat/sadc")]
    sadc: PathBuf,
    /// Samples a run, one a second.
    #[arg(long, default_value_t = 30)]
    ticks: u32,
    /// Runs; medians are over these.
    #[arg(long, default_value_t = 3)]
    runs: u32,
}

fn act(bench: &Bench, command: &What) -> Result<(), String> {
    let found = match command {
        What::Load(arguments) => load::measure(bench, &load_wanted(arguments)?)?,
        What::Live(arguments) => live::measure(bench, &live_wanted(arguments)?)?,
        What::Bytes(arguments) => bytes::measure(bench, &bytes_wanted(arguments))?,
        What::Cluster(arguments) => cluster::measure(bench, &cluster_wanted(arguments)?)?,
        What::Proposals(arguments) => {
            cluster::proposals::measure(bench, proposals_wanted(arguments)?)?
        }
        What::Agents(arguments) => agents(bench, arguments)?,
        What::Families(arguments) => families(bench, arguments)?,
        What::Churn(arguments) => churn(bench, arguments)?,
        What::Queries(arguments) => queries::measure(bench, &queries_wanted(arguments)?)?,
        What::Summary => {
            return summary::write(&bench.results).map_err(|why| why.to_string());
        }
        What::Floor { files } => {
            return floor::read_for_ever(files).map_err(|why| why.to_string());
        }
    };
    let line: Vec<String> = std::env::args().collect();
    tell(bench, &found, &line.join(" "))
}

fn load_wanted(arguments: &LoadArguments) -> Result<load::Wanted, String> {
    if arguments.agents == 0 || arguments.series == 0 || arguments.interval_ms == 0 {
        return Err("--agents, --series and --interval-ms must be above 0".into());
    }
    Ok(load::Wanted {
        agents: arguments.agents,
        series: arguments.series,
        shape: match arguments.shape {
            ShapeArgument::Host => Shape::Host,
            ShapeArgument::Row => Shape::Row,
        },
        interval: Duration::from_millis(arguments.interval_ms),
        lasting: Duration::from_secs(arguments.seconds),
        seal: if arguments.seal_inside { Seal::Inside } else { Seal::AnyTime },
        peers: if arguments.peers == 0 { Vec::new() } else { Kind::ALL.to_vec() },
        peers_lasting: Duration::from_secs(arguments.peers),
    })
}

fn cluster_wanted(arguments: &ClusterArguments) -> Result<cluster::Wanted, String> {
    let ClusterArguments { brokers, agents, series, seconds, redis, blows_every, .. } = *arguments;
    if agents == 0
        || series == 0
        || !(1..=15).contains(&brokers)
        || !(0.0..=3600.0).contains(&blows_every)
    {
        return Err("--agents and --series must be above 0, --brokers 1 to 15".into());
    }
    if 0 < arguments.kills && brokers < 3 {
        return Err("--kills wants --brokers of 3 at least: two of them have to agree".into());
    }
    let every = (0.0 < blows_every).then(|| Duration::from_secs_f64(blows_every));
    let harm = match (arguments.blows, arguments.kills, every) {
        (0, 0, None) => cluster::Harm::None,
        (0, 0, Some(every)) => cluster::Harm::Some { every },
        (0, count, _) => cluster::Harm::Kills { count },
        (count, _, every) => cluster::Harm::Blows { count, every: every.unwrap_or(BLOWS_EVERY) },
    };
    let (lasting, seed) = (Duration::from_secs(seconds), arguments.seed);
    Ok(cluster::Wanted { brokers, agents, series, lasting, redis, harm, seed })
}

fn proposals_wanted(arguments: &ProposalsArguments) -> Result<cluster::proposals::Wanted, String> {
    let ProposalsArguments { brokers, operators, seconds } = *arguments;
    // A broker's door lets 32 in at once.
    if !(1..=15).contains(&brokers) || !(1..=30).contains(&operators) {
        return Err("--brokers must be 1 to 15, --operators 1 to 30".into());
    }
    Ok(cluster::proposals::Wanted { brokers, operators, lasting: Duration::from_secs(seconds) })
}

fn live_wanted(arguments: &LiveArguments) -> Result<live::Wanted, String> {
    if arguments.agents == 0 || arguments.series == 0 || arguments.dashboards == 0 {
        return Err("--agents, --series and --dashboards must be above 0".into());
    }
    Ok(live::Wanted {
        agents: arguments.agents,
        series: arguments.series,
        dashboards: arguments.dashboards,
        lasting: Duration::from_secs(arguments.seconds),
    })
}

fn queries_wanted(arguments: &QueriesArguments) -> Result<queries::Wanted, String> {
    let QueriesArguments { hosts, minutes, interval_ms, turns, alone, by, settle } = *arguments;
    if hosts == 0 || minutes < 3 || !(1..=60_000).contains(&interval_ms) || turns == 0 {
        return Err("--hosts and --turns must be above 0, --minutes at least 3".into());
    }
    let by = match by {
        By::Agents => queries::By::Agents,
        By::RemoteWrite => queries::By::RemoteWrite,
    };
    let settle = Duration::from_secs(settle);
    Ok(queries::Wanted { hosts, minutes, interval_ms, turns, alone, by, settle })
}

fn bytes_wanted(arguments: &BytesArguments) -> bytes::Wanted {
    bytes::Wanted {
        lasting: Duration::from_secs(arguments.seconds),
        recorded: arguments.recorded.clone(),
        keep: arguments.keep.clone(),
        peers: if arguments.alone { Vec::new() } else { Kind::ALL.to_vec() },
    }
}

fn agents(bench: &Bench, arguments: &AgentsArguments) -> Result<Found, String> {
    let there = |path: &Path| path.exists().then(|| path.to_owned());
    let comparison = Comparison {
        strobe: there(&bench.programs.join("strobe-agent")),
        strobe_arguments: arguments.strobe_argument.clone(),
        broker: there(&bench.programs.join("strobe-broker")),
        node_exporter: there(&arguments.node_exporter),
        collectd: there(&arguments.collectd),
        sadc: there(&arguments.sadc),
        ticks: arguments.ticks.max(1),
        runs: arguments.runs.max(1),
        dir: bench.scratch("agents")?,
    };
    let all = [
        ("strobe-agent", &comparison.strobe),
        ("node_exporter", &comparison.node_exporter),
        ("collectd", &comparison.collectd),
        ("sadc", &comparison.sadc),
    ];
    for (name, _) in all.iter().filter(|(_, path)| path.is_none()) {
        complain(&format!(
            "{name} is not there, and has no row (`scripts/setup perf` installs what can be)"
        ));
    }
    let (value, table) = compare(&comparison).map_err(|why| why.to_string())?;
    Ok(Found { name: "agents".into(), value, table, failed: None })
}

fn families(bench: &Bench, arguments: &FamiliesArguments) -> Result<Found, String> {
    let wanted = families::Wanted {
        programs: bench.programs.clone(),
        processes: arguments.processes,
        groups: arguments.groups,
        lasting: Duration::from_secs(arguments.seconds.max(1)),
        interval: arguments.interval.clone(),
        dir: bench.scratch("families")?,
    };
    let (value, table) = families::measure(&wanted).map_err(|why| why.to_string())?;
    Ok(Found { name: "families".into(), value, table, failed: None })
}

fn churn(bench: &Bench, arguments: &ChurnArguments) -> Result<Found, String> {
    let wanted = churn::Wanted {
        programs: bench.programs.clone(),
        lasting: Duration::from_secs(arguments.seconds.max(1)),
        dir: bench.scratch("churn")?,
    };
    let (value, table, failed) = churn::measure(&wanted).map_err(|why| why.to_string())?;
    Ok(Found { name: "churn".into(), value, table, failed })
}

fn tell(bench: &Bench, found: &Found, command: &str) -> Result<(), String> {
    say(&found.table.markdown());
    bench
        .keep(found, command)
        .map_err(|why| format!("writing {}: {why}", bench.results.display()))?;
    found.failed.clone().map_or(Ok(()), Err)
}

#[expect(clippy::print_stdout, reason = "the program's output")]
fn say(text: &str) {
    print!("{text}");
}

#[expect(clippy::print_stderr, reason = "the program's complaints")]
fn complain(text: &str) {
    eprintln!("strobe-perf: {text}");
}

const BLOWS_EVERY: Duration = Duration::from_millis(1300);
