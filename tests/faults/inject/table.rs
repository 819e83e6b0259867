//! All faults, as one table: name, what is done, bound of recovery, how many runs in the short and the long set.

use std::time::Duration;

use anyhow::Result;
use delivery::CrashPoint;
use testkit::{chaos::Direction, seed::Random};

use super::{Run, network, processes, store};
use crate::{field::Field, judge::Over, service::Service, whole};

/// What a fault is tried on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Ground {
    /// One broker, shared by many faults in a row.
    OneBroker,
    /// Three brokers, three replicas, two of which must have a message.
    Cluster,
    /// A field the fault sets up for itself and leaves broken.
    Own,
}

/// Does a fault once and waits for the recovery.
type Inject = Box<dyn Fn(&Field, &mut Random) -> Result<Run> + Send + Sync>;
/// Does everything itself, from set-up to judgement.
pub(crate) type Whole = fn(&whole::Task) -> Result<whole::Outcome>;

/// How a fault is done.
pub(crate) enum Act {
    /// Under load, in a field that others have used and will use.
    UnderLoad(Inject),
    /// By itself.
    Whole(Whole),
}

/// A row of the table.
pub(crate) struct Fault {
    pub(crate) name: String,
    pub(crate) what: String,
    pub(crate) ground: Ground,
    pub(crate) over: Over,
    /// 95 of a hundred recoveries are to be no longer.
    pub(crate) bound: Duration,
    pub(crate) short: u32,
    pub(crate) long: u32,
    /// Runs between two judgements.
    pub(crate) block: u32,
    /// Faults that run side by side, and are judged together.
    pub(crate) beside_others: bool,
    pub(crate) act: Act,
}

impl Fault {
    fn new(name: impl Into<String>, what: impl Into<String>, act: Act) -> Self {
        Self {
            name: name.into(),
            what: what.into(),
            ground: Ground::OneBroker,
            over: Over::Topic,
            bound: Duration::from_secs(15),
            short: 1,
            long: 30,
            block: 15,
            beside_others: false,
            act,
        }
    }

    fn under_load(
        name: impl Into<String>,
        what: impl Into<String>,
        inject: impl Fn(&Field, &mut Random) -> Result<Run> + Send + Sync + 'static,
    ) -> Self {
        Self::new(name, what, Act::UnderLoad(Box::new(inject)))
    }

    fn whole(name: &str, what: &str, whole: Whole) -> Self {
        Self { ground: Ground::Own, block: 1, ..Self::new(name, what, Act::Whole(whole)) }
    }

    /// Whether both can be done in one block.
    pub(crate) fn shares_with(&self, other: &Self) -> bool {
        self.ground == other.ground && self.ground != Ground::Own && self.over == other.over
    }

    fn on(self, ground: Ground) -> Self {
        Self { ground, ..self }
    }

    fn runs(self, short: u32, long: u32, block: u32) -> Self {
        Self { short, long, block, ..self }
    }

    fn within(self, seconds: u64) -> Self {
        Self { bound: Duration::from_secs(seconds), ..self }
    }
}

/// The table.
pub(crate) fn catalogue() -> Vec<Fault> {
    let mut faults: Vec<Fault> = Service::ALL.map(killed).into();
    faults.extend(CrashPoint::ALL.map(crashed));
    faults.extend(Service::HOPS.map(frozen));
    faults.extend(of_processes());
    faults.extend(of_the_network());
    faults.extend(of_the_store());
    faults.extend(by_themselves());
    faults
}

fn frozen(service: Service) -> Fault {
    let what = format!("SIGSTOP of one of two {} instances past the session timeout, then SIGCONT", service.name());
    Fault::under_load(format!("freeze-{}", service.name()), what, move |f, r| processes::freeze(f, r, service))
}

fn of_processes() -> Vec<Fault> {
    vec![
        Fault::under_load(
            "rolling-restart",
            "SIGTERM and start of every instance, one after the other; each ends within 10 s with exit code 0",
            processes::rolling_restart,
        ),
        Fault::under_load(
            "twins",
            "a second process with the same configuration and identity for 8 s",
            processes::twin,
        ),
        Fault::under_load(
            "rebalance-storm",
            "three members that join and are killed, 3 s each",
            processes::rebalance_storm,
        ),
        Fault::under_load(
            "set-clock",
            "the clock of a running process set ten minutes ahead or behind, and right again after 4 s",
            processes::set_clock,
        ),
    ]
}

