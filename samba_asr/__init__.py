"""Samba-ASR: a speech recogniser built on state-space models alone."""

__version__ = "0.1.0"
