"""How far a student is from its teacher: word error rates through the teacher's own decoder."""

from collections.abc import Sequence

import torch
from torch import Tensor

from samba_asr.audio.features import LogMel
from samba_asr.audio.load import load_audio
from samba_asr.evaluation.wer import ScoredUtterance, score
from samba_asr.model.encoder import Encoder
from samba_asr.training.manifest import Utterance
from samba_asr.training.whisper.network import Teacher
from samba_asr.training.whisper.transcribe import padded_states, teacher_features, transcribe_states
from samba_asr.training.whisper.vocabulary import WhisperVocabulary
from samba_asr.training.whisper.windows import SAMPLE_RATE, STATE_SAMPLES, WINDOW_STATES

_BATCH = 10


class TeacherWer:
    """Scores a student on some utterances, each by itself and without padding.

    The teacher's decoder loops on states that end with the words; so behind a student's states come the teacher's of
    silence. What the teacher scores on its own states of padded audio is computed once.

    utterances: those to choose from; count: how many are taken, evenly spread.
    """

    def __init__(self, teacher: Teacher, tokenizer: str, utterances: Sequence[Utterance], count: int) -> None:
        self.teacher = teacher
        self.vocabulary = WhisperVocabulary.load(tokenizer)
        count = min(count, len(utterances))
        self.utterances = [utterances[i * len(utterances) // count] for i in range(count)]
        self.device = teacher.encoder.ln_post.weight.device
        self.features = teacher_features(teacher.encoder)
        self.waveforms = [
            torch.from_numpy(load_audio(utterance.audio, SAMPLE_RATE))[: WINDOW_STATES * STATE_SAMPLES]
            for utterance in self.utterances
        ]
        self.silence = padded_states(teacher, self.features, [torch.zeros(1)])[0]
        self.teacher_wer = self._wer([padded_states(teacher, self.features, [each])[0] for each in self.waveforms])

    def __call__(
        self, encoder: Encoder, features: LogMel, means: Tensor, offset: Tensor, stride: int
    ) -> tuple[float, float]:
        """Return the student's WER and the teacher's.

        features: the student's; means: (1500, d_model), added to its states; offset: (1500, d_model), added to what
        its stem gives; stride: the teacher's states for one of the student's, means and offset: the teacher's decoder
        is then given fewer states, which its attention does not mind.
        """
        states = []
        for waveform in self.waveforms:
            mels, lengths = features(waveform[None].to(self.device), torch.tensor([len(waveform)], device=self.device))
            said = encoder(mels, lengths, offset=offset[::stride])[0][0].float()
            whole = self.silence[::stride].clone()
            whole[: len(said)] = said + means[::stride][: len(said)].to(said)
            states.append(whole)
        return self._wer(states), self.teacher_wer

    def _wer(self, states: Sequence[Tensor]) -> float:
        texts: list[str] = []
        for start in range(0, len(states), _BATCH):
            batch = torch.stack(list(states[start : start + _BATCH]))
            texts += transcribe_states(self.teacher, self.vocabulary, batch, max_tokens=120)
        pairs = zip(self.utterances, texts, strict=True)
        return score([ScoredUtterance(u.audio, u.duration, u.text, text) for u, text in pairs]).rate
