"""How the test scripts open Delta tables: through deltalake and through DuckDB, locally or on S3.

Both readers get the same store options, in the object_store spelling that Tailwater itself takes.
"""
import glob
import site

import deltalake
import duckdb


def open_deltalake(address, options):
    names = {"aws_endpoint": "AWS_ENDPOINT_URL"}
    return deltalake.DeltaTable(address, storage_options={names.get(k, k.upper()): v for k, v in options.items()})


def open_duckdb(options):
    """A connection that can read Delta tables; the extensions come from wheels, since nothing is installed by network."""
    connection = duckdb.connect()
    packages = site.getsitepackages()[0]
    for name in ("httpfs", "delta"):
        pattern = f"{packages}/duckdb_extension_{name}/extensions/*/{name}.duckdb_extension"
        connection.execute(f"LOAD '{glob.glob(pattern)[0]}'")
    connection.execute("SET TimeZone = 'UTC'")
    if options:
        endpoint = options["aws_endpoint"].split("://", 1)[1]
        connection.execute(
            "CREATE SECRET (TYPE s3, KEY_ID '{}', SECRET '{}', REGION '{}', ENDPOINT '{}', USE_SSL {}, URL_STYLE 'path')".format(
                options["aws_access_key_id"], options["aws_secret_access_key"], options["aws_region"], endpoint,
                str(not options["aws_endpoint"].startswith("http://")).lower(),
            )
        )
    return connection


def quoted(name):
    return '"' + name.replace('"', '""') + '"'
