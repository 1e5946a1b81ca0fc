#!/bin/sh
# Once before the parent starts: the database is brought up to date, and each child named here is registered, with its
# keys in a file of the shared volume /keys. Running it again changes nothing.
set -eu
python manage.py migrate --verbosity 0
for name in "$@"; do
    [ -s "/keys/$name" ] || python manage.py node add "$name" --capacity "${CAPACITY:-4}" --key-file "/keys/$name"
done
