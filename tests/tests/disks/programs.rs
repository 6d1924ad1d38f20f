//! Clusters of brokers that are each started in a way of its own.

use super::support::{Broker, Cluster};
use std::path::Path;
use strobe_tests::free_address;

impl Cluster {
    /// A broker of each program, beginning on what `fill` leaves in its directory; a single one is no cluster.
    pub(crate) fn of_programs(
        name: &str,
        programs: &[Vec<String>],
        fill: impl Fn(usize, &Path),
    ) -> Self {
        let start = |(at, program): (usize, &Vec<String>)| {
            let program: Vec<&str> = program.iter().map(String::as_str).collect();
            let mut broker =
                Broker::before_its_start(&format!("{name}-{at}"), free_address(), &program);
            fill(at, broker.folder.path());
            broker.begin();
            broker
        };
        let mut brokers: Vec<Broker> = programs.iter().enumerate().map(start).collect();
        match brokers.pop() {
            Some(broker) if brokers.is_empty() => Self::before_init(broker),
            last => Self::made_of(brokers.into_iter().chain(last).collect()),
        }
    }

    pub(crate) fn count(&self) -> usize {
        self.brokers.len()
    }
}
