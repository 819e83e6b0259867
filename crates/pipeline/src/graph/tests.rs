use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};

use super::*;
use crate::testing::{Dice, ORDERS, apply, graph_of, problems_of, seeds};

fn view(sql: &str) -> ViewStage {
    graph_of(&format!("{ORDERS}CREATE SOURCE more (order_id INT, country VARCHAR, ordered_at TIMESTAMP);\n{sql}"))
        .views
        .remove(0)
}

fn scans(plan: &LogicalPlan) -> Vec<String> {
    let mut scans = Vec::new();
    plan.apply(|node| {
        if let LogicalPlan::TableScan(scan) = node {
            scans.push(scan.table_name.to_string());
        }
        Ok(TreeNodeRecursion::Continue)
    })
    .expect("the visitor never fails");
    scans
}

/// What holds for the branches of every view.
fn check_branches(view: &ViewStage) {
    for (index, branch) in view.branches.iter().enumerate() {
        assert_eq!(branch.index, index);
        assert_eq!(scans(&branch.plan), std::slice::from_ref(&branch.input), "{}", branch.plan.display_indent());
        let yielded = branch.plan.schema().as_arrow();
        for (field, expected) in yielded.fields().iter().zip(view.schema.fields()) {
            assert_eq!((field.name(), field.data_type()), (expected.name(), expected.data_type()));
        }
        assert_eq!(yielded.fields().len(), view.schema.fields().len());
    }
}

#[test]
fn stages_have_the_names_that_readers_look_for() {
    let mut catalog = Catalog::default();
    apply(&mut catalog, ORDERS);
    apply(
        &mut catalog,
        &format!(
            "{ORDERS}CREATE SOURCE landed (a INT, day DATE) WITH (partition_by = 'day', statistics = 'a');
             CREATE MATERIALIZED VIEW big WITH (statistics = 'amount', bounds = 'amount') AS SELECT * FROM orders WHERE amount > 1;
             CREATE SINK out FROM big WITH (topic = 'shop.big', format = 'arrow')"
        ),
    );
    let graph = compile(&catalog).expect("compiles");
    let sources: Vec<_> =
        graph.sources.iter().map(|s| (&*s.name, &*s.topic, s.landing, &*s.channel, &*s.rejected)).collect();
    assert_eq!(
        sources,
        [
            (
                "landed",
                "tailwater.landing.shop.landed",
                true,
                "tailwater.channel.shop.landed.2",
                "tailwater.rejected.shop.landed.2"
            ),
            ("orders", "shop.orders", false, "tailwater.channel.shop.orders.1", "tailwater.rejected.shop.orders.1"),
        ]
    );
    let big = &graph.views[0];
    assert_eq!((&*big.channel, &*big.rejected), ("tailwater.channel.shop.big.2", "tailwater.rejected.shop.big.2"));
    assert_eq!(big.branches[0].input_channel, "tailwater.channel.shop.orders.1");
    assert_eq!(big.branches[0].input_schema, graph.sources[1].schema);
    assert_eq!(big.event_time.as_deref(), Some("ordered_at"));
    assert_eq!(big.bounds, ["amount"]);
    let out = &graph.sinks[0];
    assert_eq!((&*out.input_channel, &*out.topic, out.format), (&*big.channel, "shop.big", Format::Arrow));
    assert_eq!(out.schema, big.schema);
    let tables: Vec<_> =
        graph.tables.iter().map(|t| (&*t.name, &*t.channel, &*t.folder, t.event_time.as_deref())).collect();
    assert_eq!(
        tables,
        [
            ("big", "tailwater.channel.shop.big.2", "shop/big/2", Some("ordered_at")),
            ("big_rejected", "tailwater.rejected.shop.big.2", "shop/big_rejected/2", None),
            ("landed", "tailwater.channel.shop.landed.2", "shop/landed/2", None),
            ("landed_rejected", "tailwater.rejected.shop.landed.2", "shop/landed_rejected/2", None),
            ("orders", "tailwater.channel.shop.orders.1", "shop/orders/1", Some("ordered_at")),
            ("orders_rejected", "tailwater.rejected.shop.orders.1", "shop/orders_rejected/1", None),
        ]
    );
    let landed = &graph.tables[2];
    assert_eq!(
        (landed.partition_by.as_slice(), landed.statistics.as_slice()),
        (&["day".to_owned()][..], &["a".to_owned()][..])
    );
    assert_eq!(graph.tables[1].schema, rejected_schema());
}

