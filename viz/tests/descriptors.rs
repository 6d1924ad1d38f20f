//! tiny_http alone stops accepting for good at the first EMFILE. Ours waits and goes on.
//! Alone in its binary: the limit is the whole process's.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use strobe_viz::backend::Backend;
use strobe_viz::remote::pair;
use strobe_viz::{Config, Viz};

fn metrics(addr: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(addr)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[test]
fn running_out_of_descriptors_is_survived() {
    let (remote, _end) = pair();
    let dir = std::env::temp_dir().join(format!("viz-emfile-{}", std::process::id()));
    let config = Config::plain("127.0.0.1:0".parse().unwrap(), dir.clone());
    let viz = Viz::start(config, Backend::Remote(remote)).unwrap();
    let addr = viz.addr();
    assert!(metrics(addr).unwrap().contains("strobe_viz_accept_failed_total 0\n"));
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, 64, hard).unwrap();
    let mut clients: Vec<TcpStream> =
        (0..64).map_while(|_| TcpStream::connect(addr).ok()).collect();
    // Each connect takes the last descriptor before the loop can: its accept fails.
    for _ in 0..20 {
        clients.pop();
        while let Ok(client) = TcpStream::connect(addr) {
            clients.push(client);
        }
        std::thread::yield_now();
    }
    drop(clients);
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
    let after = metrics(addr).unwrap();
    assert!(after.starts_with("HTTP/1.1 200 "), "{after}");
    assert!(!after.contains("strobe_viz_accept_failed_total 0\n"), "it did run out: {after}");
    viz.stop();
    std::fs::remove_dir(&dir).unwrap();
}
