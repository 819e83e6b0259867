//! Free TCP ports for servers that tests start, stop and start again.
//!
//! Invariant: a port lies below the range the kernel gives to outgoing connections. A client that keeps trying to reach
//! a stopped server could otherwise be given the server's own port and end up connected to itself.
//! Absent on purpose: a reservation. Two processes may pick the same port; whoever starts a server tries again.

use std::net::TcpListener;

use anyhow::{Result, bail};

use crate::seed::{Random, entropy};

const LOWEST: u64 = 10_240;
const HIGHEST_FALLBACK: u64 = 32_000;
const ATTEMPTS: usize = 1_000;

/// A port of 127.0.0.1 that nothing listens on at this moment.
pub fn free_port() -> Result<u16> {
    let mut random = Random::new(entropy());
    let highest = first_ephemeral().unwrap_or(HIGHEST_FALLBACK).max(LOWEST + 1);
    for _ in 0..ATTEMPTS {
        let port = u16::try_from(LOWEST + random.below(highest - LOWEST))?;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free port between {LOWEST} and {highest} after {ATTEMPTS} attempts")
}

fn first_ephemeral() -> Option<u64> {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
    range.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_free_port_can_be_bound() {
        let port = free_port().expect("some port is free");
        TcpListener::bind(("127.0.0.1", port)).expect("the port is free");
    }
}
