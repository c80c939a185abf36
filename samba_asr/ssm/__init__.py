"""State-space layers: scans, convolutions, and the mixers made of them."""
