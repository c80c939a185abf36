"""A decoder that starts from its teacher's: feed-forward layers and norms copied, mixers for causal self-attention.

Each mixer learns, as in stage (a) of the encoder, to say what its attention layer said, given what that layer was
given, while the teacher reads transcripts with the recordings at hand. A piece's embedding is the mean of its text's
Whisper tokens'. The cross-connections begin by adding nothing: attention over the recording has no counterpart. So what
mixers are given here holds positions and what cross-attention heard, and later it does not: a start, not a decoder.
Issue 3.
"""

import dataclasses
import json
import logging
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from samba_asr.atomic import replacing
from samba_asr.config import DecoderConfig, ModelConfig
from samba_asr.model.checkpoint import as_stored
from samba_asr.model.decoder import Decoder, DecoderBlock
from samba_asr.text.normalization import normalize_text
from samba_asr.text.tokenizer import BLANK_ID, BOS_ID, EOS_ID, UNK_ID, Tokenizer
from samba_asr.training.data import read_manifests
from samba_asr.training.module import MAX_SKIPPED_IN_A_ROW, parameter_groups
from samba_asr.training.resume import check_folder, tokenizer_hash
from samba_asr.training.schedule import learning_rate_share
from samba_asr.training.whisper.network import Block, LayerTap, Teacher, build_teacher
from samba_asr.training.whisper.settings import DecoderDistilConfig
from samba_asr.training.whisper.student import relative_error
from samba_asr.training.whisper.targets import TRAIN_FOLDER, TeacherStates, Windows
from samba_asr.training.whisper.vocabulary import WhisperVocabulary
from samba_asr.training.whisper.weights import read_whisper_weights

log = logging.getLogger(__name__)

DECODER_FILE, STATE_FILE, CONFIG_FILE = "decoder.safetensors", "state.pt", "config.json"
GRADIENT_CLIP = 1.0
DEV_WINDOWS = 8


def distil_decoder(config: DecoderDistilConfig, out: str | Path, resume: bool = False) -> Path:
    """Run the stage; return the file of the decoder's weights, ``out/decoder.safetensors``.

    Raises ValueError or FileNotFoundError for settings, files or data that cannot be used, FloatingPointError where
    gradients are not finite too often in a row.
    """
    out = Path(out)
    check_folder(out, resume)
    run = DecoderDistillation(config, out)
    if resume:
        run.load()
    (out / CONFIG_FILE).write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n", encoding="utf-8")
    run.train()
    return out / DECODER_FILE


def piece_embeddings(tokenizer: Tokenizer, vocabulary: WhisperVocabulary, embedding: Tensor) -> Tensor:
    """Return each piece's embedding, (vocab_size, d_model): the mean of its text's Whisper tokens.

    embedding: (Whisper's ids, d_model). Begin and end take those of the prompt's last mark and of Whisper's end; the
    unknown piece, the mean of all; blank, zeros.
    """
    words = embedding[: vocabulary.end_id]
    special = {
        BLANK_ID: torch.zeros_like(words[0]),
        UNK_ID: words.mean(0),
        BOS_ID: embedding[vocabulary.prompt[-1]],
        EOS_ID: embedding[vocabulary.end_id],
    }
    rows = [
        special[i] if i in special else embedding[vocabulary.encode(text)].mean(0)
        for i, text in enumerate(tokenizer.pieces())
    ]
    return torch.stack(rows)


