"""A page on a denoiser speaks of errors; the data's own texts stay as they are."""

import json

from analysis.show import page
from reports.words import for_run


def test_our_sentences_are_reworded_and_the_datas_texts_are_not(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"likelihood": "denoising"}), encoding="utf-8")
    made = page.stack(page.note("moved by 3 nats"), page.text("prompt", "a log-prob of 3 nats, <painted>"))
    file = tmp_path / "run.html"
    file.write_text(f"<h1>Run</h1>{made.html}", encoding="utf-8")
    for_run(file, {"run_dir": str(tmp_path)})
    found = file.read_text(encoding="utf-8")
    assert "moved by 3</p>" in found
    assert "a log-prob of 3 nats, &lt;painted&gt;" in found
    assert "minus the denoising error" in found
