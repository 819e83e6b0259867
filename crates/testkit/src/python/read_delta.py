"""Reads Delta tables through deltalake and through DuckDB and prints what each of them sees, as JSON.

Argument: {"tables": {name: address}, "options": {store option: value}}
Prints:   {name: {"version": n, "txns": {app id: version},
                  "deltalake": {"rows": n, "sums": {column: text}}, "duckdb": {the same}}}
Sums are of whole-number and decimal columns, as exact text. A table that does not exist is null.
"""
import json
import sys

import deltalake
import pyarrow as pa
import pyarrow.compute as pc

from readers import open_deltalake, open_duckdb, quoted


def summable(schema):
    return [f.name for f in schema if pa.types.is_integer(f.type) or pa.types.is_decimal(f.type)]


def plain(number):
    """The same text for 5, 5.0 and 5.00, and for no rows at all."""
    text = format(number or 0, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def by_deltalake(table):
    data = table.to_pyarrow_table()
    sums = {}
    for name in summable(data.schema):
        wide = pc.cast(data[name], pa.decimal256(60, 10))
        sums[name] = plain(pc.sum(wide).as_py())
    return {"rows": data.num_rows, "sums": sums}


def by_duckdb(connection, address, columns):
    wanted = ", ".join(["count(*)"] + [f"sum({quoted(c)}::DECIMAL(38, 10))" for c in columns])
    rows, *sums = connection.execute(f"SELECT {wanted} FROM delta_scan(?)", [address]).fetchone()
    return {"rows": rows, "sums": {c: plain(s) for c, s in zip(columns, sums)}}


def describe(connection, address, options):
    try:
        table = open_deltalake(address, options)
    except deltalake.exceptions.TableNotFoundError:
        return None
    ours = by_deltalake(table)
    log = table.transaction_versions() if hasattr(table, "transaction_versions") else {}
    return {
        "version": table.version(),
        "txns": {app: getattr(txn, "version", txn) for app, txn in log.items()},
        "deltalake": ours,
        "duckdb": by_duckdb(connection, address, list(ours["sums"])),
    }


request = json.loads(sys.argv[1])
options = request.get("options") or {}
connection = open_duckdb(options)
print(json.dumps({name: describe(connection, address, options) for name, address in request["tables"].items()}))
