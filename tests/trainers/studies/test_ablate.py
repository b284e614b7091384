"""What is left out, what is measured, and that nothing finished is trained again."""

import json
from pathlib import Path

import pandas as pd
import pytest
import yaml

from analysis.ablate import page as ablate_page
from analysis.ablate import tables
from analysis.tables import runs
from diagnostics.errors import DataError, UserError
from diagnostics.flag.flagging import CHOICES, choose
from diagnostics.pairs import read_pairs
from diagnostics.runlog import read_run, write_frame
from trainers.config import make_config, read_config
from trainers.run import train
from trainers.studies import ablate as ablation
from trainers.studies.ablate import flagged_first, parse_drops, subsets


def scores_of(data: str, folder: Path) -> Path:
    """Scores of a data set: `set_rate` rises and `ches_score` falls with the row."""
    ids = [p.pair_id for p in read_pairs(data).pairs]
    frame = pd.DataFrame(dict(pair_id=ids, status="scored", set_rate=range(len(ids)), odd=1.0))
    folder.mkdir(parents=True, exist_ok=True)
    write_frame(folder / "scores.parquet", frame.assign(ches_score=-1.0 * frame["set_rate"], note="x"))
    return folder / "scores.parquet"


@pytest.fixture
def config(tmp_path, lm_folder, pairs_file) -> Path:
    """24 pairs, two epochs of four a batch."""
    values = dict(model=lm_folder, data=pairs_file, per_device_train_batch_size=4, num_train_epochs=2.0, seed=3)
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(values | dict(heldout_pairs=2, tokens="none", learning_rate=1e-3, probe_every=99)))
    return path


def run(config: Path, out: Path, pairs_file: str, drops=(0.5,), by: str = "set_rate"):
    scores = scores_of(pairs_file, out.parent / "flag")
    return ablation.ablate(config, scores, out, by=by, drops=drops, seeds=1, jobs=1)


def test_subsets_leave_out_the_flagged_or_as_many_random():
    full = [f"p{i}" for i in range(20)]  # the most displacement-prone first
    found = {s.name: s for s in subsets(full, "set_rate", [0.1, 0.25], seed=0)}
    assert list(found) == ["full", "set_rate-0.1", "random-0.1", "set_rate-0.25", "random-0.25"]
    assert found["set_rate-0.1"].pair_ids == full[2:]
    assert found["set_rate-0.25"].pair_ids == full[5:]
    for share, size in ((0.1, 18), (0.25, 15)):
        by_chance = found[f"random-{share}"].pair_ids
        assert len(set(by_chance)) == size
        assert set(by_chance) < set(full)
        assert set(by_chance) != set(found[f"set_rate-{share}"].pair_ids)
        assert by_chance == subsets(full, "x", [share], seed=0)[2].pair_ids  # whatever flags
        assert set(by_chance) != set(subsets(full, "x", [share], seed=1)[2].pair_ids)


@pytest.mark.parametrize("share", [0.01, 0.99])
def test_a_share_that_leaves_out_nothing_or_all_is_refused(share):
    with pytest.raises(UserError, match="choose another share"):
        subsets([f"p{i}" for i in range(20)], "x", [share], seed=0)


def test_the_flagged_end_follows_the_name(tmp_path, pairs_file):
    ids = [p.pair_id for p in read_pairs(pairs_file).pairs]
    path = scores_of(pairs_file, tmp_path / "flag")
    assert flagged_first(path, "set_rate") == ids  # the lowest rate falls most
    assert flagged_first(path.parent, "ches_score") == ids  # the highest CHES


def test_wrong_names_and_shares_end_in_a_sentence(tmp_path, pairs_file):
    path = scores_of(pairs_file, tmp_path / "flag")
    with pytest.raises(UserError, match=r"unknown column 'set_rat': did you mean 'set_rate'"):
        flagged_first(path, "set_rat")
    with pytest.raises(UserError, match="unknown column"):
        flagged_first(path, "note")  # text
    with pytest.raises(DataError, match="no such file"):
        flagged_first(tmp_path / "none", "set_rate")
    assert parse_drops("0.05, 0.1") == [0.05, 0.1]
    for text in ("", "a", "0", "1", "0.1,0.1"):
        with pytest.raises(UserError, match="--drop"):
            parse_drops(text)


