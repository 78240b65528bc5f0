"""Encoders of fixes. The JSON form and its schema are the reference; every other form derives from them."""
