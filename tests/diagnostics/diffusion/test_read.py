"""Rows that people have wrong: each is skipped with its reason, and none ends the reading."""

import json

import numpy as np
import pytest

from diagnostics.diffusion.denoiser import MLPDenoiser, is_denoiser, refuse
from diagnostics.diffusion.read import read_samples
from diagnostics.errors import UserError

SAMPLE = np.linspace(-1, 1, 4).tolist()
OTHER = SAMPLE[::-1]


@pytest.fixture
def reasons(tmp_path):
    """The audit's reason of each row of a file."""
    model = MLPDenoiser(size=4, classes=3, width=8, blocks=1)

    def read(rows, **how):
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        frame = read_samples(str(file), model, **how).frame
        return frame.groupby("source_row")["reason"].first().tolist()

    return read


def test_a_label_that_is_none(reasons):
    rows = [{"jpg_0": SAMPLE, "jpg_1": OTHER, "label_0": label, "class": 0}
            for label in ("first", float("nan"), 7, [1, 0], 0.5, "1", 0)]  # fmt: skip
    assert reasons(rows) == [
        "unreadable: 'label_0' holds 'first' in the place of numbers",
        "missing_field: 'label_0' is missing",
        "no_preference: label_0 is 7; give 1, 0, or 0.5 for a tie",
        "unreadable: 'label_0' holds '[1, 0]' in the place of numbers",
        "tie: label_0 is 0.5: neither image is preferred",
        "",
        "",
    ]


def test_scores_of_a_list(reasons):
    rows = [{"images": images, "scores": scores, "class": 0}
            for images, scores in (([SAMPLE, OTHER], ["x", 1]), ([SAMPLE, OTHER], [float("nan"), 1]), (7, [1, 2]),
                                   ([SAMPLE], [1]), ([SAMPLE, OTHER], 5), ([SAMPLE, OTHER], [1, 2]))]  # fmt: skip
    assert [r.partition(":")[0] for r in reasons(rows)] == [
        "unreadable", "no_preference", "unreadable", "no_preference", "unreadable", ""
    ]  # fmt: skip


def test_a_class_that_the_model_does_not_have(reasons):
    rows = [{"chosen": SAMPLE, "rejected": OTHER, "class": c} for c in (3, 4, -1, 1.5, "x")]
    first, *others = reasons(rows)
    assert first == ""  # of none
    assert others[0] == "missing_field: the class is 4, and the model has 0 to 3."
    assert all(r.startswith("missing_field: the class is") for r in others)


def test_times_of_a_chain(reasons):
    chain = [SAMPLE, OTHER, SAMPLE]
    rows = [{"chosen": chain, "rejected": [OTHER, SAMPLE, OTHER], "class": 0, "times": times}
            for times in ([9, 5, 1], [9, 5, 5], [1900, 5, 1], [9, 5.5, 1], [9, 5], "x", [9, 5, -1])]  # fmt: skip
    kept, *others = reasons(rows)
    assert kept == ""
    assert [r.partition(":")[0] for r in others] == [*["unreadable"] * 3, "other_size", *["unreadable"] * 2]


def test_segments_and_weights(reasons):
    pair = {"chosen": SAMPLE, "rejected": OTHER, "class": 0}
    rows = [pair | more for more in (
        {"segments": ["a", 0, 0, 0]}, {"segments": [-1, 0, 0, 0]}, {"segments": [0, [1], 0, 0]},
        {"weights": [2, 0, 0, 0]}, {"weights": [float("nan"), 0, 0, 0]}, {"segments": [0, 0, 1, 1]},
    )]  # fmt: skip
    assert [bool(r) for r in reasons(rows)] == [True, True, True, True, True, False]


def test_a_folder_of_a_denoiser_is_known(tmp_path):
    MLPDenoiser(size=4, width=8, blocks=1).save(tmp_path / "mlp")
    assert is_denoiser(tmp_path / "mlp")
    assert not is_denoiser(tmp_path)
    with pytest.raises(UserError, match="is a denoiser: `chesboard flag` wants --likelihood denoising"):
        refuse(tmp_path / "mlp", "flag")
