"""Corpora, batches and the training loop."""
