"""The rules of SQuAD's and NQ-open's evaluation, letter by letter."""

import string
import unicodedata


def words(text: str, decompose: bool = False) -> list[str]:
    """Words that are compared."""
    if decompose:
        text = unicodedata.normalize("NFD", text)
    kept = ""
    for letter in text.lower():
        if letter not in string.punctuation:
            kept += letter
    # An article is one of these between borders of words as regular expressions have them.
    pieces, piece = [], ""
    for letter in kept + " ":
        if letter.isalnum() or letter == "_":
            piece += letter
        else:
            pieces += [" " if piece in ("a", "an", "the") else piece, letter]
            piece = ""
    return "".join(pieces).split()


def exact(prediction: str, answers: list[str], decompose: bool = False) -> bool:
    """Whether any answer has the same words in the same order."""
    return any(words(prediction, decompose) == words(answer, decompose) for answer in answers)


def overlap(prediction: str, answers: list[str]) -> float:
    """Best F1 over the answers; 1 where both have no words, as in SQuAD 2.0."""
    best = 0.0
    for answer in answers:
        left, right = words(prediction), words(answer)
        rest, shared = list(right), 0
        for word in left:
            if word in rest:
                rest.remove(word)
                shared += 1
        if not left and not right:
            best = 1.0
        elif shared:
            precision, recall = shared / len(left), shared / len(right)
            best = max(best, 2 / (1 / precision + 1 / recall))
    return best
