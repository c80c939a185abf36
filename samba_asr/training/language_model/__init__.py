"""Training of the language model that joint search can weigh texts with."""
