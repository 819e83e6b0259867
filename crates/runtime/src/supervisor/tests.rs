use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use topics::{NewMessage, TopicSettings, memory::MemoryLog};

use super::*;
use crate::catalog::CatalogView;

/// What one life does once it has begun at its partition's start.
type Script = Arc<dyn Fn(usize, Stop, Progress, u32) -> BoxFuture<'static, Result<(), TaskError>> + Send + Sync>;

/// One topic, one task a partition, and lives that follow a script.
struct Scripted {
    topic: TopicName,
    script: Script,
    lives: Arc<AtomicUsize>,
}

impl Stage for Scripted {
    fn name(&self) -> &str {
        "scripted"
    }

    fn topics(&self, _graph: &Graph) -> BTreeSet<TopicName> {
        BTreeSet::from([self.topic.clone()])
    }

    fn tasks(&self, _graph: &Arc<Graph>, assigned: &BTreeSet<(TopicName, u32)>) -> Vec<TaskPlan> {
        let plan = |(_, partition): &(TopicName, u32)| {
            let (script, lives, partition) = (Arc::clone(&self.script), Arc::clone(&self.lives), *partition);
            let start = move |stop, progress| script(lives.fetch_add(1, Ordering::SeqCst), stop, progress, partition);
            TaskPlan { key: partition.to_string(), start: Arc::new(start) }
        };
        assigned.iter().map(plan).collect()
    }

    fn ensure(&self, _graph: Arc<Graph>) -> BoxFuture<'static, Result<(), TaskError>> {
        async { Ok(()) }.boxed()
    }
}

struct World {
    log: Arc<MemoryLog>,
    topic: TopicName,
    health: Health,
    stop: Stop,
    lives: Arc<AtomicUsize>,
    _catalog: watch::Sender<Arc<CatalogView>>,
    catalog: CatalogReceiver,
}

impl World {
    async fn new(partitions: u32) -> Self {
        let (_catalog, catalog) = watch::channel(Arc::default());
        let topic = TopicName::new("orders").unwrap();
        let log = Arc::new(MemoryLog::new());
        log.create(&topic, &TopicSettings { partitions, ..TopicSettings::default() }).await.unwrap();
        let (health, stop, lives) = (Health::new(), Stop::new(), Arc::default());
        Self { log, topic, health, stop, lives, _catalog, catalog }
    }

    /// Supervises until asked to stop.
    async fn supervise(&self, script: Script) {
        let stage = Scripted { topic: self.topic.clone(), script, lives: Arc::clone(&self.lives) };
        let context = StageContext {
            log: Arc::clone(&self.log) as Arc<dyn Log>,
            group: "g".into(),
            catalog: self.catalog.clone(),
            health: self.health.clone(),
            settlements: Settlements::default(),
        };
        supervise(Arc::new(stage), context, self.stop.clone()).await.unwrap();
    }

    async fn send(&self, partition: u32) {
        self.log.appender().append(&self.topic, partition, NewMessage::of("x")).await.unwrap().await.unwrap();
    }

    fn report(&self) -> String {
        format!("{:?}", self.health.report())
    }

    /// Looks every second until the report holds this; how long that took.
    async fn shown(&self, text: &str) -> Duration {
        let start = Instant::now();
        while !self.report().contains(text) {
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert!(start.elapsed() < Duration::from_secs(600), "`{text}` was never shown: {}", self.report());
        }
        start.elapsed()
    }
}

