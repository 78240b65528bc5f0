"""Models in service: one engine answers streams and requests, and watches, exchanges and compares its models.

Above `engine`, which turns one window into one fix with one model, and below blocks and commands.
"""
