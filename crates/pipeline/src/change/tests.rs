use super::*;
use crate::testing::{ORDERS, apply, apply_to, parsed, planned};

const CHAIN: &str = "CREATE MATERIALIZED VIEW big AS SELECT * FROM orders WHERE amount > 100;
CREATE MATERIALIZED VIEW named AS SELECT order_id, upper(country) AS country FROM big;
CREATE MATERIALIZED VIEW alone AS SELECT a FROM extra;
CREATE SOURCE extra (a INT);
CREATE SINK out FROM named WITH (topic = 'shop.named');\n";

fn shop() -> String {
    format!("{ORDERS}{CHAIN}")
}

fn applied() -> Catalog {
    let mut catalog = Catalog::default();
    apply(&mut catalog, &shop());
    catalog
}

fn plan(catalog: &Catalog, sql: &str) -> ChangePlan {
    planned(catalog, sql).unwrap_or_else(|problems| panic!("{problems}"))
}

#[test]
fn the_first_apply_adds_everything_and_needs_no_permission() {
    let plan = plan(&Catalog::default(), &shop());
    assert_eq!(plan.added, ["alone", "big", "extra", "named", "orders", "out"]);
    assert_eq!(
        plan.to_string(),
        "\
pipeline `shop`: 6 to add, 0 to change, 0 to drop, 0 unchanged
  + view   alone
  + view   big
  + source extra
  + view   named
  + source orders
  + sink   out"
    );
    assert!(plan.into_change(Permissions::default()).expect("adding is free").is_some());
}

#[test]
fn applying_again_changes_nothing_however_it_is_written() {
    let catalog = applied();
    for sql in
        [shop(), shop().replace('\n', "\n\n-- again\n"), shop().replace("SELECT", "select").replace("orders", "ORDERS")]
    {
        // Names of topics are text, not names.
        let sql = sql.replace("shop.ORDERS", "shop.orders");
        let plan = plan(&catalog, &sql);
        assert_eq!(plan.to_string(), "pipeline `shop`: nothing changes (6 definitions)");
        assert!(plan.is_empty());
        assert_eq!(plan.into_change(Permissions::default()), Ok(None));
    }
}

#[test]
fn a_changed_definition_changes_whatever_reads_it_and_nothing_else() {
    let mut catalog = applied();
    let sql = shop().replace("country VARCHAR", "country TEXT NOT NULL");
    let plan = plan(&catalog, &sql);
    assert_eq!(
        plan.to_string(),
        "\
pipeline `shop`: 0 to add, 4 to change, 0 to drop, 2 unchanged
  ~ view   big                      because `orders` changed
  ~ view   named                    because `big` changed
  ~ source orders                   its definition changed
  ~ sink   out                      because `named` changed"
    );
    apply(&mut catalog, &sql);
    let incarnations: Vec<_> = catalog.definitions().map(|d| (d.name.as_str(), d.incarnation)).collect();
    assert_eq!(incarnations, [("alone", 1), ("big", 2), ("extra", 1), ("named", 2), ("orders", 2), ("out", 2)]);
}

#[test]
fn a_definition_that_changes_and_reads_something_changed_changes_once_by_itself() {
    let sql = shop().replace("country VARCHAR", "country TEXT NOT NULL").replace("amount > 100", "amount > 200");
    let plan = plan(&applied(), &sql);
    let big = plan.changed.iter().find(|changed| changed.name == "big").expect("changes");
    assert_eq!(big.reason, Reason::Itself);
    assert_eq!(plan.changed.len(), 4);
}

#[test]
fn adding_a_view_leaves_what_it_reads_alone() {
    let plan = plan(&applied(), &format!("{}CREATE MATERIALIZED VIEW more AS SELECT * FROM big;", shop()));
    assert_eq!((plan.added.as_slice(), plan.changed.len(), plan.unchanged.len()), (&["more".to_owned()][..], 0, 6));
}

#[test]
fn changing_and_dropping_need_permission_and_the_refusal_names_all_of_it() {
    let catalog = applied();
    let sql = shop()
        .replace("amount > 100", "amount > 200")
        .replace("CREATE MATERIALIZED VIEW alone AS SELECT a FROM extra;", "");
    let change = |replace, drop| plan(&catalog, &sql).into_change(Permissions { replace, drop });
    let refused = |replace, drop| change(replace, drop).expect_err("is refused").to_string();
    let both = "changing `big`, `named`, `out` needs --replace; dropping `alone` needs --drop";
    assert_eq!(refused(false, false), both);
    assert_eq!(refused(true, false), "dropping `alone` needs --drop");
    assert_eq!(refused(false, true), "changing `big`, `named`, `out` needs --replace");
    assert!(change(true, true).expect("is allowed").is_some());
    assert!(plan(&catalog, &sql).to_string().ends_with("\n  - view   alone"));
}

