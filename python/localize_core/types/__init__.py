"""Plain value types that every stage shares. They know nothing of the stages."""
