//! When a link wants to be woken.

use super::*;

/// Each keep-alive armed a loss timer, and its entry stayed when the acknowledgement came: the
/// agent woke once a tick for nothing.
#[test]
fn a_timer_that_is_needed_no_more_wakes_nobody() {
    let ca = authority();
    let mut pair = Pair::new(&server(&ca), &agent(&ca));
    pair.connect(&Dial::With(Alpn::Agent));
    pair.connected_at_server();
    let quiet = pair.now + Duration::from_secs(10);
    while pair.now < quiet {
        assert!(pair.step());
    }
    let (end, sent, mut steps) = (pair.now + Duration::from_secs(60), pair.sent, 0);
    while pair.now < end {
        assert!(pair.step());
        steps += 1;
    }
    // A datagram is a timer's and an arrival's.
    assert!(steps <= 2 * (pair.sent - sent), "{steps} steps for {} datagrams", pair.sent - sent);
}
