"""State-space layers: scans, causal convolution, Mamba mixers."""
