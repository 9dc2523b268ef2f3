"""Parts of a window of text, by which its loss is reported."""


def segments(length: int) -> list[int]:
    """Bounds of the parts of a window of ``length`` tokens: 0, 1, 2, 4, 8, .., each part as long as all before it.

    A language model gains most from its first tokens of context. The part between bounds a and b is the positions a to
    b - 1.
    """
    return [0, *(1 << i for i in range((length - 1).bit_length())), length]
