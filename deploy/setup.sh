#!/bin/sh
# Once before the parent starts: the database is brought up to date, and each child named here is registered, with its
# keys in a file of the shared volume /keys. Running it again changes nothing.
set -eu
keys=${KEYS:-/keys}
python manage.py migrate --verbosity 0
known=$(python manage.py node list --json)
for name in "$@"; do
    if ! echo "$known" | grep -qF "\"name\": \"$name\""; then
        # A file that is there all the same is of a database that is gone.
        rm -f "$keys/$name"
        python manage.py node add "$name" --capacity "${CAPACITY:-4}" --key-file "$keys/$name"
    elif [ ! -s "$keys/$name" ]; then
        python manage.py node rotate "$name" --key-file "$keys/$name"
    fi
done
