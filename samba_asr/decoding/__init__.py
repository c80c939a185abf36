"""From states to tokens."""
