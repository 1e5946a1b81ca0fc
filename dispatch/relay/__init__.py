"""A relay: a node above gives it shards, which it has its own nodes run, and whose rows it passes on.

``taking`` makes of an allocation above a run below, ``forwarding`` of receipts below the reports above, ``offering``
says what the nodes below can do now, ``subtree`` what hangs there, ``upward`` is the loop that talks to the parent. A
relay below is asked by ``asking``.
"""
