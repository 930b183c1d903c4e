#!/usr/bin/env bash
# Two databases, written and synced by the sqlite3 shell alone. LITEMESH_EXTENSION: the extension.
set -euo pipefail

extension=${LITEMESH_EXTENSION:?path of the extension}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

# The shell on one database, with the extension loaded. Stops at the first error.
db() {
    sqlite3 -bail -batch -cmd ".load $extension" "$@"
}

# Prints what a database has above a version as INSERT statements, except what was merged from the site $3.
changes() {
    echo "BEGIN;"
    db -cmd ".mode insert crsql_changes" "$1" \
        "SELECT * FROM crsql_changes WHERE db_version > $2 AND site_id <> x'$3' ORDER BY db_version, seq"
    echo "COMMIT;"
}

site() {
    db "$1" "SELECT hex(crsql_site_id())"
}

expect() {
    [ "$2" = "$3" ] && return
    printf '%s: expected\n%s\nbut there is\n%s\n' "$1" "$2" "$3" >&2
    exit 1
}

for file in a.db b.db; do
    db $file "CREATE TABLE note (id TEXT PRIMARY KEY NOT NULL, title, body); SELECT crsql_as_crr('note')" >as_crr.txt
    expect "as_crr" "OK" "$(cat as_crr.txt)"
done

db a.db "INSERT INTO note VALUES ('1', 'it''s', x'00ff'), ('2', 0.1, NULL), ('3', 9223372036854775807, -1.0)"
changes a.db 0 "$(site b.db)" | db b.db
db a.db "UPDATE note SET title = 'a' WHERE id = '1'; DELETE FROM note WHERE id = '2'"
db b.db "UPDATE note SET title = 'b', body = 'é' WHERE id = '1'; UPDATE note SET title = 'late' WHERE id = '2'"
changes a.db 1 "$(site b.db)" >to_b.sql
changes b.db 1 "$(site a.db)" | db a.db
db b.db <to_b.sql

rows="SELECT quote(id), quote(title), quote(body) FROM note ORDER BY id"
expect "rows" "'1'|'b'|'é'
'3'|9223372036854775807|-1.0" "$(db a.db "$rows")"
expect "rows of both" "$(db a.db "$rows")" "$(db b.db "$rows")"
clocks="SELECT hex(pk), cid, quote(val), col_version, hex(site_id), cl FROM crsql_changes ORDER BY 1, 2"
expect "clocks of both" "$(db a.db "$clocks")" "$(db b.db "$clocks")"

# A connection without the engine cannot write unseen (1.4), and can read.
if sqlite3 a.db "DELETE FROM note" 2>refused.txt; then
    echo "a write without the extension was not refused" >&2
    exit 1
fi
grep -q "no such function" refused.txt
expect "count" "2" "$(sqlite3 a.db "SELECT count(*) FROM note")"
echo "shell: ok, with SQLite $(sqlite3 --version | cut -d' ' -f1)"
