#!/usr/bin/env python3
"""Makes the files of this folder from the SteelWheels data set (see README.md): convert.py JAR.

The jar holds an HSQLDB script: CREATE lines name the columns, INSERT lines hold one row each.
Nothing is left out of the five tables and no value is made up; README.md lists what is written differently.
"""
import csv
import json
import pathlib
import re
import sys
import zipfile

HERE = pathlib.Path(__file__).resolve().parent

# Table in the jar: our name, how it is written, and our column for each of its columns.
TABLES = {
    "orders": ("orders", "ndjson", {
        "ORDERNUMBER": "order_number", "ORDERDATE": "order_date", "REQUIREDDATE": "required_date",
        "SHIPPEDDATE": "shipped_date", "STATUS": "status", "COMMENTS": "comments",
        "CUSTOMERNUMBER": "customer_number"}),
    "orderdetails": ("lines", "ndjson", {
        "ORDERNUMBER": "order_number", "PRODUCTCODE": "product_code", "QUANTITYORDERED": "quantity_ordered",
        "PRICEEACH": "price_each", "ORDERLINENUMBER": "line_number"}),
    "payments": ("payments", "ndjson", {
        "CUSTOMERNUMBER": "customer_number", "CHECKNUMBER": "check_number", "PAYMENTDATE": "payment_date",
        "AMOUNT": "amount"}),
    "customers": ("customers", "csv", {
        "CUSTOMERNUMBER": "customer_number", "CUSTOMERNAME": "customer_name", "CONTACTLASTNAME": "contact_last_name",
        "CONTACTFIRSTNAME": "contact_first_name", "PHONE": "phone", "ADDRESSLINE1": "address_line_1",
        "ADDRESSLINE2": "address_line_2", "CITY": "city", "STATE": "state", "POSTALCODE": "postal_code",
        "COUNTRY": "country", "SALESREPEMPLOYEENUMBER": "sales_rep_employee_number", "CREDITLIMIT": "credit_limit"}),
    "products": ("products", "csv", {
        "PRODUCTCODE": "product_code", "PRODUCTNAME": "product_name", "PRODUCTLINE": "product_line",
        "PRODUCTSCALE": "product_scale", "PRODUCTVENDOR": "product_vendor", "PRODUCTDESCRIPTION": "product_description",
        "QUANTITYINSTOCK": "quantity_in_stock", "BUYPRICE": "buy_price", "MSRP": "msrp"}),
}

# Events come in the order in which they happened; rows of the same moment keep their order.
EVENT_TIME = {"orders": "order_date", "payments": "payment_date"}

MOMENT = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}")
VALUE = re.compile(r"'((?:[^']|'')*)'|([^,]+)")


def mended(text):
    """Characters stand in the script as `u00e9`, their backslash lost. Those from 80 to 9f are meant as Windows-1252."""
    def character(match):
        code = int(match[1], 16)
        return bytes([code]).decode("cp1252") if 0x80 <= code < 0xA0 else chr(code)
    text = re.sub(r"u00([0-9a-f]{2})", character, text)
    return re.sub(r"\s*[\r\n]+\s*", " ", text).strip()


def moment(text):
    """An ISO timestamp in UTC; the script names no time zone."""
    day, time = text.split(" ")
    return f"{day}T{time.removesuffix('.000000')}Z"


def value(quoted, bare):
    if bare:
        return None if bare == "NULL" else int(bare)
    text = quoted.replace("''", "'")
    return moment(text) if MOMENT.fullmatch(text) else mended(text)


def rows(script, table):
    created = next(line for line in script if line.startswith(f'CREATE MEMORY TABLE "steelwheels"."{table}"('))
    columns = re.findall(r'"([A-Z0-9]+)" (?:INTEGER|SMALLINT|VARCHAR|DECIMAL|TIMESTAMP)', created)
    start = f'INSERT INTO "{table}" VALUES('
    for line in script:
        if line.startswith(start):
            values = [value(*found.groups()) for found in VALUE.finditer(line[len(start):-1])]
            assert len(values) == len(columns), line
            yield dict(zip(columns, values))


def write(name, form, data):
    with open(HERE / f"{name}.{form}", "w", encoding="utf-8", newline="") as out:
        if form == "csv":
            writer = csv.DictWriter(out, data[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(data)
        else:
            out.writelines(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n" for row in data)


def main(jar):
    with zipfile.ZipFile(jar) as archive:
        script = archive.read("steelwheels.script").decode("ascii").splitlines()
        licence, notice = archive.read("META-INF/LICENSE"), archive.read("META-INF/NOTICE")
    for table, (name, form, names) in TABLES.items():
        data = [{new: row[old] for old, new in names.items()} for row in rows(script, table)]
        if name in EVENT_TIME:
            data.sort(key=lambda row: row[EVENT_TIME[name]])
        write(name, form, data)
        print(f"{name}: {len(data)} rows")
    (HERE / "LICENSE").write_bytes(licence.lstrip(b"\n"))
    (HERE / "NOTICE").write_bytes(notice)


main(sys.argv[1])
