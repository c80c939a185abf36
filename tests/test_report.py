"""The evaluation's report: figures, files and pictures."""

import json
import math
import re
from dataclasses import replace

import matplotlib.image
import numpy as np
import pytest

from samba_asr.audio.features import LogMel
from samba_asr.config import FeatureConfig
from samba_asr.evaluation.plots import bucket_name, plot_spectrogram, plot_wer_by_duration
from samba_asr.evaluation.report import SetResult, combine, environment, percent, summary_line, write_report
from samba_asr.evaluation.wer import WER, DurationBucket, ScoredUtterance


@pytest.fixture(scope="module")
def features():
    return LogMel(FeatureConfig())


@pytest.fixture
def results(clips):
    (quilter, words), (simmer, _), *_ = clips
    clean = [
        ScoredUtterance(str(quilter), 5.0, words, words.lower().replace("apostle", "a postal"), "1272", "librispeech"),
        ScoredUtterance(str(simmer), 3.0, "SIMMER FOR A MINUTE", "simmer for a minute", "1919", "librispeech"),
    ]
    other = [
        ScoredUtterance("gone.wav", 1.0, "it costs $5 | $6", "", "", "made up"),
        ScoredUtterance("gone too.wav", 12.0, "a b c d", "a b", "", "made up"),
    ]
    return [
        SetResult("dev-clean", clean, seconds=0.4),
        SetResult("a|b", other, seconds=1.2, unreadable={"gone.wav": "no such file"}),
    ]


def test_a_set_counts_each_word_once(results):
    clean, other = results
    assert clean.wer == WER(1, 0, 1, 21)
    assert other.wer.deletions == 4 + 2
    assert other.wer.words == 4 + 4
    assert clean.raw_wer.words == 21
    assert clean.raw_wer.errors == 22  # capitals against small letters
    assert clean.real_time_factor == pytest.approx(0.05)
    assert other.real_time_factor == pytest.approx(0.1)  # a file that was not read took no time


def test_all_sets_together_are_sums(results):
    clean, other = results
    total = combine(results)
    assert total.wer == clean.wer + other.wer
    assert total.raw_wer == clean.raw_wer + other.raw_wer
    assert len(total.utterances) == 4
    assert total.real_time_factor == pytest.approx(1.6 / 20)
    assert total.unreadable == other.unreadable
    assert total.interval[0] <= total.wer.rate <= total.interval[1]


def test_summary_line(results):
    line = summary_line(results[0])
    assert line.startswith("dev-clean: 2 utterances, 21 words, WER 9.52 % [")
    assert f"CER {100 * results[0].cer:.2f} %, raw WER 104.76 %, RTF 0.0500" in line
    assert "unreadable" not in line
    assert summary_line(results[1]).endswith(", 1 unreadable")


def test_percent_of_an_infinite_rate():
    assert percent(0.12345) == "12.35"
    assert percent(math.inf) == "inf"


