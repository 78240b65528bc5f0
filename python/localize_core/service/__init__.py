"""The HTTP service: fixes, stations, a live map and inference over HTTP, for whoever never sees GNU Radio."""