#[test]
fn an_empty_catalog_has_an_empty_graph() {
    let graph = compile(&Catalog::default()).expect("compiles");
    assert!(graph.sources.is_empty() && graph.views.is_empty() && graph.sinks.is_empty() && graph.tables.is_empty());
}

#[test]
fn a_union_is_one_branch_for_each_scan_in_the_order_of_the_sql() {
    let view = view(
        "CREATE MATERIALIZED VIEW v AS WITH both AS (
           SELECT country, amount FROM orders UNION ALL SELECT upper(country), order_id FROM more
         )
         SELECT x.country || '!' AS shout, amount FROM (
           SELECT * FROM both WHERE amount > 1 UNION ALL SELECT customer_id, 7 FROM orders
         ) AS x WHERE x.amount < 9",
    );
    check_branches(&view);
    let plans: Vec<String> = view.branches.iter().map(|branch| branch.plan.display_indent().to_string()).collect();
    assert_eq!(
        plans,
        [
            r#"Projection: shout AS shout, x.amount AS amount
  Projection: x.country || Utf8("!") AS shout, x.amount
    Filter: x.amount < CAST(Int64(9) AS Decimal128(22, 2))
      SubqueryAlias: x
        Projection: both.country AS country, amount AS amount
          Projection: both.country, CAST(both.amount AS Decimal128(22, 2)) AS amount
            Filter: CAST(both.amount AS Decimal128(22, 2)) > CAST(Int64(1) AS Decimal128(22, 2))
              SubqueryAlias: both
                Projection: orders.country AS country, orders.amount AS amount
                  Projection: orders.country, orders.amount
                    TableScan: orders"#,
            r#"Projection: shout AS shout, x.amount AS amount
  Projection: x.country || Utf8("!") AS shout, x.amount
    Filter: x.amount < CAST(Int64(9) AS Decimal128(22, 2))
      SubqueryAlias: x
        Projection: both.country AS country, amount AS amount
          Projection: both.country, CAST(both.amount AS Decimal128(22, 2)) AS amount
            Filter: CAST(both.amount AS Decimal128(22, 2)) > CAST(Int64(1) AS Decimal128(22, 2))
              SubqueryAlias: both
                Projection: country AS country, amount AS amount
                  Projection: upper(more.country) AS country, CAST(more.order_id AS Decimal128(12, 2)) AS amount
                    TableScan: more"#,
            r#"Projection: shout AS shout, x.amount AS amount
  Projection: x.country || Utf8("!") AS shout, x.amount
    Filter: x.amount < CAST(Int64(9) AS Decimal128(22, 2))
      SubqueryAlias: x
        Projection: country AS country, amount AS amount
          Projection: CAST(orders.customer_id AS Utf8) AS country, CAST(Int64(7) AS Decimal128(22, 2)) AS amount
            TableScan: orders"#,
        ]
    );
}

#[test]
fn an_input_named_twice_is_two_branches() {
    let view = view("CREATE MATERIALIZED VIEW v AS SELECT country FROM orders UNION ALL SELECT country FROM orders");
    check_branches(&view);
    assert_eq!(view.branches.len(), 2);
}

#[test]
fn a_name_of_with_hides_the_relation_of_that_name() {
    let view = view(
        "CREATE MATERIALIZED VIEW v AS WITH more AS (SELECT country FROM orders), orders AS (SELECT * FROM more)
         SELECT country FROM orders",
    );
    check_branches(&view);
    let inputs: Vec<&str> = view.branches.iter().map(|branch| branch.input.as_str()).collect();
    assert_eq!(inputs, ["orders"]);
    let problems =
        problems_of("CREATE MATERIALIZED VIEW v AS SELECT * FROM (WITH x AS (SELECT 1 AS a FROM x) SELECT * FROM x)");
    assert!(problems.starts_with("error: no source or view `x`"), "{problems}");
}

/// A chain of names, each twice the one before.
fn doubled(links: usize, then: &str) -> String {
    let link = |number: usize| format!(", a{number} AS (SELECT * FROM a{0} UNION ALL SELECT * FROM a{0})", number - 1);
    let links: String = (1..=links).map(link).collect();
    format!("CREATE MATERIALIZED VIEW v AS WITH a0 AS (SELECT country FROM orders){links} SELECT * FROM {then}")
}

