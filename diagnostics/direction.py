"""Which end of a predictor means "this pair will lose chosen likelihood". No torch."""

LOWER, HIGHER = -1, 1


def direction(name: str) -> int:
    """HIGHER where higher values predict displacement, LOWER where lower ones do, 0 where nothing is known.

    By the words of the name: a rate is the predicted rise of the chosen log-prob, and distant answers displace less;
    CHES and similarities of the two answers predict its fall, and so does a longer rejected answer.
    """
    words = set(name.split("_"))
    if words & {"rate", "distance"}:
        return LOWER
    return HIGHER if words & {"ches", "similarity"} or name == "length_difference" else 0
