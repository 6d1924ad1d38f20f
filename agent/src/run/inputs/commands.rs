//! Commands: each in a process group of its own, killed as a group at its deadline, reaped when it has
//! ended, and never started again before that.
//!
//! A group's number is free for others once its leader is reaped, so the group is killed before that.
//! A child gets no environment but PATH and LANG: the agent's has its token.

use super::{COMMAND, Counted, Turn, after, first_ns, token};
use crate::input::Inputs;
use crate::input::board::Room;
use crate::input::exec::{Command, Ended};
use crate::sampler::Tick;
use crate::schemas::Table;
use mio::Interest;
use mio::unix::pipe::Receiver;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use std::io::{ErrorKind, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Stdio};
use std::sync::Arc;

/// All of them.
pub(super) struct Commands(Vec<Running>);

struct Running {
    command: Command,
    due_ns: u64,
    state: State,
}

enum State {
    Idle,
    /// Due, but too many others run.
    Waiting,
    Alive(Box<Alive>),
    /// Told of already; its process has not ended yet, though it was killed.
    Dying(Box<Child>),
}

struct Alive {
    child: Child,
    group: Pid,
    /// None at its end.
    output: Option<Receiver>,
    bytes: Vec<u8>,
    began: Tick,
    ready: bool,
}

impl Commands {
    pub(super) fn new(inputs: &Inputs, room: &Room, table: &Arc<Table>, now_ns: u64) -> Self {
        let running = |config: &crate::input::config::ExecConfig| Running {
            due_ns: first_ns(&config.name, config.interval_ms, now_ns),
            command: Command::new(config.clone(), room.clone(), Arc::clone(table)),
            state: State::Idle,
        };
        Self(inputs.execs.iter().map(running).collect())
    }

    pub(super) fn ready(&mut self, index: usize) {
        if let Some(Running { state: State::Alive(alive), .. }) = self.0.get_mut(index) {
            alive.ready = true;
        }
    }

    pub(super) fn turn(&mut self, turn: &mut Turn<'_>) -> Option<u64> {
        let lives = |state: &State| matches!(state, State::Alive(_) | State::Dying(_));
        let mut alive = self.0.iter().filter(|running| lives(&running.state)).count();
        let mut next_ns = None;
        for (index, running) in self.0.iter_mut().enumerate() {
            let was = lives(&running.state);
            let due_ns = running.turn(index, alive < RUNNING_MAX, turn);
            match (was, lives(&running.state)) {
                (false, true) => alive += 1,
                (true, false) => alive -= 1,
                _ => {}
            }
            next_ns = Some(next_ns.map_or(due_ns, |next: u64| next.min(due_ns)));
        }
        next_ns
    }

    /// The agent ends.
    pub(super) fn kill_all(&mut self) {
        for running in &mut self.0 {
            if let State::Alive(alive) = &mut running.state {
                kill(alive.group);
                drop(alive.child.try_wait());
            }
        }
    }

    pub(super) fn counted(&self) -> Vec<Counted> {
        let counted = |Running { command, .. }: &Running| Counted {
            input: format!("exec/{}", command.config.name),
            taken: None,
            refused: [
                ("failed", command.failed),
                ("series", command.refused()),
                ("queue", command.dropped),
                ("", 0),
            ],
        };
        self.0.iter().map(counted).collect()
    }
}

impl Running {
    /// When it wants another turn.
    fn turn(&mut self, index: usize, may_start: bool, turn: &mut Turn<'_>) -> u64 {
        let now_ns = turn.now.boottime_ns;
        if self.due_ns <= now_ns {
            self.due_ns = after(self.due_ns, self.command.config.interval_ms, now_ns);
            if matches!(self.state, State::Idle) {
                self.state = State::Waiting;
            }
        }
        if matches!(self.state, State::Waiting) && may_start {
            match start(&self.command.config.command, index, turn) {
                Ok(alive) => self.state = State::Alive(Box::new(alive)),
                Err(why) => self.over(&Ended::Otherwise(why), &[], turn.now, turn),
            }
        }
        if let State::Dying(child) = &mut self.state
            && !matches!(child.try_wait(), Ok(None))
        {
            self.state = State::Idle;
        }
        self.listen(turn);
        match &self.state {
            State::Idle => self.due_ns,
            // Another one ends first, which is a turn.
            State::Waiting => now_ns + LOOK_NS,
            State::Alive(alive) if alive.ready => 0,
            State::Alive(alive) => {
                let look_ns = if alive.output.is_none() { ENDING_NS } else { LOOK_NS };
                (now_ns + look_ns).min(self.deadline_ns(alive.began))
            }
            State::Dying(_) => now_ns + LOOK_NS,
        }
    }

