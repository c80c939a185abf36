"""From a Whisper teacher to a Samba: its weights, its network, and the stages that turn it into state-space layers."""
