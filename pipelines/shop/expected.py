#!/usr/bin/env python3
"""Works out queries/*.expected with DuckDB from the files in data/shop: what Tailwater has to answer.

Nothing of Tailwater takes part: DuckDB reads the files, runs views.sql as plain views, and runs each query.
Needs the package `duckdb`. Without arguments it checks the stored answers; with --write it writes them.
"""
import csv
import io
import pathlib
import re
import sys

import duckdb

HERE = pathlib.Path(__file__).resolve().parent
DATA = HERE.parent.parent / "data" / "shop"


def statements(name):
    text = re.sub(r"--[^\n]*", "", (HERE / name).read_text())
    return [statement.strip() for statement in text.split(";") if statement.strip()]


def load(connection):
    for statement in statements("sources.sql"):
        name, columns, options = re.fullmatch(r"CREATE SOURCE (\w+) \((.*)\) WITH \((.*)\)", statement, re.DOTALL).groups()
        columns = re.sub(r",\s*WATERMARK[^\n]*", "", columns)
        connection.execute(f"CREATE TABLE {name} ({columns})")
        if "format = 'json'" in options:
            source = f"read_json('{DATA / name}.ndjson', format = 'newline_delimited')"
        else:
            source = f"read_csv('{DATA / name}.csv', header = true, all_varchar = true)"
        connection.execute(f"INSERT INTO {name} BY NAME SELECT * FROM {source}")
    # Every line of broken.ndjson is bad, and each becomes one row of the table of rejected lines.
    connection.execute("CREATE TABLE lines_rejected (line INT, bytes VARCHAR, part INT)")
    for number, line in enumerate((DATA / "broken.ndjson").read_text().splitlines(), 1):
        connection.execute("INSERT INTO lines_rejected VALUES (?, ?, 0)", [number, line])
    for statement in statements("views.sql"):
        connection.execute(statement.replace("CREATE MATERIALIZED VIEW", "CREATE VIEW"))


def answer(connection, sql):
    result = connection.execute(sql)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(column[0] for column in result.description)
    writer.writerows(result.fetchall())
    return out.getvalue()


def main():
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute("CREATE SCHEMA shop; SET schema = 'shop'")
    load(connection)
    wrong = []
    for query in sorted((HERE / "queries").glob("*.sql")):
        text, stored = answer(connection, query.read_text()), query.with_suffix(".expected")
        if "--write" in sys.argv:
            stored.write_text(text)
        elif not stored.exists() or stored.read_text() != text:
            wrong.append(stored.name)
    if wrong:
        sys.exit(f"differs: {', '.join(wrong)}")


main()
