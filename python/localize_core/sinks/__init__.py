"""Sinks of fixes. Each opens, publishes and closes, counts what it sent and what it dropped, and knows nothing
of where fixes come from. Every sink has the shape of `FixSink`.
"""
