#!/usr/bin/env python3
"""Make a lexicon, the list of words that joint search prefers: lexicon.txt in a checkpoint's folder, or --lexicon.

It holds the words of WordNet with their irregular forms and the regular ones of all ("goed" too), contractions
("needn't"), and what texts have at least twice or transcripts once. Texts that tell how a development or test set is
spelt do not belong among them.

  apt-get install wordnet-base bible-kjv
  python recipes/librispeech/lexicon.py --wordnet /usr/share/wordnet --texts books/*.txt \\
      --manifests prepared/librispeech-train-clean-5.jsonl --out pretrained/samba-base-en/lexicon.txt

Exit code: 0, 2 for wrong arguments.
"""

import argparse
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from samba_asr.atomic import replacing
from samba_asr.evaluation.arguments import positive_int
from samba_asr.text.normalization import normalize_text
from samba_asr.training.manifest import read_manifest

_WORD = re.compile(r"[a-z]+(?:'[a-z]+)*")

CONTRACTIONS = frozenset(
    word + end
    for end, words in {
        "n't": "ai are ca could dare did do does had has have is may might must need ought sha should was were wo "
        "would",
        "'ve": "could i might must should they we who would you",
        "'d": "he how i it she that there they we what who you",
        "'ll": "he i it she that there they this we what who you",
        "'re": "there they we what who you",
        "'m": "i",
        "'clock": "o",
        "'am": "ma",
        "'all": "y",
    }.items()
    for word in words.split()
)
"""WordNet lacks them, and texts may; those with ``'s`` the search knows by itself."""


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case, letters and apostrophes alone."""
    return _WORD.findall(normalize_text(text, "spoken"))


def plural(word: str) -> str:
    """Return a noun's regular plural, which is a verb's third person as well."""
    if re.search(r"(s|x|z|ch|sh)$", word):
        return word + "es"
    return word[:-1] + "ies" if re.search(r"[^aeiou]y$", word) else word + "s"


def plural_of_o(word: str) -> str:
    """Return the other one, where a word may have it: "potatoes"."""
    return word + "es" if re.search(r"[^aeiou]o$", word) else plural(word)


def past(word: str) -> str:
    """Return a verb's regular past tense."""
    if word.endswith("e"):
        return word + "d"
    return word[:-1] + "ied" if re.search(r"[^aeiou]y$", word) else _doubled(word) + "ed"


def participle(word: str) -> str:
    """Return a verb's present participle."""
    return word[:-1] + "ing" if re.search(r"[^eoy]e$", word) else _doubled(word) + "ing"


def comparative(word: str) -> str:
    """Return a short adjective's comparative; longer ones have none, and stay."""
    return _graded(word) + "er" if _is_short(word) else word


def superlative(word: str) -> str:
    """Return a short adjective's superlative; longer ones have none, and stay."""
    return _graded(word) + "est" if _is_short(word) else word


def adverb(word: str) -> str:
    """Return the adverb of an adjective."""
    if word.endswith("y"):
        return word[:-1] + "ily"
    return word[:-1] + "y" if re.search(r"[^aeiou]le$", word) else word + "ly"


def quality(word: str) -> str:
    """Return the noun of an adjective."""
    return (word[:-1] + "i" if word.endswith("y") else word) + "ness"


FORMS = {
    "noun": (plural, plural_of_o),
    "verb": (plural, plural_of_o, past, participle),
    "adj": (comparative, superlative, adverb, quality),
    "adv": (),
}
"""What regular forms WordNet's parts of speech have."""


def wordnet(folder: Path) -> Iterator[str]:
    """Yield WordNet's words, with the irregular forms that it lists and the regular ones, from its ``index.*`` and
    ``*.exc`` files. Raises FileNotFoundError where one is missing."""
    for part, forms in FORMS.items():
        for line in (folder / f"index.{part}").read_text(encoding="utf-8").splitlines():
            if not line.startswith(" "):
                lemma = line.split()[0]
                yield from _words_in(lemma)
                yield from (form(lemma) for form in forms if lemma.isalpha())
        for line in (folder / f"{part}.exc").read_text(encoding="utf-8").splitlines():
            yield from _words_in(line)


def licence(folder: Path) -> list[str]:
    """Return WordNet's licence, which asks to be on every copy, as lines that a lexicon takes for comments."""
    head = (line for line in (folder / "index.noun").read_text(encoding="utf-8").splitlines() if line.startswith("  "))
    return [("# " + re.sub(r"^ *\d+ ?", "", line)).rstrip() for line in head]


def lexicon(known: Iterable[str], texts: Iterable[str], transcripts: Iterable[str], least: int) -> list[str]:
    """Return, sorted, known words, contractions, what transcripts have, and texts at least so often."""
    counts = Counter(word for text in texts for word in words_of(text))
    words = set(known) | CONTRACTIONS | {word for text in transcripts for word in words_of(text)}
    return sorted(words | {word for word, count in counts.items() if count >= least})


def _words_in(entry: str) -> Iterator[str]:
    return (word for word in re.split("[-_ ]", entry.strip()) if _WORD.fullmatch(word))


def _is_short(adjective: str) -> bool:
    """Whether an adjective has a syllable, or two of which the last is such as in "happy", "simple" or "narrow"."""
    syllables = len(re.findall(r"[aeiouy]+", re.sub(r"(?<=[^aeiouyl])e$", "", adjective)))
    return syllables == 1 or (syllables == 2 and re.search(r"(y|le|er|ow)$", adjective) is not None)


def _graded(adjective: str) -> str:
    """Return an adjective as it is before -er and -est."""
    if adjective.endswith("e"):
        return adjective[:-1]
    return adjective[:-1] + "i" if re.search(r"[^aeiou]y$", adjective) else _doubled(adjective)


def _doubled(word: str) -> str:
    """Return a word with its last consonant doubled, where it has but one vowel before it."""
    return word + word[-1] if re.fullmatch(r"[^aeiou]*[aeiou][^aeiouwxy]", word) else word


def main() -> int:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--wordnet", type=Path, required=True, metavar="DIR", help="folder with index.noun, noun.exc ..."
    )
    parser.add_argument("--texts", nargs="*", type=Path, default=[], metavar="FILE", help="texts, UTF-8")
    parser.add_argument("--manifests", nargs="*", type=Path, default=[], metavar="JSONL", help="of training speech")
    parser.add_argument(
        "--least", type=positive_int, default=2, metavar="N", help="how often texts must have a word (2)"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="where the list goes, a word a line")
    arguments = parser.parse_args()
    try:
        texts = [line for path in arguments.texts for line in path.read_text(encoding="utf-8").splitlines()]
        transcripts = [each.text for path in arguments.manifests for each in read_manifest(path)]
        head = licence(arguments.wordnet)
        words = lexicon(wordnet(arguments.wordnet), texts, transcripts, arguments.least)
        with replacing(arguments.out) as path:
            path.write_text("".join(f"{line}\n" for line in [*head, *words]), encoding="utf-8")
    except (OSError, ValueError) as error:
        print(f"lexicon.py: {error}", file=sys.stderr)
        return 2
    print(f"{arguments.out}: {len(words):,} words")
    return 0


if __name__ == "__main__":
    sys.exit(main())
