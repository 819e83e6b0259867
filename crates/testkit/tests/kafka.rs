//! A cluster of three brokers: leaders move when one is killed, clients behind a door stay behind it, topics are managed.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use testkit::chaos::Direction;
use testkit::kafka::{Kafka, Setup};

/// Asks for metadata of no topic (key 3, version 1): the answer names every broker by host and port.
fn metadata(broker: &str) -> std::io::Result<Vec<u8>> {
    let request = [0, 0, 0, 14, 0, 3, 0, 1, 0, 0, 0, 7, 0xff, 0xff, 0, 0, 0, 0];
    let mut stream = TcpStream::connect(broker)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(&request)?;
    let mut length = [0_u8; 4];
    stream.read_exact(&mut length)?;
    let mut answer = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut answer)?;
    Ok(answer)
}

fn names(answer: &[u8], address: &str) -> bool {
    let port: u32 = address.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
    let mut wanted = b"127.0.0.1".to_vec();
    wanted.extend(port.to_be_bytes());
    answer.windows(wanted.len()).any(|window| window == wanted)
}

#[test]
fn a_cluster_survives_its_leader_and_a_door_leads_to_itself() {
    let setup = Setup { brokers: 3, doors: vec!["front".to_owned()], ..Setup::default() };
    let Some(mut kafka) = Kafka::set_up(&setup).expect("the cluster starts") else {
        return;
    };
    kafka.create_topic("t", 3).expect("a topic can be made");
    let leader = kafka.leader("t", 0).expect("it has a leader");

    let front = kafka.door("front").expect("it was asked for");
    let (behind, direct) = (front.brokers(), kafka.brokers());
    for (bootstrap, named, unnamed) in [(&behind, &behind, &direct), (&direct, &direct, &behind)] {
        let answer = metadata(bootstrap.split(',').next().expect("an address")).expect("metadata");
        assert!(named.split(',').all(|address| names(&answer, address)), "{bootstrap}");
        assert!(!unnamed.split(',').any(|address| names(&answer, address)), "{bootstrap}");
    }
    front.refuse();
    metadata(behind.split(',').next().expect("an address")).expect_err("the door is shut");
    front.heal();
    front.silence(Direction::ToClient);
    front.heal();
    metadata(behind.split(',').next().expect("an address")).expect("the door is open");
    assert!(front.counts().accepted > 1 && front.counts().refused > 0);

    kafka.kill_broker(leader).expect("it can be killed");
    assert!(!kafka.is_running());
    let deadline = Instant::now() + Duration::from_secs(60);
    while kafka.leader("t", 0).map_or(true, |now| now == leader) {
        assert!(Instant::now() < deadline, "nobody took over from broker {leader}");
    }
    kafka.start_broker(leader).expect("it comes back");
    assert!(kafka.is_running());

    kafka.grow_topic("t", 5).expect("it can grow");
    kafka.leader("t", 4).expect("the new partition has a leader");
    kafka.delete_records("t", 0, 0).expect("nothing is before 0");
    kafka.delete_topic("t").expect("it can be deleted");
    assert!(!kafka.list_topics().expect("a list").lines().any(|topic| topic == "t"));
}
