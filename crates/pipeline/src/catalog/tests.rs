use super::*;
use crate::testing::{ORDERS, apply, apply_to, parsed, planned};
use crate::{Graph, Permissions, plan_change};

const VIEW: &str = "CREATE MATERIALIZED VIEW big AS SELECT * FROM orders WHERE amount > 100;\n";

fn change(catalog: &Catalog, sql: &str) -> Change {
    let plan = planned(catalog, sql).expect("is right");
    plan.into_change(Permissions { replace: true, drop: true }).expect("all is allowed").expect("something changes")
}

#[test]
fn of_two_changes_that_race_exactly_one_happens() {
    let empty = Catalog::default();
    let first = change(&empty, ORDERS);
    let second = change(&empty, "CREATE SOURCE other (a INT)");
    let logs = [[&first, &second], [&second, &first]];
    for log in logs {
        // Every reader decides alike, whenever it started.
        let mut catalog = Catalog::default();
        assert_eq!(catalog.replay(&log[0].to_bytes()).expect("is read"), Replay::Accepted { version: 1 });
        let late = catalog.clone();
        for mut reader in [catalog, late] {
            assert_eq!(reader.replay(&log[1].to_bytes()).expect("is read"), Replay::Stale { base: 0, version: 1 });
            assert_eq!((reader.version(), reader.definitions().count()), (1, 1));
        }
    }
}

#[test]
fn the_same_record_twice_happens_once() {
    let mut catalog = Catalog::default();
    let record = change(&catalog, ORDERS).to_bytes();
    assert_eq!(catalog.replay(&record).expect("is read"), Replay::Accepted { version: 1 });
    assert_eq!(catalog.replay(&record).expect("is read"), Replay::Stale { base: 0, version: 1 });
}

#[test]
fn changes_made_from_the_same_text_can_be_told_apart_by_id() {
    let catalog = Catalog::default();
    let mine = change(&catalog, ORDERS);
    assert_eq!(mine.id(), change(&catalog, ORDERS).id());
    assert_ne!(mine.id(), change(&catalog, "CREATE SOURCE other (a INT)").id());
    assert_ne!(mine.clone().with_id("me").to_bytes(), mine.with_id("you").to_bytes());
}

#[test]
fn replay_gives_the_definitions_that_were_applied() {
    let mut catalog = Catalog::default();
    apply(&mut catalog, &format!("{ORDERS}{VIEW}"));
    apply_to(&mut catalog, "other", "CREATE SOURCE orders (a INT);");
    let all: Vec<_> = catalog.definitions().map(|d| (d.pipeline.as_str(), d.name.as_str(), d.incarnation)).collect();
    assert_eq!(all, [("other", "orders", 2), ("shop", "big", 1), ("shop", "orders", 1)]);
    assert_eq!(catalog.pipelines().into_iter().collect::<Vec<_>>(), ["other", "shop"]);
    for definition in catalog.definitions().filter(|definition| definition.pipeline == "shop") {
        let written = parsed(&format!("{ORDERS}{VIEW}"));
        assert!(written.contains(&definition.statement), "{}", definition.statement.sql);
    }
}

#[test]
fn a_dropped_definition_is_gone_and_may_come_back_as_another_incarnation() {
    let mut catalog = Catalog::default();
    apply(&mut catalog, &format!("{ORDERS}{VIEW}"));
    apply(&mut catalog, ORDERS);
    assert!(catalog.definition("shop", "big").is_none());
    apply(&mut catalog, &format!("{ORDERS}{VIEW}"));
    assert_eq!(catalog.definition("shop", "big").expect("is back").incarnation, 3);
    assert_eq!(catalog.definition("shop", "orders").expect("never left").incarnation, 1);
}

#[test]
fn the_record_has_the_documented_shape() {
    let change = change(&Catalog::default(), "CREATE SOURCE a (b INT)").with_id("x");
    let text = String::from_utf8(change.to_bytes()).expect("is JSON");
    let expected = "{\"format\":1,\"base\":0,\"id\":\"x\",\"pipeline\":\"shop\",\"upserts\":[{\"name\":\"a\",\
        \"statement\":\"CREATE SOURCE a (\\n  b INT\\n) WITH (format = 'json')\"}],\"drops\":[]}";
    assert_eq!(text, expected);
}

/// A record of definitions as some program before this one wrote it.
fn record(base: u64, upserts: &[(&str, &str)]) -> Vec<u8> {
    let upsert = |(name, statement): &(&str, &str)| serde_json::json!({"name": name, "statement": statement});
    let upserts: Vec<_> = upserts.iter().map(upsert).collect();
    let record = serde_json::json!({
        "format": 1, "base": base, "id": "", "pipeline": "shop", "upserts": upserts, "drops": []
    });
    record.to_string().into_bytes()
}

