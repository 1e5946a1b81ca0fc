"""A simulator: whole worlds of one parent, its children and a bad network in virtual time, the same for the same seed.

``python -m tests.sim --seeds 500`` runs so many worlds; ``--seed 7`` runs one again and tells what happened in it.

What is real: the parent's verbs, views, sockets, dispatcher and saver, and the children's agent with its link, sender
and outbox. All of it is production code; the control database is SQLite in memory, put back for each world.
What is not: time (``clock``), the wire between processes (``network``), what a worker process computes (``pool``),
signatures, and the result store. That is a dictionary with the same transactions (``store``), because a DuckDB file
takes longer to open than most worlds last; but each tenth world has the real one, and there a crash is a copy of its
files as they are at that moment.

``clock`` has processes, each an event loop of its own with its own clock, so that one can be frozen, or end without a
last word. Production's threads are greenlets there: they stop where they wait, and at fail-points. ``faults`` decides
what goes wrong; ``operator`` is a person who cancels, retries, drains, revokes; ``promises`` looks at the database
after every commit, and at everything in the end. ``world`` makes all that from a seed and runs it; ``runs`` has it done
in another process.
"""
