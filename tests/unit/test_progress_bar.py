import logging
from types import SimpleNamespace

from rest_core import progress_bar
from rest_core.progress_bar import ProgressBar


def test_without_a_terminal_a_line_a_minute_is_logged(monkeypatch, caplog, capfd):
    clock = iter(float(second) for second in range(0, 10_000, 20))
    monkeypatch.setattr(progress_bar, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    with caplog.at_level(logging.INFO), ProgressBar(desc="BFCL: dialogues", total=12, unit="dialogue") as bar:
        for number in range(12):
            bar.set_postfix(steps=number * 3)
            bar.update()
    assert 3 <= len(caplog.messages) <= 9
    assert caplog.messages[0].startswith("BFCL: dialogues: ") and " of 12, steps=" in caplog.messages[0]
    assert capfd.readouterr() == ("", "")


def test_on_a_terminal_it_is_a_bar(monkeypatch, capsys, caplog):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with ProgressBar(desc="BFCL", total=2, unit="response") as bar:
        bar.update(2)
    assert "BFCL: 100%" in capsys.readouterr().err
    assert not caplog.messages
