"""The agent: connects outwards to a parent, takes shards, runs them, reports. Imports no Django.

loop.py      what it holds and what it does next
carriers.py  how messages travel: REST, WebSocket, and which of them now
outbox.py    finished work on disk until its receipt
pool.py      worker processes
runner.py    what a worker does with a shard
config.py    every setting of the agent
"""
