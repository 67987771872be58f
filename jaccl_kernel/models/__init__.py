"""What a model is, how it splits over ranks, where it lies, and the small one that we bring along."""