    fn listen(&mut self, turn: &mut Turn<'_>) {
        let State::Alive(alive) = &mut self.state else { return };
        let most = self.command.config.bytes_max;
        if alive.ready {
            alive.read(turn.buffer, most);
        }
        let (began, too_much) = (alive.began, most < alive.bytes.len());
        let code = alive.exit();
        // What was left in the pipe when the leader ended is its own.
        if code.is_some() && alive.output.is_some() && !too_much {
            alive.read(turn.buffer, most);
        }
        let late = self.deadline_ns(began) <= turn.now.boottime_ns;
        let ended = match code {
            _ if too_much => Ended::Otherwise(format!("it printed more than {most} bytes")),
            Some(ended) => ended,
            None if late => {
                Ended::Otherwise(format!("killed after {} ms", self.command.config.timeout_ms))
            }
            None => return,
        };
        let State::Alive(alive) = std::mem::replace(&mut self.state, State::Idle) else { return };
        let Alive { mut child, group, bytes, .. } = *alive;
        // Whoever it left behind goes with it; its leader is not reaped before.
        kill(group);
        if matches!(child.try_wait(), Ok(None)) {
            self.state = State::Dying(Box::new(child));
        }
        self.over(&ended, &bytes, began, turn);
    }

    fn over(&mut self, ended: &Ended, output: &[u8], began: Tick, turn: &Turn<'_>) {
        if matches!(self.state, State::Waiting) {
            self.state = State::Idle;
        }
        let took_ns = turn.now.boottime_ns.saturating_sub(began.boottime_ns);
        let was_up = self.command.why.is_none();
        self.command.ended(turn.now, ended, output, took_ns, turn.outbox);
        let name = &self.command.config.name;
        match &self.command.why {
            Some(why) if was_up => log::warn!("exec {name}: {why}"),
            None if !was_up => log::info!("exec {name}: good again"),
            _ => {}
        }
    }

    fn deadline_ns(&self, began: Tick) -> u64 {
        began.boottime_ns.saturating_add(self.command.config.timeout_ms * 1_000_000)
    }
}

impl Alive {
    /// Reads what is there, and no more than one byte above `most`.
    fn read(&mut self, buffer: &mut [u8], most: usize) {
        let Some(output) = &mut self.output else { return };
        for _ in 0..READS_MAX {
            match output.read(buffer) {
                Ok(0) => {
                    (self.output, self.ready) = (None, false);
                    return;
                }
                Ok(length) => {
                    let room = (most + 1).saturating_sub(self.bytes.len()).min(length);
                    self.bytes.extend_from_slice(buffer.get(..room).unwrap_or(&[]));
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    self.ready = false;
                    if error.kind() != ErrorKind::WouldBlock {
                        self.output = None;
                    }
                    return;
                }
            }
        }
    }

    /// How the leader has ended, if it has; it is not reaped by this.
    fn exit(&self) -> Option<Ended> {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        match waitid(Id::Pid(self.group), flags) {
            Ok(WaitStatus::StillAlive) => None,
            Ok(WaitStatus::Exited(_, code)) => Some(Ended::Code(code)),
            Ok(WaitStatus::Signaled(_, signal, _)) => {
                Some(Ended::Otherwise(format!("ended by {signal}")))
            }
            Ok(_) => None,
            Err(why) => Some(Ended::Otherwise(format!("it cannot be waited for: {why}"))),
        }
    }
}

fn start(command: &[String], index: usize, turn: &Turn<'_>) -> Result<Alive, String> {
    let [program, arguments @ ..] = command else { return Err("no command".to_owned()) };
    let mut process = std::process::Command::new(program);
    process
        .args(arguments)
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LANG", "C")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0);
    let mut child = strobe_wire::program::spawn(&mut process)
        .map_err(|why| format!("{program} does not start: {why}"))?;
    let group = Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX));
    let pipe = child.stdout.take().ok_or("it has no output")?;
    let mut output = Receiver::from(pipe);
    let heard = output.set_nonblocking(true).and_then(|()| {
        turn.registry.register(&mut output, token(COMMAND, index), Interest::READABLE)
    });
    if let Err(why) = heard {
        kill(group);
        drop(child.wait());
        return Err(format!("its output cannot be heard: {why}"));
    }
    let output = Some(output);
    Ok(Alive { child, group, output, bytes: Vec::new(), began: turn.now, ready: true })
}

fn kill(group: Pid) {
    // It may have ended by itself.
    let _ = killpg(group, Signal::SIGKILL);
}

const RUNNING_MAX: usize = 8;
const READS_MAX: usize = 16;
/// Between looks whether a command has ended that says nothing.
const LOOK_NS: u64 = 250_000_000;
/// Its output is whole: it ends any moment.
const ENDING_NS: u64 = 5_000_000;