def test_report(results, features, tmp_path):
    details = {"Command": "python evaluate.py --out 'a b'", "Model": "pretrained/nothing"}
    path = write_report(tmp_path / "new" / "report", results, details, features, worst_count=5)
    folder, text = path.parent, path.read_text(encoding="utf-8")

    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 4  # heading, two sets, all
    clean = [cell.strip() for cell in rows[1].split(" | ")]
    assert clean[:4] == ["| dev-clean", "2", "0.00", "21"]
    assert clean[4].startswith("**9.52** [")
    assert clean[5:] == ["1", "0", "1", f"{100 * results[0].cer:.2f}", "104.76", "0.0500 |"]
    assert rows[2].startswith(r"| a\|b | 2 |")
    assert rows[3].startswith("| all | 4 |")

    assert "```sh\npython evaluate.py --out 'a b'\n```" in text
    assert "- Model: pretrained/nothing\n" in text
    for name in ("Date", "Machine", "Threads", "Versions"):
        assert f"- {name}: " in text
    assert "- `gone.wav`: no such file" in text
    assert "all their words count as deleted" in text
    assert re.search(r"REF: mister quilter is the (\* )?\w+( \*+)? +of the", text)
    assert "REF: a b c d\nHYP: a b * *\n         D D" in text
    assert text.count("REF:") == 2  # neither the utterance without errors nor the file that could not be read

    images = re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)
    assert sorted(images) == sorted(p.name for p in folder.glob("*.png"))
    assert images == ["1-dev-clean-by-duration.png", "1-dev-clean-worst-1.png", "2-a-b-by-duration.png"]
    for image in images:
        assert matplotlib.image.imread(folder / image)[:, :, :3].std() > 0.01

    lines = [json.loads(line) for line in (folder / "utterances.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["set"] for line in lines] == ["dev-clean", "dev-clean", "a|b", "a|b"]
    assert [line["errors"] for line in lines] == [2, 0, 4, 2]
    assert [line["unreadable"] for line in lines] == [None, None, "no such file", None]
    assert all(line["errors"] == line["substitutions"] + line["deletions"] + line["insertions"] for line in lines)
    assert sum(line["words"] for line in lines) == 21 + 8
    assert sum(line["raw_errors"] for line in lines) == combine(results).raw_wer.errors
    assert lines[0]["reference"] == results[0].utterances[0].reference


def test_confidence_has_a_picture_where_it_is_known(results, features, tmp_path):
    sure = replace(
        results[0].utterances[1], hypothesis="simmer for two minutes uh", confidences=(0.9, 0.8, 0.3, 0.1, 0.5)
    )
    result = SetResult("s", [results[0].utterances[0], sure], seconds=1.0)
    assert result.judged_words == [(0.9, True), (0.8, True), (0.3, False), (0.1, False)]
    text = write_report(tmp_path, [result], {}, features, worst_count=0).read_text(encoding="utf-8")
    assert "Confidence of 4 words, of which 50.00 % are right: expected calibration error 0.175, in 4 bins" in text
    assert "![Confidence of words](1-s-confidence.png)" in text
    assert matplotlib.image.imread(tmp_path / "1-s-confidence.png")[:, :, :3].std() > 0.01


def test_a_single_set_needs_no_row_for_all(results, features, tmp_path):
    text = write_report(tmp_path, results[:1], {}, features, worst_count=0).read_text(encoding="utf-8")
    assert "| all |" not in text
    assert "Worst" not in text
    assert [path.name for path in tmp_path.glob("*.png")] == ["1-dev-clean-by-duration.png"]


def test_a_set_in_which_nothing_could_be_read(features, tmp_path):
    utterances = [ScoredUtterance("gone.wav", 1.0, "a b", "")]
    result = SetResult("s", utterances, seconds=0.0, unreadable={"gone.wav": "empty"})
    text = write_report(tmp_path, [result], {}, features).read_text(encoding="utf-8")
    assert "| s | 1 | 0.00 | 2 | **100.00** [100.00, 100.00] | 0 | 2 | 0 |" in text
    assert not list(tmp_path.glob("*.png"))


def test_environment_names_the_versions():
    found = environment()
    assert "torch " in found["Versions"]
    assert "jiwer 4" in found["Versions"]
    assert int(found["Threads"]) >= 1


def test_low_bands_lie_at_the_bottom_and_time_runs_to_the_right(tmp_path):
    config = FeatureConfig()
    features = np.zeros((100, config.n_mels), np.float32)
    features[:50, :40] = 1.0  # first half, low half
    plot_spectrogram(tmp_path / "a.png", features, config, "r", "h")
    picture = matplotlib.image.imread(tmp_path / "a.png")[:, :, :3].sum(axis=2)
    height, width = picture.shape
    places = {"low early": (0.75, 0.2), "low late": (0.75, 0.75), "high early": (0.25, 0.2), "high late": (0.25, 0.75)}
    values = {name: picture[int(y * height), int(x * width)] for name, (y, x) in places.items()}
    assert max(values, key=values.get) == "low early"
    assert values["low late"] == values["high early"] == values["high late"] < values["low early"]


def test_any_text_can_be_a_title(tmp_path):
    config = FeatureConfig()
    features = np.zeros((5, config.n_mels), np.float32)
    plot_spectrogram(tmp_path / "a.png", features, config, r"costs $\frac{$", "")
    plot_spectrogram(tmp_path / "b.png", features, config, "word " * 2000, "x" * 2000)
    height = matplotlib.image.imread(tmp_path / "b.png").shape[0]
    assert height < 600


@pytest.mark.filterwarnings("error")
def test_an_infinite_rate_has_a_label_and_no_bar(tmp_path):
    buckets = [DurationBucket(0, 2, 1, WER(0, 0, 1, 0)), DurationBucket(30, math.inf, 2, WER(1, 0, 0, 4))]
    assert [bucket_name(bucket) for bucket in buckets] == ["0-2 s", "over 30 s"]
    plot_wer_by_duration(tmp_path / "a.png", buckets, r"$\frac{$")
    assert (tmp_path / "a.png").stat().st_size > 1000
