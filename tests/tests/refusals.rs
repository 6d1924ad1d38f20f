//! What the programs say to what cannot be: the reason, where it stands, what to do; exit code 1,
//! or 2 where the command line itself is not understood.

use std::net::{TcpListener, UdpSocket};
use std::process::{Command, ExitStatus, Stdio};
use strobe_tests::{Folder, Process, binary, run_with};

/// Program and arguments, what it must say, and its exit code.
fn refused(program: &str, env: &[(&str, &str)], args: &[&str], code: i32, wanted: &[&str]) {
    let (ended, out, said) = run_with(program, env, args);
    assert_eq!(ended, code, "{program} {args:?}: {out}{said}");
    for wanted in wanted {
        assert!(said.contains(wanted), "{program} {args:?} said: {said}");
    }
    assert!(said.lines().count() < 12 && !said.contains("panicked"), "{said}");
}

#[test]
fn a_wrong_configuration_is_named_and_nothing_starts() {
    let dir = Folder::new("wrong");
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).expect("writable");
        path.display().to_string()
    };
    let unknown = file("unknown.toml", "[agent]\nintervall = \"1s\"\n");
    let value = file("value.toml", "[broker]\nretention = 7\n");
    let torn = file("torn.toml", "[viz]\nlisten = \"x\n");
    let up = |path: &str| vec!["up".to_owned(), "--config".to_owned(), path.to_owned()];
    for (path, wanted) in [
        (&unknown, &["unknown.toml", "did you mean `agent.interval`?"][..]),
        (&value, &["value.toml", "broker.retention", "as in 500ms or 7d"]),
        (&torn, &["torn.toml", "not TOML", "line 2", "listen = \"x"]),
    ] {
        let args = up(path);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        refused("strobe", &[], &args, 1, wanted);
        refused("strobe", &[], &["config", "check", "--config", path], 1, wanted);
    }
    refused("strobe-agent", &[("STROBE_CONFIG", &unknown)], &[], 1, &["unknown.toml", "interval"]);
    refused("strobe-broker", &[], &["--config", &value], 1, &["value.toml", "retention"]);
    refused("strobe-viz", &[], &["--config", &torn], 1, &["torn.toml", "line 2"]);
    refused("strobe", &[("STROBE_INTERVAL", "5")], &["up"], 1, &["STROBE_INTERVAL", "\"5\""]);
    refused("strobe", &[], &["up", "--set", "viz.lisen=x"], 1, &["did you mean `viz.listen`?"]);
    refused("strobe", &[], &["up", "--listen", "0.0.0.0:0"], 1, &["reached from other machines"]);
    refused("strobe", &[("STROBE_NO_AGENT", "maybe")], &["up"], 2, &["--no-agent"]);
    refused("strobe", &[], &["up", "--lisen", "x"], 2, &["--listen"]);
    refused("strobe", &[], &["config", "explain", "viz.lisen"], 1, &["viz.listen"]);
}

#[test]
fn a_place_that_cannot_be_had_is_named() {
    let dir = Folder::new("place");
    let own = |name: &str| dir.path().join(name).display().to_string();
    let free = ["--broker-listen", "127.0.0.1:0", "--dir"];
    let broker = |place: &str, wanted: &[&str]| {
        refused("strobe-broker", &[], &[&free[..], &[place]].concat(), 1, wanted);
        let up = ["up", "--listen", "127.0.0.1:0"];
        refused("strobe", &[], &[&up[..], &free, &[place]].concat(), 1, wanted);
    };
    std::fs::write(dir.path().join("file"), "").expect("writable");
    broker(&own("file"), &[&own("file"), "writable"]);
    broker("/proc/strobe", &["/proc/strobe", "writable"]);
    std::fs::create_dir(dir.path().join("old")).expect("writable");
    std::fs::write(dir.path().join("old/version"), "strobe state 9\n").expect("writable");
    broker(&own("old"), &[&own("old"), "strobe state 9", "another --dir"]);
    let taken = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("bound").to_string();
    let args = ["--dir", &own("udp"), "--broker-listen", &address];
    refused("strobe-broker", &[], &args, 1, &[&address, "--broker-listen"]);
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("bound").to_string();
    let args = ["up", "--dir", &own("tcp"), "--broker-listen", "127.0.0.1:0", "--listen", &address];
    refused("strobe", &[], &args, 1, &[&address, "--listen"]);
    let nobody = ["hosts", "--dir", &own("nobody")];
    refused("strobe", &[], &nobody, 1, &[&own("nobody"), "no broker runs", "strobe up"]);
    refused("strobe", &[], &["store", "check", &own("nobody")], 1, &["holds no store"]);
}

/// Variables say yes and no in the usual words.
#[test]
fn parts_are_switched_off_by_variables() {
    let dir = Folder::new("switched");
    let args = ["up", "--broker-listen", "127.0.0.1:0", "--dir", dir.text()];
    for no in ["1", "true", "yes"] {
        let env = [("STROBE_NO_VIZ", no), ("STROBE_NO_AGENT", no)];
        let mut strobe = Process::start_with("strobe", &env, &args);
        assert!(strobe.line().contains("QUIC on"), "no dashboard with {no}");
        assert!(strobe.terminate(), "SIGTERM ends it well");
    }
    assert!(!dir.path().join("agent").exists(), "no agent was started");
}

#[test]
fn completions_and_help_are_there() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let (code, script, _) = run_with("strobe", &[], &["completions", shell]);
        assert!(code == 0 && script.contains("broker-listen"), "{shell}: {script:.200}");
    }
    for program in ["strobe-agent", "strobe-broker", "strobe-viz"] {
        let (code, help, _) = run_with(program, &[], &["--help"]);
        assert!(
            code == 0 && help.contains("--config FILE") && help.contains("STROBE_DIR"),
            "{help}"
        );
        let (code, version, _) = run_with(program, &[], &["--version"]);
        assert!(code == 0 && version.starts_with(program), "{version}");
    }
    let (code, help, _) = run_with("strobe", &[], &["up", "--help"]);
    assert!(code == 0 && help.contains("STROBE_DIR") && help.contains("127.0.0.1:7800"), "{help}");
}

/// Who reads may go away, and a disk may be full: no program falls over that.
#[test]
fn output_that_cannot_be_written_ends_nothing() {
    for program in ["strobe", "strobe-agent", "strobe-broker", "strobe-viz"] {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("writable");
        let (status, said) = help_into(program, full.into());
        assert!(status.code().is_some() && !said.contains("panicked"), "{program}: {said}");
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let (status, said) = help_into(program, writer.into());
        assert!(status.success() && said.is_empty(), "{program}: {status}: {said}");
    }
}

fn help_into(program: &str, out: Stdio) -> (ExitStatus, String) {
    let mut command = Command::new(binary(program));
    let output = command.arg("--help").stdout(out).stderr(Stdio::piped()).output();
    let output = output.expect("it starts");
    (output.status, String::from_utf8_lossy(&output.stderr).into_owned())
}
