"""Is one evaluation better than another by more than chance?"""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from samba_asr.evaluation.report import SetResult, write_report
from samba_asr.evaluation.wer import WER, ScoredUtterance, paired_bootstrap

SCRIPT = Path(__file__).parent.parent / "recipes" / "librispeech" / "compare.py"


@pytest.fixture(scope="module")
def compare():
    spec = importlib.util.spec_from_file_location("compare_recipe", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def wers(errors, words):
    return [WER(substitutions=e, words=w) for e, w in zip(errors, words, strict=True)]


def test_against_draws_one_by_one():
    random = np.random.default_rng(3)
    words = random.integers(3, 20, 40)
    before, after = random.integers(0, 5, 40), random.integers(0, 4, 40)
    gains = []
    for _ in range(20_000):
        drawn = random.integers(0, 40, 40)
        gains.append((before[drawn] - after[drawn]).sum() / words[drawn].sum())
    lower, (low, high), p = paired_bootstrap(wers(before, words), wers(after, words), 20_000)
    assert lower == pytest.approx((before.sum() - after.sum()) / words.sum())
    assert (low, high) == pytest.approx(np.percentile(gains, [2.5, 97.5]), abs=0.002)
    assert p == pytest.approx(np.mean(np.array(gains) <= 0), abs=0.01) and 0 < p < 1


def test_clear_cases():
    words = [10] * 30
    assert paired_bootstrap(wers([3] * 30, words), wers([1] * 30, words))[2] == 0.0
    assert paired_bootstrap(wers([1] * 30, words), wers([1] * 30, words)) == (0.0, (0.0, 0.0), 1.0)
    # one utterance's luck is no proof
    lucky = wers([5, *[1] * 29], words)
    assert paired_bootstrap(lucky, wers([1] * 30, words))[2] > 0.3
    with pytest.raises(ValueError, match="not of the same utterances"):
        paired_bootstrap(wers([1], [2]), wers([1], [3]))
    with pytest.raises(ValueError, match="nothing was said"):
        paired_bootstrap(wers([1], [0]), wers([1], [0]))


def report(folder, errors_of_sets):
    """Write a report of utterances of ten words, so many of which are wrong."""
    results = [
        SetResult(
            name,
            [
                ScoredUtterance(f"{name}/{i}.wav", 2.0, "word " * 10, "word " * (10 - wrong) + "other " * wrong)
                for i, wrong in enumerate(errors)
            ],
            1.0,
            {},
        )
        for name, errors in errors_of_sets.items()
    ]
    write_report(folder, results, {}, None, worst_count=0)
    return str(folder)


def test_reports_side_by_side(compare, tmp_path, capsys):
    before = report(tmp_path / "before", {"clean": [2, 3, 2, 4] * 8, "other": [5, 5, 5, 5]})
    after = report(tmp_path / "after", {"clean": [1, 2, 2, 3] * 8, "other": [5, 5, 6, 5]})
    assert compare.main([before, after, before]) == 0
    text = capsys.readouterr().out
    assert f"A: {before}, B: {after}" in text and f"A: {before}, B: {before}" in text
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith(("| clean", "| other", "| all"))]
    assert [row[0] for row in rows] == ["| clean", "| other", "| all"] * 2
    assert rows[0][1:4] == ["27.50", "20.00", "7.50"] and rows[0][5] == "0.0000 |"
    assert rows[1][1:4] == ["50.00", "52.50", "-2.50"] and rows[1][5] == "1.0000 |"
    assert rows[2][1:4] == ["30.00", "23.61", "6.39"]
    assert all(row[3] == "0.00" for row in rows[3:])


def test_other_orders_and_recordings_that_come_twice(compare, tmp_path, capsys):
    before = report(tmp_path / "before", {"clean": [1, 5, 2]})
    after = report(tmp_path / "after", {"clean": [5, 2, 1]})
    path = tmp_path / "after" / "utterances.jsonl"
    lines = (tmp_path / "before" / "utterances.jsonl").read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(lines[::-1]), encoding="utf-8")
    assert compare.main([before, after]) == 0
    assert "| clean | 26.67 | 26.67 | 0.00 | [0.00, 0.00] |" in capsys.readouterr().out
    for folder in ("before", "after"):
        (tmp_path / folder / "utterances.jsonl").write_text("\n".join([*lines, lines[1]]), encoding="utf-8")
    assert compare.main([before, after]) == 0
    assert "| clean | 32.50 | 32.50 |" in capsys.readouterr().out
    path.write_bytes(b"\xff\xfe\n")
    assert compare.main([before, after]) == 2
    assert f"{path}, line 1: not evaluate.py's" in capsys.readouterr().err


def test_what_cannot_be_compared(compare, tmp_path, capsys):
    before = report(tmp_path / "before", {"clean": [1, 2]})
    cases = {
        report(tmp_path / "fewer", {"clean": [1]}): "not of the same utterances",
        report(tmp_path / "renamed", {"other": [1, 2]}): "not of the same utterances",
        str(tmp_path / "none"): "does not exist; evaluate.py --out",
    }
    for folder, message in cases.items():
        assert compare.main([before, folder]) == 2
        assert message in capsys.readouterr().err
    for content, message in (("", "holds no utterance"), (json.dumps({"set": "a"}), "line 1: not evaluate.py's")):
        (tmp_path / "before" / "utterances.jsonl").write_text(content, encoding="utf-8")
        assert compare.main([before, before]) == 2
        assert message in capsys.readouterr().err
