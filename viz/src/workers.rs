//! The synchronous workers: tiny_http on a Unix socket in a directory of our own (mode 0700), so
//! that nobody but the loop, which bounds and checks every request, reaches it.

use std::io::{Cursor, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use std::{fs, io, process};
use strobe_wire::message::{ApiRequest, ApiResponse};
use tiny_http::{Header, Request, Response, Server};

use crate::assets::{self, Asset};
use crate::backend::{Backend, Caller};
use crate::counters::Counters;
use crate::relay::LANE;

/// The running workers.
pub(crate) struct Workers {
    server: Arc<Server>,
    threads: Vec<JoinHandle<()>>,
    folder: PathBuf,
}

/// Who waits for the answer to what a lane carries: its request says by which it came.
#[derive(Debug)]
pub(crate) struct Callers {
    lanes: Vec<Mutex<Caller>>,
}

impl Callers {
    pub(crate) fn new(lanes: usize) -> Self {
        Self { lanes: (0..lanes).map(|_| Mutex::default()).collect() }
    }

    /// Before a request goes out by this lane: its caller.
    pub(crate) fn begin(&self, lane: usize) -> Caller {
        let caller = Caller::default();
        if let Some(place) = self.lanes.get(lane) {
            *place.lock().unwrap_or_else(PoisonError::into_inner) = caller.clone();
        }
        caller
    }

    fn of(&self, request: &Request) -> Caller {
        let place = header(request, LANE).parse().ok().and_then(|lane: usize| self.lanes.get(lane));
        let caller = place.map(|lane| lane.lock().unwrap_or_else(PoisonError::into_inner).clone());
        caller.unwrap_or_default()
    }
}

impl std::fmt::Debug for Workers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Workers").field("folder", &self.folder).finish_non_exhaustive()
    }
}

impl Workers {
    /// Binds the socket and starts a thread a lane.
    pub(crate) fn start(
        dir: &Path,
        callers: &Arc<Callers>,
        backend: &Backend,
        counters: &Arc<Counters>,
    ) -> io::Result<Self> {
        let count = callers.lanes.len();
        let folder = own_folder(dir)?;
        let server = Server::http_unix(&folder.join(SOCKET)).map_err(io::Error::other)?;
        let server = Arc::new(server);
        let mut threads = Vec::with_capacity(count);
        for index in 0..count {
            let (server, backend) = (Arc::clone(&server), backend.clone());
            let (counters, callers) = (Arc::clone(counters), Arc::clone(callers));
            let thread = std::thread::Builder::new()
                .name(format!("viz-worker-{index}"))
                .spawn(move || work(&server, &backend, &counters, &callers))?;
            threads.push(thread);
        }
        Ok(Self { server, threads, folder })
    }

    /// Where the loop connects.
    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.join(SOCKET)
    }

    /// A connection that a thread of tiny_http's serves for sure. Of several that come at once,
    /// its pool (0.12, `util/task_pool.rs`) may leave some in its queue until another ends; one
    /// that has answered is not among them, and with each asked before the next none can be.
    pub(crate) fn proven(&self) -> io::Result<UnixStream> {
        let mut stream = UnixStream::connect(self.socket())?;
        stream.set_read_timeout(Some(PROOF))?;
        stream.write_all(b"HEAD /-/healthy HTTP/1.1\r\nHost: viz\r\n\r\n")?;
        let mut head = Vec::with_capacity(256);
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") && head.len() < 4096 {
            stream.read_exact(&mut byte)?;
            head.extend_from_slice(&byte);
        }
        Ok(stream)
    }

    /// Ends the threads and removes the socket.
    pub(crate) fn stop(self) {
        for _ in &self.threads {
            self.server.unblock();
        }
        for thread in self.threads {
            if thread.join().is_err() {
                log::error!("a worker panicked");
            }
        }
        drop(self.server);
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            log::warn!("removing {}: {error}", self.folder.display());
        }
    }
}

