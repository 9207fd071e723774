"""The figures: one module each, compute(config) -> data and draw(data) -> Figure."""
