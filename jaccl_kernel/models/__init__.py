"""Models: facts and sizes, splits over ranks, local paths, and the demo model."""