#[test]
fn what_was_accepted_before_a_check_came_is_read_but_not_taken_again() {
    let definitions = [
        ("s", "CREATE SOURCE s (\"ä\" INT, \"Ä\" INT, x STRUCT<\"é\" INT, \"É\" INT>)"),
        ("v", "CREATE MATERIALIZED VIEW v AS SELECT \"ä\" AS \"ö\", \"ä\" AS \"Ö\" FROM s"),
        ("w", "CREATE MATERIALIZED VIEW w AS SELECT named_struct('a', \"ä\", 'A', \"ä\") AS x FROM s"),
        ("x", "CREATE MATERIALIZED VIEW x AS SELECT CAST(\"ä\" AS VARCHAR(2)) AS y, \"ä\"::FLOAT(24) AS z FROM s"),
    ];
    let mut catalog = Catalog::default();
    assert_eq!(catalog.replay(&record(0, &definitions)).expect("is read"), Replay::Accepted { version: 1 });
    assert_eq!(crate::compile(&catalog).expect("compiles").views.len(), 3);

    let problems = |sql: &str| planned(&Catalog::default(), sql).expect_err("tables cannot hold it").to_string();
    assert!(problems(definitions[0].1).starts_with("error: columns `ä` and `Ä` differ only in case"));
    assert!(problems("CREATE SOURCE s (x STRUCT<\"é\" INT, \"É\" INT>)").contains("field `É` is there twice"));
    let source = "CREATE SOURCE s (\"ä\" INT);";
    let named = problems(&format!("{source}{}", definitions[1].1));
    assert!(named.contains("columns `ö` and `Ö` differ only in case"), "{named}");
    let nested = problems(&format!("{source}{}", definitions[2].1));
    assert!(nested.contains("help: field `A` is there twice"), "{nested}");
    let cut = problems(&format!("{source}{}", definitions[3].1));
    assert!(cut.contains("a length for VARCHAR") && !cut.contains("FLOAT has"), "{cut}");
}

#[test]
fn a_record_that_cannot_be_understood_stops_and_changes_nothing() {
    let record = |upserts: &str, drops: &str| {
        format!(
            "{{\"format\":1,\"base\":1,\"id\":\"\",\"pipeline\":\"shop\",\"upserts\":[{upserts}],\"drops\":[{drops}]}}"
        )
    };
    let table = [
        (
            "{\"format\": 2, \"shape\": \"unheard of\"}".to_owned(),
            "has format 2, this program reads up to 1; upgrade it",
        ),
        ("not json".to_owned(), "is damaged"),
        (String::new(), "is damaged"),
        ("{\"format\": 1}".to_owned(), "is damaged: missing field"),
        (record("", "").replace("\"id\"", "\"new\":1,\"id\""), "is damaged: unknown field `new`"),
        (record("", "\"nobody\""), "is damaged: it drops `nobody`, which does not exist"),
        (record("{\"name\":\"a\",\"statement\":\"CREATE SOURCE b (c INT)\"}", ""), "does not define it"),
    ];
    for (record, expected) in table {
        let mut catalog = Catalog::default();
        apply(&mut catalog, ORDERS);
        let error = catalog.replay(record.as_bytes()).expect_err("cannot be understood");
        assert!(error.to_string().contains(expected), "{record}: {error}");
        assert!(error.to_string().contains("after version 1"), "{error}");
        assert_eq!(error.class(), ErrorClass::Stop);
        assert_eq!((catalog.version(), catalog.definitions().count()), (1, 1));
    }
}

/// A catalog whose pipeline `shop` this program cannot run, beside one that it can.
fn with_broken(definitions: &[(&str, &str)]) -> Catalog {
    let mut catalog = Catalog::default();
    assert_eq!(catalog.replay(&record(0, definitions)).expect("is read"), Replay::Accepted { version: 1 });
    apply_to(&mut catalog, "other", "CREATE SOURCE fine (a INT);");
    catalog
}

fn broken(catalog: &Catalog) -> Vec<String> {
    Graph::of(catalog).broken.into_iter().map(|broken| broken.pipeline).collect()
}

const UNREAD: &[(&str, &str)] = &[("gadget", "CREATE GADGET gadget"), ("s", "CREATE SOURCE s (a INT)")];