fn work(server: &Server, backend: &Backend, counters: &Counters, callers: &Callers) {
    // `recv` fails when it is unblocked: the end. It also fails if tiny_http can accept no more;
    // the loop's connections are open since the start and go on being served, so wait on.
    loop {
        let mut request = match server.recv() {
            Ok(request) => request,
            Err(error) if error.to_string().contains("unblocked") => return,
            Err(error) => {
                log::error!("the workers' socket: {error}");
                continue;
            }
        };
        let caller = callers.of(&request);
        let response = answer(&mut request, backend, counters, &caller);
        // Never chunked: the loop relays by Content-Length.
        if let Err(error) = request.respond(response.with_chunked_threshold(usize::MAX)) {
            log::debug!("answering: {error}");
        }
    }
}

fn answer(
    request: &mut Request,
    backend: &Backend,
    counters: &Counters,
    caller: &Caller,
) -> Response<Cursor<Vec<u8>>> {
    let url = request.url().to_owned();
    let (path, query) = url.split_once('?').unwrap_or((&url, ""));
    match path {
        "/-/healthy" => text(200, "Strobe viz is healthy.\n"),
        "/-/ready" if backend.is_ready() => text(200, "Strobe viz is ready.\n"),
        "/-/ready" => text(503, &format!("{}\n", backend.trouble().unwrap_or_default())),
        "/metrics" => metrics(backend, counters, caller),
        _ if path == "/federate" || path.starts_with("/api/") => {
            match api_request(request, path, query) {
                Ok(request) => api_response(backend.api(request, caller)),
                Err(error) => text(400, &format!("the body could not be read: {error}\n")),
            }
        }
        _ => match assets::find(path) {
            Some(asset) => file(asset, request),
            None => text(404, "There is nothing here; the dashboard is at /.\n"),
        },
    }
}

fn api_request(request: &mut Request, path: &str, query: &str) -> io::Result<ApiRequest> {
    let mut body = Vec::new();
    request.as_reader().read_to_end(&mut body)?;
    let method = match request.method() {
        tiny_http::Method::Head => "GET".to_owned(),
        other => other.to_string(),
    };
    Ok(ApiRequest {
        method,
        path: path.to_owned(),
        query: query.to_owned(),
        content_type: header(request, "Content-Type"),
        content_encoding: header(request, "Content-Encoding"),
        body,
    })
}

fn api_response(answer: ApiResponse) -> Response<Cursor<Vec<u8>>> {
    Response::from_data(answer.body)
        .with_status_code(answer.status)
        .with_header(field("Content-Type", &answer.content_type))
        .with_header(field("Cache-Control", "no-store"))
}

fn metrics(backend: &Backend, counters: &Counters, caller: &Caller) -> Response<Cursor<Vec<u8>>> {
    let mut body = counters.exposition().into_bytes();
    if backend.is_ready() {
        let request = ApiRequest {
            method: "GET".to_owned(),
            path: "/metrics".to_owned(),
            ..ApiRequest::default()
        };
        let answer = backend.api(request, caller);
        if answer.status == 200 {
            body.extend_from_slice(&answer.body);
        }
    }
    Response::from_data(body)
        .with_header(field("Content-Type", "text/plain; version=0.0.4; charset=utf-8"))
}

fn file(asset: &'static Asset, request: &Request) -> Response<Cursor<Vec<u8>>> {
    let etag = format!("\"{}\"", asset.etag);
    let fresh = header(request, "If-None-Match").split(',').any(|known| {
        let known = known.trim();
        known == "*" || known.trim_start_matches("W/") == etag
    });
    let packed = asset.gzip.filter(|_| accepts_gzip(&header(request, "Accept-Encoding")));
    let response = match (fresh, packed) {
        (true, _) => Response::from_data(Vec::new()).with_status_code(304),
        (false, Some(packed)) => {
            Response::from_data(packed.to_vec()).with_header(field("Content-Encoding", "gzip"))
        }
        (false, None) => Response::from_data(asset.body.to_vec()),
    };
    response
        .with_header(field("Content-Type", assets::content_type(asset.path)))
        .with_header(field("ETag", &etag))
        .with_header(field("Vary", "Accept-Encoding"))
        .with_header(field("Cache-Control", assets::cache_control(asset.path)))
}

