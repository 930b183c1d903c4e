"""A Python program with a database, told what to do by another program: one JSON object a line in, one a line out.

    {"run": SQL, "with": [VALUE, ...]}            rows of one statement; a write is committed at once
    {"transaction": [[SQL, [VALUE, ...]], ...], "rollback": BOOL}
    {"changes": SINCE, "for": SITE}               what is above a version and does not come from that site
    {"merge": [CHANGE, ...]}

The answer is {"rows": [[VALUE, ...], ...]} or {"error": TEXT}. A VALUE is null or {TYPE: TEXT}, so that JSON changes nothing:
"integer" in digits, "real" as the hex digits of its eight bytes, "text", "blob" in hex digits.
"""

import json
import os
import sqlite3
import struct
import sys

CHANGES = """SELECT "table", pk, cid, val, col_version, db_version, site_id, cl, seq FROM crsql_changes
             WHERE db_version > ? AND site_id IS NOT ? ORDER BY db_version, seq"""
MERGE = "INSERT INTO crsql_changes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"


def encode(value):
    if value is None:
        return None
    if isinstance(value, int):
        return {"integer": str(value)}
    if isinstance(value, float):
        return {"real": struct.pack(">d", value).hex()}
    if isinstance(value, str):
        return {"text": value}
    return {"blob": value.hex()}


def decode(value):
    if value is None:
        return None
    ((kind, text),) = value.items()
    if kind == "integer":
        return int(text)
    if kind == "real":
        return struct.unpack(">d", bytes.fromhex(text))[0]
    return text if kind == "text" else bytes.fromhex(text)


def answer(db, order):
    if "run" in order:
        with db:
            return db.execute(order["run"], [decode(value) for value in order.get("with", [])]).fetchall()
    if "changes" in order:
        return db.execute(CHANGES, (order["changes"], decode(order["for"]))).fetchall()
    if "merge" in order:
        with db:
            db.executemany(MERGE, ([decode(value) for value in change] for change in order["merge"]))
        return []
    db.execute("BEGIN IMMEDIATE")
    try:
        for sql, values in order["transaction"]:
            db.execute(sql, [decode(value) for value in values])
    except sqlite3.Error:
        db.rollback()
        raise
    db.rollback() if order["rollback"] else db.commit()
    return []


def main(path):
    db = sqlite3.connect(path, timeout=30)
    db.enable_load_extension(True)
    db.load_extension(os.environ["LITEMESH_EXTENSION"])
    for line in sys.stdin:
        try:
            reply = {"rows": [[encode(value) for value in row] for row in answer(db, json.loads(line))]}
        except sqlite3.Error as error:
            reply = {"error": str(error)}
        print(json.dumps(reply), flush=True)
    db.close()


main(sys.argv[1])
