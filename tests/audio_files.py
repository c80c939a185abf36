"""Audio files in formats that only FFmpeg writes."""

from fractions import Fraction

import av
import numpy as np


def encode(path, samples, codec, sample_rate=16000, video=False, bit_rate=64000, **options):
    """Write (samples,) at 16 kHz with FFmpeg; video adds a black picture track."""
    with av.open(str(path), "w", **options) as container:
        pictures = container.add_stream("mpeg4", rate=10, width=64, height=48) if video else None
        sound = container.add_stream(codec, rate=sample_rate, layout="mono") if codec else None
        if pictures:
            for _ in range(10):
                container.mux(pictures.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), "rgb24")))
            container.mux(pictures.encode(None))
        if sound:
            sound.bit_rate = bit_rate
            frame = av.AudioFrame.from_ndarray((samples[None] * 32767).astype(np.int16), "s16", "mono")
            frame.sample_rate, frame.pts, frame.time_base = 16000, 0, Fraction(1, 16000)  # the codec's delay is told
            size = sound.codec_context.frame_size or None
            resampler = av.AudioResampler(sound.format, "mono", sample_rate, size)
            for piece in resampler.resample(frame) + resampler.resample(None):
                container.mux(sound.encode(piece))
            container.mux(sound.encode(None))
    return path
