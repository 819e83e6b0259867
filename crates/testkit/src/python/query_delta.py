"""Answers one SQL query over Delta tables with DuckDB and prints CSV with a header.

Argument: {"tables": {name or schema.name: address}, "options": {store option: value}, "sql": text}
"""
import csv
import json
import sys

from readers import open_duckdb, quoted

request = json.loads(sys.argv[1])
connection = open_duckdb(request.get("options") or {})
for name, address in request["tables"].items():
    *schema, table = name.split(".")
    if schema:
        connection.execute(f"CREATE SCHEMA IF NOT EXISTS {quoted(schema[0])}")
    full = ".".join(quoted(part) for part in [*schema, table])
    escaped = address.replace("'", "''")
    connection.execute(f"CREATE VIEW {full} AS SELECT * FROM delta_scan('{escaped}')")
answer = connection.execute(request["sql"])
writer = csv.writer(sys.stdout, lineterminator="\n")
writer.writerow([column[0] for column in answer.description])
writer.writerows(answer.fetchall())
