"""Attacks: requests, frames, files, addresses and names that nobody means well with."""
