#!/usr/bin/env python3
"""Reads the table `events` as `tailwater verify check --reader-command` asks: by other people's code, from the store.

    tailwater verify check --ledger run.ledger --reader-command 'python3 pipelines/verify/readers/reader.py deltalake'

The first argument says by which engine: `deltalake` (delta-rs, through PyArrow) or `duckdb` (its extension `delta`).
Standard input: {"url": address, "options": {store option: value}, "version": number or null}
Standard output: {"rows", "distinct", "sums": {"key", "seq", "crc"}, "checksum"}; sums are texts, since they are large.
The checksum is worked out anew for each row, so it also proves that every column can be read as it was written.
"""
import glob
import json
import site
import sys
import zlib

COLUMNS = ["run_id", "producer", "key", "seq", "batch", "batch_rows", "sent_at", "payload", "crc"]


def by_deltalake(url, options, version):
    import deltalake

    names = {"aws_endpoint": "AWS_ENDPOINT_URL"}
    storage = {names.get(name, name.upper()): value for name, value in options.items()}
    table = deltalake.DeltaTable(url, version=version, storage_options=storage)
    yield from table.to_pyarrow_dataset().to_batches(columns=COLUMNS)


def by_duckdb(url, options, version):
    import duckdb

    connection = duckdb.connect()
    for name in ("httpfs", "delta"):
        load(connection, name)
    connection.execute("SET TimeZone = 'UTC'")
    if options.get("aws_endpoint"):
        connect_s3(connection, options)
    connection.execute(f"SELECT {', '.join(COLUMNS)} FROM delta_scan(?)", [url])
    yield from connection.to_arrow_reader(50_000) if hasattr(connection, "to_arrow_reader") else (
        connection.fetch_record_batch(50_000)
    )


def load(connection, name):
    """From a wheel (`duckdb-extension-…`) where there is one, else as DuckDB itself finds it."""
    for packages in site.getsitepackages():
        for path in glob.glob(f"{packages}/duckdb_extension_{name}/extensions/*/{name}.duckdb_extension"):
            connection.execute(f"LOAD '{path}'")
            return
    connection.execute(f"INSTALL {name}")
    connection.execute(f"LOAD {name}")


def connect_s3(connection, options):
    scheme, endpoint = options["aws_endpoint"].split("://", 1)
    connection.execute(
        "CREATE SECRET (TYPE s3, KEY_ID '{}', SECRET '{}', REGION '{}', ENDPOINT '{}', USE_SSL {}, URL_STYLE 'path')".format(
            options.get("aws_access_key_id", ""),
            options.get("aws_secret_access_key", ""),
            options.get("aws_region", "us-east-1"),
            endpoint.rstrip("/"),
            "true" if scheme == "https" else "false",
        )
    )


def summarize(batches):
    import pyarrow as pa

    rows, checksum, sums, names = 0, 0, {"key": 0, "seq": 0, "crc": 0}, set()
    for batch in batches:
        columns = {}
        for name in COLUMNS:
            column = batch.column(batch.schema.get_field_index(name))
            if name == "sent_at":
                column = column.cast(pa.timestamp("us", column.type.tz)).cast(pa.int64())
            columns[name] = column.to_pylist()
        rows += batch.num_rows
        for name in sums:
            sums[name] += sum(columns[name])
        for row in zip(*(columns[name] for name in COLUMNS[:-1])):
            checksum = (checksum + zlib.crc32("\x1f".join(map(str, row)).encode())) % 2**64
            names.add(hash(row[:4]))
    return {
        "rows": rows,
        "distinct": len(names),
        "sums": {name: str(total) for name, total in sums.items()},
        "checksum": str(checksum),
    }


if __name__ == "__main__":
    engines = {"deltalake": by_deltalake, "duckdb": by_duckdb}
    if len(sys.argv) != 2 or sys.argv[1] not in engines:
        sys.exit(f"usage: reader.py {'|'.join(engines)}")
    question = json.load(sys.stdin)
    read = engines[sys.argv[1]]
    print(json.dumps(summarize(read(question["url"], question.get("options") or {}, question.get("version")))))
