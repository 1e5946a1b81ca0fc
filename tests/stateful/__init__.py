"""State machines: Hypothesis draws histories of verbs, and a model in plain dictionaries says what must come of them.

``allocations.py`` is the model of a node's slots and a run's items for the allocator; ``model.py`` that of runs, shards
and allocations for the lifecycle.
"""
