"""Encoder, decoder, the whole recogniser, and its checkpoint folder."""
