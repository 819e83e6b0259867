use delivery::ErrorClass;
use lake::Lake;
use topics::{NewMessage, TopicSettings, memory::MemoryLog};

use super::*;

struct World {
    log: MemoryLog,
    checkpoints: Checkpoints,
    topic: TopicName,
}

impl World {
    async fn new() -> Self {
        let topic = TopicName::new("orders").unwrap();
        let world = Self { log: MemoryLog::new(), checkpoints: Checkpoints::new(&Lake::memory(), "s"), topic };
        world.create().await;
        world
    }

    async fn create(&self) {
        self.log.create(&self.topic, &TopicSettings::default()).await.unwrap();
    }

    async fn send(&self, texts: &[&str]) {
        for text in texts {
            let message = NewMessage { timestamp_ms: Some(1_000), ..NewMessage::of((*text).to_owned()) };
            self.log.appender().append(&self.topic, 0, message).await.unwrap().await.unwrap();
        }
    }

    async fn open(&self) -> Result<(Checkpoint, Box<dyn Reader>), TaskError> {
        let (log, checkpoints) = (&self.log, &self.checkpoints);
        Input { log, checkpoints, topic: &self.topic, partition: 0, reader: "source `shop.orders`" }.open().await
    }

    /// One life: opens, takes so many messages, and puts a checkpoint.
    async fn live(&self, messages: usize) -> Vec<String> {
        let (mut state, mut reader) = self.open().await.unwrap();
        let mut texts = Vec::new();
        while texts.len() < messages {
            for message in reader.read(1).await.unwrap() {
                texts.push(String::from_utf8(message.payload.to_vec()).unwrap());
                state.position = Position::at(message.offset + 1);
                state.witness = Some(message.witness());
            }
        }
        self.checkpoints.put(0, &state).await.unwrap();
        texts
    }

    /// Stops with a text that holds all of these.
    async fn refuses(&self, says: &[&str]) {
        let error = self.open().await.err().expect("refused");
        assert_eq!(error.class(), ErrorClass::Stop, "{error}");
        let text = error.to_string();
        assert!(says.iter().all(|word| text.contains(word)), "{text}");
    }
}

#[tokio::test]
async fn a_first_start_begins_where_the_topic_does() {
    let world = World::new().await;
    world.send(&["a", "b", "c"]).await;
    world.log.trim(&world.topic, 0, 2).unwrap();
    let (state, _) = world.open().await.unwrap();
    assert_eq!((state.position, state.begins_late), (Position::at(2), true));
}

#[tokio::test]
async fn a_life_goes_on_right_behind_the_last_message_it_took() {
    let world = World::new().await;
    world.send(&["a", "b", "c", ""]).await;
    assert_eq!(world.live(2).await, ["a", "b"]);
    assert_eq!(world.live(2).await, ["c", ""]);
    world.send(&["", "e"]).await;
    assert_eq!(world.live(2).await, ["", "e"]);
}

#[tokio::test]
async fn a_task_that_lost_its_checkpoints_starts_where_it_began_and_never_later() {
    let world = World::new().await;
    world.send(&["a", "b", "c"]).await;
    world.open().await.unwrap();
    let (again, _) = world.open().await.unwrap();
    assert_eq!(again.position, Position::START);
    world.log.trim(&world.topic, 0, 2).unwrap();
    world.refuses(&["begins at offset 2", "is at 0", "no checkpoint can be read", "drop and recreate"]).await;
}

#[tokio::test]
async fn a_topic_created_again_is_not_read_on_however_long_it_is() {
    let world = World::new().await;
    world.send(&["a", "b", "c"]).await;
    world.live(2).await;
    world.log.delete(&world.topic);
    let error = world.open().await.err().expect("refused");
    assert_eq!(error.class(), ErrorClass::Retry, "it may come back: {error}");
    world.create().await;
    world.refuses(&["ends at offset 0", "is at 2"]).await;
    world.send(&["a", "x", "y", "z"]).await;
    world.refuses(&["another message stands at offset 1", "up to 2", "drop and recreate source `shop.orders`"]).await;
}

#[tokio::test]
async fn a_topic_restored_message_by_message_is_read_on() {
    let world = World::new().await;
    world.send(&["a", "b", "c"]).await;
    world.live(2).await;
    world.log.delete(&world.topic);
    world.create().await;
    world.send(&["a", "b", "c"]).await;
    assert_eq!(world.live(1).await, ["c"]);
}

#[tokio::test]
async fn where_the_last_message_is_gone_the_name_of_the_topic_decides() {
    let world = World::new().await;
    world.send(&["a", "b", "c"]).await;
    world.live(2).await;
    world.log.trim(&world.topic, 0, 2).unwrap();
    assert_eq!(world.live(1).await, ["c"], "retention is no replacement");
    world.log.delete(&world.topic);
    world.create().await;
    world.send(&["v", "w", "x", "y"]).await;
    world.log.trim(&world.topic, 0, 3).unwrap();
    world.refuses(&["its log calls it", "up to 3"]).await;
}

#[tokio::test]
async fn a_beginning_of_another_topic_is_not_gone_on_from() {
    let world = World::new().await;
    world.open().await.unwrap();
    world.log.delete(&world.topic);
    world.create().await;
    world.refuses(&["its log calls it"]).await;
}
