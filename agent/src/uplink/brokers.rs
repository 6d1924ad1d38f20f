//! Which broker is dialled next.
//!
//! The list is what was configured, then what a broker told of its cluster. Whoever is not the owner of
//! this host's shard says who is, and is left for that one; when a connection fails, the next of the
//! list is asked. A broker that was left in silence is named to the next one, so that it does not
//! send us straight back to it.

/// The choice.
#[derive(Debug)]
pub(super) struct Brokers {
    /// As configured; never empty.
    own: Vec<String>,
    list: Vec<String>,
    /// Index into `list` of the next dial.
    turn: usize,
    /// Where a broker sent us; forgotten after a failure.
    redirect: Option<String>,
    redirects: u32,
    silent: Option<String>,
    news: Option<Vec<String>>,
}

impl Brokers {
    pub(super) fn new(own: Vec<String>) -> Self {
        assert!(!own.is_empty(), "the configuration was checked for a broker");
        let list = own.clone();
        Self { own, list, turn: 0, redirect: None, redirects: 0, silent: None, news: None }
    }

    /// Whom to dial.
    pub(super) fn target(&self) -> &str {
        match &self.redirect {
            Some(broker) => broker,
            None => self.list.get(self.turn % self.list.len()).map_or("", String::as_str),
        }
    }

    /// Whether there is another one to go to.
    pub(super) fn has_choice(&self) -> bool {
        1 < self.list.len()
    }

    /// How many there are to be tried before the waits grow.
    pub(super) fn count(&self) -> usize {
        self.list.len()
    }

    /// Who was left because nothing was heard of it.
    pub(super) fn silent(&self) -> &str {
        self.silent.as_deref().unwrap_or_default()
    }

    /// The connection failed; `silent`: because nothing was heard.
    pub(super) fn failed(&mut self, silent: bool) {
        let left = self.target().to_owned();
        // One that we were sent to may also be the one whose turn it is.
        if self.redirect.take().is_none() || self.target() == left {
            self.turn = self.turn.wrapping_add(1);
        }
        if silent {
            self.silent = Some(left);
        }
    }

    /// A broker took us.
    pub(super) fn welcomed(&mut self) {
        (self.redirects, self.silent) = (0, None);
    }

    /// A broker sends us to another one; whether we go there.
    pub(super) fn redirected(&mut self, broker: String) -> bool {
        self.redirects += 1;
        if REDIRECTS_MAX < self.redirects || ADDRESS_BYTES_MAX < broker.len() {
            self.redirects = 0;
            return false;
        }
        self.redirect = Some(broker);
        true
    }

    /// A broker says where all of them are.
    pub(super) fn told(&mut self, told: Vec<String>) {
        let current = self.target().to_owned();
        let mut list = self.own.clone();
        for broker in told.into_iter().take(BROKERS_MAX) {
            if broker.len() <= ADDRESS_BYTES_MAX && !list.contains(&broker) {
                list.push(broker);
            }
        }
        if list == self.list {
            return;
        }
        // Not away from where we are.
        self.turn = list.iter().position(|broker| *broker == current).unwrap_or(0);
        self.news = Some(list.clone());
        self.list = list;
    }

    /// The list, once after it changed.
    pub(super) fn news(&mut self) -> Option<Vec<String>> {
        self.news.take()
    }
}

const REDIRECTS_MAX: u32 = 4;
/// The longest DNS name, a colon and a port.
const ADDRESS_BYTES_MAX: usize = 253 + 6;
/// Members of a cluster.
const BROKERS_MAX: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_owner_is_left_for_the_others() {
        let mut brokers = Brokers::new(vec!["a:1".to_owned()]);
        assert!(!brokers.has_choice());
        brokers.told(vec!["a:1".to_owned(), "b:1".to_owned(), "c:1".to_owned()]);
        assert_eq!(brokers.news().unwrap(), ["a:1", "b:1", "c:1"]);
        assert_eq!((brokers.news(), brokers.target()), (None, "a:1"));
        assert!(brokers.redirected("b:1".to_owned()));
        assert_eq!(brokers.target(), "b:1");
        brokers.failed(true);
        assert_eq!((brokers.target(), brokers.silent()), ("a:1", "b:1"));
        brokers.failed(false);
        assert_eq!((brokers.target(), brokers.silent()), ("b:1", "b:1"));
        brokers.welcomed();
        assert_eq!(brokers.silent(), "");
        // Sent there, and told of all while there.
        assert!(brokers.redirected("c:1".to_owned()));
        brokers.told(vec!["c:1".to_owned(), "b:1".to_owned()]);
        assert_eq!(brokers.target(), "c:1");
        brokers.failed(true);
        assert_eq!(brokers.target(), "b:1", "not the silent one again");
        brokers.welcomed();
        let circles = (0..5).take_while(|_| brokers.redirected("c:1".to_owned())).count();
        assert_eq!(circles, 4);
    }
}
