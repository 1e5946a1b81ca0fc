"""Technical indicators over one symbol's bars.

``table`` says which there are: light, for a parent and an agent that check params. ``engines`` computes them, by TA-Lib
or by numpy and pandas, and is for workers only. Here are no bars, no signals and no rows: see
``nodes.executors.analysis``.
"""
