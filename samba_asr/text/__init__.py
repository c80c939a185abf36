"""SentencePiece tokenizer and the normalisation of training text."""
