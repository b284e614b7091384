"""The language-prior meter against plain forward passes of each row alone."""

from dataclasses import replace

import numpy as np
import plain_vlms
import pytest

from diagnostics.media import of_frames
from diagnostics.token_likelihood import TokenLikelihood
from diagnostics.vision.prior import COLUMNS, VIEWS, language_prior, perturbed, without


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


def test_both_answers_under_grey_and_perturbed_frames(made, examples):
    model, family = made
    likelihood = TokenLikelihood(0, family=family)
    found = without(model, examples, likelihood=likelihood)
    assert found.keys() == {e.pair_id for e in examples if e.chosen.media}
    again = without(model, examples[::-1], likelihood=likelihood)
    assert all(again[name] == pytest.approx(values, abs=1e-9) for name, values in found.items())
    for example in examples:
        for side, row in example.rows.items() if example.pair_id in found else ():
            values = found[example.pair_id]
            assert values.keys() == COLUMNS.keys()
            grey = tuple(of_frames(np.full_like(m.frames(), 128), kind=m.kind) for m in row.media)
            own = float(plain_vlms.logps(model, family, replace(row, media=grey)).sum())
            assert values[f"{side}_grey_logps"] == pytest.approx(own, abs=1e-9)
            assert values[f"{side}_perturbed_logps"] != values[f"{side}_grey_logps"]


def test_perturbed_frames_are_masked_and_shuffled(examples):
    clip = next(e.chosen.media[0] for e in examples if e.chosen.media and e.chosen.media[0].kind == "video")
    frames, seen = clip.frames(), perturbed(clip, 5).frames()
    hidden = (seen == 128).all(-1).all(0)
    assert 0.2 < hidden.mean() < 0.55
    order = [next(k for k, f in enumerate(frames) if (f[~hidden] == s[~hidden]).all()) for s in seen]
    assert sorted(order) == [*range(len(frames))]
    assert VIEWS.keys() == {"grey", "perturbed"}
