"""Temporary door."""

from localize_core.cache.similarity import SimilarityCache

__all__ = ["SimilarityCache"]
