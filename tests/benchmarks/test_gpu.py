"""The GPU check works: every section runs here on a CPU, and what breaks or is wrong is noted, not lost."""

import json
from pathlib import Path

import pytest
import torch


@pytest.fixture
def gpu(monkeypatch):
    """The script, which imports its parts from its own folder."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    import gpu

    return gpu


@pytest.fixture
def go(gpu, tmp_path, monkeypatch):
    """Run the script on the CPU, with other sections where given; gives its exit code and its JSON by section."""

    def run(sections=None, *more: str):
        if sections is not None:
            monkeypatch.setattr(gpu, "SECTIONS", sections)
        code = gpu.main(["--device", "cpu", "--quick", "--out", str(tmp_path / "gpu"), *more])
        found = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
        return code, {part["name"]: part for part in found["sections"]}

    return run


def test_every_section_runs_and_is_right(go, gpu, tmp_path):
    code, parts = go()
    broken = {name: (part["end"], part["error"]) for name, part in parts.items() if part["end"] != "done"}
    wrong = [line for part in parts.values() for line in part["lines"] if line["right"] is False]
    assert (code, broken, wrong) == (0, {}, [])
    assert list(parts) == list(gpu.SECTIONS)
    judged = {name: sum(line["right"] is not None for line in part["lines"]) for name, part in parts.items()}
    assert all(judged[name] for name in ("engines", "gradients", "memory", "training", "products")), judged
    table = (tmp_path / "gpu.md").read_text(encoding="utf-8").splitlines()
    assert sum(line.startswith("| ") for line in table) == 1 + sum(len(p["lines"]) + 1 for p in parts.values())


def test_what_breaks_or_is_wrong_is_noted_and_the_others_go_on(go, gpu, tmp_path):
    seen = []

    def breaks(plan):
        yield gpu.Line("before", 1.0)
        raise torch.OutOfMemoryError("CUDA out of memory | here")

    def looks(plan):
        seen.append((tmp_path / "gpu.md").read_text(encoding="utf-8"))  # what there was before this section
        yield gpu.Line("not a number", float("nan"), "at most 1", False)
        yield gpu.Line("slow", 2.0, "at most 1", False, True)

    code, parts = go({"breaks": breaks, "looks": looks})
    assert code == 1
    assert parts["breaks"]["error"] == "OutOfMemoryError: CUDA out of memory | here"
    assert [line["what"] for line in parts["breaks"]["lines"]] == ["before"]
    assert "| breaks | before | 1 |" in seen[0]
    assert "CUDA out of memory / here" in seen[0]
    assert parts["looks"]["lines"][0]["found"] is None
    assert parts["looks"]["wrong"]


def test_an_aim_that_is_not_reached_decides_no_exit_code(go, gpu):
    code, parts = go({"slow": lambda plan: iter([gpu.Line("slow", 2.0, "at most 1", False, True)])})
    assert (code, parts["slow"]["wrong"]) == (0, False)


def test_sections_without_time_are_named(go, gpu):
    def never(plan):
        raise AssertionError("there was no time for this")

    code, parts = go({"one": never, "other": never}, "--minutes", "0")
    assert code == 0
    assert [part["end"] for part in parts.values()] == ["not run: time"] * 2


def test_a_section_is_cut_off_when_the_time_is_up(go, gpu, monkeypatch):
    """The alarm comes inside an engine's trial, which takes every Exception for a way that does not work."""

    def swallows(plan):
        yield gpu.Line("first", 1.0)
        try:
            gpu.signal.raise_signal(gpu.signal.SIGALRM)
        except Exception:
            yield gpu.Line("went on", 1.0)

    code, parts = go({"long": swallows})
    assert (code, parts["long"]["end"], len(parts["long"]["lines"])) == (0, "cut off: time", 1)


def test_without_a_gpu_one_sentence_says_which_wheel(gpu, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2
    said = " ".join(capsys.readouterr().out.split())
    assert f"this torch ({torch.__version__}) sees no GPU: install a torch wheel that is built for CUDA" in said


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("Some other card", None),
    ],
)
def test_the_nominal_peak_is_that_of_the_card(gpu, name, peak):
    assert gpu.gpu_speed.nominal(name) == peak


def test_a_wrong_number_is_found(gpu):
    """The errors are those of numbers that are off by so much."""
    checks = gpu.gpu_checks
    wanted = {name: checks.np.array([1.0, 2.0, 4.0]) for name in (*checks.COLUMNS, "scale")}
    got = wanted | {"rejected_kl": wanted["rejected_kl"] * 1.01, "ches_score": checks.np.array([2.0, 1.0, 4.0])}
    found = checks.errors(got, wanted)
    assert found["log-probs"] == 0
    assert found["KL"] == pytest.approx(0.01)
    assert found["CHES"] == 1.0  # |2 - 1| / 1
    assert found["ranks"] == pytest.approx(0.5)  # ranks 2, 1, 3 for 1, 2, 3