@torch.no_grad()
def start_decoder(decoder: Decoder, teacher: Teacher, embeddings: Tensor) -> None:
    """Copy the teacher's norms and feed-forward layers into a decoder of the same sizes, and set its embeddings."""
    for block, taught in zip(decoder.blocks, teacher.decoder.blocks, strict=True):
        assert isinstance(block, DecoderBlock) and isinstance(taught, Block) and block.ff is not None
        assert taught.cross_attn_ln is not None
        block.norm.load_state_dict(taught.attn_ln.state_dict())
        block.cross_norm.load_state_dict(taught.cross_attn_ln.state_dict())
        block.mixer.out_proj.weight.zero_()  # errors begin at 1: attention's outputs are small
        block.cross.out_proj.weight.zero_()
        norm, wide, _, _, narrow = block.ff
        norm.load_state_dict(taught.mlp_ln.state_dict())
        wide.load_state_dict(taught.mlp[0].state_dict())
        narrow.load_state_dict(taught.mlp[2].state_dict())
    decoder.norm.load_state_dict(teacher.decoder.ln.state_dict())
    decoder.embedding.weight.copy_(embeddings)
    decoder.out_proj.weight.copy_(embeddings)  # Whisper's output is tied to its embedding
    decoder.out_proj.bias.zero_()


