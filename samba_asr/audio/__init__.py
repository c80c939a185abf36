"""Any audio file to 16 kHz mono, log-mel features, augmentation."""
