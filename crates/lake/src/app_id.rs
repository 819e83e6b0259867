//! Names of the positions a table stores: the `appId`s of its Delta `txn` actions.
//!
//! A channel's name contains its incarnation, so a deleted and recreated channel never meets old positions.
//! Channel names contain no `/`; a writer's name may.

use std::collections::BTreeMap;

use delivery::{Totals, Writer};

/// The next channel offset to read for `partition`; `version` is the offset.
pub fn next_offset(channel: &str, partition: u32) -> String {
    format!("tailwater/next/{channel}/{partition}")
}

/// How far the table has the output of `writer` in `partition`; `version` is `Position::pack`.
pub fn end(channel: &str, partition: u32, writer: &Writer) -> String {
    format!("{}{writer}", end_prefix(channel, partition))
}

/// One of a writer's running totals up to its end; `version` is the count.
fn total(counter: &str, channel: &str, partition: u32, writer: &Writer) -> String {
    format!("tailwater/{counter}/{channel}/{partition}/{writer}")
}

/// A writer's running totals up to its end, each with the name it is stored under; `version` is the count.
pub fn named_totals(channel: &str, partition: u32, writer: &Writer, totals: &Totals) -> [(String, u64); 5] {
    let name = |counter| total(counter, channel, partition, writer);
    [
        (name("read"), totals.read),
        (name("emitted"), totals.emitted),
        (name("rejected"), totals.rejected),
        (name("filtered"), totals.filtered),
        (name("late"), totals.late),
    ]
}

/// What [`named_totals`] stored; a counter that never moved is zero.
pub fn totals(txns: &BTreeMap<String, i64>, channel: &str, partition: u32, writer: &Writer) -> Totals {
    let count = |counter| {
        let stored = txns.get(&total(counter, channel, partition, writer));
        stored.and_then(|&count| u64::try_from(count).ok()).unwrap_or(0)
    };
    Totals {
        read: count("read"),
        emitted: count("emitted"),
        rejected: count("rejected"),
        filtered: count("filtered"),
        late: count("late"),
    }
}

/// Every writer of `partition` with the packed end stored in the table.
pub fn ends<'a>(
    txns: &'a BTreeMap<String, i64>,
    channel: &str,
    partition: u32,
) -> impl Iterator<Item = (Writer, i64)> + use<'a> {
    with_prefix(txns, end_prefix(channel, partition))
}

fn end_prefix(channel: &str, partition: u32) -> String {
    format!("tailwater/end/{channel}/{partition}/")
}

fn with_prefix(txns: &BTreeMap<String, i64>, prefix: String) -> impl Iterator<Item = (Writer, i64)> + use<'_> {
    txns.range(prefix.clone()..)
        .map_while(move |(app_id, version)| Some((Writer::new(app_id.strip_prefix(prefix.as_str())?), *version)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_of_one_partition_are_found_among_its_neighbours() {
        let mut txns = BTreeMap::new();
        for partition in [1, 10, 2] {
            txns.insert(next_offset("c.1", partition), 7);
            for writer in ["orders/0", "orders/11"] {
                txns.insert(end("c.1", partition, &Writer::new(writer)), i64::from(partition));
                let totals = Totals { read: 7, emitted: 5, filtered: 2, ..Totals::default() };
                for (name, count) in named_totals("c.1", partition, &Writer::new(writer), &totals) {
                    txns.insert(name, count as i64);
                }
            }
        }
        let found: Vec<_> = ends(&txns, "c.1", 1).collect();
        assert_eq!(found, [(Writer::new("orders/0"), 1), (Writer::new("orders/11"), 1)]);
        let totals = totals(&txns, "c.1", 10, &Writer::new("orders/11"));
        assert_eq!((totals.read, totals.emitted, totals.filtered, totals.late), (7, 5, 2, 0));
        assert_eq!(ends(&txns, "c", 1).count(), 0, "a channel whose name is a prefix of another's has no part in it");
    }
}