class DecoderDistillation:
    """Teacher, student, data and progress of a run."""

    def __init__(self, config: DecoderDistilConfig, out: Path) -> None:
        self.config, self.out = config, out
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.teacher = build_teacher(read_whisper_weights(config.teacher)).to(self.device)
        self.vocabulary = WhisperVocabulary.load(config.teacher_tokenizer)
        tokenizer = Tokenizer.load(config.tokenizer)
        self.tokenizer_sha256 = tokenizer_hash(tokenizer)
        windows, dev_windows = (
            Windows(read_manifests(config.train), config.seed),
            Windows(read_manifests(config.dev), 0),
        )
        if len(windows) < config.windows:
            raise ValueError(f"{len(windows)} windows of audio are fewer than a batch's (windows: {config.windows})")
        self.train_states = TeacherStates(self.teacher, windows, out / TRAIN_FOLDER, config.bf16)
        self.dev_states = TeacherStates(self.teacher, dev_windows, out / "teacher" / "dev", config.bf16)
        torch.manual_seed(config.seed)
        d_model = self.teacher.d_model
        blocks = len(self.teacher.decoder.blocks)
        self.model_config = ModelConfig(
            vocab_size=tokenizer.vocab_size,
            d_model=d_model,
            decoder=DecoderConfig(n_layers=blocks, d_ff=4 * d_model, dropout=0.0, mixer=config.mixer),
        )
        self.decoder = Decoder(self.model_config).to(self.device)
        embedding = self.teacher.decoder.token_embedding.weight
        start_decoder(self.decoder, self.teacher, piece_embeddings(tokenizer, self.vocabulary, embedding))
        self.mixers = nn.ModuleList(block.mixer for block in self.decoder.blocks if isinstance(block, DecoderBlock))
        groups = parameter_groups(self.mixers, 0.01)
        self.optimiser = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98), fused=True)
        self.step, self.minutes, self._skipped = 0, 0.0, 0

    def load(self) -> None:
        """Take up the run where its last checkpoint left it. Raises ValueError where that has other sizes."""
        path = self.out / STATE_FILE
        if not path.is_file():
            log.info("%s has no checkpoint: starting anew", self.out)
            return
        state = torch.load(path, map_location=self.device, weights_only=True)
        if state["tokenizer_sha256"] != self.tokenizer_sha256:
            raise ValueError(f"{path} was made for another tokenizer than {self.config.tokenizer}")
        try:
            self.decoder.load_state_dict(state["decoder"])
        except RuntimeError as error:
            raise ValueError(f"{path} is of another student than the settings': {error}") from error
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.minutes = state["step"], state["minutes"]

    def save(self) -> None:
        """Write the decoder's weights (matrices in float16), and a checkpoint to resume from."""
        tensors = {name: as_stored(name, value, torch.float16) for name, value in self.decoder.state_dict().items()}
        own = {"tokenizer_sha256": self.tokenizer_sha256}
        with replacing(self.out / DECODER_FILE) as partial:
            save_file(tensors, partial, metadata={**own, "config": json.dumps(self.model_config.to_dict())})
        state = {"decoder": self.decoder.state_dict(), "optimiser": self.optimiser.state_dict()}
        with replacing(self.out / STATE_FILE) as partial:
            torch.save({**state, **own, "step": self.step, "minutes": self.minutes}, partial)

    def train(self) -> None:
        """Train the mixers for the run's time; validate and save now and then, and at the end."""
        config, before, validated = self.config, self.minutes, self.minutes
        batches, started = self._batches(), time.monotonic()
        total = round(config.minutes, 2)
        bar = tqdm(desc="stage decoder", unit="min", total=total, initial=round(before, 2), mininterval=5)
        while self.minutes < config.minutes:
            progress = self.minutes / config.minutes
            share = learning_rate_share(self.step, progress, warmup_steps=config.warmup_steps, final_share=0.05)
            for group in self.optimiser.param_groups:
                group["lr"] = config.learning_rate * share
            errors = self.errors(self.train_states, next(batches))
            self.optimiser.zero_grad()
            errors.sum().backward()
            norm = nn.utils.clip_grad_norm_(self.mixers.parameters(), GRADIENT_CLIP * len(errors))
            self._skipped = 0 if torch.isfinite(norm) else self._skipped + 1
            if self._skipped >= MAX_SKIPPED_IN_A_ROW:
                raise FloatingPointError(
                    f"the gradient was not finite {self._skipped} times in a row, at step {self.step}: lower "
                    f"learning_rate ({config.learning_rate}), then --resume true"
                )
            if not self._skipped:
                self.optimiser.step()
            self.step += 1
            self.minutes = before + (time.monotonic() - started) / 60
            bar.n = min(round(self.minutes, 2), total)
            if self.step % 20 == 0:
                bar.set_postfix_str(f"error {errors.mean():.3f}")
            if self.minutes - validated >= config.validate_minutes or self.minutes >= config.minutes:
                validated = self.minutes
                tqdm.write(f"{self.minutes:.1f} min: dev errors {self.validate()}", file=sys.stderr)
                self.save()
        bar.close()

    @torch.no_grad()
    def validate(self) -> str:
        """Return each layer's error on windows of the development sets, in words."""
        chosen = list(range(min(DEV_WINDOWS, len(self.dev_states.windows))))
        return " ".join(f"{error:.3f}" for error in self.errors(self.dev_states, chosen).tolist())

    def errors(self, states: TeacherStates, chosen: list[int]) -> Tensor:
        """Return each layer's error (n_layers,), as :func:`relative_error` has it, on what is said in windows."""
        tokens, lengths = self._tokens(states.windows, chosen)
        memory = states.states(chosen).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.bf16):
            with torch.no_grad():
                taps = self.teacher.decoder.taps(tokens, self.teacher.decoder.read_memory(memory))
            return torch.stack([self._error(i, tap, lengths) for i, tap in enumerate(taps)])

    def _error(self, layer: int, tap: LayerTap, lengths: Tensor) -> Tensor:
        said: Tensor = self.mixers[layer](tap.given.float(), lengths)[0]
        return relative_error(said, tap.said.float(), lengths)

    def _tokens(self, windows: Windows, chosen: list[int]) -> tuple[Tensor, Tensor]:
        """Return prompt and text of windows, (batch, tokens) int64, ends after them, and their lengths (batch,)."""
        longest = len(self.teacher.decoder.positional_embedding)
        rows = []
        for window in chosen:
            said = [windows.utterances[place.utterance].text for place in windows.placements[window]]
            text = normalize_text(" ".join(said), self.config.text_form)
            words = self.vocabulary.encode(f" {text}")
            rows.append([*self.vocabulary.prompt, *words][:longest])
        lengths = torch.tensor([len(row) for row in rows])
        tokens = torch.full((len(rows), int(lengths.max())), self.vocabulary.end_id)
        for filled, row in zip(tokens, rows, strict=True):
            filled[: len(row)] = torch.tensor(row)
        return tokens.to(self.device), lengths.to(self.device)

    def _batches(self) -> Iterator[list[int]]:
        count, size = len(self.train_states.windows), self.config.windows
        per_epoch, step = count // size, self.step
        while True:
            order = list(range(count))
            random.Random(f"decoder {self.config.seed} {step // per_epoch}").shuffle(order)
            yield order[step % per_epoch * size :][:size]
            step += 1
