"""What the notebooks agree on."""

from pathlib import Path

import pytest

from jaccl_kernel.core.errors import HostfileError, JacclError
from jaccl_kernel.hostfile.template import template
from jaccl_kernel.notebook import session
from jaccl_kernel.rehearsal import homes


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "hostfiles" / "own.local.json"
    path.parent.mkdir()
    template(["mac1.local", "mac2.local"]).write(path)
    return path


def test_it_is_the_rehearsal_until_something_is_chosen() -> None:
    assert homes.is_rehearsal(session.current())
    assert session.read() == session.Session()


def test_a_choice_outlives_the_kernel_and_is_read_afresh(own: Path) -> None:
    session.choose_hostfile(own)
    assert session.read().hostfile == str(own)
    assert [host.ssh for host in session.current().hosts] == ["mac1.local", "mac2.local"]
    template(["mac3.local"]).write(own)
    assert [host.ssh for host in session.current().hosts] == ["mac3.local"]
    session.choose_hostfile(None)
    assert homes.is_rehearsal(session.current())


def test_hostfile_and_model_are_chosen_apart(own: Path) -> None:
    session.choose_model("org/name")
    session.choose_hostfile(own)
    assert session.read() == session.Session(str(own), "org/name")
    session.choose_model(None)
    session.choose_python("/Users/me/jaccl-env/bin/python")
    assert session.read() == session.Session(str(own), None, "/Users/me/jaccl-env/bin/python")


def test_an_interpreter_of_the_macs_is_none_for_simulated_ones(own: Path) -> None:
    session.choose_python("/Users/me/jaccl-env/bin/python")
    assert session.python_for(session.choose_hostfile(own)) == "/Users/me/jaccl-env/bin/python"
    assert session.python_for(session.choose_hostfile(None)) is None


def test_a_file_that_is_no_hostfile_is_refused_and_the_old_choice_stays(own: Path, tmp_path: Path) -> None:
    session.choose_hostfile(own)
    bad = tmp_path / "bad.json"
    bad.write_text("{")
    for path in (bad, tmp_path / "none.json", ""):
        with pytest.raises(HostfileError):
            session.choose_hostfile(path)
    assert session.read().hostfile == str(own)


def test_a_chosen_file_that_is_gone_is_an_error_not_a_rehearsal(own: Path) -> None:
    session.choose_hostfile(own)
    own.unlink()
    with pytest.raises(HostfileError, match=r"cannot read the file"):
        session.current()


@pytest.mark.parametrize("text", ["", "[]", "{", '{"hostfile": 5}', "null"])
def test_a_damaged_memory_counts_as_no_choice(text: str) -> None:
    session.choose_model("org/name")
    session.session_file().write_text(text)
    assert session.read() == session.Session()


def test_a_choice_that_cannot_be_kept_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be")
    monkeypatch.setenv("JACCL_CACHE", str(tmp_path / "cache"))
    with pytest.raises(JacclError, match="cannot save the file"):
        session.choose_model("org/name")


def test_the_users_hostfiles_are_found_from_the_notebooks_folder(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notebooks = own.parents[1] / "notebooks"
    notebooks.mkdir()
    (own.parent / "m3.template.json").write_text("{}")
    (own.parent / "rehearsal.json").write_text(homes.make_hostfile(3).dumps())
    monkeypatch.chdir(notebooks)
    assert session.hostfiles() == [own]
    assert len(session.current()) == 3
