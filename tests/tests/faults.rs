//! Real processes, real agents and a bad network between them, or a Redis that fails; at the end the judge
//! counts: of what was acknowledged nothing is lost, and nothing is answered twice.

#[expect(dead_code, reason = "other tests use the rest of it")]
#[path = "shared/redis.rs"]
mod server;
#[expect(dead_code, reason = "other tests use the rest of it")]
mod support;

#[path = "faults/machines.rs"]
mod machines;
#[path = "faults/network.rs"]
mod network;
#[path = "faults/redis.rs"]
mod redis;