#[test]
fn what_others_read_cannot_be_dropped() {
    let sql = CHAIN.replace("CREATE SOURCE extra (a INT);", ORDERS);
    let problems = planned(&applied(), &sql).expect_err("drops what is read");
    assert_eq!(
        problems.to_string(),
        "\
error: `extra` would be dropped, but `alone` reads it
  --> shop/p.sql:3:49
   |
 3 | CREATE MATERIALIZED VIEW alone AS SELECT a FROM extra;
   |                                                 ^^^^^
   = help: keep `extra`, or drop `alone` too"
    );
}

#[test]
fn a_name_may_become_another_kind_of_thing() {
    let sql = shop().replace(
        "CREATE MATERIALIZED VIEW big AS SELECT * FROM orders WHERE amount > 100;",
        "CREATE SOURCE big (order_id BIGINT, country VARCHAR);",
    );
    let plan = plan(&applied(), &sql);
    let names: Vec<&str> = plan.changed.iter().map(|changed| changed.name.as_str()).collect();
    assert_eq!(names, ["big", "named", "out"]);
}

#[test]
fn a_pipeline_without_definitions_is_dropped_whole() {
    let catalog = applied();
    let plan = plan(&catalog, "");
    assert_eq!(plan.dropped.len(), 6);
    let mut catalog = catalog;
    apply(&mut catalog, "");
    assert_eq!(catalog.definitions().count(), 0);
}

#[test]
fn pipelines_do_not_see_each_other() {
    let mut catalog = applied();
    apply_to(
        &mut catalog,
        "other",
        "CREATE SOURCE orders (a INT); CREATE MATERIALIZED VIEW big AS SELECT a FROM orders;",
    );
    assert!(plan(&catalog, &shop()).is_empty());
}

#[test]
fn names_of_pipelines_are_checked() {
    for name in ["", "Shop", "my-shop", "a.b", "1a", "pg_catalog", "information_schema", &"x".repeat(65)] {
        let problems = plan_change(&Catalog::default(), name, parsed(ORDERS)).expect_err("is no name");
        assert!(problems.to_string().contains("rename the folder"), "{problems}");
    }
}

#[test]
fn landing_topics_that_kafka_cannot_tell_apart_are_refused() {
    let mut catalog = Catalog::default();
    apply_to(&mut catalog, "shop_eu", "CREATE SOURCE orders (a INT);");
    let problems = planned(&catalog, "CREATE SOURCE eu_orders (a INT);").expect_err("blurs into the other");
    assert!(problems.to_string().contains("cannot be told from that of `shop_eu.orders`"), "{problems}");
    assert!(planned(&catalog, "CREATE SOURCE eu_orders (a INT) WITH (topic = 'own');").is_ok());
}

#[test]
fn statements_from_several_parses_are_checked_for_repeats() {
    let mut statements = parsed(ORDERS);
    statements.extend(parsed(ORDERS));
    let problems = plan_change(&Catalog::default(), "shop", statements).expect_err("is defined twice");
    assert!(problems.to_string().contains("`orders` is defined twice"), "{problems}");
}

#[test]
fn a_sink_is_refused_with_its_place_since_nothing_runs_it() {
    let sql = format!("{ORDERS}CREATE SINK out FROM orders\n  WITH (topic = 'shop.out');");
    let problems = plan_change(&Catalog::default(), "shop", parsed(&sql)).expect_err("nothing publishes");
    assert_eq!(
        problems.to_string(),
        "error: not supported yet: CREATE SINK
  --> shop/p.sql:6:13
   |
 6 | CREATE SINK out FROM orders
   |             ^^^
   = help: read the rows by SQL, with `tailwater tail`, or from the Delta table"
    );
    let sql = format!("{ORDERS}CREATE SINK out FROM ordrs WITH (topic = 'x');");
    let problems = plan_change(&Catalog::default(), "shop", parsed(&sql)).expect_err("two faults");
    assert_eq!(problems.len(), 2, "its other faults show too: {problems}");
}
