"""A simulator: whole worlds of parents, relays, children and a bad network in virtual time, the same for the same seed.

``python -m tests.sim --seeds 500`` runs so many worlds with one parent, and so many trees with relays; ``--seed 7``, or
``--seed t7`` for a tree, runs one again and tells what happened in it.

What is real: the parent's verbs, views, sockets, dispatcher and saver, a relay's line to its parent, and the children's
agent with its link, sender and outbox. All of it is production code; the control databases are SQLite in memory, as
after the migrations in each world.
What is not: time (``clock``), the wire between processes (``network``), what a worker process computes (``pool``),
signatures, and the result store. That is a dictionary with the same transactions (``store``), because a DuckDB file
takes longer to open than most worlds last; but each tenth world has the real one, and there a crash is a copy of its
files as they are at that moment.

``clock`` has processes, each an event loop of its own with its own clock, so that one can be frozen, or end without a
last word. Production's threads are greenlets there: they stop where they wait, and at fail-points. ``faults`` decides
what goes wrong; ``operator`` is a person who cancels, retries, drains, revokes; ``promises`` looks at the database
after every commit, and at everything in the end. Each server has a ``machine``: its database and what its modules
know, put in place whenever code of that server goes on. ``world`` makes all that from a seed and runs it; ``trees`` are
worlds with ``relays``, and ``runs`` has them done in another process.
"""
