"""The extension in Python's sqlite3: what a program may rely on, and that nothing it passes can end the process."""

import itertools
import os
import sqlite3
import tempfile
import threading
import unittest

EXTENSION = os.environ["LITEMESH_EXTENSION"]
CHANGES = """SELECT "table", pk, cid, val, col_version, db_version, site_id, cl, seq FROM crsql_changes
             WHERE db_version > ? AND site_id IS NOT ? ORDER BY db_version, seq"""
MERGE = "INSERT INTO crsql_changes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"


def connect(path=":memory:", **options):
    db = sqlite3.connect(path, **options)
    db.enable_load_extension(True)
    db.load_extension(EXTENSION)
    db.enable_load_extension(False)
    return db


def create(path=":memory:"):
    db = connect(path)
    db.execute("CREATE TABLE item (id TEXT PRIMARY KEY NOT NULL, a, b)")
    db.execute("SELECT crsql_as_crr('item')")
    db.commit()
    return db


def exchange(source, target, since=0):
    (site,) = target.execute("SELECT crsql_site_id()").fetchone()
    with target:
        target.executemany(MERGE, source.execute(CHANGES, (since, site)))
    return source.execute("SELECT crsql_db_version()").fetchone()[0]


class Extension(unittest.TestCase):
    def test_two_databases_converge(self):
        a, b = create(), create()
        with a:
            rows = [("x", 1, b"\0\xff"), ("y", 2.5, None), ("z", "é", 2**63 - 1)]
            a.executemany("INSERT INTO item VALUES (?, ?, ?)", rows)
        a_sent = exchange(a, b)
        with a, b:
            a.execute("UPDATE item SET a = 'a' WHERE id = 'x'")
            a.execute("DELETE FROM item WHERE id = 'y'")
            b.execute("UPDATE item SET a = 'b', b = 7 WHERE id = 'x'")
            b.execute("UPDATE item SET a = 'late' WHERE id = 'y'")
        exchange(a, b, a_sent)
        exchange(b, a)
        rows = a.execute("SELECT * FROM item ORDER BY id").fetchall()
        self.assertEqual(rows, [("x", "b", 7), ("z", "é", 2**63 - 1)])
        self.assertEqual(b.execute("SELECT * FROM item ORDER BY id").fetchall(), rows)

    def test_a_rollback_takes_the_clocks_with_it(self):
        db = create()
        db.execute("INSERT INTO item VALUES ('a', 1, 1)")
        db.rollback()
        self.assertEqual(db.execute("SELECT crsql_db_version(), (SELECT count(*) FROM crsql_changes)").fetchone(), (0, 0))
        with self.assertRaises(ZeroDivisionError), db:
            db.execute("INSERT INTO item VALUES ('b', 1, 1)")
            1 / 0
        with db:
            db.execute("INSERT INTO item VALUES ('c', 1, 1)")
        self.assertEqual(db.execute("SELECT DISTINCT db_version FROM crsql_changes").fetchall(), [(1,)])

    def test_closing_lets_the_file_go(self):
        """BUG-22: Python closes with sqlite3_close_v2, which would hide a statement that is left open, not the open file."""
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(os.path.realpath(folder), "a.db")

            def open_files():
                links = (os.path.join("/proc/self/fd", fd) for fd in os.listdir("/proc/self/fd"))
                return [link for link in links if os.path.lexists(link) and os.readlink(link) == path]

            db = create(path)
            with db:
                db.execute("INSERT INTO item VALUES ('a', 1, 1)")
            exchange(create(), db)
            db.execute("SELECT * FROM crsql_changes").fetchone()
            self.assertEqual(len(open_files()), 1)
            db.close()
            self.assertEqual(open_files(), [])

    def test_a_statement_that_outlives_its_connection_is_harmless(self):
        with tempfile.TemporaryDirectory() as folder:
            db = create(os.path.join(folder, "a.db"))
            with db:
                db.executemany("INSERT INTO item VALUES (?, 1, 1)", [(str(n),) for n in range(100)])
            rows = db.execute("SELECT * FROM crsql_changes")
            rows.fetchone()
            db.close()
            with self.assertRaises(sqlite3.ProgrammingError):
                rows.fetchone()

    def test_callbacks_of_the_host_stay(self):
        """BUG-21: tracing, progress and the authorizer are Python's own, whoever came first."""
        db = sqlite3.connect(":memory:")
        traced, asked, authorized = [], [], []
        db.set_trace_callback(traced.append)
        db.set_progress_handler(lambda: asked.append(1), 1)
        db.set_authorizer(lambda *event: authorized.append(event) or sqlite3.SQLITE_OK)
        db.enable_load_extension(True)
        db.load_extension(EXTENSION)
        db.execute("CREATE TABLE item (id TEXT PRIMARY KEY NOT NULL, a)")
        db.execute("SELECT crsql_as_crr('item')")
        del traced[:], asked[:], authorized[:]
        db.execute("INSERT INTO item VALUES ('a', 1)")
        self.assertTrue(any("INSERT INTO item" in statement for statement in traced))
        self.assertTrue(asked)
        self.assertTrue(any(event[0] == sqlite3.SQLITE_INSERT and event[1] == "item" for event in authorized))

    def test_a_progress_handler_can_interrupt(self):
        db = create()
        with db:
            db.executemany("INSERT INTO item VALUES (?, 1, 1)", [(str(n),) for n in range(500)])
        db.set_progress_handler(lambda: 1, 100)
        with self.assertRaisesRegex(sqlite3.OperationalError, "interrupted"):
            db.execute("SELECT count(*) FROM crsql_changes, item").fetchone()
        db.set_progress_handler(None, 0)
        self.assertEqual(db.execute("SELECT count(*) FROM crsql_changes").fetchone(), (1000,))

    def test_no_argument_of_a_function_ends_the_process(self):
        """BUG-9. Whatever happens is a value or an error of SQLite; a crash would end this test with the process."""
        numbers = [0, -1, 2**63 - 1, -(2**63), 1.5, float("inf")]
        values = [None, *numbers, "", "item", "main", "no such", "\0", b"", b"\x01\x09", b"\xff" * 40]
        names = {name for (name,) in connect().execute("SELECT DISTINCT name FROM pragma_function_list")}
        ours = sorted(name for name in names if name.startswith(("crsql_", "litemesh_")))
        self.assertIn("crsql_as_crr", ours)
        self.assertIn("litemesh_version", ours)
        answered = refused = 0
        for name in ours:
            # The bit switches the recording off, which is no crash, but would make the rest of this test say less.
            if name == "crsql_internal_sync_bit":
                continue
            db = create()
            for count in range(4):
                for arguments in itertools.product(values if count < 3 else values[::4], repeat=count):
                    try:
                        db.execute(f"SELECT {name}({','.join('?' * count)})", arguments).fetchall()
                        answered += 1
                    except sqlite3.Error:
                        refused += 1
            db.rollback()
            # Whatever was done to `item`, the connection goes on.
            db.execute("CREATE TABLE after (id TEXT PRIMARY KEY NOT NULL, a)")
            db.execute("SELECT crsql_as_crr('after')")
            with db:
                db.execute("INSERT INTO after VALUES ('a', 1)")
            count = """SELECT count(*) FROM crsql_changes WHERE "table" = 'after'"""
            self.assertEqual(db.execute(count).fetchone(), (1,), name)
            db.close()
        self.assertGreater(answered, 100)
        self.assertGreater(refused, 100)

    def test_no_change_ends_the_process(self):
        db = create()
        good = ["item", b"\x01\x0b\x01a", "a", 1, 1, 1, b"\x07" * 16, 1, 0]
        keys = [b"", b"\x01", b"\x01\xff", b"\x05" * 17, b"\xff\x09\x01"]
        bad = [None, -1, 2**63 - 1, 0.5, float("inf"), "", "no such", "x" * 5000, *keys]
        refused = 0
        for index, value in itertools.product(range(len(good)), bad):
            change = good.copy()
            change[index] = value
            try:
                with db:
                    db.execute(MERGE, change)
            except sqlite3.Error:
                refused += 1
        self.assertGreater(refused, 20)
        with self.assertRaises(sqlite3.Error):
            db.execute("UPDATE crsql_changes SET val = 1")
        with self.assertRaises(sqlite3.Error):
            db.execute("DELETE FROM crsql_changes")

    def test_threads_have_their_own_connections(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "a.db")
            create(path).close()
            failures = []

            def write(thread):
                try:
                    db = connect(path, timeout=60)
                    for row in range(25):
                        with db:
                            db.execute("INSERT INTO item VALUES (?, ?, ?)", (f"{thread}-{row}", thread, row))
                    db.close()
                except Exception as error:
                    failures.append(error)

            threads = [threading.Thread(target=write, args=(thread,)) for thread in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            self.assertEqual(failures, [])
            db = connect(path)
            versions = "SELECT crsql_db_version(), count(DISTINCT db_version) FROM crsql_changes"
            self.assertEqual(db.execute(versions).fetchone(), (100, 100))


if __name__ == "__main__":
    print("Python's SQLite:", sqlite3.sqlite_version)
    unittest.main()
