"""What a row says of the code that made it."""

import subprocess

import pytest

import lapnb
from lapnb.runs import compute, provenance


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A checkout with one commit; returns what runs git in it."""

    def git(*arguments):
        who = ["-c", "user.name=me", "-c", "user.email=me@here"]
        command = ["git", "-C", str(tmp_path), *who, *arguments]
        return subprocess.check_output(command, text=True).strip()

    (tmp_path / "lapnb").mkdir()
    (tmp_path / "lapnb" / "code.py").touch()
    git("init", "--quiet")
    git("add", "lapnb")
    git("commit", "--quiet", "--message", "first")
    monkeypatch.setattr(provenance, "checkout", lambda: tmp_path)
    return git


def test_a_row_names_the_commit_and_whether_the_code_was_changed(repository, tmp_path):
    first = repository("rev-parse", "--short=12", "HEAD")
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "rows.csv").touch()  # rows themselves are no change of the code
    assert provenance.commit() == first
    (tmp_path / "lapnb" / "more.py").touch()
    assert provenance.commit() == f"{first} + changes"


def test_without_a_commit_a_row_names_the_release(repository, tmp_path, monkeypatch):
    release = f"lapnb {lapnb.__version__}"
    with monkeypatch.context() as patch:
        patch.setenv("PATH", "")  # no git
        assert provenance.commit() == release
    (tmp_path / "inner").mkdir()  # a copy of the code within somebody else's repository
    for folder in (tmp_path / "inner", None):
        monkeypatch.setattr(provenance, "checkout", lambda folder=folder: folder)
        assert provenance.commit() == release


def test_a_row_names_the_commit_that_was_loaded_though_the_checkout_moves(repository, monkeypatch):
    loaded = repository("rev-parse", "--short=12", "HEAD")
    provenance.provenance.cache_clear()
    train = compute.train

    def move_and_train(*arguments, **settings):
        repository("commit", "--quiet", "--allow-empty", "--message", "while it trains")
        return train(*arguments, **settings)

    monkeypatch.setattr(compute, "train", move_and_train)
    table = lapnb.table("fcn_mnist", "smoke", methods=["mp"], rounds=[3], seeds=[0])
    rows = lapnb.run(table, workers=1)
    provenance.provenance.cache_clear()
    assert set(rows.commit) == {loaded} != {provenance.commit()}
