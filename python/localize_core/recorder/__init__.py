"""What receivers heard, in files: SigMF recordings that stay readable whatever happens, and all that a replay needs."""
