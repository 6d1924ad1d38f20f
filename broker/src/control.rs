//! The operator's door: a Unix socket in the state directory, for the user who owns it (mode 0600).
//!
//! One [`ApiRequest`] and its [`ApiResponse`] a connection, framed as on QUIC. What only the owner
//! may do (making tokens) is answered here and nowhere else.

use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{Shutdown, getsockopt, shutdown};
use nix::unistd::{Uid, User};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;
use strobe_wire::message::{ApiRequest, ApiResponse, Incoming, Message, Reader, encode};

/// The socket's name in the state directory.
pub const NAME: &str = "control.sock";

/// Asks the broker that runs on the state directory `dir`.
///
/// # Errors
/// No broker runs there, or it does not answer.
pub fn ask(dir: &Path, request: ApiRequest, wait: Duration) -> io::Result<ApiResponse> {
    let mut stream = within(dir, |path| UnixStream::connect(path))?;
    stream.set_read_timeout(Some(wait))?;
    stream.set_write_timeout(Some(wait))?;
    stream.write_all(&encode(&Message::ApiRequest(request)))?;
    match receive(&mut stream)? {
        Message::ApiResponse(response) => Ok(response),
        _ => Err(io::Error::other("the broker's answer is none")),
    }
}

/// Binds the socket in `dir`; a dead one of an earlier life is replaced. The caller holds the
/// directory's lock, so no living one is.
pub(crate) fn bind(dir: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(dir.join(NAME)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = within(dir, |path| UnixListener::bind(path))?;
    std::fs::set_permissions(dir.join(NAME), std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Ends the waiting for connections, whatever became of the socket's name.
pub(crate) fn close(listener: &UnixListener) {
    if let Err(error) = shutdown(listener.as_raw_fd(), Shutdown::Both) {
        log::error!("the control socket stays open: {error}");
    }
}

/// Reads one request and writes its answer; `answer` is told which user of this machine asks.
pub(crate) fn serve(
    stream: &mut UnixStream,
    answer: impl FnOnce(ApiRequest, &str) -> ApiResponse,
) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    match receive(stream)? {
        Message::ApiRequest(request) => {
            let who = user(stream);
            stream.write_all(&encode(&Message::ApiResponse(answer(request, &who))))
        }
        _ => Err(io::Error::other("not a request")),
    }
}

/// The user at the other end, by the kernel's word.
fn user(stream: &UnixStream) -> String {
    let Ok(peer) = getsockopt(stream, PeerCredentials) else { return "unknown".to_owned() };
    let uid = peer.uid();
    match User::from_uid(Uid::from_raw(uid)) {
        Ok(Some(user)) => format!("{} (uid {uid})", user.name),
        _ => format!("uid {uid}"),
    }
}

fn receive(stream: &mut UnixStream) -> io::Result<Message> {
    let mut reader = Reader::default();
    let mut buffer = vec![0; 64 << 10];
    loop {
        match reader.pull().map_err(io::Error::other)? {
            Some(Incoming::Control(message)) => return Ok(*message),
            Some(Incoming::Frame(_)) => return Err(io::Error::other("a frame is no answer")),
            None => {}
        }
        match stream.read(&mut buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => reader.push(buffer.get(..read).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Socket addresses end at 107 bytes and paths do not: a long one goes by its open directory.
fn within<T>(dir: &Path, act: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    let path = dir.join(NAME);
    if path.as_os_str().len() <= ADDRESS_BYTES_MAX {
        return act(&path);
    }
    let open = std::fs::File::open(dir)?;
    act(&PathBuf::from(format!("/proc/self/fd/{}/{NAME}", open.as_raw_fd())))
}

const ADDRESS_BYTES_MAX: usize = 107;
const PATIENCE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_answered_even_in_a_very_long_directory() {
        let top = std::env::temp_dir().join(format!("strobe-control-{}", std::process::id()));
        let dir = top.join("x".repeat(120));
        std::fs::create_dir_all(&dir).unwrap();
        let listener = bind(&dir).unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            serve(&mut stream, |request, who| ApiResponse {
                status: 200,
                content_type: String::new(),
                body: format!("{} {who}", request.path).into_bytes(),
            })
        });
        let request = ApiRequest { path: "/x".into(), ..ApiRequest::default() };
        let answer = ask(&dir, request, Duration::from_secs(5)).unwrap();
        let uid = format!("uid {}", nix::unistd::getuid());
        let said = String::from_utf8(answer.body).unwrap();
        assert!(said.starts_with("/x ") && said.contains(&uid), "{said}");
        server.join().unwrap().unwrap();
        std::fs::remove_dir_all(top).unwrap();
    }
}
