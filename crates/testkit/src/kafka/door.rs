//! A door: a way of its own into the cluster, through one TCP proxy per broker.
//!
//! Invariant: clients that came in by a door stay behind it, since each broker tells them the addresses of its proxies;
//! other doors, the brokers among themselves and the direct way are never touched.

use std::time::Duration;

use crate::chaos::{Direction, TcpCounts, TcpProxy};

/// The proxies in front of all brokers that one group of clients goes through.
pub struct Door {
    pub(super) name: String,
    pub(super) proxies: Vec<TcpProxy>,
}

impl Door {
    /// What a client behind this door calls `bootstrap.servers`.
    pub fn brokers(&self) -> String {
        let addresses: Vec<String> = self.proxies.iter().map(|proxy| proxy.address().to_string()).collect();
        addresses.join(",")
    }

    /// See [`TcpProxy::slow`].
    pub fn slow(&self, latency: Duration, jitter: Duration) {
        self.proxies.iter().for_each(|proxy| proxy.slow(latency, jitter));
    }

    /// See [`TcpProxy::narrow`].
    pub fn narrow(&self, bytes_per_second: u64) {
        self.proxies.iter().for_each(|proxy| proxy.narrow(bytes_per_second));
    }

    /// See [`TcpProxy::silence`].
    pub fn silence(&self, direction: Direction) {
        self.proxies.iter().for_each(|proxy| proxy.silence(direction));
    }

    /// See [`TcpProxy::refuse`].
    pub fn refuse(&self) {
        self.proxies.iter().for_each(TcpProxy::refuse);
    }

    /// See [`TcpProxy::cut`].
    pub fn cut(&self) {
        self.proxies.iter().for_each(TcpProxy::cut);
    }

    /// See [`TcpProxy::heal`].
    pub fn heal(&self) {
        self.proxies.iter().for_each(TcpProxy::heal);
    }

    /// What all its proxies have done.
    pub fn counts(&self) -> TcpCounts {
        self.proxies.iter().map(TcpProxy::counts).fold(TcpCounts::default(), |sum, one| TcpCounts {
            accepted: sum.accepted + one.accepted,
            refused: sum.refused + one.refused,
            cut: sum.cut + one.cut,
            bytes_to_server: sum.bytes_to_server + one.bytes_to_server,
            bytes_to_client: sum.bytes_to_client + one.bytes_to_client,
        })
    }
}