fn of_the_network() -> Vec<Fault> {
    vec![
        Fault::under_load("cut", "all connections of a service to Kafka reset, and refused for 6 s", network::cut),
        Fault::under_load(
            "silence-both-ways",
            "nothing between a service and Kafka for 13 s, connections open",
            |f, r| network::silence(f, r, Direction::Both),
        ),
        Fault::under_load("silence-to-kafka", "nothing from a service to Kafka for 13 s", |f, r| {
            network::silence(f, r, Direction::ToServer)
        }),
        Fault::under_load("silence-from-kafka", "nothing from Kafka to a service for 13 s", |f, r| {
            network::silence(f, r, Direction::ToClient)
        }),
        Fault::under_load(
            "lost-kafka-replies",
            "Kafka's answers to a service held back, then its connections reset",
            network::lose_replies,
        ),
        Fault::under_load("slow-network", "150 to 300 ms each way and 1 MB/s per connection for 10 s", network::slow),
        Fault::under_load("kill-broker", "kill -9 of the one broker, back after 2 s", network::kill_broker)
            .runs(1, 30, 5),
        Fault::under_load(
            "fail-over",
            "kill -9 of a partition's leader among three brokers, RF 3, min.insync.replicas 2",
            network::fail_over,
        )
        .on(Ground::Cluster)
        .runs(1, 30, 5),
    ]
}

fn of_the_store() -> Vec<Fault> {
    vec![
        Fault::under_load(
            "lost-commit-reply",
            "the store puts the commit, the writer gets a reset or a 500",
            store::lose_commit_reply,
        )
        .runs(3, 200, 50),
        Fault::under_load(
            "lost-commit-reply-compaction",
            "the same, and a compaction commits before the writer hears of it",
            store::lose_commit_reply_to_compaction,
        )
        .runs(1, 60, 15),
        Fault::under_load(
            "lost-put-replies",
            "one in five puts of any kind is done and its reply lost, for 8 s",
            store::lose_put_replies,
        ),
        Fault::under_load(
            "commit-conflicts",
            "409 and 412 on commits although nobody was first, for 8 s",
            store::conflicts,
        ),
        Fault::under_load("store-overload", "503 SlowDown (30 %), 429 (10 %) and 500 (5 %) for 8 s", store::overload),
        Fault::under_load("torn-answers", "one in four answers of the store ends in the middle, for 8 s", store::tear),
        Fault::under_load(
            "slow-first-byte",
            "one in three answers of the store comes 1.5 s late, for 8 s",
            store::delay,
        ),
        Fault::under_load("hanging-requests", "puts to the store that are never answered", store::hang).within(60),
        Fault::under_load("kill-store", "kill -9 of the store, back after 1 to 3 s", store::kill_server),
    ]
}

/// Those that need a field of their own.
fn by_themselves() -> Vec<Fault> {
    vec![
        Fault::whole("partitions-added", "the topic grows from 4 to 6 partitions under load", whole::partitions_added),
        Fault::whole(
            "topic-recreated",
            "the topic deleted and created again: a clear error, nothing repeated or lost",
            whole::topic_recreated,
        ),
        Fault::whole(
            "overtaken",
            "retention deletes what ingestion has not read: a halt that names both positions",
            whole::overtaken,
        ),
        Fault::whole("full-disk", "the disk of the embedded log full, then free again", whole::full_disk),
        Fault::whole(
            "foreign-writer",
            "Delta for Python appends to the same table all the while",
            whole::foreign_writer,
        ),
    ]
}

fn killed(service: Service) -> Fault {
    let what = format!("kill -9 of one of two {} instances, restarted at once", service.name());
    let fault = Fault::under_load(format!("kill-{}", service.name()), what, move |f, r| processes::kill(f, r, service));
    Fault { beside_others: true, ..fault.runs(8, 200, 25).within(5) }
}

fn crashed(point: CrashPoint) -> Fault {
    use CrashPoint as At;
    let services: &'static [Service] = match point {
        At::RequestDurable | At::RejectedDurable => &[Service::Ingestion],
        At::DataQueued | At::OutputDurable | At::CheckpointPut => &[Service::Ingestion, Service::Transformation],
        At::FilesUploaded | At::CommitChecked | At::CommitPut | At::LogCheckpoint => &[Service::Storage],
    };
    let name = format!("crash-{}", point.name().replace('_', "-"));
    let what = format!("the process ends itself at step `{}`", point.name());
    let fault = Fault::under_load(name, what, move |field, random| {
        let service = *random.pick(services);
        processes::crash(field, random, service, point)
    });
    let over = if point == At::RequestDurable { Over::Http } else { Over::Topic };
    Fault { over, ..fault.runs(1, 30, 10) }
}