fn accepts_gzip(accepted: &str) -> bool {
    accepted.split(',').any(|coding| {
        let (name, quality) = coding.split_once(';').unwrap_or((coding, ""));
        let refused = matches!(quality.trim(), "q=0" | "q=0.0" | "q=0.00" | "q=0.000");
        name.trim().eq_ignore_ascii_case("gzip") && !refused
    })
}

fn text(status: u16, body: &str) -> Response<Cursor<Vec<u8>>> {
    Response::from_data(body.as_bytes().to_vec())
        .with_status_code(status)
        .with_header(field("Content-Type", "text/plain; charset=utf-8"))
        .with_header(field("Cache-Control", "no-store"))
}

fn header(request: &Request, name: &'static str) -> String {
    let found = request.headers().iter().find(|header| header.field.equiv(name));
    found.map(|header| header.value.as_str().to_owned()).unwrap_or_default()
}

fn field(name: &str, value: &str) -> Header {
    Header::from_bytes(name, value).unwrap_or_else(|()| {
        Header::from_bytes("X-Strobe", "unprintable").expect("these two are ASCII")
    })
}

/// A fresh directory that only we may enter, short enough for a socket's address (108 bytes).
fn own_folder(dir: &Path) -> io::Result<PathBuf> {
    use std::os::unix::fs::DirBuilderExt as _;
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let fits = dir.as_os_str().len() + 40 < 108 && fs::create_dir_all(dir).is_ok();
    let base = if fits { dir.to_path_buf() } else { std::env::temp_dir() };
    remove_left_behind(&base);
    let mut builder = fs::DirBuilder::new();
    builder.mode(0o700);
    for _ in 0..100 {
        // Relaxed: only uniqueness within this process counts.
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = base.join(format!("viz-{}-{number}", process::id()));
        match builder.create(&folder) {
            Ok(()) => return Ok(folder),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => {
                let why = format!("creating {}: {error}", folder.display());
                return Err(io::Error::new(error.kind(), why));
            }
        }
    }
    Err(io::Error::other(format!("no free name for a directory in {}", base.display())))
}

/// Removes the folders of processes that were killed: those in whose socket nobody listens.
fn remove_left_behind(base: &Path) {
    let Ok(entries) = fs::read_dir(base) else { return };
    for folder in entries.flatten().map(|entry| entry.path()) {
        let ours = folder.file_name().and_then(|name| name.to_str()).is_some_and(|name| {
            name.strip_prefix("viz-")
                .is_some_and(|rest| rest.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-'))
        });
        let socket = folder.join(SOCKET);
        let dead = || match UnixStream::connect(&socket) {
            Ok(_) => false,
            Err(error) => error.kind() == io::ErrorKind::ConnectionRefused,
        };
        if ours && dead() && fs::remove_file(&socket).is_ok() {
            // Whatever else lies in it is not ours to remove.
            let _ = fs::remove_dir(&folder);
        }
    }
}

const SOCKET: &str = "http.sock";
/// A worker that answers nothing for so long at start never will.
const PROOF: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn what_killed_processes_left_behind_is_removed_and_nothing_else() {
        let base = std::env::temp_dir().join(format!("viz-left-{}", process::id()));
        let make = |name: &str| {
            fs::create_dir_all(base.join(name)).unwrap();
            UnixListener::bind(base.join(name).join(SOCKET)).unwrap()
        };
        drop(make("viz-1-0"));
        drop(make("viz-notes"));
        let _running = make("viz-2-0");
        remove_left_behind(&base);
        let there = |name: &str| base.join(name).exists();
        let left = (there("viz-1-0"), there("viz-notes"), there("viz-2-0"));
        fs::remove_dir_all(&base).unwrap();
        assert_eq!(left, (false, true, true));
    }
}
