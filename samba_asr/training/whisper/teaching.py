"""The teacher that a run's settings name, beside its transcripts."""

import logging

from samba_asr.text.normalization import TextForm
from samba_asr.text.tokenizer import Tokenizer
from samba_asr.training.config import EncoderTuningConfig, TrainingConfig
from samba_asr.training.data import Selection
from samba_asr.training.whisper.matching import LiveMatching, Matching, StateMatching
from samba_asr.training.whisper.network import TeacherEncoder, build_teacher, build_teacher_encoder
from samba_asr.training.whisper.reading import Reader
from samba_asr.training.whisper.weights import read_whisper_weights

log = logging.getLogger(__name__)


def build_matching(config: TrainingConfig, train_set: Selection, tokenizer: Tokenizer) -> Matching | None:
    """Return what tells how far the student is from its teacher, None for a run without one.

    Raises FileNotFoundError or ValueError for files that are missing or no use, or a teacher of another width.
    """
    matching: Matching
    if config.encoder.teacher_run is None:
        return None
    if config.encoder.teacher is not None:
        longest = config.data.max_duration / min(config.data.speed_factors)
        encoder, reader = _listener(config.encoder, tokenizer, config.data.text_form)
        matching = LiveMatching(config.encoder.teacher_run, encoder, longest, reader)
        matching.interprets = config.expectation_weight > 0
    else:
        matching = StateMatching(config.encoder.teacher_run, [utterance.audio for utterance in train_set.utterances])
    if matching.means.shape[1] != config.model.d_model:
        raise ValueError(
            f"encoder.teacher_run: the teacher's d_model ({matching.means.shape[1]}) must be the model's "
            f"({config.model.d_model})"
        )
    if isinstance(matching, StateMatching):
        log.info("teacher: knows %d utterances", sum(place is not None for place in matching.places))
    return matching


def _listener(
    settings: EncoderTuningConfig, tokenizer: Tokenizer, text_form: TextForm
) -> tuple[TeacherEncoder, Reader | None]:
    """Return a teacher's encoder, all that its file must hold unless its decoder reads along, and that decoder."""
    path, its_tokenizer = settings.teacher, settings.teacher_tokenizer
    assert path is not None
    weights = read_whisper_weights(path)
    if its_tokenizer is None:
        return build_teacher_encoder(weights), None
    try:
        from samba_asr.training.whisper.vocabulary import WhisperVocabulary
    except ModuleNotFoundError as error:
        raise ValueError(
            f"encoder.teacher_tokenizer needs more packages ({error}): pip install -e '.[train,distil]'"
        ) from error
    vocabulary = WhisperVocabulary.load(its_tokenizer)
    try:
        teacher = build_teacher(weights)
        return teacher.encoder, Reader(teacher.decoder, vocabulary, tokenizer, text_form)
    except ValueError as error:
        raise ValueError(
            f"encoder.teacher ({path}) cannot read with encoder.teacher_tokenizer ({its_tokenizer}): {error}"
        ) from error
