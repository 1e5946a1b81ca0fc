"""The agent: connects outwards to a parent, takes shards, runs them, reports. Imports no Django.

loop.py      what it holds and what it does next
carriers.py  how messages travel: REST, WebSocket, and which of them now
outbox.py    finished work on disk until its receipt
pool.py      which worker process a bundle goes to, and how it ends; workers.py: one of them, as the pool sees it
serving.py   the life of a worker process: one bundle at a time, or many as threads
runner.py    what a worker does with a shard; capture.py: what a shard prints and logs
config.py    every setting of the agent
"""
