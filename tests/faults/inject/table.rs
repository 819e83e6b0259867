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

/// What a fault is done to. Faults of different parts can be done at the same moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    /// Everything, or what nothing else may disturb.
    All,
    /// An instance of this service, which must soon be back.
    InstanceOf(Service),
    /// A process at a step of the protocol, which it does not come to while it is cut off.
    Step,
    /// Any of our processes.
    Processes,
    /// Kafka, or the network between it and a service.
    Log,
    /// The object store.
    Store,
}

impl Part {
    /// Whether nothing is done beside it.
    pub(crate) const fn is_alone(self) -> bool {
        matches!(self, Self::All | Self::Step)
    }

    /// Whether nothing that is not the fault's is to hold up its recovery.
    pub(crate) const fn is_timed(self) -> bool {
        matches!(self, Self::InstanceOf(_) | Self::Step)
    }
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
    /// Roughly what a run takes, recovery included.
    pub(crate) takes: Duration,
    pub(crate) part: Part,
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
            takes: Duration::from_secs(15),
            part: Part::All,
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
        Self { ground: Ground::Own, ..Self::new(name, what, Act::Whole(whole)) }
    }

    fn of(self, part: Part) -> Self {
        Self { part, ..self }
    }

    fn on(self, ground: Ground) -> Self {
        Self { ground, ..self }
    }

    fn runs(self, short: u32, long: u32) -> Self {
        Self { short, long, ..self }
    }

    fn takes(self, seconds: u64) -> Self {
        Self { takes: Duration::from_secs(seconds), ..self }
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
    faults.extend(of_processes().map(|fault| fault.of(Part::Processes)));
    faults.push(rolling_restart());
    faults.extend(of_the_log().map(|fault| fault.of(Part::Log)));
    faults.extend(of_the_store().map(|fault| fault.of(Part::Store)));
    faults.extend(by_themselves());
    faults
}

fn frozen(service: Service) -> Fault {
    let what = format!("SIGSTOP of one of two {} instances past the session timeout, then SIGCONT", service.name());
    Fault::under_load(format!("freeze-{}", service.name()), what, move |f, r| processes::freeze(f, r, service))
        .of(Part::Processes)
        .takes(20)
}

/// Nobody else disturbs it: an orderly end may wait for the log and the store.
fn rolling_restart() -> Fault {
    Fault::under_load(
        "rolling-restart",
        "SIGTERM and start of every instance, one after the other; each ends within 10 s with exit code 0",
        processes::rolling_restart,
    )
    .takes(40)
}

fn of_processes() -> [Fault; 3] {
    [
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
        )
        .takes(20),
    ]
}

fn of_the_log() -> [Fault; 8] {
    [
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
        )
        .takes(8),
        Fault::under_load("slow-network", "150 to 300 ms each way and 1 MB/s per connection for 10 s", network::slow),
        Fault::under_load("kill-broker", "kill -9 of the one broker, back after 2 s", network::kill_broker),
        Fault::under_load(
            "fail-over",
            "kill -9 of a partition's leader among three brokers, RF 3, min.insync.replicas 2",
            network::fail_over,
        )
        .on(Ground::Cluster)
        .takes(45),
    ]
}

fn of_the_store() -> [Fault; 9] {
    [
        Fault::under_load(
            "lost-commit-reply",
            "the store puts the commit, the writer gets a reset or a 500",
            store::lose_commit_reply,
        )
        .runs(3, 200)
        .takes(5),
        Fault::under_load(
            "lost-commit-reply-compaction",
            "the same, and a compaction commits before the writer hears of it",
            store::lose_commit_reply_to_compaction,
        )
        .runs(1, 60)
        .takes(10),
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
        Fault::under_load("hanging-requests", "puts to the store that are never answered", store::hang)
            .within(60)
            .takes(40),
        Fault::under_load("kill-store", "kill -9 of the store, back after 1 to 3 s", store::kill_server).takes(8),
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
    fault.of(Part::InstanceOf(service)).runs(8, 200).takes(4).within(5)
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
    Fault { over, ..fault.of(Part::Step).takes(10) }
}
