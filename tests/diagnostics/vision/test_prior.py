"""The language-prior meter against plain forward passes of each row alone."""

from dataclasses import replace

import numpy as np
import plain_vlms
import pytest

from diagnostics.media import of_frames
from diagnostics.token_likelihood import TokenLikelihood
from diagnostics.vision.prior import language_prior


def test_each_answer_with_its_frames_and_with_grey_ones(made, examples):
    model, family = made
    likelihood = TokenLikelihood(0, family=family)
    table = language_prior(model, examples, likelihood=likelihood).set_index("pair_id")
    assert table.index.tolist() == [e.pair_id for e in examples]
    for example in examples:
        row, line = example.chosen, table.loc[example.pair_id]
        assert line["length"] == len(row.completion_ids)
        own = float(plain_vlms.logps(model, family, row).sum())
        assert line["logps"] == pytest.approx(own, abs=1e-9)
        if not row.media:
            assert np.isnan(line["seen"])
            continue
        media = tuple(of_frames(np.full_like(m.frames(), 128), kind=m.kind) for m in row.media)
        without = float(plain_vlms.logps(model, family, replace(row, media=media)).sum())
        assert line["grey_logps"] == pytest.approx(without, abs=1e-9)
        assert line["seen"] == pytest.approx(own - without, abs=1e-9)
        assert line["seen"] != 0
