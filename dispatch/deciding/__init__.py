"""What shall become of runs, shards and allocations: pure functions of what is there, what happened, and when.

``records`` is what is there, as a decision needs to see it; ``effects`` is what a decision wants changed, as data;
``reports``, ``leases`` and ``endings`` decide. No database, no clock, no network: ``dispatch.lifecycle`` loads the
records, asks, and writes the effects down in the same transaction. Anything else that can load and write them, such as
dictionaries in a test, gets the same decisions.
"""
