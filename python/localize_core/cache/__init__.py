"""Answers that were given before: exact keys, a store in this process, and one that processes share."""