fn topic() -> TopicName {
    TopicName::new("orders").unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_task_that_stands_still_with_input_is_shown_begun_anew_and_not_ready_before_it_moves() {
    let world = World::new(1).await;
    world.send(0).await;
    let (go, wait) = watch::channel(false);
    let script: Script = Arc::new(move |life, stop, progress, partition| {
        let mut wait = wait.clone();
        async move {
            progress.reached(&topic(), partition, 0);
            if life == 0 {
                // Stuck, and deaf.
                return std::future::pending().await;
            }
            drop(wait.wait_for(|go| *go).await);
            progress.reached(&topic(), partition, 1);
            stop.stopped().await;
            Ok(())
        }
        .boxed()
    });
    let check = async {
        tokio::task::yield_now().await;
        let took = world.shown("no progress for").await;
        assert!((60..=85).contains(&took.as_secs()), "{took:?}");
        assert!(world.report().contains("at orders/0@0, which ends at 1"), "{}", world.report());
        assert!(!world.health.is_ready());
        world.shown("starting again from its checkpoint").await;
        while world.lives.load(Ordering::SeqCst) < 2 {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!world.health.is_ready(), "it has begun, as the life before it had: {}", world.report());
        go.send_replace(true);
        world.shown(r#"name: "scripted 0", state: Ready"#).await;
        assert!(world.health.is_ready(), "{}", world.report());
        assert_eq!(world.lives.load(Ordering::SeqCst), 2);
        world.stop.request();
    };
    tokio::join!(world.supervise(script), check);
}

#[tokio::test(start_paused = true)]
async fn a_task_without_input_may_stand_still_for_ever() {
    let world = World::new(1).await;
    world.send(0).await;
    let script: Script = Arc::new(|_, stop, progress, partition| {
        async move {
            progress.reached(&topic(), partition, 1);
            stop.stopped().await;
            Ok(())
        }
        .boxed()
    });
    let check = async {
        for _ in 0..60 {
            tokio::time::sleep(Duration::from_secs(60)).await;
            assert!(world.health.is_ready(), "{}", world.report());
        }
        assert_eq!(world.lives.load(Ordering::SeqCst), 1);
        world.stop.request();
    };
    tokio::join!(world.supervise(script), check);
}

#[tokio::test(start_paused = true)]
async fn a_task_that_cannot_begin_is_not_ready_however_often_it_starts() {
    let world = World::new(1).await;
    let script: Script = Arc::new(|_, _, _, _| async { Err(TaskError::retry(anyhow::anyhow!("no store"))) }.boxed());
    let check = async {
        world.shown("no store").await;
        while world.lives.load(Ordering::SeqCst) < 20 {
            tokio::time::sleep(Duration::from_millis(10)).await;
            assert!(world.report().contains("no store") && !world.health.is_ready(), "{}", world.report());
        }
        world.stop.request();
    };
    tokio::join!(world.supervise(script), check);
}

/// Says so when it is dropped.
struct Held(u32, mpsc::Sender<u32>);

impl Drop for Held {
    fn drop(&mut self) {
        // Nobody may be listening any more.
        let _sent = self.1.try_send(self.0);
    }
}

fn deaf(dropped: mpsc::Sender<u32>) -> Script {
    Arc::new(move |_, _, progress, partition| {
        let held = Held(partition, dropped.clone());
        async move {
            let _held = held;
            progress.reached(&topic(), partition, 0);
            std::future::pending().await
        }
        .boxed()
    })
}

#[tokio::test(start_paused = true)]
async fn a_task_that_does_not_drain_is_cut_off_when_its_partition_is_taken_away() {
    let world = World::new(2).await;
    let (sender, mut dropped) = mpsc::channel(8);
    let check = async {
        world.shown("2 partitions").await;
        let taken = Instant::now();
        let mut other = world.log.join("g", vec![topic()]).await.unwrap();
        assert_eq!(other.changed().await.unwrap().len(), 1, "the member does not wait for its tasks");
        assert_eq!(dropped.recv().await, Some(1));
        assert!(taken.elapsed() >= DRAIN_WITHIN && taken.elapsed() < Duration::from_secs(6), "{:?}", taken.elapsed());
        assert!(dropped.try_recv().is_err(), "the other partition's task lives on");
        world.stop.request();
    };
    tokio::join!(world.supervise(deaf(sender)), check);
}

#[tokio::test(start_paused = true)]
async fn a_place_that_was_lost_for_good_is_asked_for_anew_and_later_each_time() {
    let world = World::new(2).await;
    let script: Script = Arc::new(|_, stop, _, _| {
        async move {
            stop.stopped().await;
            Ok(())
        }
        .boxed()
    });
    let check = async {
        let mut waits = Vec::new();
        for lives in [2, 4, 6] {
            world.shown("2 partitions").await;
            assert_eq!(world.lives.load(Ordering::SeqCst), lives);
            world.log.evict("g");
            world.shown("joins anew in").await;
            assert!(!world.health.is_ready());
            waits.push(world.shown("2 partitions").await);
        }
        assert!(waits.is_sorted() && waits[2] > waits[0], "{waits:?}");
        world.stop.request();
    };
    tokio::join!(world.supervise(script), check);
}

#[tokio::test(start_paused = true)]
async fn stopping_takes_less_than_ten_seconds_whatever_tasks_do_and_leaves_the_group() {
    let world = World::new(3).await;
    let (sender, mut dropped) = mpsc::channel(8);
    let stopped_at = Mutex::new(None);
    let check = async {
        world.shown("3 partitions").await;
        *stopped_at.lock() = Some(Instant::now());
        world.stop.request();
    };
    tokio::join!(world.supervise(deaf(sender)), check);
    let took = stopped_at.lock().unwrap().elapsed();
    assert!(took < Duration::from_secs(10), "{took:?}");
    let all: BTreeSet<u32> = std::iter::from_fn(|| dropped.try_recv().ok()).collect();
    assert_eq!(all.len(), 3, "every life was dropped");
    let mut other = world.log.join("g", vec![topic()]).await.unwrap();
    assert_eq!(other.changed().await.unwrap().len(), 3, "the group was left");
}

#[tokio::test(start_paused = true)]
async fn a_topic_that_grows_gets_tasks_for_its_new_partitions() {
    let world = World::new(1).await;
    let script: Script = Arc::new(|_, stop, progress, partition| {
        async move {
            progress.reached(&topic(), partition, 0);
            stop.stopped().await;
            Ok(())
        }
        .boxed()
    });
    let check = async {
        world.shown("1 partitions").await;
        world.log.grow(&topic(), 4).await.unwrap();
        world.shown(r#"name: "scripted 3", state: Ready"#).await;
        assert_eq!(world.lives.load(Ordering::SeqCst), 4, "the first task was left alone");
        world.stop.request();
    };
    tokio::join!(world.supervise(script), check);
}

#[tokio::test(start_paused = true)]
async fn a_proof_of_input_is_a_message_and_not_an_end_that_lies_further() {
    let world = World::new(1).await;
    world.send(0).await;
    let place = |next| progress::Place { topic: topic(), partition: 0, next };
    assert!(tasks::has_message(world.log.as_ref(), &place(0)).await);
    // What a log that ends in a transaction's mark looks like: nothing comes from here on.
    assert!(!tasks::has_message(world.log.as_ref(), &place(1)).await);
}