#[test]
fn a_definition_that_cannot_be_read_breaks_its_own_pipeline_only() {
    let catalog = with_broken(UNREAD);
    let graph = Graph::of(&catalog);
    let sources: Vec<&str> = graph.sources.iter().map(|source| source.name.as_str()).collect();
    assert_eq!(sources, ["fine"], "a pipeline runs as a whole or not at all");
    assert_eq!(broken(&catalog), ["shop"]);
    let problems = graph.broken[0].problems.to_string();
    assert!(problems.contains("found `gadget`") && problems.contains("catalog:shop.gadget:1:8"), "{problems}");
    assert_eq!(catalog.pipelines().into_iter().collect::<Vec<_>>(), ["other", "shop"]);
    assert!(catalog.definition("shop", "gadget").is_none() && catalog.definition("shop", "s").is_some());
    let error = crate::compile(&catalog).expect_err("not every pipeline compiles").to_string();
    assert!(error.starts_with("pipeline `shop` of catalog version 2 does not compile"), "{error}");
}

#[test]
fn a_broken_definition_is_replaced_by_one_that_can_be_read() {
    let mut catalog = with_broken(UNREAD);
    let sql = "CREATE SOURCE gadget (a INT); CREATE SOURCE s (a INT);
        CREATE MATERIALIZED VIEW v AS SELECT a FROM gadget;";
    let plan = planned(&catalog, sql).expect("is right");
    assert_eq!(
        plan.to_string(),
        "\
pipeline `shop`: 1 to add, 1 to change, 0 to drop, 1 unchanged
  + view   v
  ~ source gadget                   its definition could not be read"
    );
    plan.into_change(Permissions::default()).expect_err("needs --replace");
    apply(&mut catalog, sql);
    assert!(broken(&catalog).is_empty());
    assert_eq!(catalog.definition("shop", "gadget").expect("is read").incarnation, 3);
    assert_eq!(catalog.definition("shop", "s").expect("never changed").incarnation, 1);
}

#[test]
fn a_broken_definition_is_dropped() {
    let mut catalog = with_broken(UNREAD);
    let plan = planned(&catalog, "CREATE SOURCE s (a INT);").expect("is right");
    assert!(plan.to_string().ends_with("\n  - broken gadget"), "{plan}");
    plan.into_change(Permissions::default()).expect_err("needs --drop");
    apply(&mut catalog, "CREATE SOURCE s (a INT);");
    assert!(broken(&catalog).is_empty());
    assert_eq!(catalog.definitions().count(), 2);
}

#[test]
fn definitions_that_are_superseded_or_void_break_nothing() {
    let mut catalog = with_broken(UNREAD);
    assert!(matches!(catalog.replay(&record(1, UNREAD)), Ok(Replay::Stale { .. })));
    catalog.replay(&record(2, &[("gadget", "CREATE SOURCE gadget (a INT)")])).expect("is read");
    assert!(broken(&catalog).is_empty());
    catalog.replay(&record(3, &[("s", "CREATE GADGET s")])).expect("is read");
    assert_eq!(broken(&catalog), ["shop"]);
    assert!(catalog.definition("shop", "s").is_none(), "what it was is superseded too");
}

#[test]
fn a_view_that_no_longer_compiles_breaks_its_pipeline_until_it_is_replaced() {
    let source = "CREATE SOURCE s (a INT)";
    let mut catalog = with_broken(&[("s", source), ("v", "CREATE MATERIALIZED VIEW v AS SELECT b FROM s")]);
    assert_eq!(broken(&catalog), ["shop"]);
    let sql = format!("{source}; CREATE MATERIALIZED VIEW v AS SELECT a AS b FROM s;");
    let plan = planned(&catalog, &sql).expect("is right");
    assert_eq!((plan.changed.len(), plan.unchanged.as_slice()), (1, &["s".to_owned()][..]));
    apply(&mut catalog, &sql);
    assert!(broken(&catalog).is_empty());
}

#[test]
fn replaying_a_whole_log_gives_the_catalog_of_whoever_wrote_it() {
    let mut writer = Catalog::default();
    let mut log = Vec::new();
    let states = [ORDERS.to_owned(), format!("{ORDERS}{VIEW}"), "CREATE SOURCE orders (amount INT);".to_owned() + VIEW];
    for state in &states {
        let record = change(&writer, state).to_bytes();
        // A record of somebody who was too late lies between.
        let late = plan_change(&Catalog::default(), "late", parsed("CREATE SOURCE l (a INT)")).expect("is right");
        let late = late.into_change(Permissions::default()).expect("adds").expect("something").to_bytes();
        writer.replay(&record).expect("is read");
        log.extend([record, late]);
    }
    let mut reader = Catalog::default();
    let accepted = log.iter().filter(|record| matches!(reader.replay(record), Ok(Replay::Accepted { .. }))).count();
    assert_eq!(accepted, states.len());
    assert_eq!(reader.version(), writer.version());
    assert!(reader.definitions().eq(writer.definitions()));
}