#[test]
fn branches_are_counted_before_they_are_planned() {
    let view = view(&doubled(8, "a8"));
    assert_eq!(view.branches.len(), 256);
    let problems = problems_of(&format!("{ORDERS}{}", doubled(8, "a8 UNION ALL SELECT country FROM orders")));
    assert!(problems.starts_with("error: the view has more than 256 branches"), "{problems}");
    // Planning a billion of them would never end, whether they are read or not.
    for then in ["a30", "orders"] {
        let problems = problems_of(&format!("{ORDERS}{}", doubled(30, then)));
        assert!(problems.starts_with("error: `a9` has more than 256 branches"), "{problems}");
        assert!(problems.contains("cut it into several views"), "{problems}");
    }
}

#[test]
fn only_plain_copies_stay_not_null_and_event_time() {
    let nullable = |sql: &str| {
        let view = view(sql);
        let fields = view.schema.fields().iter();
        let fields: Vec<String> =
            fields.map(|field| format!("{}{}", field.name(), if field.is_nullable() { "?" } else { "" })).collect();
        (fields.join(" "), view.event_time)
    };
    let table = [
        ("SELECT order_id, country, ordered_at FROM orders", "order_id country? ordered_at", Some("ordered_at")),
        ("SELECT o.ordered_at AS at FROM (SELECT * FROM orders WHERE amount > 1) o", "at", Some("at")),
        ("SELECT order_id + 1 AS a, 1 AS one, ordered_at + INTERVAL '1 day' AS t FROM orders", "a? one? t?", None),
        ("SELECT ordered_at FROM orders UNION ALL SELECT ordered_at FROM more", "ordered_at?", None),
        ("SELECT ordered_at FROM orders UNION ALL SELECT ordered_at FROM orders", "ordered_at", Some("ordered_at")),
    ];
    for (query, expected, event_time) in table {
        let found = nullable(&format!("CREATE MATERIALIZED VIEW v AS {query}"));
        assert_eq!(found, (expected.to_owned(), event_time.map(str::to_owned)), "{query}");
    }
}

#[test]
fn views_read_views_in_any_order_of_the_text() {
    let graph = graph_of(&format!(
        "CREATE MATERIALIZED VIEW a AS SELECT country FROM b; CREATE MATERIALIZED VIEW b AS SELECT country FROM c;
         CREATE MATERIALIZED VIEW c AS SELECT upper(country) AS country FROM orders; {ORDERS}"
    ));
    let channels: Vec<&str> = graph.views.iter().map(|view| view.branches[0].input_channel.as_str()).collect();
    let expected = ["tailwater.channel.shop.b.1", "tailwater.channel.shop.c.1", "tailwater.channel.shop.orders.1"];
    assert_eq!(channels, expected);
}

#[test]
fn clock_functions_are_not_folded_before_they_are_refused() {
    for call in ["now()", "current_date", "CURRENT_TIMESTAMP", "random()", "uuid()", "today()", "current_time()"] {
        for query in [
            format!("SELECT {call} AS c FROM orders"),
            format!("SELECT country FROM orders WHERE CAST({call} AS VARCHAR) = country"),
            format!("SELECT CASE WHEN false THEN CAST({call} AS VARCHAR) ELSE country END AS c FROM orders"),
            format!("SELECT a FROM (SELECT country AS a, {call} AS unused FROM orders)"),
        ] {
            let problems = problems_of(&format!("{ORDERS}CREATE MATERIALIZED VIEW v AS {query}"));
            assert!(problems.contains("a view must give the same rows for the same input"), "{query}: {problems}");
        }
    }
}

#[test]
fn unions_of_any_shape_keep_what_holds_for_branches() {
    fn query(dice: &mut Dice, depth: usize) -> String {
        let columns =
            ["country AS a, amount AS b", "upper(country) AS a, order_id AS b", "CAST(order_id AS TEXT) AS a, 1 AS b"];
        match if depth == 0 { 0 } else { dice.roll(5) } {
            0 | 1 => format!("SELECT {} FROM orders", dice.pick(&columns)),
            2 => format!("SELECT a, b FROM ({}) AS q{depth} WHERE b > 1", query(dice, depth - 1)),
            3 => format!("SELECT * FROM ({})", query(dice, depth - 1)),
            _ => format!("{} UNION ALL ({})", query(dice, depth - 1), query(dice, depth - 1)),
        }
    }
    for seed in seeds() {
        let mut dice = Dice(seed);
        for round in 0..60 {
            let query = query(&mut dice, 4);
            let view = view(&format!("CREATE MATERIALIZED VIEW v AS {query}"));
            check_branches(&view);
            let expected = query.matches("FROM orders").count();
            assert_eq!(view.branches.len(), expected, "seed {seed}, round {round}: {query}");
        }
    }
}
