"""Searching a strategy's parameters: which trials there are, and what one is worth.

``space`` says what may vary, ``searching`` which trials a run begins with, ``advice`` what TPE tries next, ``scoring``
how a trial is judged. Light to import: numpy comes with the first score, optuna with the first advice.
"""