def test_every_run_is_measured_on_the_same_pairs_and_nothing_is_trained_twice(config, tmp_path, pairs_file):
    out = tmp_path / "out"
    done, failed = run(config, out, pairs_file)
    assert (len(done), failed) == (5, [])
    logs = {p.name: read_run(p) for p in done}
    trained = {n: set(r.audit.loc[r.audit["status"] == "kept", "pair_id"]) for n, r in logs.items()}
    full, flagged, chance = (trained[f"{n}-seed3"] for n in ("full", "set_rate-0.5", "random-0.5"))
    assert (len(full), len(flagged), len(chance)) == (22, 11, 11)
    assert flagged < full
    assert chance < full
    order = [p.pair_id for p in read_pairs(pairs_file).pairs if p.pair_id in full]
    assert flagged == set(order[11:])  # the lower half of the rates is left out
    for split in ("probe", "eval"):
        measured = [set(r.pairs.loc[r.pairs["split"] == split, "pair_id"]) for r in logs.values()]
        assert all(m == measured[0] for m in measured)
        assert len(measured[0]) == {"probe": 22, "eval": 2}[split]
    held_out = {i.removeprefix("heldout/") for i in measured[0]}
    assert not held_out & full
    steps = {n: int(max(r.steps["step"])) for n, r in logs.items()}
    assert steps["full-seed3"] == 12  # 22 pairs are 6 batches, twice
    assert steps["random-0.5-seed3"] == steps["set_rate-0.5-seed3"] == 6
    assert steps["random-0.5-steps-seed3"] == steps["set_rate-0.5-steps-seed3"] == 12

    before = {str(p): p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file() and p.parent.name != "seed3"}
    assert run(config, out, pairs_file) == (done, [])
    assert before == {str(p): p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file() and p.parent.name != "seed3"}
    _check_tables(done)


def _check_tables(done: list[Path]) -> None:
    """The page's rows for these runs: pairs by set, and flagged minus random."""
    found = tables.collect([runs.load(p) for p in done])
    table = found.runs.set_index("run")
    common = table["common_n"].iloc[0]
    assert set(table["common_n"]) == {common}
    assert 0 < common < 11  # in both halves
    assert table["own_n"].tolist() == table["trained"].tolist() == [22, 11, 11, 11, 11]
    gaps = tables.against_random(found.runs, ["eval_chosen"]).set_index("equal_steps")["eval_chosen"]
    for equal, name in ((False, "0.5"), (True, "0.5-steps")):
        flagged, chance = (table.loc[f"{arm}-{name}-seed3", "eval_chosen"] for arm in ("set_rate", "random"))
        assert gaps[equal] == pytest.approx(flagged - chance)
    words = [f.meaning for f in ablate_page.findings(found)]
    assert len(words) == 2
    assert all("no interval, n = 1 seed): not told apart from chance" in w for w in words)


def test_the_probe_may_hold_pairs_that_are_not_trained_on(config, tmp_path, pairs_file):
    """With cached reference log-probs too: at the start policy and reference agree on every probed pair."""
    lines = Path(pairs_file).read_text().splitlines(keepends=True)
    (tmp_path / "train.jsonl").write_text("".join(lines[:10]))
    (tmp_path / "probe.jsonl").write_text("".join(lines[8:14]))
    keys = dict(data=str(tmp_path / "train.jsonl"), probe_data=str(tmp_path / "probe.jsonl"), reference="precomputed")
    keys |= dict(output_dir=str(tmp_path / "run"), save_model=False, heldout_pairs=0)
    log = read_run(train(make_config(read_config(config) | keys)))
    probed = log.pairs.loc[(log.pairs["split"] == "probe") & (log.pairs["step"] == 0)]
    assert set(probed["pair_id"]) == {p.pair_id for p in read_pairs(str(tmp_path / "probe.jsonl")).pairs}
    assert abs(probed["chosen_logps"] - probed["ref_chosen_logps"]).max() < 1e-4


def test_other_settings_in_the_same_folder_are_refused(config, tmp_path, pairs_file):
    out = tmp_path / "out"
    data = read_config(config)
    (out / "full-seed3").mkdir(parents=True)
    (out / "full-seed3" / "config.json").write_text(json.dumps(data | {"learning_rate": 1.0}))
    with pytest.raises(UserError, match="made with other settings"):
        run(config, out, pairs_file)


def test_scores_of_other_data_are_refused(config, tmp_path, pairs_file):
    scores = scores_of(pairs_file, tmp_path / "flag")
    write_frame(scores, pd.DataFrame(dict(pair_id=["elsewhere"], status="scored", set_rate=1.0)))
    with pytest.raises(DataError, match="none of its pairs is in the scores"):
        ablation.ablate(config, scores, tmp_path / "out", by="set_rate", drops=[0.5], seeds=1, jobs=1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("by", CHOICES)
def test_what_flag_ranks_first_is_left_out_first(by, tmp_path):
    """For every measure that flag computes, whichever end of it means prone to displacement."""
    scores = pd.DataFrame({"pair_id": list("abcde"), "status": "scored", by: [3.0, -1.0, 7.0, 0.5, -4.0]})
    scores.to_parquet(tmp_path / "scores.parquet")
    ranked = choose(scores, by).sort_values("rank")["pair_id"].tolist()
    assert flagged_first(tmp_path, by) == ranked


def test_a_column_of_which_nothing_is_known_is_not_guessed_at(tmp_path):
    pd.DataFrame({"pair_id": ["a", "b"], "mine": [1.0, 2.0]}).to_parquet(tmp_path / "scores.parquet")
    with pytest.raises(UserError, match="'mine' is no measure of chesboard"):
        flagged_first(tmp_path, "mine")


def test_the_random_subsets_are_the_same_whatever_ranks_the_pairs():
    one, other = ([s for s in subsets(order, "x", [0.5], 0) if s.arm == "random"] for order in ("abcdef", "fbdeca"))
    assert one == other
